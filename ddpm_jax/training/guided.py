"""A run's network with the guidance that a config asks for: other runs are read, and wrapped around it."""

import dataclasses
import functools
import math
import os
from typing import Any

import jax
import numpy as np

from ddpm_jax import config as config_lib
from ddpm_jax import files, nets, networks, xla
from ddpm_jax.config import Classifier, Guidance, Sampling
from ddpm_jax.data import pipeline
from ddpm_jax.data.record import Source
from ddpm_jax.diffusion.forward import q_sample
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.records import pick
from ddpm_jax.sampling import guidance, guidance_weights
from ddpm_jax.training import checkpoint, distill_loss, run
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.run import Parts
from ddpm_jax.types import Denoiser

RAMPS = {"none": guidance_weights.interval, "linear": guidance_weights.linear, "cosine": guidance_weights.cosine}
"""What a weight is over the interval."""


def check(parts: Parts, settings: Guidance, *, under: str = "--sampling.") -> None:
    """Refuse guidance that can't be; other runs aren't looked for yet.

    Raises:
        ValueError: naming the flag, which begins with `under`.
    """
    pick(RAMPS, settings.guidance_ramp, f"{under}guidance-ramp")
    for name in ("guidance", "classifier_weight", "autoguidance_weight"):
        if not math.isfinite(value := getattr(settings, name)):
            raise ValueError(f"{under}{name.replace('_', '-')} must be a finite number, got {value}")
    if not 0 <= settings.guidance_rescale <= 1:
        raise ValueError(f"{under}guidance-rescale must lie in [0, 1], got {settings.guidance_rescale}")
    if ends := settings.guidance_interval:
        ramps = settings.guidance_ramp != "none"
        rises = len(ends) == 2 and 0 <= ends[0] < ends[1]
        if not rises or (ramps and (ends[0] == 0 or ends[1] == math.inf)):
            wanted = "0 < LOW < HIGH, finite, for a ramp" if ramps else "0 <= LOW < HIGH"
            raise ValueError(f"{under}guidance-interval must be {wanted}, got {' '.join(map(str, ends))}")
    _refuse_unused(settings, under)
    if networks.enlarges(parts.config.net) and acts(settings):
        raise ValueError("a network that enlarges images is led by the small ones: it takes no guidance")
    if settings.guidance == 1:
        if settings.guidance_rescale:
            raise ValueError(f"{under}guidance-rescale {settings.guidance_rescale} needs {under}guidance, got 1 (none)")
        return
    if not run.num_classes(parts.config):
        raise ValueError(
            f"{under}guidance {settings.guidance} needs a network with classes; this one was trained without them"
        )
    if not getattr(parts.config.net, "label_dropout", 0.0):
        raise ValueError(
            f"{under}guidance {settings.guidance} needs a network that was also trained without its class "
            "(--net.label-dropout), got one of 0"
        )


def _refuse_unused(settings: Guidance, under: str) -> None:
    needed = {
        "classifier_weight": (bool(settings.classifier), "classifier"),
        "autoguidance_weight": (bool(settings.autoguidance), "autoguidance"),
        "guidance_interval": (acts(settings), "guidance"),
        "guidance_ramp": (acts(settings), "guidance"),
    }
    for name, (used, by) in needed.items():
        if not used and (given := getattr(settings, name)) != getattr(Guidance(), name):
            told = " ".join(map(str, given)) if isinstance(given, tuple) else given
            raise ValueError(f"{under}{name.replace('_', '-')} {told} has no part without {under}{by}")


def within(settings: Sampling, workdir: files.Place) -> Sampling:
    """The settings with a bare step in `autoguidance` said as FOLDER@STEP of the run in `workdir`."""
    own = settings.guidance
    if not own.autoguidance.isdigit():
        return settings
    return dataclasses.replace(
        settings, guidance=dataclasses.replace(own, autoguidance=f"{workdir}@{own.autoguidance}")
    )


def acts(settings: Guidance) -> bool:
    """Do the settings ask for any guidance?"""
    return bool(settings.guidance != 1 or settings.classifier or settings.autoguidance)


def num_classes(parts: Parts, settings: Guidance) -> int:
    """Classes that images can be drawn of: the network's or, of a network without any, those of its classifier."""
    own = run.num_classes(parts.config)
    if own or not settings.classifier:
        return own
    return run.num_classes(_classifier(settings.classifier)[0].config)


def denoiser(parts: Parts, params: Any, settings: Guidance) -> Denoiser:
    """The network, led by what the settings ask for: denoise(x_t, time), with labels if `num_classes` says so.

    Without guidance it is the network itself. Autoguidance comes first, so that the others lead what it makes.

    Raises:
        ValueError: for guidance that can't be, a run that doesn't fit this one, or a classifier's.
        FileNotFoundError: for a run or a checkpoint that isn't there.
    """
    if isinstance(parts.config.net, Classifier):
        raise ValueError("a classifier draws no images: give its folder to another run's sample.py, as --classifier")
    check(parts, settings, under="--")
    denoise = nets.denoiser(parts.module, mesh_lib.whole(parts.mesh, params))
    schedule = parts.schedule
    if settings.autoguidance and settings.autoguidance_weight != 1:
        worse = _worse(settings.autoguidance, parts)
        weight = _weight(settings.autoguidance_weight, settings, schedule)
        denoise = guidance.autoguidance(denoise, worse, weight, schedule=schedule)
    if settings.guidance != 1:
        weight, rescale = _weight(settings.guidance, settings, schedule), settings.guidance_rescale
        none = run.num_classes(parts.config)
        denoise = guidance.classifier_free(denoise, weight, none, schedule=schedule, rescale=rescale)
    if settings.classifier:
        other, log_prob = _classifier(settings.classifier)
        _check_classifier(other, parts)
        log_prob = _retold(log_prob, other.schedule, schedule)
        if not run.num_classes(parts.config):
            denoise = guidance.unconditional(denoise)
        weight = _weight(settings.classifier_weight, settings, schedule, none=0.0)
        prediction = parts.config.diffusion.prediction
        denoise = guidance.classifier(denoise, log_prob, weight, schedule=schedule, prediction=prediction)
    return denoise


