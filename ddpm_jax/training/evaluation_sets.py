"""The sets of images that an evaluation compares, as features: drawn, of a data set, or at hand.

Images are never in memory together. Drawn ones come a chunk at a time, and their features are kept in files beside the
run, so that a measurement that was interrupted goes on behind the last whole chunk.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax import data, files, records
from ddpm_jax.config import Data, Sampling
from ddpm_jax.data.record import Source
from ddpm_jax.evaluation import extracting
from ddpm_jax.evaluation.extracting import Found
from ddpm_jax.evaluation.features import Features
from ddpm_jax.figures import pictures
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training import processes
from ddpm_jax.training.draw import draw, width
from ddpm_jax.training.run import Parts

CHUNK = 256
"""Images that are drawn together, and lost if the program is killed."""

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
        numbers = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, num))
        # Every chunk is full, the last repeats its end, so that one compilation serves all.
        full = np.minimum(np.arange(chunk * CHUNK, chunk * CHUNK + min(CHUNK, num)), num - 1)
        images = by.images(full)[: len(numbers)]
        return of_images(by.parts, kinds, lambda rows: images[rows], len(images), by.batch_size)

    chunks, found = -(-num // CHUNK), []
    for part in extracting.in_chunks(cache, chunks, make, writes=processes.writes()):
        found.append(part)
        progress("drawing", len(part[0].features), num)
    return extracting.join(found)


def of_images(
    parts: Parts,
    kinds: Sequence[Features],
    read: extracting.Read,
    num: int,
    batch_size: int,
    on_batch: Callable[[int], Any] = lambda done: None,
) -> Found:
    """Features of images that can be read by their rows, measured by all devices."""
    batch_size = min(batch_size, ON_CPU) if jax.default_backend() == "cpu" else batch_size
    at_once, sharding = width(parts, num, batch_size), mesh_lib.split(parts.mesh)
    return extracting.extract(kinds, read, num, batch_size=at_once, sharding=sharding, on_batch=on_batch)


def of_source(
    parts: Parts,
    kinds: Sequence[Features],
    settings: Data,
    source: Source,
    most: int,
    folder: files.Place,
    batch_size: int,
    progress: Progress,
) -> Found:
    """Features of `rows_of` a data set; kept in a file of `folder`, as the next measurement needs them again."""
    rows = rows_of(source, most)
    about = {"data": records.to_dict(settings), "rows": len(rows), "of": len(source)}
    place = folder / f"reference_{mark(kinds, about)}.npz"

    def make(chunk: int) -> Found:
        del chunk
        title = f"reading {settings.split}"
        return of_images(
            parts,
            kinds,
            lambda batch: np.asarray(source.images[rows[batch]]),
            len(rows),
            batch_size,
            lambda done: progress(title, done, len(rows)),
        )

    [found] = extracting.in_chunks(place.with_suffix(""), 1, make, writes=processes.writes())
    return found


def rows_of(source: Source, most: int) -> np.ndarray:
    """At most so many images of a source, in order: all, or some drawn at random, the same ones each time."""
    if len(source) <= most:
        return np.arange(len(source))
    return np.sort(np.random.default_rng(0).permutation(len(source))[:most])


def mark(kinds: Sequence[Features], about: dict[str, Any]) -> str:
    """A short name for what features of what were measured: another for anything else."""
    said = [{"name": each.name, "preprocessing": each.preprocessing} for each in kinds]
    return hashlib.sha256(json.dumps([said, about], sort_keys=True).encode()).hexdigest()[:12]


def sources(settings: Data, held_out: str) -> dict[str, Source]:
    """The training images and, if a split is named, those that training didn't see.

    Raises:
        ValueError: for a split that the source doesn't have, or images of other shapes.
    """
    found = {"train": data.load(settings)}
    if held_out:
        found["held_out"] = data.load(dataclasses.replace(settings, split=held_out))
    return found
