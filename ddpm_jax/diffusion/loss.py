"""The training objectives at a drawn t: weighted error, the bound, and both (Ho et al. 2020, Algorithm 1).

    simple    k(log-SNR) ||eps - eps_hat||^2, whatever is predicted                     (Ho et al. 2020, Eq. 14)
              or with another of `norms` on the error of the prediction; or exp(-u) of that, plus u (`uncertainty`)
    vlb       T L_t in bits/dim, unbiased for the bound but for L_T, which nothing trained changes      (Eq. 5)
    hybrid    simple + vlb_weight T L_t, which teaches the variance only: the mean is held fixed in it
                                                                              (Nichol & Dhariwal 2021, Eq. 16)

The errors are means over an image's dimensions.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import bound, timesteps
from ddpm_jax.diffusion.forward import q_sample
from ddpm_jax.diffusion.norms import Norm, l2
from ddpm_jax.diffusion.parameterization import target
from ddpm_jax.diffusion.reverse import is_learned, split
from ddpm_jax.diffusion.schedules import Schedule, at
from ddpm_jax.diffusion.timesteps import Draw, History
from ddpm_jax.diffusion.weightings import Weighting, in_space, simple
from ddpm_jax.records import pick
from ddpm_jax.types import Denoiser


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What each image brought to the loss, [B] each; the loss is the mean of `loss`."""

    loss: jax.Array
    """The objective, with its uncertainty if that is learned, times the weight of the draw of t."""
    objective: jax.Array
    """Before the weight of the draw of t, and before u: what a history of losses keeps. A draw of t in proportion to
    losses wants them positive and of one kind throughout; with u they may be negative, and drift with what u learns."""
    mse: jax.Array
    """Mean squared error of the prediction itself, over the image's dimensions."""
    eps_error: jax.Array
    """The mean squared error of eps that this amounts to: comparable between predictions, weightings and norms."""
    log_snr: jax.Array
    t: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What an objective is made of besides the images."""

    prediction: str = "eps"
    weighting: Weighting = simple
    variance: str = "large"
    vlb_weight: float = 0.001
    bits: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A network's output to x_t [B, ..., C] at t [B], and what the norm makes of the prediction's error [B]."""

    schedule: Schedule
    x_0: jax.Array
    x_t: jax.Array
    t: jax.Array
    output: jax.Array
    error: jax.Array


Objective = Callable[[Setting, Answer], jax.Array]


def _simple(setting: Setting, said: Answer) -> jax.Array:
    level = at(said.schedule, said.t)
    coef = level.coef_x0
    return in_space(setting.weighting, setting.prediction, level.log_snr, posterior_mean_coef_x0=coef) * said.error


def _vlb(setting: Setting, said: Answer) -> jax.Array:
    bits, _ = bound.term(
        said.schedule,
        said.output,
        said.x_0,
        said.x_t,
        said.t,
        prediction=setting.prediction,
        variance=setting.variance,
        bits=setting.bits,
    )
    return said.schedule.num_steps * bits


def _hybrid(setting: Setting, said: Answer) -> jax.Array:
    mean, v = split(said.output, said.x_0.shape[-1])
    if v is None:
        raise ValueError("the hybrid objective needs a variance of learned or learned_range, got a fixed one")
    held = dataclasses.replace(said, output=jnp.concatenate([jax.lax.stop_gradient(mean), v], axis=-1))
    return _simple(setting, said) + setting.vlb_weight * _vlb(setting, held)


OBJECTIVES: dict[str, Objective] = {"simple": _simple, "hybrid": _hybrid, "vlb": _vlb}


def _noise(key: jax.Array, like: jax.Array, offset: float) -> jax.Array:
    """N(0, 1) for each entry of [B, ..., C] and, unless `offset` is 0, N(0, offset^2) for each image and channel."""
    eps = jax.random.normal(key, like.shape, like.dtype)
    if offset == 0:
        return eps
    shape = (like.shape[0], *(1 for _ in like.shape[1:-1]), like.shape[-1])
    # A key of its own for the constants: eps itself is the same noise under every offset, for runs to be compared.
    return eps + offset * jax.random.normal(jax.random.fold_in(key, 1), shape, like.dtype)


