"""One step back, x_t -> x_{t-1}: every sampler is a function of the same signature, and one loop runs them all.

A step gets the schedule (respaced ones too), the index t (a traced scalar), x_t and the network's answer as x_0 and eps
(which agree: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps), and fresh noise z; all images [B, ...].
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.config import pick
from ddpm_jax.diffusion.schedules import Schedule

Step = Callable[[Schedule, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def _large(schedule: Schedule, t: jax.Array) -> jax.Array:
    return jnp.where(t > 0, schedule.betas[t], 0.0)


def _small(schedule: Schedule, t: jax.Array) -> jax.Array:
    return schedule.posterior_variance[t]


# sigma_t^2: beta_t suits x_0 ~ N(0, I), the posterior's suits x_0 fixed to a point (Ho et al. 2020, Sec. 3.2).
VARIANCES = {"large": _large, "small": _small}


def _ddpm_with(variance_at: Callable[[Schedule, jax.Array], jax.Array]) -> Step:
    def step(
        schedule: Schedule, t: jax.Array, x_t: jax.Array, x_0: jax.Array, eps: jax.Array, z: jax.Array
    ) -> jax.Array:
        mean = schedule.posterior_mean_coef_x0[t] * x_0 + schedule.posterior_mean_coef_xt[t] * x_t
        return mean + jnp.sqrt(variance_at(schedule, t)) * z

    return step


# Steps are made once: the loop is compiled for a step, and finds its compilation again by the function.
_DDPM = {name: _ddpm_with(variance_at) for name, variance_at in VARIANCES.items()}


def ddpm(*, variance: str = "large", eta: float = 0.0) -> Step:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2); the last step adds no noise. `eta` is DDIM's, not used.

    Raises:
        ValueError: if variance is neither "large" (beta_t) nor "small" (the posterior's).
    """
    del eta
    return pick(_DDPM, variance, "variance")


@functools.lru_cache
def _ddim(eta: float) -> Step:
    def step(
        schedule: Schedule, t: jax.Array, x_t: jax.Array, x_0: jax.Array, eps: jax.Array, z: jax.Array
    ) -> jax.Array:
        noise_prev = jnp.where(t > 0, schedule.sqrt_one_minus_alpha_bars[t - 1] ** 2, 0.0)
        variance = eta**2 * schedule.posterior_variance[t]
        towards = jnp.sqrt(jnp.maximum(noise_prev - variance, 0.0))
        return jnp.sqrt(schedule.alpha_bars_prev[t]) * x_0 + towards * eps + jnp.sqrt(variance) * z

    return step


def ddim(*, variance: str = "small", eta: float = 0.0) -> Step:
    """Song et al. 2020, Eq. 12. eta = 0 is deterministic; eta = 1 is as noisy as ddpm with the small variance.

    `variance` is ddpm's, not used.

    Raises:
        ValueError: if eta lies outside [0, 1].
    """
    del variance
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    return _ddim(float(eta))


SAMPLERS: dict[str, Callable[..., Step]] = {"ddpm": ddpm, "ddim": ddim}
