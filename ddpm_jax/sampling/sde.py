"""The reverse SDE, step by step, and Langevin steps that correct it (Song et al. 2021).

    dx = (f x - g^2 score) dt + g dw,    score = -eps / sigma,    t falling                                  (Eq. 6)

The last step of each, to the image, lands on the prediction of x_0 and adds no noise.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.levels import Level, Levels
from ddpm_jax.records import pick
from ddpm_jax.sampling.ancestral import ddpm
from ddpm_jax.sampling.sampler import Info, Model, Sampler, State, moved, noise, start, unless_last


@functools.lru_cache
def _euler_maruyama() -> Sampler:
    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        said = model(state.x, here)

        def full() -> jax.Array:
            drift = here.drift * state.x + here.diffusion / here.sigma * said.eps
            spread = jnp.sqrt(here.diffusion * jnp.maximum(-here.dt, 0.0))
            return state.x + drift * here.dt + spread * noise(state)

        return moved(state, unless_last(there, full, said)), Info(x_0=said.x_0)

    return Sampler(init=start, step=step, needs_signal=True, only_down=True)


def euler_maruyama() -> Sampler:
    """Euler-Maruyama of the reverse SDE in t: of weak order 1, and blind to how fast f and g change within a step.

    Many steps, evenly in t, suit it best. Where t is an index, f and g are those of the step to it.
    """
    return _euler_maruyama()


@functools.lru_cache
def _exponential(tau: float, hold: str) -> Sampler:
    def holding_x_0(state: State, here: Level, there: Level, x_0: jax.Array) -> jax.Array:
        kept = there.sigma / here.sigma * jnp.exp(-0.5 * tau**2 * here.gain)
        towards = there.alpha * -jnp.expm1(-0.5 * (1 + tau**2) * here.gain)
        spread = there.sigma * jnp.sqrt(-jnp.expm1(-(tau**2) * jnp.maximum(here.gain, 0.0)))
        return kept * state.x + towards * x_0 + spread * noise(state)

    def holding_eps(state: State, here: Level, there: Level, eps: jax.Array) -> jax.Array:
        away = (1 + tau**2) * there.sigma * jnp.expm1(0.5 * here.gain)
        spread = tau * there.sigma * jnp.sqrt(jnp.expm1(jnp.maximum(here.gain, 0.0)))
        return there.alpha / here.alpha * state.x - away * eps + spread * noise(state)

    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        said = model(state.x, here)
        held = {
            "x0": lambda: holding_x_0(state, here, there, said.x_0),
            "eps": lambda: holding_eps(state, here, there, said.eps),
        }
        return moved(state, unless_last(there, held[hold], said)), Info(x_0=said.x_0)

    return Sampler(init=start, step=step, needs_signal=hold == "eps", only_down=True)


def exponential_sde(*, tau: float = 1.0, hold: str = "eps") -> Sampler:
    """The reverse SDE in log-SNR with what is linear in x solved exactly, and one prediction held over the step.

    Holding eps this is SEEDS-1 (Gonzalez et al. 2023); holding x0, the one-step SA-Solver (Xue et al. 2023), the
    steadier of the two where steps are long. tau scales the noise: at 1 it is the reverse SDE, at 0 the
    probability-flow ODE and DDIM. Holding x0 at 1 is ddpm with the small variance.

    Raises:
        ValueError: unless tau lies in [0, 1] and hold is eps or x0.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"tau must lie in [0, 1], got {tau}")
    pick({"eps": 0, "x0": 0}, hold, "hold")
    return _exponential(float(tau), hold)


@functools.lru_cache
def _reverse_diffusion() -> Sampler:
    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        said = model(state.x, here)

        def full() -> jax.Array:
            kept = here.alpha / there.alpha
            new = -jnp.expm1(-jnp.maximum(here.gain, 0.0))  # of the variance here, what the step there -> here added
            towards = -new * here.sigma * said.eps
            return (2 - kept) * state.x + towards + jnp.sqrt(new) * here.sigma * noise(state)

        return moved(state, unless_last(there, full, said)), Info(x_0=said.x_0)

    return Sampler(init=start, step=step, needs_signal=True, only_down=True)


