"""How t is drawn in training: which probabilities p(t), and how t is drawn from them.

A `Draw` gives each t = 0 .. T-1 a probability, from the schedule and from what training has seen so far (its history).
Whatever they are, `draw` returns beside t the weight 1 / (T p(t)), so that the weighted mean of anything is what a
uniform t would give: it changes how noisy a loss is, not what it is. Leave the weights out, and the draw of t is itself
a weighting.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.records import match_arguments, pick

History = Any
Quantiles = Callable[[jax.Array, int], jax.Array]


def independent(key: jax.Array, batch_size: int) -> jax.Array:
    """Quantiles [B] in [0, 1), each on its own."""
    return jax.random.uniform(key, (batch_size,))


def stratified(key: jax.Array, batch_size: int) -> jax.Array:
    """One quantile from each of B equal parts, the same place in all (Kingma et al. 2021, App. I.1).

    Each by itself is uniform; a batch of them covers [0, 1) evenly.
    """
    return (jax.random.uniform(key) + jnp.arange(batch_size) / batch_size) % 1


def antithetic(key: jax.Array, batch_size: int) -> jax.Array:
    """Pairs of an early and a late t: quantiles u and, below 1 by the last bit, 1 - u (Song et al. 2020, code)."""
    u = jax.random.uniform(key, (-(-batch_size // 2),))
    return jnp.concatenate([u, 1 - 2**-23 - u])[:batch_size]


def _no_history(num_steps: int) -> History:
    del num_steps
    return ()


def _keep(history: History, schedule: Schedule, t: jax.Array, size: jax.Array) -> History:
    del schedule, t, size
    return history


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """A way to draw t."""

    probabilities: Callable[[Schedule, History], jax.Array] | None = None
    """(schedule, history) -> [T], any numbers >= 0 that aren't all 0; None for uniform."""
    quantiles: Quantiles = independent
    init: Callable[[int], History] = _no_history
    """T -> the history before training: a tree of arrays, which the training state carries."""
    update: Callable[[History, Schedule, jax.Array, jax.Array], History] = _keep
    """(history, schedule, t int [B], loss of each image before its weight [B]) -> the history after the batch."""


def draw(
    key: jax.Array, how: Draw, schedule: Schedule, batch_size: int, history: History = ()
) -> tuple[jax.Array, jax.Array]:
    """t int32 [B], and the weights [B] that keep the expectation that of a uniform t."""
    u, last = how.quantiles(key, batch_size), schedule.num_steps - 1
    if how.probabilities is None:
        return jnp.minimum(u * (last + 1), last).astype(jnp.int32), jnp.ones(batch_size)
    # Random floats are multiples of 2^-23: with ends that are, too, each t comes exactly as often as its share of them.
    ends = jnp.cumsum(how.probabilities(schedule, history))
    ends = jnp.round(ends / ends[-1] * 2**23) / 2**23
    t = jnp.minimum(jnp.searchsorted(ends, u, side="right"), last).astype(jnp.int32)
    chances = jnp.diff(ends, prepend=0.0)
    return t, 1 / (schedule.num_steps * chances[t])


def uniform() -> Draw:
    """Every t as likely as the others (Ho et al. 2020, Algorithm 1)."""
    return Draw()


def uniform_stratified() -> Draw:
    """Uniform t that cover 0 .. T-1 evenly in every batch (Kingma et al. 2021, App. I.1)."""
    return Draw(quantiles=stratified)


def uniform_antithetic() -> Draw:
    """Uniform t in pairs t, T-1-t (Song et al. 2020, code)."""
    return Draw(quantiles=antithetic)


