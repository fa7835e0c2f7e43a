"""The layers that every network here is built from: convolution, norm, attention, time embedding.

All take [B, H, W, C]. `dtype` is what a layer computes in; parameters are float32, and so are norms and softmax
whatever the dtype.
"""

import functools
import os
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ddpm_jax.records import pick

# DDPM's own: uniform, scaled by the mean of fan-in and fan-out (Ho et al. 2020, code).
fan_average = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros = nn.initializers.zeros_init()
# PyTorch's own for kernels, kaiming_uniform(a=sqrt(5)): uniform within 1 / sqrt(fan-in).
pytorch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

_CHUNK = 2**17  # elements of the input that one product of the weight gradient takes; measured best of 2^15 .. 2^20


def pytorch_bias(fan_in: int) -> Callable:
    """PyTorch's own for biases: uniform within 1 / sqrt(fan-in) too."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -1.0, 1.0) * fan_in**-0.5


def _conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _by_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A stride-1 convolution as the product of the input's shifted copies with the kernel, a few images at a time.

    Only its transpose is meant to run: the gradient of the kernel. A chunk takes every n-th image, so that a batch that
    is spread over devices stays spread.
    """
    B, H, W, C = x.shape
    size, features = kernel.shape[0], kernel.shape[-1]
    images = max(1, min(B, _CHUNK // (H * W * C)))
    while B % images:
        images -= 1
    pad = size // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    chunks = padded.reshape(images, B // images, H + 2 * pad, W + 2 * pad, C).swapaxes(0, 1)
    rows = kernel.reshape(-1, features).astype(
        jnp.promote_types(kernel.dtype, jnp.float32)
    )  # so that chunks add up in float32

    # Without the checkpoint, the shifted copies of the whole batch would be kept for the backward pass.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def product(part: jax.Array, rows: jax.Array) -> jax.Array:
        channels_first = jnp.transpose(part, (3, 0, 1, 2))
        shifts = jnp.stack([channels_first[:, :, i : i + H, j : j + W] for i in range(size) for j in range(size)])
        # The barrier keeps XLA from gathering inside the product, which is slow.
        left = lax.optimization_barrier(shifts.reshape(size * size * C, -1))
        return lax.dot_general(left, rows.astype(x.dtype), (((0,), (0,)), ((), ())))

    y = lax.map(lambda part: product(part, rows), chunks)
    return y.reshape(B // images, images, H, W, features).swapaxes(0, 1).reshape(B, H, W, features)


@jax.custom_jvp
def _same_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Stride 1, odd square kernel, output as large as the input."""
    return _conv(x, kernel, (1, 1), "SAME")


def _same_conv_jvp(primals, tangents) -> tuple[jax.Array, jax.Array]:
    """Linear in x and in kernel; what is written for the kernel decides only how its gradient is worked out."""
    x, kernel = primals
    x_dot, kernel_dot = tangents
    y = _conv(x, kernel, (1, 1), "SAME")  # by its own name, which net.remat's policy knows
    y_dot = jnp.zeros_like(y)
    if not isinstance(x_dot, SymbolicZero):
        y_dot = _same_conv(x_dot, kernel)
    if not isinstance(kernel_dot, SymbolicZero):
        # Chosen where the code is lowered, so a step compiled ahead of time for a TPU takes XLA's.
        by_xla = functools.partial(_conv, strides=(1, 1), padding="SAME")
        y_dot = y_dot + lax.platform_dependent(x, kernel_dot, cpu=_by_products, default=by_xla)
    return y, y_dot


_same_conv.defjvp(_same_conv_jvp, symbolic_zeros=True)


# How the kernel's gradient is worked out on CPU. Which is faster depends on the processor: "products" won on one with
# AMX; on an AMD EPYC it loses, and takes twice as long to compile. `benchmarks/kernel_gradient.py` measures it.
SAME_CONVOLUTIONS = {
    "xla": functools.partial(_conv, strides=(1, 1), padding="SAME"),
    "products": _same_conv,
}


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1, pad_before: int = 0) -> jax.Array:
    """Convolve x [B, H, W, C] with kernel [k, k, C, D], k odd. The one convolution of all networks.

    Stride 1 keeps H and W. Stride 2 halves them and pads after the last row and column only, as TensorFlow's "SAME"
    does for even sizes and as Ho et al.'s checkpoints were trained. With `pad_before` 1 a 3x3 kernel sees the padding
    before the first row and column instead, which for even sizes is PyTorch's padding=1.
    """
    size = kernel.shape[0]
    if stride > 1:
        return _conv(x, kernel, (stride, stride), [(pad_before, size - stride - pad_before)] * 2)
    if size == 1:
        return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0])
    chosen = os.environ.get("DDPM_JAX_KERNEL_GRADIENT", "xla")
    return pick(SAME_CONVOLUTIONS, chosen, "DDPM_JAX_KERNEL_GRADIENT")(x, kernel)


def _in_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Even and odd rows, even and odd columns: four convolutions with 2 x 2 kernels, laid into each other."""
    B, H, W, _ = x.shape

    def halves(kernel: jax.Array, axis: int) -> list[tuple[jax.Array, tuple[int, int]]]:
        """What an even and what an odd place sees of x: the weights, and the padding that puts them there."""
        first, middle, last = jnp.split(kernel, 3, axis)
        even, odd = (first, middle + last), (first + middle, last)
        return [(jnp.concatenate(even, axis), (1, 0)), (jnp.concatenate(odd, axis), (0, 1))]

    def columns(kernel: jax.Array, rows: tuple[int, int]) -> jax.Array:
        parts = [_conv(x, part.astype(x.dtype), (1, 1), (rows, pad)) for part, pad in halves(kernel, 1)]
        return jnp.concatenate(parts, axis=-1)

    return jnp.stack([columns(part, pad) for part, pad in halves(kernel, 0)], axis=2).reshape(B, 2 * H, 2 * W, -1)


def _spread_out(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x with a 0 after every pixel, convolved with a 4 x 4 kernel: XLA for TPUs leaves out what meets a 0.

    XLA for CPUs works those products out, and takes 20 to 50 times as long for the kernel's gradient; on GPUs it wasn't
    tried.
    """
    wide = jnp.pad(kernel, ((1, 1), (1, 1), (0, 0), (0, 0)))
    rows = wide[:4] + wide[1:]
    summed = (rows[:, :4] + rows[:, 1:]).astype(x.dtype)
    numbers, padding = ("NHWC", "HWIO", "NHWC"), ((2, 2), (2, 2))
    return lax.conv_general_dilated(x, summed, (1, 1), padding, lhs_dilation=(2, 2), dimension_numbers=numbers)


def convolve_enlarged(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """convolve(enlarge(x), kernel) of x [B, H, W, C] and kernel [3, 3, C, D]: [B, 2H, 2W, D], in x's dtype.

    The nine pixels that one sees are copies of four. Their weights are added up beforehand, in float32 or wider, and no
    enlarged x is made: 4 products for 9.

    Raises:
        ValueError: for a kernel of another size.
    """
    if kernel.shape[:2] != (3, 3):
        raise ValueError(f"kernel must be [3, 3, C, D], got shape {kernel.shape}")
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    return lax.platform_dependent(x, kernel, tpu=_spread_out, default=_in_phases)


class Conv(nn.Module):
    """Convolution with bias, if `up` of the enlarged input; a kernel of size 1 is a dense layer over channels."""

    features: int
    size: int = 3
    stride: int = 1
    up: bool = False
    pad_before: int = 0
    kernel_init: Callable = fan_average
    bias_init: Callable = zeros
    use_bias: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        x = x.astype(self.dtype)
        if self.up:
            y = convolve_enlarged(x, kernel)
        else:
            y = convolve(x, kernel.astype(self.dtype), stride=self.stride, pad_before=self.pad_before)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,)).astype(self.dtype)
        return y


def dense(features: int, *, dtype: jnp.dtype, name: str) -> nn.Dense:
    """x [..., C] -> [..., features], initialised as DDPM does."""
    return nn.Dense(features, kernel_init=fan_average, dtype=dtype, name=name)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) of x [B, ..., C]: statistics in float32 or wider, result in dtype.

    All sums are over positions first, [B, C], and over a group's channels after: no array is reshaped to groups. Scale,
    mean and deviation are joined into one factor and one shift a channel before they meet x, so that the backward pass
    reads x twice rather than five times.
    """

    groups: int
    epsilon: float
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, C = x.shape[0], x.shape[-1]
        positions = tuple(range(1, x.ndim - 1))
        scale = self.param("scale", nn.initializers.ones_init(), (C,))
        bias = self.param("bias", zeros, (C,))

        def mean(values: jax.Array) -> jax.Array:
            """Over a group, for each of its channels: [B, C]."""
            of_group = values.mean(positions).reshape(B, self.groups, -1).mean(axis=-1)
            return jnp.repeat(of_group, C // self.groups, axis=-1)

        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centre = mean(wide)
        # Of any constant a, E[(x - a)^2] - (E[x] - a)^2 is the variance, and so are its derivatives of every order. The
        # centre itself, held constant, rounds least; with 0, x is read once for both means, and what comes in bfloat16
        # has lost more digits already than are lost here.
        a = lax.stop_gradient(centre) if x.dtype == wide.dtype else jnp.zeros_like(centre)
        variance = mean(jnp.square(wide - jnp.expand_dims(a, positions))) - jnp.square(centre - a)
        factor = lax.rsqrt(jnp.maximum(variance, 0) + self.epsilon) * scale
        shift = bias - centre * factor
        return (wide * jnp.expand_dims(factor, positions) + jnp.expand_dims(shift, positions)).astype(self.dtype)


def group_norm(groups: int, *, epsilon: float, dtype: jnp.dtype, name: str) -> nn.Module:
    """Group normalisation: statistics in float32, result in dtype."""
    return GroupNorm(groups, epsilon=epsilon, dtype=dtype, name=name)


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention between all positions: q, k, v [B, N, heads, D] -> the same; softmax in float32."""
    scores = jnp.einsum("bnhd,bmhd->bhnm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def embed_time(t: jax.Array, features: int) -> jax.Array:
    """Sine and cosine of t [B] at features/2 frequencies from 1 down to 1/10,000: [B, features].

    Sines first, then cosines, as in Ho et al.'s code; features must be even and at least 4.
    """
    half = features // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) / (half - 1) * jnp.arange(half))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def embed_time_cosines_first(t: jax.Array, features: int) -> jax.Array:
    """Cosine, then sine, of t [B] at features/2 frequencies from 1 down to just above 1/10,000: [B, features].

    As in improved-diffusion, whose lowest frequency stands one place short of 1/10,000; features must be even.
    """
    half = features // 2
    angles = t.astype(jnp.float32)[:, None] * jnp.exp(-jnp.log(10_000.0) / half * jnp.arange(half))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def enlarge(x: jax.Array) -> jax.Array:
    """Each pixel of x [B, H, W, C] becomes 2 x 2: [B, 2H, 2W, C]."""
    B, H, W, C = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)


def halve(x: jax.Array) -> jax.Array:
    """The mean of each 2 x 2 pixels of x [B, H, W, C]: [B, H/2, W/2, C]."""
    B, H, W, C = x.shape
    return x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))


RESIZE = {"keep": lambda x: x, "down": halve, "up": enlarge}
"""How a block's input is resized on its way in."""


def check_size(x: jax.Array, halvings: int) -> None:
    """Refuse images that can't be halved so often.

    Raises:
        ValueError: with the size got and the factor that it must be divisible by.
    """
    factor = 2**halvings
    if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"x_t must be [B, H, W, C] with H and W divisible by {factor}, got shape {x.shape}")


def check_channels(channels: int, groups: int, argument: str) -> None:
    """Refuse a width that group normalisation can't divide.

    Raises:
        ValueError: with the width got and the number that must divide it.
    """
    if channels % groups:
        raise ValueError(f"{argument}: {channels} channels can't be normalised in {groups} groups; use a multiple")
