"""The bound and the error of eps, noise level by noise level: where a network is good and where it isn't.

Of each bin of log-SNR equally many t are drawn, spread evenly over the bin's steps, each with an image and noise that
depend on the key and its number only: two networks that are measured alike differ in themselves and in nothing else. A
bin's share of the bound is its number of steps times the mean of L_t; the shares and the prior add up to bits/dim.

The term of t = 0 is the decoder's and far larger than its neighbours', so that few t would miss it or count it for
many. It is drawn by itself, as often as the rest of its bin. The terms after it fall like 1/t: where a bin has more
steps than half its pairs, half of them are drawn that way, and each counts for as many steps as it stands for.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from ddpm_jax import xla
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
    """The bins' shares of the bound, bits/dim [n]; 0 for a bin without steps, NaN where the network's output is."""
    eps_error: np.ndarray
    """Mean squared error of eps [n]; NaN for a bin without steps."""
    bits_per_dim: float
    """The bound: the sum of the shares and the prior."""
    standard_error: float
    """Of bits_per_dim: images and noise, every pair taken as independent.

    With more pairs than images the same image stands in several bins. If its terms rise and fall together, the error
    over new images is larger than this; over the images of this set alone it is smaller.
    """
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
    """Draw `of_each` pairs of image and t in each bin, and as many at t = 0, and average over them.

    Images come in an order of the key's, all of them before any comes again, and in each bin in another one: a bin sees
    an image twice only if the set has fewer than the bin has pairs, and t says nothing about the image.

    Args:
        key: of the noise, of which t and of which image.
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
    key_t, key_images, key_eps = jax.random.split(key, 3)
    bin_of = np.asarray(bins.of_steps(schedule, jnp.asarray(edges)))
    later = np.arange(len(bin_of)) > 0
    rest = [np.flatnonzero((bin_of == i) & later) for i in range(number)]
    strata = [*(steps for steps in rest if len(steps)), np.array([0])]  # t = 0 after the rest of its bin
    of_bin, size = np.array([(bin_of[steps[0]], len(steps)) for steps in strata]).T
    places = np.asarray(jax.random.uniform(key_t, (len(strata), of_each)))
    drawn = [_steps(steps, u) for steps, u in zip(strata, places, strict=True)]
    t = np.concatenate([t for t, _ in drawn])
    order, rows = _rows(key_images, num_images, len(strata), of_each)
    told = {"prediction": prediction, "variance": variance}
    terms, errors = _of_pairs(key_eps, schedule, denoise, read, rows, t, batch_size, told, sharding)

    def sums(values: np.ndarray) -> np.ndarray:
        """Over the steps of each stratum, and their standard errors."""
        each = zip(values.reshape(-1, of_each), drawn, strict=True)
        return np.transpose([_sum_over_steps(found, *where) for found, where in each])

    (bits, bits_error), (eps_error, eps_error_error) = sums(terms), sums(errors)
    shares, of_eps, counts = (np.bincount(of_bin, each, minlength=number) for each in (bits, eps_error, size))
    images, _ = read(order[:of_each])
    prior = float(np.mean(bound.prior_kl(schedule, jnp.asarray(images))))
    return ByBin(
        bits=shares,
        eps_error=np.divide(of_eps, counts, out=np.full(number, np.nan), where=counts > 0),
        bits_per_dim=float(shares.sum() + prior),
        standard_error=float(np.linalg.norm(bits_error)),
        simple=float(eps_error.sum() / len(bin_of)),
        simple_error=float(np.linalg.norm(eps_error_error) / len(bin_of)),
    )


def _rows(key: jax.Array, num_images: int, strata: int, of_each: int) -> tuple[np.ndarray, np.ndarray]:
    """The set's rows in an order that the key decides [num_images], and those of every pair [strata * of_each].

    Each stratum goes on in that order where the one before it ended, and shuffles what it got.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    order = rng.permutation(num_images)
    dealt = order[np.arange(strata * of_each) % num_images]
    return order, rng.permuted(dealt.reshape(strata, of_each), axis=1).ravel()


def _steps(steps: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the steps to measure, rising [N] as u in [0, 1), and how many steps each one stands for [N].

    Every step equally often, if that is twice or more. Otherwise one from each of N equal parts of the probability.
    """
    num, total = u.size, steps.size
    if num >= 2 * total:
        return steps[np.arange(num) * total // num], np.full(num, total / num)
    falling = 1 / steps
    chance = (1 / total + falling / falling.sum()) / 2
    where = np.searchsorted(np.cumsum(chance), (np.arange(num) + u) / num, side="right")
    where = np.minimum(where, total - 1)  # rounding
    return steps[where], 1 / (num * chance[where])


def _sum_over_steps(values: np.ndarray, t: np.ndarray, stands_for: np.ndarray) -> tuple[float, float]:
    """The sum over steps of what was found at some of them, as `_steps` gave them, and its standard error.

    How L_t depends on t is no error where every step was measured twice: only what differs within a step is. Else
    neighbours tell, and what lies between them counts as chance.
    """
    _, first, count = np.unique(t, return_index=True, return_counts=True)
    if count.min() >= 2 and (stands_for <= 0.5).all():
        means = np.add.reduceat(values, first) / count
        squares = np.add.reduceat((values - np.repeat(means, count)) ** 2, first)
        return float(means.sum()), float(np.sqrt((squares / (count - 1) / count).sum()))
    parts = values * stands_for
    return float(parts.sum()), float(np.sqrt(parts.size * np.mean(np.diff(parts) ** 2) / 2))


def _of_pairs(
    key: jax.Array,
    schedule: Schedule,
    denoise: Denoiser,
    read: Read,
    rows: np.ndarray,
    t: np.ndarray,
    batch_size: int,
    told: dict[str, str],
    sharding: Sharding | None,
) -> tuple[np.ndarray, np.ndarray]:
    """L_t in bits/dim and the error of eps of each pair, [N] each; pair i is the image rows[i] at t[i]."""
    terms, errors = [], []
    for first in range(0, len(t), batch_size):
        # The last batch repeats its last pair, so that one compilation serves all.
        pairs = np.minimum(np.arange(first, first + batch_size), len(t) - 1)
        images, labels = read(rows[pairs])
        batch = (pairs, t[pairs].astype(np.int32), images, *(() if labels is None else (labels,)))
        batch = jax.device_put(batch) if sharding is None else spread(batch, sharding)
        kept = min(batch_size, len(t) - first)
        for found, values in zip(
            (terms, errors), to_host(_of_batch(key, schedule, denoise, *batch, **told)), strict=True
        ):
            found.append(values.astype(np.float64)[:kept])
    return np.concatenate(terms), np.concatenate(errors)


@partial(xla.jit, static_argnames=("prediction", "variance"))
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
