"""How good are a run's images? python -m ddpm_jax.cli.evaluate WORKDIR [--num N] [--samples FILE.npz] ...

For data with labels and a held-out split. Prints each figure beside what real held-out images get, at equal numbers of
images: the share that a classifier of real images is sure of, the classes found, and the Frechet distance of pixels.
"""

import dataclasses
import json
import sys
from typing import Annotated

import tyro

from ddpm_jax import files
from ddpm_jax.cli import flags
from ddpm_jax.config import Config, Data, Launch, Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure a run's images against held-out ones."""

    num: int = 0
    """Images to draw; 0 for as many as are held out."""
    seed: int = 1
    samples: flags.Place | None = None
    """Measure the `images` of this .npz (as sample.py --npz writes) instead of drawing."""
    data: Data = Data()
    """The images that training saw; the run's if not given."""
    held_out: str = "test"
    """The split that training didn't see."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling()
    raw: bool = False
    """Use the weights of the last step, not their average over training."""
    checkpoint: int | None = None
    """The step to read; the newest if not given."""
    launch: Launch = Launch()


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("python -m ddpm_jax.cli.evaluate WORKDIR [--num N] [--seed S] [--samples FILE.npz] [--sampler NAME] ...")
        sys.exit(0)
    workdir, config = flags.run_folder(args[0])
    asked = flags.parse(
        Flags, args[1:], prog=f"evaluate {workdir}", default=Flags(data=config.data, sampling=config.sampling)
    )
    from ddpm_jax.training import processes

    processes.join(asked.launch)
    result = _measure(asked, workdir, config)
    if not processes.writes():
        return
    files.write(workdir / "evaluation.json", (json.dumps(result, indent=1) + "\n").encode())
    print(f"images                        {result['num_images']}")
    print(f"classifier is sure (p >= 0.9) {result['sure']:.3f}   held-out {result['sure_held_out']:.3f}")
    print(f"images by class               {result['by_class']}")
    print(f"Frechet distance of pixels    {result['frechet']:.3f}   held-out {result['frechet_floor']:.3f}")


def _measure(asked: Flags, workdir: files.Place, config: Config) -> dict:
    import numpy as np

    from ddpm_jax import data
    from ddpm_jax.evaluation import frechet, probe
    from ddpm_jax.training import guided, run
    from ddpm_jax.training.draw import draw, way

    def floats(source: data.Source) -> np.ndarray:
        return data.to_float(source.images[np.arange(len(source))])

    train = data.load(asked.data)
    held_out = data.load(dataclasses.replace(asked.data, split=asked.held_out))
    if train.labels is None:
        raise ValueError(f"{asked.data.source} has no labels to train the classifier on")
    real, labels, others = floats(train), train.labels[np.arange(len(train))], floats(held_out)
    if asked.samples is not None:
        with files.local(asked.samples) as file:
            images = floats(data.arrays.array(str(file)))
    else:
        parts, state = run.load(workdir, step=asked.checkpoint)
        params = state.params if asked.raw else state.ema
        settings = guided.within(asked.sampling, workdir)
        way(parts, settings, under="--")
        num = asked.num or len(others)
        images, _ = draw(parts, params, seed=asked.seed, num=num, settings=settings, batch_size=128)
    distance = frechet.with_floor(images, real, others)
    drawn = probe.confidence(real, labels, images)
    return {
        "num_images": len(images),
        "sure": drawn.fraction,
        "sure_held_out": probe.confidence(real, labels, others).fraction,
        "by_class": list(drawn.counts),
        "frechet": distance.distance,
        "frechet_floor": distance.floor,
        "frechet_num_images": distance.num_images,
    }


if __name__ == "__main__":
    flags.run(main)
