"""The U-Net of Ho et al. 2020 (Appendix B), with the options of Nichol & Dhariwal 2021.

    conv -> levels down, each num_res_blocks x (ResBlock [+ attention]), halved between levels
         -> ResBlock, attention, ResBlock
         -> levels up, each num_res_blocks + 1, every block reading back one activation of the way down
         -> norm, SiLU, conv

The defaults are the CIFAR-10 network, 35,746,307 parameters.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.nets import layers
from ddpm_jax.nets.layers import Conv
from ddpm_jax.nets.remat import rematted
from ddpm_jax.types import Labels, Outputs, Pictures, Times, checked

EPSILON = 1e-6


def _norm(x: jax.Array, groups: int, dtype: jnp.dtype, name: str) -> jax.Array:
    """GroupNorm(groups). A width that isn't a multiple takes the most groups that divide both.

    Widths below `groups` keep 4 channels in each: a group of one takes away again the constant that the time embedding
    has added to its channel, and the network is blind to time. Where width and groups are equal it is so, in published
    networks too: give a narrow network fewer groups.
    """
    channels = x.shape[-1]
    most = groups if channels >= groups else max(1, channels // 4)
    count = next(g for g in range(most, 0, -1) if channels % g == 0 and groups % g == 0)
    return layers.group_norm(count, epsilon=EPSILON, dtype=dtype, name=name)(x)


class ResBlock(nn.Module):
    """GroupNorm, SiLU, conv, twice; the time embedding enters between.

    With `scale_shift_norm` the embedding scales and shifts the second norm instead of being added before it.
    `resize` is applied to both branches after the first SiLU (improved-diffusion's up and down blocks).
    """

    features: int
    dropout: float = 0.0
    scale_shift_norm: bool = False
    groups: int = 32
    resize: str = "keep"
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
        resize, up = layers.RESIZE[self.resize], self.resize == "up"
        h = nn.silu(_norm(x, self.groups, self.dtype, "norm1"))
        h = Conv(self.features, up=up, dtype=self.dtype, name="conv1")(h if up else resize(h))
        x = resize(x)
        width = 2 * self.features if self.scale_shift_norm else self.features
        emb = layers.dense(width, dtype=self.dtype, name="emb")(nn.silu(emb))[:, None, None, :]
        if self.scale_shift_norm:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = _norm(h, self.groups, self.dtype, "norm2") * (1 + scale) + shift
        else:
            h = _norm(h + emb, self.groups, self.dtype, "norm2")
        h = nn.Dropout(self.dropout)(nn.silu(h), deterministic=not train)
        h = Conv(self.features, kernel_init=layers.zeros, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, size=1, dtype=self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Norm, self-attention over all positions, added to the input."""

    num_heads: int = 1
    groups: int = 32
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        if C % self.num_heads:
            raise ValueError(f"num_heads must divide the {C} channels it attends over, got {self.num_heads}")
        h = _norm(x, self.groups, self.dtype, "norm")
        q, k, v = (
            Conv(C, size=1, dtype=self.dtype, name=name)(h).reshape(B, H * W, self.num_heads, C // self.num_heads)
            for name in ("q", "k", "v")
        )
        h = layers.attend(q, k, v).reshape(B, H, W, C)
        return x + Conv(C, size=1, kernel_init=layers.zeros, dtype=self.dtype, name="out")(h)


class UNet(nn.Module):
    """x_t [B, H, W, C] and t [B] in [0, 1000) -> [B, H, W, out_channels].

    H and W must be divisible by 2^(levels - 1); any number of channels. With num_classes > 0, `labels` int [B]
    condition the network; num_classes itself, or no labels, means "no class". A `conditional` network sees `low` [B, H,
    W, C], a small image enlarged to this size and noised to the time `low_t` [B], beside x_t (Ho et al. 2022, Sec. 4).
    `train` turns dropout on (needs the "dropout" rng).

    Raises:
        ValueError: for a size, a width or heads that don't divide, or labels without num_classes.
    """

    features: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = (1,)
    num_heads: int = 1
    dropout: float = 0.1
    num_classes: int = 0
    groups: int = 32
    scale_shift_norm: bool = False
    resblock_updown: bool = False
    conditional: bool = False
    out_channels: int = 3
    dtype: jnp.dtype = jnp.dtype("float32")
    remat: str = "none"

    @nn.compact
    @checked
    def __call__(
        self,
        x_t: Pictures,
        t: Times,
        labels: Labels | None = None,
        low: Pictures | None = None,
        low_t: Times | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        self._check(x_t, labels)
        if (low is None or low_t is None) if self.conditional else low is not None:
            raise ValueError(f"low and low_t are for a conditional network, and needed there; got {self.conditional=}")
        res_block = rematted(ResBlock, self.remat, static_argnums=(3,))
        attention = rematted(AttentionBlock, self.remat, attends=True)
        options = (self.dropout, self.scale_shift_norm, self.groups)
        emb = self._embed(t, labels, low_t)

        def block(x: jax.Array, level: int, name: str) -> jax.Array:
            width = self.features * self.multipliers[level]
            x = res_block(width, *options, "keep", self.dtype, name=name)(x, emb, train)
            if level in self.attention_levels:
                x = attention(self.num_heads, self.groups, self.dtype, name=f"{name}_attention")(x)
            return x

        def resize(x: jax.Array, how: str, name: str) -> jax.Array:
            width = x.shape[-1]
            if self.resblock_updown:
                return res_block(width, *options, how, self.dtype, name=name)(x, emb, train)
            return Conv(width, stride=2 if how == "down" else 1, up=how == "up", dtype=self.dtype, name=name)(x)

        last = len(self.multipliers) - 1
        x = Conv(self.features, dtype=self.dtype, name="conv_in")(
            x_t if low is None else jnp.concatenate([x_t, low], axis=-1)
        )
        skips = [x]
        for level in range(last + 1):
            for i in range(self.num_res_blocks):
                x = block(x, level, f"down{level}_block{i}")
                skips.append(x)
            if level < last:
                x = resize(x, "down", f"down{level}_resize")
                skips.append(x)

        middle = (x.shape[-1], *options, "keep", self.dtype)
        x = res_block(*middle, name="middle_block0")(x, emb, train)
        x = attention(self.num_heads, self.groups, self.dtype, name="middle_attention")(x)
        x = res_block(*middle, name="middle_block1")(x, emb, train)

        for level in reversed(range(last + 1)):
            for i in range(self.num_res_blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), level, f"up{level}_block{i}")
            if level > 0:
                x = resize(x, "up", f"up{level}_resize")

        x = nn.silu(_norm(x, self.groups, self.dtype, "norm_out"))
        return Conv(self.out_channels, kernel_init=layers.zeros, dtype=self.dtype, name="conv_out")(x).astype(x_t.dtype)

    def _embed(self, t: jax.Array, labels: jax.Array | None, low_t: jax.Array | None) -> jax.Array:
        """Time, and class and the time of a small image where there are: [B, 4 features]."""
        width = 4 * self.features
        emb = layers.dense(width, dtype=self.dtype, name="time1")(layers.embed_time(t, self.features))
        emb = layers.dense(width, dtype=self.dtype, name="time2")(nn.silu(emb))
        if self.num_classes:
            labels = jnp.full(t.shape, self.num_classes) if labels is None else labels
            emb = emb + nn.Embed(self.num_classes + 1, width, dtype=self.dtype, name="classes")(labels)
        if low_t is not None:
            told = layers.dense(width, dtype=self.dtype, name="low_time1")(layers.embed_time(low_t, self.features))
            emb = emb + layers.dense(width, dtype=self.dtype, name="low_time2")(nn.silu(told))
        return emb

    def _check(self, x_t: jax.Array, labels: jax.Array | None) -> None:
        layers.check_size(x_t, len(self.multipliers) - 1)
        if self.features < 4 or self.features % 2:
            raise ValueError(f"features must be even and at least 4, got {self.features}")
        if labels is not None and not self.num_classes:
            raise ValueError("labels were given, but the network was built with num_classes=0")
        unknown = set(self.attention_levels) - set(range(len(self.multipliers)))
        if unknown:
            raise ValueError(
                f"attention_levels must lie in 0 .. {len(self.multipliers) - 1}, got {tuple(self.attention_levels)}"
            )
