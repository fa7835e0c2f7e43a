"""The training images nearest to each sample, and whether samples lie nearer to them than unseen images do.

In pixels or in features. Every image has a nearest one; only against held-out images does a distance say something: a
model that has learnt the law is as far from its training images as they are, one that copies is nearer.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from ddpm_jax.evaluation import estimate, statistics
from ddpm_jax.evaluation.estimate import Estimate

ROWS, COLUMNS = 1024, 4096
"""Distances that are held at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearest:
    """Of each sample, the nearest first."""

    indices: np.ndarray
    """In the order in which the chunks came, int64 [N, count]."""
    distances: np.ndarray
    """Euclidean [N, count]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copying:
    """Samples' distances to the training images against those of held-out images."""

    near: Estimate
    """Share of the samples that are nearer to a training image than `percentile` % of the held-out images are."""
    percentile: float
    """`near` is about this, in %, if samples are as new as held-out images."""
    farther: Estimate
    """How often a sample is farther from the training images than a held-out image is; 1/2 if it is as new."""
    z: float
    """The same as Mann & Whitney's statistic, in standard deviations from 1/2: below -3 is copying, above 3 is a bad
    fit. It grows with the number of images."""


def nearest(samples: np.ndarray, chunks: Iterable[np.ndarray], *, count: int = 1) -> Nearest:
    """The `count` nearest training images of each sample [N, ...]; of equally near ones the first that came.

    Args:
        chunks: the training images, some at a time [B, ...]; no more than one chunk is held.

    Raises:
        ValueError: for fewer than `count` training images, other shapes, or values that aren't finite.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    flat = statistics.rows(samples, "samples")
    best = Nearest(indices=np.zeros((len(flat), 0), np.int64), distances=np.zeros((len(flat), 0)))
    seen = 0
    for chunk in chunks:
        if len(chunk) == 0:
            continue
        _, images = statistics.pair(samples[:1], "samples", chunk, "chunks")
        for start in range(0, len(images), COLUMNS):
            piece = images[start : start + COLUMNS]
            found = [_within(flat[i : i + ROWS], piece, count) for i in range(0, len(flat), ROWS)]
            indices = [best.indices, np.concatenate([each.indices for each in found]) + seen]
            distances = [best.distances, np.concatenate([each.distances for each in found])]
            best = _nearest_of(np.concatenate(indices, 1), np.concatenate(distances, 1), count)
            seen += len(piece)
    if seen < count:
        raise ValueError(f"chunks must hold at least count = {count} training images, got {seen}")
    return best


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x_i - y_j|^2 of x [N, D] and y [M, D] by inner products, float64 [N, M]; exact for integers.

    What is below rounding is 0, so that copies are at distance 0.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    lengths = (x * x).sum(1)[:, None] + (y * y).sum(1)
    squared = x @ y.T
    squared *= -2
    squared += lengths
    lengths *= 4 * np.finfo(np.float64).eps * max(8.0, np.sqrt(x.shape[1]))
    squared[squared <= lengths] = 0
    return squared


def copying(samples: np.ndarray, held_out: np.ndarray, *, percentile: float = 5.0, seed: int = 0) -> Copying:
    """Compare samples' distances to their nearest training images [N] with held-out images' [M].

    `farther` and `z` are the three-sample test of Meehan, Chaudhuri & Dasgupta 2020 (Delta_T and Z_U) over the whole
    space: their C_T weighs the same statistic over cells of it. Ties count half, and for z's deviation. A few exact
    copies among many new samples move it little; they show in `near`, whose error is the bootstrap's over both sets.

    Raises:
        ValueError: for fewer than two distances on a side, or some that are negative or not finite.
    """
    for name, distances in (("samples", samples), ("held_out", held_out)):
        if np.ndim(distances) != 1 or len(distances) < 2:
            raise ValueError(f"{name} must hold at least 2 distances [N], got shape {np.shape(distances)}")
        if not (np.isfinite(distances).all() and np.min(distances) >= 0):
            raise ValueError(f"{name} must hold distances, finite and at least 0")
    if not 0 < percentile < 100:
        raise ValueError(f"percentile must lie in (0, 100), got {percentile}")
    mine, others = np.asarray(samples, np.float64), np.asarray(held_out, np.float64)

    def below(i: np.ndarray, j: np.ndarray) -> float:
        return float((mine[i] < np.percentile(others[j], percentile)).mean())

    near, error = estimate.bootstrap(below, (len(mine), len(others)), draws=200, seed=seed)
    # Of each one, the share of the other side that is nearer, ties half (DeLong et al. 1988).
    over, under = _nearer(others, mine), _nearer(mine, others)
    farther = float(over.mean())
    spread = np.sqrt(over.var(ddof=1) / len(mine) + under.var(ddof=1) / len(others))
    how = f"{len(mine):,} samples, {len(others):,} held-out images"
    return Copying(
        near=estimate.share(near, len(mine), error, f"bootstrap of {how}, 200 draws"),
        percentile=percentile,
        # As many independent images as would give the variance that it has at 1/2.
        farther=estimate.share(
            farther, 3 * len(mine) * len(others) // (len(mine) + len(others)), spread, f"Mann-Whitney, {how}"
        ),
        z=_z(farther, mine, others),
    )


def _nearer(x: np.ndarray, than: np.ndarray) -> np.ndarray:
    """For each entry of `than` the share of x below it, ties half."""
    x = np.sort(x)
    return (np.searchsorted(x, than, "left") + np.searchsorted(x, than, "right")) / (2 * len(x))


def _z(farther: float, x: np.ndarray, y: np.ndarray) -> float:
    """Mann & Whitney's U, standardised with the variance for ties; 0 where all are equal."""
    n, m = len(x), len(y)
    _, ties = np.unique(np.concatenate([x, y]), return_counts=True)
    total = n + m
    variance = n * m / 12 * (total + 1 - (ties.astype(np.float64) ** 3 - ties).sum() / (total * (total - 1)))
    return float((farther - 0.5) * n * m / np.sqrt(variance)) if variance > 1e-9 * n * m * total else 0.0


def _within(x: np.ndarray, images: np.ndarray, count: int) -> Nearest:
    """Chosen by inner products, then measured by differences, which keep the digits of a small distance."""
    squared = squared_distances(x, images)
    indices, distances = [], []
    for _ in range(min(count, len(images))):
        indices.append(squared.argmin(1))
        distances.append(np.linalg.norm(x.astype(np.float64) - images[indices[-1]], axis=1))
        squared[np.arange(len(x)), indices[-1]] = np.inf
    return Nearest(indices=np.stack(indices, 1), distances=np.stack(distances, 1))


def _nearest_of(indices: np.ndarray, distances: np.ndarray, count: int) -> Nearest:
    order = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return Nearest(indices=np.take_along_axis(indices, order, 1), distances=np.take_along_axis(distances, order, 1))
