"""Noise schedules: how much noise each step adds. Builders, and what makes one schedule of another.

Every one returns a `Schedule`, a record of tables [T] (see `tables`). A new one is a function of num_steps that hands
its betas to `from_betas`, or its log-SNR to `from_log_snr`, and a line in SCHEDULES.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit, log_expit

from ddpm_jax.config import Diffusion
from ddpm_jax.diffusion.tables import LOG_SNR_LIMIT, NoiseLevel, Schedule, at, from_log_alpha_bars
from ddpm_jax.records import match_arguments, pick

__all__ = [
    "LOG_SNR_LIMIT",
    "SCHEDULES",
    "NoiseLevel",
    "Schedule",
    "at",
    "build",
    "constant",
    "cosine",
    "from_betas",
    "from_log_snr",
    "jsd",
    "laplace",
    "linear",
    "log_alpha_bars",
    "log_snr_linear",
    "quadratic",
    "respace",
    "shift",
    "sigmoid",
    "warmup",
    "warmup10",
    "warmup50",
    "zero_terminal_snr",
]


def from_betas(betas: Sequence[float] | np.ndarray) -> Schedule:
    """Derive every constant from the betas [T], the only free choice (Ho et al. 2020, Eq. 2, 4, 7).

    Raises:
        ValueError: if betas isn't one row of numbers in (0, 1], or a beta of 1 stands before the last.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must have shape [T] with T >= 1, got shape {betas.shape}")
    if not ((betas > 0) & (betas <= 1)).all():
        raise ValueError(f"betas must lie in (0, 1], got {betas.min():.3g} to {betas.max():.3g}")
    if (betas[:-1] == 1).any():
        raise ValueError(f"only the last beta may be 1, got 1 at t = {int(np.argmax(betas == 1))} of {betas.size}")
    with np.errstate(divide="ignore"):
        return from_log_alpha_bars(np.cumsum(np.log1p(-betas)), np.arange(betas.size) * 1000 / betas.size)


def _steps(num_steps: int) -> int:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"num_steps must be a whole number of at least 1, got {num_steps!r}")
    return int(num_steps)


def linear(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Betas evenly spaced (Ho et al. 2020, Sec. 4).

    beta_start and beta_end are those of 1000 steps; another number of steps scales them by 1000 / num_steps, so that
    x_T stays as noisy (Nichol & Dhariwal 2021). Below 20 steps that would pass 1: betas stop at 0.999.
    """
    scale = 1000 / _steps(num_steps)
    return from_betas(np.minimum(np.linspace(scale * beta_start, scale * beta_end, num_steps), 0.999))


def quadratic(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Square roots of the betas evenly spaced; also called scaled_linear (Song et al. 2020; Rombach et al. 2022)."""
    if min(beta_start, beta_end) <= 0:  # the square would hide the sign
        raise ValueError(f"beta_start and beta_end must be positive, got {beta_start} and {beta_end}")
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, _steps(num_steps)) ** 2)


def constant(num_steps: int = 1000, beta_end: float = 0.02) -> Schedule:
    """The same beta at every step (Ho et al. 2020, code)."""
    return from_betas(np.full(_steps(num_steps), beta_end, np.float64))


def jsd(num_steps: int = 1000) -> Schedule:
    """beta_t = 1 / (T - t): alpha_bar falls evenly to 0 (Sohl-Dickstein et al. 2015). The last SNR is 0."""
    return from_betas(1.0 / np.arange(_steps(num_steps), 0, -1))


def warmup(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, fraction: float = 0.1) -> Schedule:
    """Betas rise evenly over the first `fraction` of the steps, then stay (Ho et al. 2020, code: warmup10, warmup50).

    Raises:
        ValueError: if fraction is outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    rising = int(_steps(num_steps) * fraction)
    betas = np.full(num_steps, beta_end, np.float64)
    betas[:rising] = np.linspace(beta_start, beta_end, rising)
    return from_betas(betas)


def warmup10(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """`warmup` over the first tenth."""
    return warmup(num_steps, beta_start, beta_end, 0.1)


def warmup50(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """`warmup` over the first half."""
    return warmup(num_steps, beta_start, beta_end, 0.5)


def _from_curve(alpha_bar: Callable[[np.ndarray], np.ndarray], num_steps: int, max_beta: float) -> Schedule:
    """Betas from a curve alpha_bar(u), u = 0 .. 1, none above max_beta."""
    curve = alpha_bar(np.linspace(0, 1, _steps(num_steps) + 1))
    return from_betas(np.minimum(1 - curve[1:] / curve[:-1], max_beta))


def cosine(num_steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alpha_bar(u) = cos^2((u + s) / (1 + s) pi / 2) (Nichol & Dhariwal 2021, Eq. 17)."""
    return _from_curve(lambda u: np.cos((u + s) / (1 + s) * np.pi / 2) ** 2, num_steps, max_beta)


