"""Mean and covariance of features, batch by batch and process by process, in float64 on the host.

Count, mean and scatter (the sum of squares about the mean) of two parts give those of the whole (Chan, Golub & LeVeque
1979), so that no more than a batch is held beside one matrix. Sums of squares about 0 would lose the digits in which
the covariance lies.
"""

import dataclasses
import io
import math
import os
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax import files

ROWS = 256
"""Of a scatter, that every process sends at a time: all of them at once would take P times its memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Of `count` images with D features each, in float64."""

    count: int
    mean: np.ndarray
    """[D]; 0 without images."""
    scatter: np.ndarray
    """Sum of (x - mean)(x - mean)' [D, D]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """What a file of reference statistics says."""

    mean: np.ndarray
    """[D]."""
    covariance: np.ndarray
    """[D, D]."""
    num_images: int | None
    """None in published files, which don't say."""
    features: str | None
    """Which features these are; None in published files."""


def empty(dim: int) -> Moments:
    """No images of `dim` features."""
    return Moments(count=0, mean=np.zeros(dim), scatter=np.zeros((dim, dim)))


def add(moments: Moments, features: np.ndarray) -> Moments:
    """Take in a batch [B, D], which may be empty.

    Raises:
        ValueError: for another number of features, or values that aren't finite.
    """
    features = rows(features, "features", at_least=0)
    if features.shape[1] != moments.mean.size:
        raise ValueError(f"features must have {moments.mean.size} columns as those before, got {features.shape[1]}")
    if len(features) == 0:
        return moments
    features = features.astype(np.float64)
    mean = features.mean(0)
    away = features - mean
    return merge(moments, Moments(count=len(features), mean=mean, scatter=away.T @ away))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of images together; order and grouping change rounding only.

    Raises:
        ValueError: if they have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"both must have the same number of features, got {a.mean.size} and {b.mean.size}")
    count = a.count + b.count
    if 0 in (a.count, b.count):
        return a if b.count == 0 else b
    apart = b.mean - a.mean
    between = np.outer(apart, apart) * (a.count * b.count / count)
    return Moments(count=count, mean=a.mean + apart * (b.count / count), scatter=a.scatter + b.scatter + between)


def covariance(moments: Moments) -> np.ndarray:
    """Unbiased [D, D].

    Raises:
        ValueError: for fewer than two images.
    """
    if moments.count < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {moments.count}")
    return moments.scatter / (moments.count - 1)


def from_processes(values: np.ndarray) -> np.ndarray:
    """What each process has under the same shape, float64 [P, ...], bit for bit; all processes must call."""
    values = np.asarray(values, np.float64)
    if jax.process_count() == 1:
        return values[None]
    # JAX would round float64 to float32 on the way.
    bits = multihost_utils.process_allgather(np.ascontiguousarray(values).reshape(-1).view(np.uint32))
    return np.ascontiguousarray(bits).view(np.float64).reshape(-1, *values.shape)


def gather(moments: Moments, across: Callable[[np.ndarray], np.ndarray] = from_processes) -> Moments:
    """The moments of all processes' images together, the same on each of them; those without images count nothing.

    Args:
        across: gives every process's array [P, ...] for this one's [...].
    """
    counts, means = across(np.array(float(moments.count))), across(moments.mean)
    total = counts.sum()
    if total == 0:
        return moments
    mean = counts @ means / total
    apart = (means - mean) * np.sqrt(counts)[:, None]
    starts = range(0, len(mean), ROWS)
    within = [across(moments.scatter[start : start + ROWS]).sum(0) for start in starts]
    return Moments(count=int(total), mean=mean, scatter=np.concatenate(within) + apart.T @ apart)


