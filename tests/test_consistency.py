"""Sampling from the exact consistency function of a Gaussian, in one step and in two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import GAUSSIAN

from ddpm_jax.diffusion import processes
from ddpm_jax.sampling import build, sample_path

MEAN, STD = GAUSSIAN.mean(), GAUSSIAN.std()
END = 0.3
"""sigma_min: so large that noise too much or too little shows."""
EDM = processes.edm(sigma_min=END, sigma_max=80.0)
SHAPE = (16, 16, 1)


def exact(x, time):
    """Where the probability-flow ODE takes x from sigma to sigma_min: quantiles stay."""
    sigma = jnp.exp(4 * time).reshape(-1, 1, 1, 1)
    return MEAN + (x - MEAN) * jnp.sqrt((STD**2 + END**2) / (STD**2 + sigma**2))


@pytest.fixture(scope="module")
def drawn():
    """drawn(times) -> 64 images and the path to them, in three frames; compiled once."""
    options = {"shape": SHAPE, "prediction": "x0", "clip": False}
    sampler = build("consistency", (("sigma_min", END),))
    return lambda times: sample_path(
        jax.random.key(0), exact, EDM, num=64, times=times, frames=3, sampler=sampler, **options
    )


def spread(images, std):
    """Four standard errors of the mean and of the deviation."""
    return 4 * std / np.sqrt(images.size), 4 * std / np.sqrt(2 * images.size)


@pytest.mark.parametrize("times", [[80.0, 0.0], [80.0, 0.6, 0.0]], ids=["one step", "two steps"])
def test_the_exact_consistency_function_draws_the_gaussian(times, drawn):
    """As noisy as sigma_min leaves it."""
    images, std = drawn(times)[0], np.hypot(STD, END)
    of_mean, of_std = spread(images, std)
    assert images.mean() == pytest.approx(MEAN, abs=of_mean)
    assert images.std() == pytest.approx(std, abs=of_std)


def test_between_two_steps_x_is_as_noisy_as_its_level(drawn):
    """The noise that is there at sigma_min is not added a second time (Song et al. 2023, Algorithm 1)."""
    x, std = drawn([80.0, 0.6, 0.0])[1].x_t[1], np.hypot(STD, 0.6)
    assert x.std() == pytest.approx(std, abs=spread(x, std)[1])


def test_a_step_is_a_jump_to_the_end_of_the_path(drawn):
    images, path = drawn([80.0, 0.0])
    there = exact(jnp.asarray(path.x_t[0]), EDM.time(jnp, jnp.full(64, 80.0)))
    np.testing.assert_allclose(images, there, atol=1e-5)


def test_a_negative_sigma_min_is_refused():
    with pytest.raises(ValueError, match="sigma_min must be at least 0, got -1"):
        build("consistency", (("sigma_min", -1.0),))
