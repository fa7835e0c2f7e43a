"""What images are compared by: features of a network, or the pixels themselves.

A distance between sets of images means nothing without the features that it was measured in, so these carry their name
and say how images reach them. A choice is written as a word, most with something behind a colon:

    efficientnet, efficientnet:128   EfficientNet-Lite0 at that resolution, by default 64; nothing to download
    inception:FILE.pth               the network that FID is defined on, over a file of weights that the user has
    pixels                           every number of an image
    MODULE:FUNCTION                  the user's own: images uint8 [B, H, W, C] -> features [B, D], in jax.numpy
"""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.evaluation import efficientnet, inception
from ddpm_jax.evaluation.efficientnet import Weights
from ddpm_jax.records import suggest

RESOLUTIONS = range(32, 513)
"""At which EfficientNet-Lite0 can be asked: 32 is what one pixel of its last layer stands for."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Extracted:
    """What was found in a batch of images."""

    features: jax.Array | np.ndarray
    """[N, D], float32."""
    logits: jax.Array | np.ndarray | None
    """Of the network's classes [N, K], float32; None where there are no classes."""


@dataclasses.dataclass(frozen=True)
class Features:
    """A way to compare images."""

    name: str
    """As figures name it: EffNetLite0@64, Inception2015, pixels, or the user's MODULE:FUNCTION."""
    preprocessing: str
    """One line: the resize, the range, where the weights are from."""
    extract: Callable[[jax.Array], Extracted]
    """extract(images uint8 [B, H, W, 1 or 3]), to be jitted or not; ValueError for other images.

    A pytree: passed to a jitted function as an argument, its weights aren't compiled into it.
    """


def build(spec: str) -> Features:
    """The features that a word asks for, see above.

    Raises:
        FileNotFoundError: if there is no such file of weights.
        ImportError: for efficientnet, if its weights aren't installed.
        ValueError: for a word that means nothing, with what is known; for a resolution, file, module or function that
            can't be used.
    """
    name, _, rest = spec.partition(":")
    if name in FEATURES:
        return FEATURES[name](rest)
    if name and rest.isidentifier():
        return _own(spec)
    raise ValueError(f"features: there is no {spec!r}{suggest(name, FEATURES)}; {_KNOWN}")


@functools.cache
def _efficientnet(setting: str) -> Features:
    resolution = int(setting or 64) if re.fullmatch("[0-9]{0,4}", setting) else 0
    if resolution not in RESOLUTIONS:
        first, last = RESOLUTIONS[0], RESOLUTIONS[-1]
        raise ValueError(f"features efficientnet:RESOLUTION must be a whole number, {first} to {last}, got {setting!r}")
    file = efficientnet.weights_file()
    prepare = functools.partial(efficientnet.prepare, resolution=resolution)
    return Features(
        f"EffNetLite0@{resolution}",
        f"{resolution}x{resolution} by antialiased bilinear resize, half-pixel centres, no rounding; (x - 127) / 128; "
        f"{_fingerprint(file)}",
        _of_network(prepare, efficientnet.network, efficientnet.load(file)),
    )


@functools.cache
def _inception(setting: str) -> Features:
    if not setting:
        raise ValueError(
            "features inception needs a file of weights, inception:FILE.pth; pytorch-fid publishes one as "
            "pt_inception-2015-12-05-6726825d.pth"
        )
    file = Path(setting).expanduser()
    weights = inception.load(file)
    return Features(
        "Inception2015",
        "299x299 by TensorFlow 1's bilinear resize, no half-pixel centres, not antialiased; (x - 128) / 128; "
        f"logits without bias; {_fingerprint(file)}",
        _of_network(inception.prepare, inception.network, weights),
    )


def _pixels(setting: str) -> Features:
    if setting:
        raise ValueError(f"features pixels takes nothing behind a colon, got {setting!r}")
    return Features("pixels", "no resize; x / 127.5 - 1; gray stays one channel", jax.tree_util.Partial(_flat))


