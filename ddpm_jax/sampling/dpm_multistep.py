"""DPM-Solver and DPM-Solver++ over earlier steps, and its SDE (Lu et al. 2022b): one evaluation a step.

The polynomial of `dpm_solver` goes through this step's value and those of the last steps; a first step has none and is
DDIM's, the second is of order 2, and so on. With noise, eta > 0, the same marginals are those of an SDE, and

    x_t = alpha_t x_0 + sigma_t e^(-eta h) eps - alpha_t z sum_{k >= 1} w_k d_k + sigma_t sqrt(1 - e^(-2 eta h)) noise

with z = -(1 + eta) h: where x_0 is constant it is exact, for any eta.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.levels import Level, Levels
from ddpm_jax.sampling.dpm_solver import divided, flag, moments, phi, said_as, scale, weights, whole
from ddpm_jax.sampling.sampler import Info, Model, Sampler, State, moved, noise, remember, start_remembering

FEW = 15
"""Below this number of steps the last ones are of lower order, as the authors advise (lower_order_final)."""


def order_of(levels: Levels, i: jax.Array, order: int, known: jax.Array, lower_final: bool) -> jax.Array:
    """The order of the step from the i-th level, with `known` values of earlier steps: 1 to `order`."""
    possible = jnp.minimum(order, known + 1)
    if lower_final:
        steps = levels.visited.t.shape[0] - 1 if levels.num_steps is None else levels.num_steps
        possible = jnp.minimum(possible, jnp.where(jnp.asarray(steps) < FEW, steps - i, order))
    return jnp.where(levels.visited.sigma[i + 1] == 0, 1, possible)


def nonzero(value: jax.Array) -> jax.Array:
    """The value, or 1 in place of 0: two levels may have the same log-SNR where it is cut off."""
    return jnp.where(value == 0, 1.0, value)


def earlier(levels: Levels, i: jax.Array, number: int, length: Callable[[Level], jax.Array]) -> list[jax.Array]:
    """Where the i-th level and the `number` before it stand, in parts of the step from i: 0, -h_{i-1} / h_i, ..

    `length` is that of the step from a level. Before the first level the steps are as long as the first.
    """
    table = nonzero(length(levels.visited))
    lengths = [table[jnp.maximum(i - k, 0)] for k in range(number + 1)]
    nodes = [jnp.zeros_like(lengths[0])]
    for before in lengths[1:]:
        nodes.append(nodes[-1] - before / lengths[0])
    return nodes


Moments = Callable[[Levels, jax.Array, jax.Array, int], list[jax.Array]]
"""(levels, i, z, degree) -> the integrals of e^(z (1 - r)) against 1, p, .. p^degree over the step from i."""


def _in_log_snr(levels: Levels, i: jax.Array, z: jax.Array, degree: int) -> list[jax.Array]:
    del levels, i
    return moments(z, degree)


def gain(level: Level) -> jax.Array:
    return level.gain


# What the published formulas have in place of an integral: Lu et al.'s code halves that of the square.
_AS_PUBLISHED = (1.0, 1.0, 0.5)


@functools.lru_cache
def multistep(
    data: bool,
    order: int,
    *,
    exact: bool,
    eta: float = 0.0,
    lower_final: bool = True,
    length: Callable[[Level], jax.Array] = gain,
    moments_of: Moments = _in_log_snr,
    stages: tuple[float, ...] = (),
) -> Sampler:
    """The sampler that all of these are: a polynomial in the variable whose steps have `length`, of degree order - 1.

    Without `exact` a step of order 2 has the weight of Lu et al. 2022b, Algorithm 2, one of order 3 that of their code.
    """

    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        i = ij[0]
        here, there = levels.read(i), levels.read(ij[1])
        said = model(state.x, here)
        value = said_as(data, said)
        a, z = scale(data, there, here.gain)
        extra = 0.5 * eta * jnp.maximum(here.gain, 0.0)
        x = there.alpha * said.x_0 + there.sigma * jnp.exp(-extra) * said.eps
        if order > 1:
            nodes = earlier(levels, i, order - 1, length)
            now = order_of(levels, i, order, state.count, lower_final)
            found = moments_of(levels, i, z - extra, order - 1)
            if not exact:
                found = [share * m for share, m in zip(_AS_PUBLISHED, found, strict=False)]
            by = weights(nodes, found)
            if not exact:
                by[1] = jnp.where(now == 2, 0.5 * phi(z - extra, 1)[0], by[1])
            differences = divided([value, *state.past], nodes)
            x -= a * (z - extra) * sum(jnp.where(k < now, by[k], 0.0) * differences[k] for k in range(1, order))
        if eta > 0:
            x += there.sigma * jnp.sqrt(-jnp.expm1(-2 * extra)) * noise(state)
        return moved(state, x, remember(state.past, value)), Info(x_0=said.x_0)

    return Sampler(init=start_remembering(order - 1), step=step, stages=stages, multistep=order > 1, only_down=eta > 0)


def dpm_solver_2m(*, exact: bool = False, lower_final: bool = True) -> Sampler:
    """DPM-Solver in eps over two steps, order 2. The settings are `dpm_solver_pp_2m`'s."""
    return multistep(False, 2, exact=flag("exact", exact), lower_final=flag("lower_final", lower_final))


def dpm_solver_3m(*, exact: bool = True, lower_final: bool = True) -> Sampler:
    """DPM-Solver in eps over three steps, order 3. The settings are `dpm_solver_pp_3m`'s."""
    return multistep(False, 3, exact=flag("exact", exact), lower_final=flag("lower_final", lower_final))


def dpm_solver_pp_2m(*, exact: bool = False, lower_final: bool = True) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2): x_0, order 2.

    Args:
        exact: integrate the line through both values without the paper's further approximation (solver_type "heun"
            elsewhere).
        lower_final: below 15 steps the last is of order 1, the one before of order 2 at most. The step to the image
            is of order 1 at any rate.
    """
    return multistep(True, 2, exact=flag("exact", exact), lower_final=flag("lower_final", lower_final))


def dpm_solver_pp_3m(*, exact: bool = True, lower_final: bool = True) -> Sampler:
    """DPM-Solver++(3M): x_0, the parabola through three values.

    Args:
        exact: off, as in the code of Lu et al. and what follows it, which has half of the parabola's last term; its
            order of convergence is then 2, not 3.
        lower_final: as in `dpm_solver_pp_2m`.
    """
    return multistep(True, 3, exact=flag("exact", exact), lower_final=flag("lower_final", lower_final))


def dpm_solver_pp_sde(
    *, order: int = 2, eta: float = 1.0, exact: bool | None = None, lower_final: bool = True
) -> Sampler:
    """SDE-DPM-Solver++ (Lu et al. 2022b): order 1, 2M or 3M with noise.

    Order 1 is DDPM with the small variance.

    Args:
        eta: how much noise: 0 is the ODE's DPM-Solver++, 1 the reverse SDE.
        exact: as in `dpm_solver_pp_2m` and `_3m`, off by default for the former and on for the latter.
        lower_final: as there.

    Raises:
        ValueError: for an order other than 1, 2, 3, or eta below 0.
    """
    order = whole("order", order, 1, 3)
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta must be a number of at least 0, got {eta}")
    exact = order == 3 if exact is None else flag("exact", exact)
    return multistep(True, order, exact=exact, eta=float(eta), lower_final=flag("lower_final", lower_final))
