"""What a learned variance and an importance-sampled t bring: python benchmarks/likelihood.py run|draw [--seeds N] ...

`run` trains the digits preset four ways from several seeds, with equal steps, batches and learning rates:

    fixed        L_simple; the bound is read with both fixed variances
    hybrid       L_simple and the bound for a learned range of variance (Nichol & Dhariwal 2021, Eq. 16)
    vlb          the bound alone, t uniform
    vlb_drawn    the bound alone, t drawn by the second moment of the loss (ibid., Sec. 3.3)

and measures bits/dim of the held-out digits. `draw` makes a table and a picture of what lies in OUT. Runs that are
there already are not made again, so that `run` may be split over processes by --only and --first-seed.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ddpm_jax.cli import flags
from ddpm_jax.config import Config
from ddpm_jax.figures import plots
from ddpm_jax.records import pick

WAYS = {
    "fixed": {},
    "hybrid": {"objective": "hybrid", "variance": "learned_range"},
    "vlb": {"objective": "vlb", "variance": "learned_range"},
    "vlb_drawn": {"objective": "vlb", "variance": "learned_range", "draw_t": "second_moment"},
}
READ = {"fixed": ("large", "small")}
"""Variances that a way's bound is read with, where it isn't its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Train the ways of seeds first_seed .. first_seed + seeds - 1."""

    seeds: int = 3
    first_seed: int = 0
    only: tuple[str, ...] = tuple(WAYS)
    steps: int = 1000
    num_t: int = 50
    """t an image when bits/dim are measured."""
    out: Path = Path("benchmarks/results/likelihood")


def config_of(way: str, seed: int, steps: int) -> Config:
    """The digits preset, trained that way, with pictures and checkpoints left out."""
    preset = flags.load_preset("digits")
    return dataclasses.replace(
        preset,
        seed=seed,
        steps=steps,
        diffusion=dataclasses.replace(preset.diffusion, **WAYS[way]),
        sampling=dataclasses.replace(preset.sampling, variance=""),
        run=dataclasses.replace(
            preset.run, log_every=1, sample_every=steps, checkpoint_every=steps, num_samples=1, preview_steps=1
        ),
    )


def measure(way: str, seed: int, asked: Flags) -> dict:
    """Train once, and read the bound of the held-out digits."""
    import jax

    from ddpm_jax import data, nets
    from ddpm_jax.evaluation import likelihood
    from ddpm_jax.training import report, run
    from ddpm_jax.training.loop import train

    config = config_of(way, seed, asked.steps)
    with tempfile.TemporaryDirectory() as folder:
        state = train(config, Path(folder))
        losses = [line["loss"] for line in report.read(Path(folder))]
    parts = run.build(config)
    source = data.load(dataclasses.replace(config.data, split="test"))
    images = data.to_float(source.images[np.arange(len(source))])
    denoise, bits = nets.denoiser(parts.module, state.ema), {}
    for variance in READ.get(way, (config.diffusion.variance,)):
        per_batch = likelihood.estimated(jax.random.key(0), parts.schedule, num_t=asked.num_t, variance=variance)
        found = likelihood.over(per_batch, denoise, lambda rows: (images[rows], None), len(images))
        bits[variance] = {"bits_per_dim": found.bits_per_dim, "standard_error": found.standard_error}
    return {"way": way, "seed": seed, "steps": asked.steps, "losses": losses, "bits": bits}


def run(asked: Flags) -> None:
    for way in asked.only:
        pick(WAYS, way, "--only")
    asked.out.mkdir(parents=True, exist_ok=True)
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for way in asked.only:
            path = asked.out / f"{way}_{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(measure(way, seed, asked)) + "\n")
            done = json.loads(path.read_text())
            if done["steps"] != asked.steps:
                raise ValueError(f"{path} is of {done['steps']} steps, --steps is {asked.steps}; give another --out")
            found = done["bits"]
            print(way, seed, {name: round(bits["bits_per_dim"], 4) for name, bits in found.items()}, flush=True)


def draw(asked: Flags) -> None:
    """The table on the screen, the picture in OUT.png."""
    found = [json.loads(path.read_text()) for path in sorted(asked.out.glob("*.json"))]
    missing = [way for way in WAYS if sum(one["way"] == way for one in found) < 2]
    if missing:
        raise ValueError(f"--out {asked.out} must hold two seeds or more of each way, got fewer of {missing}; run them")
    for way in WAYS:
        runs = [one for one in found if one["way"] == way]
        for variance in runs[0]["bits"]:
            bits = [one["bits"][variance]["bits_per_dim"] for one in runs]
            print(f"{way:10} {variance:14} {np.mean(bits):.4f} +- {np.std(bits, ddof=1):.4f}   {np.round(bits, 4)}")
    summary = [{name: one[name] for name in ("way", "seed", "steps", "bits")} for one in found]
    asked.out.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    window = 50
    for way, colour, label in (("vlb", "C1", "t uniform"), ("vlb_drawn", "C0", "t by second moment")):
        late = []
        for i, one in enumerate(one for one in found if one["way"] == way):
            losses = np.asarray(one["losses"])
            groups = losses[: len(losses) // window * window].reshape(-1, window)
            steps = window * (np.arange(len(groups)) + 0.5)
            left.plot(np.arange(len(losses)), losses, color=colour, alpha=0.35, linewidth=0.6)
            right.plot(steps, groups.std(axis=1), color=colour, label=label if i == 0 else None)
            late.append(groups[-10:].std(axis=1).mean())
        print(f"{way:10} deviation of the loss within {window} steps, last 500: {np.round(late, 4)}")
    for axes, title in ((left, "bound on a batch, bits/dim"), (right, f"its deviation within {window} steps")):
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("step")
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
    right.legend(frameon=False)
    plots.save(figure, asked.out.with_suffix(".png"))
    print(f"wrote {asked.out.with_suffix('.json')} and {asked.out.with_suffix('.png')}")


def main(args: list[str]) -> None:
    tasks = {"run": run, "draw": draw}
    if not args or args[0] not in tasks:
        raise ValueError(f"the first argument must be run or draw, got {args[:1]}")
    tasks[args[0]](flags.parse(Flags, args[1:], prog=f"likelihood.py {args[0]}", default=Flags()))


if __name__ == "__main__":
    flags.run(main)
