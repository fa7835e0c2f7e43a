"""The training objective: noise-prediction MSE, weighted (Ho et al. 2020, Algorithm 1)."""

import dataclasses

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.forward import q_sample
from ddpm_jax.diffusion.parameterization import target
from ddpm_jax.diffusion.schedules import Schedule, at
from ddpm_jax.diffusion.timesteps import DrawT, uniform
from ddpm_jax.diffusion.weightings import Weighting, in_space, simple
from ddpm_jax.types import Denoiser


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What each image brought to the loss, [B] each; the loss is the mean of `loss`."""

    loss: jax.Array
    """Weighted, importance included."""
    mse: jax.Array
    """Mean squared error of the prediction itself, over the image's dimensions."""
    t: jax.Array


def loss(
    key: jax.Array,
    schedule: Schedule,
    denoise: Denoiser,
    x_0: jax.Array,
    *,
    prediction: str = "eps",
    weighting: Weighting = simple,
    draw_t: DrawT = uniform,
) -> tuple[jax.Array, LossTerms]:
    """Draw t and eps, noise x_0 [B, ...], and weigh the error of the network's answer.

    Args:
        key: decides t and eps.
        denoise: denoise(x_t, time) -> output like x_t; time is float32 [B] in [0, 1000).
        prediction: what the output means, one of parameterization.PREDICTIONS.
        weighting: k(log_snr), the factor on the error of eps, whatever is predicted.
        draw_t: how t is drawn; see `timesteps`.

    Returns:
        The mean over the batch, and the terms it is the mean of. With the default weighting and prediction that is
        L_simple, E ||eps - eps_hat||^2 per dimension (Ho et al. 2020, Eq. 14).

    Raises:
        ValueError: for an unknown prediction, or an output that isn't shaped like x_0.
    """
    key_t, key_eps = jax.random.split(key)
    t, importance = draw_t(key_t, schedule.num_steps, x_0.shape[0])
    eps = jax.random.normal(key_eps, x_0.shape, x_0.dtype)
    output = denoise(q_sample(schedule, x_0, t, eps), schedule.times[t])
    if output.shape != x_0.shape:
        raise ValueError(f"denoise must return the shape of x_0, {x_0.shape}, got {output.shape}")
    error = output - target(schedule, prediction, x_0, eps, t)
    mse = jnp.mean(jnp.square(error).reshape(x_0.shape[0], -1), axis=1)
    level = at(schedule, t)
    weight = in_space(weighting, prediction, level.log_snr, posterior_mean_coef_x0=level.coef_x0)
    terms = LossTerms(loss=importance * weight * mse, mse=mse, t=t)
    return jnp.mean(terms.loss), terms
