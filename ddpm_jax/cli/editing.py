"""What sample.py --edit writes: one picture for each task, of images before and after."""

import dataclasses

import numpy as np

from ddpm_jax import data, networks
from ddpm_jax.cli.drawing import Drawing
from ddpm_jax.cli.edit_flags import Editing, unused
from ddpm_jax.cli.edit_tasks import TASKS, Task, read_file
from ddpm_jax.figures import pictures
from ddpm_jax.records import pick
from ddpm_jax.training import distill_loss, guided, processes
from ddpm_jax.training.draw import way
from ddpm_jax.training.run import Parts, num_classes, without_class


def edit(of: Drawing, asked: Editing) -> None:
    """Do the task that `asked.edit` names, and write its picture, OUT_EDIT.png: a row for each image.

    Raises:
        ValueError: for a task, an image or a setting that can't be, naming the flag.
        FileNotFoundError: for an image that isn't there.
    """
    work = pick(TASKS, asked.edit, "--edit")
    if networks.enlarges(of.parts.config.net) and asked.edit not in ("superresolve", "cascade"):
        raise ValueError(f"--edit must be superresolve or cascade for a network that enlarges images, got {asked.edit}")
    if flag := unused(asked, enlarges=networks.enlarges(of.parts.config.net) > 0):
        by = f" --method {asked.method}" if asked.method else ""
        raise ValueError(f"{flag} has no part in --edit {asked.edit}{by}")
    if asked.versions < 1:
        raise ValueError(f"--versions must be at least 1, got {asked.versions}")
    chosen = way(of.parts, of.settings, under="--")
    led = guided.denoiser(of.parts, of.params, of.settings.guidance)
    denoise, prediction = distill_loss.as_sampled(of.parts.config, of.parts.schedule, led)
    images, own = read(of.parts, asked)
    task = Task(
        of=of,
        asked=asked,
        way=chosen,
        denoise=denoise,
        prediction=prediction,
        images=images,
        labels=_labels(of, own, len(images)),
    )
    columns = work(task)
    if not processes.writes():
        return
    titles, cells = zip(*columns, strict=True)
    path = of.beside(f"{asked.edit}.png")
    pictures.save_png(path, pictures.strip(np.nan_to_num(np.stack(cells, axis=1)), titles=titles))
    print(f"wrote {path}")


def read(parts: Parts, asked: Editing) -> tuple[np.ndarray, np.ndarray | None]:
    """The images [N, H, W, C] that --image names, in [-1, 1], and their classes where all are known, int [N]."""
    config = parts.config.data
    numbers = [int(name) for name in asked.image if name.isdecimal()]
    source = None
    if numbers:
        source = data.load(dataclasses.replace(config, split=asked.data_split or config.split))
        if max(numbers) >= len(source):
            raise ValueError(f"--image must lie in 0 .. {len(source) - 1} of the run's data, got {max(numbers)}")
    found, labels = [], []
    for name in asked.image:
        if source is not None and name.isdecimal():
            found.append(np.asarray(source.images[np.array([int(name)])])[0])
            labels += [] if source.labels is None else [int(source.labels[np.array([int(name)])][0])]
        else:
            found.append(read_file(name, config.shape, "--image"))
    return data.to_float(np.stack(found)), np.array(labels) if len(labels) == len(found) else None


def _labels(of: Drawing, own: np.ndarray | None, count: int) -> np.ndarray | None:
    """--label for all, or each image's own class, or no class: int [count]; None for a network that takes none."""
    classes = guided.num_classes(of.parts, of.settings.guidance)
    if of.label is not None and not 0 <= of.label < classes:
        raise ValueError(f"--label must be one of the network's {classes} classes, from 0, got {of.label}")
    if not classes:
        return None
    if of.label is None and own is not None:
        return own
    if of.label is None and not (num_classes(of.parts.config) and without_class(of.parts.config)):
        raise ValueError("--label is needed: the network must be told a class, and of a file none is known")
    return np.full(count, classes if of.label is None else of.label)
