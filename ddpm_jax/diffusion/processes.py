"""Forward processes, x_t = alpha(t) x_0 + sigma(t) eps, as functions of a continuous t: what a sampler walks along.

    vp        alpha^2 + sigma^2 = 1, beta rising linearly                              (Song et al. 2021, Eq. 32, 33)
    sub_vp    the same alpha, sigma = 1 - alpha^2                                      (ibid., Eq. 29)
    ve        alpha = 1, sigma rising geometrically                                    (ibid., Eq. 30, 31)
    edm       alpha = 1, sigma = t                                                     (Karras et al. 2022, Table 1)
    flow      the straight line, alpha = 1 - t, sigma = t             (Lipman et al. 2023; Liu et al. 2023)

and `of_schedule`, a table's indices with log-SNR straight between them. A level is known by its log-SNR,
log(alpha^2 / sigma^2); two processes at the same log-SNR differ by a factor of x only, so that a network trained on one
serves all (`sampling.sample`'s `along`).

Functions take the array module (numpy on the host in float64, jax.numpy where they are traced) and t.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax.diffusion.schedules import Schedule, log_alpha_bars
from ddpm_jax.diffusion.tables import LOG_SNR_LIMIT
from ddpm_jax.records import pick

Curve = Callable[[Any, Any], Any]
"""(array module, values) -> values of the same shape."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """Signal and noise over t, which rises with the noise.

    Builders give the same object for equal settings, so that it may be static, but for `of_schedule` and `within`.
    """

    name: str
    log_alpha: Curve
    """log alpha of t."""
    log_sigma: Curve
    """log sigma of t."""
    t_of: Curve
    """t of log-SNR, the inverse of `log_snr`."""
    time: Curve
    """What a network of this process is told at t."""
    start: float
    """t of the noisiest level."""
    end: float
    """t of the least noisy level that a network is asked about."""
    clean: float
    """t of the image itself, where alpha = 1 and sigma = 0 are taken whatever the functions say."""
    steps: int | None = None
    """How many indices t has, 0 .. steps - 1; None where t is continuous."""

    def log_snr(self, xp: Any, t: Any) -> Any:
        """log(alpha^2 / sigma^2) at t, within +-LOG_SNR_LIMIT."""
        with np.errstate(divide="ignore"):  # no signal, no noise: a logarithm of 0
            return xp.clip(2 * (self.log_alpha(xp, t) - self.log_sigma(xp, t)), -LOG_SNR_LIMIT, LOG_SNR_LIMIT)


def _thousand(xp: Any, t: Any) -> Any:
    del xp
    return 1000.0 * t


def _range(name: str, low: float, high: float, floor: float = 0.0) -> None:
    if not floor < low < high < np.inf:
        raise ValueError(f"{name}_min and {name}_max must rise above {floor}, got {low} and {high}")


def _checked_end(end: float) -> None:
    if not 0 < end < 1:
        raise ValueError(f"end must lie in (0, 1), got {end}")


def _log_alpha_vp(beta_min: float, beta_max: float) -> Curve:
    return lambda xp, t: -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min


def _t_of_log_alpha(xp: Any, log_alpha: Any, beta_min: float, beta_max: float) -> Any:
    """Solve the quadratic of `_log_alpha_vp` for t, in the form that doesn't cancel."""
    rising = beta_max - beta_min
    return -4 * log_alpha / (beta_min + xp.sqrt(beta_min**2 - 4 * rising * log_alpha))


def vp(beta_min: float = 0.1, beta_max: float = 20.0, end: float = 1e-3) -> Process:
    """Variance preserving (Song et al. 2021, Eq. 33): the limit of the linear schedule for many steps.

    Raises:
        ValueError: unless 0 < beta_min < beta_max and 0 < end < 1.
    """
    _range("beta", beta_min, beta_max)
    _checked_end(end)
    return _vp(float(beta_min), float(beta_max), float(end))


@functools.lru_cache
def _vp(beta_min: float, beta_max: float, end: float) -> Process:
    log_alpha = _log_alpha_vp(beta_min, beta_max)

    def t_of(xp: Any, log_snr: Any) -> Any:
        return _t_of_log_alpha(xp, -0.5 * xp.logaddexp(0.0, -log_snr), beta_min, beta_max)

    return Process(
        name="vp",
        log_alpha=log_alpha,
        log_sigma=lambda xp, t: 0.5 * xp.log(-xp.expm1(2 * log_alpha(xp, t))),
        t_of=t_of,
        time=_thousand,
        start=1.0,
        end=end,
        clean=0.0,
    )


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0, end: float = 1e-3) -> Process:
    """Below the variance of `vp` everywhere (Song et al. 2021, Eq. 29): sigma = 1 - alpha^2.

    Raises:
        ValueError: unless 0 < beta_min < beta_max and 0 < end < 1.
    """
    _range("beta", beta_min, beta_max)
    _checked_end(end)
    return _sub_vp(float(beta_min), float(beta_max), float(end))


