"""A network as samplers see it."""

from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.levels import Level
from ddpm_jax.diffusion.parameterization import x0_and_eps_at
from ddpm_jax.diffusion.reverse import split
from ddpm_jax.sampling import thresholds
from ddpm_jax.sampling.sampler import Answer, Model
from ddpm_jax.sampling.thresholds import Threshold
from ddpm_jax.types import Denoiser


def ask(
    denoise: Denoiser,
    *,
    prediction: str = "eps",
    clip: bool | Threshold = True,
    conditions: Any = None,
) -> Model:
    """A network as samplers see it: model(x, level) -> Answer, whatever it predicts and was trained along.

    `clip` is applied to the prediction of x_0; eps follows from what is left of it, so that x = alpha x_0 + sigma eps.
    The arguments are those of `sample`.
    """
    threshold = thresholds.static if clip is True else clip
    more = () if conditions is None else (conditions,)

    def model(x: jax.Array, level: Level) -> Answer:
        own_x = level.scale * x
        output, v = split(denoise(own_x, jnp.full(len(x), level.time), *more), x.shape[-1])
        x_0, eps = x0_and_eps_at(level.own, output, own_x, source=prediction, preserving=False)
        if threshold:
            x_0 = threshold(x_0)
            none = level.sigma == 0
            eps = jnp.where(none, eps, (x - level.alpha * x_0) / jnp.where(none, 1.0, level.sigma))
        return Answer(x_0=x_0.astype(x.dtype), eps=eps.astype(x.dtype), v=v)

    return model
