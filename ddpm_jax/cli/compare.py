"""Which weighting is better? python -m ddpm_jax.cli.compare PRESET --weightings simple 'min_snr(gamma=5)' --seeds 3

Trains every variant with every seed side by side in one program, on the same images, t and noise, and writes
WORKDIR/report.html: differences with their confidence intervals, samples from equal latents, and what each noise level
costs and teaches. Predictions, schedules and draws of t are swept the same way.
"""

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddpm_jax.cli import flags
from ddpm_jax.config import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Compare variants of a run, seed by seed. Of the preset's run settings those of log and checkpoints count: there
    are no previews, a step is a dispatch, and a step whose loss isn't finite is skipped and told."""

    workdir: flags.Place
    """The comparison's folder, of this machine or gs://BUCKET/NAME."""
    weightings: tuple[str, ...] = ()
    """simple, 'min_snr(gamma=5)', FILE.py:FUNCTION, ...; with +uncertainty for a learned u(sigma) on top."""
    predictions: tuple[str, ...] = ()
    """eps, x0, v, score, mean or flow."""
    schedules: tuple[str, ...] = ()
    """linear, 'cosine(s=0.01)', ..."""
    draws: tuple[str, ...] = ()
    """uniform, 'log_normal(mean=-1.2,std=1.2)', ...; with +uncorrected for draws that are a weighting themselves."""
    seeds: int = 3
    """How many, from --seed on."""
    bins: int = 10
    """Of log-SNR, for everything that is said by noise level."""
    held_out: str = "test"
    """The split that is measured on."""
    pairs: int = 256
    """Of image and t, drawn in each bin and at t = 0 to measure a network on."""
    num_samples: int = 256
    """Images drawn from each network; 0 for none, and no Frechet distance."""
    shown: int = 16
    """Of them, in the report."""
    sample_steps: int = 50
    """DDIM steps for them."""
    gradients: bool = True
    """Measure gradients by noise level."""
    arrangement: str = ""
    """How members share a device: vmap, map or unroll; the fastest for the device if not given."""
    at_once: int = 0
    """Members on the devices at a time, the others wait in the host's memory; 0 for all."""
    export: bool = False
    """Also write each member as a run's folder, members/NAME, for sample.py and its kin."""
    config: Annotated[Config, tyro.conf.arg(name="")]


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(
            "python -m ddpm_jax.cli.compare PRESET --weightings simple 'min_snr(gamma=5)' [--seeds N] [--steps N] ..."
        )
        print("PRESET --help lists every flag; the same command again goes on")
        sys.exit(0)
    preset, *rest = args
    config = flags.load_preset(preset)
    default = Flags(workdir=Path("runs") / f"compare_{Path(preset).stem}", config=config)
    asked = flags.parse(Flags, rest, prog=f"compare {preset}", default=default)
    _check(asked, rest)
    import joblib

    # One member to a core: XLA runs two small steps on two cores faster than each step on both.
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(joblib.cpu_count()))  # those that a container grants
    flags.begin()
    _compare(asked, preset, "python -m ddpm_jax.cli.compare " + shlex.join(args))


def _check(asked: Flags, args: list[str]) -> None:
    least = {"seeds": 1, "bins": 1, "pairs": 2, "num_samples": 0, "shown": 0, "sample_steps": 1, "at_once": 0}
    for name, low in least.items():
        if getattr(asked, name) < low:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(asked, name)}")
    if asked.num_samples == 1:
        raise ValueError("--num-samples must be 0, or at least 2 for a Frechet distance, got 1")
    for name in ("weightings", "predictions", "schedules", "draws"):
        if (times := args.count(f"--{name}")) > 1:
            raise ValueError(f"--{name} takes all its values at once, and was given {times} times")


def _compare(asked: Flags, preset: str, command: str) -> None:
    import jax
    import numpy as np

    from ddpm_jax import data
    from ddpm_jax.diffusion import bins, schedules
    from ddpm_jax.evaluation import paired
    from ddpm_jax.training import checks, compare, layout, measured, population_gradients, sweep

    found = sweep.variants(
        asked.config,
        weightings=asked.weightings,
        predictions=asked.predictions,
        schedules=asked.schedules,
        draws=asked.draws,
    )
    if len(found) < 2:
        raise ValueError("a comparison takes at least two variants: --weightings simple 'min_snr(gamma=5)', for one")
    seeds = tuple(range(asked.config.seed, asked.config.seed + asked.seeds))
    members = [
        compare.Named(name=compare.name_of(variant.name, seed), config=dataclasses.replace(variant.config, seed=seed))
        for variant in found
        for seed in seeds
    ]
    how = layout.layout_of(
        jax.default_backend(), arrangement=asked.arrangement, at_once=asked.at_once, devices=jax.device_count()
    )
    source = data.load(asked.config.data)
    try:
        held_out = data.load(dataclasses.replace(asked.config.data, split=asked.held_out))
    except ValueError as error:
        raise ValueError(f"--held-out {asked.held_out}: {error}") from None
    edges = np.asarray(bins.edges(schedules.build(found[0].config.diffusion), asked.bins))
    if asked.bins > checks.MOST_BINS or not (np.diff(edges) > 0).all():
        raise ValueError(
            f"--bins must be at most {checks.MOST_BINS}, of a schedule of at least 2 noise levels, got {asked.bins} of "
            f"{asked.config.diffusion.num_steps}"
        )
    trained = compare.train(members, source, asked.workdir, layout=how, edges=edges)
    if trained.stopped:
        print(f"{asked.workdir} was asked to stop, and is saved at step {trained.step}; the same command goes on")
        return
    if asked.export:
        compare.export(trained, members, asked.workdir)
    settings = measured.Settings(
        pairs=asked.pairs, num_samples=asked.num_samples, shown=asked.shown, sample_steps=asked.sample_steps
    )
    result = measured.measure(trained.kinds, asked.config, found, seeds, held_out, asked.workdir, edges, settings)
    many = f"{paired.count(len(found), 'variant')}, {paired.count(len(seeds), 'seed')}"
    result = dataclasses.replace(
        result,
        title=f"{preset}: {many}, {paired.count(trained.step, 'step')}",
        command=command,
        facts=measured.facts(asked.config, preset, trained.kinds, settings, asked.held_out),
    )
    _write(result, asked.workdir)
    if asked.gradients:
        configs = [member.config for member in members]
        stats = population_gradients.statistics(trained.kinds, configs, source, how, edges=edges)
        result = measured.with_gradients(result, stats)
        _write(result, asked.workdir)
    for metric in result.metrics:
        for difference in paired.differences(metric, [variant.name for variant in result.variants]):
            print(difference.verdict)
    print(f"wrote {asked.workdir / 'report.html'}")


def _write(result: Any, workdir: flags.Place) -> None:
    from ddpm_jax.evaluation import comparison
    from ddpm_jax.figures import comparison_page, page

    comparison.write(result, workdir)
    page.write(workdir / "report.html", comparison_page.comparison_page(result))


if __name__ == "__main__":
    flags.run(main, stopped="stopped; the same command goes on from the newest checkpoint")
