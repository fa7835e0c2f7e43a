"""Where a sampler walks: the levels of its times."""

from collections.abc import Sequence

import numpy as np

from ddpm_jax.diffusion.levels import Levels, visit
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.sampling.sampler import Sampler


def way(
    schedule: Schedule | Process,
    times: Sequence[float] | np.ndarray | None,
    *,
    along: Process | None = None,
    sampler: Sampler,
    prediction: str = "eps",
    padded: bool = True,
) -> Levels:
    """The levels of `times` for a sampler, padded so that all numbers of steps have one shape.

    Raises:
        ValueError: as `levels.visit`; for "mean" without a schedule; for a sampler that needs a signal where there is
            none, or one that only goes down on a way up.
    """
    if prediction == "mean" and not isinstance(schedule, Schedule):
        raise ValueError("the prediction mean needs a schedule: it is of a step, which a process doesn't have")
    options = {"along": along, "stages": sampler.stages, "stages_in": sampler.stages_in, "anywhere": sampler.whole}
    if sampler.whole:
        visited = visit(schedule, times, along=along)
        times = np.asarray(visited.visited.t if times is None else times)[visited.ends()]
    most = schedule.num_steps if isinstance(schedule, Schedule) else 1000
    steps = most if times is None else max(np.size(times) - 1, 1)
    levels = visit(schedule, times, **options, size=max(most, 2 ** (steps - 1).bit_length()) + 1 if padded else None)
    if sampler.needs_signal and float(levels.visited.alpha[0]) == 0:
        raise ValueError(
            "this sampler divides by alpha, which is 0 at the first level: begin at a level with some signal, or take "
            "one that can (ddim, lms, dpm_solver_pp_2m, unipc; heun and rk4 with straight 1)"
        )
    if sampler.only_down and (np.asarray(levels.visited.gain) < 0).any():
        raise ValueError("this sampler adds noise of its own and only goes down: times must fall; ddim goes up")
    return levels
