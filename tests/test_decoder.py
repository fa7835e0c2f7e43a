"""The last step back, to whole numbers, against SciPy in float64."""

import functools

import float64
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import decoder
from ddpm_jax.diffusion.forward import Gaussian

gaussian_nll, published_nll, categorical_nll = (
    jax.jit(function, static_argnames="bits")
    for function in (decoder.gaussian_nll, decoder.published_nll, decoder.categorical_nll)
)
DEVIATIONS = np.array([1e-3, 1e-2, 0.1, 1.0, 10.0])
MEANS = np.array([-30.0, -2.0, -1.0, -0.503, 0.0, 0.2, 1.0, 1.03, 5.0])


def normal(mean, log_variance):
    mean, log_variance = jnp.asarray(mean, jnp.float32), jnp.asarray(log_variance, jnp.float32)
    return Gaussian(mean=mean, variance=jnp.exp(log_variance), log_variance=log_variance)


def grid(bits):
    return np.linspace(-1, 1, 2**bits).astype(np.float32)


def every(bits):
    """All values of the grid for each mean and deviation: x_0, mean, log variance, [N, 2^bits] each."""
    parts = np.meshgrid(MEANS, 2 * np.log(DEVIATIONS), grid(bits), indexing="ij")
    mean, log_variance, x_0 = (np.float32(part).reshape(-1, 2**bits) for part in parts)
    return x_0, mean, log_variance


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_the_bins_share_out_the_whole_mass(bits):
    """Means inside and far outside of [-1, 1], deviations from a fraction of a bin to several images wide."""
    x_0, mean, log_variance = every(bits)
    mass = np.exp(-np.asarray(gaussian_nll(x_0, normal(mean, log_variance), bits=bits), np.float64))
    np.testing.assert_allclose(mass.sum(axis=1), np.ones(len(mass)), rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_the_mass_is_scipys_wherever_the_mean_lies(bits):
    """In bins, and 30 000 deviations away from the mean, where it is exp(-4.5e8)."""
    x_0, mean, log_variance = every(bits)
    found = gaussian_nll(x_0, normal(mean, log_variance), bits=bits)
    exact = float64.decoder_nll(*(np.float64(a) for a in (x_0, mean, log_variance)), bits)
    np.testing.assert_allclose(found, exact, rtol=3e-6, atol=1e-5)


@pytest.mark.parametrize("away", [-30.0, -8.0, -3.0, 3.0, 8.0, 30.0])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_tails_of_30_deviations_keep_their_digits(bits, away):
    """Narrow bins and wide ones: a bin's width is known, and not what is left of two edges that were rounded."""
    x_0 = grid(bits)[2 ** (bits - 1)]
    deviations = np.array([0.02, 0.05, 0.3, 1.0])
    mean, log_variance = np.float32(x_0 - away * deviations), np.float32(2 * np.log(deviations))
    found = gaussian_nll(jnp.full(4, x_0), normal(mean, log_variance), bits=bits)
    exact = float64.decoder_nll(np.full(4, np.float64(x_0)), np.float64(mean), np.float64(log_variance), bits)
    np.testing.assert_allclose(found, exact, rtol=3e-6)


@functools.partial(jax.jit, static_argnums=(0, 1))
def slopes(decode, bits, x_0, mean, log_variance):
    """By mean and log variance."""
    return jax.grad(lambda m, v: decode(x_0, normal(m, v), bits=bits).sum(), (0, 1))(mean, log_variance)


@pytest.mark.parametrize("decode", [decoder.gaussian_nll, decoder.published_nll])
@pytest.mark.parametrize("bits", [1, 8])
def test_gradients_are_finite_everywhere(decode, bits):
    for slope in slopes(decode, bits, *every(bits)):
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("away", [(0, 40), (40, 1e5)])
@pytest.mark.parametrize("bits", [1, 5, 8])
def test_gradients_are_scipys(bits, away):
    """By central differences in float64 of 1e-5 deviations. The further away the mean, the harder it is pulled."""
    x_0, mean, log_variance = every(bits)
    both = slopes(decoder.gaussian_nll, bits, x_0, mean, log_variance)
    x_0, mean, log_variance = np.float64(x_0), np.float64(mean), np.float64(log_variance)
    deviation = np.exp(log_variance / 2)
    wanted = (
        float64.slope(lambda m: float64.decoder_nll(x_0, m, log_variance, bits), mean, 1e-5 * deviation),
        float64.slope(lambda v: float64.decoder_nll(x_0, mean, v, bits), log_variance, 1e-5),
    )
    there = (np.abs(x_0 - mean) >= away[0] * deviation) & (np.abs(x_0 - mean) < away[1] * deviation)
    for found, exact, unit in zip(both, wanted, (deviation, 1.0), strict=True):
        np.testing.assert_allclose((found * unit)[there], (exact * unit)[there], rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [5, 8])
def test_the_published_decoder_is_the_tanh_formula_with_its_floor(bits):
    """The mass is a difference of two numbers up to 1, so good to 1.2e-7; below 1e-12 it stops."""
    x_0, mean, log_variance = every(bits)
    found = np.asarray(published_nll(x_0, normal(mean, log_variance), bits=bits), np.float64)
    given = (np.float64(a) for a in (x_0, mean, log_variance))
    exact = float64.decoder_nll(*given, bits, log_mass=float64.tanh_log_mass)
    # A bin's edge rounds by 6e-8, which is 6e-5 of the smallest deviation.
    np.testing.assert_allclose(np.exp(-found), np.exp(-exact), atol=5e-5)
    wide = np.exp(log_variance / 2) > 0.05
    np.testing.assert_allclose(np.exp(-found)[wide], np.exp(-exact)[wide], atol=5e-7)
    assert found.max() == pytest.approx(-np.log(1e-12), rel=1e-6)
    assert (found[exact > 27.6] > 15.9).all()  # nothing that float32 could still tell from 0


def test_the_published_decoder_differs_from_the_exact_one_as_its_tanh_does():
    """By up to 2e-4 in the integral: a percent of nothing near the mean, much of what is left far away."""
    x_0, p = jnp.zeros(2), normal(jnp.array([0.0, 0.5]), jnp.full(2, 2 * np.log(0.1)))
    exact, published = gaussian_nll(x_0, p, bits=8), published_nll(x_0, p, bits=8)
    assert abs(float(exact[0] - published[0])) < 1e-3
    assert abs(float(exact[1] - published[1])) > 0.1


@pytest.mark.parametrize("bits", [1, 5, 8])
@pytest.mark.parametrize("log_snr", [-5.0, 4.0, 13.3])
def test_the_categorical_decoder_shares_out_the_whole_mass(bits, log_snr):
    """Over x_0 for one z: between values, on one, and outside of all."""
    z = np.array([0.0, 1.0, 0.3, -1.2, 2.5], np.float32)[:, None]
    x_0 = np.broadcast_to(grid(bits), (5, 2**bits))
    nll = categorical_nll(jnp.asarray(x_0), jnp.asarray(z), jnp.full((5, 1), log_snr), bits=bits)
    # Exponents of up to SNR rounded by 6e-8 each, where they count at all.
    np.testing.assert_allclose(np.exp(-np.float64(nll)).sum(axis=1), np.ones(5), rtol=1e-5 if log_snr < 13 else 3e-3)


@pytest.mark.parametrize("log_snr", [-5.0, 4.0, 9.0, 13.3])
def test_the_categorical_decoder_is_a_softmax(log_snr):
    """Of noise up to four deviations on every byte.

    At 13.3 a bin is 6 deviations wide: x_0 itself, rounded by 6e-8, is then off by 3e-4 of what tells two values apart.
    """
    x_0 = np.repeat(grid(8)[:, None], 9, axis=1)
    z = np.float32(x_0 + np.exp(-log_snr / 2) * np.linspace(-4, 4, 9))
    found = categorical_nll(jnp.asarray(x_0), jnp.asarray(z), jnp.full((256, 1), log_snr))
    exact = float64.categorical_nll(np.float64(x_0), np.float64(z), np.float64(np.float32(log_snr)))
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=3e-4 if log_snr > 13 else 1e-5)


@pytest.mark.parametrize("bits", [0, 17, -3])
def test_bits_out_of_range_are_refused(bits):
    x_0 = jnp.zeros((1, 1))
    for decode in (
        lambda: gaussian_nll(x_0, normal([0.0], [0.0]), bits=bits),
        lambda: published_nll(x_0, normal([0.0], [0.0]), bits=bits),
        lambda: categorical_nll(x_0, x_0, jnp.zeros((1, 1)), bits=bits),
    ):
        with pytest.raises(ValueError, match=rf"bits must lie in 1 \.\. 16, got {bits}"):
            decode()
