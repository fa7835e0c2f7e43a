"""The forward process: from data to noise, and the one step back that is known when x_0 is.

q(x_t | x_{t-1})      = N(sqrt(alpha_t) x_{t-1}, beta_t I)                        (Ho et al. 2020, Eq. 2)
q(x_t | x_0)          = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)             (Eq. 4)
q(x_{t-1} | x_t, x_0) = N(coef_x0 x_0 + coef_xt x_t, beta_tilde_t I)              (Eq. 6, 7)
"""

import dataclasses

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.schedules import Schedule, at
from ddpm_jax.types import Images, PerImage, Steps, checked, per_image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Independent normals: `mean` [B, ...]; `variance` and `log_variance` broadcast against it."""

    mean: jax.Array
    variance: jax.Array
    log_variance: jax.Array


@jax.jit
@checked
def q_step(schedule: Schedule, x_prev: Images, t: Steps, eps: Images) -> Images:
    """One step of the chain: x_t from x_{t-1}, both [B, ...], with noise eps (Ho et al. 2020, Eq. 2).

    t [B] is the index arrived at: t = 0 takes x_0 itself. A float t is rounded down, for a step has no half.
    """
    t = jnp.floor(t).astype(jnp.int32)
    alpha, beta = per_image(schedule.alphas[t], x_prev), per_image(schedule.betas[t], x_prev)
    return jnp.sqrt(alpha) * x_prev + jnp.sqrt(beta) * eps


@jax.jit
@checked
def q_sample(schedule: Schedule, x_0: Images, t: Steps, eps: Images) -> Images:
    """Jump from x_0 [B, ...] straight to x_t of the same shape (Ho et al. 2020, Eq. 4).

    The caller draws `eps`, so that the same noise can be the target of the loss. t [B] may be a float between two
    indices.
    """
    level = at(schedule, t)
    return per_image(level.alpha, x_0) * x_0 + per_image(level.sigma, x_0) * eps


@jax.jit
@checked
def q_posterior(schedule: Schedule, x_0: Images, x_t: Images, t: Steps) -> Gaussian:
    """The distribution of x_{t-1} when both ends are known (Ho et al. 2020, Eq. 6, 7).

    At t = 0 it is the point x_0: the variance is 0, and log_variance is cut at the next step's, so that it stays
    finite. `variance` and `log_variance` come as [B, 1, ...].
    """
    level = at(schedule, t)
    mean = per_image(level.coef_x0, x_0) * x_0 + per_image(level.coef_xt, x_t) * x_t
    floor = schedule.posterior_log_variance_clipped[0]
    log_variance = jnp.where(level.variance > 0, jnp.log(jnp.where(level.variance > 0, level.variance, 1.0)), floor)
    if jnp.issubdtype(t.dtype, jnp.integer):
        log_variance = schedule.posterior_log_variance_clipped[t]
    return Gaussian(
        mean=mean,
        variance=per_image(level.variance, x_t),
        log_variance=per_image(log_variance, x_t),
    )


@jax.jit
@checked
def prior_kl(schedule: Schedule, x_0: Images) -> PerImage:
    """KL(q(x_T | x_0) || N(0, I)) in bits per dimension, [B]: what the end of the chain still knows of x_0.

    Ho et al. 2020, Eq. 5 (L_T).
    """
    alpha_bar = schedule.alpha_bars[-1]
    # -log(1 - a) - a cancels in float32 for small a: its series is exact to 1e-7 below 0.01.
    series = alpha_bar**2 * (1 / 2 + alpha_bar * (1 / 3 + alpha_bar * (1 / 4 + alpha_bar / 5)))
    noise = schedule.sqrt_one_minus_alpha_bars[-1] ** 2
    log_noise = jnp.where(alpha_bar < 0.5, jnp.log1p(-alpha_bar), jnp.log(noise))  # each keeps its own half
    spread = jnp.where(alpha_bar < 0.01, series, -log_noise - alpha_bar)
    mean_square = jnp.mean(jnp.reshape(x_0, (x_0.shape[0], -1)) ** 2, axis=1)
    return 0.5 * (spread + alpha_bar * mean_square) / jnp.log(2.0)
