"""Norms and offset noise: closed forms, and that neither changes what is trained without them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import nets, records
from ddpm_jax.config import Config, Diffusion, NoiseNet
from ddpm_jax.data.pipeline import Batch
from ddpm_jax.diffusion import norms, schedules
from ddpm_jax.diffusion.forward import q_sample
from ddpm_jax.diffusion.loss import loss
from ddpm_jax.diffusion.parameterization import target
from ddpm_jax.diffusion.weightings import WEIGHTINGS, in_space
from ddpm_jax.training import run

LINEAR = schedules.linear()
KEY = jax.random.key(0)
X_0 = jax.random.uniform(jax.random.key(7), (64, 4, 4, 2), minval=-1)
ERROR = np.random.default_rng(0).normal(size=(5, 3, 2)) * np.array([1e-4, 0.01, 0.3, 1, 10])[:, None, None]


def zero(x_t, time):
    del time
    return jnp.zeros_like(x_t)


def exact(name, error, **given):
    """In float64, as the papers have it; the sums over d dimensions divided by d, or by sqrt(d) under a root."""
    size = np.abs(np.float64(error)).reshape(len(error), -1)
    if name == "pseudo_huber":
        whole, c = np.sqrt((size**2).sum(axis=1)), np.sqrt(size.shape[1]) * given.get("c", 0.00054)
        return (np.sqrt(whole**2 + c**2) - c) / np.sqrt(size.shape[1])
    if name == "huber":
        delta = given.get("delta", 1.0)
        return 2 * np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).mean(axis=1)
    return (size if name == "l1" else size**2).mean(axis=1)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("l2", {}),
        ("l1", {}),
        ("huber", {}),
        ("huber", {"delta": 0.1}),
        ("pseudo_huber", {}),
        ("pseudo_huber", {"c": 0.1}),
    ],
)
def test_norms_and_their_slopes_are_those_of_float64(name, given):
    norm = norms.build(name, tuple(given.items()))
    found, slope = jax.value_and_grad(lambda scale: jnp.sum(norm(scale * ERROR)))(1.0)
    np.testing.assert_allclose(norm(jnp.asarray(ERROR)), exact(name, np.float32(ERROR), **given), rtol=2e-6)
    np.testing.assert_allclose(found, exact(name, ERROR, **given).sum(), rtol=2e-6)
    rise = exact(name, (1 + 1e-6) * ERROR, **given) - exact(name, (1 - 1e-6) * ERROR, **given)
    np.testing.assert_allclose(slope, rise.sum() / 2e-6, rtol=2e-5)


@pytest.mark.parametrize("name", norms.NORMS)
def test_an_error_of_nothing_counts_nothing_and_has_a_finite_slope(name):
    norm = norms.build(name, ())
    found, slope = jax.value_and_grad(lambda error: jnp.sum(norm(error)))(jnp.zeros((2, 3)))
    assert float(found) == 0
    np.testing.assert_array_equal(slope, np.zeros((2, 3)))


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_a_norm_is_of_the_predictions_own_error_and_in_space_stands_before_it(prediction):
    """The zero network's error is the target; `mse` stays the squared error."""
    k = WEIGHTINGS["min_snr"]
    options = {"prediction": prediction, "weighting": k}
    _, terms = loss(KEY, LINEAR, zero, X_0, norm=norms.l1, **options)
    _, squared = loss(KEY, LINEAR, zero, X_0, **options)
    eps = jax.random.normal(jax.random.split(KEY)[1], X_0.shape)
    error = np.float64(target(LINEAR, prediction, X_0, eps, terms.t)).reshape(len(X_0), -1)
    factor = in_space(k, prediction, LINEAR.log_snr[terms.t])
    np.testing.assert_allclose(terms.loss, factor * np.abs(error).mean(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(terms.mse, squared.mse)
    np.testing.assert_allclose(terms.mse, (error**2).mean(axis=1), rtol=1e-5)


def test_the_bare_norm_is_what_the_weighting_of_the_predictions_own_error_leaves():
    _, terms = loss(KEY, LINEAR, zero, X_0, prediction="x0", weighting=WEIGHTINGS["x0_mse"], norm=norms.l1)
    np.testing.assert_allclose(terms.loss, np.abs(np.float64(X_0)).mean(axis=(1, 2, 3)), rtol=1e-5)


def test_without_offset_noise_and_with_l2_every_bit_is_as_it_was():
    """The loss as it was written before either: eps from the second half of the key, the mean of its square."""
    seen = {}

    def look(x_t, time):
        seen.update(x_t=x_t)
        return 0.5 * x_t

    value, terms = loss(KEY, LINEAR, look, X_0, norm=norms.build("l2", ()), offset_noise=0.0)
    eps = jax.random.normal(jax.random.split(KEY)[1], X_0.shape)
    x_t = q_sample(LINEAR, X_0, terms.t, eps)
    np.testing.assert_array_equal(seen["x_t"], x_t)
    mse = jnp.mean(jnp.square(0.5 * x_t - eps).reshape(64, -1), axis=1)
    np.testing.assert_array_equal(terms.mse, mse)
    np.testing.assert_array_equal(terms.loss, mse)
    plain, same = loss(KEY, LINEAR, look, X_0)
    assert float(plain) == float(value) == float(jnp.mean(mse))
    np.testing.assert_array_equal(same.loss, terms.loss)


def test_offset_noise_is_one_constant_for_each_image_and_channel():
    """The zero network's error is the noise itself: so the target is offset, too. Variance 1 + offset^2."""
    seen = {}

    def look(x_t, time):
        seen.update(x_t=x_t)
        return jnp.zeros_like(x_t)

    images = jnp.zeros((1024, 4, 4, 2))
    _, terms = loss(KEY, LINEAR, look, images, offset_noise=0.1)
    sigma = LINEAR.sqrt_one_minus_alpha_bars[terms.t][:, None, None, None]
    noise = np.float64(seen["x_t"] / sigma)
    offset = noise - np.float64(jax.random.normal(jax.random.split(KEY)[1], images.shape))
    constant = offset.mean(axis=(1, 2))
    np.testing.assert_allclose(offset, np.broadcast_to(constant[:, None, None], offset.shape), atol=2e-6)
    assert np.abs(constant.mean(axis=0)).max() < 4.5 * 0.1 / 32
    np.testing.assert_allclose(np.cov(constant.T), 0.01 * np.eye(2), atol=4.5 * 0.01 * np.sqrt(2 / 1024))
    np.testing.assert_allclose(terms.mse, (noise**2).mean(axis=(1, 2, 3)), rtol=1e-5)


def test_a_run_has_the_norm_and_the_offset_of_its_config(monkeypatch):
    settings = Diffusion(num_steps=100, norm="huber", norm_args=(("delta", 0.25),), offset_noise=0.5)
    config = Config(diffusion=settings, net=NoiseNet(init_dim=8, dim_mults=(1, 2)))
    assert records.from_dict(records.to_dict(config), Config, "config.json") == config
    parts = run.build(config)
    monkeypatch.setattr(nets, "denoiser_in_training", lambda *_: zero)
    images = np.asarray(X_0)
    value, terms = run.make_loss(parts)(KEY, {"net": {}, "noise": ()}, Batch(images=images, labels=None), ())
    key = jax.random.split(KEY, 3)[0]
    wanted, same = loss(key, parts.schedule, zero, X_0, norm=norms.build("huber", (("delta", 0.25),)), offset_noise=0.5)
    assert float(value) == float(wanted)
    np.testing.assert_array_equal(terms.mse, same.mse)
    assert float(jnp.mean(terms.mse)) > 1.1
    assert float(wanted) < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l3"}, r"--diffusion.norm: there is no 'l3', did you mean 'l[12]'\?"),
        ({"norm_args": (("delta", 1.0),)}, "--diffusion.norm-args: l2 takes none, got delta"),
        ({"norm": "huber", "norm_args": (("c", 1.0),)}, "--diffusion.norm-args: huber takes delta, got c"),
        ({"norm": "huber", "norm_args": (("delta", 0.0),)}, "huber: delta must be a finite number above 0, got 0.0"),
        ({"norm": "l1", "objective": "vlb"}, "--diffusion.norm l1 has no part in --diffusion.objective vlb"),
        ({"norm_args": (("c", 1.0),), "objective": "continuous"}, "--diffusion.norm-args .* has no part in"),
        ({"offset_noise": 0.1, "objective": "vlb"}, "--diffusion.offset-noise 0.1 has no part in --diff.*ive vlb"),
        ({"offset_noise": -0.1}, "--diffusion.offset-noise must be a finite number of at least 0, got -0.1"),
        ({"offset_noise": float("inf")}, "--diffusion.offset-noise must be a finite number"),
    ],
)
def test_what_has_no_part_or_can_not_be_is_refused(settings, message):
    config = Config(diffusion=Diffusion(num_steps=10), net=NoiseNet(init_dim=8, dim_mults=(1, 2)))
    with pytest.raises(ValueError, match=message):
        run.build(dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, **settings)))
