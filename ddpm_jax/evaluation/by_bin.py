"""The bound and the error of eps, noise level by noise level: where a network is good and where it isn't.

Of each bin of log-SNR equally many t are drawn, spread evenly over the bin's steps, each with an image and noise of its
own that depend on its number only: two networks that are measured alike differ in themselves and in nothing else. A
bin's share of the bound is its number of steps times the mean of L_t; the shares and the prior add up to bits/dim.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from ddpm_jax.diffusion import bins, bound
from ddpm_jax.diffusion.forward import q_sample
from ddpm_jax.diffusion.norms import l2
from ddpm_jax.diffusion.parameterization import target
from ddpm_jax.diffusion.reverse import split
from ddpm_jax.diffusion.schedules import Schedule, at
from ddpm_jax.diffusion.weightings import in_space, simple
from ddpm_jax.sampling.loop import spread, to_host
from ddpm_jax.types import Denoiser

Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByBin:
    """Of n bins of log-SNR, and over all of them."""

    bits: np.ndarray
    """The bins' shares of the bound, bits/dim [n]; 0 for a bin without steps."""
    eps_error: np.ndarray
    """Mean squared error of eps [n]; NaN for a bin without steps."""
    bits_per_dim: float
    """The bound: the sum of the shares and the prior."""
    standard_error: float
    """Of bits_per_dim: images and noise."""
    simple: float
    """L_simple, the mean over all t of the error of eps (Ho et al. 2020, Eq. 14)."""
    simple_error: float
    """Standard error of `simple`."""


def measure(
    key: jax.Array,
    schedule: Schedule,
    denoise: Denoiser,
    read: Read,
    num_images: int,
    *,
    edges: np.ndarray,
    of_each: int = 256,
    batch_size: int = 64,
    prediction: str = "eps",
    variance: str = "large",
    sharding: Sharding | None = None,
) -> ByBin:
    """Draw `of_each` pairs of image and t in each bin and average over them.

    Args:
        key: of the noise and of which t.
        denoise: the network, a pytree; it gets the labels int [B] as a third argument if there are any.
        read: read(rows int [B]) -> images [B, ...] in [-1, 1], and labels or None; rows in 0 .. num_images - 1.
        edges: of the bins, rising [n + 1]; see `bins.edges`.
        prediction: what the output means.
        variance: of the step back, as in `bound.bits_per_dim`.
        sharding: of a batch's first axis over devices.

    Raises:
        ValueError: for fewer than two pairs a bin, which have no standard error.
    """
    if of_each < 2:
        raise ValueError(f"of_each must be at least 2 for a standard error, got {of_each}")
    number = len(edges) - 1
    bin_of = np.asarray(bins.of_steps(schedule, jnp.asarray(edges)))
    key_t, key_eps = jax.random.split(key)
    places = (np.arange(of_each) + np.asarray(jax.random.uniform(key_t, (number, 1)))) / of_each
    own = [np.flatnonzero(bin_of == i) for i in range(number)]
    filled = [i for i in range(number) if len(own[i])]
    t = np.concatenate([own[i][(places[i] * len(own[i])).astype(int)] for i in filled])
    told = {"prediction": prediction, "variance": variance}
    terms, errors = _of_pairs(key_eps, schedule, denoise, read, num_images, t, batch_size, told, sharding)
    counts = np.array([len(steps) for steps in own], np.float64)

    def by_bin(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, error = np.full((2, number), np.nan)
        for i, of_bin, where in zip(filled, values.reshape(-1, of_each), t.reshape(-1, of_each), strict=True):
            mean[i], error[i] = _mean_over_steps(of_bin, where)
        return mean, error

    (bits, bits_error), (eps_error, eps_error_error) = by_bin(terms), by_bin(errors)
    images, _ = read(np.arange(min(num_images, of_each)))
    prior = float(np.mean(bound.prior_kl(schedule, jnp.asarray(images))))
    parts = counts / counts.sum()
    return ByBin(
        bits=np.nan_to_num(counts * bits),
        eps_error=eps_error,
        bits_per_dim=float(np.nansum(counts * bits) + prior),
        standard_error=float(np.sqrt(np.nansum((counts * bits_error) ** 2))),
        simple=float(np.nansum(parts * eps_error)),
        simple_error=float(np.sqrt(np.nansum((parts * eps_error_error) ** 2))),
    )


def _mean_over_steps(values: np.ndarray, t: np.ndarray) -> tuple[float, float]:
    """The mean over steps of what was found at each, and its standard error; t [N] rises.

    How L_t depends on t is no error: only what differs within a step is, or between neighbours where a step has one
    value or none.
    """
    _, first, count = np.unique(t, return_index=True, return_counts=True)
    means = np.add.reduceat(values, first) / count
    if count.min() >= 2:
        squares = np.add.reduceat((values - np.repeat(means, count)) ** 2, first)
        variance = (squares / (count - 1) / count).sum() / len(count) ** 2
    else:
        variance = np.mean(np.diff(values) ** 2) / 2 / len(values)
    return float(means.mean()), float(np.sqrt(variance))


def _of_pairs(
    key: jax.Array,
    schedule: Schedule,
    denoise: Denoiser,
    read: Read,
    num_images: int,
    t: np.ndarray,
    batch_size: int,
    told: dict[str, str],
    sharding: Sharding | None,
) -> tuple[np.ndarray, np.ndarray]:
    """L_t in bits/dim and the error of eps of each pair, [N] each; pair i is image i (modulo their number) at t[i]."""
    terms, errors = [], []
    for first in range(0, len(t), batch_size):
        # The last batch repeats its last pair, so that one compilation serves all.
        pairs = np.minimum(np.arange(first, first + batch_size), len(t) - 1)
        images, labels = read(pairs % num_images)
        batch = (pairs, t[pairs].astype(np.int32), images, *(() if labels is None else (labels,)))
        batch = jax.device_put(batch) if sharding is None else spread(batch, sharding)
        kept = min(batch_size, len(t) - first)
        for found, values in zip(
            (terms, errors), to_host(_of_batch(key, schedule, denoise, *batch, **told)), strict=True
        ):
            found.append(values.astype(np.float64)[:kept])
    return np.concatenate(terms), np.concatenate(errors)


@partial(jax.jit, static_argnames=("prediction", "variance"))
def _of_batch(
    key: jax.Array,
    schedule: Schedule,
    denoise: Any,
    pairs: jax.Array,
    t: jax.Array,
    x_0: jax.Array,
    *labels: jax.Array,
    prediction: str,
    variance: str,
) -> tuple[jax.Array, jax.Array]:
    eps = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), x_0.shape[1:]))(pairs)
    x_t = q_sample(schedule, x_0, t, eps)
    output = denoise(x_t, schedule.times[t], *labels)
    bits, _ = bound.term(schedule, output, x_0, x_t, t, prediction=prediction, variance=variance, clip=True)
    mean, _ = split(output, x_0.shape[-1])
    level = at(schedule, t)
    factor = in_space(simple, prediction, level.log_snr, posterior_mean_coef_x0=level.coef_x0)
    return bits, factor * l2(mean - target(schedule, prediction, x_0, eps, t))
