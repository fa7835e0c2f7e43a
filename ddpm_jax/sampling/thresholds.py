"""What keeps a prediction of x_0 within the data's range: functions x_0 [B, ...] -> x_0."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Threshold = Callable[[jax.Array], jax.Array]


def static(x_0: jax.Array) -> jax.Array:
    """Clip to [-1, 1]."""
    return jnp.clip(x_0, -1, 1)


@functools.lru_cache
def dynamic(quantile: float = 0.995) -> Threshold:
    """Clip each image to its own quantile of |x_0|, at least 1, and divide by it (Saharia et al. 2022, Sec. 2.3).

    Raises:
        ValueError: unless 0 < quantile <= 1.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile}")

    def threshold(x_0: jax.Array) -> jax.Array:
        sizes = jnp.abs(jnp.reshape(x_0, (x_0.shape[0], -1)))
        edge = jnp.maximum(jnp.quantile(sizes, quantile, axis=1), 1.0).astype(x_0.dtype)
        edge = jnp.reshape(edge, (-1,) + (1,) * (x_0.ndim - 1))
        return jnp.clip(x_0, -edge, edge) / edge

    return threshold
