"""UniPC: a predictor and a corrector that costs no evaluation (Zhao et al. 2023).

The predictor (UniP) is a multistep solver. The corrector (UniC) steps again from the level before, to where the
predictor went, now knowing what the network says there; that answer, once given, serves the next step too. So x is
corrected at the beginning of the step after, and what a step ends with is the prediction; the last isn't corrected.
"""

import functools

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.levels import Levels
from ddpm_jax.sampling.dpm_multistep import earlier, gain, nonzero, order_of
from ddpm_jax.sampling.dpm_solver import divided, finite, flag, moments, said_as, scale, weights, whole
from ddpm_jax.sampling.sampler import Info, Model, Sampler, State, first_order, moved, start_remembering


@functools.lru_cache
def _unipc(order: int, bh: int, data: bool, corrector: bool, lower_final: bool) -> Sampler:
    def half_b(z: jax.Array) -> jax.Array:
        """B(h) / 2 over z: the weight that a single difference has in place of its integral."""
        return jnp.full_like(z, 0.5) if bh == 1 else 0.5 * moments(z, 0)[0]

    def change(values: list[jax.Array], nodes: list[jax.Array], z: jax.Array, used: jax.Array) -> jax.Array:
        """sum_k w_k d_k over the first `used` of the values."""
        by = weights(nodes, moments(z, len(nodes) - 1))
        by[1] = jnp.where(used == 2, half_b(z), by[1])
        differences = divided(values, nodes)
        return sum((jnp.where(k < used, by[k], 0.0) * differences[k] for k in range(1, len(nodes))), jnp.zeros(()))

    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        i = ij[0]
        here, there = levels.read(i), levels.read(ij[1])
        said = model(state.x, here)
        value = said_as(data, said)
        base, past = state.past[0], list(state.past[1:])  # the first-order step that led here; values, newest first
        x = state.x
        if corrector:
            done = jnp.maximum(i - 1, 0)
            before = earlier(levels, done, order - 1, gain)
            nodes = [before[0], jnp.ones_like(before[0]), *before[1:]]
            a, z = scale(data, here, levels.visited.gain[done])
            used = order_of(levels, done, order, state.count - 1, lower_final) + 1
            better = base - a * z * change([past[0], value, *past[1:]], nodes, z, used)
            x = jnp.where((state.count > 0) & finite(levels.visited)[done], better, x)
        # The answer was given of the prediction, and is kept; what the corrector moved x by is carried along.
        ratio = there.sigma / nonzero(here.sigma) if data else there.alpha / nonzero(here.alpha)
        base = first_order(said, there) + ratio * (x - state.x)
        values = [value, *past]
        x = base
        if order > 1:
            a, z = scale(data, there, here.gain)
            nodes = earlier(levels, i, order - 1, gain)
            used = order_of(levels, i, order, state.count, lower_final)
            x = base - a * z * change(values[:order], nodes, z, used)
        return moved(state, x, jnp.stack([base, *values[:order]])), Info(x_0=said.x_0)

    return Sampler(init=start_remembering(order + 1), step=step, multistep=True)


def unipc(
    *, order: int = 3, bh: int = 2, eps: bool = False, corrector: bool = True, lower_final: bool = True
) -> Sampler:
    """UniPC-p (Zhao et al. 2023): the predictor is of order p, with the corrector of order p + 1.

    Args:
        order: p, 1 to 3; the first steps are of lower order.
        bh: 1 for B(h) = h, 2 for B(h) = e^h - 1. It matters where there is one difference only; elsewhere it cancels.
        eps: integrate eps in place of x_0.
        corrector: off, UniP alone.
        lower_final: below 15 steps the last is of order 1, the one before of order 2 at most. The step to the image
            is of order 1 at any rate.

    Raises:
        ValueError: for another order or bh.
    """
    order, bh = whole("order", order, 1, 3), whole("bh", bh, 1, 2)
    return _unipc(order, bh, not flag("eps", eps), flag("corrector", corrector), flag("lower_final", lower_final))
