"""Samplers run over the levels of a process in a world whose answer is known: how fast they converge, where they end.

Levels are of one length and x of one shape, so that each sampler is compiled once for all that is asked of it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import recorded
import worlds

from ddpm_jax.diffusion import processes, schedules, spacings
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.sampling.sampler import first_order

ENDS = {"vp": (0.7, 0.05), "sub_vp": (0.7, 0.05), "ve": (0.7, 0.1), "edm": (3.0, 0.1), "flow": (0.9, 0.05)}
"""From where to where: neither pure noise nor the image."""
STEPS, MORE_STEPS = (128, 256, 512), (256, 512, 1024)
X = np.resize([-1.5, -0.3, 0.2, 1.1], (2, 6))


@functools.partial(jax.jit, static_argnames=("sampler", "model"))
def _run(sampler, model, levels, state, first, last):
    def step(i, carry):
        state, path = carry
        state, _ = sampler.step(state, model, levels, (i, i + 1))
        return state, path.at[i - first].set(state.x)

    empty = jnp.zeros((len(levels.visited.t) - 1, *state.x.shape), state.x.dtype)
    return jax.lax.fori_loop(first, last, step, (state, empty))[1]


def run(sampler, levels, state, first=0, model=recorded.model):
    """x after each step from level `first` on, [S - first, B, ...]."""
    steps = len(levels.visited.t) - 1 if levels.num_steps is None else int(levels.num_steps)
    return np.asarray(_run(sampler, model, levels, state, first, steps))[: steps - first]


def levels_for(sampler, schedule, times):
    return visit(schedule, times, stages=sampler.stages, stages_in=sampler.stages_in, size=MORE_STEPS[-1] + 1)


def start(sampler, x):
    return sampler.init(jax.random.split(jax.random.key(0), len(x)), jnp.asarray(x))


def times_of(process, steps, bend):
    """Levels evenly in log-SNR between the process's ENDS, or with steps that grow by e^bend on the way."""
    part = np.linspace(0, 1, steps + 1)
    part = np.expm1(bend * part) / np.expm1(bend) if bend else part
    low, high = (process.log_snr(np, t) for t in ENDS[process.name])
    return process.t_of(np, low + (high - low) * part)


@functools.lru_cache
def exact(name, t):
    """Where the flow has taken X, that many deviations of the first level, at t."""
    process = processes.build(name)
    ends = worlds.levels_of(process, ENDS[name][0])
    distinct = worlds.MIXTURE.flow(X.flat[:4] * np.hypot(*ends), ends, worlds.levels_of(process, t))
    return np.resize(distinct, X.shape)


def order(sampler, name, *, bend=0.0, exact_steps=0, remembers=None, counts=STEPS):
    """The order of convergence: the slope of log error over log of the steps, fitted to those counts, float64.

    A multistep solver's first steps are of lower order. With `exact_steps` these are done exactly; `remembers`(x_0,
    eps) is then what it keeps of them.
    """
    process, errors = processes.build(name), []
    for steps in counts:
        times = times_of(process, steps, bend)
        levels = levels_for(sampler, process, times)
        before = [exact(name, t) for t in times[: exact_steps + 1]]
        state = start(sampler, before[-1])
        if exact_steps:
            said = [recorded.model(jnp.asarray(x), levels.read(k)) for k, x in enumerate(before[:-1])]
            past = remembers(said[::-1], levels.read(exact_steps))[: len(state.past)]
            state = dataclasses.replace(state, count=jnp.int32(exact_steps), past=jnp.stack(past))
        got = run(sampler, levels, state, exact_steps)[-1]
        errors.append(np.abs(got - exact(name, times[-1])).max())
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def values(data):
    """What a multistep solver in x_0 (or eps) keeps: the last answers, newest first."""
    return lambda said, there: [answer.x_0 if data else answer.eps for answer in said]


def values_and_base(data):
    """UniPC keeps the first-order step, too."""
    return lambda said, there: [first_order(said[0], there), *values(data)(said, there)]


def recorded_path(name, sampler, every=slice(None)):
    """The sampler's own path along a recording's levels, and the recording's: x after the recorded calls `every`.

    A last call that goes nowhere is left out.
    """
    case, x, steps = recorded.CASES[name], recorded.ARRAYS[name], recorded.ARRAYS[f"{name}/steps"]
    moves = steps[:, 1] != steps[:, 2]
    sigmas = np.append(steps[0, 1], steps[moves, 2][every])
    own = case["space"] == "sigma"
    times = sigmas if own else [recorded.place(sigma) for sigma in sigmas]
    levels = levels_for(sampler, processes.edm() if own else recorded.WIDE, times)
    path = run(sampler, levels, start(sampler, case["start_scale"] * recorded.ARRAYS["x_T"]))
    return path, x[moves][every]


def from_no_signal(sampler, steps=20):
    """From alpha = 0 to the image along a schedule with zero terminal SNR.

    Returns:
        the path, x [steps + 1, 2, 6], and the x_0 predicted where the last step begins.
    """
    schedule = schedules.zero_terminal_snr(schedules.linear())
    times = spacings.build(processes.of_schedule(schedule), "trailing", (steps,))
    levels = levels_for(sampler, schedule, times)
    assert levels.visited.alpha[0] == 0
    x_T = jnp.asarray(recorded.ARRAYS["x_T"], levels.visited.alpha.dtype)
    path = np.concatenate([x_T[None], run(sampler, levels, start(sampler, x_T))])
    return path, recorded.model(jnp.asarray(path[-2]), levels.read(steps - 1)).x_0
