"""The network of variational diffusion models (Kingma et al. 2021, Appendix B): one resolution, many blocks.

    x_t and its Fourier features -> conv -> num_blocks x (ResBlock [+ attention])
        -> ResBlock, attention, ResBlock
        -> (num_blocks + 1) x (ResBlock that reads back one activation of the way down [+ attention])
        -> norm, swish, conv, + x_t

It is made for likelihood: the Fourier features let it see the last bit of a pixel, and no activation is ever made
smaller. With F features, C image channels and E = |fourier| there are

    (4F^2 + 4F) + (16F^2 + 4F)      the two dense layers of time
    9 C (1 + 2E) F + F              the first convolution
    (N + 2) (22F^2 + 6F)            the blocks of the way down and of the middle: two norms, two convolutions, time
    (N + 1) (33F^2 + 9F)            those of the way up, from 2F channels: and a shortcut
    4F^2 + 6F                       the attention in the middle; as much after every other block, if asked for
    2F + 9 F C + C                  the last norm and convolution

parameters, N = num_blocks: 30,577,667 for the CIFAR-10 network, which is the default.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.nets import layers
from ddpm_jax.nets.layers import Conv
from ddpm_jax.nets.remat import rematted
from ddpm_jax.types import Labels, Outputs, Pictures, Times, checked

GROUPS, EPSILON = 32, 1e-6
FLOAT32 = jnp.dtype("float32")
normal = nn.initializers.lecun_normal()  # Flax's own, which the published code leaves in place


def _norm(x: jax.Array, groups: int, dtype: jnp.dtype, name: str) -> jax.Array:
    return layers.group_norm(groups, epsilon=EPSILON, dtype=dtype, name=name)(x)


def fourier_features(x: jax.Array, exponents: Sequence[int]) -> jax.Array:
    """Sine, then cosine, of 2 pi 2^n x for each n: [..., C] -> [..., 2 C len(exponents)], exponents innermost.

    Kingma et al. 2021, Appendix C. Always in float32, and whole turns are taken away first: 2^n x is exact there, so
    that large angles cost no digits.
    """
    turns = x.astype(jnp.float32)[..., None] * jnp.array([2.0**n for n in exponents], jnp.float32)
    angles = (2 * jnp.pi * (turns - jnp.round(turns))).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResBlock(nn.Module):
    """GroupNorm, swish, conv, twice; the condition is added between, by a projection that starts at zero."""

    features: int
    dropout: float
    groups: int
    dtype: jnp.dtype = FLOAT32

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, train: bool) -> jax.Array:
        h = nn.swish(_norm(x, self.groups, self.dtype, "norm1"))
        h = Conv(self.features, kernel_init=normal, dtype=self.dtype, name="conv1")(h)
        project = nn.Dense(self.features, use_bias=False, kernel_init=layers.zeros, dtype=self.dtype, name="condition")
        h = h + project(condition)[:, None, None, :]
        h = nn.swish(_norm(h, self.groups, self.dtype, "norm2"))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = Conv(self.features, kernel_init=layers.zeros, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, size=1, kernel_init=normal, dtype=self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Norm, self-attention of one head over all positions, added to the input."""

    groups: int
    dtype: jnp.dtype = FLOAT32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        h = _norm(x, self.groups, self.dtype, "norm")
        q, k, v = (
            Conv(C, size=1, kernel_init=normal, dtype=self.dtype, name=name)(h).reshape(B, H * W, 1, C)
            for name in ("q", "k", "v")
        )
        h = layers.attend(q, k, v).reshape(B, H, W, C)
        return x + Conv(C, size=1, kernel_init=layers.zeros, dtype=self.dtype, name="out")(h)


class VDM(nn.Module):
    """x_t [B, H, W, C] and t [B] in [0, 1000) -> eps_hat, like x_t. Any size; `features` a multiple of `groups`.

    t is where the log-SNR lies between the two ends of the schedule, times 1000: 0 is the clean end. There are no
    classes. `train` turns dropout on (needs the "dropout" rng).

    Raises:
        ValueError: for labels, for features that can't be grouped, or no blocks.
    """

    features: int = 128
    num_blocks: int = 32
    attention: bool = False
    fourier: Sequence[int] = (6, 7)
    dropout: float = 0.1
    groups: int = GROUPS
    dtype: jnp.dtype = FLOAT32
    remat: str = "none"

    @nn.compact
    @checked
    def __call__(self, x_t: Pictures, t: Times, labels: Labels | None = None, *, train: bool = False) -> Outputs:
        self._check(labels)
        res_block = rematted(ResBlock, self.remat, static_argnums=(3,))
        attention = rematted(AttentionBlock, self.remat, attends=True)
        condition = self._embed(t)

        def block(x: jax.Array, name: str) -> jax.Array:
            return res_block(self.features, self.dropout, self.groups, self.dtype, name=name)(x, condition, train)

        def attend(x: jax.Array, name: str) -> jax.Array:
            return attention(self.groups, self.dtype, name=name)(x)

        def stage(x: jax.Array, name: str) -> jax.Array:
            x = block(x, name)
            return attend(x, f"{name}_attention") if self.attention else x

        x = jnp.concatenate([x_t, fourier_features(x_t, self.fourier)], axis=-1)
        x = Conv(self.features, kernel_init=normal, dtype=self.dtype, name="conv_in")(x)
        skips = [x]
        for i in range(self.num_blocks):
            x = stage(x, f"down_block{i}")
            skips.append(x)

        x = block(x, "middle_block0")
        x = attend(x, "middle_attention")
        x = block(x, "middle_block1")

        for i in range(self.num_blocks + 1):
            x = stage(jnp.concatenate([x, skips.pop()], axis=-1), f"up_block{i}")

        x = nn.swish(_norm(x, self.groups, self.dtype, "norm_out"))
        h = Conv(x_t.shape[-1], kernel_init=layers.zeros, dtype=self.dtype, name="conv_out")(x)
        return x_t + h.astype(x_t.dtype)

    def _embed(self, t: jax.Array) -> jax.Array:
        """[B] -> [B, 4 features]."""
        x = layers.embed_time(t, self.features)
        for name in ("time1", "time2"):
            x = nn.swish(nn.Dense(4 * self.features, kernel_init=normal, dtype=self.dtype, name=name)(x))
        return x

    def _check(self, labels: jax.Array | None) -> None:
        if labels is not None:
            raise ValueError("labels were given, but VDM has no classes")
        if self.features < 4 or self.features % 2:
            raise ValueError(f"features must be even and at least 4, got {self.features}")
        layers.check_channels(self.features, self.groups, "features")
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {self.num_blocks}")
