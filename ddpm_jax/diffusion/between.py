"""Every noise level, read while a loop runs: for solvers that choose their own steps.

What a level is to the probability-flow ODE, its log-SNR says alone. It is read here in coordinates of unit size,

    y = x / sqrt(alpha^2 + sigma^2) = cos(phi) x_0 + sin(phi) eps,    tan(phi) = sigma / alpha = exp(-log_snr / 2)

in which all processes are one. What else it takes is what the network is told there, and the size of its own x.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.schedules import Schedule, at
from ddpm_jax.diffusion.tables import NoiseLevel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a network was trained on, of which follows what it is told at any log-SNR."""

    process: Process | None = dataclasses.field(metadata={"static": True})
    schedule: Any
    """A `Schedule`, if there is no process."""


def trained(on: Schedule | Process) -> Trained:
    """On a schedule or a process."""
    if isinstance(on, Schedule):
        return Trained(process=None, schedule=on)
    return Trained(process=on, schedule=None)


def read(of: Trained, log_snr: jax.Array) -> tuple[jax.Array, jax.Array, NoiseLevel]:
    """At log_snr, a scalar that may be traced.

    Between a schedule's indices log-SNR is straight; beyond the ends, a network is told what it is told there.

    Returns:
        what the network is told; the size of its own x, y's being 1; and the level as its own process has it.
    """
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))
    if of.process is None:
        places = jnp.arange(of.schedule.num_steps, dtype=log_snr.dtype)
        t = jnp.interp(-log_snr, -of.schedule.log_snr.astype(log_snr.dtype), places)
        time, size = jnp.interp(t, places, of.schedule.times.astype(log_snr.dtype)), jnp.ones_like(log_snr)
        own = jax.tree.map(lambda row: row[0], at(of.schedule, t[None]))
        return time, size, dataclasses.replace(own, alpha=alpha, sigma=sigma, log_snr=log_snr)
    t = jnp.clip(of.process.t_of(jnp, log_snr), of.process.end, of.process.start)
    size = jnp.hypot(jnp.exp(of.process.log_alpha(jnp, t)), jnp.exp(of.process.log_sigma(jnp, t)))
    none = jnp.full_like(log_snr, jnp.nan)
    own = NoiseLevel(alpha=size * alpha, sigma=size * sigma, log_snr=log_snr, coef_x0=none, coef_xt=none, variance=none)
    return of.process.time(jnp, t), size, own
