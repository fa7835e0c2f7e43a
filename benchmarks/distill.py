"""Samples by number of steps, before and after distillation: python benchmarks/distill.py [--seeds 1 2 3] ...

Trains the digits_v preset, halves its DDIM steps to one by progressive distillation, distils it into a consistency
function, and measures `num` samples of each for every seed: the Frechet distance of their pixels to the training
images, mean and standard error over seeds (by the bootstrap where there is one).

The same command again goes on: WORKDIR holds the runs and the images drawn so far.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.cli import flags
from ddpm_jax.config import Config, Sampling

RESAMPLED = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Train, distil and measure."""

    start_steps: int = 8
    """DDIM steps of the first student."""
    halving_steps: int = 150
    """Updates for each halving."""
    consistency_steps: int = 500
    num: int = 1024
    """Samples for each seed."""
    seeds: tuple[int, ...] = (1, 2, 3)
    ancestral_seeds: tuple[int, ...] = (1,)
    """Those for 1000 ancestral steps, which take as long as all the rest."""
    batch_size: int = 256
    workdir: Path = Path("runs/distill")
    out: Path = Path("benchmarks/results/distill.json")


def quiet(config: Config) -> Config:
    """Without previews on the way."""
    run = dataclasses.replace(config.run, sample_every=config.steps, num_samples=1, preview_steps=1)
    return dataclasses.replace(config, run=run)


def runs(asked: Flags) -> Iterator[tuple[str, Path, int, Sampling]]:
    """Trains what isn't trained; of each row of the table its name, run, steps and how it draws."""
    from ddpm_jax.training import distill
    from ddpm_jax.training.loop import train

    folder, preset = asked.workdir / "teacher", flags.load_preset("digits_v")
    train(quiet(preset), folder)
    counts = [2**k for k in range(asked.start_steps.bit_length() - 1, -1, -1)]
    for steps in counts:
        yield "teacher, DDIM", folder, steps, Sampling(sampler="ddim", steps=(steps,), spacing="trailing")
    made = distill.default("progressive", preset, str(folder))
    made = quiet(dataclasses.replace(made, steps=asked.halving_steps))
    for config, place in distill.halvings(made, asked.workdir / "progressive", start=asked.start_steps, end=1):
        train(config, place)
        yield "progressive", Path(str(place)), config.distill.steps, config.sampling
    made = distill.default("consistency", preset, str(folder))
    made, place = quiet(dataclasses.replace(made, steps=asked.consistency_steps)), asked.workdir / "consistency"
    train(made, place)
    for steps in (2, 1):
        yield "consistency", place, steps, dataclasses.replace(made.sampling, steps=(steps,))
    yield "teacher, ancestral", folder, 1000, Sampling(steps=(1000,))


def drawn(asked: Flags, name: str, folder: Path, steps: int, settings: Sampling, seed: int) -> np.ndarray:
    """Images [N, H, W, C], from WORKDIR/images if they are there."""
    from ddpm_jax.training import run
    from ddpm_jax.training.draw import draw

    file = asked.workdir / "images" / f"{name.replace(', ', '_')}_{steps}_{asked.num}_{seed}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        parts, state = run.load(folder)
        images, _ = draw(
            parts, state.ema, seed=seed, num=asked.num, settings=settings, batch_size=min(asked.batch_size, asked.num)
        )
        with (beside := file.with_suffix(".tmp")).open("wb") as opened:
            np.save(opened, images)
        beside.replace(file)
    return np.load(file)


def distances(sets: list[np.ndarray], real: np.ndarray) -> dict[str, float]:
    """Mean and standard error over sets of samples; by the bootstrap of a single one."""
    from ddpm_jax.evaluation import frechet

    moments = frechet.moments(real)

    def of(images: np.ndarray) -> float:
        return frechet.frechet(*frechet.moments(images), *moments)

    found = np.array([of(images) for images in sets])
    if len(found) > 1:
        error = found.std(ddof=1) / np.sqrt(len(found))
    else:
        picks = np.random.default_rng(0).integers(0, len(sets[0]), (RESAMPLED, len(sets[0])))
        error = np.std([of(sets[0][pick]) for pick in picks], ddof=1)
    return {"frechet": float(found.mean()), "standard_error": float(error), "seeds": len(found)}


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| model | steps | Frechet distance |", "|---|---|---|"]
    for row in rows:
        distance = f"{row['frechet']:.3f} +- {row['standard_error']:.3f}"
        lines.append(f"| {row['model']} | {row['steps']} | {distance} |")
    return "\n".join(lines)


def main(args: list[str]) -> None:
    asked = flags.parse(Flags, args, prog="distill.py", default=Flags())
    if asked.num < 2 or asked.start_steps & (asked.start_steps - 1) or asked.start_steps < 1:
        raise ValueError(
            f"--num must be at least 2 and --start-steps 1, 2, 4, ...; got {asked.num} {asked.start_steps}"
        )
    from ddpm_jax import data

    source = data.load(flags.load_preset("digits_v").data)
    real = data.to_float(source.images[np.arange(len(source))])
    rows: list[dict[str, Any]] = []
    settings = {key: getattr(asked, key) for key in ("start_steps", "halving_steps", "consistency_steps", "num")}
    for name, folder, steps, sampling in runs(asked):
        seeds = asked.ancestral_seeds if name == "teacher, ancestral" else asked.seeds
        sets = [drawn(asked, name, folder, steps, sampling, seed) for seed in seeds]
        rows.append({"model": name, "steps": steps, **distances(sets, real)})
        print(f"{name}, {steps}: {rows[-1]['frechet']:.3f} +- {rows[-1]['standard_error']:.3f}", flush=True)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    flags.run(main)