def in_range(begin: float = 0.0, end: float = 1.0, factor: float = 2.0) -> Draw:
    """t with begin <= t / T < end are `factor` times as likely as the others.

    Raises:
        ValueError: unless 0 <= begin < end <= 1 and factor > 0.
    """
    if not 0 <= begin < end <= 1:
        raise ValueError(f"begin and end must satisfy 0 <= begin < end <= 1, got {begin} and {end}")
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor}")

    def probabilities(schedule: Schedule, history: History) -> jax.Array:
        del history
        place = jnp.arange(schedule.num_steps) / schedule.num_steps
        return jnp.where((begin <= place) & (place < end), factor, 1.0)

    return Draw(probabilities=probabilities)


def _normal(mean: float, std: float, uniform: float, where: Callable[[Schedule], jax.Array]) -> Draw:
    """p(t) in proportion to a normal density of `where` [T] and to how far a step moves there."""
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    if not 0 < uniform <= 1:
        raise ValueError(f"uniform must lie in (0, 1], got {uniform}")

    def probabilities(schedule: Schedule, history: History) -> jax.Array:
        del history
        place = where(schedule)
        span = jnp.abs(jnp.asarray(jnp.gradient(place))) if place.size > 1 else jnp.ones(1)
        density = jnp.exp(-0.5 * ((place - mean) / std) ** 2) * span
        total = jnp.sum(density)
        shape = jnp.where(total > 0, density / jnp.where(total > 0, total, 1.0), 1 / place.size)
        return (1 - uniform) * shape + uniform / place.size

    return Draw(probabilities=probabilities)


def log_normal(mean: float = -1.2, std: float = 1.2, uniform: float = 0.001) -> Draw:
    """ln(sigma / alpha) ~ N(mean, std^2), as EDM trains (Karras et al. 2022, Table 1): the noise per unit of signal.

    `uniform` of the probability is spread evenly, so that no t is out of reach and no weight is beyond 1 / uniform.
    """
    return _normal(mean, std, uniform, lambda schedule: -schedule.log_snr / 2)


def logit_normal(mean: float = 0.0, std: float = 1.0, uniform: float = 0.001) -> Draw:
    """logit(sigma) ~ N(mean, std^2), sigma in (0, 1) the noise's share; `uniform` as in `log_normal`."""

    def logit_sigma(schedule: Schedule) -> jax.Array:
        log_sigma = -0.5 * jax.nn.softplus(schedule.log_snr)
        return log_sigma - jnp.log(-jnp.expm1(log_sigma))

    return _normal(mean, std, uniform, logit_sigma)


def second_moment(uniform: float = 0.001, keep: float = 10) -> Draw:
    """p(t) in proportion to sqrt(E[loss^2 | t]) over the last `keep` losses at t (Nichol & Dhariwal 2021, Sec. 3.3).

    That is the draw of least variance. Uniform until every t has been seen `keep` times; `uniform` of the probability
    stays so. The history is the losses, [T, keep], and how many there were, [T].

    Raises:
        ValueError: if uniform lies outside (0, 1], or keep isn't a whole number of at least 1.
    """
    if not 0 < uniform <= 1:
        raise ValueError(f"uniform must lie in (0, 1], got {uniform}")
    if keep < 1 or keep != int(keep):
        raise ValueError(f"keep must be a whole number of at least 1, got {keep}")
    kept = int(keep)

    def init(num_steps: int) -> History:
        return {"losses": jnp.zeros((num_steps, kept)), "count": jnp.zeros(num_steps, jnp.int32)}

    def probabilities(schedule: Schedule, history: History) -> jax.Array:
        root = jnp.sqrt(jnp.mean(history["losses"] ** 2, axis=1))
        warm = (history["count"] >= kept).all() & (root.sum() > 0)
        shape = jnp.where(warm, root / jnp.where(warm, root.sum(), 1.0), 1 / schedule.num_steps)
        return (1 - uniform) * shape + uniform / schedule.num_steps

    def update(history: History, schedule: Schedule, t: jax.Array, size: jax.Array) -> History:
        # A ring for each t. Of one t in a batch the i-th comes to the i-th next place; where there are more than the
        # ring holds, the last stay.
        order = jnp.argsort(t, stable=True)
        t, size = t[order], size[order]
        nth = jnp.arange(t.size) - jnp.searchsorted(t, t, side="left")
        left = jnp.searchsorted(t, t, side="right") - jnp.arange(t.size)
        row = jnp.where(left <= kept, t, schedule.num_steps)  # out of bounds: dropped
        place = (history["count"][t] + nth) % kept
        return {
            "losses": history["losses"].at[row, place].set(size, mode="drop"),
            "count": history["count"].at[t].add(1),
        }

    return Draw(probabilities=probabilities, init=init, update=update)


