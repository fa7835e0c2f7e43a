"""The bound in continuous time, and noise schedules that are learned with it (Kingma et al. 2021).

    -log p(x) <= prior(u = 1) + 1/2 E_u [ -d lambda / du  ||eps - eps_hat(x_u)||^2 ] + decoder(u = 0)

u runs from 0 (data) to 1 (noise) and lambda(u), the log-SNR, falls. A `Curve` is lambda(u) in straight pieces: read off
a `Schedule`, or learned. The integral depends on the curve's ends only, for it can be taken over lambda itself; what
lies between decides how noisy its estimate is. So the ends are learned by the bound's own gradient and the rest by that
of the estimate's second moment (ibid., App. D), which is known from the density of the draw alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import timesteps
from ddpm_jax.diffusion.bound import mean_bits
from ddpm_jax.diffusion.decoder import categorical_nll
from ddpm_jax.diffusion.loss import LossTerms
from ddpm_jax.diffusion.parameterization import PREDICTIONS, target_at
from ddpm_jax.diffusion.schedules import NoiseLevel, Schedule, from_log_snr
from ddpm_jax.diffusion.weightings import in_space, simple
from ddpm_jax.records import pick
from ddpm_jax.types import Denoiser, per_image

Scalar = jax.Array | float

BINS, FLOOR = 100, 0.01
"""Pieces of a learned curve, and the part of u that is spread over them evenly, so that the curve always falls."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """lambda(u) in straight pieces between knots, [K] each."""

    u: jax.Array
    """Rising from 0 to 1."""
    log_snr: jax.Array
    """Falling."""
    times: jax.Array
    """What a network is told."""


def of_schedule(schedule: Schedule) -> Curve:
    """A schedule's log-SNR, its first index at u = 0 and its last at u = 1, straight between indices.

    Raises:
        ValueError: for a schedule of a single step.
    """
    if schedule.num_steps < 2:
        raise ValueError("a curve needs a schedule of at least 2 steps, got 1")
    return Curve(u=jnp.linspace(0, 1, schedule.num_steps), log_snr=schedule.log_snr, times=schedule.times)


def read(curve: Curve, u: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """At u [B]: log-SNR, its slope d lambda / du (below 0), the network's time, and the piece's number; [B] each."""
    piece = jnp.clip(jnp.searchsorted(curve.u, u, side="right") - 1, 0, curve.u.size - 2)
    width = curve.u[piece + 1] - curve.u[piece]
    part = (u - curve.u[piece]) / width

    def between(knots: jax.Array) -> jax.Array:
        return knots[piece] + part * (knots[piece + 1] - knots[piece])

    slope = (curve.log_snr[piece + 1] - curve.log_snr[piece]) / width
    return between(curve.log_snr), slope, between(curve.times), piece


def _level(log_snr: jax.Array, x: jax.Array) -> NoiseLevel:
    """The noise level of log_snr [B], shaped to broadcast against x. There is no step, so no posterior either."""
    log_snr = per_image(log_snr, x)
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))
    none = jnp.full_like(log_snr, jnp.nan)
    return NoiseLevel(alpha=alpha, sigma=sigma, log_snr=log_snr, coef_x0=none, coef_xt=none, variance=none)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousBound:
    """One unbiased draw of the bound for each image, bits per dimension, [B] each."""

    total: jax.Array
    prior: jax.Array
    diffusion: jax.Array
    decoder: jax.Array
    mse: jax.Array
    """Mean squared error of the prediction itself."""
    eps_error: jax.Array
    """The mean squared error of eps that this amounts to."""
    log_snr: jax.Array
    u: jax.Array
    piece: jax.Array
    """Of the curve in which u lies."""


def bound(
    key: jax.Array,
    curve: Curve,
    denoise: Denoiser,
    x_0: jax.Array,
    *,
    prediction: str = "eps",
    bits: int = 8,
    quantiles: timesteps.Quantiles = timesteps.stratified,
) -> ContinuousBound:
    """The bound of x_0 [B, ..., C] in continuous time, from one u for each image (Kingma et al. 2021, Eq. 11, 15, 16).

    Args:
        key: decides u and the noise.
        denoise: denoise(x_u, time) -> like x_0, as in `loss.loss`. A learned variance has no place here.
        prediction: what the output means; not "mean", for there is no step.
        bits: the data's depth, for the decoder.
        quantiles: how u is drawn; stratified is Kingma et al.'s "antithetic".

    Raises:
        ValueError: for "mean" or an unknown prediction, or an output that isn't shaped like x_0.
    """
    pick(dict.fromkeys(name for name in PREDICTIONS if name != "mean"), prediction, "prediction in continuous time")
    key_u, key_eps, key_0 = jax.random.split(key, 3)
    u = quantiles(key_u, x_0.shape[0])
    log_snr, slope, time, piece = read(curve, u)
    level, eps = _level(log_snr, x_0), jax.random.normal(key_eps, x_0.shape)
    output = denoise(level.alpha * x_0 + level.sigma * eps, time)
    if output.shape != x_0.shape:
        raise ValueError(f"denoise must return the shape of x_0, {x_0.shape}, got {output.shape}")
    squares = jnp.square(output - target_at(level, prediction, x_0, eps))
    mse = jnp.mean(jnp.reshape(squares, (x_0.shape[0], -1)), axis=1)
    eps_error = in_space(simple, prediction, log_snr) * mse
    diffusion = -0.5 * slope * eps_error / jnp.log(2.0)

    last, first = curve.log_snr[-1], curve.log_snr[0]
    noise_end, signal_end = jax.nn.sigmoid(-last), jax.nn.sigmoid(last)
    prior = mean_bits(0.5 * (signal_end * x_0**2 + noise_end - 1 - jax.nn.log_sigmoid(-last)))
    z = x_0 + jnp.exp(-first / 2) * jax.random.normal(key_0, x_0.shape)
    decoder = mean_bits(categorical_nll(x_0, z, first, bits=bits))
    return ContinuousBound(
        total=prior + diffusion + decoder,
        prior=prior,
        diffusion=diffusion,
        decoder=decoder,
        mse=mse,
        eps_error=eps_error,
        log_snr=log_snr,
        u=u,
        piece=piece,
    )


def init(schedule: Schedule) -> dict[str, jax.Array]:
    """Parameters of a learned curve that starts as the schedule's: start, log_span and logits [BINS].

    The logits say how likely u falls into each of BINS equal bins between the ends (`_shares`); start and exp(log_span)
    are the first log-SNR and how far it falls.
    """
    log_snr, u = np.asarray(schedule.log_snr, np.float64), np.linspace(0, 1, schedule.num_steps)
    span = log_snr[0] - log_snr[-1]
    if not span > 0:
        raise ValueError(f"a schedule to be learned must fall in log-SNR, got {log_snr[0]} to {log_snr[-1]}")
    shares = np.diff(np.interp(np.linspace(0, 1, BINS + 1), (log_snr[0] - log_snr) / span, u))
    return {
        "start": jnp.float32(log_snr[0]),
        "log_span": jnp.float32(np.log(span)),
        "logits": jnp.asarray(np.log(np.maximum((shares - FLOOR / BINS) / (1 - FLOOR), 1e-6)), jnp.float32),
    }


def _shares(logits: jax.Array) -> jax.Array:
    """The probability of each bin [BINS]."""
    return (1 - FLOOR) * jax.nn.softmax(logits) + FLOOR / BINS


def learned(params: dict[str, jax.Array], start: Scalar, end: Scalar) -> Curve:
    """The curve of `init`'s parameters. Gradients reach its ends only.

    The network is told where log-SNR stands between `start` and `end`, the schedule's first and last before it was
    learned, on a scale of 0 to 1000: so that a log-SNR is always told alike.
    """
    place = jnp.linspace(0, 1, BINS + 1)
    ends = jnp.cumsum(_shares(jax.lax.stop_gradient(params["logits"])))
    u = jnp.concatenate([jnp.zeros(1), ends[:-1], jnp.ones(1)])
    log_snr = params["start"] - jnp.exp(params["log_span"]) * place
    return Curve(u=u, log_snr=log_snr, times=1000 * (start - log_snr) / (start - end))


def as_schedule(params: dict[str, Any], start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """The learned curve as a schedule of `num_steps`, to sample by."""
    curve = jax.tree.map(lambda knots: np.asarray(knots, np.float64), learned(params, start, end))
    at = np.linspace(0, 1, num_steps)
    schedule = from_log_snr(lambda _: np.interp(at, curve.u, curve.log_snr), num_steps)
    return dataclasses.replace(schedule, times=jnp.asarray(np.interp(at, curve.u, curve.times), jnp.float32))


def loss(
    key: jax.Array,
    curve: Curve,
    denoise: Denoiser,
    x_0: jax.Array,
    *,
    logits: jax.Array | None = None,
    num_steps: int = 1000,
    **options: Any,
) -> tuple[jax.Array, LossTerms]:
    """The mean of `bound` over the batch as a training loss; `options` are its.

    Args:
        logits: those of a learned curve. A term whose value is 0 gives them the gradient of log E[diffusion^2].
        num_steps: the terms' t is u times this.

    Returns:
        The bound in bits/dim, and its terms.
    """
    drawn = bound(key, curve, denoise, x_0, **options)
    value = jnp.mean(drawn.total)
    if logits is not None:
        # E_u[f^2] = integral of (f p)^2 / p over lambda, where f p doesn't depend on the density p of the draw: its
        # gradient is -E_u[f^2 grad log p].
        share = jax.lax.stop_gradient(jnp.square(drawn.diffusion))
        share = share / jnp.maximum(jnp.mean(share), 1e-12)
        towards = -jnp.mean(share * jnp.log(_shares(logits))[drawn.piece])
        value = value + towards - jax.lax.stop_gradient(towards)
    t = jnp.minimum(drawn.u * num_steps, num_steps - 1)
    kept = {"mse": drawn.mse, "eps_error": drawn.eps_error, "log_snr": drawn.log_snr, "t": t}
    return value, LossTerms(loss=drawn.total, objective=drawn.total, **kept)


QUANTILES: dict[str, Callable] = {
    "uniform": timesteps.independent,
    "stratified": timesteps.stratified,
    "antithetic": timesteps.antithetic,
}
"""The draws of t that have a meaning in continuous time."""