@functools.lru_cache
def _sub_vp(beta_min: float, beta_max: float, end: float) -> Process:
    log_alpha = _log_alpha_vp(beta_min, beta_max)

    def t_of(xp: Any, log_snr: Any) -> Any:
        # (1 - alpha^2) / alpha = 2 sinh(-log alpha) is sigma / alpha.
        return _t_of_log_alpha(xp, -xp.arcsinh(0.5 * xp.exp(-0.5 * log_snr)), beta_min, beta_max)

    return Process(
        name="sub_vp",
        log_alpha=log_alpha,
        log_sigma=lambda xp, t: xp.log(-xp.expm1(2 * log_alpha(xp, t))),
        t_of=t_of,
        time=_thousand,
        start=1.0,
        end=end,
        clean=0.0,
    )


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0, end: float = 1e-5) -> Process:
    """Variance exploding (Song et al. 2021, Eq. 31): sigma = sigma_min (sigma_max / sigma_min)^t.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max and 0 < end < 1.
    """
    _range("sigma", sigma_min, sigma_max)
    _checked_end(end)
    return _ve(float(sigma_min), float(sigma_max), float(end))


@functools.lru_cache
def _ve(sigma_min: float, sigma_max: float, end: float) -> Process:
    low, span = np.log(sigma_min), np.log(sigma_max / sigma_min)
    return Process(
        name="ve",
        log_alpha=lambda xp, t: 0.0 * t,
        log_sigma=lambda xp, t: low + span * t,
        t_of=lambda xp, log_snr: (-0.5 * log_snr - low) / span,
        time=_thousand,
        start=1.0,
        end=end,
        clean=0.0,
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Process:
    """sigma = t (Karras et al. 2022, Table 1). Its networks are told c_noise = log(sigma) / 4.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.
    """
    _range("sigma", sigma_min, sigma_max)
    return _edm(float(sigma_min), float(sigma_max))


@functools.lru_cache
def _edm(sigma_min: float, sigma_max: float) -> Process:
    return Process(
        name="edm",
        log_alpha=lambda xp, t: 0.0 * t,
        log_sigma=lambda xp, t: xp.log(t),
        t_of=lambda xp, log_snr: xp.exp(-0.5 * log_snr),
        time=lambda xp, t: 0.25 * xp.log(t),
        start=sigma_max,
        end=sigma_min,
        clean=0.0,
    )


def flow(start: float = 1.0, end: float = 1e-3) -> Process:
    """The straight line between image and noise (Lipman et al. 2023, Eq. 22 with sigma_min 0; Liu et al. 2023).

    At start = 1 there is no signal: what works with x_t / alpha (Heun, LMS, ...) needs a start below.

    Raises:
        ValueError: unless 0 < end < start <= 1.
    """
    if not 0 < end < start <= 1:
        raise ValueError(f"end and start must rise within (0, 1], got {end} and {start}")
    return _flow(float(start), float(end))


@functools.lru_cache
def _flow(start: float, end: float) -> Process:

    return Process(
        name="flow",
        log_alpha=lambda xp, t: xp.log1p(-t),
        log_sigma=lambda xp, t: xp.log(t),
        t_of=lambda xp, log_snr: 1 / (1 + xp.exp(0.5 * log_snr)),
        time=_thousand,
        start=start,
        end=end,
        clean=0.0,
    )


def of_schedule(schedule: Schedule) -> Process:
    """A table's process: t is its index, log-SNR straight between indices, the image at t = -1.

    The schedule's numbers must be known (not traced).
    """
    logs = log_alpha_bars(schedule)
    with np.errstate(divide="ignore"):
        log_snr = np.clip(logs - np.log(-np.expm1(logs)), -LOG_SNR_LIMIT, LOG_SNR_LIMIT)
    places, times = np.arange(schedule.num_steps, dtype=np.float64), np.asarray(schedule.times, np.float64)

    def at(xp: Any, t: Any) -> Any:
        return xp.interp(t, places, log_snr)

    def log_alpha(xp: Any, t: Any) -> Any:
        here = at(xp, t)
        return xp.where(here <= -LOG_SNR_LIMIT, -np.inf, -0.5 * xp.logaddexp(0.0, -here))

    return Process(
        name="schedule",
        log_alpha=log_alpha,
        log_sigma=lambda xp, t: -0.5 * xp.logaddexp(0.0, at(xp, t)),
        t_of=lambda xp, wanted: xp.interp(-wanted, -log_snr, places),
        time=lambda xp, t: xp.interp(t, places, times),
        start=float(schedule.num_steps - 1),
        end=0.0,
        clean=-1.0,
        steps=schedule.num_steps,
    )


def within(process: Process, own: Process) -> Process:
    """The part of a process whose noise levels a network of `own` knows: beyond it would have to guess."""
    noisiest, least = own.log_snr(np, own.start), own.log_snr(np, own.end)
    start, end = float(process.t_of(np, noisiest)), float(process.t_of(np, least))
    return dataclasses.replace(process, start=min(process.start, start), end=max(process.end, end))


PROCESSES: dict[str, Callable[..., Process]] = {"vp": vp, "sub_vp": sub_vp, "ve": ve, "edm": edm, "flow": flow}


def build(name: str, argument: str = "process") -> Process:
    """The process of that name, with its published settings.

    Raises:
        ValueError: for any other name, with the nearest.
    """
    return pick(PROCESSES, name, argument)()
