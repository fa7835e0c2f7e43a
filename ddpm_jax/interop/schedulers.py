"""The settings of Hugging Face's DDPMScheduler as those of a run, and back.

A network is told the step's index there, and t * time_range / T here: the same where time_range is T.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import records
from ddpm_jax.config import Diffusion, Sampling
from ddpm_jax.diffusion import reverse, schedules

# Settings without another choice: the value wanted is also the value where the file says nothing.
_FIXED = {"thresholding": False}
# What says which steps a sampler visits, or nothing at all.
_NOTES = {
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "set_alpha_to_one",
    "steps_offset",
    "tensor_format",
    "timestep_spacing",
    "timestep_values",
}
# Each class, and what it says of a run's sampler.
_CLASSES: dict[str, dict[str, Any]] = {"DDPMScheduler": {}, "DDIMScheduler": {"sampler": "ddim", "eta": 0.0}}
_MOST_STEPS = 100_000
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# "learned" is no logarithm there, and fixed_large_log is the square root of one.
_VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "learned_range": "learned_range",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    """The settings that vary, with DDPMScheduler's defaults; an empty list stands for None."""

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] = ()
    variance_type: str = "fixed_small"
    clip_sample: bool = True
    prediction_type: str = "epsilon"
    predict_epsilon: bool = True
    """What prediction_type was called at first."""
    rescale_betas_zero_snr: bool = False


def read(plain: Mapping[str, Any], where: Path, diffusion: Diffusion, sampling: Sampling) -> tuple[Diffusion, Sampling]:
    """The run's settings with what a scheduler_config.json says put in.

    A list of betas doesn't say what schedule it is of: it must be that of `diffusion`. A DDIMScheduler makes the
    sampler ddim with eta 0; a DDPMScheduler leaves it.

    Raises:
        ValueError: for a setting that ours can't express, with the value got and those that can be.
    """
    kind = plain.get("_class_name", "DDPMScheduler")
    sampler = records.pick(_CLASSES, kind, f"{where}: _class_name")
    for name, wanted in _FIXED.items():
        if plain.get(name, wanted) != wanted:
            raise ValueError(f"{where}: {name} must be {wanted!r}, got {plain[name]!r}")
    free = {name: value for name, value in plain.items() if name not in _NOTES | _FIXED.keys() and name[0] != "_"}
    if free.get("trained_betas", ()) is None:
        del free["trained_betas"]
    settings = records.from_dict(free, _Settings, str(where))
    if settings.clip_sample and plain.get("clip_sample_range", 1.0) != 1:
        raise ValueError(f"{where}: clip_sample_range must be 1.0, got {plain['clip_sample_range']!r}")
    prediction = settings.prediction_type if settings.predict_epsilon else "sample"
    # A DDIMScheduler takes no variance_type.
    variance = records.pick(_VARIANCES, settings.variance_type, f"{where}: variance_type")
    steps = settings.num_train_timesteps
    if not 2 <= steps <= _MOST_STEPS:
        raise ValueError(f"{where}: num_train_timesteps must be 2 to {_MOST_STEPS}, got {steps}")
    found = len(settings.trained_betas)
    if found not in (0, steps):
        raise ValueError(f"{where}: trained_betas must be {steps} numbers, got {found}")
    diffusion = dataclasses.replace(
        diffusion,
        num_steps=steps,
        time_range=float(steps),
        zero_terminal_snr=settings.rescale_betas_zero_snr,
        prediction=records.pick(_PREDICTIONS, prediction, f"{where}: prediction_type"),
        variance=diffusion.variance if kind == "DDIMScheduler" else variance,
        learn_schedule=False,
    )
    if settings.trained_betas:
        _check_betas(settings.trained_betas, where, diffusion)
    else:
        schedule = records.pick(_SCHEDULES, settings.beta_schedule, f"{where}: beta_schedule")
        for name in ("beta_start", "beta_end"):
            if schedule != "cosine" and not 0 < getattr(settings, name) <= 1:
                raise ValueError(f"{where}: {name} must lie in (0, 1], got {getattr(settings, name)}")
        # Theirs are the ends for whatever T; ours those for 1000 steps, where the schedule scales them.
        scale = steps / 1000 if schedule == "linear" else 1.0
        ends = (("beta_start", scale * settings.beta_start), ("beta_end", scale * settings.beta_end))
        usual = schedule == "cosine" or dict(ends) == {"beta_start": 1e-4, "beta_end": 0.02}
        diffusion = dataclasses.replace(
            diffusion, schedule=schedule, schedule_args=() if usual else ends, log_snr_shift=1.0
        )
    return diffusion, dataclasses.replace(sampling, clip=settings.clip_sample, variance="", **sampler)


