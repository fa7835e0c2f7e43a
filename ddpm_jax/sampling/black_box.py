"""The probability-flow ODE by a black-box solver with adaptive steps, there and back (Song et al. 2021, Sec. 4.3).

In the coordinates of `diffusion.between`, y = x / sqrt(alpha^2 + sigma^2), the ODE of every process is, over log-SNR l,

    dy / dl = -1/2 cos(phi) sin(phi) v,    v = cos(phi) eps - sin(phi) x_0,    tan(phi) = exp(-l / 2)

whose right-hand side is bounded everywhere and dies away at both ends, also where there is no signal at all.
Needs diffrax: pip install 'ddpm_jax[ode]'.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import between
from ddpm_jax.diffusion.between import Trained
from ddpm_jax.diffusion.levels import Level, Levels
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.records import pick
from ddpm_jax.sampling.loop import sample_path
from ddpm_jax.sampling.sampler import Answer, Info, Model, Sampler, State, first_order, moved, start
from ddpm_jax.types import Denoiser

SOLVERS = {"tsit5": "Tsit5", "dopri5": "Dopri5", "dopri8": "Dopri8", "kvaerno5": "Kvaerno5"}
"""Names here and in diffrax. The last is implicit, for stiff flows of few dimensions: it solves for all pixels of the
batch at once."""


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError:
        raise ImportError("adaptive ODE solvers need diffrax: pip install 'ddpm_jax[ode]'") from None
    return diffrax


def check(solver: str, rtol: float, atol: float, max_steps: int) -> None:
    """Refuse settings that can't be.

    Raises:
        ValueError: for an unknown solver, a tolerance that isn't positive, or fewer than one step.
        ImportError: without diffrax, saying how it comes.
    """
    pick(SOLVERS, solver, "solver")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive, got {value}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    _diffrax()


def level_at(trained: Trained, log_snr: jax.Array) -> Level:
    """The level of unit size, alpha^2 + sigma^2 = 1, at a log-SNR that may be traced; it belongs to no step."""
    time, size, own = between.read(trained, log_snr)
    none = jnp.full_like(log_snr, jnp.nan)
    return Level(
        t=none,
        alpha=jnp.sqrt(jax.nn.sigmoid(log_snr)),
        sigma=jnp.sqrt(jax.nn.sigmoid(-log_snr)),
        log_snr=log_snr,
        gain=none,
        dt=none,
        drift=none,
        diffusion=none,
        time=time,
        scale=size,
        own=own,
    )


def slope(model: Model, trained: Trained, log_snr: jax.Array, y: jax.Array) -> jax.Array:
    """dy / d log-SNR of y [B, ...]."""
    level = level_at(trained, log_snr)
    said: Answer = model(y, level)
    return -0.5 * level.alpha * level.sigma * (level.alpha * said.eps - level.sigma * said.x_0)


def _worst(tree: Any) -> jax.Array:
    """The largest root mean square of an array's entries, each image's by itself: a step is as good for every one."""

    def of(x: jax.Array) -> jax.Array:
        return jnp.max(jnp.mean(jnp.square(jnp.reshape(x, (x.shape[0], -1))), axis=1), initial=0.0)

    worst = functools.reduce(jnp.maximum, [of(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)])
    positive = worst > 0  # outside: the root has no slope at 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, worst, 1.0)), 0.0)


def integrate(
    field: Any, y: Any, start: jax.Array, end: jax.Array, *, solver: str, rtol: float, atol: float, max_steps: int
) -> tuple[Any, jax.Array]:
    """Solve dy/dl = field(l, y) from l = start to end; every array of y has the images first, [B, ...].

    All images take the same steps, such that the worst of them is within the tolerances.

    Returns:
        y at the end, NaN if it took more than max_steps to get there; and the number of steps, those refused too.
    """
    diffrax = _diffrax()
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda log_snr, y, _: field(log_snr, y)),
        getattr(diffrax, SOLVERS[solver])(),
        start,
        end,
        None,
        y,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=_worst),
        adjoint=diffrax.ForwardMode(),
        max_steps=max_steps,
        throw=False,
    )
    arrived = found.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda ys: jnp.where(arrived, ys[0], jnp.nan), found.ys), found.stats["num_steps"]


@functools.lru_cache
def _ode(solver: str, rtol: float, atol: float, max_steps: int) -> Sampler:
    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        trained = levels.trained
        if trained is None:
            raise ValueError("the sampler ode needs levels that know what lies between: visit(..., anywhere=True)")
        here, there = levels.read(ij[0]), levels.read(ij[1])
        said = model(state.x, here)

        def solved() -> jax.Array:
            y, _ = integrate(
                functools.partial(slope, model, trained),
                state.x / jnp.hypot(here.alpha, here.sigma),
                here.log_snr,
                there.log_snr,
                solver=solver,
                rtol=rtol,
                atol=atol,
                max_steps=max_steps,
            )
            return jnp.hypot(there.alpha, there.sigma) * y

        noisy = (here.sigma > 0) & (there.sigma > 0)
        x = jax.lax.cond(noisy, solved, lambda: first_order(said, there))
        return moved(state, x), Info(x_0=said.x_0)

    return Sampler(init=start, step=step, whole=True)


def ode(*, solver: str = "tsit5", rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000) -> Sampler:
    """The probability-flow ODE, by a solver that chooses its steps: between the ends of the way, up or down.

    From the image to the least noisy level, and back, goes one step of DDIM. How many evaluations that takes, the
    tolerances say; the number of steps that is asked for says only where the ends lie. An image depends on the others
    in its batch as far as the tolerances let it. It is NaN if max_steps weren't enough.

    Args:
        solver: tsit5, dopri5, dopri8 or kvaerno5.
        rtol, atol: an error of atol + rtol |y| is allowed in a step.

    Raises:
        ValueError: for another solver, or tolerances or max_steps that aren't positive.
        ImportError: without diffrax, saying how it comes.
    """
    if max_steps != int(max_steps):
        raise ValueError(f"max_steps must be a whole number, got {max_steps}")
    check(solver, rtol, atol, int(max_steps))
    return _ode(solver, float(rtol), float(atol), int(max_steps))


def encode(denoise: Denoiser, schedule: Schedule | Process, x_0: np.ndarray | jax.Array, **options: Any) -> np.ndarray:
    """The noise x_T [N, ...] that the flow makes of images x_0 [N, ...]: `decode` undoes it.

    As in Song et al. 2021, Sec. D.3, x_0 is taken to be at the least noisy level that the network knows.

    Options:
        times: the way up, its ends; from the least to the most noisy level.
        and those of `ode`, and of `sampling.sample`. Predictions aren't clipped, if not asked to.

    Raises:
        ValueError: if the solver didn't arrive; and as `ode` and `sample`.
    """
    return _carried(denoise, schedule, x_0, _range(schedule), **options)


def decode(denoise: Denoiser, schedule: Schedule | Process, x_T: np.ndarray | jax.Array, **options: Any) -> np.ndarray:
    """The images at the least noisy level that the flow makes of x_T [N, ...]: `encode` undoes it. Options as there."""
    return _carried(denoise, schedule, x_T, _range(schedule)[::-1], **options)


def _range(schedule: Schedule | Process) -> tuple[float, float]:
    return (0.0, schedule.num_steps - 1.0) if isinstance(schedule, Schedule) else (schedule.end, schedule.start)


def _carried(
    denoise: Denoiser,
    schedule: Schedule | Process,
    x: np.ndarray | jax.Array,
    ends: Sequence[float],
    *,
    times: Sequence[float] | None = None,
    clip: Any = False,
    solver: str = "tsit5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
    **options: Any,
) -> np.ndarray:
    found, _ = sample_path(
        jax.random.key(0),  # no noise is drawn
        denoise,
        schedule,
        shape=x.shape[1:],
        num=len(x),
        times=ends if times is None else times,
        x_T=x,
        sampler=ode(solver=solver, rtol=rtol, atol=atol, max_steps=max_steps),
        clip=clip,
        **options,
    )
    if not np.isfinite(found).all():
        raise ValueError(
            f"the solver {solver} didn't arrive within max_steps={max_steps}: allow more, or larger errors"
        )
    return found
