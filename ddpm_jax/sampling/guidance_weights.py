"""How strongly to guide at each noise level: functions of log-SNR, as pytrees of their numbers.

Levels are given as sigma, that of x_0 + sigma eps, which is exp(-log-SNR / 2) whatever the process.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

Weight = float | jax.Array | Callable[[jax.Array], jax.Array]
"""A number, or a function log-SNR [B] -> [B]; a jax.tree_util.Partial of one passes its numbers as arguments."""


def interval(weight: Weight, low: float, high: float, *, outside: float = 1.0) -> Partial:
    """`weight` for low < sigma <= high, `outside` elsewhere (Kynkaanniemi et al. 2024, "Applying guidance in a limited
    interval improves sample and distribution quality in diffusion models").

    `outside` is what no guidance is: 1, but 0 for `guidance.classifier`.

    Raises:
        ValueError: unless 0 <= low < high.
    """
    if not 0 <= low < high:
        raise ValueError(f"low and high must rise from 0 or more, got {low} and {high}")
    return Partial(_interval, *_numbers(weight, low, high, outside))


def linear(weight: Weight, low: float, high: float, *, outside: float = 1.0) -> Partial:
    """From `outside` at sigma >= high evenly in log sigma to `weight` at sigma <= low: guidance that grows.

    Wang et al. 2024 ("Analysis of classifier-free guidance weight schedulers") found growing weights to do better than
    constant ones; theirs grow evenly in t.

    Raises:
        ValueError: unless 0 < low < high and both are finite.
    """
    _check_ramp(low, high)
    return Partial(_linear, *_numbers(weight, low, high, outside))


def cosine(weight: Weight, low: float, high: float, *, outside: float = 1.0) -> Partial:
    """As `linear`, along half a wave of the cosine.

    Raises:
        ValueError: unless 0 < low < high and both are finite.
    """
    _check_ramp(low, high)
    return Partial(_cosine, *_numbers(weight, low, high, outside))


WEIGHTS: dict[str, Callable[..., Partial]] = {"interval": interval, "linear": linear, "cosine": cosine}
"""make(weight, low, high, outside=1.0)."""


def tree(weight: Weight) -> Any:
    """A weight as a pytree whose numbers are arrays."""
    if not callable(weight):
        return jnp.asarray(weight, float)
    return weight if isinstance(weight, Partial) else Partial(weight)


def _numbers(weight: Weight, *values: float) -> tuple[Any, ...]:
    return tree(weight), *(jnp.asarray(value, float) for value in values)


def _check_ramp(low: float, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(f"low and high must rise and be finite numbers above 0, got {low} and {high}")


def _read(weight: Any, log_snr: jax.Array) -> jax.Array:
    return jnp.asarray(weight(log_snr) if callable(weight) else weight)


def _interval(weight: Any, low: jax.Array, high: jax.Array, outside: jax.Array, log_snr: jax.Array) -> jax.Array:
    sigma = jnp.exp(-0.5 * log_snr)
    return jnp.where((sigma > low) & (sigma <= high), _read(weight, log_snr), outside)


def _part(low: jax.Array, high: jax.Array, log_snr: jax.Array) -> jax.Array:
    """0 at sigma >= high, 1 at sigma <= low, evenly in log sigma between."""
    return jnp.clip((jnp.log(high) + 0.5 * log_snr) / (jnp.log(high) - jnp.log(low)), 0.0, 1.0)


def _linear(weight: Any, low: jax.Array, high: jax.Array, outside: jax.Array, log_snr: jax.Array) -> jax.Array:
    return outside + (_read(weight, log_snr) - outside) * _part(low, high, log_snr)


def _cosine(weight: Any, low: jax.Array, high: jax.Array, outside: jax.Array, log_snr: jax.Array) -> jax.Array:
    part = 0.5 * (1 - jnp.cos(jnp.pi * _part(low, high, log_snr)))
    return outside + (_read(weight, log_snr) - outside) * part
