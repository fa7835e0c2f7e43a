"""The kernel distance between two sets of features (Binkowski et al. 2018): on Inception features this is KID.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(x, y) = (x.y / D + 1)^3

The estimate leaves out each image's kernel with itself. It is unbiased whatever the number of images, so that 0 is the
figure of two equal laws, and half of such figures are below 0.
"""

import dataclasses

import numpy as np

from ddpm_jax.evaluation import estimate, statistics
from ddpm_jax.evaluation.estimate import Estimate

ROWS, COLUMNS = 1024, 8192
"""Kernels that are held at a time."""


def kid(x: np.ndarray, y: np.ndarray) -> Estimate:
    """Of all images, x [N, D] against y [M, D], with the standard error of a two-sample U-statistic.

    Its variance is that of Hoeffding's decomposition: of what each image adds by itself (first order), and of what
    pairs add beyond that, which alone is left where the two laws are equal; both are estimated from the kernels' sums
    over rows. Takes (N + M)^2 D multiplications, in float64: above some 20,000 images `kid_of_subsets` is for you.

    Raises:
        ValueError: for fewer than two images in a set, other shapes, or values that aren't finite.
    """
    x, y = statistics.pair(x, "x", y, "y", at_least=2)
    value, variance = _mmd2(x, y)
    error = None if variance is None else np.sqrt(variance)
    return estimate.interval(value, error, f"U-statistic of {len(x):,} and {len(y):,} images")


def kid_of_subsets(x: np.ndarray, y: np.ndarray, *, size: int = 1000, seed: int = 0) -> Estimate:
    """The mean over subsets of `size` images, as published, and its error over these, by Student's t.

    The subsets are dealt without overlap, min(N, M) // size of them: their figures are independent, so that their
    spread is an error's. Published ones are drawn anew each time; their mean is the same figure, their deviation isn't
    its error.

    Raises:
        ValueError: for fewer than two subsets, or for what `kid` refuses.
    """
    x, y = statistics.pair(x, "x", y, "y", at_least=2)
    number = min(len(x), len(y)) // size if size >= 2 else 0
    if number < 2:
        sets = f"sets of {len(x)} and {len(y)}"
        raise ValueError(f"size must be at least 2, and leave at least 2 subsets of {sets} images, got {size}")
    rng = np.random.default_rng(seed)
    deal = [np.split(rng.permutation(len(each))[: number * size], number) for each in (x, y)]
    found = [_mmd2(x[i], y[j])[0] for i, j in zip(*deal, strict=True)]
    return estimate.mean(np.array(found), f"{number} subsets of {size:,}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kernels:
    """Sums over the kernels of two sets, or of the pairs within one."""

    rows: np.ndarray
    """Mean of each row [N]."""
    columns: np.ndarray
    """[M]."""
    squares: float
    """Mean square."""


def _kernels(x: np.ndarray, y: np.ndarray, *, within: bool) -> _Kernels:
    """`within`: y is x, and no image is paired with itself."""
    rows, columns, squares = np.zeros(len(x)), np.zeros(len(y)), 0.0
    for i in range(0, len(x), ROWS):
        left = x[i : i + ROWS].astype(np.float64) / x.shape[1]
        for j in range(0, len(y), COLUMNS):
            kernel = left @ y[j : j + COLUMNS].astype(np.float64).T
            kernel += 1
            kernel *= kernel * kernel
            if within:
                own = np.arange(i, i + len(kernel))
                own = own[(own >= j) & (own < j + kernel.shape[1])]
                kernel[own - i, own - j] = 0
            rows[i : i + ROWS] += kernel.sum(1)
            columns[j : j + COLUMNS] += kernel.sum(0)
            squares += float(np.vdot(kernel, kernel))
    n, m = len(x), len(y) - within
    return _Kernels(rows=rows / m, columns=columns / (n - within), squares=squares / (n * m))


def _mmd2(x: np.ndarray, y: np.ndarray) -> tuple[float, float | None]:
    """The unbiased estimate and its variance, which takes four images a side."""
    n, m = len(x), len(y)
    xx, yy, xy = _kernels(x, x, within=True), _kernels(y, y, within=True), _kernels(x, y, within=False)
    value = float(xx.rows.mean() + yy.rows.mean() - 2 * xy.rows.mean())
    if min(n, m) < 4:
        return value, None
    # A row's mean is of few kernels: its square is too large by their variance over their number.
    of_xx = _pairs(xx, _square(xx.rows, xx.squares, n - 1), _square(xx.rows, xx.squares, n - 1))
    of_yy = _pairs(yy, _square(yy.rows, yy.squares, m - 1), _square(yy.rows, yy.squares, m - 1))
    of_xy = _pairs(xy, _square(xy.rows, xy.squares, m), _square(xy.columns, xy.squares, n))
    alone_x = (2 * (xx.rows - xy.rows)).var(ddof=1) - 4 * (of_xx / (n - 1) + of_xy / m)
    alone_y = (2 * (yy.rows - xy.columns)).var(ddof=1) - 4 * (of_yy / (m - 1) + of_xy / n)
    first = max(alone_x, 0.0) / n + max(alone_y, 0.0) / m
    second = 2 * of_xx / (n * (n - 1)) + 2 * of_yy / (m * (m - 1)) + 4 * of_xy / (n * m)
    return value, float(first + second)


def _square(means: np.ndarray, squares: float, num: int) -> float:
    """E (E[k | one image])^2 from the means of `num` kernels each and the kernels' mean square."""
    return float((num * (means**2).mean() - squares) / (num - 1))


def _pairs(kernels: _Kernels, rows: float, columns: float) -> float:
    """Variance of what a pair adds beyond what each of the two adds by itself."""
    return max(kernels.squares - rows - columns + float(kernels.rows.mean()) ** 2, 0.0)
