"""The directions in which the reference's features vary most: few enough for small sets of images.

A Frechet distance of 1,280 features between 2,000 images is mostly what it would be between two sets of real ones; of
64 features it isn't. The directions are the reference's alone, so that all samples are seen through the same ones.
"""

import dataclasses

import numpy as np

from ddpm_jax.evaluation import statistics

DIMS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projection:
    """Onto d directions of D."""

    mean: np.ndarray
    """Of the reference [D]."""
    basis: np.ndarray
    """Orthonormal columns, of falling variance [D, d]."""
    variances: np.ndarray
    """The reference's along each [d]."""
    explained: float
    """Their share of its whole variance."""


def from_features(features: np.ndarray, dims: int = DIMS) -> Projection:
    """The principal components of the reference's features [N, D]: `dims` of them, or as many as vary at all.

    N images vary in N - 1 directions at most.

    Raises:
        ValueError: for fewer than two images, or if all are the same.
    """
    features = statistics.rows(features, "features", at_least=2).astype(np.float64)
    mean = features.mean(0)
    away = features - mean
    if len(features) > features.shape[1]:
        return from_moments(mean, away.T @ away / (len(features) - 1), dims)
    _, scales, directions = np.linalg.svd(away, full_matrices=False)
    return _of(mean, scales**2 / (len(features) - 1), directions.T, dims)


def from_moments(mean: np.ndarray, covariance: np.ndarray, dims: int = DIMS) -> Projection:
    """The same from the reference's mean [D] and covariance [D, D].

    Raises:
        ValueError: if the shapes don't fit, a value isn't finite, or nothing varies.
    """
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or mean.size == 0:
        raise ValueError(f"mean and covariance must be [D] and [D, D], got {mean.shape} and {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("mean and covariance must be finite, got NaN or infinity")
    variances, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return _of(mean, variances[::-1], vectors[:, ::-1], dims)


def project(projection: Projection, features: np.ndarray) -> np.ndarray:
    """Features [N, D] along the projection's directions [N, d], in float64, with the reference's mean at 0.

    Raises:
        ValueError: for another number of features, or values that aren't finite.
    """
    features = statistics.rows(features, "features", at_least=0)
    if features.shape[1] != projection.mean.size:
        raise ValueError(f"features must have {projection.mean.size} columns, got {features.shape[1]}")
    return (features - projection.mean) @ projection.basis


def _of(mean: np.ndarray, variances: np.ndarray, directions: np.ndarray, dims: int) -> Projection:
    """From all variances, falling, and their directions in columns."""
    if dims < 1:
        raise ValueError(f"dims must be at least 1, got {dims}")
    # What rounding leaves of a direction without variance is no direction of the images; nor is that of the mean.
    rounding = np.finfo(np.float64).eps * len(mean) * max(variances[0], (np.finfo(np.float64).eps * mean**2).max())
    dims = min(dims, int((variances > rounding).sum()))
    if dims == 0:
        raise ValueError("the reference's images are all the same: there is no direction in which they vary")
    basis = directions[:, :dims]
    largest = np.abs(basis).argmax(0)
    basis = basis * np.sign(basis[largest, np.arange(dims)])  # either sign would do: the same on every machine
    return Projection(
        mean=mean,
        basis=basis,
        variances=variances[:dims].copy(),
        explained=float(variances[:dims].sum() / np.maximum(variances, 0).sum()),
    )
