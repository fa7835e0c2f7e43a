"""Training a population from start, or from where it stopped, to the end; and its gradients by noise level.

All members take a step before any takes the next, so that a comparison can be watched as it goes, and one checkpoint
holds all of them. Where memory is short and chunks of members take turns on the devices, they do so between log lines.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ddpm_jax import config as config_lib
from ddpm_jax import files, records
from ddpm_jax.config import Config
from ddpm_jax.data import pipeline
from ddpm_jax.data.record import Source
from ddpm_jax.training import checkpoint, gradients, population, processes, report, run
from ddpm_jax.training.gradients import GradientStats, Sums
from ddpm_jax.training.population import Chunk, Kind, Layout

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
    steps_per_second: np.ndarray
    """Steps that the program takes in a second of each member's kind, one member's at a time [M]; NaN if unknown."""


def train(
    members: Sequence[Named], source: Source, workdir: files.Place, *, layout: Layout, edges: np.ndarray
) -> Trained:
    """Train all members to their config's steps, going on from the newest checkpoint if the folder holds one.

    Writes members.json, checkpoints/, metrics.jsonl and TensorBoard events into `workdir`. A member whose loss isn't
    finite keeps its parameters and goes on, as with --run.on-nonfinite skip: it must not end the others. On SIGTERM the
    population is saved and returned as it is.

    Args:
        members: of equal steps, batch size and run settings; see `population` for what may differ.
        edges: of the bins of log-SNR by which the error of eps is logged, [n + 1].

    Raises:
        ValueError: for a config that can't be, or members other than those that the folder holds.
    """
    if jax.process_count() > 1:
        raise ValueError(f"a comparison runs in one process with all its devices, got {jax.process_count()} processes")
    configs = [member.config for member in members]
    settings = configs[0].run
    kinds = population.build(configs, layout, edges=edges)
    _claim(members, workdir)
    speeds = np.full((len(members), 0), np.nan)
    with (
        processes.stop_requests() as asked_to_stop,
        checkpoint.open_folder(workdir / "checkpoints", keep_last=settings.keep_last) as manager,
    ):
        start = manager.latest_step() or 0
        if start:
            like = {_name(i): population.abstract(kind) for i, kind in enumerate(kinds)}
            for i, states in enumerate(checkpoint.restore_many(manager, like).values()):
                population.set_states(kinds[i], states)
        population.start(kinds, configs, source, step=start, resident=layout.resident)
        turn = 1 if layout.resident else settings.log_every
        recent: dict[int, list[dict[str, Any]]] = {}
        done = start
        bar = tqdm(total=configs[0].steps, initial=min(start, configs[0].steps), unit="step", smoothing=0.05)
        with report.open_log(workdir, start) as (write, push_log), bar:
            while done < configs[0].steps:
                before, done = done, min(done - done % turn + turn, configs[0].steps)
                ends, logs = done == configs[0].steps, done % settings.log_every == 0
                took = _round(kinds, done - before, recent, layout, timed=ends or logs)
                bar.update(done - before)
                stops = asked_to_stop(done)
                if ends or logs:
                    speeds = np.concatenate([speeds, _speeds(kinds, took, done - before)[:, None]], axis=1)
                    write(done, _values(members, kinds, recent, edges))
                    bar.set_postfix_str(f"{len(members)} members, {len(members) / sum(took):.1f} steps/s in all")
                    recent = {}
                if ends or stops or done % settings.checkpoint_every == 0:
                    push_log()
                    states = {_name(i): population.states_of(kind) for i, kind in enumerate(kinds)}
                    checkpoint.save_many(manager, done, states)
                if stops:
                    break
    return Trained(kinds=kinds, step=done, steps_per_second=np.nanmedian(speeds, axis=1) if speeds.size else speeds)


def _round(kinds: Sequence[Kind], count: int, recent: dict, layout: Layout, *, timed: bool) -> list[float]:
    """`count` steps of every chunk; the seconds that each kind took for one, if it is timed."""
    took, waiting = [], []
    for kind in kinds:
        begin = time.perf_counter()
        for chunk in kind.chunks:
            if not layout.resident:
                population.to_devices(chunk)
            for _ in range(count):
                metrics = population.advance(kind, chunk)
                recent.setdefault(id(chunk), []).append(metrics)
                waiting.append(metrics)
                if len(waiting) > 2:  # the host is two steps ahead, and no more
                    jax.block_until_ready(waiting.pop(0))
            if not layout.resident:
                population.to_host(chunk)
        if timed:
            jax.block_until_ready([chunk.states for chunk in kind.chunks])
        took.append((time.perf_counter() - begin) / max(count, 1))
    return took


def _speeds(kinds: Sequence[Kind], took: Sequence[float], count: int) -> np.ndarray:
    """Steps in a second, one member's at a time, [M]."""
    found = np.full(sum(len(kind.members) for kind in kinds), np.nan)
    for kind, seconds in zip(kinds, took, strict=True):
        found[list(kind.members)] = len(kind.members) / seconds if count else np.nan
    return found


