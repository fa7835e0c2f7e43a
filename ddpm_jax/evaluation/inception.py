"""The Inception network of 2015 on whose features FID is defined (Heusel et al. 2017), over weights that the user has.

It is Inception-v3 (Szegedy et al. 2016) as TensorFlow published it in December 2015, with 1008 outputs, an average pool
that doesn't count the padding, and a max pool in its last block. Two projects publish its weights for PyTorch, under
the same names: pytorch-fid (pt_inception-2015-12-05-6726825d.pth) and torch-fidelity
(weights-inception-2015-12-05-6726825d.pth). torchvision's Inception is another network, and is refused.

Everything is float32 on every device; batch norms are folded into the convolutions when the weights are read.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ddpm_jax.evaluation.efficientnet import Colour, Weights, folded, last
from ddpm_jax.torch_files import torch_file
from ddpm_jax.types import checked

SIZE, WIDTH, CLASSES = 299, 2048, 1008
_HIGHEST = lax.Precision.HIGHEST  # GPUs and TPUs would otherwise round to 10 or 8 bits

Convolution = Callable[..., jax.Array]
"""convolution(x, name, width, size=(1, 1), stride=1, padding="SAME"), with the batch norm and the ReLU behind it."""


def load(path: Path) -> Weights:
    """Read the weights from a state dict of PyTorch.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it can't be read, or naming the first tensor, in the network's order, that is missing or has
            another shape.
    """
    tensors = torch_file.read_tensors(path)
    try:
        layers = {name: folded(tensors, f"{name}.conv", f"{name}.bn", shape) for name, shape in kernels().items()}
        layers["fc"] = last(tensors, "fc", (CLASSES, WIDTH))
    except ValueError as error:
        raise ValueError(f"{path}: these are not the weights of FID's Inception network: {error}") from None
    return layers


def kernels() -> dict[str, tuple[int, int, int, int]]:
    """The shape [out, in, H, W] of each convolution's kernel by its name, in the network's order."""
    found = {}

    def note(x: jax.Array, name: str, width: int, size: tuple[int, int] = (1, 1), stride: int = 1, padding="SAME"):
        found[name] = (width, x.shape[-1], *size)
        return _convolution(x, jnp.zeros((*size, x.shape[-1], width)), stride, padding)

    jax.eval_shape(lambda x: _graph(note, x), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
    return found


@checked
def prepare(images: Colour) -> Float[Array, "B 299 299 3"]:
    """Images uint8 as the network takes them: resized, whatever their shape, and (x - 128) / 128.

    The resize is TensorFlow 1's bilinear one: output pixel i lies at i * n / 299 of n, with no half-pixel centres, and
    nothing is averaged when images shrink. Other resizes give other distances (Parmar et al. 2022).
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):  # in TensorFlow's order
        x = _stretched(x, axis)
    return (x - 128) / 128


def _stretched(x: jax.Array, axis: int) -> jax.Array:
    n = x.shape[axis]
    place = np.arange(SIZE, dtype=np.float32) * np.float32(n / SIZE)
    low = place.astype(np.int32)
    share = np.expand_dims(place - low.astype(np.float32), [other for other in range(x.ndim) if other != axis])
    here, after = (jnp.take(x, i, axis, mode="clip") for i in (low, low + 1))  # the last pixel goes on beyond the edge
    return here + (after - here) * share


@checked
def network(weights: Weights, x: Float[Array, "B 299 299 3"]) -> tuple[Float[Array, "B 2048"], Float[Array, "B 1008"]]:
    """The pooled features and the logits of images as `prepare` gives them.

    The logits leave out the last layer's bias, as the Inception score's first program did (Salimans et al. 2016), and
    torch-fidelity after it: with it, scores don't compare with published ones.
    """

    def convolution(x: jax.Array, name: str, width: int, size=(1, 1), stride: int = 1, padding="SAME") -> jax.Array:
        kernel, bias = weights[name]
        return jax.nn.relu(_convolution(x, kernel, stride, padding) + bias)

    features = _graph(convolution, x).mean((1, 2))
    return features, jnp.dot(features, weights["fc"][0], precision=_HIGHEST)


