"""Power-function averages: their profiles, how training keeps them, and how others are made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad

from ddpm_jax.data import Batch
from ddpm_jax.diffusion.loss import LossTerms
from ddpm_jax.training import mesh, power_ema
from ddpm_jax.training.power_ema import fit, gamma_of, inner, profile, sigma_rel_of
from ddpm_jax.training.state import fresh
from ddpm_jax.training.step import make_step

KEPT = (0.05, 0.10)


def closed_form(thetas, gamma):
    """The average after the last of thetas [t, ...], each of them constant for a step: an integral, in float64."""
    edges = (np.arange(len(thetas) + 1) / len(thetas)) ** (gamma + 1)
    return np.tensordot(np.diff(edges), np.asarray(thetas, np.float64), axes=1)


@pytest.mark.parametrize(("gamma", "sigma_rel"), [(16.97, 0.05), (6.94, 0.10)])
def test_exponent_and_length_are_those_of_the_paper(gamma, sigma_rel):
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=0.005)
    assert sigma_rel_of(gamma) == pytest.approx(sigma_rel, abs=5e-5)


@pytest.mark.parametrize("sigma_rel", [1e-6, 1e-3, 0.02, 0.05, 0.1, 0.2, 0.28, 12**-0.5])
def test_exponent_gives_its_length_back(sigma_rel):
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.7, 6.94, 16.97, 97.0])
def test_length_is_the_deviation_of_the_profile_over_the_step(gamma):
    step = 40.0
    total, mean, square = (quad(lambda s, n=n: profile(s, step, gamma) * s**n, 0, step)[0] for n in range(3))
    assert total == pytest.approx(1, rel=1e-8)
    assert np.sqrt(square - mean**2) / step == pytest.approx(sigma_rel_of(gamma), rel=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.28868, 1.0, float("nan"), 1e-200])
def test_a_length_out_of_reach_is_refused(sigma_rel):
    with pytest.raises(ValueError, match=r"--ema-sigma-rel must lie in 1e-06 \.\. 0\.288675, got"):
        gamma_of(sigma_rel, "--ema-sigma-rel")


@pytest.mark.parametrize("pair", [(10, 6.94, 10, 16.97), (3, 6.94, 11, 16.97), (11, 0.5, 3, 16.97), (7, 0.0, 9, 0.0)])
def test_inner_product_is_the_integral(pair):
    step_a, gamma_a, step_b, gamma_b = pair
    product = quad(lambda s: profile(s, step_a, gamma_a) * profile(s, step_b, gamma_b), 0, min(step_a, step_b))[0]
    np.testing.assert_allclose(inner(*pair), product, rtol=1e-9)


def test_training_keeps_the_average_that_the_integral_gives():
    thetas = np.random.default_rng(0).standard_normal((200, 3)).cumsum(0)
    averages = power_ema.start({"w": jnp.full(3, 9.0)}, KEPT)
    take = jax.jit(power_ema.average)
    for i, theta in enumerate(thetas):
        averages = take(averages, {"w": jnp.asarray(theta, jnp.float32)}, jnp.int32(i + 1))
        if i == 0:
            np.testing.assert_allclose(averages["0.05"]["w"], theta, atol=1e-6)  # nothing of the start is left
    for sigma_rel in KEPT:
        np.testing.assert_allclose(
            averages[str(sigma_rel)]["w"], closed_form(thetas, gamma_of(sigma_rel)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("step", [1, 2, 1000, 1_000_000])
def test_share_of_the_newest_keeps_its_digits_in_float32(step):
    exact = 1 - (1 - 1 / np.longdouble(step)) ** (16.97 + 1)
    np.testing.assert_allclose(jax.jit(power_ema.newest_share)(jnp.int32(step), 16.97), float(exact), rtol=3e-6)


def test_a_parameter_that_does_not_move_stays_as_it_is():
    w = jnp.asarray([0.1, -3.7, 1e-8, 0.0])
    averages = power_ema.start(w, (0.1,))
    take = jax.jit(power_ema.average)
    for step in (*range(1, 50), 999_999):
        averages = take(averages, w, jnp.int32(step))
    np.testing.assert_array_equal(averages["0.1"], w)


def squared(key, trained, batch, history):
    del key, history
    terms, zeros = jnp.square(trained["net"]["w"] - batch.images[:, 0]), jnp.zeros(1)
    return terms.mean(), LossTerms(
        loss=terms, objective=terms, mse=terms, eps_error=terms, log_snr=zeros, t=zeros.astype(int)
    )


def test_the_step_averages_the_parameters_that_it_made_even_where_it_made_none():
    """A step that isn't finite counts as one to where the parameters were."""
    optimizer = optax.sgd(0.25)
    step = make_step(squared, optimizer, ema_decay=0.5, num_steps=8, mesh=mesh.make_mesh())
    state, thetas = fresh({"w": jnp.zeros(())}, optimizer, sigma_rels=KEPT), []
    for image in (1.0, -2.0, np.nan, 5.0, 3.0):
        batch = Batch(images=np.full((1, 1), image, np.float32), labels=None)
        state, metrics = step(state, batch, jax.random.key(0))
        assert bool(metrics["nonfinite"]) == np.isnan(image)
        thetas.append(float(state.params["w"]))
    assert thetas[2] == thetas[1]
    for sigma_rel in KEPT:
        expected = closed_form(thetas, gamma_of(sigma_rel))
        np.testing.assert_allclose(state.power_ema[str(sigma_rel)]["w"], expected, rtol=1e-5)


