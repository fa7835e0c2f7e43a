"""Noise levels in bins: figures by log-SNR, which mean the same under every schedule, prediction and weighting.

Bins are even in log-SNR and numbered as it rises: bin 0 is the noisiest. Their edges are cut to [-LIMIT, LIMIT], and
what lies beyond counts in the first and the last bin: there an image is noise, or clean, to within 1e-5 of its
variance, and a schedule whose last SNR is 0 ends at any number one likes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timesteps import Draw, History

LIMIT = 12.0
MIDDLE = "/log_snr_"
"""Stands between a figure's name and the middle of the bin: TensorBoard groups by what comes before "/"."""


def edges(schedule: Schedule, num: int) -> jax.Array:
    """The edges of `num` bins between a schedule's last log-SNR and its first: float32 [num + 1], rising.

    A schedule of fewer steps than bins leaves some of them empty; one of a single step has all its edges in one place.

    Raises:
        ValueError: if num is less than 1.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    first, last = (jnp.clip(schedule.log_snr[t], -LIMIT, LIMIT) for t in (0, -1))
    return jnp.linspace(last, first, num + 1, dtype=jnp.float32)


def of_log_snr(log_snr: jax.Array, edges: jax.Array) -> jax.Array:
    """The bin of each log-SNR, int32 of its shape, 0 .. num - 1. An edge belongs to the bin above it."""
    where = jnp.searchsorted(edges, log_snr, side="right") - 1
    return jnp.clip(where, 0, edges.size - 2).astype(jnp.int32)


def of_steps(schedule: Schedule, edges: jax.Array) -> jax.Array:
    """The bin of each t, int32 [T]."""
    return of_log_snr(schedule.log_snr, edges)


def sums(bin_of: jax.Array, values: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """Of values [B] in the bins bin_of [B]: the sum in each bin, float32 [num], and how many there are, int32 [num]."""
    inside = bin_of[None, :] == jnp.arange(num)[:, None]
    return jnp.sum(jnp.where(inside, values, 0.0), axis=1), jnp.sum(inside, axis=1)


def draw(edges: jax.Array, number: jax.Array | int) -> Draw:
    """t uniform over the steps of one bin, whose number may be traced. Of an empty bin nothing can be drawn."""

    def probabilities(schedule: Schedule, history: History) -> jax.Array:
        del history
        return (of_steps(schedule, edges) == number).astype(jnp.float32)

    return Draw(probabilities=probabilities)


def names(figure: str, edges: Sequence[float] | np.ndarray) -> list[str]:
    """What a figure is called in each bin: its name and the middle of the bin, "eps_error/log_snr_-7.30"."""
    middles = (np.asarray(edges, np.float64)[1:] + np.asarray(edges, np.float64)[:-1]) / 2
    return [f"{figure}{MIDDLE}{middle:.2f}" for middle in middles]


def middle(name: str) -> float:
    """The middle of the bin that one of `names` speaks of."""
    return float(name.rpartition(MIDDLE)[2])


def keys(figure: str, record: Iterable[str]) -> list[str]:
    """Those of a record's keys that `names` made for a figure, by rising log-SNR."""
    return sorted((key for key in record if key.startswith(figure + MIDDLE)), key=middle)


def read(figure: str, record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The middles of the bins that a record has a figure for, rising, and the figure's values there: [n] each."""
    found = keys(figure, record)
    return np.array([middle(key) for key in found]), np.array([record[key] for key in found], np.float64)
