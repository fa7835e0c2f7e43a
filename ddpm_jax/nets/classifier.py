"""A classifier of noised images: the U-Net's way down, and attention that pools what is left (Dhariwal & Nichol 2021).

conv -> levels down, each num_res_blocks x (ResBlock [+ attention]), halved between levels
     -> norm, SiLU, attention of one query over all positions -> dense
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.nets import layers
from ddpm_jax.nets.layers import Conv
from ddpm_jax.nets.remat import rematted
from ddpm_jax.nets.unet import EPSILON, AttentionBlock, ResBlock
from ddpm_jax.types import Labels, PerImage, Pictures, Times, checked


class AttentionPool(nn.Module):
    """x [B, H, W, C] -> [B, C]: the mean of the positions asks all of them."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        tokens = x.reshape(B, H * W, C)

        def project(tokens: jax.Array, name: str) -> jax.Array:
            heads = layers.dense(C, dtype=self.dtype, name=name)(tokens)
            return heads.reshape(B, -1, self.num_heads, C // self.num_heads)

        query = project(tokens.mean(axis=1, keepdims=True), "q")
        pooled = layers.attend(query, project(tokens, "k"), project(tokens, "v"))
        return layers.dense(C, dtype=self.dtype, name="out")(pooled.reshape(B, C))


class Classifier(nn.Module):
    """x_t [B, H, W, C] and t [B] in [0, 1000) -> logits [B, num_classes]; with labels int [B], log p(labels | x_t) [B].

    H and W must be divisible by 2^(levels - 1). `train` turns dropout on (needs the "dropout" rng). Before training all
    classes are equally likely.

    Raises:
        ValueError: for a size, a width or heads that don't divide, or fewer than two classes.
    """

    num_classes: int
    features: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = (1,)
    num_heads: int = 1
    dropout: float = 0.1
    groups: int = 32
    dtype: jnp.dtype = jnp.dtype("float32")
    remat: str = "none"

    @nn.compact
    @checked
    def __call__(
        self, x_t: Pictures, t: Times, labels: Labels | None = None, *, train: bool = False
    ) -> Float[Array, "B {self.num_classes}"] | PerImage:
        self._check(x_t)
        res_block = rematted(ResBlock, self.remat, static_argnums=(3,))
        attention = rematted(AttentionBlock, self.remat, attends=True)
        width = 4 * self.features
        emb = layers.dense(width, dtype=self.dtype, name="time1")(layers.embed_time(t, self.features))
        emb = layers.dense(width, dtype=self.dtype, name="time2")(nn.silu(emb))
        x = Conv(self.features, dtype=self.dtype, name="conv_in")(x_t)
        for level, multiplier in enumerate(self.multipliers):
            if level:
                x = Conv(x.shape[-1], stride=2, dtype=self.dtype, name=f"down{level - 1}_resize")(x)
            options = (self.features * multiplier, self.dropout, False, self.groups, "keep", self.dtype)
            for i in range(self.num_res_blocks):
                name = f"down{level}_block{i}"
                x = res_block(*options, name=name)(x, emb, train)
                if level in self.attention_levels:
                    x = attention(self.num_heads, self.groups, self.dtype, name=f"{name}_attention")(x)
        groups = math.gcd(self.groups, x.shape[-1])
        x = nn.silu(layers.group_norm(groups, epsilon=EPSILON, dtype=self.dtype, name="norm_out")(x))
        x = AttentionPool(self.num_heads, self.dtype, name="pool")(x).astype(jnp.float32)
        logits = nn.Dense(self.num_classes, kernel_init=layers.zeros, name="logits")(x).astype(x_t.dtype)
        if labels is None:
            return logits
        return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]

    def _check(self, x_t: jax.Array) -> None:
        layers.check_size(x_t, len(self.multipliers) - 1)
        if self.features < 4 or self.features % 2:
            raise ValueError(f"features must be even and at least 4, got {self.features}")
        if self.num_classes < 2:
            raise ValueError(f"a classifier needs --net.num-classes of at least 2, got {self.num_classes}")
        unknown = set(self.attention_levels) - set(range(len(self.multipliers)))
        if unknown:
            raise ValueError(
                f"attention_levels must lie in 0 .. {len(self.multipliers) - 1}, got {tuple(self.attention_levels)}"
            )
        if self.features * self.multipliers[-1] % self.num_heads:
            width = self.features * self.multipliers[-1]
            raise ValueError(f"num_heads must divide the {width} channels that are pooled, got {self.num_heads}")
