"""Training a population from start, or from where it stopped, to the end; and its gradients by noise level.

All members take a step before any takes the next, so that a comparison can be watched as it goes, and one checkpoint
holds all of them. Where memory is short and chunks of members take turns on the devices, they do so between log lines.
"""

import collections
import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ddpm_jax import config as config_lib
from ddpm_jax import files, records
from ddpm_jax.config import Config
from ddpm_jax.data.record import Source
from ddpm_jax.training import checkpoint, checks, population, processes, report
from ddpm_jax.training.population import Kind, Layout

FREE = ("steps", "run.", "devices.", "data.threads", "data.workers", "data.ahead", "data.on_device", "sampling.")
"""What may change between a comparison and its continuation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """A member: what it is called in the log, and the run that it is."""

    name: str
    config: Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A population at its end, or where it was asked to stop."""

    kinds: list[Kind]
    step: int
    stopped: bool
    """Was it asked to, even if it had come to the end?"""


Recent = dict[int, list[dict[str, Any]]]
"""Metrics since the last line of the log, by chunk."""


def train(
    members: Sequence[Named], source: Source, workdir: files.Place, *, layout: Layout, edges: np.ndarray
) -> Trained:
    """Train all members to their config's steps, going on from the newest checkpoint if the folder holds one.

    Writes members.json, checkpoints/, metrics.jsonl and TensorBoard events into `workdir`. A member whose loss isn't
    finite keeps its parameters and goes on, as with --run.on-nonfinite skip: it must not end the others. On SIGTERM the
    population is saved and returned as it is. Previews aren't drawn.

    Args:
        members: of equal steps, batch size and run settings; see `population` for what may differ.
        edges: of the bins of log-SNR by which the error of eps is logged, [n + 1].

    Raises:
        ValueError: for a config that can't be, or members or bins other than those that the folder holds.
    """
    configs = [member.config for member in members]
    steps, settings = configs[0].steps, configs[0].run
    _check(configs, source)
    kinds = population.build(configs, layout, edges=edges)
    _claim(members, workdir, edges)
    with (
        processes.stop_requests() as asked_to_stop,
        checkpoint.open_folder(workdir / "checkpoints", keep_last=settings.keep_last) as manager,
    ):
        start = manager.latest_step() or 0
        if start:
            found = checkpoint.restore_many(manager, {_name(i): population.abstract(k) for i, k in enumerate(kinds)})
            for i, kind in enumerate(kinds):
                population.set_states(kind, found[_name(i)])
        population.start(kinds, configs, source, step=start, resident=layout.resident)
        recent, waiting, done, stops = {}, collections.deque(), start, False
        bar = tqdm(total=steps, initial=min(start, steps), unit="step", smoothing=0.05)
        with report.open_log(workdir, start) as (write, push_log), bar, contextlib.ExitStack() as at_end:
            at_end.callback(population.stop, kinds)
            while done < steps and not stops:
                # Chunks that take turns do so between these; others after every step.
                pauses = [_next(done, every) for every in (settings.log_every, settings.checkpoint_every)]
                before, done = done, min(done + 1 if layout.resident else min(pauses), steps)
                ends, logs = done == steps, done % settings.log_every == 0
                took = _round(kinds, done - before, recent, waiting, layout, timed=ends or logs)
                bar.update(done - before)
                stops = asked_to_stop(done)
                if ends or logs:
                    write(done, _values(members, kinds, recent, took, edges))
                    bar.set_postfix_str(f"{len(members)} members, {len(members) / sum(took):.1f} steps/s in all")
                    recent = {}
                if ends or stops or done % settings.checkpoint_every == 0:
                    push_log()
                    states = {_name(i): population.states_of(kind) for i, kind in enumerate(kinds)}
                    checkpoint.save_many(manager, done, states)
    return Trained(kinds=kinds, step=done, stopped=stops)


def _next(done: int, every: int) -> int:
    return done - done % every + every


def _round(
    kinds: Sequence[Kind], count: int, recent: Recent, waiting: collections.deque, layout: Layout, *, timed: bool
) -> list[float]:
    """`count` steps of every chunk; the seconds that each kind took for one, if it is timed."""
    took = []
    if timed:
        jax.block_until_ready([chunk.states for kind in kinds for chunk in kind.chunks])
    for kind in kinds:
        begin = time.perf_counter()
        for chunk in kind.chunks:
            if not layout.resident:
                population.to_devices(chunk)
            for _ in range(count):
                metrics = population.advance(kind, chunk)
                recent.setdefault(id(chunk), []).append(metrics)
                waiting.append(metrics)
                if len(waiting) > 2:  # so far the host is ahead, and no further
                    jax.block_until_ready(waiting.popleft())
            if not layout.resident:
                population.to_host(chunk)
        if timed:
            jax.block_until_ready([chunk.states for chunk in kind.chunks])
        took.append((time.perf_counter() - begin) / count)
    return took


