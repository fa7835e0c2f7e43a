"""The reverse process: what a network's answer says of p(x_{t-1} | x_t) = N(mean, variance).

The mean follows from the prediction of x_0 (Ho et al. 2020, Eq. 7). The variance is fixed, or the network says it in a
second half of its output channels, v, which is read in one of two ways:

    learned          log variance = v                                                 (Nichol & Dhariwal 2021, code)
    learned_range    log variance = f log beta_t + (1 - f) log beta_tilde_t, f = (v + 1) / 2       (ibid., Eq. 15)

At t = 0, where beta_tilde is 0 and the step back is the decoder, both ends are cut at beta_tilde_1, as in the published
code; a sampler adds no noise there.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.forward import Gaussian
from ddpm_jax.diffusion.parameterization import convert
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.records import pick
from ddpm_jax.types import per_image

LogVariance = Callable[[Schedule, jax.Array, jax.Array | None], jax.Array]
"""(schedule, t int [B], v [B, ...] or None) -> log variance, [B] if it is fixed, else [B, ...]."""


Mix = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
"""(log small, log large, v [B, ...] or None) -> log variance; the first two broadcast against v."""


def _large(low: jax.Array, high: jax.Array, v: jax.Array | None) -> jax.Array:
    return high


def _small(low: jax.Array, high: jax.Array, v: jax.Array | None) -> jax.Array:
    return low


def _learned(low: jax.Array, high: jax.Array, v: jax.Array | None) -> jax.Array:
    return _said(v)


def _learned_range(low: jax.Array, high: jax.Array, v: jax.Array | None) -> jax.Array:
    fraction = (_said(v) + 1) / 2
    return fraction * high + (1 - fraction) * low


@functools.lru_cache
def _medium(fraction: float) -> Mix:
    if not 0 <= fraction <= 1:
        raise ValueError(f"medium:F takes F in [0, 1], got {fraction}")
    return lambda low, high, v: fraction * high + (1 - fraction) * low


@functools.lru_cache
def _from_table(mix: Mix) -> LogVariance:
    """The mixture of both ends as a schedule's tables have them."""

    def log_variance(schedule: Schedule, t: jax.Array, v: jax.Array | None = None) -> jax.Array:
        low = schedule.posterior_log_variance_clipped[t]
        high = jnp.where(t > 0, jnp.log(schedule.betas[t]), schedule.posterior_log_variance_clipped[0])
        if v is not None and mix is _learned_range:
            low, high = per_image(low, v), per_image(high, v)
        return mix(low, high, v)

    return log_variance


large = _from_table(_large)
"""beta_t: right for x_0 ~ N(0, I) (Ho et al. 2020, Sec. 3.2)."""
small = _from_table(_small)
"""beta_tilde_t, the posterior's: right for x_0 known to a point (Ho et al. 2020, Sec. 3.2)."""
learned = _from_table(_learned)
"""The network's own number is the log variance."""
learned_range = _from_table(_learned_range)
"""The network picks between small (v = -1) and large (v = 1) (Nichol & Dhariwal 2021, Eq. 15). v isn't bounded."""


def medium(fraction: float) -> LogVariance:
    """A fixed mixture of the logarithms, small at 0 and large at 1 (Salimans & Ho 2022, code).

    Raises:
        ValueError: if fraction lies outside [0, 1].
    """
    return _from_table(_medium(fraction))


def _said(v: jax.Array | None) -> jax.Array:
    if v is None:
        raise ValueError("a learned variance needs a network with twice as many outputs as channels, got as many")
    return v


MIXES: dict[str, Mix] = {
    "large": _large,
    "small": _small,
    "medium:0.5": _medium(0.5),  # or any other number
    "learned": _learned,
    "learned_range": _learned_range,
}
LEARNED = ("learned", "learned_range")


def mix(name: str, argument: str = "variance") -> Mix:
    """How a variance of that name lies between small and large: one of MIXES, or "medium:F" with F from 0 to 1.

    Equal names give the same function, so that a compiled loop is found again.

    Raises:
        ValueError: for any other name, with the nearest.
    """
    fraction = re.fullmatch(r"medium:(\d*\.?\d+)", name)
    if not fraction:
        return pick(MIXES, name, argument)
    if float(fraction[1]) > 1:
        raise ValueError(f"{argument} medium:F takes F in [0, 1], got {name}")
    return _medium(float(fraction[1]))


def variance(name: str, argument: str = "variance") -> LogVariance:
    """The log variance of that name on a schedule's own steps; names and errors as in `mix`."""
    return _from_table(mix(name, argument))


def is_learned(name: str) -> bool:
    """Does a network say this variance itself, in as many more output channels?"""
    return name in LEARNED


def split(output: jax.Array, channels: int) -> tuple[jax.Array, jax.Array | None]:
    """A network's output [..., channels] or [..., 2 channels] as its prediction and what it says of the variance.

    Raises:
        ValueError: for any other number of channels.
    """
    if output.shape[-1] == channels:
        return output, None
    if output.shape[-1] == 2 * channels:
        return output[..., :channels], output[..., channels:]
    raise ValueError(
        f"denoise must return {channels} channels, or {2 * channels} with a variance, got shape {output.shape}"
    )


def p_posterior(
    schedule: Schedule,
    output: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    *,
    prediction: str = "eps",
    log_variance: LogVariance = large,
    clip: bool = False,
) -> tuple[Gaussian, jax.Array]:
    """p(x_{t-1} | x_t) as the network's output describes it (Ho et al. 2020, Eq. 1, 11).

    Args:
        output: [B, ..., C] or [B, ..., 2 C], a denoiser's answer to x_t [B, ..., C].
        t: int [B].
        prediction: what the output means.
        log_variance: from `variance`.
        clip: keep the prediction of x_0 in [-1, 1].

    Returns:
        The Gaussian, its variance [B, 1, ...] or like x_t, and the prediction of x_0, like x_t.

    Raises:
        ValueError: for an output of the wrong width, or a learned variance that isn't in it.
    """
    output, v = split(output, x_t.shape[-1])
    x_0 = convert(schedule, output, x_t, t, source=prediction, target="x0")
    x_0 = jnp.clip(x_0, -1, 1) if clip else x_0
    coef_x0, coef_xt = schedule.posterior_mean_coef_x0[t], schedule.posterior_mean_coef_xt[t]
    mean = per_image(coef_x0, x_t) * x_0 + per_image(coef_xt, x_t) * x_t
    logs = log_variance(schedule, t, v)
    logs = per_image(logs, x_t) if logs.ndim == 1 else logs
    return Gaussian(mean=mean, variance=jnp.exp(logs), log_variance=logs), x_0
