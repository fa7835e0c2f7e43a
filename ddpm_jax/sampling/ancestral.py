"""DDPM's and DDIM's steps (Ho et al. 2020; Song et al. 2020), between any two levels of any process.

With SNR_s / SNR_t = exp(gain) the posterior q(x_s | x_t, x_0) of a step from t to s has, for any process,

    mean        alpha_s (1 - e^-gain) x_0 + alpha_t sigma_s^2 / (alpha_s sigma_t^2) x_t
    variance    sigma_s^2 (1 - e^-gain)                          (sigma_t^2 in place of sigma_s^2 for the large one)
"""

import functools

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import reverse
from ddpm_jax.diffusion.levels import Levels
from ddpm_jax.diffusion.reverse import Mix
from ddpm_jax.sampling.sampler import Info, Model, Sampler, State, moved, noise, start


# Samplers are made once: the loop is compiled for one, and finds its compilation again by its functions.
@functools.lru_cache
def _ddpm_with(mix: Mix) -> Sampler:
    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        said = model(state.x, here)
        new = -jnp.expm1(-here.gain)
        from_x = here.alpha * there.sigma**2 / (there.alpha * here.sigma**2)
        mean = there.alpha * new * said.x_0 + from_x * state.x
        last = there.sigma == 0  # no noise is added there, and its logarithm is not asked for
        low = jnp.log(jnp.where(last, 1.0, there.sigma**2 * new))
        log_variance = mix(low, jnp.log(here.sigma**2 * new), said.v)
        deviation = jnp.where(last, 0.0, jnp.exp(0.5 * log_variance))
        return moved(state, mean + deviation * noise(state)), Info(x_0=said.x_0)

    return Sampler(init=start, step=step, only_down=True)


def ddpm(*, variance: str = "large") -> Sampler:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2); the last step adds no noise.

    variance is large (beta_t), small (the posterior's), medium:F between them, or what the network says, learned or
    learned_range; see `diffusion.reverse`.

    Raises:
        ValueError: for any other variance.
    """
    return _ddpm_with(reverse.mix(variance))


@functools.lru_cache
def _ddim(eta: float) -> Sampler:
    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        said = model(state.x, here)
        x = there.alpha * said.x_0
        if eta == 0:
            return moved(state, x + there.sigma * said.eps), Info(x_0=said.x_0)
        variance = eta**2 * there.sigma**2 * -jnp.expm1(-jnp.maximum(here.gain, 0.0))
        towards = jnp.sqrt(jnp.maximum(there.sigma**2 - variance, 0.0))
        x = x + towards * said.eps + jnp.sqrt(variance) * noise(state)
        return moved(state, x), Info(x_0=said.x_0)

    return Sampler(init=start, step=step, only_down=eta > 0)


def ddim(*, eta: float = 0.0) -> Sampler:
    """Song et al. 2020, Eq. 12. eta = 0 is deterministic; eta = 1 is as noisy as ddpm with the small variance.

    Without noise it also goes up, from image to noise: DDIM inversion.

    Raises:
        ValueError: if eta lies outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    return _ddim(float(eta))
