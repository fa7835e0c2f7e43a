"""One step back, x_t -> x_{t-1}: every sampler is a function of the same signature, and one loop runs them all.

A step gets the schedule (respaced ones too), the index t (a traced scalar), x_t, the network's answer and fresh noise
z; all images [B, ...].
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import reverse
from ddpm_jax.diffusion.reverse import LogVariance
from ddpm_jax.diffusion.schedules import Schedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a network said of x_t, each like x_t: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps."""

    x_0: jax.Array
    eps: jax.Array
    v: jax.Array | None = None
    """What it said of the variance, as it stands in its output; None from a network that says nothing of it."""


Step = Callable[[Schedule, jax.Array, jax.Array, Answer, jax.Array], jax.Array]


# Steps are made once: the loop is compiled for a step, and finds its compilation again by the function.
@functools.lru_cache
def _ddpm_with(log_variance: LogVariance) -> Step:
    def step(schedule: Schedule, t: jax.Array, x_t: jax.Array, said: Answer, z: jax.Array) -> jax.Array:
        mean = schedule.posterior_mean_coef_x0[t] * said.x_0 + schedule.posterior_mean_coef_xt[t] * x_t
        deviation = jnp.exp(0.5 * log_variance(schedule, t, said.v))
        return mean + jnp.where(t > 0, deviation, 0.0) * z

    return step


def ddpm(*, variance: str = "large", eta: float = 0.0) -> Step:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2); the last step adds no noise. `eta` is DDIM's, not used.

    variance is large (beta_t), small (the posterior's), medium:F between them, or what the network says, learned or
    learned_range; see `diffusion.reverse`.

    Raises:
        ValueError: for any other variance.
    """
    del eta
    return _ddpm_with(reverse.variance(variance))


@functools.lru_cache
def _ddim(eta: float) -> Step:
    def step(schedule: Schedule, t: jax.Array, x_t: jax.Array, said: Answer, z: jax.Array) -> jax.Array:
        del x_t
        noise_prev = jnp.where(t > 0, schedule.sqrt_one_minus_alpha_bars[t - 1] ** 2, 0.0)
        variance = eta**2 * schedule.posterior_variance[t]
        towards = jnp.sqrt(jnp.maximum(noise_prev - variance, 0.0))
        return jnp.sqrt(schedule.alpha_bars_prev[t]) * said.x_0 + towards * said.eps + jnp.sqrt(variance) * z

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