def write(path: str | os.PathLike, moments: Moments, *, features: str) -> None:
    """Write `mu` and `sigma` as published FID statistics have them, and beside them what those leave out."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        mu=moments.mean,
        sigma=covariance(moments),
        num_images=np.array(moments.count),
        features=np.array(features),
    )
    files.write(path, buffer.getvalue())


def read(path: str | os.PathLike) -> Reference:
    """Read a file of `mu` [D] and `sigma` [D, D]: this module's, or a published one for FID.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for another kind of file, or statistics that can't be some images'.
    """
    where = files.place(path)
    if not files.is_file(where):
        raise FileNotFoundError(f"there is no file {where}")
    with files.local(where) as copy:
        data = copy.read_bytes()  # np.load leaves a file open that it can't read
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            names = list(archive.files)
            found = {name: archive[name] for name in ("mu", "sigma", "num_images", "features") if name in names}
    except Exception as error:  # of numpy, zipfile, zlib: each has several kinds for what is no such file
        raise ValueError(f"{where} must be a .npz file of numbers, can't be read as one ({error})") from error
    if not {"mu", "sigma"} <= set(found):
        hint = "; these are images or features of single ones" if {"arr_0", "pool_3"} & set(names) else ""
        raise ValueError(f"{where} must hold mu and sigma, got {', '.join(sorted(names)) or 'nothing'}{hint}")
    num_images, features = found.get("num_images"), found.get("features")
    if num_images is not None and (num_images.shape != () or num_images.dtype.kind not in "iu"):
        raise ValueError(f"{where}: num_images must be a whole number, got {num_images.dtype} {num_images.shape}")
    return Reference(
        **_checked(found["mu"], found["sigma"], str(where)),
        num_images=None if num_images is None else int(num_images),
        features=None if features is None else str(features),
    )


def _checked(mu: np.ndarray, sigma: np.ndarray, where: str) -> dict[str, np.ndarray]:
    for name, value, wanted in (("mu", mu, mu.shape[:1]), ("sigma", sigma, 2 * mu.shape[:1])):
        if value.dtype.kind != "f" or value.shape != wanted or value.ndim == 0 or value.size == 0:
            raise ValueError(f"{where}: mu must be floats [D] and sigma [D, D], got {name} {value.dtype} {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{where}: {name} must be finite, got NaN or infinity")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    largest = np.abs(sigma).max()
    if np.abs(sigma - sigma.T).max() > 1e-4 * largest or np.diag(sigma).min() < -1e-6 * largest:
        raise ValueError(f"{where}: sigma must be a covariance: symmetric, with a diagonal of 0 or more")
    return {"mean": mu, "covariance": (sigma + sigma.T) / 2}


def rows(x: np.ndarray, argument: str, *, at_least: int = 1) -> np.ndarray:
    """An array [N, ...] as numbers [N, D], its dtype kept.

    Raises:
        ValueError: for fewer than `at_least` images, none of the features, no numbers, or some that aren't finite.
    """
    x = np.asarray(x)
    if x.ndim < 2 or len(x) < at_least or 0 in x.shape[1:]:
        raise ValueError(f"{argument} must hold at least {at_least} images [N, ...], got shape {x.shape}")
    if x.dtype.kind not in "fiub" and x.dtype.name != "bfloat16":
        raise ValueError(f"{argument} must hold numbers, got {x.dtype}")
    if (count := int(x.size - np.isfinite(x).sum())) > 0:
        raise ValueError(f"{argument} must be finite, got NaN or infinity in {count} of {x.size} values")
    return x.reshape(len(x), math.prod(x.shape[1:]))


def pair(x: np.ndarray, name_x: str, y: np.ndarray, name_y: str, *, at_least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of the same features, each as `rows`.

    Raises:
        ValueError: if their images differ in shape, or for what `rows` refuses.
    """
    if np.ndim(x) > 0 and np.ndim(y) > 0 and np.shape(x)[1:] != np.shape(y)[1:]:
        wanted, got = np.shape(x)[1:], np.shape(y)[1:]
        raise ValueError(f"{name_y} must hold images of the shape of {name_x}'s, {wanted}, got {got}")
    return rows(x, name_x, at_least=at_least), rows(y, name_y, at_least=at_least)
