"""Samplers by number of steps: python benchmarks/samplers.py RUN [--samplers NAME ...] [--steps N ...] [--num N]

Draws `num` images of a run with every sampler and number of steps, all from the same noise, and measures the Frechet
distance of their pixels to the training images. Standard errors are by the bootstrap over images; that of the
difference to the sampler `beside` uses the same draws of image numbers for both, so that what they share falls out.

The same command again goes on: WORKDIR holds the images drawn so far. Writes a table (JSON and Markdown) and a picture.
"""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from ddpm_jax.cli import flags
from ddpm_jax.config import Sampling

RESAMPLED = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure `samplers` at `steps`."""

    samplers: tuple[str, ...] = ()
    """NAME, or NAME:SPACING; all if not given."""
    steps: tuple[int, ...] = (5, 10, 20, 50, 100, 1000)
    most_evaluations: int = 1000
    """Leave out what would take more evaluations of the network an image."""
    num: int = 512
    seed: int = 1
    beside: str = "ddpm"
    """Differences are to this sampler with the largest number of steps."""
    workdir: Path = Path("runs/samplers")
    out: Path = Path("benchmarks/results/samplers.json")
    picture: Path = Path("docs/samplers.png")


def settings_of(name: str, steps: int) -> Sampling:
    """A sampler and where its steps lie: NAME or NAME:SPACING; its own if not said, but `trailing` for even."""
    from ddpm_jax.sampling import build

    sampler, _, spacing = name.partition(":")
    default = {"even": "trailing"}.get(own := build(sampler).spacing, own)
    return Sampling(sampler=sampler, steps=(steps,), spacing=spacing or default)


def images_of(parts: object, params: object, name: str, steps: int, asked: Flags) -> tuple[np.ndarray, float]:
    """Images [N, H, W, C], drawn or read back, and the seconds that they took."""
    from ddpm_jax.training.draw import draw

    file = asked.workdir / f"{name.replace(':', '_')}_{steps}_{asked.num}_{asked.seed}.npz"
    if not file.exists():
        begun = time.perf_counter()
        drawn, _ = draw(
            parts, params, seed=asked.seed, num=asked.num, settings=settings_of(name, steps), batch_size=asked.num
        )
        with (beside := file.with_suffix(".tmp")).open("wb") as opened:
            np.savez(opened, images=drawn, seconds=time.perf_counter() - begun)
        beside.replace(file)
    with np.load(file) as stored:
        return stored["images"], float(stored["seconds"])


def main(args: list[str]) -> None:
    if not args or args[0].startswith("-"):
        raise ValueError("the first argument is a run's folder: python benchmarks/samplers.py RUN ...")
    workdir, _ = flags.run_folder(args[0])
    asked = flags.parse(Flags, args[1:], prog="samplers.py", default=Flags())
    from ddpm_jax import data
    from ddpm_jax.evaluation import frechet
    from ddpm_jax.sampling import SAMPLERS, build
    from ddpm_jax.training import run

    asked.workdir.mkdir(parents=True, exist_ok=True)
    parts, state = run.load(workdir)
    source = data.load(parts.config.data)
    moments = frechet.moments(data.to_float(source.images[np.arange(len(source))]))
    picks = [np.arange(asked.num), *np.random.default_rng(0).integers(0, asked.num, (RESAMPLED, asked.num))]
    rows, found = [], {}
    for name in asked.samplers or tuple(SAMPLERS):
        evaluations = build(name.partition(":")[0]).evaluations
        for steps in asked.steps:
            if steps * evaluations > asked.most_evaluations and (name, steps) != (asked.beside, max(asked.steps)):
                continue
            images, seconds = images_of(parts, state.ema, name, steps, asked)
            finite = bool(np.isfinite(images).all())
            distances = [frechet.frechet(*frechet.moments(images[pick]), *moments) for pick in picks] if finite else []
            found[name, steps] = np.array(distances)
            row = {"sampler": name, "steps": steps, "evaluations": steps * evaluations, "finite": finite}
            if finite:
                row |= {"frechet": distances[0], "standard_error": float(np.std(distances[1:], ddof=1))}
            rows.append(row | {"seconds": seconds})
            print(json.dumps(row), flush=True)
    reference = found.get((asked.beside, max(asked.steps)))
    for row in rows:
        if reference is not None and row["finite"]:
            less = found[row["sampler"], row["steps"]] - reference
            row |= {"less": float(less[0]), "less_standard_error": float(less[1:].std(ddof=1))}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    made = {"run": workdir.name, "num": asked.num, "beside": [asked.beside, max(asked.steps)], "rows": rows}
    asked.out.write_text(json.dumps(made, indent=1) + "\n")
    print(table(rows, asked.steps))
    draw_picture(rows, asked.picture)


def table(rows: list[dict], steps: tuple[int, ...]) -> str:
    """Markdown: a sampler a line, a number of steps a column."""
    lines = ["| sampler | " + " | ".join(map(str, steps)) + " |", "|---" * (len(steps) + 1) + "|"]
    for name in dict.fromkeys(row["sampler"] for row in rows):
        at = {row["steps"]: row for row in rows if row["sampler"] == name}
        cells = [f"{at[n]['frechet']:.2f}" if n in at and at[n]["finite"] else "" for n in steps]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_picture(rows: list[dict], place: Path) -> None:
    """Distance against evaluations of the network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["sampler"] for row in rows))
    for i, name in enumerate(names):
        mine = [row for row in rows if row["sampler"] == name and row["finite"]]
        x, y = [row["evaluations"] for row in mine], [row["frechet"] for row in mine]
        error = [row["standard_error"] for row in mine]
        style = {"marker": "os^Dvp*<>h"[i % 10], "markersize": 4, "lw": 1, "color": f"C{i % 10}"}
        axes.errorbar(x, y, error, label=name, ls=("-", "--", ":")[i // 10 % 3], **style)
    axes.set(xscale="log", yscale="log", xlabel="evaluations of the network", ylabel="Frechet distance of pixels")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2, frameon=False)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=120)


if __name__ == "__main__":
    flags.run(main)
