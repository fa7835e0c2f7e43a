"""All figures that two sets of images are compared by, each beside what held-out images get in the samples' place.

Most of these figures depend on how many images they are of: a Frechet distance of 1,000 images is larger than one of
4,000. So there are equally many on both sides, and as many held-out images behind the floor: n, the smallest set. Where
samples and training images are several times n, several pairs of sets of n are measured, and the mean is the figure.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ddpm_jax.evaluation import estimate, projection
from ddpm_jax.evaluation.estimate import Estimate
from ddpm_jax.evaluation.extracting import Extracted, rows_of
from ddpm_jax.evaluation.frechet import frechet_estimate, frechet_estimate_to
from ddpm_jax.evaluation.inception_score import inception_score
from ddpm_jax.evaluation.kid import kid
from ddpm_jax.evaluation.manifold import manifold
from ddpm_jax.evaluation.nearest import Nearest, copying, nearest
from ddpm_jax.evaluation.statistics import Reference

MOST = 10_000
"""Images in a set: what compares all with all takes the square of it."""
FEWEST = 7
"""Images in a set for figures of neighbours, of which up to five are looked at."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure, and what real images get."""

    name: str
    """With the features' name in it: figures of other features are other figures."""
    estimate: Estimate
    better: str
    """lower, higher, or nothing for a figure that should be near its floor."""
    num_images: int
    """On each side."""
    floor: Estimate | None = None
    """Of held-out images in place of the samples, at the same number; None without any."""


