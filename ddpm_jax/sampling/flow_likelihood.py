"""The exact log-density of the probability-flow ODE (Song et al. 2021, Sec. 4.3 and App. D.2; Chen et al. 2018).

    log p(x_0) = log p_T(x_T) + log |d x_T / d x_0|,    d/dl log |d y / d y_0| = div dy/dl = tr J

x_0 stands at the least noisy level that the network knows, as in Song et al.; x_T, where the flow takes it, is its
encoding. The trace is exact, one product J e_d for each of the D dimensions, or Hutchinson's: the mean of e . J e over
random probes e with E[e e^T] = 1, which stay the same all the way (Grathwohl et al. 2019).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.levels import Levels, visit
from ddpm_jax.diffusion.processes import Process, of_schedule
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.records import pick
from ddpm_jax.sampling import black_box
from ddpm_jax.sampling.loop import ask
from ddpm_jax.sampling.sampler import Model
from ddpm_jax.types import Denoiser

_TOGETHER = 16  # products J e worked out at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Density:
    """The log-density of B images."""

    log_p: jax.Array
    """[B], nats: the sum over all dimensions."""
    latent: jax.Array
    """[B, ...]: x_T."""
    by_probe: jax.Array
    """[K, B]: log_p by each probe alone; their mean is log_p. [1, B] with the exact trace."""
    steps: jax.Array
    """That the solver took, int32; those refused too."""


def _signs(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.rademacher(key, shape, dtype)


PROBES: dict[str, Callable[..., jax.Array]] = {"rademacher": _signs, "gaussian": jax.random.normal}
"""Rademacher's variance is the lower: the diagonal of J has no part in it, so that a diagonal J needs a single one."""


def ends(schedule: Schedule | Process) -> Levels:
    """The noisiest level and the least noisy, for `log_density`. Made outside a jit, and passed into it."""
    walked = of_schedule(schedule) if isinstance(schedule, Schedule) else schedule
    return visit(schedule, (walked.start, walked.end), anywhere=True)


def log_density(
    key: jax.Array,
    denoise: Denoiser,
    levels: Levels,
    x_0: jax.Array,
    *,
    indices: jax.Array | None = None,
    conditions: Any = None,
    prediction: str = "eps",
    exact: bool = False,
    probes: int = 1,
    probe: str = "rademacher",
    solver: str = "tsit5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> Density:
    """log p(x_0) of x_0 [B, ...] under the flow, with x_T ~ N(0, start_std^2). To be called from a jit.

    Args:
        key: of the probes; image i's depend on (key, indices[i]) only.
        denoise: a pytree, as in `sampling.sample_batch`; the third argument it gets is `conditions`, if there are any.
        levels: `ends(schedule)`, or `visit` of other levels with anywhere=True: x_T stands at the first, x_0 at the
            last that is visited.
        indices: the images' numbers, int [B]; 0 .. B-1.
        prediction: what the output means. It isn't clipped: that would leave the density of another flow.
        exact: the exact trace, D products with the Jacobian for every evaluation, in place of `probes` of them.
        probe: rademacher or gaussian.
        solver, rtol, atol, max_steps: see `black_box.ode`. The log-density is held to them too, in nats per dimension.

    Returns:
        a Density; NaN where max_steps were not enough.

    Raises:
        ValueError: for fewer than one probe, unknown names, or settings of the solver that can't be.
        ImportError: without diffrax, saying how it comes.
    """
    trained = levels.trained
    if trained is None:
        raise ValueError("a flow's density needs levels that know what lies between: visit(..., anywhere=True)")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    draw = pick(PROBES, probe, "probe")
    black_box.check(solver, rtol, atol, max_steps)
    here, there = levels.read(-1), levels.read(0)
    x_0 = jnp.asarray(x_0, here.alpha.dtype)
    size = x_0[0].size
    if exact:
        basis = jnp.eye(size, dtype=x_0.dtype).reshape(size, 1, *x_0.shape[1:])
        directions = jnp.broadcast_to(basis, (size, *x_0.shape))
    else:
        numbers = jnp.arange(len(x_0)) if indices is None else indices
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), probes))(numbers)
        directions = jax.vmap(jax.vmap(lambda k: draw(k, x_0.shape[1:], x_0.dtype)), in_axes=1)(keys)
    field = functools.partial(
        _with_traces,
        ask(denoise, prediction=prediction, clip=False, conditions=conditions),
        trained,
        directions,
        jnp.sum if exact else lambda values, axis, keepdims: values,
    )
    inner, outer = jnp.hypot(here.alpha, here.sigma), jnp.hypot(there.alpha, there.sigma)
    zeros = jnp.zeros((len(x_0), 1 if exact else probes), x_0.dtype)
    (y, grown), steps = black_box.integrate(
        field,
        (x_0 / inner, zeros),
        here.log_snr,
        there.log_snr,
        solver=solver,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
    )
    latent = outer * y
    z = jnp.reshape(latent / levels.start_std, (len(x_0), -1))
    prior = jnp.sum(-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(levels.start_std), axis=1)
    by_probe = prior + size * (grown.T + jnp.log(outer / inner))
    return Density(log_p=jnp.mean(by_probe, axis=0), latent=latent, by_probe=by_probe, steps=steps)


def _with_traces(
    model: Model,
    trained: Any,
    directions: jax.Array,
    gather: Callable[..., jax.Array],
    log_snr: jax.Array,
    state: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """dy/dl, and e . J e / D of each direction e [K, B, ...], or of all together: [B, K] or [B, 1].

    Per dimension, so that the solver's tolerances mean the same whatever the size of an image.
    """
    y, _ = state

    def along(direction: jax.Array) -> jax.Array:
        turned = product(direction)
        return jnp.mean(jnp.reshape(direction * turned, (len(y), -1)), axis=1)

    flow, product = jax.linearize(lambda y: black_box.slope(model, trained, log_snr, y), y)
    traces = jax.lax.map(along, directions, batch_size=min(_TOGETHER, len(directions)))
    return flow, gather(traces.T, axis=1, keepdims=True)
