"""Orbax checkpoints of a run: written in the background, whole or absent, the newest and some old ones kept."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from ddpm_jax import files
from ddpm_jax.training import processes
from ddpm_jax.training.state import State

# Orbax says of each checkpoint without a score that it has none.
logging.getLogger("absl").addFilter(lambda record: "tracked_metric" not in record.getMessage())

Manager = ocp.CheckpointManager
TRASH = "deleted"
"""Folder to which old checkpoints are moved, so that none is ever half there; emptied soon after. Not in a bucket."""


@contextlib.contextmanager
def open_folder(
    folder: files.Place,
    *,
    keep_last: int | None = 3,
    keep_every: int = 0,
    keep_best: int = 0,
    read_only: bool = False,
) -> Iterator[Manager]:
    """The checkpoints of a run; waits for a save in progress on the way out.

    Args:
        folder: made if it isn't there. What a killed save left behind is cleared away.
        keep_last: how many of the newest stay; all if None.
        keep_every: those whose step is a multiple of it stay too; 0 for none.
        keep_best: of those saved with a score so many stay too, of the lowest ones.
        read_only: leave everything as it is, a save in progress of another process too.
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_kept(keep_last, keep_every, keep_best),
        best_fn=_score,
        best_mode="min",
        create=not read_only,
        cleanup_tmp_directories=not read_only,
        todelete_subdir=None if read_only else TRASH,
    )
    manager = ocp.CheckpointManager(files.absolute(folder), options=options)
    try:
        if not read_only:
            _empty_trash(manager)
        yield manager
    finally:
        manager.close()
        if not read_only:
            _empty_trash(manager)


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


def _kept(last: int | None, every: int, best: int) -> policies.PreservationPolicy:
    """What stays of the checkpoints of a run."""
    if last is None:
        return policies.PreserveAll()
    kept: list[policies.PreservationPolicy] = [policies.LatestN(n=last)]
    if every:
        kept.append(policies.EveryNSteps(interval_steps=every))
    if best:
        lowest = {"reverse": True, "keep_checkpoints_without_metrics": False}
        kept.append(policies.BestN(get_metric_fn=_score, n=best, **lowest))
    return policies.AnyPreservationPolicy(kept)


def newest(folder: files.Place) -> int:
    """The step of the newest checkpoint in a run's folder, 0 if there is none; nothing is touched."""
    if not files.is_dir(folder):
        return 0
    with open_folder(folder, read_only=True) as manager:
        return manager.latest_step() or 0


def save(manager: Manager, state: State, score: float | None = None) -> None:
    """Start to write the state under its step; training goes on meanwhile. A step that is there already stays.

    `score` says how good it is, for `keep_best` and "best": lower is better.
    """
    save_tree(manager, int(state.step), _filled(state), score)


def save_many(manager: Manager, step: int, states: Mapping[str, State]) -> None:
    """`save`, of several states by name, or of stacks of states."""
    save_tree(manager, step, {name: _filled(state) for name, state in states.items()})


def save_tree(manager: Manager, step: int, tree: dict[str, Any], score: float | None = None) -> None:
    """`save`, of arrays by name."""
    if step not in manager.all_steps():
        manager.wait_until_finished()
        _empty_trash(manager)
        manager.save(step, args=ocp.args.StandardSave(tree), metrics=None if score is None else {"score": score})


def _empty_trash(manager: Manager) -> None:
    if processes.writes():
        shutil.rmtree(os.fspath(manager.directory / TRASH), ignore_errors=True)


def restore(manager: Manager, like: State, *, step: int | Literal["best"] | None = None) -> State:
    """Read a checkpoint, the newest unless `step` says which, onto the devices that `like`'s leaves name.

    "best" is that of the lowest score.

    `like` is the state's shapes, dtypes and shardings (`Parts.abstract`).

    Raises:
        FileNotFoundError: if there is none, or not that one, with those that are.
        ValueError: if the checkpoint's arrays aren't those of `like`.
    """
    return State(**restore_tree(manager, _filled(like), step))


def restore_many(manager: Manager, like: Mapping[str, State], *, step: int | None = None) -> dict[str, State]:
    """`restore`, of what `save_many` wrote, into the memory of this machine where leaves name no devices."""
    found = restore_tree(manager, {name: _filled(state) for name, state in like.items()}, step)
    return {name: State(**fields) for name, fields in found.items()}


def restore_tree(manager: Manager, like: dict[str, Any], step: int | Literal["best"] | None) -> dict[str, Any]:
    """`restore`, of what `save_tree` wrote."""
    steps = sorted(manager.all_steps())
    if step == "best" and (step := manager.best_step()) is None:
        raise FileNotFoundError(
            f"{manager.directory} has no evaluated checkpoint: train with --run.evaluate-every, or name one of {steps}"
        )
    step = manager.latest_step() if step is None else step
    if step not in steps:
        raise FileNotFoundError(f"{manager.directory} has no checkpoint {'' if step is None else step}: found {steps}")
    try:
        return dict(manager.restore(step, args=ocp.args.StandardRestore(like)))
    except ValueError as error:
        said = str(error).strip().splitlines() or ["no reason given"]
        raise ValueError(
            f"checkpoint {step} of {manager.directory} isn't of this config's arrays, or was written by an older "
            f"version: {said[0][:200]}"
        ) from error


def _filled(state: State) -> dict[str, Any]:
    """The state's fields that hold arrays: a checkpoint can't keep an empty one."""
    return {name: value for name, value in vars(state).items() if jax.tree.leaves(value)}