FEATURES: dict[str, Callable[[str], Features]] = {
    "efficientnet": _efficientnet,
    "inception": _inception,
    "pixels": _pixels,
}
"""Each builds features from what stands behind the colon, or an empty string."""
_KNOWN = "known are efficientnet[:RESOLUTION], inception:FILE.pth, pixels, and your own as MODULE:FUNCTION"


def _fingerprint(file: Path) -> str:
    """Which weights: published files carry the first eight digits of their SHA-256 in their names."""
    with file.open("rb") as opened:
        return f"weights {file.name} (SHA-256 {hashlib.file_digest(opened, 'sha256').hexdigest()[:8]})"


def _of_network(
    prepare: Callable[[jax.Array], jax.Array],
    network: Callable[[Weights, jax.Array], tuple[jax.Array, jax.Array]],
    weights: Weights,
) -> Callable[[jax.Array], Extracted]:
    """Apart from each other, so that the network is compiled once for images of any size."""
    prepare, network = jax.jit(prepare), jax.jit(network)

    def extract(weights: Weights, images: jax.Array) -> Extracted:
        images = _images(images)
        if images.shape[-1] == 1:
            images = jnp.repeat(images, 3, axis=-1)
        return Extracted(*network(weights, prepare(images)))

    return jax.tree_util.Partial(extract, weights)


def _images(images: Any) -> jax.Array:
    """Hold images to what `Features.extract` takes."""
    dtype, shape = getattr(images, "dtype", type(images).__name__), np.shape(images)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
        raise ValueError(f"images must be uint8 [B, H, W, 1 or 3], none of them 0, got {dtype} {list(shape)}")
    return jnp.asarray(images)


def _flat(images: jax.Array) -> Extracted:
    images = _images(images)
    return Extracted(images.reshape(len(images), -1).astype(jnp.float32) / 127.5 - 1, None)


def _own(spec: str) -> Features:
    """The user's function, its answers held to their shape whenever it is called or traced."""
    function = _load(spec)

    def extract(images: jax.Array) -> Extracted:
        images = _images(images)
        try:
            found = jnp.asarray(function(images))
        except Exception as error:  # whatever the user's function raises
            traced = isinstance(error, jax.errors.JAXTypeError)
            why = ": it must be written in jax.numpy, as it is compiled" if traced else ""
            raise ValueError(f"features {spec}: the function raised {_told(error)}{why}") from error
        if found.ndim != 2 or len(found) != len(images) or 0 in found.shape:
            raise ValueError(f"features {spec}: it must return [{len(images)}, D], got {list(found.shape)}")
        return Extracted(found.astype(jnp.float32), None)

    about = (inspect.getdoc(function) or "").partition("\n")[0]
    said = f"as {spec} does it" + (f": {about}" if about else "")
    return Features(spec, f"{said}; {_source(function)}", jax.tree_util.Partial(extract))


def _source(function: Callable[[jax.Array], Any]) -> str:
    """Which version of it: figures of another are other figures."""
    module = inspect.getmodule(function)
    try:
        text = inspect.getsource(function if module is None else module)
    except (OSError, TypeError):
        return "source unknown"
    return f"source (SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _load(spec: str) -> Callable[[jax.Array], Any]:
    place, _, name = spec.rpartition(":")
    if place.endswith(".py") or "/" in place:
        raise ValueError(f"features {spec}: name a module that Python can import, not a file: package.module:{name}")
    try:
        module = importlib.import_module(place)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            raise ValueError(
                f"features {spec}: there is no module {place}{suggest(place, FEATURES)}; {_KNOWN}"
            ) from None
        raise ValueError(f"features {spec}: importing {place} raised {_told(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if not key.startswith("_") and callable(value)]
        raise ValueError(f"features {spec}: {place} has no function {name}{suggest(name, known)}")
    return function


def _told(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return type(error).__name__ + (f": {first}" if first else "")
