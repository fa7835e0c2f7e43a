"""The Frechet distance between two sets of images, each taken for a Gaussian.

    d^2 = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2})     (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6)

On Inception features this is FID; here the features are whatever the caller passes, pixels included. The estimate
grows as the number of samples falls, so distances compare only at equal n, and only the distance between two sets
of real images at that n says how small it can get: see `with_floor`.
"""

import dataclasses

import numpy as np


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
    cross = np.linalg.svd(x.away @ y.away.T, compute_uv=False).sum()
    squared = ((x.mean - y.mean) ** 2).sum() + (x.away**2).sum() + (y.away**2).sum() - 2 * cross
    return max(float(squared), 0.0)  # rounding alone can take it below


def _refuse_nonfinite(x: np.ndarray, argument: str) -> None:
    if (count := int((~np.isfinite(x)).sum())) > 0:
        raise ValueError(f"{argument} must be finite, got NaN or infinity in {count} of {x.size} values")


def _refuse_other_shape(x: np.ndarray, name_x: str, y: np.ndarray, name_y: str) -> None:
    if np.shape(x)[1:] != np.shape(y)[1:]:
        raise ValueError(
            f"{name_y} must hold samples of the shape of {name_x}'s, {np.shape(x)[1:]}, got {np.shape(y)[1:]}"
        )
