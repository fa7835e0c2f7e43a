"""How many bits does an image cost? python -m ddpm_jax.cli.likelihood WORKDIR [--split test] [--num N] [--num-t K] ...

The variational bound on -log p(x_0), in bits per dimension (Ho et al. 2020, Sec. 4.3), of images of the run's data:
whole, T evaluations of the network an image, or estimated without bias from a few t (--num-t). A run that was trained
in continuous time is measured in continuous time.
"""

import dataclasses
import json
import sys
from pathlib import Path

from ddpm_jax import files
from ddpm_jax.cli import flags
from ddpm_jax.config import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure the bits per dimension of a run."""

    split: str = "test"
    """Images to measure: a split of the run's data."""
    num: int = 0
    """How many of them; 0 for all."""
    num_t: int = 0
    """Draw this many t an image rather than visit all; 0 for all (in continuous time, 8)."""
    variance: str = ""
    """Of the step back, as in training's --diffusion.variance; the run's own if not given."""
    decoder: str = "gaussian"
    """The last step: gaussian, published (its usual approximation) or categorical (Kingma et al. 2021)."""
    clip: bool = True
    """Keep the prediction of x_0 in [-1, 1]."""
    batch_size: int = 128
    seed: int = 0
    raw: bool = False
    """Use the weights of the last step, not their average over training."""
    checkpoint: int | None = None
    """The step to read; the newest if not given."""


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("python -m ddpm_jax.cli.likelihood WORKDIR [--split test] [--num N] [--num-t K] [--variance NAME] ...")
        sys.exit(0)
    workdir, config = flags.run_folder(args[0])
    asked = flags.parse(Flags, args[1:], prog=f"likelihood {workdir}", default=Flags())
    for name, least in (("num", 0), ("num_t", 0), ("batch_size", 1)):
        if getattr(asked, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(asked, name)}")
    _measure(asked, workdir, config)


def _measure(asked: Flags, workdir: Path, config: Config) -> None:
    import jax
    import numpy as np
    from tqdm import tqdm

    from ddpm_jax import data, nets
    from ddpm_jax.evaluation import likelihood
    from ddpm_jax.figures import plots
    from ddpm_jax.training import mesh, run

    source = data.load(dataclasses.replace(config.data, split=asked.split))
    rows = np.arange(min(len(source), asked.num or len(source)))
    images = data.to_float(source.images[rows])
    labels = source.labels[rows] if source.labels is not None and run.num_classes(config) else None
    parts, state = run.load(workdir, step=asked.checkpoint)
    key, prediction = jax.random.key(asked.seed), config.diffusion.prediction
    reading = {
        "prediction": prediction,
        "variance": asked.variance or config.diffusion.variance,
        "clip": asked.clip,
        "decoder": asked.decoder,
    }
    if config.diffusion.objective == "continuous":
        how = "continuous time"
        curve = run.curve(parts, state.noise)
        per_batch = likelihood.in_continuous_time(key, curve, num_t=asked.num_t or 8, prediction=prediction)
    elif asked.num_t:
        how = f"{asked.num_t} t an image"
        per_batch = likelihood.estimated(key, parts.schedule, num_t=asked.num_t, **reading)
    else:
        how = "every t"
        per_batch = likelihood.whole(key, parts.schedule, **reading)
    with tqdm(total=len(images), desc="measuring", unit="image") as bar:
        found = likelihood.over(
            per_batch,
            nets.denoiser(parts.module, state.params if asked.raw else state.ema),
            images,
            labels,
            batch_size=-(-min(asked.batch_size, len(images)) // parts.mesh.size) * parts.mesh.size,
            sharding=mesh.split(parts.mesh),
            on_batch=bar.update,
        )
    plain = {
        "bits_per_dim": found.bits_per_dim,
        "standard_error": found.standard_error,
        "num_images": found.num_images,
        "step": int(state.step),
        "how": how,
        **found.parts,
        **dataclasses.asdict(asked),
    }
    files.write(workdir / "likelihood.json", (json.dumps(plain, indent=1) + "\n").encode())
    print(f"{found.bits_per_dim:.4f} +- {found.standard_error:.4f} bits/dim, {found.num_images} images, {how}")
    print("   ".join(f"{name} {value:.4g}" for name, value in found.parts.items()))
    if found.terms is not None and found.curve is not None:
        plots.save(plots.bound(found.terms, *found.curve), workdir / "likelihood.png")
        print(f"wrote {workdir / 'likelihood.json'} and {workdir / 'likelihood.png'}")


if __name__ == "__main__":
    flags.run(main)