def _betas(diffusion: Diffusion) -> np.ndarray:
    """Before they are stretched to zero_terminal_snr, which the file says apart."""
    return np.asarray(schedules.build(dataclasses.replace(diffusion, zero_terminal_snr=False)).betas)


def _check_betas(found: tuple[float, ...], where: Path, diffusion: Diffusion) -> None:
    ours, theirs = _betas(diffusion), np.array(found)
    if not np.allclose(theirs, ours, rtol=1e-5, atol=0):
        t = int(np.argmax(np.abs(theirs / ours - 1)))
        raise ValueError(
            f"{where}: trained_betas is a list without a name, and not --diffusion.schedule {diffusion.schedule}: at "
            f"t = {t} it has {theirs[t]:.6g}, that has {ours[t]:.6g}; give the schedule and arguments that it is of"
        )


def _name(diffusion: Diffusion) -> str | None:
    """What the schedule is called there; None if it has no name."""
    args = dict(diffusion.schedule_args)
    names = {"linear": "linear", "quadratic": "scaled_linear", "scaled_linear": "scaled_linear"}
    if not args:
        names["cosine"] = "squaredcos_cap_v2"
    capped = diffusion.schedule == "linear" and max([*args.values(), 0.02]) * 1000 / diffusion.num_steps > 0.999
    return None if capped or diffusion.log_snr_shift != 1 else names.get(diffusion.schedule)


def write(diffusion: Diffusion, sampling: Sampling) -> dict[str, Any]:
    """The scheduler_config.json that `read` takes back; a schedule without a name there goes as its list of betas.

    Raises:
        ValueError: for what a DDPMScheduler can't express, naming the flag and the value got.
    """
    if diffusion.num_steps != diffusion.time_range:
        raise ValueError(
            f"--diffusion.time-range must be the {diffusion.num_steps} steps for diffusers, which tells networks the "
            f"step's index, got {diffusion.time_range:g}"
        )
    if diffusion.learn_schedule:
        raise ValueError("--diffusion.learn-schedule must be off for diffusers, whose schedules are fixed, got on")
    variance = diffusion.variance
    if sampling.variance and not reverse.is_learned(variance):
        variance = sampling.variance
    variances = {"small": "fixed_small", "large": "fixed_large", "learned_range": "learned_range"}
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    plain = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.num_steps,
        **dict(_ends(diffusion)),
        "beta_schedule": _name(diffusion) or "linear",
        "trained_betas": None if _name(diffusion) else _list(diffusion),
        "variance_type": records.pick(variances, variance, "--diffusion.variance, for diffusers"),
        "clip_sample": sampling.clip,
        "clip_sample_range": 1.0,
        "prediction_type": records.pick(predictions, diffusion.prediction, "--diffusion.prediction, for diffusers"),
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr,
        "thresholding": False,
        "timestep_spacing": "leading",
        "steps_offset": 0,
    }
    return plain


def _ends(diffusion: Diffusion) -> dict[str, float]:
    args = dict(diffusion.schedule_args) if _name(diffusion) else {}
    scale = 1000 / diffusion.num_steps if diffusion.schedule == "linear" else 1.0
    return {"beta_start": scale * args.get("beta_start", 1e-4), "beta_end": scale * args.get("beta_end", 0.02)}


def _list(diffusion: Diffusion) -> list[float]:
    betas = _betas(diffusion)
    if betas[-1] == 1:
        raise ValueError(
            "--diffusion.schedule, for diffusers, must leave a signal at the last step, by which it divides, "
            f"got {diffusion.schedule}"
        )
    return betas.tolist()
