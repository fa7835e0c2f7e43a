"""Solvers in s = sigma / alpha (Karras et al. 2022), where the probability-flow ODE is d(x / alpha) = eps ds.

Euler's step, along the first answer's eps, is DDIM's (`sampler.first_order`). The others add what a better mean of eps
over the step changes, (s' - s) alpha' (mean eps - eps), in `bent`: which divides by alpha. LMS begins with Euler's.

The same ODE along the straight line of flow matching is

    dz = (eps - x_0) du        z = x / (alpha + sigma)        u = sigma / (alpha + sigma)

where u ends at 1, not at infinity: what steps along it (straight=True) can start without any signal. Euler's step is
the same there; higher orders differ, and for the process `flow` are those in t.

Methods in s step by the `edm` spacing if nobody says another: even in t, they leave a schedule that ends at s = 20,000
in one step.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.levels import Level, Levels
from ddpm_jax.sampling.ancestral import ddim
from ddpm_jax.sampling.dpm_solver import divided, flag, weights, whole
from ddpm_jax.sampling.sampler import (
    Answer,
    Info,
    Model,
    Sampler,
    State,
    first_order,
    moved,
    noise,
    remember,
    start,
    start_remembering,
    unless_last,
)

FAR = 1e8
"""Steps back to the furthest level that LMS tells from infinity: the cube is a float32."""


def slope(said: Answer, straight: bool = False) -> jax.Array:
    """d(x / alpha) / ds, or that along the straight line."""
    return said.eps - said.x_0 if straight else said.eps


def bent(
    here: Level, there: Level, gain: jax.Array, said: Answer, change: jax.Array, straight: bool = False
) -> jax.Array:
    """x at `there`, `gain` in log-SNR from `here`, if the mean slope on the way is that of `said` plus `change`."""
    size = here.alpha + here.sigma if straight else here.alpha
    fall = jnp.where(there.sigma == 0, -1.0, jnp.expm1(-0.5 * gain))  # s' / s - 1
    down, up = there.alpha * here.sigma * fall, -there.sigma * here.alpha * jnp.expm1(0.5 * gain)
    step = jnp.where(gain >= 0, down, up) / jnp.where(size == 0, 1.0, size)
    return first_order(said, there) + jnp.where(size == 0, 0.0, step) * change


def euler() -> Sampler:
    """Euler's method in s (Karras et al. 2022, Alg. 1 without its second half): DDIM without noise, by another name."""
    return ddim()


def euler_ancestral(*, eta: float = 1.0) -> Sampler:
    """Euler's method to below the next level, then noise up to it: DDIM's step with that eta, by another name.

    Raises:
        ValueError: if eta lies outside [0, 1].
    """
    return ddim(eta=eta)


def _second_half(here: Level, there: Level, gain: jax.Array, said: Answer, model: Model, straight: bool) -> jax.Array:
    """The step again with the mean of the slopes at both its ends."""

    def full() -> jax.Array:
        again = model(first_order(said, there), there)
        return bent(here, there, gain, said, 0.5 * (slope(again, straight) - slope(said, straight)), straight)

    return unless_last(there, full, said)


@functools.lru_cache
def _heun(straight: bool) -> Sampler:
    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        said = model(state.x, here)
        return moved(state, _second_half(here, there, here.gain, said, model, straight)), Info(x_0=said.x_0)

    return Sampler(
        init=start, step=step, evaluations=2, needs_signal=not straight, spacing="even" if straight else "edm"
    )


def heun(*, straight: bool = False) -> Sampler:
    """Heun's second-order method (Karras et al. 2022, Alg. 1); the step to the image is Euler's: 2 S - 1 evaluations.

    In s, or along the straight line of flow matching.
    """
    return _heun(flag("straight", straight))


@functools.lru_cache
def _dpm2() -> Sampler:
    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there, middle = levels.read(ij[0]), levels.read(ij[1]), levels.stage(0, ij[0])
        said = model(state.x, here)

        def full() -> jax.Array:
            again = model(first_order(said, middle), middle)
            return bent(here, there, here.gain, said, again.eps - said.eps)

        return moved(state, unless_last(there, full, said)), Info(x_0=said.x_0)

    return Sampler(init=start, step=step, stages=(0.5,), evaluations=2, needs_signal=True, spacing="edm")


def dpm2() -> Sampler:
    """The midpoint method in s with its middle taken in log s (k-diffusion's DPM2): of second order."""
    return _dpm2()


