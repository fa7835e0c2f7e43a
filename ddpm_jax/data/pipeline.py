"""Which images, in which order. A batch is a function of (seed, step) and of nothing else.

So a run that resumes needs no saved iterator: the step in its checkpoint says which images come next. Epochs, each a
permutation of the images, are laid end to end in an endless row; batch `step` of B images holds the positions
step * B .. step * B + B - 1 of that row. How many threads or processes make the batches, and whether that is done on
the host or on a device, changes nothing in them.
"""

import dataclasses
import functools
from typing import Any

import grain
import jax
import numpy as np

from ddpm_jax.data.readahead import read_ahead
from ddpm_jax.data.record import Source

ORDER, FLIP = 0, 1  # one random stream of the seed for each purpose


@functools.partial(jax.tree_util.register_dataclass, data_fields=["images", "labels"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What one process trains on in one step."""

    images: np.ndarray | jax.Array
    """float32 [B / processes, H, W, C] in [-1, 1]; uint8 as they are read."""
    labels: np.ndarray | jax.Array | None
    """int32 [B / processes], or None for a source without labels."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["indices", "mirrored"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class Picks:
    """Which images stand in a batch, and which of them are mirrored."""

    indices: Any
    """Integers [B / processes], on the host or on devices."""
    mirrored: Any
    """bool [B / processes], or None where nothing is mirrored."""


def picks_at(
    num_images: int, step: int, *, seed: int, batch_size: int, flip: bool = False, rows: np.ndarray | None = None
) -> Picks:
    """What stands in batch `step` of the run, or in those `rows` of it, rising numbers of 0 .. batch_size - 1.

    Raises:
        ValueError: as `batch_at`.
    """
    _check(num_images, seed, step, batch_size)
    rows = np.arange(batch_size) if rows is None else rows
    first, count = step * batch_size + int(rows[0]), int(rows[-1] - rows[0]) + 1
    kept = rows - rows[0]
    return Picks(
        indices=_order(num_images, seed, first, count)[kept],
        mirrored=_coin(seed, first, count)[kept] if flip else None,
    )


def read_at(
    source: Source, step: int, *, seed: int, batch_size: int, flip: bool = False, rows: np.ndarray | None = None
) -> Batch:
    """Those `rows` of batch `step`, or all, as the source has them: uint8.

    Raises:
        ValueError: as `batch_at`.
    """
    picks = picks_at(len(source), step, seed=seed, batch_size=batch_size, flip=flip, rows=rows)
    images = np.asarray(source.images[picks.indices])
    if picks.mirrored is not None:
        images[picks.mirrored] = images[picks.mirrored, :, ::-1]
    return Batch(images=images, labels=None if source.labels is None else np.asarray(source.labels[picks.indices]))


def batch_at(
    source: Source, *, seed: int, step: int, batch_size: int, flip: bool = False, shard: tuple[int, int] = (0, 1)
) -> Batch:
    """Batch `step` of the run, or process i's share of it for shard (i, n).

    Every epoch visits each image once, in an order of its own; a batch may reach over the end of an epoch. The n
    shares laid end to end are the batch of one process. With `flip`, an image is mirrored left to right with
    probability one half, decided by seed and position, so the process count never shows.

    Args:
        source: images and labels.
        seed: 0 .. 2^32 - 1.
        step: 0 or more.
        batch_size: B, over all processes; it may exceed the number of images.

    Raises:
        ValueError: for an argument out of its range, or a batch that doesn't divide among the processes.
    """
    rows = _share(batch_size, shard)
    batch = read_at(source, step, seed=seed, batch_size=batch_size, flip=flip, rows=rows)
    return dataclasses.replace(batch, images=to_float(np.asarray(batch.images)))


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    flip: bool = False,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
) -> grain.DatasetIterator[Batch]:
    """`batch_at` for every step from `start` on, made ahead of time in background threads.

    The iterator never ends; `close()` stops its threads. More than two threads pay only where decoding is the
    bottleneck and there are cores to spare.

    Raises:
        ValueError: as `batch_at`, at once.
    """
    _check(len(source), seed, start, batch_size)
    _share(batch_size, shard)

    def at(step: int) -> Batch:
        return batch_at(source, seed=seed, step=step, batch_size=batch_size, flip=flip, shard=shard)

    return iter(read_ahead(at, start=start, threads=threads))


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 k to float32 k / 127.5 - 1, correctly rounded: 2k - 255 is exact, so only the division rounds."""
    scaled = images.astype(np.float32)
    scaled *= 2
    scaled -= 255
    scaled /= 255
    return scaled


def _order(num_images: int, seed: int, first: int, count: int) -> np.ndarray:
    """The images at positions first .. first + count - 1 of the endless row of epochs."""
    pieces = []
    while count:
        epoch, place = divmod(first, num_images)
        pieces.append(_epoch(num_images, seed, epoch)[place : place + count])
        first, count = first + len(pieces[-1]), count - len(pieces[-1])
    return np.concatenate(pieces)


@functools.lru_cache(maxsize=4)
def _epoch(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """One epoch's permutation: 1 ms for 60,000 images, once an epoch.

    Grain's shuffle works out each index by itself, which costs 10 us apiece, and 60 us for a set of 1,500 images: it
    walks a domain of 2^16 until it lands inside the set. 40 MB for ten million images, of which few are kept.
    """
    order = np.random.default_rng([seed, ORDER, epoch]).permutation(num_images)
    return order.astype(np.int32) if num_images <= 2**31 else order


def _coin(seed: int, first: int, count: int) -> np.ndarray:
    """A fair bool for each position first .. first + count - 1, the same whatever stretch is asked for.

    Philox is a function of a counter (Salmon et al. 2011); each position owns one count, which yields four words.
    """
    words = np.random.Philox(key=np.array([seed, FLIP], np.uint64), counter=first).random_raw(4 * count)
    return words[::4] >> np.uint64(63) == 1


def _check(num_images: int, seed: int, step: int, batch_size: int) -> None:
    if num_images < 1:
        raise ValueError("the source must hold at least one image, got none")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in 0 .. 2^32 - 1, got {seed}")
    if step < 0:
        raise ValueError(f"step must be 0 or more, got {step}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def _share(batch_size: int, shard: tuple[int, int]) -> np.ndarray:
    """The rows of a batch that fall to one process."""
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard must be (i, n) with 0 <= i < n, got {shard}")
    if batch_size < 1 or batch_size % count:
        raise ValueError(f"batch_size must be a positive multiple of the {count} processes, got {batch_size}")
    return np.arange(batch_size).reshape(count, -1)[index]
