"""Published weightings, each as k(log_snr, **parameters), the factor on ||eps - eps_hat||^2.

A paper states its weighting as a factor on the error it trains on. At a fixed x_t the squared errors stand in fixed
proportions, so each is said here for eps (SNR = e^lambda, and s = 1 / (1 + e^(lambda / 2)) is the time of the straight
path from x_0 to eps at that SNR):

    ||x0 - x0_hat||^2 = e^-lambda ||eps - eps_hat||^2
    ||v - v_hat||^2 = (1 + e^-lambda) ||eps - eps_hat||^2
    ||flow - flow_hat||^2 = (1 + e^(-lambda / 2))^2 ||eps - eps_hat||^2,    1 + e^(-lambda / 2) = 1 / (1 - s)

Other papers state the weight of a noise level whatever the schedule: w(lambda), the weight per unit of log-SNR. Such a
function takes the schedule, too, and multiplies w by its `speed`: where log-SNR falls fast, few t are drawn for each
unit of it, and each must count for more. Without a schedule the speed is 1, and what comes back is w itself.

Every one has the shape of log_snr. With its own parameters it is finite and at least 0 for log_snr in [-40, 40], the
range of a schedule's table.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.schedules import LOG_SNR_LIMIT, Schedule

Weighting = Callable[..., jax.Array]
"""log_snr [...] -> the factor on ||eps - eps_hat||^2, of the same shape; parameters are keywords."""

Number = jax.Array | float


def _log_rest(part: jax.Array, rest: jax.Array) -> jax.Array:
    """log(1 - part) from both part and rest = 1 - part, each exact where it is small; finite where rest is 0."""
    return jnp.where(part < 0.5, jnp.log1p(-jnp.minimum(part, 0.5)), jnp.log(jnp.maximum(rest, 1e-37)))


def falls(schedule: Schedule) -> jax.Array:
    """By how much log-SNR falls from each step to the next, in nats, float32 [T - 1].

    A last step without signal has no log-SNR to fall to: the fall before it is taken once more.
    """
    # Not differences of log_snr, which cancel, but log(SNR_{t-1} / SNR_t) from tables that are exact where it is small.
    noise_grown = schedule.posterior_mean_coef_x0 * jnp.sqrt(schedule.alpha_bars_prev)
    noise_kept = schedule.posterior_variance / schedule.betas
    fall = -(_log_rest(schedule.betas, schedule.alphas) + _log_rest(noise_grown, noise_kept))[1:]
    if not fall.size:
        return fall
    again = fall[-2] if fall.size > 1 else jnp.ones(())
    return fall.at[-1].set(jnp.where(schedule.log_snr[-1] <= -LOG_SNR_LIMIT, again, fall[-1]))


def speeds(schedule: Schedule) -> jax.Array:
    """How fast log-SNR falls at each step: -d lambda / du in nats, u = t / T in [0, 1), float32 [T].

    The mean of the falls to a step and from it, or the only one at both ends. A single step has speed 1.
    """
    fall = falls(schedule)
    if not fall.size:
        return jnp.ones_like(schedule.log_snr)
    return schedule.num_steps * jnp.concatenate([fall[:1], (fall[:-1] + fall[1:]) / 2, fall[-1:]])


def read(schedule: Schedule, table: jax.Array, log_snr: jax.Array) -> jax.Array:
    """A table [T] of the schedule at log_snr [...]: exact at its steps, linear in log-SNR between."""
    return jnp.interp(log_snr, schedule.log_snr[::-1], table[::-1])


def speed(schedule: Schedule | None, log_snr: jax.Array) -> jax.Array:
    """`speeds` at log_snr [...], or 1 without a schedule."""
    return jnp.ones_like(log_snr) if schedule is None else read(schedule, speeds(schedule), log_snr)


def simple(log_snr: jax.Array) -> jax.Array:
    """1 everywhere: L_simple (Ho et al. 2020, Eq. 14)."""
    return jnp.ones_like(log_snr)


def vlb(log_snr: jax.Array, *, fraction: Number = 1.0, schedule: Schedule | None = None) -> jax.Array:
    """beta^2 / (2 s^2 alpha (1 - alpha_bar)): what L_t counts in the bound, in nats (Ho et al. 2020, Eq. 12).

    The variance s^2 of the step back lies between beta (`fraction` 1) and the posterior's beta_tilde (0), as in
    `reverse.medium`; beta_tilde is cut at t = 0, where it is 0. The sum over t is T times the mean. Without a schedule:
    1/2, the limit of many small steps for each unit of log-SNR.
    """
    if schedule is None:
        return jnp.full_like(log_snr, 0.5)
    log_variance = fraction * jnp.log(schedule.betas) + (1 - fraction) * schedule.posterior_log_variance_clipped
    # On the error of x_0 it is finite at SNR 0, too: the posterior mean moves by coef_x0 times that error.
    on_x0 = 0.5 * schedule.posterior_mean_coef_x0**2 * jnp.exp(-log_variance)
    return jnp.exp(-log_snr) * read(schedule, on_x0, log_snr)


def elbo(log_snr: jax.Array, *, schedule: Schedule | None = None) -> jax.Array:
    """w = 1: twice the bound in continuous time, -d lambda / dt on eps (Kingma et al. 2021; Kingma & Gao 2023)."""
    return speed(schedule, log_snr)


def likelihood(log_snr: jax.Array, *, schedule: Schedule | None = None) -> jax.Array:
    """g(t)^2 on the error of the score: likelihood weighting (Song et al. 2021, "Maximum likelihood training").

    That is g^2 / sigma^2 on the error of eps. Where variance is preserved g^2 = -d log alpha_bar / dt, so that
    g^2 / sigma^2 = -d lambda / dt: it is `elbo`.
    """
    return elbo(log_snr, schedule=schedule)


def snr(log_snr: jax.Array) -> jax.Array:
    """SNR on the error of x_0, which is the error of eps: 1 (Salimans & Ho 2022, Sec. 4)."""
    return jnp.ones_like(log_snr)


def x0_mse(log_snr: jax.Array) -> jax.Array:
    """The plain squared error of x_0: 1 / SNR."""
    return jnp.exp(-log_snr)


def v_mse(log_snr: jax.Array) -> jax.Array:
    """The plain squared error of v (Salimans & Ho 2022): 1 + 1 / SNR."""
    return 1 + jnp.exp(-log_snr)


def flow_mse(log_snr: jax.Array) -> jax.Array:
    """The plain squared error of eps - x_0, flow matching (Lipman et al. 2023): (1 + 1 / sqrt(SNR))^2."""
    return (1 + jnp.exp(-log_snr / 2)) ** 2


def truncated(log_snr: jax.Array) -> jax.Array:
    """max(SNR, 1) on x_0, the larger of the errors of x_0 and eps (Salimans & Ho 2022, Sec. 4, truncated SNR)."""
    return max_snr(log_snr, gamma=1.0)


def snr_plus_one(log_snr: jax.Array) -> jax.Array:
    """SNR + 1 on the error of x_0, which is the error of v (Salimans & Ho 2022, Sec. 4)."""
    return v_mse(log_snr)


def inverse_snr(log_snr: jax.Array) -> jax.Array:
    """1 / SNR on the error of x_0 (Hang et al. 2023, code: inv_snr)."""
    return jnp.exp(-2 * log_snr)


def min_snr(log_snr: jax.Array, *, gamma: Number = 5.0) -> jax.Array:
    """min(SNR, gamma) on the error of x_0 (Hang et al. 2023, Min-SNR-gamma)."""
    return jnp.exp(jnp.minimum(jnp.log(gamma) - log_snr, 0.0))


def max_snr(log_snr: jax.Array, *, gamma: Number = 1.0) -> jax.Array:
    """max(SNR, gamma) on the error of x_0 (Hang et al. 2023, Max-SNR-gamma)."""
    return jnp.exp(jnp.maximum(jnp.log(gamma) - log_snr, 0.0))


def soft_min_snr(log_snr: jax.Array, *, gamma: Number = 5.0) -> jax.Array:
    """gamma SNR / (SNR + gamma) on the error of x_0 (Crowson et al. 2024, soft-min-SNR)."""
    return jax.nn.sigmoid(jnp.log(gamma) - log_snr)


def p2(log_snr: jax.Array, *, k: Number = 1.0, gamma: Number = 1.0) -> jax.Array:
    """1 / (k + SNR)^gamma on the error of eps (Choi et al. 2022, P2)."""
    return jnp.exp(-gamma * jnp.logaddexp(jnp.log(k), log_snr))


def debiased(log_snr: jax.Array) -> jax.Array:
    """1 / sqrt(SNR) on the error of eps (Yu et al. 2023)."""
    return jnp.exp(-log_snr / 2)


def edm(log_snr: jax.Array, *, sigma_data: Number = 0.5) -> jax.Array:
    """(s^2 + sigma_data^2) / (s sigma_data)^2 on x_0, s = 1 / sqrt(SNR) (Karras et al. 2022, Table 1).

    EDM's draw of s is no part of it: that is --diffusion.draw-t log_normal, uncorrected, or the weighting `log_normal`.
    """
    return 1 + jnp.exp(-log_snr - 2 * jnp.log(sigma_data))


def sigma_sqrt(log_snr: jax.Array) -> jax.Array:
    """1 / s^2 on the error of flow (Diffusers' training scripts for Esser et al. 2024).

    On the error of x_0, where the same scripts put it if they precondition, 1 / s^2 is `flow_mse`.
    """
    return flow_mse(log_snr) * (1 + jnp.exp(log_snr / 2)) ** 2


def sigmoid(log_snr: jax.Array, *, bias: Number = 2.0, schedule: Schedule | None = None) -> jax.Array:
    """w = sigmoid(bias - lambda) (Kingma & Gao 2023, with bias 2; Hoogeboom et al. 2024, SiD2)."""
    return jax.nn.sigmoid(bias - log_snr) * speed(schedule, log_snr)


def _log_density(log_snr: jax.Array, mean: Number, std: Number) -> jax.Array:
    """The logarithm of the density of lambda where -lambda / 2 ~ N(mean, std^2)."""
    return -0.5 * ((log_snr / 2 + mean) / std) ** 2 - jnp.log(2 * math.sqrt(2 * math.pi) * jnp.asarray(std))


def _log_edm(log_snr: jax.Array, mean: Number, std: Number, sigma_data: Number) -> jax.Array:
    return _log_density(log_snr, mean, std) + jax.nn.softplus(-log_snr - 2 * jnp.log(sigma_data))


def log_normal(
    log_snr: jax.Array,
    *,
    mean: Number = -1.2,
    std: Number = 1.2,
    sigma_data: Number = 0.5,
    schedule: Schedule | None = None,
) -> jax.Array:
    """EDM's whole objective: ln s ~ N(mean, std^2), s = 1 / sqrt(SNR), times `edm` (Karras et al. 2022, Table 1).

    w = N(lambda; -2 mean, (2 std)^2) (1 + e^-lambda / sigma_data^2) (Kingma & Gao 2023, Table 1, up to a constant).
    """
    return jnp.exp(_log_edm(log_snr, mean, std, sigma_data)) * speed(schedule, log_snr)


def monotone_edm(
    log_snr: jax.Array,
    *,
    mean: Number = -1.2,
    std: Number = 1.2,
    sigma_data: Number = 0.5,
    schedule: Schedule | None = None,
) -> jax.Array:
    """`log_normal` kept at its maximum for all that is noisier than where it has it (Kingma & Gao 2023, EDM-monotonic).

    That w(lambda) is a sum of two normal densities of one width. If they lie far enough apart for two maxima, it is the
    largest value at lambda or anywhere above.
    """

    def towards_maximum(_: int, place: jax.Array) -> jax.Array:
        return -2 * mean - 4 * std**2 * jax.nn.sigmoid(-2 * jnp.log(sigma_data) - place)

    # d log w / d lambda = 0, solved for the lambda outside the sigmoid. The map rises, so that from below all solutions
    # it climbs to the lowest, and from above it descends to the highest.
    ends = jnp.asarray([-2 * mean - 4 * std**2, -2 * mean], jnp.result_type(float))
    lowest, highest = jax.lax.fori_loop(0, 100, towards_maximum, ends)
    log_w = jnp.maximum(
        _log_edm(jnp.maximum(log_snr, lowest), mean, std, sigma_data),
        _log_edm(jnp.maximum(log_snr, highest), mean, std, sigma_data),
    )
    return jnp.exp(log_w) * speed(schedule, log_snr)


def logit_normal(
    log_snr: jax.Array, *, mean: Number = 0.0, std: Number = 1.0, schedule: Schedule | None = None
) -> jax.Array:
    """The error of flow with logit(s) ~ N(mean, std^2) (Esser et al. 2024, rf/lognorm(mean, std))."""
    return jnp.exp(_log_density(log_snr, mean, std) + 2 * jax.nn.softplus(-log_snr / 2)) * speed(schedule, log_snr)


def cosmap(log_snr: jax.Array, *, schedule: Schedule | None = None) -> jax.Array:
    """The error of flow with s drawn in proportion to 2 / (pi (1 - 2 s + 2 s^2)) (Esser et al. 2024, CosMap).

    The density of lambda is then that of the cosine schedule, sech(lambda / 2) / (2 pi).
    """
    log_w = 2 * jax.nn.softplus(-log_snr / 2) - jnp.logaddexp(log_snr / 2, -log_snr / 2) - math.log(math.pi)
    return jnp.exp(log_w) * speed(schedule, log_snr)


WEIGHTINGS: dict[str, Weighting] = {
    "simple": simple,
    "vlb": vlb,
    "elbo": elbo,
    "likelihood": likelihood,
    "snr": snr,
    "x0_mse": x0_mse,
    "v_mse": v_mse,
    "flow_mse": flow_mse,
    "truncated": truncated,
    "snr_plus_one": snr_plus_one,
    "inverse_snr": inverse_snr,
    "min_snr": min_snr,
    "max_snr": max_snr,
    "soft_min_snr": soft_min_snr,
    "p2": p2,
    "debiased": debiased,
    "edm": edm,
    "sigma_sqrt": sigma_sqrt,
    "sigmoid": sigmoid,
    "log_normal": log_normal,
    "monotone_edm": monotone_edm,
    "logit_normal": logit_normal,
    "cosmap": cosmap,
}
