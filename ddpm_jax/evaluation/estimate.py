"""A figure and how sure it is: standard errors and 95 % intervals, by what suits each figure.

An interval is for what the same measurement gives on average, with as many other images of the same two laws. It
doesn't take away what a figure owes to their number: a Frechet distance of 1,000 images is too large, interval and all.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval; None for what the images at hand don't tell."""

    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    how: str
    """Where the error comes from, such as "bootstrap over images, 100 draws"."""


def interval(
    value: float,
    standard_error: float | None,
    how: str,
    *,
    degrees: float = np.inf,
    lowest: float = -np.inf,
) -> Estimate:
    """The symmetric interval by Student's t, cut at the lowest value that the figure can have.

    Args:
        standard_error: None if it isn't known.
        degrees: of freedom in the standard error, such as the number of groups less one.
    """
    if standard_error is None:
        return Estimate(value=float(value), standard_error=None, low=None, high=None, how=how)
    half = quantile(degrees) * standard_error
    return Estimate(
        value=float(value),
        standard_error=float(standard_error),
        low=float(max(value - half, min(lowest, value))),
        high=float(value + half),
        how=how,
    )


def quantile(degrees: float = np.inf) -> float:
    """How many standard errors lie on each side of a 95 % interval."""
    return float(stdtrit(degrees if np.isfinite(degrees) else 1e9, (1 + CONFIDENCE) / 2))


def mean(values: np.ndarray, how: str) -> Estimate:
    """The mean of independent values [N], and its standard error if there are two or more.

    Raises:
        ValueError: for none, or values that aren't finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"values must be finite numbers [N], at least one, got shape {values.shape}")
    error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else None
    return interval(values.mean(), error, how, degrees=values.size - 1)


def share(value: float, num: int, standard_error: float | None, how: str, *, degrees: float = np.inf) -> Estimate:
    """A share of `num` images, by Wilson's interval (1927): within 0 and 1, and of some width even at 0 and at 1.

    Of n independent images it is that of a binomial. Where more than those vary (the other set, a threshold), n is cut
    to as many as would have this standard error.
    """
    if standard_error is None:
        return interval(value, None, how)
    spread = value * (1 - value)
    effective = min(num, spread / standard_error**2) if spread > 0 and standard_error > 0 else num
    z2 = quantile(degrees) ** 2 / effective
    centre, half = (value + z2 / 2) / (1 + z2), np.sqrt(z2 * spread + z2**2 / 4) / (1 + z2)
    low, high = max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value))
    return Estimate(value=float(value), standard_error=float(standard_error), low=float(low), high=float(high), how=how)


def redrawn(sizes: Sequence[int], draws: int, seed: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Indices of `draws` bootstrap samples, each an array [n] for every n of `sizes`, with replacement.

    They depend on sizes and seed only: two methods that are measured with the same ones differ in pairs.
    """
    for i in range(draws):
        rng = np.random.default_rng([seed, i])
        yield tuple(rng.integers(n, size=n) for n in sizes)


def bootstrap(
    statistic: Callable[..., float], sizes: Sequence[int], *, draws: int = 100, seed: int = 0
) -> tuple[float, float]:
    """The figure of all images, and its standard error over draws of as many with replacement.

    Only the spread of the draws is used. Their mean is not where the figure is: what grows with noise, as distances do,
    grows with the bootstrap's own. Nor is it of use for distances to neighbours: a drawn image is its own neighbour.

    Args:
        statistic: of one array of indices [n] for every n of `sizes`.
        draws: at least 2.

    Raises:
        ValueError: for fewer draws, or an empty set.
    """
    if draws < 2:
        raise ValueError(f"draws must be at least 2 for a standard error, got {draws}")
    if min(sizes) < 1:
        raise ValueError(f"sizes must be at least 1, got {list(sizes)}")
    value = statistic(*(np.arange(n) for n in sizes))
    found = [statistic(*indices) for indices in redrawn(sizes, draws, seed)]
    return float(value), float(np.std(found, ddof=1))


def groups(n: int, number: int, seed: int) -> np.ndarray:
    """Deal n images into groups of almost equal size at random: the number of each one's group [n]."""
    return np.random.default_rng(seed).permutation(n) % number


def jackknife(left_out: np.ndarray) -> float:
    """Standard error of a figure from what it is without each of G groups [G]; G - 1 degrees of freedom.

    The delete-a-group jackknife: sqrt((G - 1)/G sum (f_g - mean f)^2) (Shao & Wu 1989).
    """
    left_out = np.asarray(left_out, np.float64)
    if left_out.ndim != 1 or left_out.size < 2:
        raise ValueError(f"left_out must hold a figure for each of at least 2 groups, got shape {left_out.shape}")
    return float(np.sqrt((left_out.size - 1) * left_out.var()))