def adaptive(bins: float = 100, decay: float = 0.99, uniform: float = 0.01) -> Draw:
    """p(t) in proportion to the loss at t's log-SNR: an adaptive noise schedule (Kingma & Gao 2023, App. F).

    The loss is averaged over `bins` equal bins of log-SNR, with a decay for each batch that visits one. In log-SNR the
    density of the draw is then that of the weighted loss, which is what their schedule adapts to; the weights leave the
    objective as it was. `uniform` of the probability stays uniform.

    Raises:
        ValueError: if bins isn't a whole number of at least 1, decay outside [0, 1), or uniform outside (0, 1].
    """
    if bins < 1 or bins != int(bins):
        raise ValueError(f"bins must be a whole number of at least 1, got {bins}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    if not 0 < uniform <= 1:
        raise ValueError(f"uniform must lie in (0, 1], got {uniform}")
    num = int(bins)

    def bin_of(schedule: Schedule) -> jax.Array:
        high, low = schedule.log_snr[0], schedule.log_snr[-1]
        part = (high - schedule.log_snr) / jnp.where(high > low, high - low, 1.0)
        return jnp.clip((part * num).astype(jnp.int32), 0, num - 1)

    def init(num_steps: int) -> History:
        del num_steps
        return {"sum": jnp.zeros(num), "mass": jnp.zeros(num)}

    def probabilities(schedule: Schedule, history: History) -> jax.Array:
        seen = history["mass"] > 0
        mean = history["sum"] / jnp.where(seen, history["mass"], 1.0)
        elsewhere = jnp.sum(mean) / jnp.maximum(seen.sum(), 1)  # a bin that no t has visited is taken for average
        size = jnp.where(seen, mean, elsewhere)[bin_of(schedule)]
        warm = size.sum() > 0
        shape = jnp.where(warm, size / jnp.where(warm, size.sum(), 1.0), 1 / schedule.num_steps)
        return (1 - uniform) * shape + uniform / schedule.num_steps

    def update(history: History, schedule: Schedule, t: jax.Array, size: jax.Array) -> History:
        where = bin_of(schedule)[t]
        visits = jnp.zeros(num).at[where].add(1.0)
        mean = jnp.zeros(num).at[where].add(size) / jnp.maximum(visits, 1.0)
        rate = jnp.where(visits > 0, 1 - decay, 0.0)
        return {
            "sum": (1 - rate) * history["sum"] + rate * mean,
            "mass": (1 - rate) * history["mass"] + rate,
        }

    return Draw(probabilities=probabilities, init=init, update=update)


DRAWS: dict[str, Callable[..., Draw]] = {
    "uniform": uniform,
    "stratified": uniform_stratified,
    "antithetic": uniform_antithetic,
    "range": in_range,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
    "second_moment": second_moment,
    "adaptive": adaptive,
}


def build(name: str, arguments: Sequence[tuple[str, float]] = ()) -> Draw:
    """The draw that a config describes.

    Raises:
        ValueError: for an unknown name, or arguments that it doesn't take, with the nearest good one.
    """
    make = pick(DRAWS, name, "--diffusion.draw-t")
    where = f"--diffusion.draw-t-args: {name}"
    for argument, value in arguments:
        if not np.isfinite(value):
            raise ValueError(f"{where}: {argument} must be a finite number, got {value}")
    try:
        return make(**match_arguments(make, arguments, where))
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from None
