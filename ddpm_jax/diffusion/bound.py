"""The variational bound on the negative log-likelihood, in bits per dimension (Ho et al. 2020, Eq. 5).

    -log p(x_0) <= L_T + sum_{t >= 1} L_t + L_0
    L_T = KL(q(x_T | x_0) || N(0, I))                                      the prior: `prior_kl`
    L_t = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), t = 1 .. T-1      `kl`
    L_0 = -log p(x_0 | x_1), a Gaussian cut into 2^bits bins on [-1, 1]    the decoder (Eq. 13), see `decoder`

Index t counts from 0, as everywhere here: L_0 is the step at t = 0.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import reverse
from ddpm_jax.diffusion.decoder import DECODERS
from ddpm_jax.diffusion.forward import Gaussian, prior_kl, q_posterior, q_sample
from ddpm_jax.diffusion.schedules import Schedule, at
from ddpm_jax.records import pick
from ddpm_jax.types import Denoiser

__all__ = ["DECODERS", "Bound", "Estimate", "bits_per_dim", "eps_weights", "estimate", "kl", "prior_kl"]

LOG_2 = float(np.log(2.0))


def kl(q: Gaussian, p: Gaussian) -> jax.Array:
    """KL(q || p) of independent normals, in nats for each dimension; means [B, ...], variances broadcast."""
    apart = q.log_variance - p.log_variance
    return 0.5 * (jnp.expm1(apart) - apart + (q.mean - p.mean) ** 2 * jnp.exp(-p.log_variance))


def mean_bits(nats: jax.Array) -> jax.Array:
    """From nats for each dimension [B, ...] to bits per dimension [B]."""
    return jnp.mean(jnp.reshape(nats, (nats.shape[0], -1)), axis=1) / LOG_2


def term(
    schedule: Schedule,
    output: jax.Array,
    x_0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    *,
    prediction: str = "eps",
    variance: str = "large",
    clip: bool = False,
    bits: int = 8,
    decoder: str = "gaussian",
) -> tuple[jax.Array, jax.Array]:
    """L_t in bits/dim [B] for a network's output at x_t, t int [B] (L_0 where t is 0), and its prediction of x_0.

    The arguments are those of `reverse.p_posterior`; `bits` and `decoder` those of `decoder.DECODERS`.
    """
    log_variance = reverse.variance(variance)
    p, predicted = reverse.p_posterior(
        schedule, output, x_t, t, prediction=prediction, log_variance=log_variance, clip=clip
    )
    apart = mean_bits(kl(q_posterior(schedule, x_0, x_t, t), p))
    decoded = mean_bits(pick(DECODERS, decoder, "decoder")(x_0, x_t, at(schedule, t), p, bits))
    return jnp.where(t == 0, decoded, apart), predicted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """The bound of B images, bits per dimension."""

    total: jax.Array
    """[B]: prior + the sum of the terms."""
    prior: jax.Array
    """[B]: L_T."""
    terms: jax.Array
    """[B, T]: L_t, the decoder's L_0 first."""
    mse: jax.Array
    """[B, T]: mean squared error of the prediction of x_0 at each t."""

    @property
    def rate(self) -> jax.Array:
        """[B]: bits/dim to send all that is above the last step, L_1 + ... + L_T (Ho et al. 2020, Sec. 4.3)."""
        return self.prior + self.terms[:, 1:].sum(axis=1)

    @property
    def distortion(self) -> jax.Array:
        """[B]: bits/dim that the last step leaves, L_0."""
        return self.terms[:, 0]

    def rate_distortion(self) -> tuple[jax.Array, jax.Array]:
        """The curve of Ho et al. 2020, Fig. 5: what is known of x_0 once x_t has been received, for t = T-1 .. 0.

        Returns:
            rate [B, T] in bits/dim, rising, and the root mean squared error [B, T] on the scale 0 .. 255.
        """
        received = jnp.cumsum(self.terms[:, :0:-1], axis=1)  # x_{T-1} costs L_T, each step back one more term
        rate = self.prior[:, None] + jnp.pad(received, ((0, 0), (1, 0)))
        return rate, 127.5 * jnp.sqrt(self.mse[:, ::-1])