def _graph(c: Convolution, x: jax.Array) -> jax.Array:
    """From images [B, 299, 299, 3] to the last block's output [B, 8, 8, 2048]."""
    x = c(x, "Conv2d_1a_3x3", 32, (3, 3), 2, "VALID")
    x = c(x, "Conv2d_2a_3x3", 32, (3, 3), 1, "VALID")
    x = _max_pool(c(x, "Conv2d_2b_3x3", 64, (3, 3)))
    x = c(x, "Conv2d_3b_1x1", 80)
    x = _max_pool(c(x, "Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"))
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _block_a(c, x, name, pooled)
    x = _block_b(c, x, "Mixed_6a")
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _block_c(c, x, name, inner)
    x = _block_d(c, x, "Mixed_7a")
    x = _block_e(c, x, "Mixed_7b", _average_pool)
    return _block_e(c, x, "Mixed_7c", lambda x: _max_pool(x, 1, "SAME"))


def _block_a(c: Convolution, x: jax.Array, name: str, pooled: int) -> jax.Array:
    one = c(x, f"{name}.branch1x1", 64)
    five = c(c(x, f"{name}.branch5x5_1", 48), f"{name}.branch5x5_2", 64, (5, 5))
    three = c(c(x, f"{name}.branch3x3dbl_1", 64), f"{name}.branch3x3dbl_2", 96, (3, 3))
    three = c(three, f"{name}.branch3x3dbl_3", 96, (3, 3))
    return _beside(one, five, three, c(_average_pool(x), f"{name}.branch_pool", pooled))


def _block_b(c: Convolution, x: jax.Array, name: str) -> jax.Array:
    three = c(x, f"{name}.branch3x3", 384, (3, 3), 2, "VALID")
    twice = c(c(x, f"{name}.branch3x3dbl_1", 64), f"{name}.branch3x3dbl_2", 96, (3, 3))
    twice = c(twice, f"{name}.branch3x3dbl_3", 96, (3, 3), 2, "VALID")
    return _beside(three, twice, _max_pool(x))


def _block_c(c: Convolution, x: jax.Array, name: str, inner: int) -> jax.Array:
    one = c(x, f"{name}.branch1x1", 192)
    seven = c(c(x, f"{name}.branch7x7_1", inner), f"{name}.branch7x7_2", inner, (1, 7))
    seven = c(seven, f"{name}.branch7x7_3", 192, (7, 1))
    twice = c(c(x, f"{name}.branch7x7dbl_1", inner), f"{name}.branch7x7dbl_2", inner, (7, 1))
    twice = c(c(twice, f"{name}.branch7x7dbl_3", inner, (1, 7)), f"{name}.branch7x7dbl_4", inner, (7, 1))
    twice = c(twice, f"{name}.branch7x7dbl_5", 192, (1, 7))
    return _beside(one, seven, twice, c(_average_pool(x), f"{name}.branch_pool", 192))


def _block_d(c: Convolution, x: jax.Array, name: str) -> jax.Array:
    three = c(c(x, f"{name}.branch3x3_1", 192), f"{name}.branch3x3_2", 320, (3, 3), 2, "VALID")
    seven = c(c(x, f"{name}.branch7x7x3_1", 192), f"{name}.branch7x7x3_2", 192, (1, 7))
    seven = c(c(seven, f"{name}.branch7x7x3_3", 192, (7, 1)), f"{name}.branch7x7x3_4", 192, (3, 3), 2, "VALID")
    return _beside(three, seven, _max_pool(x))


def _block_e(c: Convolution, x: jax.Array, name: str, pool: Callable[[jax.Array], jax.Array]) -> jax.Array:
    def crossed(x: jax.Array, branch: str) -> jax.Array:
        return _beside(c(x, f"{name}.{branch}a", 384, (1, 3)), c(x, f"{name}.{branch}b", 384, (3, 1)))

    one = c(x, f"{name}.branch1x1", 320)
    three = crossed(c(x, f"{name}.branch3x3_1", 384), "branch3x3_2")
    twice = c(c(x, f"{name}.branch3x3dbl_1", 448), f"{name}.branch3x3dbl_2", 384, (3, 3))
    return _beside(one, three, crossed(twice, "branch3x3dbl_3"), c(pool(x), f"{name}.branch_pool", 192))


def _beside(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


def _convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    layout, strides = ("NHWC", "HWIO", "NHWC"), (stride, stride)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout, precision=_HIGHEST)


def _max_pool(x: jax.Array, stride: int = 2, padding: str = "VALID") -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average_pool(x: jax.Array) -> jax.Array:
    """Over 3 x 3 pixels, or those of them that lie in the image."""

    def sums(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return sums(x) / sums(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
