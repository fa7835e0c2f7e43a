"""Bits per dimension of a run's network on a set of images."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddpm_jax import data, nets, networks
from ddpm_jax.config import Config
from ddpm_jax.data.record import Source
from ddpm_jax.evaluation import likelihood
from ddpm_jax.evaluation.likelihood import Likelihood, PerBatch
from ddpm_jax.training import distill_loss, mesh, run
from ddpm_jax.training.draw import width
from ddpm_jax.training.run import Parts
from ddpm_jax.training.state import State


def bound(
    parts: Parts,
    state: State,
    *,
    seed: int = 0,
    num_t: int = 0,
    variance: str = "",
    clip: bool = True,
    decoder: str = "gaussian",
) -> tuple[PerBatch, str, dict[str, Any]]:
    """The bound as a run was trained for: what measures it, in words how, and the settings that have a part in it.

    Args:
        num_t: how many t are drawn an image; 0 for all of a schedule, in continuous time 8.
        variance: of the step back; the run's own if empty. Like clip and decoder it has no part in continuous time.

    Raises:
        ValueError: for a network that has no bound: one of few steps, or one that is shown a smaller image.
    """
    if why := boundless(parts.config):
        raise ValueError(f"this run's network {why}, and has no bound in bits per dimension")
    key, config = jax.random.key(seed), parts.config.diffusion
    if config.objective == "continuous":
        curve = run.curve(parts, state.noise)
        per_batch = likelihood.in_continuous_time(key, curve, num_t=num_t or 8, prediction=config.prediction)
        return per_batch, "continuous time", {}
    reading = {"variance": variance or config.variance, "clip": clip, "decoder": decoder}
    if num_t:
        per_batch = likelihood.estimated(key, parts.schedule, num_t=num_t, prediction=config.prediction, **reading)
        return per_batch, f"{num_t} t an image", reading
    return likelihood.whole(key, parts.schedule, prediction=config.prediction, **reading), "every t", reading


def boundless(config: Config) -> str:
    """Why the bound says nothing of a run's network; empty if it does."""
    if distill_loss.jumps(config):
        return "is a consistency function, no denoiser"
    if networks.enlarges(config.net):
        return "enlarges images that it is shown"
    return "is a classifier" if isinstance(config.net, networks.Classifier) else ""


def reader(config: Config, source: Source) -> likelihood.Read:
    """Images of a source by their rows, and for a network with classes the class of each.

    Raises:
        ValueError: if the network takes other classes than the source has.
    """
    classes = run.num_classes(config)
    if classes and source.num_classes != classes:
        raise ValueError(f"the run's network takes {classes} classes, --data.source has {source.num_classes}")

    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        labels = source.labels[rows] if classes and source.labels is not None else None
        return data.to_float(source.images[rows]), labels

    return read


def over(
    per_batch: PerBatch,
    parts: Parts,
    params: Any,
    source: Source,
    num: int,
    *,
    rows: np.ndarray | None = None,
    batch_size: int = 128,
    on_batch: Callable[[int], Any] = lambda done: None,
) -> Likelihood:
    """Measure `num` images of a source, the first or those of `rows`.

    Raises:
        ValueError: as `reader`, or for fewer than two images.
    """
    read = reader(parts.config, source)
    chosen = np.arange(num) if rows is None else rows
    return likelihood.over(
        per_batch,
        nets.denoiser(parts.module, params),
        lambda batch: read(chosen[batch]),
        num,
        batch_size=width(parts, num, batch_size),
        sharding=mesh.split(parts.mesh),
        on_batch=on_batch,
    )