def _weight(weight: float, settings: Guidance, schedule: Schedule, *, none: float = 1.0) -> guidance_weights.Weight:
    """The weight, as it changes with the noise where the settings say that it does; `none` is no guidance."""
    ends, ramp = settings.guidance_interval, settings.guidance_ramp
    if not ends and ramp == "none":
        return weight
    low, high = ends or np.exp(-0.5 * np.asarray(schedule.log_snr, np.float64)[[0, -1]])
    return RAMPS[ramp](weight, float(low), float(high), outside=none)


def _retold(denoise: Denoiser, own: Schedule, schedule: Schedule) -> Denoiser:
    same = _alike(own, schedule) and np.array_equal(own.times, schedule.times)
    return denoise if same else guidance.retold(denoise, own, schedule)


def _alike(own: Schedule, schedule: Schedule) -> bool:
    return own.num_steps == schedule.num_steps and np.array_equal(own.log_snr, schedule.log_snr)


@functools.lru_cache(maxsize=4)
def _read(folder: str, step: int) -> tuple[Parts, Denoiser]:
    """A run's parts and its averaged network at a step; kept, as one call of sample.py draws several times."""
    parts, state = run.load(folder, step=step)
    return parts, nets.denoiser(parts.module, mesh_lib.whole(parts.mesh, state.ema))


def _newest(folder: str) -> int:
    place = files.place(folder)
    config_lib.read(place / "config.json")  # what is no run's folder says so
    if not files.is_dir(place / "checkpoints"):
        raise FileNotFoundError(f"{place} has no checkpoints yet: let train.py reach its first")
    return checkpoint.newest(place / "checkpoints")


def _classifier(folder: str | os.PathLike) -> tuple[Parts, Denoiser]:
    return _read(str(folder), _newest(str(folder)))


def _check_classifier(other: Parts, parts: Parts) -> None:
    if not isinstance(other.config.net, Classifier):
        raise ValueError(f"--classifier must be the folder of a classifier's run, got one of a {other.config.net.kind}")
    asked, found = parts.config.data.shape, other.config.data.shape
    if asked != found:
        raise ValueError(f"--classifier must take images of shape {asked}, got one for {found}")
    ours, theirs = run.num_classes(parts.config), run.num_classes(other.config)
    if ours not in (0, theirs):
        raise ValueError(f"--classifier must have the network's {ours} classes, got one of {theirs}")


def _worse(name: str, parts: Parts) -> Denoiser:
    """The network of FOLDER or FOLDER@STEP, as one of this run's schedule and with this run's conditions."""
    folder, _, step = name.rpartition("@") if name.rpartition("@")[2].isdigit() else (name, "", "")
    if not folder:
        raise ValueError(f"--autoguidance must be a run's folder or FOLDER@STEP, got {name}: a step of which run?")
    other, worse = _read(folder, int(step) if step else _newest(folder))
    ours, theirs = parts.config, other.config
    wanted = {"--diffusion.prediction": ours.diffusion.prediction, "--data.shape": ours.data.shape}
    found = {"--diffusion.prediction": theirs.diffusion.prediction, "--data.shape": theirs.data.shape}
    for flag, value in wanted.items():
        if found[flag] != value or isinstance(theirs.net, Classifier):
            raise ValueError(f"--autoguidance needs a network of {flag} {value}, got {found[flag]} ({theirs.net.kind})")
    if run.num_classes(theirs) not in (0, run.num_classes(ours)):
        classes = run.num_classes(ours)
        raise ValueError(f"--autoguidance needs a network of {classes} classes or none, got {run.num_classes(theirs)}")
    if distill_loss.jumps(ours) != distill_loss.jumps(theirs):
        raise ValueError("--autoguidance of a consistency function needs another, and of a denoiser a denoiser")
    if ours.diffusion.prediction == "mean" and not _alike(other.schedule, parts.schedule):
        raise ValueError("--autoguidance of a network of the mean needs another of the same --diffusion.schedule")
    worse = _retold(worse, other.schedule, parts.schedule)
    forgets = run.num_classes(ours) and not run.num_classes(theirs)
    return guidance.unconditional(worse) if forgets else worse


def accuracy(parts: Parts, params: Any, source: Source, steps: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """The share of a source's images that a classifier puts into their class at each of `steps`, [len(steps)].

    Every image is noised once for each step t, by key(seed) and t.

    Raises:
        ValueError: for a run that is no classifier, or a source without labels.
    """
    if not isinstance(parts.config.net, Classifier):
        raise ValueError(f"accuracy is a classifier's, got a run of a {parts.config.net.kind}")
    if source.labels is None:
        raise ValueError("accuracy needs labels, this source has none")
    rows = np.arange(len(source))
    images, labels = pipeline.to_float(np.asarray(source.images[rows])), np.asarray(source.labels[rows])
    classify = nets.denoiser(parts.module, params)

    @xla.jit
    def share(classify: Denoiser, t: jax.Array) -> jax.Array:
        at = jax.numpy.full(len(rows), t)
        eps = jax.random.normal(jax.random.fold_in(jax.random.key(seed), t), images.shape)
        logits = classify(q_sample(parts.schedule, images, at, eps), parts.schedule.times[at])
        return (logits.argmax(axis=1) == labels).mean()

    return np.array([float(share(classify, t)) for t in np.asarray(steps, np.int32)])