def loss(
    key: jax.Array,
    schedule: Schedule,
    denoise: Denoiser,
    x_0: jax.Array,
    *,
    prediction: str = "eps",
    weighting: Weighting = simple,
    norm: Norm = l2,
    offset_noise: float = 0.0,
    objective: str = "simple",
    variance: str = "large",
    vlb_weight: float = 0.001,
    bits: int = 8,
    draw_t: Draw | None = None,
    history: History = (),
    correct_draw: bool = True,
    uncertainty: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, LossTerms]:
    """Draw t and eps, noise x_0 [B, ..., C], and weigh the error of the network's answer.

    Args:
        key: decides t and eps.
        denoise: denoise(x_t, time) -> output like x_t, or [B, ..., 2 C] with a variance; time is float32 [B] in
            [0, 1000).
        prediction: what the output means, one of parameterization.PREDICTIONS.
        weighting: k(log_snr), the factor on the error of eps, whatever is predicted; for simple and hybrid.
        norm: what the error of the prediction counts for, [B, ...] -> [B]; for simple and hybrid.
        offset_noise: deviation of a constant that is added to the noise of each image and channel, and learned with it
            (Guttenberg 2023, "Diffusion with offset noise"): the network then sees and changes an image's brightness.
            Tables and weightings stay those of the noise without it, and the bound is one only without it.
        objective: a key of OBJECTIVES.
        variance: of the step back, for vlb and hybrid; see `reverse.variance`.
        vlb_weight: what the bound counts for in the hybrid; 0.001 for 1000 steps or 4000.
        bits: the data's depth, for the bound.
        draw_t: how t is drawn, see `timesteps`; uniform if not given.
        history: what draw_t has learned so far.
        correct_draw: weigh each image so that the expectation is that of a uniform t.
        uncertainty: u, [B] log-SNR -> [B]: an image's loss becomes exp(-u) times it, plus u, whose gradient teaches u
            (`uncertainty.log_variance`); for simple only.

    Returns:
        The mean over the batch, and the terms it is the mean of. With the default weighting and prediction that is
        L_simple, E ||eps - eps_hat||^2 per dimension (Ho et al. 2020, Eq. 14).

    Raises:
        ValueError: for an unknown choice, an output that isn't shaped like x_0, a learned variance that isn't in it, or
            an uncertainty with another objective than simple.
    """
    of_image = pick(OBJECTIVES, objective, "objective")
    if uncertainty is not None and objective != "simple":
        raise ValueError(f"uncertainty needs the objective simple, got {objective}")
    setting = Setting(prediction=prediction, weighting=weighting, variance=variance, vlb_weight=vlb_weight, bits=bits)
    key_t, key_eps = jax.random.split(key)
    t, importance = timesteps.draw(key_t, draw_t or timesteps.uniform(), schedule, x_0.shape[0], history)
    eps = _noise(key_eps, x_0, offset_noise)
    x_t = q_sample(schedule, x_0, t, eps)
    output = denoise(x_t, schedule.times[t])
    wanted = (*x_0.shape[:-1], 2 * x_0.shape[-1]) if is_learned(variance) else x_0.shape
    if output.shape != wanted:
        also = " and of a learned variance beside it" if is_learned(variance) else ""
        raise ValueError(f"denoise must return the shape of x_0{also}, {wanted}, got {output.shape}")
    predicted, _ = split(output, x_0.shape[-1])
    error = predicted - target(schedule, prediction, x_0, eps, t)
    value = of_image(setting, Answer(schedule=schedule, x_0=x_0, x_t=x_t, t=t, output=output, error=norm(error)))
    counted = value
    if uncertainty is not None:
        u = uncertainty(schedule.log_snr[t])
        counted = jnp.exp(-u) * value + u
    level, mse = at(schedule, t), l2(error)
    terms = LossTerms(
        loss=importance * counted if correct_draw else counted,
        objective=value,
        mse=mse,
        eps_error=in_space(simple, prediction, level.log_snr, posterior_mean_coef_x0=level.coef_x0) * mse,
        log_snr=level.log_snr,
        t=t,
    )
    return jnp.mean(terms.loss), terms


def classification(
    key: jax.Array,
    schedule: Schedule,
    log_prob: Denoiser,
    x_0: jax.Array,
    *,
    draw_t: Draw | None = None,
    history: History = (),
    correct_draw: bool = True,
) -> tuple[jax.Array, LossTerms]:
    """The cross-entropy of a classifier of noised images, -E log p(c | x_t) (Dhariwal & Nichol 2021, Sec. 4), in nats.

    Args:
        key: decides t and eps.
        log_prob: log_prob(x_t, time) -> [B], what it says of the classes that x_0 has.
        draw_t, history, correct_draw: as in `loss`.

    Returns:
        The mean over the batch, and its terms; every error in them is the cross-entropy.
    """
    key_t, key_eps = jax.random.split(key)
    t, importance = timesteps.draw(key_t, draw_t or timesteps.uniform(), schedule, x_0.shape[0], history)
    x_t = q_sample(schedule, x_0, t, _noise(key_eps, x_0, 0.0))
    value = -log_prob(x_t, schedule.times[t])
    terms = LossTerms(
        loss=importance * value if correct_draw else value,
        objective=value,
        mse=value,
        eps_error=value,
        log_snr=schedule.log_snr[t],
        t=t,
    )
    return jnp.mean(terms.loss), terms
