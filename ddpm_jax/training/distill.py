"""Distilled runs: their teacher's weights, and the configs of the runs that a teacher's own leads to.

Progressive distillation is a run for each halving, in a folder of its own; each begins at the one before. Consistency
is a single run. All are runs as any other: the same command goes on with them, and sample.py draws from them.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ddpm_jax import files, records
from ddpm_jax.config import Config, Diffusion, Distill, Sampling
from ddpm_jax.diffusion import reverse
from ddpm_jax.training import distill_loss, run
from ddpm_jax.training.run import Parts

SAME = ("data.shape", "net.", "diffusion.")
"""What a teacher's config and its student's have in common, for the student starts as the teacher."""
FREE = (
    "net.dropout",
    "net.label_dropout",
    "net.remat",
    "net.dtype",
    "diffusion.objective",
    "diffusion.variance",
    "diffusion.vlb_weight",
    "diffusion.weighting",
    "diffusion.norm",
    "diffusion.offset_noise",
    "diffusion.draw_t",
    "diffusion.correct_draw",
    "diffusion.learn_uncertainty",
)
"""But for these, which change neither network nor process."""


def teacher_of(parts: Parts) -> Any | None:
    """The weights that a run begins at: its teacher's, on the host; None where it has no teacher.

    Raises:
        FileNotFoundError: if the teacher's folder is no run's, or has no checkpoint.
        ValueError: if the teacher's network or process isn't the student's, naming what differs.
    """
    given = parts.config.distill
    if not given.teacher:
        return None
    folder = files.place(given.teacher)
    taught_by, state = run.load(folder)
    theirs = taught_by.config
    if theirs.diffusion.learn_schedule or reverse.is_learned(theirs.diffusion.variance):
        raise ValueError(
            f"--distill.teacher {given.teacher} learned its schedule or its variance, which a student can't take over"
        )
    if distill_loss.jumps(theirs):
        raise ValueError(
            f"--distill.teacher {given.teacher} is of --distill.method {theirs.distill.method}: it jumps to the "
            "end of a path, and is no denoiser whose steps a student could take"
        )
    changed = records.differences(theirs, parts.config)
    wrong = [
        f"--{name} {old!r} of the teacher, {new!r} here"
        for name, (old, new) in changed.items()
        if name.startswith(SAME) and not name.startswith(FREE)
    ]
    if wrong:
        raise ValueError(f"--distill.teacher {given.teacher} has another network or process: {'; '.join(wrong)}")
    return jax.device_get(state.ema if given.average else state.params)


def _of_student(theirs: Config, given: Distill, steps: int) -> Config:
    """What all methods have in common: the teacher's config, as distillation takes it."""
    plain, own = Diffusion(), theirs.diffusion
    kept = ("schedule", "num_steps", "schedule_args", "zero_terminal_snr", "log_snr_shift", "time_range", "prediction")
    variance = "large" if reverse.is_learned(own.variance) else own.variance
    diffusion = dataclasses.replace(plain, variance=variance, **{name: getattr(own, name) for name in kept})
    settings = theirs.run
    run_settings = dataclasses.replace(
        settings,
        sample_every=min(settings.sample_every, steps),
        checkpoint_every=min(settings.checkpoint_every, steps),
        log_every=min(settings.log_every, steps),
        gradients_every=0,
        evaluate_every=0,
        ema_snapshot_every=0,
    )
    optimizer = dataclasses.replace(
        theirs.optimizer,
        learning_rate=theirs.optimizer.learning_rate / 2,
        warmup_steps=0,
        decay="linear",
        ema_sigma_rels=(),
    )
    return dataclasses.replace(
        theirs, steps=steps, diffusion=diffusion, distill=given, optimizer=optimizer, run=run_settings
    )


def _progressive(theirs: Config, teacher: str) -> Config:
    """A fifth of the teacher's training for each halving; the weighting is max(SNR, 1) on x_0 (Salimans & Ho 2022)."""
    given = Distill(method="progressive", teacher=teacher, steps=1)
    made = _of_student(theirs, given, max(theirs.steps // 5, 1))
    return dataclasses.replace(made, diffusion=dataclasses.replace(made.diffusion, weighting="truncated"))


def _of_few_levels(theirs: Config, given: Distill) -> Config:
    made = _of_student(theirs, given, theirs.steps)
    # Two steps, the second from where the signal begins to outweigh the noise.
    sampling = Sampling(sampler="consistency", steps=(2,), spacing="edm", spacing_args=(("sigma_min", 0.8),))
    return dataclasses.replace(
        made, sampling=sampling, diffusion=dataclasses.replace(made.diffusion, norm="pseudo_huber")
    )


def _consistency(theirs: Config, teacher: str) -> Config:
    """18 steps throughout, between 19 levels; Song et al. 2023, Sec. 6.1, take 18 levels, as EDM's sampler does."""
    return _of_few_levels(theirs, Distill(method="consistency", teacher=teacher, levels=(18, 18)))


def _consistency_training(theirs: Config, teacher: str) -> Config:
    del teacher
    return _of_few_levels(theirs, Distill(method="consistency_training"))


DEFAULTS: dict[str, Callable[[Config, str], Config]] = {
    "progressive": _progressive,
    "consistency": _consistency,
    "consistency_training": _consistency_training,
}


def default(method: str, theirs: Config, teacher: str) -> Config:
    """The config of a method's run, or of its halvings, from the teacher's config and its folder.

    Raises:
        ValueError: for an unknown method, with the nearest.
    """
    return records.pick(DEFAULTS, method, "method")(theirs, teacher)


def halvings(config: Config, workdir: files.Place, *, start: int, end: int) -> Iterator[tuple[Config, files.Place]]:
    """The run of every halving and its folder, WORKDIR/steps_S: students of `start` steps, half of it, ... `end`.

    The first teacher is that of `config`; the others are the students before, their weights as trained (Salimans & Ho
    2022, Algorithm 2). Each draws by as many DDIM steps as it was taught, spaced as it was.

    Raises:
        ValueError: unless start is end times a power of two.
    """
    ratio = start // max(end, 1)
    if end < 1 or start != ratio * end or ratio & (ratio - 1) or not ratio:
        raise ValueError(f"--start-steps must be --end-steps times 1, 2, 4, 8, ...; got {start} and {end}")
    distill, steps = config.distill, start
    while steps >= end:
        folder = workdir / f"steps_{steps}"
        distill = dataclasses.replace(distill, steps=steps)
        sampling = dataclasses.replace(
            config.sampling,
            sampler="ddim",
            sampler_args=(),
            steps=(steps,),
            spacing="trailing",
            spacing_args=(),
            process="",
            eta=0.0,
        )
        yield dataclasses.replace(config, distill=distill, sampling=sampling), folder
        distill, steps = dataclasses.replace(distill, teacher=str(folder), average=False), steps // 2
