"""The last step back, to whole numbers: how likely x_0 is, given the least noised image.

Data is [-1, 1] cut into 2^bits bins, byte k at k / (2^bits - 1) * 2 - 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from ddpm_jax.diffusion.forward import Gaussian
from ddpm_jax.diffusion.schedules import NoiseLevel
from ddpm_jax.types import per_image

FAR = 1e15  # deviations to the open side of the first and the last bin; its square is still a float32
NARROW = 0.02  # bins narrower than this many deviations are integrated by a series, wider ones by differences


LogMass = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _log_cdf(x: jax.Array) -> jax.Array:
    """log_ndtr, with its asymptotic series below -10, for the sake of its gradient: JAX's own loses digits there."""
    far = x < -10
    z = jnp.where(far, x, -10.0)
    r = 1 / z**2
    series = jnp.log1p(-r * (1 - r * (3 - r * (15 - r * 105))))
    tail = -0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(-z) + series
    return jnp.where(far, tail, log_ndtr(jnp.where(far, -10.0, x)))


def _exact(low: jax.Array, high: jax.Array, width: jax.Array) -> jax.Array:
    """log of the standard normal's mass between low < high, good to float32 wherever they lie.

    `width` is high - low, or would be if neither were open: their difference has lost its digits far from 0.
    """
    # The mass is the same on the other side of 0, and the left tail is the one that keeps its digits.
    flip = low + high > 0
    low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    middle = (low + high) / 2
    narrow = (width < NARROW) & (high - low < 1)
    series = -0.5 * middle**2 - 0.5 * jnp.log(2 * jnp.pi) + jnp.log(jnp.where(narrow, width, 1.0))
    series = series + jnp.log1p(jnp.where(narrow, width**2 * (middle**2 - 1) / 24, 0.0))
    low, high = jnp.where(narrow, -1.0, low), jnp.where(narrow, 0.0, high)  # so that no gradient is NaN there
    top = _log_cdf(high)
    return jnp.where(narrow, series, top + jnp.log(-jnp.expm1(_log_cdf(low) - top)))


def _tanh_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (x + 0.044715 * x**3)))


def _published(low: jax.Array, high: jax.Array, width: jax.Array) -> jax.Array:
    """What the published code takes for it: a tanh in place of the normal's integral, no mass below 1e-12."""
    del width
    return jnp.log(jnp.maximum(_tanh_cdf(high) - _tanh_cdf(low), 1e-12))


def _in_bins(x_0: jax.Array, p: Gaussian, bits: int, log_mass: LogMass) -> jax.Array:
    half = 1 / (2 ** _checked(bits) - 1)
    inverse = jnp.exp(-0.5 * p.log_variance)
    low = jnp.where(x_0 < -1 + half, -FAR, (x_0 - p.mean - half) * inverse)
    high = jnp.where(x_0 > 1 - half, FAR, (x_0 - p.mean + half) * inverse)
    return -log_mass(low, high, 2 * half * inverse)


def gaussian_nll(x_0: jax.Array, p: Gaussian, *, bits: int = 8) -> jax.Array:
    """-log p(x_0 | x_1) in nats for each dimension, of a Gaussian cut into bins (Ho et al. 2020, Eq. 13).

    Args:
        x_0: [B, ...], values of the grid; the first and the last bin are open.
        p: the last step back.
        bits: the data's depth, 1 .. 16.

    Raises:
        ValueError: for bits outside 1 .. 16.
    """
    return _in_bins(x_0, p, bits, _exact)


def published_nll(x_0: jax.Array, p: Gaussian, *, bits: int = 8) -> jax.Array:
    """`gaussian_nll` as the figures in papers were computed: a tanh for the normal's integral, no mass below 1e-12."""
    return _in_bins(x_0, p, bits, _published)


def categorical_nll(x_0: jax.Array, z: jax.Array, log_snr: jax.Array, *, bits: int = 8) -> jax.Array:
    """-log p(x_0 | z) in nats for each dimension: p(k) in proportion to N(z | x_k, 1 / SNR) (Kingma et al. 2021).

    Args:
        x_0: [B, ...], values of the grid.
        z: [B, ...], x_0 + sqrt(1 / SNR) eps: the noised image on the scale of the clean one.
        log_snr: broadcasts against x_0.
        bits: the data's depth, 1 .. 16: its 2^bits values are all weighed, so that deep ones are slow.

    Raises:
        ValueError: for bits outside 1 .. 16.
    """
    values = jnp.arange(2 ** _checked(bits)) / (2**bits - 1) * 2 - 1
    # (z - value)^2 - (z - x_0)^2, as a product: at high SNR the difference of squares would lose its digits.
    apart, noise = x_0[..., None] - values, (z - x_0)[..., None]
    return jax.nn.logsumexp(-0.5 * jnp.exp(log_snr)[..., None] * apart * (apart + 2 * noise), axis=-1)


def _checked(bits: int) -> int:
    if not 1 <= bits <= 16:
        raise ValueError(f"bits must lie in 1 .. 16, got {bits}")
    return bits


def _categorical(x_0: jax.Array, x_t: jax.Array, level: NoiseLevel, p: Gaussian, bits: int) -> jax.Array:
    del p
    return categorical_nll(x_0, x_t / per_image(level.alpha, x_t), per_image(level.log_snr, x_t), bits=bits)


Decoder = Callable[[jax.Array, jax.Array, NoiseLevel, Gaussian, int], jax.Array]
DECODERS: dict[str, Decoder] = {
    "gaussian": lambda x_0, x_t, level, p, bits: gaussian_nll(x_0, p, bits=bits),
    "published": lambda x_0, x_t, level, p, bits: published_nll(x_0, p, bits=bits),
    "categorical": _categorical,
}
"""(x_0, x_1, its noise level, the last step back, bits) -> nats for each dimension.

`gaussian` and `published` are Ho et al.'s; `categorical` is Kingma et al.'s, for schedules whose first steps are small.
"""
