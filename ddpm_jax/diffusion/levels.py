"""The noise levels that a sampler visits, worked out in float64 before it starts.

A step's coefficients are differences of nearly equal numbers, such as the log-SNR of two neighbours in a table of a
thousand. They are taken here, once, on the host; the loop only reads them. Sampling along a process that isn't the
network's own is settled here, too: each level holds what the network's own process says at the same log-SNR.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.between import Trained, trained
from ddpm_jax.diffusion.processes import Process, of_schedule
from ddpm_jax.diffusion.schedules import Schedule, log_alpha_bars
from ddpm_jax.diffusion.tables import LOG_SNR_LIMIT, NoiseLevel

Between = Callable[[np.ndarray], np.ndarray]
"""From the log-SNR of the visited levels [S + 1] to that of a level to look at in each step [S]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One level, scalars; or several, [N] each. x = alpha x_0 + sigma eps."""

    t: jax.Array
    """Place on the process that is walked."""
    alpha: jax.Array
    sigma: jax.Array
    log_snr: jax.Array
    """log(alpha^2 / sigma^2); LOG_SNR_LIMIT at the image itself, where sigma is 0."""
    gain: jax.Array
    """Log-SNR gained on the way to the next visited level; of a stage, on the way to it. Below 0 on a way up."""
    dt: jax.Array
    """Change of t on the same way, below 0 towards the image."""
    drift: jax.Array
    """f of the forward SDE dx = f x dt + g dw: d log alpha / dt."""
    diffusion: jax.Array
    """g^2 of the same: -sigma^2 d log-SNR / dt."""
    time: jax.Array
    """What the network is told."""
    scale: jax.Array
    """The network's own x over this process's x; 1 where it is walked along its own."""
    own: NoiseLevel
    """The level as the network's own process has it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """The way of a sampler."""

    visited: Level
    """[P]: num_steps + 1 levels in order, the last repeated to the end."""
    stages: tuple[Level, ...]
    """Levels on the way of each step, for samplers that look there; [P - 1] each."""
    num_steps: jax.Array | None
    """Steps to take, int32; None for P - 1, known when the loop is compiled."""
    start_std: jax.Array
    """Deviation of x at the first level where it is pure noise."""
    trained: Trained | None = None
    """For what is asked of the network elsewhere than at these levels."""

    def read(self, i: Any) -> Level:
        """The i-th visited level."""
        return jax.tree.map(lambda table: table[i], self.visited)

    def ends(self) -> np.ndarray:
        """The numbers of the levels where the way begins and ends, with the image and without it: int [2 .. 4]."""
        noisy = np.flatnonzero(np.asarray(self.visited.sigma) > 0)
        return np.unique([0, noisy[0], noisy[-1], len(self.visited.sigma) - 1])

    def stage(self, k: int, i: Any) -> Level:
        """The k-th stage of the step that leaves the i-th level."""
        return jax.tree.map(lambda table: table[i], self.stages[k])


