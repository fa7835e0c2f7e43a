"""Snapshots of a run's power averages, WORKDIR/ema, and averages of any length made of them afterwards.

A snapshot is both averages at one step (`power_ema`), in float32 and nothing else: a fraction of a checkpoint.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax import files
from ddpm_jax.config import Config
from ddpm_jax.training import checkpoint, power_ema
from ddpm_jax.training.state import State

FOLDER = "ema"
FLAG = "--run.ema-snapshot-every"
NEGLIGIBLE = 1e-9
"""A snapshot that counts for less is below float32, and isn't read."""


def check(config: Config) -> None:
    """Averages and snapshots of them go together; and everything happens between dispatches.

    Raises:
        ValueError: naming the flag.
    """
    every, several, kept = config.run.ema_snapshot_every, config.run.steps_per_dispatch, config.optimizer.ema_sigma_rels
    if every < 0:
        raise ValueError(f"{FLAG} must be 0 or more, got {every}")
    if bool(every) != bool(kept):
        given = ", ".join(map(str, kept)) or "none"
        raise ValueError(f"{FLAG} and --optimizer.ema-sigma-rels go together, got {every} and {given}")
    if every % several:
        raise ValueError(f"{FLAG} must be a multiple of --run.steps-per-dispatch {several}, got {every}")


def interval(config: Config) -> tuple[int, ...]:
    """The steps between snapshots, if any are taken."""
    return (config.run.ema_snapshot_every,) if config.run.ema_snapshot_every else ()


@contextlib.contextmanager
def open_folder(
    workdir: files.Place, config: Config, start: int
) -> Iterator[tuple[Callable[[State], None], Callable[[], None]]]:
    """`take(state)`, which does nothing between snapshots, and `finish()`, which waits for those that were taken.

    A run that calls `finish` before it saves a checkpoint has every snapshot that lies before the checkpoint it goes on
    from. Those after `start` are of steps that will be taken again, perhaps otherwise, and are removed.
    """
    every = config.run.ema_snapshot_every
    if not every:
        yield (lambda state: None), (lambda: None)
        return
    with checkpoint.open_folder(workdir / FOLDER, keep_last=None) as manager:
        for step in [step for step in manager.all_steps() if step > start]:
            manager.delete(step)

        def take(state: State) -> None:
            if (step := int(state.step)) % every == 0:
                checkpoint.save_tree(manager, step, state.power_ema)

        yield take, manager.wait_until_finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """An average that training didn't keep."""

    params: Any
    """float32, where `State.ema` lies."""
    misfit: float
    """What its profile misses of the wanted one, in relative norm; see `power_ema.Fit`."""
    num_snapshots: int
    """That it was made of, besides the averages in the state itself."""


def reconstruct(
    workdir: files.Place, state: State, sigma_rels: Sequence[float], *, of: Sequence[float] | None = None
) -> list[Reconstruction]:
    """The power averages of these lengths as they were at the state's step; each snapshot is read once for all.

    They are made of the averages in `state` (from `run.load`) and the snapshots of earlier steps.

    Args:
        of: the lengths of the averages to make them of; all that the run kept if not given.

    Raises:
        ValueError: for a length out of reach, or a run that kept no power averages, or not those of `of`.
        FileNotFoundError: if there are no snapshots before the state's step.
    """
    kept, now, folder = state.power_ema or {}, int(state.step), workdir / FOLDER
    wanted = [power_ema.gamma_of(length) for length in sigma_rels]
    if not kept:
        raise ValueError(f"{workdir} kept no power averages: train with --optimizer.ema-sigma-rels 0.05 0.1 {FLAG} N")
    names = list(kept) if of is None else [str(length) for length in of]
    if missing := [name for name in names if name not in kept]:
        raise ValueError(f"of must be among the run's averages {', '.join(kept)}, got {', '.join(missing)}")
    with contextlib.ExitStack() as opened:
        steps, manager = [], None
        if files.is_dir(folder):
            manager = opened.enter_context(checkpoint.open_folder(folder, read_only=True))
            steps = [step for step in sorted(manager.all_steps()) if step < now]
        if manager is None or not steps:
            raise FileNotFoundError(f"{folder} has no snapshots before step {now}: train.py writes them with {FLAG}")
        times, gammas = [*steps, now], [power_ema.gamma_of(float(name)) for name in names]
        of_each = [step for step in times for _ in names], gammas * len(times)
        fits = [power_ema.fit(*of_each, now, gamma) for gamma in wanted]
        weights = np.stack([found.weights.reshape(len(times), len(names)) for found in fits])  # [lengths, times, names]
        counts = np.abs(weights[:, :-1]).max(axis=2) > NEGLIGIBLE
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.power_ema)

        def parts() -> Iterator[tuple[np.ndarray, Any]]:
            for i, step in enumerate(times):
                if step == now or counts[:, i].any():
                    averages = kept if step == now else checkpoint.restore_tree(manager, like, step)
                    yield from zip(weights[:, i].T, (averages[name] for name in names), strict=True)

        mixed = power_ema.mixtures(parts())

    def placed(mixture: Any) -> Any:
        return jax.tree.map(lambda x, old: jax.device_put(x.astype(old.dtype), old.sharding), mixture, state.ema)

    return [
        Reconstruction(params=placed(mixture), misfit=found.misfit, num_snapshots=int(count.sum()))
        for mixture, found, count in zip(mixed, fits, counts, strict=True)
    ]
