"""Weights over the noise, at levels given by sigma of x_0 + sigma eps."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.sampling.guidance_weights import WEIGHTS, cosine, interval, linear

SIGMA = np.array([100.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.01])
LOG_SNR = jnp.asarray(-2 * np.log(SIGMA))


def test_an_interval_holds_above_low_up_to_high():
    np.testing.assert_allclose(interval(3.0, 0.4, 2.1)(LOG_SNR), [1, 1, 3, 3, 3, 1, 1])
    np.testing.assert_allclose(interval(3.0, 0.4, 2.1, outside=0.0)(LOG_SNR), [0, 0, 3, 3, 3, 0, 0])
    np.testing.assert_allclose(interval(3.0, 0.0, math.inf)(LOG_SNR), np.full(7, 3.0))


def test_ramps_rise_towards_the_image():
    """From 4 to 0.25 in log sigma: a quarter at 2, half at 1, three quarters at 0.5."""
    part = np.array([0, 0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(linear(5.0, 0.25, 4.0)(LOG_SNR), 1 + 4 * part, atol=1e-5)
    np.testing.assert_allclose(linear(5.0, 0.25, 4.0, outside=0.0)(LOG_SNR), 5 * part, atol=1e-5)
    np.testing.assert_allclose(cosine(5.0, 0.25, 4.0)(LOG_SNR), 1 + 2 * (1 - np.cos(np.pi * part)), atol=1e-5)


def test_weights_nest():
    nested = interval(linear(5.0, 0.25, 4.0), 0.6, 3.0)
    np.testing.assert_allclose(nested(LOG_SNR), [1, 1, 2, 3, 1, 1, 1], atol=1e-5)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)])
def test_ends_that_do_not_rise_are_refused(name, ends):
    with pytest.raises(ValueError, match=r"low and high must rise .*, got .* and 1.0"):
        WEIGHTS[name](2.0, *ends)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.1, math.inf)])
def test_a_ramp_wants_finite_ends(ends):
    for make in (linear, cosine):
        with pytest.raises(ValueError, match="must rise and be finite numbers above 0"):
            make(2.0, *ends)