def sigmoid(
    num_steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> Schedule:
    """alpha_bar(u) is a logistic curve falling from `start` to `end`, scaled to 1 .. 0 (Jabri et al. 2022, Alg. 1)."""
    low, high = expit(start / tau), expit(end / tau)
    return _from_curve(lambda u: (high - expit((u * (end - start) + start) / tau)) / (high - low), num_steps, max_beta)


def laplace(num_steps: int = 1000, mean: float = 0.0, scale: float = 0.5) -> Schedule:
    """Log-SNR spread like a Laplace distribution (Hang & Gu 2024, "Improved noise schedule"). The last SNR is 0."""
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")

    def log_snr(u: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return mean - scale * np.sign(0.5 - u) * np.log1p(-2 * np.abs(u - 0.5))

    return from_log_snr(log_snr, num_steps)


def from_log_snr(fn: Callable[[np.ndarray], np.ndarray], num_steps: int) -> Schedule:
    """Take log-SNR from a falling function of u in (0, 1]; step t reads it at u = (t + 1) / num_steps.

    `fn` gets float64 [T] and returns [T] in nats. Above LOG_SNR_LIMIT it is cut; the last may be -inf (no signal left).

    Raises:
        ValueError: if fn returns NaN, the wrong shape, or values that don't fall.
    """
    u = np.arange(1, _steps(num_steps) + 1) / num_steps
    log_snr = np.asarray(fn(u), np.float64)
    if log_snr.shape != u.shape:
        raise ValueError(f"fn must return {u.size} numbers for {u.size} values of u, got shape {log_snr.shape}")
    if np.isnan(log_snr).any():
        raise ValueError(f"log-SNR must fall, got NaN at t = {int(np.argmax(np.isnan(log_snr)))}")
    log_snr = np.minimum(log_snr, LOG_SNR_LIMIT)
    if not (log_snr[1:] < log_snr[:-1]).all():
        t = int(np.argmin(log_snr[1:] < log_snr[:-1]))
        raise ValueError(f"log-SNR must fall, got {log_snr[t]:.6g} at t = {t} and {log_snr[t + 1]:.6g} at t = {t + 1}")
    return from_log_alpha_bars(log_expit(log_snr), u * 1000 - 1000 / num_steps)


def log_snr_linear(num_steps: int = 1000, start: float = 13.3, end: float = -5.0) -> Schedule:
    """Log-SNR evenly spaced from `start` to `end`, both included (Kingma et al. 2021, where it is -gamma).

    Raises:
        ValueError: unless start > end.
    """
    if not start > end:
        raise ValueError(f"start must lie above end, got {start} and {end}")
    size = _steps(num_steps)
    return from_log_snr(lambda u: start + (end - start) * (u * size - 1) / max(size - 1, 1), size)


def log_alpha_bars(schedule: Schedule) -> np.ndarray:
    """log alpha_bar [T] in float64, from the float32 table that keeps each alpha best."""
    betas, alphas = np.asarray(schedule.betas, np.float64), np.asarray(schedule.alphas, np.float64)
    with np.errstate(divide="ignore"):
        return np.cumsum(np.where(betas < 0.5, np.log1p(-np.minimum(betas, 0.5)), np.log(alphas)))


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shift and stretch sqrt(alpha_bar) so that the last is 0 and the first stays (Lin et al. 2023, Alg. 1).

    Train with v, flow or x0 on the result: at the last step eps says nothing about x_0.
    """
    root = np.exp(log_alpha_bars(schedule) / 2)
    if root.size < 2:
        raise ValueError("a schedule of one step has no last SNR beside its first to move")
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    with np.errstate(divide="ignore"):
        return from_log_alpha_bars(2 * np.log(root), np.asarray(schedule.times))


def shift(schedule: Schedule, factor: float) -> Schedule:
    """Add 2 log(factor) to log-SNR at every step (Hoogeboom et al. 2023, "simple diffusion", Eq. 4).

    factor = 64 / d turns a schedule tuned for 64 x 64 images into one for d x d; below 1 means more noise.

    Raises:
        ValueError: if factor isn't positive.
    """
    if not (factor > 0 and np.isfinite(factor)):
        raise ValueError(f"factor must be a positive number, got {factor}")
    logs = log_alpha_bars(schedule)
    with np.errstate(divide="ignore"):
        log_snr = logs - np.log(-np.expm1(logs)) + 2 * np.log(factor)
    return from_log_alpha_bars(log_expit(log_snr), np.asarray(schedule.times))


def respace(schedule: Schedule, timesteps: Sequence[int] | np.ndarray) -> Schedule:
    """The schedule that visits only `timesteps`, rising indices into `schedule` (Nichol & Dhariwal 2021, Sec. 4).

    alpha_bar at the visited steps stays as it was, and so does what a network is told there (`times`).

    Raises:
        ValueError: if timesteps is empty, doesn't rise, or leaves 0 .. T-1.
    """
    steps = np.asarray(timesteps)
    if steps.ndim != 1 or steps.size == 0 or not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(f"timesteps must be whole numbers [S], got {steps.dtype} of shape {steps.shape}")
    if (np.diff(steps) <= 0).any() or steps[0] < 0 or steps[-1] >= schedule.num_steps:
        raise ValueError(
            f"timesteps must rise within 0 .. {schedule.num_steps - 1}, got {steps[:5].tolist()} .. {steps[-1]}"
        )
    return from_log_alpha_bars(log_alpha_bars(schedule)[steps], np.asarray(schedule.times)[steps])


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "quadratic": quadratic,
    "scaled_linear": quadratic,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "constant": constant,
    "jsd": jsd,
    "warmup": warmup,
    "warmup10": warmup10,
    "warmup50": warmup50,
    "laplace": laplace,
    "log_snr_linear": log_snr_linear,
}


def build(settings: Diffusion) -> Schedule:
    """The schedule that a config describes.

    Raises:
        ValueError: for an unknown schedule, or arguments that it doesn't take, with the nearest good name.
    """
    builder = pick(SCHEDULES, settings.schedule, "--diffusion.schedule")
    where = f"--diffusion.schedule-args: {settings.schedule}"
    arguments = match_arguments(builder, settings.schedule_args, where, but=["num_steps"])
    schedule = builder(settings.num_steps, **arguments)
    if settings.log_snr_shift != 1:
        schedule = shift(schedule, settings.log_snr_shift)
    if settings.zero_terminal_snr:
        schedule = zero_terminal_snr(schedule)
    if settings.time_range != 1000:
        schedule = dataclasses.replace(schedule, times=schedule.times * (settings.time_range / 1000))
    return schedule
