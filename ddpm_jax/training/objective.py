"""Which choices of an objective go together."""

import math

import numpy as np

from ddpm_jax import networks, records
from ddpm_jax.config import Classifier, Config, Diffusion
from ddpm_jax.diffusion import continuous, reverse
from ddpm_jax.diffusion.loss import OBJECTIVES
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.weightings import Weighting


def check(settings: Diffusion) -> None:
    """Refuse choices that don't go together, before they fail or are passed over in silence.

    Raises:
        ValueError: naming every flag that is wrong, and what it needs.
    """
    objective, variance = settings.objective, settings.variance
    records.pick(dict.fromkeys((*OBJECTIVES, "continuous", "classifier")), objective, "--diffusion.objective")
    reverse.variance(variance, "--diffusion.variance")
    continuously, classifies = objective == "continuous", objective == "classifier"
    weighted = objective in ("simple", "hybrid")
    shown = objective, settings.prediction, variance
    faults = {
        f"--diffusion.objective hybrid needs --diffusion.variance learned or learned_range, got {variance}": (
            objective == "hybrid" and not reverse.is_learned(variance)
        ),
        f"--diffusion.objective simple can't teach a variance of {variance}: take hybrid or vlb": (
            objective == "simple" and reverse.is_learned(variance)
        ),
        f"--diffusion.objective {shown[0]} has no step whose mean or variance could be learned, got {shown[1:]}": (
            continuously and (reverse.is_learned(variance) or settings.prediction == "mean")
        ),
        f"--diffusion.objective continuous draws t by {', '.join(continuous.QUANTILES)}, got {settings.draw_t}": (
            continuously and settings.draw_t not in continuous.QUANTILES
        ),
        f"--diffusion.objective classifier predicts no image, got {shown[1:]}": (
            classifies and (reverse.is_learned(variance) or settings.prediction != Diffusion().prediction)
        ),
        f"--diffusion.learn-schedule needs --diffusion.objective continuous, got {objective}": (
            settings.learn_schedule and not continuously
        ),
        f"--diffusion.learn-uncertainty needs --diffusion.objective simple, got {objective}": (
            settings.learn_uncertainty and objective != "simple"
        ),
        f"--diffusion.num-steps must be at least 2 for --diffusion.objective continuous, got {settings.num_steps}": (
            continuously and settings.num_steps < 2
        ),
        f"--diffusion.vlb-weight {settings.vlb_weight} has no part in --diffusion.objective {objective}": (
            settings.vlb_weight != Diffusion().vlb_weight and objective != "hybrid"
        ),
        f"--diffusion.vlb-weight must be a finite number of at least 0, got {settings.vlb_weight}": (
            not (math.isfinite(settings.vlb_weight) and settings.vlb_weight >= 0)
        ),
        f"--diffusion.time-range must be a finite number above 0, got {settings.time_range}": (
            not (math.isfinite(settings.time_range) and settings.time_range > 0)
        ),
        f"--diffusion.time-range must be 1000 where the schedule is learned, got {settings.time_range}": (
            settings.learn_schedule and settings.time_range != 1000
        ),
        f"--diffusion.no-correct-draw has nothing to leave out with --diffusion.draw-t {settings.draw_t}": (
            not settings.correct_draw and (continuously or settings.draw_t in continuous.QUANTILES)
        ),
        f"--diffusion.offset-noise must be a finite number of at least 0, got {settings.offset_noise}": (
            not (math.isfinite(settings.offset_noise) and settings.offset_noise >= 0)
        ),
    }
    for name in ("weighting", "weighting_args", "norm", "norm_args", "offset_noise"):
        given, flag = getattr(settings, name), name.replace("_", "-")
        told = f"--diffusion.{flag} {given} has no part in --diffusion.objective {objective}"
        faults[told] = given != getattr(Diffusion(), name) and not weighted
    if wrong := [fault for fault, found in faults.items() if found]:
        raise ValueError("; ".join(wrong))


def check_network(config: Config) -> None:
    """A classifier is trained as one, and nothing else is; and a network enlarges what it can be shown.

    Raises:
        ValueError: naming the flag.
    """
    objective, net = config.diffusion.objective, config.net.kind
    if (objective == "classifier") != isinstance(config.net, Classifier):
        raise ValueError(f"--diffusion.objective classifier goes with --net classifier, got {objective} with {net}")
    if factor := networks.enlarges(config.net):
        height, width, _ = config.data.shape
        if factor < 2 or height % factor or width % factor:
            sides = f"{height}x{width}"
            raise ValueError(f"--net.enlarges must be 0, or 2 or more that divide the sides {sides}, got {factor}")
        if config.distill.method:
            raise ValueError(f"--distill.method {config.distill.method} needs --net.enlarges 0, got {factor}")
    if objective == "classifier" and config.run.bins:
        raise ValueError(f"--run.bins {config.run.bins} sorts the error of eps, of which a classifier has none")


def check_uncertainty(weighting: Weighting, schedule: Schedule) -> None:
    """Refuse a weighting that is 0 where an uncertainty is learned: log E[loss] would be minus infinity there.

    Raises:
        ValueError: naming the first t of the schedule where it is.
    """
    none = ~(np.asarray(weighting(schedule.log_snr)) > 0)
    if none.any():
        raise ValueError(
            f"--diffusion.learn-uncertainty needs a weighting above 0 at every t, for it learns the loss's logarithm; "
            f"got one of {weighting(schedule.log_snr)[none.argmax()]:g} at t = {none.argmax()}"
        )
