"""Images from a run's network, by the sampler that a config describes."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ddpm_jax import data, nets, networks, records, sampling
from ddpm_jax.config import Guidance, Sampling
from ddpm_jax.diffusion import processes, reverse, spacings
from ddpm_jax.diffusion.levels import Levels
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.sampling import Path, Sampler, cascade, samplers, thresholds
from ddpm_jax.sampling.loop import joined, sample_parts
from ddpm_jax.sampling.thresholds import Threshold
from ddpm_jax.training import distill_loss, guided
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.run import Parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """How images are drawn: what `sampling.sample` is told besides the network."""

    sampler: Sampler
    times: np.ndarray
    """Places [S + 1], the image last."""
    along: Process | None
    clip: bool | Threshold

    @property
    def num_steps(self) -> int:
        """As the loop counts them: a sampler that finds its own way takes two, to the least noisy level and on."""
        return min(2, self.times.size - 1) if self.sampler.whole else self.times.size - 1

    def levels(self, parts: Parts) -> Levels:
        """As they are visited, the loop's length known.

        Raises:
            ValueError: for what `sampling.way` refuses.
        """
        prediction = parts.config.diffusion.prediction
        options = {"along": self.along, "sampler": self.sampler, "prediction": prediction}
        return sampling.way(parts.schedule, self.times, **options, padded=False)

    def options(self) -> dict[str, Any]:
        """As keyword arguments."""
        return {"sampler": self.sampler, "times": self.times, "along": self.along, "clip": self.clip}


def way(parts: Parts, settings: Sampling, *, under: str = "--sampling.") -> Way:
    """The sampler and its way as `settings` say; a variance they leave out is the run's own.

    Raises:
        ValueError: for a name, a count or a setting that can't be, or a variance that the network doesn't say. `under`
            is what the flags of the settings begin with.
    """
    guided.check(parts, settings.guidance, under=under)
    if settings.dtype:
        records.pick(nets.DTYPES, settings.dtype, f"{under}dtype")
    own = parts.config.diffusion.variance
    variance = settings.variance or own
    reverse.mix(variance, f"{under}variance")  # DDIM has no use for it, but a typo is a typo
    if reverse.is_learned(variance) and variance != own:
        raise ValueError(f"{under}variance {variance} needs a run of that --diffusion.variance, got one of {own}")
    usual: dict[str, Any] = {"variance": variance} | ({} if settings.eta is None else {"eta": settings.eta})
    sampler = samplers.build(settings.sampler, settings.sampler_args, under=under, **usual)
    if settings.eta and "eta" not in samplers.settings_of(settings.sampler):
        raise ValueError(f"{under}eta {settings.eta} has no part in {under}sampler {settings.sampler}")
    trained = processes.of_schedule(parts.schedule)
    along = (
        processes.within(processes.build(settings.process, f"{under}process"), trained) if settings.process else None
    )
    if along is not None and variance == "learned" and "variance" in samplers.settings_of(settings.sampler):
        raise ValueError(f"{under}process {settings.process} leaves the steps that a learned variance is of")
    walked = trained if along is None else along
    counts = settings.steps
    if not counts and walked.steps is None:
        raise ValueError(f"{under}process {settings.process} has no steps of its own: say how many with {under}steps")
    spacing = settings.spacing or sampler.spacing
    times = spacings.build(walked, spacing, counts or (walked.steps or 0,), settings.spacing_args, under=under)
    if not 0 <= settings.dynamic_threshold <= 1:
        raise ValueError(f"{under}dynamic-threshold must lie in [0, 1], got {settings.dynamic_threshold}")
    if settings.dynamic_threshold and not settings.clip:
        raise ValueError(f"{under}dynamic-threshold {settings.dynamic_threshold} needs {under}clip")
    clip = thresholds.dynamic(settings.dynamic_threshold) if settings.dynamic_threshold else settings.clip
    chosen = Way(sampler=sampler, times=times, along=along, clip=clip)
    chosen.levels(parts)  # what can't be walked is found out here
    return chosen


def width(parts: Parts, num: int, batch_size: int) -> int:
    """Images at once: no more than asked for, rounded up to what the devices divide."""
    return -(-min(batch_size, num) // parts.mesh.size) * parts.mesh.size


def labels_of(
    parts: Parts, numbers: np.ndarray, label: int | None, guidance: Guidance | None = None
) -> np.ndarray | None:
    """The classes of images of those numbers [N]: every class in turn, or `label` for all; None without classes.

    A network without classes draws those of the classifier that leads it.

    Raises:
        ValueError: for a label that the network doesn't have.
    """
    classes = guided.num_classes(parts, guidance or Guidance())
    if label is not None and not 0 <= label <= classes - 1:
        known = f"0 .. {classes - 1}" if classes else "none, for it was trained without classes"
        raise ValueError(f"label must be a class of the network ({known}), got {label}")
    if not classes:
        return None
    return numbers % classes if label is None else np.full(len(numbers), label)


def conditions_of(parts: Parts, seed: int, numbers: np.ndarray, label: int | None, guidance: Guidance) -> Any:
    """What the network is told of each of the images of those numbers [N]: its class, if it takes any; of one that
    enlarges images, also the run's own images in order, shrunk.

    Raises:
        ValueError: for a label that the network doesn't have, or guidance of a network that enlarges images.
    """
    labels, factor = labels_of(parts, numbers, label, guidance), networks.enlarges(parts.config.net)
    if not factor:
        return labels
    if guided.acts(guidance):
        raise ValueError("a network that enlarges images is led by the small ones: it takes no guidance")
    source = data.load(parts.config.data)
    rows = numbers % len(source)
    small = cascade.shrink(data.to_float(np.asarray(source.images[rows])), factor)
    if labels is not None and label is None and source.labels is not None:
        labels = np.asarray(source.labels[rows])
    return cascade.conditions(
        jax.random.key(seed), parts.schedule, small, factor=factor, labels=labels, indices=numbers
    )


def in_dtype(parts: Parts, params: Any, dtype: str, *, under: str = "--sampling.") -> tuple[Parts, Any]:
    """The run's parts and parameters for a network that computes in `dtype`; as they are for "".

    For bfloat16 kernels and tables are rounded here rather than in each step; scales and biases, which are few,
    stay float32, and so does all outside the network: x_t, schedule and sampler.

    Raises:
        ValueError: for a dtype that there isn't.
    """
    if not dtype:
        return parts, params
    kind = records.pick(nets.DTYPES, dtype, f"{under}dtype")
    config = dataclasses.replace(parts.config, net=dataclasses.replace(parts.config.net, dtype=dtype))
    rounded = jax.tree.map(lambda x: x.astype(kind) if x.ndim > 1 else x, params)
    return dataclasses.replace(parts, config=config, module=nets.build(config)), rounded


def draw_parts(
    parts: Parts,
    params: Any,
    *,
    seed: int,
    num: int,
    settings: Sampling,
    batch_size: int = 64,
    frames: int = 0,
    label: int | None = None,
    numbers: np.ndarray | None = None,
    on_step: Callable[[int], Any] | None = None,
) -> Iterator[tuple[np.ndarray, Path]]:
    """Images [num, H, W, C] from a run's network, and the Path of `frames` frames; image i depends on (seed, i) only.

    They come `width` at a time: the devices draw the next ones while the caller looks at these.

    `numbers`, int [num], says which i, for a part of many; 0 .. num - 1 if not given.

    A network with classes draws those that `labels_of` says, one that enlarges images the run's own (`conditions_of`),
    led by what `settings` say of guidance.

    Raises:
        ValueError: for a label that the network doesn't have, or guidance that can't be.
        FileNotFoundError: for a run that is to lead it and isn't there.
    """
    numbers = np.arange(num) if numbers is None else np.asarray(numbers)
    parts, params = in_dtype(parts, params, settings.dtype)
    denoise, prediction = distill_loss.as_sampled(
        parts.config, parts.schedule, guided.denoiser(parts, params, settings.guidance)
    )
    yield from sample_parts(
        jax.random.key(seed),
        denoise,
        parts.schedule,
        shape=parts.config.data.shape,
        num=num,
        batch_size=width(parts, num, batch_size),
        **way(parts, settings).options(),
        prediction=prediction,
        indices=numbers,
        conditions=conditions_of(parts, seed, numbers, label, settings.guidance),
        frames=frames,
        sharding=mesh_lib.split(parts.mesh),
        on_step=on_step,
    )


def draw(parts: Parts, params: Any, **options: Any) -> tuple[np.ndarray, Path]:
    """`draw_parts`, all at once."""
    return joined(draw_parts(parts, params, **options))