def _values(
    members: Sequence[Named], kinds: Sequence[Kind], recent: Recent, took: Sequence[float], edges: np.ndarray
) -> report.Values:
    """A line of the log: what `report.summary` says of each member, after its name, and the steps that its kind takes
    in a second, those of all members counted.
    """
    values: report.Values = {}
    for kind, seconds in zip(kinds, took, strict=True):
        for chunk in kind.chunks:
            steps = jax.device_get(recent[id(chunk)])
            stacked = {name: np.stack([metrics[name] for metrics in steps]) for name in steps[0]}
            for place, row in enumerate(chunk.rows):
                said = report.summary([{name: array[:, place] for name, array in stacked.items()}], edges)
                said["steps_per_second"] = len(kind.members) / seconds
                values |= {key_of(members[kind.members[row]].name, key): value for key, value in said.items()}
    return values


def _check(configs: Sequence[Config], source: Source) -> None:
    if jax.process_count() > 1:
        raise ValueError(f"a comparison runs in one process with all its devices, got {jax.process_count()} processes")
    for config in configs:
        checks.numbers(config)
        checks.labels(config, source)
        if config.devices.fsdp != 1:
            raise ValueError(f"--devices.fsdp must be 1: members lie on one device each, got {config.devices.fsdp}")
        parts = config.devices.accumulate
        if parts < 1 or config.batch_size % parts:
            raise ValueError(f"--devices.accumulate must divide --batch-size {config.batch_size}, got {parts}")


def name_of(variant: str, seed: int) -> str:
    """What a member is called."""
    return f"{variant}, seed {seed}"


def key_of(member: str, figure: str) -> str:
    """What a member's figure is called in the log."""
    return f"{member}/{figure}"


def _name(kind: int) -> str:
    return f"kind_{kind}"


def _claim(members: Sequence[Named], workdir: files.Place, edges: np.ndarray) -> None:
    """Write members.json, or see that the one that is there has the same members."""
    path = workdir / "members.json"
    if files.is_file(path):
        held = json.loads(path.read_text())
        before, now = [each["name"] for each in held["members"]], [member.name for member in members]
        if before != now:
            raise ValueError(
                f"{workdir} holds a comparison of {', '.join(before)}; it can't go on with {', '.join(now)}: give "
                "another --workdir"
            )
        wrong = {}
        for each, member in zip(held["members"], members, strict=True):
            changed = records.differences(records.from_dict(each["config"], Config, path.name), member.config)
            wrong |= {key: values for key, values in changed.items() if not key.startswith(FREE)}
        told = [f"{key}: {old!r} -> {new!r}" for key, (old, new) in wrong.items()]
        if len(held["edges"]) != len(edges):
            told.append(f"--bins: {len(held['edges']) - 1} -> {len(edges) - 1}")
        if told:
            raise ValueError(f"{workdir} can't go on so; give another --workdir, or undo {'; '.join(told)}")
    else:
        checks.new_folder(workdir, path.name)
    plain = [{"name": member.name, "config": records.to_dict(member.config)} for member in members]
    files.write(path, (json.dumps({"edges": np.asarray(edges).tolist(), "members": plain}, indent=1) + "\n").encode())


def state_of(kind: Kind, states: Any, member: int) -> Any:
    """One member's state, from those of its kind as `population.states_of` gives them."""
    row = kind.members.index(member)
    return jax.tree.map(lambda x: x[row], states)


def export(trained: Trained, members: Sequence[Named], workdir: files.Place) -> None:
    """Write each member as a run's folder, `workdir`/members/NAME, for sample.py and its kin."""
    for kind in trained.kinds:
        states = population.states_of(kind)
        for number in kind.members:
            member = members[number]
            folder = workdir / "members" / re.sub(r"[^\w.=-]+", "_", member.name).strip("_")
            config_lib.write(member.config, folder / "config.json")
            with checkpoint.open_folder(folder / "checkpoints") as manager:
                checkpoint.save(manager, state_of(kind, states, number))
