"""What a network may predict, and how each prediction is turned into every other.

With x_t = alpha x_0 + sigma eps (alpha^2 = alpha_bar_t, sigma^2 = 1 - alpha_bar_t), each prediction is a mixture of
x_0 and eps, so two of the three x_0, eps and x_t give all the rest:

    eps     the noise                                                                 (Ho et al. 2020, Eq. 11)
    x0      the clean image
    v       alpha eps - sigma x_0, the speed along the arc from x_0 to eps             (Salimans & Ho 2022, App. D)
    score   grad log q(x_t | x_0) = -eps / sigma                                       (Song et al. 2021, Eq. 7)
    mean    coef_x0 x_0 + coef_xt x_t, the mean of q(x_{t-1} | x_t, x_0)               (Ho et al. 2020, Eq. 7)
    flow    eps - x_0, the speed along the line from x_0 to eps               (Lipman et al. 2023; Liu et al. 2023)

Where a level holds no signal (alpha = 0) eps and score say nothing about x_0: it comes back as 0, its mean over data
centred on 0. Where a level holds no noise (sigma = 0) x0 says nothing about eps: it comes back as 0, and the score
with it. Nothing is ever NaN.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.schedules import NoiseLevel, Schedule, at
from ddpm_jax.records import pick
from ddpm_jax.types import Images, Steps, checked, per_image

Parts = tuple[jax.Array, jax.Array]


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient, 0 where the denominator is 0; its gradient is finite too."""
    empty = denominator == 0
    return jnp.where(empty, 0.0, numerator / jnp.where(empty, 1.0, denominator))


@dataclasses.dataclass(frozen=True)
class _Prediction:
    """How a prediction is made from (x_0, eps) and taken apart into them again, both at a known x_t."""

    make: Callable[[NoiseLevel, jax.Array, jax.Array, jax.Array], jax.Array]
    split: Callable[[NoiseLevel, jax.Array, jax.Array], Parts]


def _from_x0(level: NoiseLevel, x_t: jax.Array, x_0: jax.Array) -> Parts:
    return x_0, _divide(x_t - level.alpha * x_0, level.sigma)


def _from_eps(level: NoiseLevel, x_t: jax.Array, eps: jax.Array) -> Parts:
    return _divide(x_t - level.sigma * eps, level.alpha), eps


def _from_v(level: NoiseLevel, x_t: jax.Array, v: jax.Array) -> Parts:
    return level.alpha * x_t - level.sigma * v, level.sigma * x_t + level.alpha * v


def _from_score(level: NoiseLevel, x_t: jax.Array, score: jax.Array) -> Parts:
    return _from_eps(level, x_t, -level.sigma * score)


def _from_mean(level: NoiseLevel, x_t: jax.Array, mean: jax.Array) -> Parts:
    return _from_x0(level, x_t, _divide(mean - level.coef_xt * x_t, level.coef_x0))


def _from_flow(level: NoiseLevel, x_t: jax.Array, flow: jax.Array) -> Parts:
    total = level.alpha + level.sigma  # at least 1: nothing is impossible from a flow
    return (x_t - level.sigma * flow) / total, (x_t + level.alpha * flow) / total


_TABLE = {
    "eps": _Prediction(lambda level, x_t, x_0, eps: eps, _from_eps),
    "x0": _Prediction(lambda level, x_t, x_0, eps: x_0, _from_x0),
    "v": _Prediction(lambda level, x_t, x_0, eps: level.alpha * eps - level.sigma * x_0, _from_v),
    "score": _Prediction(lambda level, x_t, x_0, eps: -_divide(eps, level.sigma), _from_score),
    "mean": _Prediction(lambda level, x_t, x_0, eps: level.coef_x0 * x_0 + level.coef_xt * x_t, _from_mean),
    "flow": _Prediction(lambda level, x_t, x_0, eps: eps - x_0, _from_flow),
}
PREDICTIONS = tuple(_TABLE)


def _level(schedule: Schedule, t: jax.Array, x: jax.Array) -> NoiseLevel:
    """The noise level at t, shaped to broadcast against x."""
    return jax.tree.map(lambda table: per_image(table, x), at(schedule, t))


def target_at(level: NoiseLevel, prediction: str, x_0: jax.Array, eps: jax.Array) -> jax.Array:
    """`target` at a noise level that is shaped to broadcast against x_0 and eps."""
    return pick(_TABLE, prediction, "prediction").make(level, level.alpha * x_0 + level.sigma * eps, x_0, eps)


@partial(jax.jit, static_argnames="prediction")
@checked
def target(schedule: Schedule, prediction: str, x_0: Images, eps: Images, t: Steps) -> Images:
    """What a network that predicts `prediction` should answer to q_sample(schedule, x_0, t, eps), [B, ...].

    Raises:
        ValueError: if prediction isn't one of PREDICTIONS.
    """
    return target_at(_level(schedule, t, x_0), prediction, x_0, eps)


@partial(jax.jit, static_argnames=("source", "target"))
@checked
def convert(schedule: Schedule, output: Images, x_t: Images, t: Steps, *, source: str, target: str) -> Images:
    """Read a network's output [B, ...] at x_t, t as prediction `source`, and say it as `target`.

    A conversion magnifies rounding by at most 1 / alpha (from eps and score), 1 / sigma (from x0) or 1 / coef_x0 (from
    mean). What comes back where it is impossible is in the module's docstring.

    Raises:
        ValueError: if source or target isn't one of PREDICTIONS.
    """
    read, say = pick(_TABLE, source, "source"), pick(_TABLE, target, "target")
    if source == target:
        return output
    level = _level(schedule, t, x_t)
    x_0, eps = read.split(level, x_t, output)
    return say.make(level, x_t, x_0, eps)


@partial(jax.jit, static_argnames="source")
@checked
def x0_and_eps(schedule: Schedule, output: Images, x_t: Images, t: Steps, *, source: str) -> tuple[Images, Images]:
    """Both parts of x_t that an output [B, ...] of kind `source` stands for, at the price of one conversion."""
    return pick(_TABLE, source, "source").split(_level(schedule, t, x_t), x_t, output)


def x0_and_eps_at(
    level: NoiseLevel, output: jax.Array, x_t: jax.Array, *, source: str, preserving: bool = True
) -> tuple[jax.Array, jax.Array]:
    """`x0_and_eps` at a noise level that broadcasts against x_t [B, ...].

    With preserving=False alpha^2 + sigma^2 may be anything; v is alpha eps - sigma x_0 there, too.

    Raises:
        ValueError: if source isn't one of PREDICTIONS.
    """
    x_0, eps = pick(_TABLE, source, "prediction").split(level, x_t, output)
    if source == "v" and not preserving:
        size = level.alpha**2 + level.sigma**2
        return x_0 / size, eps / size
    return x_0, eps
