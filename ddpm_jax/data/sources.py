"""Where images come from. A source is a function to a `Source`; `load` picks one and holds it to the config."""

from collections.abc import Callable

from ddpm_jax.config import Data
from ddpm_jax.data.arrays import array
from ddpm_jax.data.fashion import fashion_mnist
from ddpm_jax.data.folder import folder
from ddpm_jax.data.packaged import digits, mnist5k
from ddpm_jax.data.prepared import prepared
from ddpm_jax.data.record import Source
from ddpm_jax.records import pick

SOURCES: dict[str, Callable[[Data], Source]] = {
    "digits": lambda data: digits(data.split),
    "mnist5k": lambda data: mnist5k(data.split),
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
    source = pick(SOURCES, data.source, "--data.source")(data)
    found, wanted = tuple(source.images.shape[1:]), tuple(data.shape)
    if found != wanted:
        flag = " ".join(map(str, found))
        raise ValueError(f"--data.shape: {data.source} has images of shape {found}, got {wanted}; give {flag}")
    if not len(source):
        raise ValueError(f"--data.split: {data.source} has no images in split {data.split!r}")
    return source


def _unsplit(data: Data, source: Source) -> Source:
    if data.split not in ("train", "all"):
        raise ValueError(f"--data.split: {data.path} has no splits, got {data.split!r}; give another --data.path")
    return source
