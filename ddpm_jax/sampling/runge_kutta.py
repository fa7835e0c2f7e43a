"""Runge-Kutta methods for the probability-flow ODE: the classical one, and exponential ones in log-SNR.

With y = x / alpha and l = log(alpha / sigma), half the log-SNR, the ODE is

    dy / dl = -y + x_0(y, l)

whose first part an exponential method solves exactly. With weights a_ij(-h), b_i(-h) that are sums of the functions
phi_k(z) = integral of e^{(1 - r) z} r^{k - 1} / (k - 1)! over r in [0, 1], h the step's l, and D_j = x_0 at stage j,

    x_i = first_order(answer_1, level_i) + alpha_i h sum_j>1 a_ij (D_j - D_1)

in which nothing is divided by alpha.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from ddpm_jax.diffusion.levels import Level, Levels
from ddpm_jax.sampling.ancestral import ddim
from ddpm_jax.sampling.dpm_solver import flag, phi, whole
from ddpm_jax.sampling.sampler import Info, Model, Sampler, State, first_order, moved, start, unless_last
from ddpm_jax.sampling.sigma_space import bent, slope


@functools.lru_cache
def _rk4(straight: bool) -> Sampler:
    def middle(log_snr: np.ndarray) -> np.ndarray:
        """Half way in s, or in u = s / (1 + s)."""
        s = np.exp(-0.5 * log_snr)
        u = s / (1 + s) if straight else s
        u = 0.5 * (u[:-1] + u[1:])
        return -2 * np.log(u / (1 - u) if straight else u)

    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there, half = levels.read(ij[0]), levels.read(ij[1]), levels.stage(0, ij[0])
        said = model(state.x, here)
        first = slope(said, straight)

        def full() -> jax.Array:
            second = slope(model(first_order(said, half), half), straight) - first
            third = slope(model(bent(here, half, half.gain, said, second, straight), half), straight) - first
            fourth = slope(model(bent(here, there, here.gain, said, third, straight), there), straight) - first
            return bent(here, there, here.gain, said, (2 * second + 2 * third + fourth) / 6, straight)

        return moved(state, unless_last(there, full, said)), Info(x_0=said.x_0)

    spacing = "even" if straight else "edm"
    return Sampler(init=start, step=step, stages=(middle,), evaluations=4, needs_signal=not straight, spacing=spacing)


def rk4(*, straight: bool = False) -> Sampler:
    """The classical fourth-order method (Kutta 1901), in s = sigma / alpha or along the straight line of flow matching
    (`sigma_space`). The step to the image is Euler's."""
    return _rk4(flag("straight", straight))


Weight = Callable[[jax.Array], jax.Array]
"""Of z = -h, the whole step's."""


def _phi(k: int, z: jax.Array) -> jax.Array:
    return phi(z, k)[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tableau:
    """An exponential Runge-Kutta method, without the weights of its first stage: those make up for the others."""

    nodes: tuple[float, ...]
    """Where its later stages lie; 1 is the step's end."""
    stages: tuple[tuple[Weight | None, ...], ...]
    """What each later stage takes of the later stages before it, None for nothing."""
    end: tuple[Weight | None, ...]
    """What the step takes of each later stage."""


def _after_two(z: jax.Array) -> jax.Array:
    return 4 / 3 * _phi(2, 2 * z / 3)


def _inner(z: jax.Array) -> jax.Array:
    return 2 * _phi(2, z) - 4 * _phi(3, z)


TABLEAUS: dict[int, Tableau] = {
    # Hochbruck & Ostermann 2005, Sec. 5.1, with c_2 = 1/2: stiff order 2.
    2: Tableau(nodes=(0.5,), stages=((),), end=(lambda z: 2 * _phi(2, z),)),
    # Ibid., Sec. 5.2, with c_2 = 1/3: stiff order 3 (its last condition, psi_3 = 0, holds at z = 0, as they ask).
    3: Tableau(nodes=(1 / 3, 2 / 3), stages=((), (_after_two,)), end=(None, lambda z: 1.5 * _phi(2, z))),
    # Krogstad 2005, ETDRK4-B: order 4, stiff order 3.
    4: Tableau(
        nodes=(0.5, 0.5, 1.0),
        stages=((), (lambda z: _phi(2, z / 2),), (None, lambda z: 2 * _phi(2, z))),
        end=(_inner, _inner, lambda z: 4 * _phi(3, z) - _phi(2, z)),
    ),
}


@functools.lru_cache
def _exponential(order: int) -> Sampler:
    tableau = TABLEAUS[order]
    inside = tuple(dict.fromkeys(node for node in tableau.nodes if node < 1))

    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        said, h = model(state.x, here), 0.5 * here.gain

        def full() -> jax.Array:
            changes: list[jax.Array] = []  # x_0 of each later stage less that of the first

            def ahead(level: Level, weights: tuple[Weight | None, ...]) -> jax.Array:
                pairs = zip(weights, changes, strict=True)
                bend = [weight(-h) * change for weight, change in pairs if weight is not None]
                return first_order(said, level) + level.alpha * h * sum(bend)

            for node, weights in zip(tableau.nodes, tableau.stages, strict=True):
                level = there if node == 1 else levels.stage(inside.index(node), ij[0])
                changes.append(model(ahead(level, weights), level).x_0 - said.x_0)
            return ahead(there, tableau.end)

        return moved(state, unless_last(there, full, said)), Info(x_0=said.x_0)

    return Sampler(init=start, step=step, stages=inside, evaluations=order)


def exponential(*, order: int = 2) -> Sampler:
    """The exponential Runge-Kutta method of that order in log-SNR, data-predicting: Hochbruck & Ostermann's of stiff
    order 2 and 3, Krogstad's of order 4 (stiff order 3). It asks as often as its order says; Euler's is DDIM.

    The methods of order 2 and 3 are dpm_solver_pp_2s(exact=True) and dpm_solver_pp_3s(), found on another way.

    Raises:
        ValueError: for an order other than 1 to 4.
    """
    order = whole("order", order, 1, 4)
    return ddim() if order == 1 else _exponential(order)
