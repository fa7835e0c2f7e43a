"""Images from a run's network, by the sampler that a config describes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddpm_jax import nets, records
from ddpm_jax.config import Sampling
from ddpm_jax.diffusion import reverse, schedules
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.spacings import SPACINGS
from ddpm_jax.sampling import SAMPLERS, Path, sample_path
from ddpm_jax.sampling.steps import Step
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.run import Parts, num_classes


def sampler(parts: Parts, settings: Sampling, *, under: str = "--sampling.") -> tuple[Schedule, Step]:
    """The schedule to visit and the step to take, as `settings` say; a variance they leave out is the run's own.

    Raises:
        ValueError: for a name, a count or an eta that can't be, or a variance that the network doesn't say. `under` is
            what the flags of the settings begin with.
    """
    schedule, own = parts.schedule, parts.config.diffusion.variance
    variance = settings.variance or own
    reverse.variance(variance, f"{under}variance")  # DDIM has no use for it, but a typo is a typo
    if reverse.is_learned(variance) and variance != own:
        raise ValueError(f"{under}variance {variance} needs a run of that --diffusion.variance, got one of {own}")
    make = records.pick(SAMPLERS, settings.sampler, "sampler")
    if settings.steps:
        visit = records.pick(SPACINGS, settings.spacing, "spacing")
        schedule = schedules.respace(schedule, visit(schedule.num_steps, settings.steps))
    return schedule, make(variance=variance, eta=settings.eta)


def width(parts: Parts, num: int, batch_size: int) -> int:
    """Images at once: no more than asked for, rounded up to what the devices divide."""
    return -(-min(batch_size, num) // parts.mesh.size) * parts.mesh.size


def labels_of(parts: Parts, num: int, label: int | None) -> np.ndarray | None:
    """The class of each of `num` images, int [num]: every class in turn, or `label` for all; None without classes.

    Raises:
        ValueError: for a label that the network doesn't have.
    """
    classes = num_classes(parts.config)
    if label is not None and not 0 <= label <= classes - 1:
        known = f"0 .. {classes - 1}" if classes else "none, for it was trained without classes"
        raise ValueError(f"label must be a class of the network ({known}), got {label}")
    if not classes:
        return None
    return np.arange(num) % classes if label is None else np.full(num, label)


def draw(
    parts: Parts,
    params: Any,
    *,
    seed: int,
    num: int,
    settings: Sampling,
    batch_size: int = 64,
    frames: int = 0,
    label: int | None = None,
    on_step: Callable[[Any], None] | None = None,
) -> tuple[np.ndarray, Path]:
    """Images [num, H, W, C] from a run's network, and the Path of `frames` frames; image i depends on (seed, i) only.

    A network with classes draws those that `labels_of` says.

    Raises:
        ValueError: for a label that the network doesn't have.
    """
    schedule, step = sampler(parts, settings)
    return sample_path(
        jax.random.key(seed),
        nets.denoiser(parts.module, mesh_lib.whole(parts.mesh, params)),
        schedule,
        shape=parts.config.data.shape,
        num=num,
        batch_size=width(parts, num, batch_size),
        step=step,
        prediction=parts.config.diffusion.prediction,
        clip=settings.clip,
        conditions=labels_of(parts, num, label),
        frames=frames,
        sharding=mesh_lib.split(parts.mesh),
        on_step=on_step,
    )
