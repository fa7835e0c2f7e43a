"""How good are a run's images? python -m ddpm_jax.cli.evaluate WORKDIR [--quick] [--features NAME ...] ...

Draws images and compares them with those that training saw: Frechet and kernel distance, precision, recall, density,
coverage, copies of training images, and, of held-out images, bits per dimension. Every figure has its 95 % interval,
and beside it stands what held-out images get in the samples' place, at the same number of images: figures of other
numbers, features or resizes are other figures. Interrupted, the same command goes on where it stopped.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import tyro

from ddpm_jax import files
from ddpm_jax.cli import flags
from ddpm_jax.config import Config, Data, Launch, Sampling
from ddpm_jax.training import evaluation_task
from ddpm_jax.training.evaluation_task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure a run's images against real ones."""

    quick: bool = False
    """2,000 images of 20 steps, and at most 2,000 real ones: about a minute for small images on a laptop."""
    features: tuple[str, ...] = ()
    """What images are compared by: efficientnet[:RESOLUTION], inception:FILE.pth, pixels, or your MODULE:FUNCTION;
    efficientnet if not given, and also pixels where an image has at most 1,024 numbers."""
    num: int = 0
    """Images to draw; 0 for as many as training saw, 10,000 at most (with --quick 2,000)."""
    seed: int = 1
    samples: flags.Place | None = None
    """Measure the `images` of this .npz (as sample.py --npz writes), or those of this folder, instead of drawing."""
    data: Data = Data()
    """The images that training saw; the run's if not given."""
    held_out: str | None = None
    """The split that training didn't see: test if there is one; '' for none, and no floor."""
    reference: str = ""
    """Published statistics (.npz with mu and sigma) to compare with, in place of both."""
    write_reference: flags.Place | None = None
    """Write the statistics of the training images, by the first features, into this .npz, and measure nothing."""
    num_reference: int = 50_000
    """Real images of each split, at most (with --quick 2,000); drawn at random where there are more."""
    num_t: int = 16
    """t an image for the bound of held-out images, in bits per dimension; 0 to leave it out."""
    batch_size: int = 128
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling()
    raw: bool = False
    """Use the weights of the last step, not their average over training."""
    checkpoint: int | Literal["best"] | None = None
    """The step to read, or best (of those that training evaluated); the newest if not given."""
    launch: Launch = Launch()


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("python -m ddpm_jax.cli.evaluate WORKDIR [--quick] [--features NAME ...] [--samples FILE.npz] ...")
        print("WORKDIR is a run's folder, as train.py leaves it; WORKDIR --help lists every flag.")
        sys.exit(0)
    workdir, config = flags.run_folder(args[0])
    task = evaluation_task.quickly(config) if "--quick" in args[1:] else evaluation_task.whole(config)
    default = Flags(**vars(task))
    asked = flags.parse(Flags, args[1:], prog=f"evaluate {workdir}", default=default)
    if asked.reference and asked.write_reference is not None:
        raise ValueError(
            "--write-reference writes statistics of the training images, --reference reads others: give one"
        )
    flags.begin(asked.launch)
    _measure(asked, workdir, config)


def _measure(asked: Flags, workdir: files.Place, config: Config) -> None:
    from ddpm_jax.training import evaluation, processes, run, run_report

    task = Task(**{field.name: getattr(asked, field.name) for field in dataclasses.fields(Task)})
    parts, state = run.load(workdir, step=asked.checkpoint)
    if asked.write_reference is not None:
        with _bars() as progress:
            said = evaluation.write_reference(parts, task, asked.write_reference, progress)
        if processes.writes():
            print(f"wrote {asked.write_reference}: {said}")
        return
    images = None if asked.samples is None else _images(asked.samples, config)
    with _bars() as progress:
        result = evaluation.evaluate(parts, state, task, workdir, images=images, progress=progress)
    if processes.writes():
        _print(result, workdir)
        print(f"wrote {run_report.write(workdir)}")


def _images(place: files.Place, config: Config) -> Any:
    """The images of an .npz or a folder, uint8 [N, H, W, C]."""
    from ddpm_jax import data

    if files.is_dir(place):
        source = data.load(Data(source="folder", path=str(place), shape=config.data.shape, split="all"))
    else:
        with files.local(place) as file:
            source = data.arrays.array(str(file))
    return source.images


def _print(result: dict[str, Any], workdir: files.Place) -> None:
    """The figures as a table, then what they are of."""
    rows = [("", "", "95 %", "held-out images", "n")]
    for figure in result["figures"]:
        floor = figure["floor"]
        beside = "" if floor is None else f"{_short(floor['value'])} {_ends(floor)}"
        name = f"{figure['name']}{ {'lower': ' (-)', 'higher': ' (+)'}.get(figure['better'], '') }"
        rows.append((name, _short(figure["value"]), _ends(figure), beside, f"{figure['num_images']:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"(-) less is better, (+) more; n images on each side, of {result['num_images']:,} samples", end="")
    print(f" and {_reference(result['reference'])}")
    for each in result["features"]:
        print(f"{each['name']}: {each['dim']} features; {each['preprocessing']}")
    print(f"wrote {result['file']} into {workdir / 'evaluation'}, {result['seconds']:.0f} s")


def _reference(said: dict[str, Any]) -> str:
    many, whole = said["num_images"], said.get("of")
    return f"{'?' if many is None else many} of {said['what']}" + (f" ({whole})" if whole not in (None, many) else "")


def _short(value: float) -> str:
    return f"{value:.4g}"


def _ends(figure: dict[str, Any]) -> str:
    return "" if figure["low"] is None else f"[{_short(figure['low'])}, {_short(figure['high'])}]"


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each thing that is done, one after the other."""
    from tqdm import tqdm

    from ddpm_jax.training import processes

    bars: dict[str, tqdm] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = tqdm(total=total, desc=what, unit="image", disable=not processes.writes())
        bars[what].update(done)

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()


if __name__ == "__main__":
    flags.run(main)
