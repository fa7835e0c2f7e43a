"""A small network for variational dequantisation (Ho et al. 2019): where within its bin a byte is likely to lie."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.nets.layers import Conv, zeros


class Dequantiser(nn.Module):
    """x_0 [B, H, W, C] -> mean and log scale of logit(u) for each pixel, like x_0 each; u in (0, 1) is the place.

    Both are 0 at first: u = sigmoid(mean + exp(log_scale) e) with e logistic is then uniform.
    """

    features: int = 32

    @nn.compact
    def __call__(self, x_0: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = nn.silu(Conv(self.features, name="conv_in")(x_0))
        h = h + Conv(self.features, name="conv_2")(nn.silu(Conv(self.features, name="conv_1")(h)))
        out = Conv(2 * x_0.shape[-1], kernel_init=zeros, name="conv_out")(nn.silu(h))
        mean, log_scale = jnp.split(out, 2, axis=-1)
        return mean, log_scale
