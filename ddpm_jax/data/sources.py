"""Where images come from. A source is a function to a `Source`; `load` picks one and holds it to the config."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ddpm_jax.config import Data
from ddpm_jax.data.arrays import array
from ddpm_jax.data.fashion import fashion_mnist
from ddpm_jax.data.folder import folder
from ddpm_jax.data.packaged import digits, mnist5k, photos
from ddpm_jax.data.prepared import prepared
from ddpm_jax.data.record import Source
from ddpm_jax.records import pick

SOURCES: dict[str, Callable[[Data], Source]] = {
    "digits": lambda data: digits(data.split),
    "mnist5k": lambda data: mnist5k(data.split),
    "photos": lambda data: photos(data.split, data.shape),
    "fashion_mnist": lambda data: fashion_mnist(data.split, data.path),
    "tfds": lambda data: prepared(data.name, data.shape, data.split, data.path, stream=data.stream),
    "folder": lambda data: folder(data.path, data.shape, data.split),
    "array": lambda data: _unsplit(data, array(data.path)),
}
"""Every source by the name that --data.source takes."""


def load(data: Data) -> Source:
    """The configured images, uint8 [N, H, W, C] with N > 0 and (H, W, C) as the config says.

    Raises:
        FileNotFoundError: if what should be read isn't there, saying where it was looked for.
        ImportError: if the source needs a package that isn't installed.
        ValueError: for a name, split or shape that doesn't fit, or a set without images.
    """
    if data.shrink < 1:
        raise ValueError(f"--data.shrink must be at least 1, got {data.shrink}")
    height, width, channels = data.shape
    unshrunk = dataclasses.replace(data, shape=(data.shrink * height, data.shrink * width, channels))
    source = shrunk(pick(SOURCES, data.source, "--data.source")(unshrunk), data.shrink)
    found, wanted = tuple(source.images.shape[1:]), tuple(data.shape)
    if found != wanted:
        flag = " ".join(map(str, found))
        raise ValueError(f"--data.shape: {data.source} has images of shape {found}, got {wanted}; give {flag}")
    if not len(source):
        raise ValueError(f"--data.split: {data.source} has no images in split {data.split!r}")
    return source


def shrunk(source: Source, factor: int) -> Source:
    """The images with squares of factor x factor pixels averaged into one, in memory; the source itself for 1.

    Raises:
        ValueError: for a factor that doesn't divide the images' sides.
    """
    if factor == 1:
        return source
    count, height, width, channels = source.images.shape
    if height % factor or width % factor:
        raise ValueError(f"--data.shrink must divide the sides of the images, {height}x{width}, got {factor}")
    images = np.asarray(source.images[np.arange(count)], np.float32)
    means = images.reshape(count, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))
    return dataclasses.replace(source, images=np.rint(means).astype(np.uint8))


def _unsplit(data: Data, source: Source) -> Source:
    if data.split not in ("train", "all"):
        raise ValueError(f"--data.split: {data.path} has no splits, got {data.split!r}; give another --data.path")
    return source