def visit(
    schedule: Schedule | Process,
    times: Sequence[float] | np.ndarray | None = None,
    *,
    along: Process | None = None,
    stages: Sequence[float | Between] = (),
    stages_in: str = "log_snr",
    size: int | None = None,
    anywhere: bool = False,
) -> Levels:
    """The levels at `times`, in that order: from noise to image they fall.

    Args:
        schedule: what the network was trained on.
        times: places [S + 1] on the process that is walked, S >= 1; from one to the next is a step. The image itself is
            at -1 for a schedule, 0 for a `Process`. All indices of a schedule and the image, if not given.
        along: the process to walk; the network's own if not given.
        stages: parts of each step, 0 to 1, of its log-SNR or (stages_in="t") of its t; or functions `Between`, whose
            levels may lie outside the step, but are cut off where the process is noisiest.
        size: the length P of the tables, longer than S: then the number of steps is an array, and one compiled loop
            serves all numbers of steps below P. Without it the loop knows its length, and can be differentiated.
        anywhere: also note what the network is told between the levels. A process is then part of what is compiled.

    Raises:
        ValueError: for fewer than two times, two equal neighbours, NaN, or times that leave the process.
    """
    own = of_schedule(schedule) if isinstance(schedule, Schedule) else schedule
    walked = own if along is None else along
    t = _checked(walked, times)
    steps = t.size - 1
    if size is not None and size <= steps:
        raise ValueError(f"size must be above the number of steps, {steps}, got {size}")
    clean = t <= walked.clean
    log_snr = _log_snr(walked, t, clean)
    table = schedule if isinstance(schedule, Schedule) else None
    visited = _level(walked, own, table, t, clean, log_snr)
    way: dict[str, Any] = {"gain": np.append(np.diff(log_snr), 0.0), "dt": np.append(np.diff(t), 0.0)}
    between = [_stage(walked, own, table, t, log_snr, part, stages_in) for part in stages]
    pad = 0 if size is None else size - t.size

    def put(table: Any) -> jax.Array:
        return jnp.asarray(np.pad(table, (0, pad), mode="edge"), float)

    preserving = abs(visited["alpha"][0] ** 2 + visited["sigma"][0] ** 2 - 1) < 1e-6
    return Levels(
        visited=jax.tree.map(put, Level(**visited, **way)),
        stages=tuple(jax.tree.map(put, Level(**stage)) for stage in between),
        num_steps=None if size is None else jnp.int32(steps),
        start_std=jnp.asarray(1.0 if preserving else visited["sigma"][0], float),
        trained=trained(schedule) if anywhere else None,
    )


def every_place(trained: Schedule | Process) -> np.ndarray:
    """All indices of a schedule, or a process that has them, falling, and the image: float64 [T + 1].

    Raises:
        ValueError: for a continuous process.
    """
    if isinstance(trained, Process) and trained.steps is None:
        raise ValueError(f"times must be given for the process {trained.name}: it has no steps of its own")
    steps: Any = trained.num_steps if isinstance(trained, Schedule) else trained.steps
    return np.arange(steps - 1, -2, -1, dtype=np.float64)


def _checked(walked: Process, times: Sequence[float] | np.ndarray | None) -> np.ndarray:
    if times is None:
        return every_place(walked)
    t = np.asarray(times, np.float64)
    if t.ndim != 1 or t.size < 2:
        raise ValueError(f"times must be at least two places [S + 1], got shape {t.shape}")
    if not ((t >= walked.clean) & (t <= walked.start)).all():
        raise ValueError(
            f"times must lie within {walked.clean:g} (the image) and {walked.start:g} of the process {walked.name}, "
            f"got {np.min(t):g} to {np.max(t):g}"
        )
    if (np.diff(t) == 0).any():
        raise ValueError(f"times must differ from one to the next, got {t[int(np.argmin(np.abs(np.diff(t))))]:g} twice")
    return t


