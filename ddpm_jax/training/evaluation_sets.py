"""The sets of images that an evaluation compares, as features: drawn, of a data set, or at hand.

Images are never in memory together. Drawn ones come a chunk at a time, and their features are kept in files beside the
run, so that a measurement that was interrupted goes on behind the last whole chunk.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import data, files, records
from ddpm_jax.config import Data, Sampling
from ddpm_jax.data.record import Column, Source
from ddpm_jax.evaluation import extracting
from ddpm_jax.evaluation.extracting import Found
from ddpm_jax.evaluation.features import Features
from ddpm_jax.figures import pictures
from ddpm_jax.sampling.places import to_host
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training import processes
from ddpm_jax.training.draw import draw, width
from ddpm_jax.training.run import Parts

CHUNK = 256
"""Images that are drawn together, and lost if the program is killed."""

LOT = 2048
"""Images whose features are kept together in a file."""

ON_CPU = 32
"""Images whose features are found together on a CPU: what its caches hold, faster by half than hundreds."""

Progress = Callable[[str, int, int], Any]
"""(what, images done since the last call, images in all)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawer:
    """A network that draws image i of a seed."""

    parts: Parts
    params: Any
    settings: Sampling
    seed: int
    batch_size: int

    def about(self) -> dict[str, Any]:
        """What its images depend on, but for their numbers."""
        settings = records.to_dict(self.settings)
        return {"weights": fingerprint(self.params), "sampling": settings, "seed": self.seed, "chunk": self.chunk}

    @property
    def chunk(self) -> int:
        return max(CHUNK, self.batch_size)

    def images(self, numbers: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C]; values that aren't finite are refused.

        Raises:
            ValueError: saying so.
        """
        drawn, _ = draw(
            self.parts,
            self.params,
            seed=self.seed,
            num=len(numbers),
            settings=self.settings,
            batch_size=self.batch_size,
            numbers=numbers,
        )
        if not np.isfinite(drawn).all():
            bad = int((~np.isfinite(drawn)).any(axis=(1, 2, 3)).sum())
            raise ValueError(f"the network draws NaN or infinity in {bad} of {len(drawn)} images: it can't be measured")
        return pictures.to_bytes(drawn)


def drawn(by: Drawer, kinds: Sequence[Features], num: int, cache: files.Place, progress: Progress) -> Found:
    """Features of images 0 .. num-1; what is in `cache` isn't drawn again."""

    def make(chunk: int) -> Found:
        numbers = np.arange(chunk * by.chunk, min((chunk + 1) * by.chunk, num))
        # Every chunk is full, the last repeats its end, so that one compilation serves all.
        full = np.minimum(np.arange(chunk * by.chunk, chunk * by.chunk + min(by.chunk, num)), num - 1)
        images = by.images(full)[: len(numbers)]
        return extracting.join([*in_lots(by.parts, kinds, lambda rows: images[rows], len(images), by.batch_size)])

    chunks, found = -(-num // by.chunk), []
    for part in extracting.in_chunks(cache, chunks, make, writes=processes.writes()):
        found.append(part)
        progress("drawing", len(part[0].features), num)
    processes.meet("all have what was drawn")
    return extracting.join(found)


def in_lots(
    parts: Parts,
    kinds: Sequence[Features],
    read: extracting.Read,
    num: int,
    batch_size: int,
    on_batch: Callable[[int], Any] = lambda done: None,
    cache: files.Place | None = None,
) -> Iterator[Found]:
    """Features of images that can be read by their rows, measured by all devices, a lot at a time.

    What is in `cache` isn't measured again.
    """
    batch_size = min(batch_size, ON_CPU) if jax.default_backend() == "cpu" else batch_size
    options: dict[str, Any] = {"batch_size": width(parts, num, batch_size), "sharding": mesh_lib.split(parts.mesh)}

    def make(lot: int) -> Found:
        first = lot * LOT
        part = min(LOT, num - first)
        return extracting.extract(kinds, lambda rows: read(first + rows), part, on_batch=on_batch, **options)

    lots = -(-num // LOT)
    if cache is None:
        yield from map(make, range(lots))
    else:
        yield from extracting.in_chunks(cache, lots, make, writes=processes.writes())


def of_source(
    parts: Parts,
    kinds: Sequence[Features],
    title: str,
    source: Source,
    most: int,
    batch_size: int,
    progress: Progress,
    folder: files.Place | None = None,
) -> Iterator[Found]:
    """Features of `rows_of` a data set, in lots; kept in files of `folder`, for they are needed again."""
    rows = rows_of(source, most)
    few = rows[np.linspace(0, len(rows) - 1, min(len(rows), 64)).astype(int)]
    # Another set may have come to its place.
    seen = hashlib.sha256(np.asarray(source.images[few]).tobytes()).hexdigest()
    about = {"title": title, "rows": len(rows), "of": len(source), "seen": seen}
    cache = None if folder is None else folder / f"reference_{mark(kinds, about)}"

    def read(batch: np.ndarray) -> np.ndarray:
        return np.asarray(source.images[rows[batch]])

    def told(done: int) -> None:
        progress(f"reading {title}", done, len(rows))

    return in_lots(parts, kinds, read, len(rows), batch_size, told, cache)


def rows_of(source: Source, most: int) -> np.ndarray:
    """At most so many images of a source, in order: all, or some drawn at random, the same ones each time."""
    return some(len(source), most)


def some(count: int, most: int) -> np.ndarray:
    """At most so many of `count` numbers, rising: all, or some drawn at random, the same ones each time."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def reader(images: Column, most: int) -> extracting.Read:
    """Of at most so many of the images, as if there were no others."""
    chosen = some(len(images), most)

    def read(rows: np.ndarray) -> np.ndarray:
        return np.asarray(images[chosen[rows]])

    return read


def fingerprint(params: Any) -> str:
    """Of all weights, exactly: the same on any devices, another for any other weights."""
    return hashlib.sha256(str([int(each) for each in jax.tree.leaves(to_host(_sums(params)))]).encode()).hexdigest()


@jax.jit
def _sums(params: Any) -> Any:
    def bits(leaf: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
        # Odd factors tell equal numbers in other places apart.
        return (words.ravel() * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32)

    return jax.tree.map(bits, params)


def digest(images: Column) -> str:
    """Of all of them, a lot at a time."""
    found = hashlib.sha256(str(images.shape).encode())
    for start in range(0, len(images), LOT):
        found.update(np.asarray(images[np.arange(start, min(start + LOT, len(images)))]).tobytes())
    return found.hexdigest()


def mark(kinds: Sequence[Features], about: dict[str, Any]) -> str:
    """A short name for what features of what were measured: another for anything else."""
    said = [{"name": each.name, "preprocessing": each.preprocessing} for each in kinds]
    return hashlib.sha256(json.dumps([said, about], sort_keys=True).encode()).hexdigest()[:12]


def sources(settings: Data, held_out: str | None) -> dict[str, Source]:
    """The training images and those that training didn't see: a split that is named, test if there is one for None.

    Raises:
        ValueError: for a split that the source doesn't have, or images of other shapes.
    """
    found = {"train": data.load(settings)}
    unseen = dataclasses.replace(settings, split="test" if held_out is None else held_out)
    if held_out:
        found["held_out"] = data.load(unseen)
    elif held_out is None and settings.split not in ("all", "test"):
        with contextlib.suppress(ValueError, FileNotFoundError):  # a set of one split
            found["held_out"] = data.load(unseen)
    return found
