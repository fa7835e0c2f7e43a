"""What is refused before a run, or a comparison of many, writes anything."""

from ddpm_jax import config as config_lib
from ddpm_jax import files, records
from ddpm_jax.config import Config
from ddpm_jax.data.record import Source
from ddpm_jax.diffusion import reverse
from ddpm_jax.training import feed, gradients, snapshots
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.draw import way
from ddpm_jax.training.run import Parts, num_classes, without_class

MOST_BINS = 100
# What may not change between a run and its continuation: the checkpoint would not fit, or mean something else.
FIXED = ("net.", "diffusion.", "distill.", "data.shape", "optimizer.name", "optimizer.ema_sigma_rels")
# Fields in these that change no parameter.
FREE = (
    "net.dropout",
    "net.label_dropout",
    "net.remat",
    "net.dtype",
    "diffusion.weighting",
    "diffusion.norm",
    "diffusion.offset_noise",
    "diffusion.vlb_weight",
    "diffusion.correct_draw",
    "distill.teacher",
)


def intervals(config: Config) -> dict[str, int]:
    """How often what happens in a run, in steps, by flag."""
    run = config.run
    every = {
        "--run.log-every": run.log_every,
        "--run.sample-every": run.sample_every,
        "--run.checkpoint-every": run.checkpoint_every,
    }
    seldom = {"--run.gradients-every": run.gradients_every, "--run.evaluate-every": run.evaluate_every}
    return every | {flag: steps for flag, steps in seldom.items() if steps}


def numbers(config: Config) -> None:
    """Counts are counts; and everything happens between dispatches, so every interval is a whole number of them.

    Raises:
        ValueError: naming the flag.
    """
    run = config.run
    feed.check_numbers(config.data)
    several = {"--steps": config.steps, **intervals(config)}
    counts = {
        "--run.steps-per-dispatch": run.steps_per_dispatch,
        "--run.num-samples": run.num_samples,
        "--run.preview-steps": run.preview_steps,
        "--run.keep-last": run.keep_last,
        "--run.evaluate-num": run.evaluate_num,
        **several,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, value in several.items():
        if value % run.steps_per_dispatch:
            raise ValueError(
                f"{name} must be a multiple of --run.steps-per-dispatch {run.steps_per_dispatch}, got {value}"
            )
    for name, value in (("--run.keep-every", run.keep_every), ("--run.keep-best", run.keep_best)):
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
    if run.evaluate_every % run.checkpoint_every:
        raise ValueError(
            f"--run.evaluate-every must be a multiple of --run.checkpoint-every {run.checkpoint_every}, for it says "
            f"which checkpoint is best, got {run.evaluate_every}"
        )
    if not 0 <= run.bins <= MOST_BINS:
        raise ValueError(f"--run.bins must lie in 0 .. {MOST_BINS}, got {run.bins}")
    if run.gradients_every:
        gradients.check(config.diffusion)
        if not run.bins:
            raise ValueError("--run.gradients-every needs --run.bins, the bins that gradients are sorted by, got 0")
    if not 0 <= config.seed < 2**32 - 1:
        raise ValueError(f"--seed must lie in 0 .. 2^32 - 2, got {config.seed}")


def labels(config: Config, source: Source) -> None:
    """A network that takes classes gets those of its data.

    Raises:
        ValueError: naming the flag.
    """
    wanted = num_classes(config)
    if wanted and source.num_classes != wanted:
        raise ValueError(
            f"--net.num-classes must be the {source.num_classes} classes of {config.data.source}, or 0, got {wanted}"
        )


def new_folder(workdir: files.Place, file: str) -> None:
    """A folder without the `file` that a run begins with holds nothing else either, but what was left of writing it.

    Raises:
        ValueError: if it does.
    """
    if not workdir.exists():
        return
    if not files.is_dir(workdir) or any(not path.name.startswith(f".{file}.") for path in files.entries(workdir)):
        raise ValueError(f"--workdir {workdir} has other things in it and no {file}; give a new or empty folder")


def settings(parts: Parts) -> None:
    """All that can be refused of a run's settings without its data and its folder.

    Raises:
        ValueError: naming the flag.
    """
    numbers(parts.config)
    snapshots.check(parts.config)
    mesh_lib.check_batch(parts.config.batch_size, parts.mesh, parts=parts.config.devices.accumulate)
    way(parts, parts.config.sampling)  # what sample.py would refuse later is refused now


def dispatches(config: Config, start: int) -> None:
    """The steps that are left after `start` are whole dispatches.

    Raises:
        ValueError: naming the flag.
    """
    left, several = config.steps - start, config.run.steps_per_dispatch
    if max(left, 0) % several:
        raise ValueError(
            f"--run.steps-per-dispatch must divide the {left} steps from the checkpoint at {start} to --steps "
            f"{config.steps}, got {several}"
        )


def folder(config: Config, workdir: files.Place) -> list[str]:
    """What this config changes of the run that the folder holds, "field: old -> new" each; nothing for a new folder.

    Raises:
        ValueError: if the run there can't go on with it, or something else is there.
    """
    path = workdir / "config.json"
    if not files.is_file(path):
        new_folder(workdir, path.name)
        return []
    before = config_lib.read(path)
    changed = records.differences(before, config)
    lines = {name: f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items()}
    free: set[str] = set(FREE)
    if not any(reverse.is_learned(name) for name in changed.get("diffusion.variance", ())):
        free.add("diffusion.variance")  # one fixed variance is as good as another
    if without_class(before) != without_class(config):
        free.remove("net.label_dropout")  # "no class" has parameters of its own
    wrong = [line for name, line in lines.items() if name.startswith(FIXED) and not name.startswith(tuple(free))]
    if wrong:
        raise ValueError(
            f"{workdir} holds a run that this config can't go on with; give another --workdir, or undo "
            + "; ".join(wrong)
        )
    return list(lines.values())
