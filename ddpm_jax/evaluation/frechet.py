"""The Frechet distance between two sets of images, each taken for a Gaussian.

    d^2 = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2})     (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6)

On Inception features this is FID; here the features are whatever the caller passes, pixels included. The estimate
grows as the number of samples falls, so distances compare only at equal n, and only the distance between two sets
of real images at that n says how small it can get: see `with_floor`.
"""

import dataclasses

import numpy as np

from ddpm_jax.evaluation import estimate
from ddpm_jax.evaluation.estimate import Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithFloor:
    """A distance and what real images would get in its place."""

    distance: float
    """Samples against training images."""
    floor: float
    """Held-out images against the same training images."""
    num_images: int
    """How many images stand on each side of both."""


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and unbiased covariance [D, D], in float64, of a set [N, ...] with D numbers a sample.

    Raises:
        ValueError: if there are fewer than two samples, or values that aren't finite.
    """
    return _moments(_centred(x, "x"))


def frechet(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """The squared distance between Gaussians with means [D] and covariances [D, D], which may be singular.

    Raises:
        ValueError: if the shapes don't fit together, or a value isn't finite.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2))
    if mean1.ndim != 1:
        raise ValueError(f"mean1 must have shape [D], got {mean1.shape}")
    d = mean1.size
    for name, value, shape in (("cov1", cov1, (d, d)), ("mean2", mean2, (d,)), ("cov2", cov2, (d, d))):
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {shape} as mean1 has {d} entries, got {value.shape}")
    for name, value in (("mean1", mean1), ("cov1", cov1), ("mean2", mean2), ("cov2", cov2)):
        _refuse_nonfinite(value, name)
    # tr (S1 S2)^{1/2} = tr (S1^{1/2} S2 S1^{1/2})^{1/2}: the singular values of S2^{1/2} S1^{1/2}. A general matrix
    # root would go complex on singular covariances, and the root of the squared product would lose half the digits.
    cross = np.linalg.svd(_root(cov2) @ _root(cov1), compute_uv=False).sum()
    squared = ((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross
    return max(float(squared), 0.0)  # rounding alone can take it below


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The squared distance between sets x [N, ...] and y [M, ...], each sample flattened to D features.

    The numbers that are held beside the samples are min(N M, D^2).

    Raises:
        ValueError: if samples of x and y differ in shape, or for what `moments` refuses.
    """
    _refuse_other_shape(x, "x", y, "y")
    return _between(_centred(x, "x"), _centred(y, "y"))


def frechet_estimate(x: np.ndarray, y: np.ndarray) -> Estimate:
    """`frechet_distance` of sets x [N, ...] and y [M, ...], and how much it would vary with other images.

    The infinitesimal jackknife (Efron 1982): the distance's derivative by the weight of each image, which one singular
    value decomposition gives for all of them. The interval is for the distance that so many images have on average,
    with its bias; it covers that in 95 % of cases where the laws differ, and in more where they are equal, as the
    error is then up to sqrt(2) too large. The bootstrap's would be sqrt(3), and its draws have a larger bias, not the
    same one.

    Raises:
        ValueError: if samples of x and y differ in shape, or for what `moments` refuses.
    """
    _refuse_other_shape(x, "x", y, "y")
    one, two = _centred(x, "x"), _centred(y, "y")
    cross, of_one, of_two = _shares(one.away, two.away)
    error = np.hypot(_error(one, two.mean, of_one), _error(two, one.mean, of_two))
    how = f"infinitesimal jackknife over {len(one.away):,} and {len(two.away):,} images"
    return estimate.interval(_squared(one, two, cross), error, how, lowest=0.0)


def frechet_estimate_to(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> Estimate:
    """The same from a set x [N, ...] to a reference's mean [D] and covariance [D, D], which are taken as they are.

    Raises:
        ValueError: if the shapes don't fit together, or a value isn't finite.
    """
    one = _centred(x, "x")
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    d = one.mean.size
    for name, value, shape in (("mean", mean, (d,)), ("covariance", covariance, (d, d))):
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {shape} as x has {d} features, got {value.shape}")
        _refuse_nonfinite(value, name)
    two = _Set(mean=mean, away=_root(covariance))
    cross, of_one, _ = _shares(one.away, two.away)
    how = f"infinitesimal jackknife over {len(one.away):,} images"
    return estimate.interval(_squared(one, two, cross), _error(one, mean, of_one), how, lowest=0.0)


def with_floor(samples: np.ndarray, train: np.ndarray, held_out: np.ndarray, *, seed: int = 0) -> WithFloor:
    """Measure samples and held-out images, each against training images, with equal n on all three sides.

    n is the size of the smallest set [N, ...]; of a larger one `subset` draws n. At 300 images the bias is most of
    the distance, so that sets of unequal size would measure their sizes.
    """
    _refuse_other_shape(train, "train", samples, "samples")
    _refuse_other_shape(train, "train", held_out, "held_out")
    n = min(len(samples), len(train), len(held_out))
    real = _centred(subset(train, n, seed), "train")
    return WithFloor(
        distance=_between(_centred(subset(samples, n, seed), "samples"), real),
        floor=_between(_centred(subset(held_out, n, seed), "held_out"), real),
        num_images=n,
    )


def subset(x: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draw n of the samples [N, ...] without replacement, kept in order; all of them if n = N."""
    if not 0 <= n <= len(x):
        raise ValueError(f"n must lie in 0 .. {len(x)}, the number of samples, got {n}")
    return np.asarray(x)[np.sort(np.random.default_rng(seed).permutation(len(x))[:n])]


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root; eigenvalues that rounding took below 0 are 0."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Set:
    """A set of N samples; its covariance is away' away."""

    mean: np.ndarray
    """[D]."""
    away: np.ndarray
    """The samples less their mean, over sqrt(N - 1) [N, D]."""


def _centred(x: np.ndarray, argument: str) -> _Set:
    x = np.asarray(x, np.float64)
    if x.ndim < 1 or len(x) < 2:
        raise ValueError(f"{argument} must hold at least 2 samples [N, ...], got shape {x.shape}")
    _refuse_nonfinite(x, argument)
    x = x.reshape(len(x), -1)
    mean = x.mean(0)
    return _Set(mean=mean, away=(x - mean) / np.sqrt(len(x) - 1))


def _moments(x: _Set) -> tuple[np.ndarray, np.ndarray]:
    return x.mean, x.away.T @ x.away


def _between(x: _Set, y: _Set) -> float:
    """From whichever matrix is smaller, the covariance's or that of inner products between samples."""
    features = x.mean.size
    if len(x.away) * len(y.away) < features**2:
        return _from_samples(x, y)
    return frechet(*_moments(x), *_moments(y))


def _from_samples(x: _Set, y: _Set) -> float:
    """The same as `frechet` of the moments, without a matrix [D, D].

    With S1 = A'A and S2 = B'B the eigenvalues of S1 S2 are the squared singular values of A B' [N, M], and zeros.
    """
    return _squared(x, y, np.linalg.svd(x.away @ y.away.T, compute_uv=False).sum())


def _shares(a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """tr (S1 S2)^{1/2} for S1 = a'a and S2 = b'b, and what every row of a [N] and of b [M] has of it.

    It is the sum of the singular values of a b' = U s V', and grows by (U s U')_ii times half the change of row i's
    weight. Of tall a and b their triangles (a = q r) give s; a r_b' V is U s in any case.
    """
    r_a, r_b = (np.asarray(np.linalg.qr(x, mode="r")) if len(x) > x.shape[1] else x for x in (a, b))
    u, s, vt = np.linalg.svd(r_a @ r_b.T, full_matrices=False)
    kept = s > 1e-14 * s[0]
    u, s, v = u[:, kept], s[kept], vt[kept].T
    return float(s.sum()), (a @ (r_b.T @ v)) ** 2 @ (1 / s), (b @ (r_a.T @ u)) ** 2 @ (1 / s)


def _squared(x: _Set, y: _Set, cross: float) -> float:
    squared = ((x.mean - y.mean) ** 2).sum() + (x.away**2).sum() + (y.away**2).sum() - 2 * cross
    return max(float(squared), 0.0)  # rounding alone can take it below


def _error(x: _Set, other_mean: np.ndarray, of_cross: np.ndarray) -> float:
    """Standard error of the distance from the images of x: that of the mean of its derivatives."""
    n = len(x.away)
    influence = 2 * np.sqrt(n - 1) * (x.away @ (x.mean - other_mean)) + n * ((x.away**2).sum(1) - of_cross)
    return float(influence.std(ddof=1) / np.sqrt(n))


def _refuse_nonfinite(x: np.ndarray, argument: str) -> None:
    if (count := int((~np.isfinite(x)).sum())) > 0:
        raise ValueError(f"{argument} must be finite, got NaN or infinity in {count} of {x.size} values")


def _refuse_other_shape(x: np.ndarray, name_x: str, y: np.ndarray, name_y: str) -> None:
    if np.shape(x)[1:] != np.shape(y)[1:]:
        raise ValueError(
            f"{name_y} must hold samples of the shape of {name_x}'s, {np.shape(x)[1:]}, got {np.shape(y)[1:]}"
        )