@functools.lru_cache
def _dpm2_ancestral(eta: float) -> Sampler:
    old, fresh = float(np.log1p(-(eta**2))) if eta < 1 else -np.inf, float(2 * np.log(eta))

    def below(xp: Any, gain: Any) -> Any:
        """log of the s that is stepped to, over the next level's: 1 - eta^2 (1 - e^-gain) is its square."""
        return 0.5 * xp.logaddexp(old, fresh - gain)

    def middle(log_snr: np.ndarray) -> np.ndarray:
        """Half way there in log s."""
        gain = np.diff(log_snr)
        return log_snr[:-1] + 0.5 * gain - below(np, gain)

    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there, half = levels.read(ij[0]), levels.read(ij[1]), levels.stage(0, ij[0])
        said = model(state.x, here)

        def full() -> jax.Array:
            again = model(first_order(said, half), half)
            kept = below(jnp, here.gain)
            x = there.alpha * said.x_0 + there.sigma * jnp.exp(kept) * said.eps
            step = there.alpha * here.sigma / here.alpha * jnp.expm1(kept - 0.5 * here.gain)
            added = there.sigma * eta * jnp.sqrt(-jnp.expm1(-jnp.maximum(here.gain, 0.0)))
            return x + step * (again.eps - said.eps) + added * noise(state)

        return moved(state, unless_last(there, full, said)), Info(x_0=said.x_0)

    return Sampler(
        init=start, step=step, stages=(middle,), evaluations=2, needs_signal=True, only_down=True, spacing="edm"
    )


def dpm2_ancestral(*, eta: float = 1.0) -> Sampler:
    """DPM2 to below the next level, then noise up to it, as in `euler_ancestral` (k-diffusion).

    Raises:
        ValueError: if eta lies outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    return _dpm2_ancestral(float(eta)) if eta else dpm2()


def _nodes(levels: Levels, i: jax.Array, count: jax.Array, order: int) -> list[Any]:
    """Where s of level i, i - 1, ... lies if the step goes from 0 to 1; before the first step, anywhere else."""
    here, there = levels.read(i), levels.read(i + 1)
    fall = jnp.where(there.sigma == 0, -1.0, jnp.expm1(-0.5 * here.gain))
    nodes: list[Any] = [jnp.zeros(())]
    back = jnp.zeros(())
    for k in range(1, order):
        back = back + levels.read(jnp.maximum(i - k, 0)).gain
        place = jnp.clip(jnp.expm1(0.5 * back) / fall, -FAR, FAR)
        # A node that isn't there yet must not fall on one that is: all weights are worked out, and some thrown away.
        place = jnp.where(place <= -FAR, jnp.minimum(place, 2 * nodes[-1]), place)
        nodes.append(jnp.where(count >= k, place, 2 * nodes[-1] - 1.0))
    return nodes


@functools.lru_cache
def _lms(order: int) -> Sampler:
    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        said = model(state.x, here)
        nodes = _nodes(levels, ij[0], state.count, order)
        means = weights(nodes, [jnp.asarray(1 / (1 + power)) for power in range(order)])
        parts = list(zip(means, divided([said.eps, *state.past], nodes), strict=True))[1:]
        change = sum(jnp.where(state.count > k, mean, 0.0) * part for k, (mean, part) in enumerate(parts))
        x = bent(here, there, here.gain, said, jnp.asarray(change))
        return moved(state, x, remember(state.past, said.eps)), Info(x_0=said.x_0)

    return Sampler(init=start_remembering(order - 1), step=step, multistep=True, spacing="edm")


def lms(*, order: int = 4) -> Sampler:
    """The linear multistep method of that order: the integral of the polynomial in s through the last eps, exactly
    (Adams-Bashforth for uneven steps). The first steps are of the orders below, the last one of its own.

    Raises:
        ValueError: for an order other than 1 to 4.
    """
    order = whole("order", order, 1, 4)
    return euler() if order == 1 else _lms(order)


@functools.lru_cache
def _edm(churn: float, low: float, high: float, scale: float) -> Sampler:
    def raised(log_snr: np.ndarray) -> np.ndarray:
        s = np.exp(-0.5 * log_snr[:-1])
        gamma = np.where((s >= low) & (s <= high), min(churn / s.size, np.sqrt(2) - 1), 0.0)
        return log_snr[:-1] - 2 * np.log1p(gamma)

    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there, up = levels.read(ij[0]), levels.read(ij[1]), levels.stage(0, ij[0])
        added = scale * here.sigma * jnp.sqrt(jnp.expm1(jnp.maximum(-up.gain, 0.0)))
        x = up.alpha / here.alpha * (state.x + added * noise(state))
        said = model(x, up)
        x = _second_half(up, there, here.gain - up.gain, said, model, False)
        return moved(state, x), Info(x_0=said.x_0)

    return Sampler(
        init=start, step=step, stages=(raised,), evaluations=2, needs_signal=True, only_down=True, spacing="edm"
    )


def edm(*, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = float("inf"), s_noise: float = 1.0) -> Sampler:
    """The stochastic sampler of Karras et al. 2022, Alg. 2: before each of Heun's steps noise raises s, where it lies
    between s_tmin and s_tmax, by a factor 1 + min(s_churn / steps, sqrt(2) - 1), but never above the process's own.

    s_noise scales that noise. Without churn it is `heun`. Their Table 5 has the values for their networks.

    Raises:
        ValueError: unless s_churn, s_tmin and s_noise are at least 0, and s_tmax at least s_tmin.
    """
    for name, value in {"s_churn": s_churn, "s_tmin": s_tmin, "s_noise": s_noise}.items():
        if not 0 <= value < np.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    if not s_tmax >= s_tmin:
        raise ValueError(f"s_tmax must be at least s_tmin, {s_tmin}, got {s_tmax}")
    return _edm(float(s_churn), float(s_tmin), float(s_tmax), float(s_noise)) if s_churn else heun()