def tracked(thetas, gamma):
    """The average after every step, by the paper's recurrence, in float64."""
    averages, average = [], 0.0
    for t, theta in enumerate(thetas, 1):
        beta = (1 - 1 / t) ** (gamma + 1)
        average = beta * average + (1 - beta) * theta
        averages.append(average)
    return np.array(averages)


def reconstructed(thetas, every, sigma_rel):
    """From snapshots of KEPT at every `every`-th step; and the fit."""
    steps, gammas = range(every, len(thetas) + 1, every), [gamma_of(kept) for kept in KEPT]
    held = {gamma: tracked(thetas, gamma) for gamma in gammas}
    given = [(step, gamma) for step in steps for gamma in gammas]
    found = fit(*zip(*given, strict=True), len(thetas), gamma_of(sigma_rel))
    [mixed] = power_ema.mixtures(
        ([w], {"w": held[gamma][step - 1]}) for w, (step, gamma) in zip(found.weights, given, strict=True)
    )
    return mixed["w"], found, given


WALK = 20 + np.random.default_rng(1).standard_normal((480, 64)).cumsum(0) * 0.1 + np.linspace(0, 3, 480)[:, None]
"""Parameters [steps, 64] of a drift and a random walk, far from 0 as many parameters are."""


@pytest.mark.parametrize(
    ("sigma_rel", "errors"),
    [(0.02, (0.2, 1e-2, 4e-4)), (0.07, (2e-3, 6e-5, 2e-6)), (0.15, (2e-3, 6e-5, 2e-6)), (0.25, (6e-2, 1e-2, 2e-3))],
)
def test_a_third_length_is_made_of_two_the_better_the_denser_the_snapshots(sigma_rel, errors):
    """Error of the average, over the average's distance from the last parameters."""
    direct = tracked(WALK, gamma_of(sigma_rel))[-1]
    away = np.linalg.norm(direct - WALK[-1])
    found = [np.linalg.norm(reconstructed(WALK, every, sigma_rel)[0] - direct) / away for every in (40, 12, 4)]
    assert found[0] > 2 * found[1] > 4 * found[2]
    assert all(one < most for one, most in zip(found, errors, strict=True)), found


@pytest.mark.parametrize("which", [(480, 0), (480, 1), (240, 0)])
def test_a_stored_average_is_itself(which):
    step, number = which
    steps, gammas = np.repeat(np.arange(40, 481, 40), 2), np.tile([gamma_of(kept) for kept in KEPT], 12)
    found = fit(steps, gammas, step, gammas[number])
    np.testing.assert_allclose(found.weights, (steps == step) & (gammas == gammas[number]), atol=1e-10)
    assert found.misfit < 1e-7


def test_what_does_not_move_comes_out_as_it_is_even_of_too_few_snapshots():
    still = np.full((480, 2), [3.0, -0.5])
    mixed, found, _ = reconstructed(still, 40, 0.01)
    assert found.misfit > 0.1
    np.testing.assert_allclose(mixed, still[-1], rtol=1e-11)


def test_misfit_is_the_norm_of_what_is_missed_and_no_other_mixture_misses_less():
    _, found, given = reconstructed(WALK, 40, 0.02)
    at = (np.arange(480 * 50) + 0.5) / 50
    profiles, wanted = np.stack([profile(at, *one) for one in given]), profile(at, 480, gamma_of(0.02))
    missed = found.weights @ profiles - wanted
    assert found.misfit == pytest.approx(np.linalg.norm(missed) / np.linalg.norm(wanted), rel=1e-3)
    # At the least, what is missed is at right angles to every change that leaves the sum of weights at 1.
    slopes = profiles @ missed / np.linalg.norm(profiles, axis=1) / np.linalg.norm(wanted)
    changes = slopes * np.linalg.norm(profiles, axis=1)
    np.testing.assert_allclose(changes - changes.mean(), 0, atol=2e-4 * np.linalg.norm(profiles, axis=1).max())


def test_lengths_are_refused_that_are_given_twice():
    with pytest.raises(ValueError, match=r"--optimizer\.ema-sigma-rels must all be different, got 0\.1, 0\.1"):
        power_ema.check((0.1, 0.1), "--optimizer.ema-sigma-rels")
