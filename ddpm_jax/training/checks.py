"""What is refused before a run, or a comparison of many, writes anything."""

from ddpm_jax import files
from ddpm_jax.config import Config
from ddpm_jax.data.record import Source
from ddpm_jax.training import feed, gradients
from ddpm_jax.training.run import num_classes

MOST_BINS = 100


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