def _values(members: Sequence[Named], kinds: Sequence[Kind], recent: dict, edges: np.ndarray) -> report.Values:
    """A line of the log: what `report.summary` says of each member, after its name."""
    values: report.Values = {}
    for kind in kinds:
        for chunk in kind.chunks:
            stacked = {
                name: np.stack([np.asarray(m[name]) for m in recent[id(chunk)]]) for name in recent[id(chunk)][0]
            }
            for place, row in enumerate(chunk.rows):
                said = report.summary([{name: array[:, place] for name, array in stacked.items()}], edges)
                values |= {key_of(members[kind.members[row]].name, key): value for key, value in said.items()}
    return values


def name_of(variant: str, seed: int) -> str:
    """What a member is called."""
    return f"{variant}, seed {seed}"


def key_of(member: str, figure: str) -> str:
    """What a member's figure is called in the log."""
    return f"{member}/{figure}"


def _name(kind: int) -> str:
    return f"kind_{kind}"


def _claim(members: Sequence[Named], workdir: files.Place) -> None:
    """Write members.json, or see that the one that is there has the same members."""
    path = workdir / "members.json"
    if files.is_file(path):
        held = json.loads(path.read_text())
        now = [member.name for member in members]
        if [each["name"] for each in held] != now:
            raise ValueError(
                f"{workdir} holds a comparison of {', '.join(each['name'] for each in held)}; it can't go on with "
                f"{', '.join(now)}: give another --workdir"
            )
        for each, member in zip(held, members, strict=True):
            before = records.from_dict(each["config"], Config, path.name)
            changed = records.differences(before, member.config)
            wrong = [f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items() if not key.startswith(FREE)]
            if wrong:
                raise ValueError(
                    f"{workdir} can't go on with another config; give another --workdir, or undo {wrong[0]}"
                )
    elif workdir.exists() and (not files.is_dir(workdir) or files.entries(workdir)):
        raise ValueError(f"--workdir {workdir} has other things in it and no members.json; give a new or empty folder")
    plain = [{"name": member.name, "config": records.to_dict(member.config)} for member in members]
    files.write(path, (json.dumps(plain, indent=1) + "\n").encode())


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


def gradient_statistics(
    trained: Trained, configs: Sequence[Config], source: Source, layout: Layout, *, edges: np.ndarray
) -> list[GradientStats] | None:
    """Each member's gradients by noise level (see `gradients`), at its parameters as they are; None where a member's
    objective has no t to draw.

    Members of one seed see the same images, t and noise in each bin.
    """
    if any(config.diffusion.objective == "continuous" for config in configs):
        return None
    found: dict[int, GradientStats] = {}
    for kind in trained.kinds:
        size = min(kind.parts.config.batch_size, 32)
        of_edges = jnp.asarray(edges)

        def one_more(
            sums: Sums, key: Any, number: Any, states: Any, batch: Any, member: Any, kind: Kind = kind
        ) -> Sums:
            parts = population.as_parts(kind.parts, member)
            return gradients.add(sums, key, parts, of_edges, number, states.trained(), batch, states.history)

        add = population.spread(layout.arrangement, kind.mesh, one_more, donate=True)
        end = jax.jit(jax.vmap(lambda sums, there: gradients.finish(sums, there, micro_batches=4, batch_size=size)))
        for chunk in kind.chunks:
            if not layout.resident:
                population.to_devices(chunk)
            stats = _of_chunk(
                kind, chunk, [configs[kind.members[row]] for row in chunk.rows], source, size, add, end, of_edges
            )
            for place, row in enumerate(chunk.rows):
                found[kind.members[row]] = jax.tree.map(lambda x: np.asarray(x[place]), stats)
            if not layout.resident:
                population.to_host(chunk)
    return [found[i] for i in range(len(configs))]


def _of_chunk(
    kind: Kind,
    chunk: Chunk,
    configs: Sequence[Config],
    source: Source,
    size: int,
    add: Callable[..., Sums],
    end: Callable[..., GradientStats],
    edges: jax.Array,
) -> GradientStats:
    where, count = chunk.given.key.sharding, len(chunk.rows)
    source = source if run.num_classes(kind.parts.config) else dataclasses.replace(source, labels=None)
    filled = jax.vmap(lambda member: gradients.filled(population.as_parts(kind.parts, member), edges))(chunk.given)
    keys = jnp.stack([jax.random.key(config.seed + 2) for config in configs])

    def start(states: Any) -> Sums:
        zeros = Sums(gradient=jax.tree.map(jnp.zeros_like, states.params), squares=jnp.zeros(count))
        return jax.device_put(zeros, where)

    def batch_of(number: int, i: int) -> Any:
        seeds = [int(np.random.SeedSequence([config.seed, number, i]).generate_state(1)[0]) for config in configs]
        raw = [
            pipeline.read_at(source, 0, seed=s, batch_size=size, flip=c.data.flip)
            for s, c in zip(seeds, configs, strict=True)
        ]
        floats = [dataclasses.replace(one, images=pipeline.to_float(np.asarray(one.images))) for one in raw]
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *floats), where)

    def add_to(sums: Sums, key: jax.Array, number: int, batch: Any) -> Sums:
        words = jax.random.key_data(key)[-1]
        own = jax.device_put(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, words), where)
        numbers = jax.device_put(jnp.full(count, number, jnp.int32), where)
        return add(sums, own, numbers, chunk.states, batch, chunk.given)

    return gradients.by_bin(
        jax.random.key(0),
        add_to,
        chunk.states,
        filled[0],
        batch_of,
        batch_size=size,
        start=start,
        end=lambda sums, there, **_: end(sums, filled),
    )
