"""Features of many images, batch by batch: only the features are kept."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from ddpm_jax import files, xla
from ddpm_jax.evaluation.features import Extracted, Features
from ddpm_jax.sampling.places import to_host

Read = Callable[[np.ndarray], np.ndarray]
"""rows int [B] -> their images, uint8 [B, H, W, C]."""

Found = tuple[Extracted, ...]
"""Of the same images by several kinds of features."""


def extract(
    kinds: Sequence[Features],
    read: Read,
    num: int,
    *,
    batch_size: int = 32,
    sharding: Sharding | None = None,
    on_batch: Callable[[int], Any] = lambda done: None,
) -> Found:
    """What images 0 .. num-1 are compared by, in host memory; no more than a batch of images is held at once.

    Args:
        read: called with the rows of a batch, or of this process's part of it.
        batch_size: images at once; with `sharding` a multiple of its devices.
        sharding: of a batch's first axis over devices. Each process then reads and measures the images of its own.
        on_batch: called with the number of images done.

    Raises:
        ValueError: for fewer than one image.
    """
    if num < 1:
        raise ValueError(f"features need at least 1 image, got {num}")
    shape = read(np.arange(1)).shape[1:]
    parts: list[Found] = []
    for start in range(0, num, batch_size):
        # The last batch repeats its last image, so that one compilation serves all.
        rows = np.minimum(np.arange(start, start + batch_size), num - 1)
        kept = min(batch_size, num - start)
        batch = _placed(read, rows, shape, sharding)
        parts.append(tuple(rows_of(to_host(_measure(each.extract, batch)), slice(kept)) for each in kinds))
        on_batch(kept)
    return join(parts)


def join(parts: Sequence[Found]) -> Found:
    """Of several sets of images one."""
    return jax.tree.map(lambda *values: np.concatenate(values), *parts)


def rows_of(found: Extracted, rows: np.ndarray | slice) -> Extracted:
    """Of some of the images."""
    return jax.tree.map(lambda values: np.asarray(values)[rows], found)


@xla.jit
def _measure(extract: Callable[[jax.Array], Extracted], images: jax.Array) -> Extracted:
    return extract(images)


def _placed(read: Read, rows: np.ndarray, shape: tuple[int, ...], sharding: Sharding | None) -> jax.Array:
    if sharding is None:
        return jax.device_put(read(rows))

    def part(index: Any) -> np.ndarray:
        return read(rows[index[0]])

    return jax.make_array_from_callback((len(rows), *shape), sharding, part)


def in_chunks(folder: files.Place, chunks: int, make: Callable[[int], Found], *, writes: bool) -> Iterator[Found]:
    """make(0) .. make(chunks - 1), each kept in a file of `folder`, whole or absent, and read from there if it is.

    Every process asks for all of them; one of them `writes`.
    """
    there = 0
    while there < chunks and files.is_file(folder / f"{there:06d}.npz"):
        there += 1
    if jax.process_count() > 1:  # all go on behind what every one of them sees
        there = int(np.min(multihost_utils.process_allgather(np.int32(there))))
    for chunk in range(chunks):
        place = folder / f"{chunk:06d}.npz"
        if chunk < there:
            yield read_file(place)
            continue
        made = make(chunk)
        if writes:
            write_file(place, made)
        yield made


def write_file(place: files.Place, found: Found) -> None:
    """Write features, whole or not at all."""
    arrays = {f"{name}_{i}": value for i, each in enumerate(found) for name, value in vars(each).items()}
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **{name: value for name, value in arrays.items() if value is not None})
    files.write(place, packed.getvalue())


def read_file(place: files.Place) -> Found:
    """What `write_file` wrote."""
    with np.load(io.BytesIO(place.read_bytes())) as stored:
        count = sum(name.startswith("features_") for name in stored)
        return tuple(Extracted(stored[f"features_{i}"], stored.get(f"logits_{i}")) for i in range(count))