def against_images(
    samples: Extracted, train: Extracted, held_out: Extracted | None, *, name: str, seed: int = 0
) -> list[Figure]:
    """Samples against training images, beside held-out images against the same ones; each [., D] of one network.

    Frechet distance in all dimensions and in the reference's first 64 (`projection`), kernel distance, precision,
    recall, density, coverage, copies (if there are held-out images) and the Inception score (if there are logits).

    Args:
        name: the features'.
        seed: of how sets are dealt.

    Raises:
        ValueError: for fewer than two images on a side, others than the same features, or values that aren't finite.
    """
    sets = {"samples": samples, "training images": train} | ({} if held_out is None else {"held-out images": held_out})
    for what, found in sets.items():
        if len(found.features) < 2:
            raise ValueError(f"figures need at least 2 {what}, got {len(found.features)}")
        if found.features.shape[1] != train.features.shape[1]:
            raise ValueError(f"{what} must have {train.features.shape[1]} features, got {found.features.shape[1]}")
        if not np.isfinite(found.features).all():
            raise ValueError(f"features of {what} must be finite, got NaN or infinity: the images' or the network's")
    n = min(MOST, *(len(found.features) for found in sets.values()))
    pairs = list(_deal(samples, train, n, seed))
    others = None if held_out is None else next(_split(held_out, n, seed))
    few = projection.from_features(np.asarray(train.features))
    kinds: list[tuple[str, str, Callable[[Extracted, Extracted], Estimate]]] = [
        (f"FD-{name} (PCA-{few.variances.size})", "lower", lambda x, y: frechet_estimate(*_projected(few, x, y))),
        (f"FD-{name}", "lower", lambda x, y: frechet_estimate(np.asarray(x.features), np.asarray(y.features))),
        (f"KID-{name}", "lower", lambda x, y: kid(np.asarray(x.features), np.asarray(y.features))),
    ]
    figures = []
    for title, better, measure in kinds:
        floor = None if others is None else _mean([measure(others, real) for _, real in pairs], paired=False)
        figures.append(_figure(title, _mean([measure(x, real) for x, real in pairs]), better, n, floor))
    if n >= FEWEST:
        figures += _of_neighbours(pairs, others, n, name)
    if min(len(samples.features), len(train.features)) > n:
        most = min(len(samples.features), len(train.features))
        x, real = next(_deal(samples, train, most, seed))
        whole = frechet_estimate(np.asarray(x.features), np.asarray(real.features))
        figures.append(_figure(f"FD-{name}, as many as there are", whole, "lower", most, None))
    if held_out is not None:
        figures += _copies(samples, train, held_out, name)
    if samples.logits is not None:
        score = _score(np.concatenate([np.asarray(x.logits) for x, _ in pairs]), len(pairs) * max(1, n // 5000))
        figures.append(
            _figure(
                f"IS-{name}", score, "higher", n, None if others is None else _score(others.logits, max(1, n // 5000))
            )
        )
    return figures


def against_statistics(samples: Extracted, reference: Reference, *, name: str) -> list[Figure]:
    """Samples against published statistics: the Frechet distance, whose floor nobody has published.

    Raises:
        ValueError: if the statistics are of other features.
    """
    x, mean, covariance = np.asarray(samples.features), reference.mean, reference.covariance
    check_statistics(reference, name, x.shape[1])
    few = projection.from_moments(mean, covariance)
    inside = few.basis.T @ covariance @ few.basis
    reduced = frechet_estimate_to(projection.project(few, x), np.zeros(few.variances.size), inside)
    figures = [
        _figure(f"FD-{name}", frechet_estimate_to(x, mean, covariance), "lower", len(x), None),
        _figure(f"FD-{name} (PCA-{few.variances.size})", reduced, "lower", len(x), None),
    ]
    if samples.logits is not None:
        figures.append(
            _figure(f"IS-{name}", _score(samples.logits, min(10, max(1, len(x) // 5000))), "higher", len(x), None)
        )
    return figures


def check_statistics(reference: Reference, name: str, dim: int) -> None:
    """Are these statistics of the features of that name, `dim` numbers an image?

    Raises:
        ValueError: if they are not.
    """
    if reference.features not in (None, name):
        raise ValueError(f"--reference holds statistics of {reference.features}, got --features of {name}")
    if dim != reference.mean.size:
        hint = "; published ones for FID are of --features inception:FILE.pth" if reference.mean.size == 2048 else ""
        raise ValueError(f"--reference holds statistics of {reference.mean.size} features, {name} has {dim}{hint}")


def neighbours(samples: Extracted, train: Extracted, *, count: int) -> Nearest:
    """The `count` training images whose features are nearest to each sample's."""
    return nearest(np.asarray(samples.features), iter([np.asarray(train.features)]), count=count)


def _figure(name: str, found: Estimate, better: str, num_images: int, floor: Estimate | None) -> Figure:
    return Figure(name=name, estimate=found, better=better, num_images=num_images, floor=floor)


def _of_neighbours(
    pairs: Sequence[tuple[Extracted, Extracted]], others: Extracted | None, n: int, name: str
) -> Iterator[Figure]:
    of_samples = [manifold(np.asarray(real.features), np.asarray(x.features)) for x, real in pairs]
    # One pair is enough for the floor: these are the slowest figures.
    floor = None if others is None else manifold(np.asarray(pairs[0][1].features), np.asarray(others.features))
    for kind in ("precision", "recall", "density", "coverage"):
        value = _mean([getattr(found, kind) for found in of_samples], share_of=0 if kind == "density" else n)
        yield _figure(f"{kind}-{name}", value, "higher", n, None if floor is None else getattr(floor, kind))


def _copies(samples: Extracted, train: Extracted, held_out: Extracted, name: str) -> Iterator[Figure]:
    """How near samples lie to training images, against how near held-out ones do."""
    mine, others = (neighbours(found, train, count=1).distances[:, 0] for found in (samples, held_out))
    found = copying(mine, others)
    usual = found.percentile / 100
    expected = estimate.interval(usual, None, "by definition")
    yield _figure(f"copies-{name}", found.near, "", len(mine), expected)
    yield _figure(f"farther-{name}", found.farther, "", len(mine), estimate.interval(0.5, None, "by definition"))


def _score(logits: Any, splits: int) -> Estimate:
    return inception_score(np.asarray(logits), splits=splits)


def _projected(onto: projection.Projection, x: Extracted, y: Extracted) -> tuple[np.ndarray, np.ndarray]:
    return projection.project(onto, np.asarray(x.features)), projection.project(onto, np.asarray(y.features))


def _split(found: Extracted, n: int, seed: int) -> Iterator[Extracted]:
    """Sets of n images each, dealt at random without overlap."""
    order = np.random.default_rng(seed).permutation(len(found.features))
    for start in range(0, len(order) - n + 1, n):
        yield rows_of(found, order[start : start + n])


def _deal(samples: Extracted, train: Extracted, n: int, seed: int) -> Iterator[tuple[Extracted, Extracted]]:
    """Pairs of sets of n, no image in two of them."""
    return zip(_split(samples, n, seed), _split(train, n, seed + 1), strict=False)


def _mean(found: Sequence[Estimate], *, paired: bool = True, share_of: int = 0) -> Estimate:
    """The mean of estimates from sets without overlap.

    If not `paired` all share one side, and its error with it. Of shares, `share_of` images each, it is within 0 and 1.
    """
    if len(found) == 1:
        return found[0]
    value = float(np.mean([each.value for each in found]))
    errors = [each.standard_error for each in found if each.standard_error is not None]
    how = f"{len(found)} sets; {found[0].how}"
    if len(errors) < len(found):
        return estimate.interval(value, None, how)
    error = float(np.sqrt(np.mean(np.square(errors)) / (len(found) if paired else 1)))
    if share_of:
        return estimate.share(value, share_of * len(found), error, how)
    signed = any(each.low is None or each.low < 0 for each in found)
    return estimate.interval(value, error, how, lowest=-np.inf if signed else 0.0)
