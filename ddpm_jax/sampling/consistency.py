"""Sampling from a consistency function in one step or a few (Song et al. 2023, Algorithm 1)."""

import functools

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.levels import Levels
from ddpm_jax.sampling.sampler import Info, Model, Sampler, State, moved, noise, start


@functools.lru_cache
def _consistency(sigma_min: float) -> Sampler:
    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        end = model(state.x, here).x_0
        spread = jnp.sqrt(jnp.maximum(there.sigma**2 - (there.alpha * sigma_min) ** 2, 0.0))
        return moved(state, there.alpha * end + spread * noise(state)), Info(x_0=end)

    return Sampler(init=start, step=step, only_down=True)


def consistency(*, sigma_min: float = 0.002) -> Sampler:
    """Jump to the end of the path, noise it to the next level, jump again; the last step is a jump.

    `sigma_min` is sigma / alpha where the paths end: so much noise is there already.

    Raises:
        ValueError: unless sigma_min is 0 or more.
    """
    if not sigma_min >= 0:
        raise ValueError(f"sigma_min must be at least 0, got {sigma_min}")
    return _consistency(float(sigma_min))
