"""How t is drawn in training. Each way returns t and the weight that keeps the expectation that of a uniform t."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

DrawT = Callable[[jax.Array, int, int], tuple[jax.Array, jax.Array]]


def uniform(key: jax.Array, num_steps: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """t int32 [B], each of 0 .. num_steps-1 as likely as the others; weights 1 (Ho et al. 2020, Algorithm 1)."""
    return jax.random.randint(key, (batch_size,), 0, num_steps), jnp.ones(batch_size)