def bits_per_dim(
    key: jax.Array,
    schedule: Schedule,
    denoise: Denoiser,
    x_0: jax.Array,
    *,
    prediction: str = "eps",
    variance: str = "large",
    clip: bool = True,
    bits: int = 8,
    decoder: str = "gaussian",
    indices: jax.Array | None = None,
) -> Bound:
    """Every term of the bound for each image of x_0 [B, ..., C]: T evaluations of the network, in one compiled scan.

    Args:
        key: of the noise, fresh at every t. Image i gets that of (key, indices[i]), whatever the batch.
        schedule: the whole one, or respaced for the bound of a shorter chain.
        denoise: denoise(x_t, time) -> [B, ..., C], or [B, ..., 2 C] with a learned variance. A plain function's arrays
            are compiled in; jax.tree_util.Partial (`nets.denoiser`) passes them.
        prediction: what the output means.
        variance: large, small, medium:F, learned or learned_range; see `reverse`.
        clip: keep the prediction of x_0 in [-1, 1], as the published figures do.
        bits: the depth of the data, for the decoder.
        decoder: a key of DECODERS.
        indices: the images' numbers int [B]; 0 .. B-1.

    Raises:
        ValueError: for a choice that doesn't exist, or an output that doesn't fit it.
    """
    indices = jnp.arange(x_0.shape[0]) if indices is None else indices
    reading = _Reading(prediction=prediction, variance=variance, clip=clip, bits=bits, decoder=decoder)
    terms, mse = _all_terms(key, schedule, _as_tree(denoise), jnp.asarray(x_0), indices, reading)
    prior = prior_kl(schedule, x_0)
    return Bound(total=prior + terms.sum(axis=1), prior=prior, terms=terms, mse=mse)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reading:
    """How a network's output is read, for a compiled function to be found by."""

    prediction: str
    variance: str
    clip: bool
    bits: int
    decoder: str


def _as_tree(denoise: Denoiser) -> jax.tree_util.Partial:
    return denoise if isinstance(denoise, jax.tree_util.Partial) else jax.tree_util.Partial(denoise)


