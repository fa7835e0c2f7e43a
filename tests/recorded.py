"""Another library's schedulers, recorded step by step on a world with a known denoiser (golden/, see its script)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from worlds import MIXTURE

from ddpm_jax.diffusion import processes
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.sampling import Answer

FOLDER = Path(__file__).parent / "golden"
CASES = json.loads((FOLDER / "diffusers_samplers.json").read_text())["cases"]
ARRAYS = np.load(FOLDER / "diffusers_samplers.npz")
WIDE = processes.vp(1e-3, 40.0, end=1e-12)
"""Variance preserving, from a log-SNR of -20 up: a sampler knows of a process only what stands in its levels."""


def walk(name):
    """x before each call and after it, and sigma / alpha before and after, of a recording in variance-preserving
    space: [N, 2, 6] twice, [N] twice."""
    after, steps = ARRAYS[name], ARRAYS[f"{name}/steps"]
    start = ARRAYS["x_0" if "inverse" in name else "x_T"]
    return np.concatenate([start[None], after[:-1]]), after, steps[:, 1], steps[:, 2]


def place(sigma):
    """Where sigma / alpha stands on WIDE."""
    return float(WIDE.t_of(np, -2 * np.log(sigma))) if sigma > 0 else 0.0


def model(x, level):
    """The network that knows the world."""
    x_0 = MIXTURE.x_0_given(x, level.alpha, level.sigma)
    none = level.sigma == 0
    return Answer(x_0=x_0, eps=jnp.where(none, 0.0, (x - level.alpha * x_0) / jnp.where(none, 1.0, level.sigma)))


def step_by_step(name, sampler, threshold=None):
    """Each recorded call repeated from the recording's own x, for samplers without memory: ours and theirs."""
    before, after, asked, reached = walk(name)
    keys, ours = jax.random.split(jax.random.key(0), 2), []

    def clipped(x, level):
        said = model(x, level)
        x_0 = said.x_0 if threshold is None else threshold(said.x_0)
        return Answer(x_0=x_0, eps=(x - level.alpha * x_0) / level.sigma)

    for i, x in enumerate(before):
        levels = visit(WIDE, [place(asked[i]), place(reached[i])])
        state = sampler.init(keys, jnp.asarray(x))
        state = type(state)(x=state.x, keys=keys, count=jnp.int32(i), past=state.past)
        ours.append(sampler.step(state, clipped, levels, (0, 1))[0].x)
    return np.stack(ours), after
