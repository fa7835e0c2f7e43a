"""DPM-Solver and DPM-Solver++ within one step (Lu et al. 2022a, 2022b), and the integrals that their kin share.

With the half log-SNR l = log(alpha / sigma) and h its gain from s to t, the probability-flow ODE is solved by

    x_t = alpha_t / alpha_s x_s - sigma_t int_0^h e^(h - u) eps(u) du           (Lu et al. 2022a, Prop. 3.1)
    x_t = sigma_t / sigma_s x_s + alpha_t int_0^h e^(u - h) x_0(u) du           (Lu et al. 2022b, Prop. 4.1)

For a network that doesn't change on the way both are DDIM's step. A higher order takes a polynomial for it, here in
Newton's form, P(r) = sum_k d_k (r - r_0) .. (r - r_{k-1}) with r = u / h and r_0 = 0. Then for both

    x_t = DDIM's step - a z sum_{k >= 1} w_k d_k,        a, z = alpha_t, -h of x_0; sigma_t, h of eps
    w_k = int_0^1 e^(z (1 - r)) r (r - r_1) .. (r - r_{k-1}) dr,     int_0^1 e^(z (1 - r)) r^m dr = m! phi_{m+1}(z)

and there is no division by alpha or sigma.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.levels import Level, Levels
from ddpm_jax.sampling.ancestral import ddim
from ddpm_jax.sampling.sampler import Answer, Info, Model, Sampler, State, first_order, moved, start


def phi(z: jax.Array, number: int) -> list[jax.Array]:
    """phi_1(z) .. phi_number(z), each to rounding: phi_1 = (e^z - 1) / z, phi_{k+1} = (phi_k - 1 / k!) / z.

    The recurrence cancels for small z, where it is run downwards from the last one's series.
    """
    small = jnp.abs(z) < 1
    near, far = jnp.where(small, z, 0.0), jnp.where(small, 1.0, z)
    last = jnp.zeros_like(z)
    for j in range(18, -1, -1):
        last = last * near + 1 / math.factorial(j + number)
    below, above = [last], [jnp.expm1(far) / far]
    for k in range(1, number):
        below.insert(0, near * below[0] + 1 / math.factorial(number - k))
        above.append((above[-1] - 1 / math.factorial(k)) / far)
    return [jnp.where(small, b, a) for b, a in zip(below, above, strict=True)]


def moments(z: jax.Array, degree: int) -> list[jax.Array]:
    """int_0^1 e^(z (1 - r)) r^m dr for m = 0 .. degree."""
    return [math.factorial(m) * value for m, value in enumerate(phi(z, degree + 1))]


def divided(values: Sequence[jax.Array], nodes: Sequence[Any]) -> list[jax.Array]:
    """Newton's divided differences d_0 = values[0], d_1, .. of the values at the nodes, which must differ."""
    column, found = list(values), [values[0]]
    for k in range(1, len(nodes)):
        column = [(b - a) / (nodes[j + k] - nodes[j]) for j, (a, b) in enumerate(itertools.pairwise(column))]
        found.append(column[0])
    return found


def weights(nodes: Sequence[Any], moments: Sequence[jax.Array]) -> list[Any]:
    """w_0 .. w_{K-1} for K nodes: what the moments make of Newton's polynomials (r - r_0) .. (r - r_{k-1})."""
    powers: list[Any] = [1.0]  # of the polynomial, the constant first
    found = []
    for node in nodes:
        found.append(sum(c * m for c, m in zip(powers, moments, strict=False)))
        powers = [up - node * same for up, same in zip([0.0, *powers], [*powers, 0.0], strict=True)]
    return found


def said_as(data: bool, answer: Answer) -> jax.Array:
    """What is integrated: x_0 or eps."""
    return answer.x_0 if data else answer.eps


def scale(data: bool, there: Level, gain: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a and z of the step that gains `gain` of log-SNR and ends there."""
    return (there.alpha, -0.5 * gain) if data else (there.sigma, 0.5 * gain)


def whole(name: str, value: float, low: int, high: int) -> int:
    """A setting as a whole number.

    Raises:
        ValueError: unless it is one from low to high.
    """
    if value not in range(low, high + 1):
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value}")
    return int(value)


def flag(name: str, value: float) -> bool:
    """A setting that is on or off, 1 or 0.

    Raises:
        ValueError: for anything else.
    """
    return bool(whole(name, value, 0, 1))


def finite(level: Level) -> jax.Array:
    """Is its log-SNR a number? Not at the image, nor where nothing is left of it: there is no polynomial to there."""
    return (level.sigma > 0) & (level.alpha > 0)


STAGES = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}
"""Where each order looks, as parts of a step's log-SNR (Lu et al. 2022a, Algorithms 1 and 2)."""


@functools.lru_cache
def _single_step(data: bool, order: int, exact: bool) -> Sampler:
    parts = STAGES[order]

    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])
        said = model(state.x, here)

        def full() -> jax.Array:
            values = [said_as(data, said)]
            for k, part in enumerate(parts):
                stage = levels.stage(k, ij[0])
                guess = first_order(said, stage)
                if k == 1:
                    a, z = scale(data, stage, stage.gain)
                    guess -= a * z * phi(z, 2)[1] * part / parts[0] * (values[1] - values[0])
                values.append(said_as(data, model(guess, stage)))
            a, z = scale(data, there, here.gain)
            if exact:
                nodes = (0.0, *parts)
                terms = zip(weights(nodes, moments(z, order - 1)), divided(values, nodes), strict=True)
                change = sum(w * d for w, d in list(terms)[1:])
            else:
                one, two = phi(z, 2)
                change = (one / 2 if order == 2 else two) * (values[-1] - values[0]) / parts[-1]
            return first_order(said, there) - a * z * change

        x = jax.lax.cond(finite(here) & finite(there), full, lambda: first_order(said, there))
        return moved(state, x), Info(x_0=said.x_0)

    spacing = "even" if data else "log_snr"  # eps held over a step from where nothing is left of the image is too far
    return Sampler(init=start, step=step, stages=parts, evaluations=order, spacing=spacing)


def dpm_solver(*, order: int = 3, exact: bool = False) -> Sampler:
    """DPM-Solver-1, -2 or -3 (Lu et al. 2022a, Eq. 3.7, Algorithms 1 and 2): eps, `order` evaluations a step.

    DPM-Solver-1 is DDIM. The step to the image is of first order.

    Args:
        exact: integrate the line or parabola through all of a step's values, as the authors' code does with
            solver_type="taylor"; the order is the same.

    Raises:
        ValueError: for an order other than 1, 2, 3.
    """
    order = whole("order", order, 1, 3)
    return ddim() if order == 1 else _single_step(False, order, flag("exact", exact))


def dpm_solver_pp_2s(*, exact: bool = False) -> Sampler:
    """DPM-Solver++(2S) (Lu et al. 2022b, Algorithm 1 with r = 1/2): x_0, two evaluations a step; `exact` as above."""
    return _single_step(True, 2, flag("exact", exact))


def dpm_solver_pp_3s(*, exact: bool = False) -> Sampler:
    """The same of third order: Lu et al. 2022a, Algorithm 2, with x_0 in place of eps; three evaluations a step."""
    return _single_step(True, 3, flag("exact", exact))
