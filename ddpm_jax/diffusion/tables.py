"""The constants of a forward process, and how they are read.

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,   alpha_bar_t = prod_{s <= t} (1 - beta_s)

A `Schedule` is a record of tables [T], one entry per index t = 0 .. T-1; t = 0 has been noised once. They are worked
out in float64 and stored in float32, each by itself: a float32 alpha_bar loses 1 - alpha_bar, a table of its own keeps
it. Whatever the schedule, every entry is finite: `log_snr` stops at +-LOG_SNR_LIMIT where the signal or the noise is
gone (jsd, zero terminal SNR), far outside what float32 images can tell apart.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import Steps, Table, checked

LOG_SNR_LIMIT = 40.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The constants of a forward process, float32 [T] each."""

    betas: Table
    alphas: Table
    alpha_bars: Table
    alpha_bars_prev: Table
    sqrt_alpha_bars: Table
    sqrt_one_minus_alpha_bars: Table
    log_snr: Table
    posterior_variance: Table
    posterior_log_variance_clipped: Table
    posterior_mean_coef_x0: Table
    posterior_mean_coef_xt: Table
    times: Table
    """What a network is told at each step: the index in the schedule it was trained on, times 1000 / T."""

    @property
    def num_steps(self) -> int:
        return self.betas.shape[0]


def from_log_alpha_bars(log_alpha_bars: np.ndarray, times: np.ndarray) -> Schedule:
    """All tables from log alpha_bar [T], float64: the form that keeps both alpha_bar and 1 - alpha_bar exact.

    It must fall from below 0; the last may be -inf. `times` [T] is what a network is told at each step.
    """
    log_alphas = np.diff(log_alpha_bars, prepend=0.0)
    alphas, betas = np.exp(log_alphas), -np.expm1(log_alphas)
    alpha_bars, noise = np.exp(log_alpha_bars), -np.expm1(log_alpha_bars)
    log_snr = np.clip(log_alpha_bars - np.log(noise), -LOG_SNR_LIMIT, LOG_SNR_LIMIT)
    alpha_bars_prev, noise_prev = np.append(1.0, alpha_bars[:-1]), np.append(0.0, noise[:-1])
    posterior_variance = betas * noise_prev / noise
    # At t = 0 the posterior is a point; the published code takes the logarithm of the next step's variance there.
    clipped = np.append(posterior_variance[1:2] if betas.size > 1 else betas, posterior_variance[1:])
    tables = {
        "betas": betas,
        "alphas": alphas,
        "alpha_bars": alpha_bars,
        "alpha_bars_prev": alpha_bars_prev,
        "sqrt_alpha_bars": np.sqrt(alpha_bars),
        "sqrt_one_minus_alpha_bars": np.sqrt(noise),
        "log_snr": log_snr,
        "posterior_variance": posterior_variance,
        "posterior_log_variance_clipped": np.log(clipped),
        "posterior_mean_coef_x0": np.sqrt(alpha_bars_prev) * betas / noise,
        "posterior_mean_coef_xt": np.sqrt(alphas) * noise_prev / noise,
        "times": times,
    }
    return Schedule(**{name: jnp.asarray(table, jnp.float32) for name, table in tables.items()})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """Signal and noise at one time per image: x_t = alpha x_0 + sigma eps. Float32 [B] each."""

    alpha: jax.Array
    sigma: jax.Array
    log_snr: jax.Array
    coef_x0: jax.Array
    """Weight of x_0 in the posterior mean."""
    coef_xt: jax.Array
    """Weight of x_t in the posterior mean."""
    variance: jax.Array
    """Of the posterior q(x_{t-1} | x_t, x_0)."""


@jax.jit
@checked
def at(schedule: Schedule, t: Steps) -> NoiseLevel:
    """Read the schedule at t [B]: an index, or a float between two, where log-SNR is interpolated linearly.

    At a float t the posterior is that of the step from t - 1 to t; before t = 0 all is signal.
    """
    if jnp.issubdtype(t.dtype, jnp.integer):
        return NoiseLevel(
            alpha=schedule.sqrt_alpha_bars[t],
            sigma=schedule.sqrt_one_minus_alpha_bars[t],
            log_snr=schedule.log_snr[t],
            coef_x0=schedule.posterior_mean_coef_x0[t],
            coef_xt=schedule.posterior_mean_coef_xt[t],
            variance=schedule.posterior_variance[t],
        )
    grid = jnp.arange(schedule.num_steps, dtype=t.dtype)
    log_snr = jnp.interp(t, grid, schedule.log_snr)
    before = jnp.where(t < 1, LOG_SNR_LIMIT, jnp.interp(t - 1, grid, schedule.log_snr))
    alpha = jnp.where(log_snr <= -LOG_SNR_LIMIT, 0.0, jnp.sqrt(jax.nn.sigmoid(log_snr)))  # outside: no slope at 0
    noise = jax.nn.sigmoid(-log_snr)
    prev, noise_prev = jax.nn.sigmoid(before), jnp.where(t < 1, 0.0, jax.nn.sigmoid(-before))
    beta = -jnp.expm1(jax.nn.log_sigmoid(log_snr) - jax.nn.log_sigmoid(before))
    return NoiseLevel(
        alpha=alpha,
        sigma=jnp.sqrt(noise),
        log_snr=log_snr,
        coef_x0=jnp.sqrt(prev) * beta / noise,
        coef_xt=alpha / jnp.sqrt(prev) * noise_prev / noise,
        variance=beta * noise_prev / noise,
    )
