"""Which noise levels a sampler visits: places on a process, falling from noise to the image.

A spacing is a function of the process and the number of steps, `counts`, which only `even` takes several of. It returns
the places [S + 1]; the last is the image. On a schedule the first six give whole indices, the others places between
them, where log-SNR is interpolated.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import betaincinv

from ddpm_jax.diffusion.processes import Process
from ddpm_jax.records import match_arguments, pick


def sectioned(num_steps: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Cut 0 .. num_steps-1 into len(counts) equal sections and spread counts[i] steps evenly over section i, rising.

    A section's first and last index are both visited (Nichol & Dhariwal 2021, Sec. 4).

    Raises:
        ValueError: if a section is shorter than its count, or a count is below 1.
    """
    if not counts or min(counts) < 1:
        raise ValueError(f"counts must be whole numbers of at least 1, got {tuple(counts)}")
    short, longer = divmod(num_steps, len(counts))
    steps, start = [], 0
    for section, count in enumerate(counts):
        size = short + (section < longer)
        if size < count:
            raise ValueError(f"can't take {count} steps out of {size}: section {section} of {num_steps} steps")
        stride = (size - 1) / (count - 1) if count > 1 else 0.0
        steps += [start + round(i * stride) for i in range(count)]
        start += size
    return tuple(steps)


def even(process: Process, counts: Sequence[int]) -> np.ndarray:
    """From the noisiest level to the least noisy, both visited; on a schedule in as many sections as counts.

    With one count on a schedule this is what others call linspace; a single step starts at the noisiest level.
    """
    if process.steps is not None and tuple(counts) != (1,):
        return _to_image(process, sectioned(process.steps, counts)[::-1])
    return _to_image(process, np.linspace(process.start, process.end, _one(process, counts, "even")))


def ddim(process: Process, counts: Sequence[int]) -> np.ndarray:
    """Every k-th step of a schedule from 0, k = T / count rounded up (Song et al. 2020).

    Raises:
        ValueError: if no whole stride gives that many steps, or for a process without steps.
    """
    count, steps = _one(process, counts, "ddim"), _indices(process, "ddim")
    for stride in range(1, steps + 1):
        if len(range(0, steps, stride)) == count:
            return _to_image(process, range(0, steps, stride)[::-1])
    raise ValueError(f"no whole stride through {steps} steps gives {count} of them; use even")


def leading(process: Process, counts: Sequence[int]) -> np.ndarray:
    """Evenly up from 0: T - T / count is the first that is visited, and never the noisiest level (Lin et al. 2023,
    Table 2, where T / count is whole)."""
    count, steps = _one(process, counts, "leading"), _indices(process, "leading")
    return _to_image(process, [round(i * steps / count) for i in reversed(range(count))])


def trailing(process: Process, counts: Sequence[int]) -> np.ndarray:
    """Evenly back from the noisiest level, which is always visited (Lin et al. 2023, Table 2)."""
    count = _one(process, counts, "trailing")
    if process.steps is None:
        if (process.start - process.clean) / count < process.end - process.clean:
            raise ValueError(f"trailing can't take {count} steps of {process.name}: the last would lie below its end")
        return np.linspace(process.start, process.clean, count + 1)
    return _to_image(process, [round(process.steps - i * process.steps / count) - 1 for i in range(count)])


def quadratic(process: Process, counts: Sequence[int]) -> np.ndarray:
    """Square roots of t evenly spaced, dense where there is little noise (Song et al. 2020, Sec. D.2), both ends in."""
    count = _one(process, counts, "quadratic")
    if process.steps is None:
        return _to_image(process, np.linspace(process.start**0.5, process.end**0.5, count) ** 2)
    steps = np.round(np.linspace(0, (process.steps - 1) ** 0.5, count) ** 2).astype(int)
    if count == 1:
        steps[:] = process.steps - 1
    # The first few fall together: each is pushed above the one before it. The last then still stands at its place.
    steps = np.maximum.accumulate(steps - np.arange(count)) + np.arange(count)
    return _to_image(process, np.minimum(steps, process.steps - count + np.arange(count))[::-1])


def log_snr(process: Process, counts: Sequence[int]) -> np.ndarray:
    """Log-SNR evenly spaced, both ends visited (Lu et al. 2022, Sec. 3.4)."""
    count = _one(process, counts, "log_snr")
    high, low = process.log_snr(np, process.end), process.log_snr(np, process.start)
    return _of_log_snr(process, np.linspace(low, high, count), "log_snr")