def reverse_diffusion() -> Sampler:
    """The reverse SDE discretised as the forward one is (Song et al. 2021, App. E, Eq. 46).

    A forward step x' = a x + sqrt(v) z is turned round to x = (2 - a) x' + v score + sqrt(v) z. Here a and v are those
    of the step between the two levels, whatever the process; with all of a schedule's steps v is beta.
    """
    return _reverse_diffusion()


def _annealed(here: Level, score: jax.Array, z: jax.Array) -> jax.Array:
    del score, z
    return here.sigma**2


def _by_norms(here: Level, score: jax.Array, z: jax.Array) -> jax.Array:
    del here

    def square(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True)

    return square(z) / jnp.maximum(square(score), jnp.finfo(score.dtype).tiny)


CORRECTORS = {"langevin": _by_norms, "annealed": _annealed}
"""Sizes of a Langevin step, before 2 snr^2: by the norms of noise and score, or by the level alone."""


def correct(
    state: State, model: Model, here: Level, *, snr: float, steps: int, corrector: str, keep: jax.Array
) -> State:
    """`steps` Langevin steps at one level: x + e score + sqrt(2 e) z (Song et al. 2021, Algorithms 4 and 5).

    The size e is 2 keep (snr |z| / |score|)^2 of each image for "langevin", 2 keep (snr sigma)^2 for "annealed" (Song &
    Ermon 2019). The first depends on x and z, and so doesn't leave the level's distribution as it is, however small the
    snr: of a normal in D dimensions it makes the variance ((D + 2) / D)^2 times as large. The second does, to O(e).
    """

    def once(k: Any, x: jax.Array) -> jax.Array:
        score = -model(x, here).eps / here.sigma
        z = noise(state, k + 1)  # 0 is the predictor's
        size = 2 * keep * snr**2 * CORRECTORS[corrector](here, score, z)
        return x + size * score + jnp.sqrt(2 * size) * z

    return dataclasses.replace(state, x=jax.lax.fori_loop(0, steps, once, state.x))


PREDICTORS = {
    "reverse_diffusion": reverse_diffusion,
    "ancestral": lambda: ddpm(variance="small"),
    "euler_maruyama": euler_maruyama,
}


@functools.lru_cache
def _predictor_corrector(predictor: str, corrector: str, snr: float, corrections: int) -> Sampler:
    predicting = PREDICTORS[predictor]()

    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        keep = (here.alpha / there.alpha) ** 2
        state = correct(state, model, here, snr=snr, steps=corrections, corrector=corrector, keep=keep)
        return predicting.step(state, model, levels, ij)

    needs_signal = predicting.needs_signal
    return Sampler(init=start, step=step, evaluations=1 + corrections, needs_signal=needs_signal, only_down=True)


def predictor_corrector(
    *, predictor: str = "reverse_diffusion", corrector: str = "langevin", snr: float = 0.16, corrections: int = 1
) -> Sampler:
    """Langevin steps at each level, then a step on to the next (Song et al. 2021, App. G, Algorithms 2 to 5).

    The network is asked at the level where x stands, never at the image; the order within a step is that of their code.
    As in their algorithms the Langevin step shrinks with what the forward step keeps, (alpha_i / alpha_{i-1})^2.

    Args:
        predictor: reverse_diffusion, ancestral or euler_maruyama.
        corrector: langevin, step sizes by the norms of each image's score and noise; or annealed, by the level: see
            `correct`.
        snr: the signal-to-noise ratio of a Langevin step; theirs is 0.16 for VE and VP images of 32 x 32.
        corrections: Langevin steps at each level.

    Raises:
        ValueError: for another name, snr below 0 or a number of corrections that isn't whole and at least 0.
    """
    pick(PREDICTORS, predictor, "predictor")
    pick(CORRECTORS, corrector, "corrector")
    if not 0 <= snr < float("inf"):
        raise ValueError(f"snr must be at least 0, got {snr}")
    if corrections < 0 or int(corrections) != corrections:
        raise ValueError(f"corrections must be a whole number of at least 0, got {corrections}")
    return _predictor_corrector(predictor, corrector, float(snr), int(corrections))
