"""From a source of images to batches on the devices, ahead of the steps that take them; and how far it keeps up.

Host threads (and worker processes, if asked for) read uint8 images; one more thread sends them on, while a step runs;
they become floats on the devices. Of a set that lies on the devices whole, only the choice of images is sent.
"""

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from ddpm_jax.config import Data
from ddpm_jax.data import pipeline, resident
from ddpm_jax.data.pipeline import Batch, Picks
from ddpm_jax.data.readahead import for_workers, read_ahead
from ddpm_jax.data.record import Source
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.run import Parts, num_classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """A run's batches."""

    take: Callable[[Any], Batch]
    """take(after) -> the next batch, `after` being what the step before gave back (None before the first)."""
    idle: Callable[[], float]
    """Seconds since it was last asked, or the start, in which the devices waited for a batch.

    Such a wait lasts from the end of the step before, or from when the batch was asked for if that was later, until the
    batch had reached the devices: previews, saves and the host's other work don't count. Both ends are stamped by a
    thread that waits for them, which is late by some tenths of a millisecond. Of several processes, all must ask; each
    gets the longest wait of any, which may be less than all of them in a row cost.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """Batches in two halves: what a thread sends to the devices, and what the devices make of it."""

    sent: Iterator[Any]
    finish: Callable[[Any], Batch]


@contextlib.contextmanager
def open_feed(parts: Parts, source: Source, start: int) -> Iterator[Feed]:
    """Batches from step `start` on, on the devices; several at once, [k, B, ...], where a dispatch takes several.

    Up to data.ahead of them wait there to be taken; and up to as many steps that were taken wait to run: beyond that
    `take` waits, so that a slow device doesn't fill up with batches.
    """
    config = parts.config
    stream = open_stream(
        source,
        config.data,
        mesh=parts.mesh,
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        several=config.run.steps_per_dispatch,
        labels=num_classes(config) > 0,
    )
    ends: collections.deque[Future[float]] = collections.deque()
    waits: list[tuple[float, Future[float], Future[float]]] = []
    with stream as batches, ThreadPoolExecutor(1, "ddpm-jax-watch") as watch:

        def take(after: Any) -> Batch:
            ended = watch.submit(_when_ready, after)
            ends.append(ended)
            if len(ends) > config.data.ahead:
                ends.popleft().result()
            asked = time.perf_counter()
            sent = next(batches.sent)
            waits.append((asked, ended, watch.submit(_when_ready, sent)))
            return batches.finish(sent)

        def idle() -> float:
            seconds = sum(max(0.0, there.result() - max(asked, ended.result())) for asked, ended, there in waits)
            waits.clear()
            if jax.process_count() > 1:
                seconds = float(np.max(multihost_utils.process_allgather(np.float32(seconds))))
            return seconds

        yield Feed(take=take, idle=idle)


@contextlib.contextmanager
def open_stream(
    source: Source,
    settings: Data,
    *,
    mesh: Mesh,
    batch_size: int,
    seed: int = 0,
    start: int = 0,
    several: int = 1,
    labels: bool = True,
) -> Iterator[Stream]:
    """The batches of steps `start`, `start` + 1, ..., `several` at once, as `data` says they are read.

    Args:
        batch_size: over all processes.
        labels: whether the batches have them, where the source does.

    Raises:
        ValueError: as `check_source` and `data.batch_at`.
    """
    check_source(settings, source)
    mesh_lib.check_batch(batch_size, mesh)
    if not labels:
        source = dataclasses.replace(source, labels=None)
    which = {"seed": seed, "batch_size": batch_size, "flip": settings.flip, "rows": mesh_lib.rows(mesh, batch_size)}
    pipeline.picks_at(len(source), start, **which)  # refuses what can't be
    on_devices = mesh_lib.split(mesh, axis=0 if several == 1 else 1)
    if settings.on_device:
        at, finish = functools.partial(resident.picks_at, len(source), **which), _from_set(source, mesh, on_devices)
    else:
        readable = for_workers(source) if settings.workers else source
        at, finish = functools.partial(pipeline.read_at, readable, **which), _from_bytes(on_devices)
    pieces = read_ahead(at, start=start, several=several, threads=settings.threads, workers=settings.workers)
    pieces = pieces.map(lambda arrays: mesh_lib.place(arrays, on_devices))
    sent = iter(grain.experimental.ThreadPrefetchIterDataset(pieces, prefetch_buffer_size=settings.ahead))
    with contextlib.closing(sent):
        yield Stream(sent=sent, finish=finish)


def _from_bytes(on_devices: NamedSharding) -> Callable[[Batch], Batch]:
    to_float = jax.jit(resident.to_float, out_shardings=on_devices)
    return lambda raw: dataclasses.replace(raw, images=to_float(raw.images))


def _from_set(source: Source, mesh: Mesh, on_devices: NamedSharding) -> Callable[[Picks], Batch]:
    held = mesh_lib.place(resident.table(source), mesh_lib.replicated(mesh))
    batch_of = jax.jit(resident.batch_of, static_argnums=2, out_shardings=on_devices)
    return lambda picks: batch_of(held, picks, tuple(source.images.shape[1:]))


def images_per_second(
    source: Source, settings: Data, *, batch_size: int, mesh: Mesh, seconds: float = 1.0, **options: Any
) -> float:
    """How many images of this process reach its devices in a second when nothing else is done there.

    Starting is not counted, nor the batches that were ready by then.

    Args:
        batch_size: over all processes.
        seconds: how long to measure; at least one batch is waited for however long it takes.
        options: further arguments of `open_stream`.
    """
    count = 0
    with open_stream(source, settings, mesh=mesh, batch_size=batch_size, **options) as stream:

        def pull() -> int:
            batch = jax.block_until_ready(stream.finish(next(stream.sent)))
            share = len(mesh_lib.rows(mesh, batch_size))
            return int(np.prod(batch.images.shape[:-4])) * share

        pull()
        ready = settings.ahead + 2 * settings.threads * max(1, settings.workers) + settings.workers
        begin = time.perf_counter()
        for _ in range(ready):
            pull()
            if time.perf_counter() - begin > seconds:
                break
        begin = time.perf_counter()
        while not count or time.perf_counter() - begin < seconds:
            count += pull()
        return count / (time.perf_counter() - begin)


def check_numbers(settings: Data) -> None:
    """Refuse counts that aren't.

    Raises:
        ValueError: naming the flag.
    """
    for name, value, least in (
        ("--data.threads", settings.threads, 1),
        ("--data.ahead", settings.ahead, 1),
        ("--data.workers", settings.workers, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if settings.on_device and settings.workers:
        raise ValueError(f"--data.on-device leaves nothing for --data.workers to read, got {settings.workers}; give 0")


def check_source(settings: Data, source: Source) -> None:
    """Refuse a source that can't be read in the way that is asked for.

    Raises:
        ValueError: naming the flag.
    """
    check_numbers(settings)
    if settings.on_device:
        resident.check(source)
    if settings.workers:
        for_workers(source)


def _when_ready(arrays: Any) -> float:
    jax.block_until_ready(arrays)
    return time.perf_counter()