def _noise(key: jax.Array, indices: jax.Array, t: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [B, *shape]: image i's at t [B] depends on (key, indices[i], t[i]) only."""
    keys = jax.vmap(lambda i, t: jax.random.fold_in(jax.random.fold_in(key, i), t))(indices, t)
    return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def _one(key, schedule, denoise, x_0, indices, t, reading) -> tuple[jax.Array, jax.Array]:
    """L_t and the squared error of x_0 at t [B], [B] each."""
    x_t = q_sample(schedule, x_0, t, _noise(key, indices, t, x_0.shape[1:]))
    bits, predicted = term(schedule, denoise(x_t, schedule.times[t]), x_0, x_t, t, **vars(reading))
    return bits, jnp.mean(jnp.reshape((predicted - x_0) ** 2, (x_0.shape[0], -1)), axis=1)


@partial(jax.jit, static_argnames="reading")
def _all_terms(key, schedule, denoise, x_0, indices, reading) -> tuple[jax.Array, jax.Array]:
    def once(_: None, t: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        return None, _one(key, schedule, denoise, x_0, indices, jnp.full(indices.shape, t), reading)

    _, (terms, mse) = jax.lax.scan(once, None, jnp.arange(schedule.num_steps))
    return terms.T, mse.T


def eps_weights(schedule: Schedule, variance: jax.Array) -> jax.Array:
    """What ||eps - eps_hat||^2 counts for in the bound, in nats, [T] (Ho et al. 2020, Eq. 12).

    beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)), for a fixed variance sigma_t^2 [T]: schedule.betas, say, or
    schedule.posterior_variance (infinite at t = 0, where the posterior is a point).
    """
    noise = schedule.sqrt_one_minus_alpha_bars**2
    return schedule.betas**2 / (2 * variance * schedule.alphas * noise)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The bound from a few t per image, bits per dimension."""

    total: jax.Array
    """[B], each unbiased."""
    mean: jax.Array
    standard_error: jax.Array
    """Of the mean: images and t count as one draw. Infinite for a single image."""


def estimate(
    key: jax.Array,
    schedule: Schedule,
    denoise: Denoiser,
    x_0: jax.Array,
    *,
    num_t: int = 8,
    probabilities: jax.Array | None = None,
    indices: jax.Array | None = None,
    prediction: str = "eps",
    variance: str = "large",
    clip: bool = True,
    bits: int = 8,
    decoder: str = "gaussian",
) -> Estimate:
    """An unbiased estimate of `bits_per_dim` from num_t + 1 evaluations per image of x_0 [B, ..., C] in place of T.

    L_T and L_0 are worked out, the other terms are drawn: one t from each of num_t equal parts of the probability.

    Args:
        probabilities: of t = 1 .. T-1 [T-1], any positive numbers; if not given, half uniform and half like the terms
            of white noise of variance 1/4, which is about how those of images fall.
        The rest is as in `bits_per_dim`.

    Raises:
        ValueError: if there are too few steps or t for an estimate, or probabilities of another shape.
    """
    if num_t < 1 or schedule.num_steps < 2:
        raise ValueError(
            f"an estimate takes num_t >= 1 and a schedule of at least 2 steps, got {num_t} and {schedule.num_steps}"
        )
    if probabilities is None:
        weights = eps_weights(schedule, schedule.posterior_variance) * jax.nn.sigmoid(schedule.log_snr + jnp.log(0.25))
        weights = jnp.where(jnp.isfinite(weights), weights, 0.0)[1:]  # infinite where no signal is left
        probabilities = weights / weights.sum() + 1 / weights.size
    if probabilities.shape != (schedule.num_steps - 1,):
        raise ValueError(f"probabilities must have shape {(schedule.num_steps - 1,)}, got {probabilities.shape}")
    indices = jnp.arange(x_0.shape[0]) if indices is None else indices
    reading = _Reading(prediction=prediction, variance=variance, clip=clip, bits=bits, decoder=decoder)
    total = _few_terms(key, schedule, _as_tree(denoise), jnp.asarray(x_0), indices, probabilities, num_t, reading)
    total = prior_kl(schedule, x_0) + total
    error = jnp.std(total, ddof=1) / jnp.sqrt(total.shape[0]) if total.size > 1 else jnp.array(jnp.inf)
    return Estimate(total=total, mean=jnp.mean(total), standard_error=error)


@partial(jax.jit, static_argnames=("num_t", "reading"))
def _few_terms(key, schedule, denoise, x_0, indices, probabilities, num_t, reading) -> jax.Array:
    ends = jnp.cumsum(probabilities) / jnp.sum(probabilities)
    chances = jnp.diff(ends, prepend=0.0)  # as they are drawn, rounding included
    key_t, key_eps = jax.random.split(key)
    u = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key_t, i), (num_t,)))(indices)

    def once(sum_: jax.Array, j: jax.Array) -> tuple[jax.Array, None]:
        place = jnp.minimum(jnp.searchsorted(ends, (j + u[:, j]) / num_t, side="right"), ends.size - 1)
        bits, _ = _one(key_eps, schedule, denoise, x_0, indices, 1 + place, reading)
        return sum_ + bits / chances[place], None

    drawn, _ = jax.lax.scan(once, jnp.zeros(indices.shape), jnp.arange(num_t))
    decoded, _ = _one(key_eps, schedule, denoise, x_0, indices, jnp.zeros_like(indices), reading)
    return decoded + drawn / num_t
