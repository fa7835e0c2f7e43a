"""The U-Net of improved-diffusion (Nichol & Dhariwal 2021) and guided-diffusion (Dhariwal & Nichol 2021), "ADM".

    conv -> levels down, each num_res_blocks x (ResBlock [+ attention]), halved between levels
         -> ResBlock, attention, ResBlock
         -> levels up, each num_res_blocks + 1, every block reading back one activation of the way down
         -> norm, SiLU, conv

The plan is Ho et al.'s; what lies in it differs enough to stand by itself: epsilon 1e-5, cosines before sines, padding
on the other side where a convolution halves, one projection for q, k and v, and PyTorch's initialisation. The defaults
are the CIFAR-10 network with a learned variance, 52,546,438 parameters.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.nets import layers
from ddpm_jax.nets.remat import rematted
from ddpm_jax.types import Labels, Outputs, Pictures, Times, checked

EPSILON = 1e-5
FLOAT32 = jnp.dtype("float32")


def _conv(x: jax.Array, features: int, dtype: jnp.dtype, name: str, *, size: int = 3, how: str = "keep") -> jax.Array:
    init = {"kernel_init": layers.pytorch_kernel, "bias_init": layers.pytorch_bias(size * size * x.shape[-1])}
    steps = {"keep": {}, "down": {"stride": 2, "pad_before": 1}, "up": {"up": True}}[how]
    return layers.Conv(features, size=size, dtype=dtype, name=name, **steps, **init)(x)


def _conv_from_zero(x: jax.Array, features: int, dtype: jnp.dtype, name: str, *, size: int = 3) -> jax.Array:
    return layers.Conv(features, size=size, kernel_init=layers.zeros, dtype=dtype, name=name)(x)


def _dense(x: jax.Array, features: int, dtype: jnp.dtype, name: str) -> jax.Array:
    init = {"kernel_init": layers.pytorch_kernel, "bias_init": layers.pytorch_bias(x.shape[-1])}
    return nn.Dense(features, dtype=dtype, name=name, **init)(x)


def _norm(x: jax.Array, groups: int, dtype: jnp.dtype, name: str) -> jax.Array:
    return layers.group_norm(groups, epsilon=EPSILON, dtype=dtype, name=name)(x)


class ResBlock(nn.Module):
    """GroupNorm, SiLU, conv, twice; time and class enter between: added, or as scale and shift of the second norm.

    `resize` is applied to both branches, after the first SiLU and before the first convolution.
    """

    features: int
    dropout: float
    scale_shift_norm: bool
    groups: int
    resize: str = "keep"
    dtype: jnp.dtype = FLOAT32

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
        resize, up = layers.RESIZE[self.resize], self.resize == "up"
        h = nn.silu(_norm(x, self.groups, self.dtype, "norm1"))
        h = _conv(h if up else resize(h), self.features, self.dtype, "conv1", how="up" if up else "keep")
        x = resize(x)
        width = 2 * self.features if self.scale_shift_norm else self.features
        emb = _dense(nn.silu(emb), width, self.dtype, "emb")[:, None, None, :]
        if self.scale_shift_norm:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = _norm(h, self.groups, self.dtype, "norm2") * (1 + scale) + shift
        else:
            h = _norm(h + emb, self.groups, self.dtype, "norm2")
        h = nn.Dropout(self.dropout)(nn.silu(h), deterministic=not train)
        h = _conv_from_zero(h, self.features, self.dtype, "conv2")
        if x.shape[-1] != self.features:
            x = _conv(x, self.features, self.dtype, "shortcut", size=1)
        return x + h


class AttentionBlock(nn.Module):
    """Norm, self-attention over all positions, added to the input.

    One projection makes 3 C channels. With `qkv_by_head` they stand by head and then by q, k, v, as in improved-
    diffusion; without, by q, k, v and then by head, as in guided-diffusion's "new order".
    """

    heads: int
    qkv_by_head: bool
    groups: int
    dtype: jnp.dtype = FLOAT32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        qkv = _conv(_norm(x, self.groups, self.dtype, "norm"), 3 * C, self.dtype, "qkv", size=1)
        order, axis = ((self.heads, 3), 3) if self.qkv_by_head else ((3, self.heads), 2)
        q, k, v = jnp.moveaxis(qkv.reshape(B, H * W, *order, C // self.heads), axis, 0)
        # They scale q and k by the fourth root each, for float16's sake; float32 and bfloat16 have the range.
        h = layers.attend(q, k, v).reshape(B, H, W, C)
        return x + _conv_from_zero(h, C, self.dtype, "out", size=1)


class ADM(nn.Module):
    """x_t [B, H, W, C] and t [B] in [0, 1000) -> [B, H, W, out_channels].

    H and W must be divisible by 2^(levels - 1); each width, features * multiplier, by groups. With num_classes > 0,
    `labels` int [B] condition the network; only with null_class does num_classes itself, or no labels, mean "no class".
    `head_features` > 0 says how wide a head is, and num_heads is ignored. `train` turns dropout on (needs the "dropout"
    rng). Embedding and the last norm and convolution stay float32 whatever the dtype, as theirs do.

    Raises:
        ValueError: for a size, a width or heads that don't divide; labels without num_classes, or none where there is
            no null class.
    """

    features: int = 128
    multipliers: Sequence[float] = (1, 2, 2, 2)
    num_res_blocks: int = 3
    attention_levels: Sequence[int] = (1, 2)
    num_heads: int = 4
    head_features: int = 0
    qkv_by_head: bool = True
    dropout: float = 0.0
    num_classes: int = 0
    null_class: bool = False
    groups: int = 32
    scale_shift_norm: bool = True
    resblock_updown: bool = False
    out_channels: int = 6
    dtype: jnp.dtype = FLOAT32
    remat: str = "none"

    @nn.compact
    @checked
    def __call__(self, x_t: Pictures, t: Times, labels: Labels | None = None, *, train: bool = False) -> Outputs:
        widths = [int(multiplier * self.features) for multiplier in self.multipliers]
        self._check(x_t, labels, widths)
        res_block = rematted(ResBlock, self.remat, static_argnums=(3,))
        attention = rematted(AttentionBlock, self.remat, attends=True)
        emb = self._embed(t, labels)

        def block(x: jax.Array, width: int, name: str, how: str = "keep") -> jax.Array:
            options = (self.dropout, self.scale_shift_norm, self.groups, how, self.dtype)
            return res_block(width, *options, name=name)(x, emb, train)

        def attend(x: jax.Array, name: str) -> jax.Array:
            heads = x.shape[-1] // self.head_features if self.head_features else self.num_heads
            return attention(heads, self.qkv_by_head, self.groups, self.dtype, name=name)(x)

        def stage(x: jax.Array, level: int, name: str) -> jax.Array:
            x = block(x, widths[level], name)
            return attend(x, f"{name}_attention") if level in self.attention_levels else x

        def resize(x: jax.Array, how: str, name: str) -> jax.Array:
            if self.resblock_updown:
                return block(x, x.shape[-1], name, how)
            return _conv(x, x.shape[-1], self.dtype, name, how=how)

        last = len(widths) - 1
        x = _conv(x_t, widths[0], self.dtype, "conv_in")
        skips = [x]
        for level in range(last + 1):
            for i in range(self.num_res_blocks):
                x = stage(x, level, f"down{level}_block{i}")
                skips.append(x)
            if level < last:
                x = resize(x, "down", f"down{level}_resize")
                skips.append(x)

        x = block(x, widths[-1], "middle_block0")
        x = attend(x, "middle_attention")
        x = block(x, widths[-1], "middle_block1")

        for level in reversed(range(last + 1)):
            for i in range(self.num_res_blocks + 1):
                x = stage(jnp.concatenate([x, skips.pop()], axis=-1), level, f"up{level}_block{i}")
            if level > 0:
                x = resize(x, "up", f"up{level}_resize")

        x = nn.silu(_norm(x, self.groups, FLOAT32, "norm_out"))
        return _conv_from_zero(x, self.out_channels, FLOAT32, "conv_out").astype(x_t.dtype)

    def _embed(self, t: jax.Array, labels: jax.Array | None) -> jax.Array:
        """Time, and class where there is one: [B, 4 features]."""
        width = 4 * self.features
        emb = _dense(layers.embed_time_cosines_first(t, self.features), width, FLOAT32, "time1")
        emb = _dense(nn.silu(emb), width, FLOAT32, "time2")
        if self.num_classes:
            rows = self.num_classes + self.null_class
            labels = jnp.full(t.shape, rows - 1) if labels is None else labels
            init = nn.initializers.normal(1.0)  # PyTorch's own
            emb = emb + nn.Embed(rows, width, embedding_init=init, name="classes")(labels)
        return emb

    def _check(self, x_t: jax.Array, labels: jax.Array | None, widths: Sequence[int]) -> None:
        last = len(widths) - 1
        layers.check_size(x_t, last)
        if self.features < 2 or self.features % 2:
            raise ValueError(f"features must be even and at least 2, got {self.features}")
        if labels is not None and not self.num_classes:
            raise ValueError("labels were given, but the network was built with num_classes=0")
        if labels is None and self.num_classes and not self.null_class and not self.is_initializing():
            raise ValueError(
                f"labels must be given: the network was built for {self.num_classes} classes and without a null class"
            )
        if set(self.attention_levels) - set(range(last + 1)):
            raise ValueError(f"attention_levels must lie in 0 .. {last}, got {tuple(self.attention_levels)}")
        name, number = ("head_features", self.head_features) if self.head_features else ("num_heads", self.num_heads)
        for level, width in enumerate(widths):
            layers.check_channels(width, self.groups, f"features * multipliers[{level}]")
            attends = level in self.attention_levels or level == last
            if attends and (number < 1 or width % number):
                raise ValueError(f"{name} must divide the {width} channels it attends over, got {number}")
