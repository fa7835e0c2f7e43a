"""NoiseNet, the network of the "DDPM from scratch" tutorial, to the letter.

    conv 7x7 -> levels down: two blocks [+ attention], then space-to-depth
             -> block, attention, block
             -> levels up: two blocks, each reading back one activation of the way down [+ attention], then enlarged
             -> block that reads back the first activation -> conv 1x1

It differs from Ho et al.'s U-Net in more than size: GroupNorm and SiLU stand after each convolution, time enters
before the first, and attention replaces its input, for nothing is added back around it.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.nets import layers
from ddpm_jax.types import Outputs, Pictures, Times, checked

GROUPS, EPSILON = 4, 1e-5
HEADS, HEAD_FEATURES = 4, 32


def _conv(x: jax.Array, features: int, size: int, dtype: jnp.dtype, name: str, **how: bool) -> jax.Array:
    init = {"kernel_init": layers.pytorch_kernel, "bias_init": layers.pytorch_bias(size * size * x.shape[-1])}
    return layers.Conv(features, size=size, dtype=dtype, name=name, **how, **init)(x)


def _dense(x: jax.Array, features: int, dtype: jnp.dtype, name: str) -> jax.Array:
    init = {"kernel_init": layers.pytorch_kernel, "bias_init": layers.pytorch_bias(x.shape[-1])}
    return nn.Dense(features, dtype=dtype, name=name, **init)(x)


def _space_to_depth(x: jax.Array) -> jax.Array:
    """Each 2 x 2 of pixels [B, H, W, C] becomes one of 4 C channels, counted (channel, row, column)."""
    B, H, W, C = x.shape
    return x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 5, 2, 4).reshape(B, H // 2, W // 2, 4 * C)


class ConvBlock(nn.Module):
    """3x3 convolution, GroupNorm(4), SiLU."""

    features: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _conv(x, self.features, 3, self.dtype, "conv")
        return nn.silu(layers.group_norm(GROUPS, epsilon=EPSILON, dtype=self.dtype, name="norm")(x))


class ResnetBlock(nn.Module):
    """Time is added to the input of two ConvBlocks; their result is added to the input without time."""

    features: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        time = _dense(nn.silu(emb), x.shape[-1], self.dtype, "time")[:, None, None, :]
        h = ConvBlock(self.features, self.dtype, name="conv1")(x + time)
        h = ConvBlock(self.features, self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = _conv(x, self.features, 1, self.dtype, "shortcut")
        return h + x


class Attention(nn.Module):
    """Normed self-attention over all positions, 4 heads of 32, in place of its input."""

    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        x = layers.group_norm(1, epsilon=EPSILON, dtype=self.dtype, name="norm")(x)
        qkv = _conv(x, 3 * HEADS * HEAD_FEATURES, 1, self.dtype, "qkv", use_bias=False)
        q, k, v = jnp.moveaxis(qkv.reshape(B, H * W, 3, HEADS, HEAD_FEATURES), 2, 0)
        return _conv(layers.attend(q, k, v).reshape(B, H, W, -1), C, 1, self.dtype, "out")


class NoiseNet(nn.Module):
    """x_t [B, H, W, channels] and t [B] in [0, 1000) -> [B, H, W, channels].

    H and W must be divisible by 2^(levels - 1). Level i attends where attn_resolutions lists its resolution, which is
    image_dim / 2^i for i > 0; for level 0 the tutorial compares init_dim, not image_dim, and so does this. `train` is
    taken for the sake of one signature for all networks: there is no dropout.

    Raises:
        ValueError: for a size that can't be halved, a width that isn't a multiple of 4, or other channels.
    """

    channels: int = 1
    image_dim: int = 32
    init_dim: int = 64
    dim_mults: Sequence[int] = (1, 2, 4, 8, 16)
    attn_resolutions: Sequence[int] = (16,)
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    @checked
    def __call__(self, x_t: Pictures, t: Times, *, train: bool = False) -> Outputs:
        last = len(self.dim_mults) - 1
        dims = [self.init_dim, *(self.init_dim * mult for mult in self.dim_mults)]
        resolutions = [self.init_dim, *(self.image_dim // 2**i for i in range(1, last + 1))]
        self._check(x_t, dims)
        emb = self._embed(t)

        def block(x: jax.Array, features: int, name: str) -> jax.Array:
            return ResnetBlock(features, self.dtype, name=name)(x, emb)

        def attend(x: jax.Array, level: int, name: str) -> jax.Array:
            attends = resolutions[level] in self.attn_resolutions
            return Attention(self.dtype, name=name)(x) if attends else x

        x = _conv(x_t, self.init_dim, 7, self.dtype, "conv_in")
        skips = [x]
        for level in range(last + 1):
            x = block(x, dims[level], f"down{level}_block0")
            skips.append(x)
            x = attend(block(x, dims[level], f"down{level}_block1"), level, f"down{level}_attention")
            skips.append(x)
            x, size = (_space_to_depth(x), 1) if level < last else (x, 3)
            x = _conv(x, dims[level + 1], size, self.dtype, f"down{level}_resize")

        x = block(x, dims[-1], "middle_block0")
        x = Attention(self.dtype, name="middle_attention")(x)
        x = block(x, dims[-1], "middle_block1")

        for level in reversed(range(last + 1)):
            for i in range(2):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), dims[level + 1], f"up{level}_block{i}")
            x = attend(x, level, f"up{level}_attention")
            x = _conv(x, dims[level], 3, self.dtype, f"up{level}_resize", up=level > 0)

        x = block(jnp.concatenate([x, skips.pop()], axis=-1), self.init_dim, "block_out")
        return _conv(x, self.channels, 1, self.dtype, "conv_out").astype(x_t.dtype)

    def _embed(self, t: jax.Array) -> jax.Array:
        """[B] -> [B, 4 init_dim]."""
        width = 4 * self.init_dim
        emb = _dense(layers.embed_time(t, self.init_dim), width, self.dtype, "time1")
        return _dense(nn.gelu(emb, approximate=False), width, self.dtype, "time2")

    def _check(self, x_t: jax.Array, dims: Sequence[int]) -> None:
        layers.check_size(x_t, len(self.dim_mults) - 1)
        if x_t.shape[-1] != self.channels:
            raise ValueError(f"x_t must have the network's {self.channels} channels, got shape {x_t.shape}")
        for width in dims:
            layers.check_channels(width, GROUPS, "init_dim and dim_mults")
