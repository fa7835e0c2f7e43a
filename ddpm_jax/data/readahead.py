"""Pieces of work made ahead of time, in order, by Grain's threads and worker processes."""

import dataclasses
import functools
import mmap
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import grain
import jax
import numpy as np
from absl import flags

from ddpm_jax.data.record import Source

T = TypeVar("T")
GRACE = 300
"""Seconds that a worker outlives a SIGTERM, in which the run that it works for is saved and ends it."""


def read_ahead(
    at: Callable[[int], T], *, start: int = 0, several: int = 1, threads: int = 2, workers: int = 0
) -> grain.IterDataset[T]:
    """at(start), at(start + 1), ... without end, made ahead of time and handed out in order.

    Args:
        at: a function of its argument alone, which gives arrays or a record of them.
        start: 0 or more.
        several: so many results are stacked into one, [several, ...], if more than one.
        threads: they work up to 2 * threads pieces ahead: in this process, or in each worker.
        workers: processes that take turns at the pieces, so that `at` is pickled once for each; 0 for none.
    """
    steps = grain.MapDataset.range(start, sys.maxsize, several)
    made = steps.map(at if several == 1 else functools.partial(_stacked, at, several))
    made = made.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if not workers:
        return made
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain asks for flags of its own, which only absl's programs have parsed
    # Pieces come through pipes. Of shared memory, Grain's other way, a container often has but 64 MiB.
    made = grain.experimental.WithOptionsIterDataset(made, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize))
    return made.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_begin_worker)


def _stacked(at: Callable[[int], Any], several: int, step: int) -> Any:
    return jax.tree.map(lambda *rows: np.stack(rows), *(at(step + i) for i in range(several)))


@dataclasses.dataclass(frozen=True)
class Mapped:
    """A column that lies in a file as plain bytes, mapped when it is first read."""

    path: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return _open(self)[indices]


def for_workers(source: Source) -> Source:
    """The same images in a form that is small to pickle: a mapped file goes by its name, and is mapped again.

    Raises:
        ValueError: for images in memory, of which every worker would get a copy.
    """
    images = source.images
    if isinstance(images, np.ndarray):
        images = mapped(images)
    if images is None:
        raise ValueError("--data.workers 0 is for images in memory, of which every worker would get a copy")
    return dataclasses.replace(source, images=images)


def mapped(array: np.ndarray) -> Mapped | None:
    """An array that is a part, in one piece, of a mapped file; None for any other."""
    under: Any = array
    while isinstance(under, np.ndarray) and not isinstance(under.base, mmap.mmap):
        under = under.base
    if not isinstance(under, np.memmap) or under.filename is None or not array.flags.c_contiguous:
        return None
    offset = under.offset + array.ctypes.data - under.ctypes.data
    return Mapped(str(under.filename), array.dtype, offset, array.shape)


@functools.lru_cache(maxsize=4)
def _open(column: Mapped) -> np.memmap:
    return np.memmap(column.path, column.dtype, "r", column.offset, column.shape)


def _begin_worker(index: int, count: int) -> None:
    """What a worker sets up: it ends with its run, and not before it."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the run ends its own
    # So may a platform's SIGTERM, after which the run still needs its batches until it is saved.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # killed, or it would have told us
