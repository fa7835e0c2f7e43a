"""The losses of distillation within a run: what a config says, what the state keeps, what a step computes.

A teacher's weights and, for consistency, a target network's and the count of steps lie in the state's `history`: they
enter the step as data, and are in every checkpoint, so that a run goes on whatever has become of its teacher.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import nets, records
from ddpm_jax.config import Config, Diffusion, Distill
from ddpm_jax.diffusion import distillation, processes, spacings
from ddpm_jax.diffusion.distillation import GROWTHS, Ladder
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.diffusion.loss import LossTerms
from ddpm_jax.diffusion.norms import Norm
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.weightings import Weighting
from ddpm_jax.sampling import precondition
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.types import Denoiser

METHODS = {
    "progressive": ("teacher", "average", "steps"),
    "consistency": ("teacher", "average", "levels", "growth", "mu", "sigma_max", "mean", "std"),
    "consistency_training": ("levels", "growth", "mu", "sigma_max", "mean", "std"),
}
"""The settings of `config.Distill` that each method takes."""
SPEAK = {"progressive": ("v", "x0", "flow"), "consistency": ("v",), "consistency_training": ("v",)}
"""What a network may predict. eps says nothing of x_0 where nearly all is noise, and there every short way begins: an
error in it would be magnified by 1 / alpha, up to thousands. v is preconditioned as consistency wants it."""
UNUSED = (
    "objective",
    "offset_noise",
    "draw_t",
    "draw_t_args",
    "correct_draw",
    "learn_schedule",
    "learn_uncertainty",
    "vlb_weight",
)
"""Settings of `config.Diffusion` that have no part in distillation."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms(LossTerms):
    """With the target network that the step used, for the state to keep; its leaves have an axis of 1 in front."""

    target: Any


def check(config: Config) -> None:
    """Refuse settings that don't go together; nothing to say of ordinary training.

    Raises:
        ValueError: naming the flag, the value got and the value wanted.
    """
    given, usual = config.distill, Distill()
    if not given.method:
        _refuse(given, usual, (), "needs --distill.method")
        return
    takes = records.pick(METHODS, given.method, "--distill.method")
    told = f"--distill.method {given.method}"
    _refuse(given, usual, takes, f"has no part in {told}")
    settings = config.diffusion
    if settings.prediction not in SPEAK[given.method]:
        raise ValueError(
            f"{told} needs a network of --diffusion.prediction {' or '.join(SPEAK[given.method])}, got "
            f"{settings.prediction}: python train.py digits_v trains such a teacher"
        )
    also = ("weighting", "weighting_args") if "levels" in takes else ()
    for name in (*UNUSED, *also):
        if getattr(settings, name) != getattr(Diffusion(), name):
            flag = name.replace("_", "-")
            raise ValueError(f"--diffusion.{flag} {getattr(settings, name)} has no part in {told}")
    if config.run.gradients_every:
        raise ValueError(f"--run.gradients-every {config.run.gradients_every} has no part in {told}")
    if "teacher" in takes and not given.teacher:
        raise ValueError(f"{told} needs --distill.teacher, a run's folder")
    if given.method == "progressive" and not 1 <= given.steps <= settings.num_steps // 2:
        raise ValueError(
            f"--distill.steps must lie in 1 .. {settings.num_steps // 2}, half of --diffusion.num-steps, for the "
            f"teacher takes twice as many; got {given.steps}"
        )
    if "levels" in takes:
        _check_levels(given)


def _refuse(given: Distill, usual: Distill, takes: tuple[str, ...], why: str) -> None:
    for field in dataclasses.fields(Distill):
        value = getattr(given, field.name)
        if field.name != "method" and field.name not in takes and value != getattr(usual, field.name):
            raise ValueError(f"--distill.{field.name.replace('_', '-')} {value} {why}")


def _check_levels(given: Distill) -> None:
    records.pick(GROWTHS, given.growth, "--distill.growth")
    first, last = given.levels
    faults = {
        f"--distill.levels must be two counts that don't fall, the first at least 1, got {first} {last}": (
            not 1 <= first <= last
        ),
        f"--distill.mu must lie in [0, 1), got {given.mu}": not 0 <= given.mu < 1,
        f"--distill.sigma-max must be a finite number above 0, got {given.sigma_max}": (
            not (math.isfinite(given.sigma_max) and given.sigma_max > 0)
        ),
        f"--distill.std must be a finite number above 0, got {given.std}": (
            not (math.isfinite(given.std) and given.std > 0)
        ),
        f"--distill.mean must be a finite number, got {given.mean}": not math.isfinite(given.mean),
    }
    if wrong := [fault for fault, found in faults.items() if found]:
        raise ValueError("; ".join(wrong))


def start(given: Distill, params: Any) -> dict[str, Any]:
    """What the state keeps of a run that begins at `params`, the teacher's or fresh ones; nothing without a method."""
    kept: dict[str, Any] = {}
    takes = METHODS.get(given.method, ())
    # Copies: the step gives all of the state away (donation), and one buffer can't be given twice.
    if "teacher" in takes:
        kept["teacher"] = jax.tree.map(jnp.copy, params)
    if "levels" in takes:
        kept["step"] = jnp.zeros((), jnp.int32)
        if given.mu:
            kept["target"] = jax.tree.map(jnp.copy, params)
    return kept