def karras(process: Process, counts: Sequence[int], *, rho: float = 7.0) -> np.ndarray:
    """sigma / alpha ^ (1 / rho) evenly spaced between the process's ends (Karras et al. 2022, Eq. 5).

    Raises:
        ValueError: unless rho is positive.
    """
    count = _one(process, counts, "karras")
    high = np.exp(-0.5 * process.log_snr(np, process.start))
    low = np.exp(-0.5 * process.log_snr(np, process.end))
    return _of_sigmas(process, _rho(low, high, rho, count), "karras")


def edm(
    process: Process, counts: Sequence[int], *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> np.ndarray:
    """The same between sigma_max and sigma_min, or the process's own ends where those lie within (ibid., Table 1).

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max and rho is positive.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min and sigma_max must rise above 0, got {sigma_min} and {sigma_max}")
    count = _one(process, counts, "edm")
    high = min(sigma_max, float(np.exp(-0.5 * process.log_snr(np, process.start))))
    low = max(sigma_min, float(np.exp(-0.5 * process.log_snr(np, process.end))))
    if not low < high:
        raise ValueError(f"sigma_min and sigma_max must reach into the process's, got {sigma_min} and {sigma_max}")
    return _of_sigmas(process, _rho(low, high, rho, count), "edm")


def beta(process: Process, counts: Sequence[int], *, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """t at the quantiles of a beta distribution: dense at both ends for a, b below 1 (Lee et al. 2024).

    Raises:
        ValueError: unless a and b are positive.
    """
    if not (a > 0 and b > 0):
        raise ValueError(f"a and b must be positive, got {a} and {b}")
    count = _one(process, counts, "beta")
    part = betaincinv(a, b, np.linspace(1, 0, count))  # the beta distribution's quantiles
    return _to_image(process, _falling(process, process.end + (process.start - process.end) * part, "beta"))


def _rho(low: float, high: float, rho: float, count: int) -> np.ndarray:
    if not rho > 0:
        raise ValueError(f"rho must be positive, got {rho}")
    with np.errstate(all="ignore"):
        return np.linspace(high ** (1 / rho), low ** (1 / rho), count) ** rho


def _of_sigmas(process: Process, sigmas: np.ndarray, name: str) -> np.ndarray:
    return _of_log_snr(process, -2 * np.log(sigmas), name)


def _of_log_snr(process: Process, wanted: np.ndarray, name: str) -> np.ndarray:
    t = process.t_of(np, wanted)
    t[0] = process.start if np.isclose(t[0], process.start) else t[0]  # not past the end by a rounding
    return _to_image(process, _falling(process, np.maximum(t, process.end), name))


def _falling(process: Process, t: np.ndarray, name: str) -> np.ndarray:
    if not (np.diff(t) < 0).all():  # NaN too
        raise ValueError(f"{name} can't tell {t.size} levels of the process {process.name} apart; take fewer steps")
    return t


def _to_image(process: Process, places: Any) -> np.ndarray:
    return np.append(np.asarray(list(places), np.float64), process.clean)


def _one(process: Process, counts: Sequence[int], name: str) -> int:
    most = process.steps or 1_000_000
    if len(counts) != 1 or not 1 <= counts[0] <= most:
        raise ValueError(f"{name} takes one count between 1 and {most}, got {tuple(counts)}")
    return int(counts[0])


def _indices(process: Process, name: str) -> int:
    if process.steps is None:
        raise ValueError(f"{name} counts the steps of a schedule; the process {process.name} has none: take trailing")
    return process.steps


Spacing = Callable[..., np.ndarray]
SPACINGS: dict[str, Spacing] = {
    "even": even,
    "linspace": even,
    "ddim": ddim,
    "leading": leading,
    "trailing": trailing,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "karras": karras,
    "edm": edm,
    "beta": beta,
}


def build(
    process: Process,
    name: str,
    counts: Sequence[int],
    arguments: Sequence[tuple[str, float]] = (),
    *,
    under: str = "--",
) -> np.ndarray:
    """The places that the spacing of that name visits with `counts` steps.

    Raises:
        ValueError: for an unknown name or argument, with the nearest good one; `under` is what flags begin with.
    """
    spacing = pick(SPACINGS, name, f"{under}spacing")
    but = list(inspect.signature(spacing).parameters)[:2]
    settings = match_arguments(spacing, arguments, f"{under}spacing-args: {name}", but=but)
    try:
        return spacing(process, counts, **settings)
    except ValueError as error:
        raise ValueError(f"{under}spacing {name}: {error}") from None
