"""Pseudo numerical methods (Liu et al. 2022): a classical method's mean of eps, moved along by DDIM's step.

The mean is one over t, with the weights of even steps in t, where the exact solution wants one over s = sigma / alpha.
So all are of second order at most, whatever the classical method, and of its own order only where s is linear in t
(the process `edm`). On uneven steps in t those that remember are of first order, unless steps grow smoothly.
"""

import functools

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.levels import Level, Levels
from ddpm_jax.sampling.ancestral import ddim
from ddpm_jax.sampling.dpm_solver import flag, whole
from ddpm_jax.sampling.sampler import (
    Answer,
    Info,
    Model,
    Sampler,
    State,
    first_order,
    moved,
    remember,
    start_remembering,
)
from ddpm_jax.sampling.sigma_space import bent

ADAMS_BASHFORTH = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""What each order, 1 to 4, takes of eps now, one step ago, ... (Liu et al. 2022)."""


def _multistep(here: Level, there: Level, said: Answer, state: State) -> jax.Array:
    """The step with as high an order as is remembered."""
    most = len(state.past)
    weights = jnp.asarray(ADAMS_BASHFORTH, said.eps.dtype)[jnp.minimum(state.count, most), 1 : most + 1]
    return bent(here, there, here.gain, said, jnp.tensordot(weights, state.past - said.eps, axes=1))


@functools.lru_cache
def _ipndm(order: int) -> Sampler:
    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        said = model(state.x, here)
        x = _multistep(here, there, said, state)
        return moved(state, x, remember(state.past, said.eps)), Info(x_0=said.x_0)

    return Sampler(init=start_remembering(order - 1), step=step, multistep=True)


def ipndm(*, order: int = 4) -> Sampler:
    """PLMS whose first steps are of the orders below (iPNDM; Zhang & Chen 2023): one evaluation a step.

    Raises:
        ValueError: for an order other than 1 to 4.
    """
    order = whole("order", order, 1, 4)
    return ddim() if order == 1 else _ipndm(order)


@functools.lru_cache
def _pndm(runge_kutta: bool) -> Sampler:
    def begun(here: Level, there: Level, half: Level, said: Answer, model: Model) -> jax.Array:
        """The pseudo Runge-Kutta step: the classical fourth-order method, eps for slopes."""
        second = model(first_order(said, half), half).eps - said.eps
        third = model(bent(here, half, half.gain, said, second), half).eps - said.eps
        fourth = model(bent(here, there, here.gain, said, third), there).eps - said.eps
        return bent(here, there, here.gain, said, (2 * second + 2 * third + fourth) / 6)

    def begun_short(here: Level, there: Level, half: Level, said: Answer, model: Model) -> jax.Array:
        del half
        again = model(first_order(said, there), there)
        return bent(here, there, here.gain, said, 0.5 * (again.eps - said.eps))

    begin, steps = (begun, 3) if runge_kutta else (begun_short, 1)

    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there, half = levels.read(ij[0]), levels.read(ij[1]), levels.stage(0, ij[0])
        said = model(state.x, here)
        x = jax.lax.cond(
            (state.count < steps) & (there.sigma > 0),
            lambda: begin(here, there, half, said, model),
            lambda: _multistep(here, there, said, state),
        )
        return moved(state, x, remember(state.past, said.eps)), Info(x_0=said.x_0)

    return Sampler(
        init=start_remembering(3),
        step=step,
        stages=(0.5,),
        stages_in="t",
        multistep=True,
        needs_signal=True,
        spacing="edm",
    )


def pndm(*, runge_kutta: bool = True) -> Sampler:
    """Pseudo linear multistep sampling (Liu et al. 2022, Alg. 2), with three pseudo Runge-Kutta steps to begin with:
    S + 9 evaluations.

    With runge_kutta=False the first step is Euler's and then again with the mean of both eps, the others are of the
    orders that are remembered (PLMS as Stable Diffusion has it): S + 1 evaluations.
    """
    return _pndm(flag("runge_kutta", runge_kutta))
