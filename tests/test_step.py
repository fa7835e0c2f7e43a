"""One training step on a problem whose answer is known: a linear model of one number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.data import Batch
from ddpm_jax.diffusion.loss import LossTerms
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.state import fresh
from ddpm_jax.training.step import make_step


def squared(key, trained, batch, history):
    """Mean of (w - x)^2; t counts 0, 1, 2, ... so that every quarter of T = 8 gets its share."""
    del key, history
    terms = jnp.square(trained["net"]["w"] - batch.images[:, 0])
    t, log_snr = jnp.arange(len(terms)) % 8, jnp.zeros(len(terms))
    return terms.mean(), LossTerms(loss=terms, objective=terms, mse=terms, eps_error=terms, log_snr=log_snr, t=t)


def step_and_state(loss=squared, devices=None, **options):
    optimizer, mesh = optax.sgd(0.25), mesh_lib.make_mesh(devices=devices)
    step = make_step(loss, optimizer, ema_decay=0.5, num_steps=8, mesh=mesh, **options)
    return step, fresh({"w": jnp.zeros(())}, optimizer)


def batch(*rows):
    return Batch(images=np.asarray(rows, np.float32)[..., None], labels=None)


def test_step_takes_the_gradient_of_the_mean_and_counts():
    step, state = step_and_state()
    state, metrics = step(state, batch(1.0, 3.0), jax.random.key(0))
    np.testing.assert_allclose(metrics["loss"], 5.0)
    np.testing.assert_allclose(metrics["grad_norm"], 4.0)
    np.testing.assert_allclose(state.params["w"], 1.0)  # 0 + 0.25 * 4
    np.testing.assert_allclose(state.ema["w"], 0.9)  # the first decay is 0.1
    assert state.step == 1


def test_loss_is_sorted_by_quarter_of_t():
    step, state = step_and_state()
    _, metrics = step(state, batch(*range(8)), jax.random.key(0))
    np.testing.assert_allclose(metrics["quarter_sum"], [0 + 1, 4 + 9, 16 + 25, 36 + 49])
    np.testing.assert_array_equal(metrics["quarter_count"], [2, 2, 2, 2])


def test_parts_that_are_laid_out_share_their_memory():
    """On one CPU: the squares that the backward pass reads are there for one part of four at a time."""

    def squares(key, trained, batch, history):
        x = batch.images[:, 0]
        for _ in range(6):
            x = jax.lax.reduce_window(trained["net"]["w"] * x, 0.0, jax.lax.add, (1, 3), (1, 1), "SAME") ** 2
        return squared(key, trained, Batch(images=x.mean(1, keepdims=True), labels=None), history)

    def temporaries(parts):
        step, state = step_and_state(squares, accumulate=parts, devices=jax.devices("cpu")[:1])
        rows = Batch(images=jnp.ones((8, 1, 100_000)), labels=None)
        return step.lower(state, rows, jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 0.5 * temporaries(1)


def test_several_steps_in_one_dispatch_are_the_same_steps():
    one, state = step_and_state()
    for row in (1.0, 2.0, -3.0):
        state, _ = one(state, batch(row), jax.random.key(0))
    three, other = step_and_state(steps_per_dispatch=3)
    other, metrics = three(other, batch([1.0], [2.0], [-3.0]), jax.random.key(0))
    assert metrics["loss"].shape == (3,)
    np.testing.assert_allclose(other.params["w"], state.params["w"], rtol=1e-6)
    np.testing.assert_allclose(other.ema["w"], state.ema["w"], rtol=1e-6)
    assert other.step == 3


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_same_step(parts):
    """The mean of the parts' means; and every image's term, for the history and the quarters of t."""

    def by_value(key, trained, batch, history):
        loss, terms = squared(key, trained, batch, history)
        return loss, dataclasses.replace(terms, t=batch.images[:, 0].astype(int))

    whole, state = step_and_state(by_value)
    state, metrics = whole(state, batch(*range(8)), jax.random.key(0))
    split, other = step_and_state(by_value, accumulate=parts)
    other, others = split(other, batch(*range(8)), jax.random.key(0))
    for name in metrics:
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-6)
    np.testing.assert_allclose(other.params["w"], state.params["w"], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(bad):
    step, state = step_and_state()
    state, _ = step(state, batch(1.0, 3.0), jax.random.key(0))
    before = jax.device_get((state.params, state.ema, state.opt_state))
    state, metrics = step(state, batch(1.0, bad), jax.random.key(0))
    assert metrics["nonfinite"]
    assert state.step == 2
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get((state.params, state.ema, state.opt_state)))


def test_every_step_has_a_key_of_its_own():
    def noisy(key, trained, batch, history):
        images = jax.random.normal(key, (4, 1)) + 0 * batch.images
        return squared(key, trained, Batch(images=images, labels=None), history)

    step, state = step_and_state(loss=noisy)
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch(0.0, 0.0, 0.0, 0.0), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 3


def test_step_gives_its_state_away():
    step, state = step_and_state()
    step(state, batch(1.0), jax.random.key(0))
    assert state.params["w"].is_deleted()


@pytest.mark.parametrize(("size", "message"), [(6, "got 6; try 4 or 8"), (3, "got 3; try 4"), (0, "got 0; try 4")])
def test_a_batch_that_does_not_spread_is_refused_with_those_that_do(size, message):
    class Four:
        size = 4

    with pytest.raises(ValueError, match=message):
        mesh_lib.check_batch(size, Four)  # pyright: ignore[reportArgumentType]