def _log_snr(walked: Process, t: np.ndarray, clean: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(clean, LOG_SNR_LIMIT, walked.log_snr(np, np.where(clean, walked.end, t)))


def _level(
    walked: Process, own: Process, schedule: Schedule | None, t: np.ndarray, clean: np.ndarray, log_snr: np.ndarray
) -> dict[str, Any]:
    """The fields of a Level but for gain and dt, float64 [N]."""
    asked = np.where(clean, walked.end, t)  # of an image the network is told that it is the least noisy level
    alpha, sigma = _alpha_sigma(walked, asked, clean)
    own_t = asked if walked is own else np.where(clean, own.end, np.clip(own.t_of(np, log_snr), own.end, own.start))
    own_alpha, own_sigma = (alpha, sigma) if walked is own else _own_alpha_sigma(own, own_t, log_snr, clean)
    level: dict[str, Any] = {"alpha": own_alpha, "sigma": own_sigma, "log_snr": log_snr}
    drift, diffusion = _sde(walked, schedule if walked is own else None, asked, sigma)
    return {
        "t": t,
        "alpha": alpha,
        "sigma": sigma,
        "log_snr": log_snr,
        "drift": drift,
        "diffusion": diffusion,
        "time": own.time(np, own_t),
        "scale": np.hypot(own_alpha, own_sigma) / np.hypot(alpha, sigma),
        "own": NoiseLevel(**level, **_posterior(own, schedule, own_t)),
    }


def _alpha_sigma(process: Process, t: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore"):
        alpha, sigma = np.exp(process.log_alpha(np, t)), np.exp(process.log_sigma(np, t))
    return np.where(clean, 1.0, alpha), np.where(clean, 0.0, sigma)


def _own_alpha_sigma(own: Process, t: np.ndarray, log_snr: np.ndarray, clean: np.ndarray) -> tuple[Any, Any]:
    """The network's own alpha and sigma, at exactly this log-SNR even where it lies beyond the process's ends."""
    alpha, sigma = _alpha_sigma(own, t, clean)
    size = np.hypot(alpha, sigma)
    return (
        np.where(clean, 1.0, size * np.sqrt(1 / (1 + np.exp(-log_snr)))),
        np.where(clean, 0.0, size * np.sqrt(1 / (1 + np.exp(log_snr)))),
    )


def _sde(walked: Process, schedule: Schedule | None, t: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drift and squared diffusion at t: a schedule's are those of the step to t, beta(t) = -log(1 - beta)."""
    if schedule is not None:
        logs = log_alpha_bars(schedule)
        with np.errstate(invalid="ignore"):
            beta = -np.diff(logs, prepend=0.0)
        beta = np.interp(t, np.arange(beta.size), np.where(np.isfinite(beta), beta, 2 * LOG_SNR_LIMIT))
        return -0.5 * beta, beta
    step = 1e-5 * np.maximum(np.abs(t), 1e-3)
    low, high = np.maximum(t - step, 1e-12), np.minimum(t + step, walked.start)
    with np.errstate(divide="ignore", invalid="ignore"):
        drift = (walked.log_alpha(np, high) - walked.log_alpha(np, low)) / (high - low)
        slope = (walked.log_snr(np, high) - walked.log_snr(np, low)) / (high - low)
    return drift, -(sigma**2) * slope


def _posterior(own: Process, schedule: Schedule | None, t: np.ndarray) -> dict[str, Any]:
    """The posterior of the step that leads to t in training, which "mean" is about; NaN without a schedule."""
    if schedule is None:
        nothing = np.full(t.shape, np.nan)
        return {"coef_x0": nothing, "coef_xt": nothing, "variance": nothing}
    here = own.log_snr(np, t)
    before = np.where(t < 1, LOG_SNR_LIMIT, own.log_snr(np, np.maximum(t - 1, 0.0)))
    none = t < 1
    alpha, sigma = _alpha_sigma(own, t, np.zeros(t.shape, bool))
    alpha_before, sigma_before = _alpha_sigma(own, np.maximum(t - 1, 0.0), none)
    new = -np.expm1(here - before)
    return {
        "coef_x0": np.where(none, 1.0, alpha_before * new),
        "coef_xt": np.where(none, 0.0, alpha * sigma_before**2 / (alpha_before * sigma**2)),
        "variance": np.where(none, 0.0, sigma_before**2 * new),
    }


def _stage(
    walked: Process,
    own: Process,
    schedule: Schedule | None,
    t: np.ndarray,
    log_snr: np.ndarray,
    part: float | Between,
    stages_in: str,
) -> dict[str, Any]:
    """The level a part of the way into each step, or where a function has it."""
    if stages_in not in ("log_snr", "t"):
        raise ValueError(f"stages_in must be log_snr or t, got {stages_in!r}")
    if not callable(part) and not 0 <= part <= 1:
        raise ValueError(f"stages must lie in [0, 1], got {part}")
    if stages_in == "t" and not callable(part):
        place = t[:-1] + part * np.diff(t)
        clean = place <= walked.clean
        wanted = _log_snr(walked, place, clean)
    else:
        wanted = part(log_snr) if callable(part) else log_snr[:-1] + part * np.diff(log_snr)
        wanted = np.maximum(wanted, _log_snr(walked, np.array(walked.start), np.array(False)))
        clean = wanted >= LOG_SNR_LIMIT
        with np.errstate(over="ignore"):
            place = np.where(clean, walked.clean, walked.t_of(np, wanted))
        place = np.maximum(place, walked.clean)
    fields = _level(walked, own, schedule, place, clean, wanted)
    return fields | {"gain": wanted - log_snr[:-1], "dt": place - t[:-1]}
