"""A network that makes small images large: what it is shown, and that it goes by it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from ddpm_jax import data, nets
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.diffusion import schedules
from ddpm_jax.sampling import cascade, ddim
from ddpm_jax.training import run

SCHEDULE = schedules.linear(50)
KEY = jax.random.key(0)
SMALL = np.zeros((1, 4, 4, 1))


def smallest(**net):
    config = load_preset(str(ROOT / "tests" / "presets" / "smallest.py"))
    return dataclasses.replace(config, net=dataclasses.replace(config.net, **net))


def test_small_images_are_means_of_squares():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(cascade.shrink(image, 2).ravel(), [2.5, 4.5, 10.5, 12.5])


def test_the_network_is_shown_the_small_image_as_noisy_as_it_is_told():
    """10,000 of one gray: mean and deviation of q(x_s | x_0) at the step s, five standard errors."""
    low, eps = jnp.full((1, 100, 100, 1), 0.5), jax.random.normal(KEY, (1, 100, 100, 1))
    for s in (0.0, 10.0, 24.5, 49.0):
        told = cascade.shown(SCHEDULE, low, jnp.array([s]), eps, 1)
        alpha_bars = np.cumprod(1 - np.linspace(20 * 1e-4, 20 * 0.02, 50))
        floor, part = int(s), s - int(s)
        log_snr = np.log(alpha_bars / (1 - alpha_bars))
        level = (1 - part) * log_snr[floor] + part * log_snr[min(floor + 1, 49)]
        alpha, sigma = 1 / np.sqrt(1 + np.exp(-level)), 1 / np.sqrt(1 + np.exp(level))
        assert told["low"].mean() == pytest.approx(0.5 * alpha, abs=5 * sigma / 100)
        assert told["low"].std() == pytest.approx(sigma, rel=5 / np.sqrt(20_000))
        assert float(told["low_t"][0]) == pytest.approx(20 * s)


def test_training_shows_every_image_its_own_small_one_at_steps_all_over_the_schedule():
    images = jnp.broadcast_to(jnp.linspace(-1, 1, 512)[:, None, None, None], (512, 4, 4, 1))
    told = cascade.in_training(KEY, SCHEDULE, images, 2, jnp.arange(512))
    assert told["low"].shape == images.shape
    np.testing.assert_array_equal(told["labels"], np.arange(512))
    steps = np.asarray(told["low_t"]) / 20
    assert {steps.min(), steps.max()} == {0.0, 49.0}
    assert len(np.unique(steps)) > 45
    clean = steps < 5
    np.testing.assert_allclose(told["low"][clean].mean(axis=(1, 2, 3)), images[clean].mean(axis=(1, 2, 3)), atol=0.6)


def wide(x, time, told):
    """x_0 ~ N(what was shown, 0.1^2), at the times of SCHEDULE."""
    level = schedules.at(SCHEDULE, time / 20)
    alpha, sigma = (a[:, None, None, None] for a in (level.alpha, level.sigma))
    mean = told["low"] + 0 * told["low_t"][:, None, None, None]
    return mean + alpha * 0.01 / (alpha**2 * 0.01 + sigma**2) * (x - alpha * mean)


OPTIONS = {"factor": 2, "prediction": "x0", "clip": False, "sampler": ddim()}


def test_images_are_drawn_around_what_the_network_is_shown_each_its_own():
    low = np.linspace(-0.8, 0.8, 5).reshape(5, 1, 1, 1) * np.ones((1, 8, 8, 1))
    drawn = cascade.super_resolve(KEY, wide, SCHEDULE, low, augment=0.0, batch_size=5, **OPTIONS)
    assert drawn.shape == (5, 16, 16, 1)
    alpha, sigma = 1 / np.sqrt(1 + 0.002 / 0.998), np.sqrt(0.002)
    error = np.hypot(0.1, sigma) / 16 * 2  # neighbours share the noise of the small image
    np.testing.assert_allclose(drawn.mean(axis=(1, 2, 3)), alpha * low[:, 0, 0, 0], atol=5 * error)
    by_two = cascade.super_resolve(KEY, wide, SCHEDULE, low, augment=0.0, batch_size=2, **OPTIONS)
    np.testing.assert_allclose(by_two, drawn, atol=1e-5)


def fresh(module):
    """Parameters away from the zeros that some begin with."""
    shapes = jax.eval_shape(lambda: nets.init(KEY, module, (8, 8, 1)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: jnp.asarray(0.2 * rng.standard_normal(p.shape), p.dtype), shapes)


def test_the_network_sees_the_small_image_and_how_noisy_it_is():
    module = nets.build(smallest(enlarges=2))
    params, x = fresh(module), jnp.zeros((4, 8, 8, 1))
    time, low = jnp.full(4, 500.0), jnp.stack([x[0], x[0] + 1, x[0], x[0]])
    denoise = nets.denoiser(module, params)
    black, white, again, earlier = jax.jit(denoise)(x, time, {"low": low, "low_t": time.at[3].set(100.0)})
    assert abs(black - white).max() > 0.01
    assert abs(black - earlier).max() > 0.01
    np.testing.assert_allclose(black, again, atol=1e-5)
    with pytest.raises(ValueError, match="low and low_t are for a conditional network"):
        denoise(x, time)
    with pytest.raises(ValueError, match="low and low_t are for a conditional network"):
        nets.build(smallest()).apply({"params": params}, x, time, low=low, low_t=time)


def test_a_gradient_reaches_what_reads_the_small_image():
    """The run's own loss, at parameters away from the zeros they start with."""
    parts = run.build(smallest(enlarges=2), devices=jax.devices()[:1])
    params = fresh(parts.module)
    batch = data.batch_at(data.load(parts.config.data), seed=0, step=0, batch_size=4)
    loss = run.make_loss(parts)
    trained = {"net": params, "noise": (), "uncertainty": ()}
    gradient = jax.jit(jax.grad(lambda t: loss(KEY, t, dataclasses.replace(batch, labels=None), ())[0]))(trained)["net"]
    kernel = gradient["conv_in"]["kernel"]
    assert kernel.shape[-2] == 2
    assert abs(kernel[..., 1, :]).max() > 0
    assert abs(gradient["low_time1"]["kernel"]).max() > 0


def test_a_source_is_shrunk_to_the_means_of_its_squares():
    whole = data.load(data_of(8, 1)).images
    small = data.load(data_of(4, 2)).images
    means = np.asarray(whole[:5], float).reshape(5, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(small[:5], means, atol=0.5)


def data_of(side, shrink):
    return dataclasses.replace(smallest().data, shape=(side, side, 1), shrink=shrink)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cascade.conditions(KEY, SCHEDULE, SMALL, factor=2, augment=1.5), "augment must lie in"),
        (lambda: cascade.shrink(np.zeros((1, 9, 8, 1)), 2), "factor must divide the sides of the images, 9x8, got 2"),
        (lambda: data.load(data_of(4, 3)), "--data.shrink must divide the sides of the images, 8x8, got 3"),
        (lambda: data.load(data_of(8, 0)), "--data.shrink must be at least 1, got 0"),
        (lambda: run.build(smallest(enlarges=3)), "--net.enlarges must be 0, or 2 or more that divide the sides 8x8"),
        (lambda: run.build(smallest(enlarges=1)), "--net.enlarges must be 0, or 2 or more"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
