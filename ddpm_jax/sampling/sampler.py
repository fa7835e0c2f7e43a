"""What a sampler is: a pair of pure functions, which the loop runs over the levels that are visited.

    init(keys, x_T) -> State
    step(state, model, levels, (i, j)) -> State, Info        from the i-th visited level to the next, j = i + 1

`model(x, level)` asks the network, as often as a step likes, and answers with x_0 and eps, x = alpha x_0 + sigma eps,
whatever the network predicts. Levels fall in noise towards the image, or rise on a way up; a level's `gain` is the
log-SNR that its step gains. With the half log-SNR l = log(alpha / sigma) the probability-flow ODE is, exactly,

    d(x / alpha) = eps d(sigma / alpha)        d(x / sigma) = x_0 d(alpha / sigma)        (Lu et al. 2022, Prop. 3.1)

for every process, so that a solver written in alpha, sigma and gain runs along all of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.levels import Between, Level, Levels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a network said of x at a level, each like x: x = alpha x_0 + sigma eps."""

    x_0: jax.Array
    eps: jax.Array
    v: jax.Array | None = None
    """What it said of the variance, as it stands in its output; None from a network that says nothing of it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What a sampler carries from step to step."""

    x: jax.Array
    """[B, ...]."""
    keys: jax.Array
    """One for each image [B]; noise is drawn from fold_in of them (`noise`)."""
    count: jax.Array
    """Steps taken, int32."""
    past: Any = ()
    """What it remembers of earlier steps, arrays [K, B, ...] or any pytree."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """What there is to show of a step."""

    x_0: jax.Array
    """The prediction of x_0 at the level that was left, [B, ...]."""


Model = Callable[[jax.Array, Level], Answer]
Init = Callable[[jax.Array, jax.Array], State]
Step = Callable[[State, Model, Levels, tuple[jax.Array, jax.Array]], tuple[State, Info]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler with its settings bound. Builders give equal samplers for equal settings: the loop is compiled for one,
    and finds its compilation again."""

    init: Init
    step: Step
    stages: tuple[float | Between, ...] = ()
    """Where else in a step it asks the network, as parts of the step's log-SNR (or of its t) or functions of the
    log-SNR that is visited; see `levels.visit`."""
    stages_in: str = "log_snr"
    evaluations: int = 1
    """Evaluations of the network in a step that doesn't end at the image."""
    multistep: bool = False
    """Does it build on earlier steps? Then it may not be turned round on the way."""
    needs_signal: bool = False
    """Does it divide by alpha, so that it can't start where that is 0?"""
    only_down: bool = False
    """Does it add noise of its own, which it can't on a way up?"""
    whole: bool = False
    """Does it find its own way between the ends? Only these are visited then (`Levels.ends`), `trained` is there."""
    spacing: str = "even"
    """Where its steps lie if nobody says: a name in `diffusion.spacings`."""


def start(keys: jax.Array, x_T: jax.Array) -> State:
    """The state of a sampler without memory."""
    return State(x=x_T, keys=keys, count=jnp.int32(0))


def start_remembering(number: int) -> Init:
    """Of one that remembers `number` arrays like x, in past [number, B, ...]; the newest stands first."""

    def init(keys: jax.Array, x_T: jax.Array) -> State:
        # Made of x_T, so that it is spread over devices as that is, and as what comes back is: else XLA compiles twice.
        return dataclasses.replace(start(keys, x_T), past=0 * jnp.broadcast_to(x_T, (number, *x_T.shape)))

    return init


def remember(past: jax.Array, newest: jax.Array) -> jax.Array:
    """Past [K, B, ...] with the newest in front and the oldest gone."""
    return jnp.concatenate([newest[None], past[:-1]]) if len(past) else past


def noise(state: State, draw: int = 0) -> jax.Array:
    """Fresh standard normal noise like x; `draw` tells several draws of one step apart."""

    def one(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(key, state.count), draw)
        return jax.random.normal(key, state.x.shape[1:], state.x.dtype)

    return jax.vmap(one)(state.keys)


def moved(state: State, x: jax.Array, past: Any = None) -> State:
    """The state after a step to x."""
    return dataclasses.replace(state, x=x, count=state.count + 1, past=state.past if past is None else past)


def first_order(answer: Answer, there: Level) -> jax.Array:
    """DDIM without noise (Song et al. 2020, Eq. 13): also Euler's step in sigma / alpha, and the way to the image."""
    return there.alpha * answer.x_0 + there.sigma * answer.eps


def unless_last(there: Level, full: Callable[[], jax.Array], answer: Answer) -> jax.Array:
    """`full()`, but the first-order step where `there` is the image itself, which higher orders can't look beyond."""
    return jax.lax.cond(there.sigma > 0, full, lambda: first_order(answer, there))
