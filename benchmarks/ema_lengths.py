"""Samples by the length of the average that draws them: python benchmarks/ema_lengths.py [--decays NAME ...] [--num N]

Trains the digits preset once for each way that its learning rate may end, with snapshots of two power averages
(--optimizer.ema-sigma-rels), makes averages of many lengths of them, and measures `num` samples of each, all from the
same noise: the Frechet distance of their pixels to the training images, with standard errors by the bootstrap, in
which all lengths share their draws. Some lengths are also kept in training, to say how near those made afterwards come.

The same command again goes on: WORKDIR holds the runs and the images drawn so far.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.cli import flags
from ddpm_jax.config import Config, Sampling

KEPT = (0.05, 0.1)
"""Of which all other lengths are made."""
TRACKED = (0.02, 0.2)
"""Kept beside them only to compare with."""
LENGTHS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25)
RESAMPLED = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Train a run for each of `decays`, and measure."""

    decays: tuple[str, ...] = ("cosine",)
    """How the learning rate ends: cosine, as the preset has it, or constant."""
    steps: int = 1500
    snapshot_every: int = 15
    num: int = 1024
    """Samples of each length."""
    sampling_steps: int = 50
    """Of DDIM."""
    seed: int = 1
    workdir: Path = Path("runs/ema_lengths")
    out: Path = Path("benchmarks/results/ema_lengths.json")


def config_of(decay: str, asked: Flags) -> Config:
    """The digits preset, with averages and their snapshots."""
    preset = flags.load_preset("digits")
    optimizer = dataclasses.replace(preset.optimizer, decay=decay, ema_sigma_rels=tuple(sorted(KEPT + TRACKED)))
    run = dataclasses.replace(
        preset.run, sample_every=asked.steps, num_samples=1, preview_steps=1, ema_snapshot_every=asked.snapshot_every
    )
    return dataclasses.replace(preset, steps=asked.steps, optimizer=optimizer, run=run)


def norm(tree: Any) -> float:
    """Of all parameters as one vector."""
    import jax

    return float(np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree))))


def rows_of(decay: str, asked: Flags) -> list[dict]:
    """What is known of each set of weights; its samples [N, H, W, C] go to WORKDIR/DECAY_images."""
    import jax

    from ddpm_jax.training import run, snapshots
    from ddpm_jax.training.draw import draw
    from ddpm_jax.training.loop import train

    workdir, images = asked.workdir / decay, asked.workdir / f"{decay}_images"
    train(config_of(decay, asked), workdir)
    parts, state = run.load(workdir, step=asked.steps)
    images.mkdir(exist_ok=True)
    of_name = {"last step": state.params, "ordinary average": state.ema}
    made = dict(zip(map(str, LENGTHS), snapshots.reconstruct(workdir, state, LENGTHS, of=KEPT), strict=True))
    rows = []
    for name in (*of_name, *made):
        row: dict[str, Any] = {"decay": decay, "weights": name}
        params = of_name.get(name) or made[name].params
        if name in made:
            row |= {"misfit": made[name].misfit, "snapshots": made[name].num_snapshots}
        if name in map(str, TRACKED):
            off = jax.tree.map(np.subtract, params, state.power_ema[name])
            moved = jax.tree.map(np.subtract, state.params, state.power_ema[name])
            row["error"] = norm(off) / norm(moved)
        row["distance_to_last_step"] = norm(jax.tree.map(np.subtract, params, state.params)) / norm(state.params)
        file = images / f"{name.replace(' ', '_')}_{asked.num}_{asked.sampling_steps}_{asked.seed}.npy"
        if not file.exists():
            settings = Sampling(sampler="ddim", steps=(asked.sampling_steps,))
            drawn, _ = draw(parts, params, seed=asked.seed, num=asked.num, settings=settings, batch_size=256)
            with (beside := file.with_suffix(".tmp")).open("wb") as opened:
                np.save(opened, drawn)
            beside.replace(file)
        rows.append(row | {"file": str(file)})
        print(f"{decay}: {name}", flush=True)
    return rows


def measure(rows: list[dict], real: np.ndarray) -> None:
    """Distances, and how far from that of the ordinary average, into the rows."""
    from ddpm_jax.evaluation import frechet

    sets = {row["weights"]: np.load(row.pop("file")) for row in rows}
    moments = frechet.moments(real)
    count = len(sets["last step"])
    picks = [np.arange(count), *np.random.default_rng(0).integers(0, count, (RESAMPLED, count))]

    def distances(images: np.ndarray) -> np.ndarray:
        """Of all images, and of each draw of as many with repetition [1 + RESAMPLED]."""
        return np.array([frechet.frechet(*frechet.moments(images[pick]), *moments) for pick in picks])

    found = {name: distances(images) for name, images in sets.items()}
    for row in rows:
        mine, less = found[row["weights"]], found[row["weights"]] - found["ordinary average"]
        row |= {"frechet": mine[0], "frechet_standard_error": mine[1:].std(ddof=1)}
        row |= {"less_ordinary": less[0], "less_ordinary_standard_error": less[1:].std(ddof=1)}


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| learning rate | weights | Frechet distance | less the ordinary average's | misfit | error |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        name = row["weights"] if "misfit" not in row else f"sigma_rel {row['weights']}"
        cells = [row["decay"], name]
        cells.append(f"{row['frechet']:.3f} +- {row['frechet_standard_error']:.3f}")
        cells.append(f"{row['less_ordinary']:+.3f} +- {row['less_ordinary_standard_error']:.3f}")
        cells += [f"{row[key]:.1e}" if key in row else "" for key in ("misfit", "error")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(args: list[str]) -> None:
    asked = flags.parse(Flags, args, prog="ema_lengths.py", default=Flags())
    from ddpm_jax import data

    rows = []
    source = data.load(flags.load_preset("digits").data)
    real = data.to_float(source.images[np.arange(len(source))])
    if not 2 <= asked.num <= len(real):
        raise ValueError(f"--num must lie in 2 .. {len(real)}, the training images, got {asked.num}")
    for decay in asked.decays:
        found = rows_of(decay, asked)
        measure(found, real)
        rows += found
    settings = {name: getattr(asked, name) for name in ("steps", "snapshot_every", "num", "sampling_steps", "seed")}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({**settings, "made_of": KEPT, "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    flags.run(main)