def remember(history: dict[str, Any], terms: LossTerms) -> dict[str, Any]:
    """After a step."""
    moved = dict(history)
    if "step" in history:
        moved["step"] = history["step"] + 1
    if isinstance(terms, Terms):
        moved["target"] = jax.tree.map(lambda leaf: leaf[0], terms.target)
    return moved


def jumps(config: Config) -> bool:
    """Is a run's network a consistency function? Then it isn't the denoiser that its prediction says it is."""
    return "levels" in METHODS.get(config.distill.method, ())


def as_sampled(config: Config, schedule: Schedule, denoise: Denoiser) -> tuple[Denoiser, str]:
    """A run's network as it is to be sampled, and what it then says: a consistency function says x_0."""
    if not jumps(config):
        return denoise, config.diffusion.prediction
    setting = precondition.consistency(_ends(schedule)[0], sigma_data=1.0)
    return precondition.wrap(precondition.of_v(denoise), schedule, setting), "x0"


def _ends(schedule: Schedule | Process) -> tuple[float, float]:
    """s = sigma / alpha at the least and the most noisy level."""
    process = processes.of_schedule(schedule) if isinstance(schedule, Schedule) else schedule
    least, most = (float(np.exp(-0.5 * process.log_snr(np, t))) for t in (process.end, process.start))
    return least, most


Network = Callable[[Any], Denoiser]
"""Of its parameters."""
OfNetworks = Callable[..., tuple[jax.Array, LossTerms]]
"""(key, student, teacher, trained parameters, images, history) -> loss and terms; student and teacher are Networks, the
one with dropout and the other without."""
OfStep = Callable[..., tuple[jax.Array, LossTerms]]
"""(key, key of dropout, trained parameters, images, labels, history) -> loss and terms."""


def make(
    config: Config, module: Any, schedule: Schedule, mesh: Any, *, weighting: Weighting, norm: Norm
) -> OfStep | None:
    """The loss of a run's method, as a function of what a step has; None for ordinary training."""
    if not config.distill.method:
        return None
    made = _progressive if config.distill.method == "progressive" else _consistency
    of_networks = made(config, schedule, mesh, weighting, norm)

    def of_step(
        key: jax.Array, key_dropout: jax.Array, params: Any, images: jax.Array, labels: list[jax.Array], history: Any
    ) -> tuple[jax.Array, LossTerms]:
        def student(params: Any) -> Denoiser:
            return nets.denoiser_in_training(module, params, key_dropout, *labels)

        def teacher(params: Any) -> Denoiser:
            return lambda x, time: nets.denoiser(module, params)(x, time, *labels)

        return of_networks(key, student, teacher, params, images, history)

    return of_step


def refuse(config: Config) -> None:
    """For programs that train many runs at once, which have no teacher to give them.

    Raises:
        ValueError: for a config with a method.
    """
    if config.distill.method:
        raise ValueError(
            f"--distill.method {config.distill.method} is for runs of their own: train.py or ddpm_jax.cli.distill"
        )


def _progressive(config: Config, schedule: Schedule, mesh: Any, weighting: Weighting, norm: Norm) -> OfNetworks:
    process = processes.of_schedule(schedule)
    levels = visit(schedule, spacings.trailing(process, (2 * config.distill.steps,)))

    def of_networks(
        key: jax.Array, student: Network, teacher: Network, params: Any, images: jax.Array, history: Any
    ) -> tuple[jax.Array, LossTerms]:
        return distillation.progressive(
            key,
            levels,
            student(params),
            teacher(mesh_lib.gathered(mesh, history["teacher"])),
            images,
            prediction=config.diffusion.prediction,
            weighting=weighting,
            norm=norm,
            clip=config.sampling.clip,
        )

    return of_networks


def _consistency(config: Config, schedule: Schedule, mesh: Any, weighting: Weighting, norm: Norm) -> OfNetworks:
    del weighting
    given = config.distill
    process, (least, most) = processes.of_schedule(schedule), _ends(schedule)
    sizes = {"sigma_min": least, "sigma_max": min(given.sigma_max, most), "mean": given.mean, "std": given.std}

    def of_networks(
        key: jax.Array, student: Network, teacher: Network, params: Any, images: jax.Array, history: Any
    ) -> tuple[jax.Array, LossTerms]:
        def f(params: Any) -> Denoiser:
            return as_sampled(config, schedule, student(params))[0]

        levels = GROWTHS[given.growth](history["step"], config.steps, *given.levels)
        solver, target = None, jax.lax.stop_gradient(params)
        if given.mu:
            # theta^- after the last step, said before this one: mu theta^- + (1 - mu) theta (Song et al. 2023, Alg. 2).
            kept = distillation.decay(levels, given.levels[0], given.mu)
            before = mesh_lib.gathered(mesh, history["target"])
            target = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, before, target)
        if "teacher" in history:
            plain = precondition.of_v(teacher(mesh_lib.gathered(mesh, history["teacher"])))
            solver = precondition.wrap(plain, schedule, precondition.edm(sigma_data=1.0))
        value, terms = distillation.consistency(
            key,
            process,
            f(params),
            f(target),
            images,
            ladder=Ladder(count=levels, **sizes),
            teacher=solver,
            norm=norm,
        )
        if given.mu:
            terms = Terms(**vars(terms), target=jax.tree.map(lambda leaf: leaf[None], target))
        return value, terms

    return of_networks
