"""The tasks of sample.py --edit: each makes the columns of its picture, of images before and after."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import networks
from ddpm_jax.cli.drawing import Drawing
from ddpm_jax.cli.edit_flags import Editing
from ddpm_jax.data.fit import fit_file
from ddpm_jax.records import pick
from ddpm_jax.sampling import cascade, ddim, editing, inverse, sample
from ddpm_jax.sampling.interpolate import slerp
from ddpm_jax.sampling.inverse import Measurement
from ddpm_jax.training import guided, run
from ddpm_jax.training.draw import Way, draw
from ddpm_jax.training.run import num_classes, without_class

Column = tuple[str, np.ndarray]
"""A title, and an image [H, W, C] for each row of the picture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked, of which images, and the network that is to do it."""

    of: Drawing
    asked: Editing
    way: Way
    denoise: Any
    prediction: str
    images: np.ndarray
    """[N, H, W, C] in [-1, 1]."""
    labels: np.ndarray | None
    """What the network is told of each, int [N]."""

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.of.seed)

    @property
    def schedule(self) -> Any:
        return self.of.parts.schedule

    def each(self, array: Any) -> Any:
        """[N * versions, ...]: the versions of an image in a row."""
        return jax.tree.map(lambda leaf: np.repeat(leaf, self.asked.versions, axis=0), array)

    def options(self, **change: Any) -> dict[str, Any]:
        """What `sampling.sample` and its kin are told besides the images."""
        usual = {**self.way.options(), "prediction": self.prediction, "conditions": self.each(self.labels)}
        return {**usual, "batch_size": min(64, len(self.images) * self.asked.versions)} | change

    def versions(self, drawn: np.ndarray) -> list[Column]:
        """A column for each version of drawn [N * versions, ...]."""
        count = self.asked.versions
        titles = ["result"] if count == 1 else [f"result {i + 1}" for i in range(count)]
        return [(title, drawn[i::count]) for i, title in enumerate(titles)]


def read_file(name: str, shape: tuple[int, int, int], flag: str) -> np.ndarray:
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{flag}: there is no file {name!r}, nor is it one of the choices")
    try:
        return fit_file(path, shape)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for broken files
        raise ValueError(f"{flag}: can't read the picture {name}: {error}") from error


def mask_of(name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Which pixels are known, bool [H, W, 1]."""
    height, width, _ = shape
    down, across = np.arange(height)[:, None], np.arange(width)[None, :]
    inside = (abs(2 * down + 1 - height) <= height // 2) & (abs(2 * across + 1 - width) <= width // 2)
    unknown = {
        "left": (across < width // 2) & (down >= 0),
        "right": (across >= (width + 1) // 2) & (down >= 0),
        "top": (down < height // 2) & (across >= 0),
        "bottom": (down >= (height + 1) // 2) & (across >= 0),
        "box": inside,
        "surround": ~inside,
    }
    if name in unknown or not Path(name).suffix:
        return ~pick(unknown, name, "--mask")[..., None]
    return read_file(name, (height, width, 1), "--mask") < 128


def inpaint(task: Task) -> list[Column]:
    """Known pixels, and what could stand beside them."""
    asked, images = task.asked, task.images
    method = asked.method or "repaint"
    known = np.broadcast_to(mask_of(asked.mask, images.shape[1:]), (*images.shape[:-1], 1))
    if method in ("dps", "pigdm"):
        return _inverse(task, inverse.mask, own=known.astype(np.float32), shown=lambda y: np.where(known, y, 0))
    methods = {"replace": editing.inpaint, "repaint": editing.repaint, "dps": None, "pigdm": None}
    pick(methods, method, "--method")
    further = {"jump": asked.jump, "resamples": asked.resamples} if method == "repaint" else {}
    drawn = methods[method](
        task.key, task.denoise, task.schedule, task.each(images), task.each(known), **task.options(**further)
    )
    return [("image", images), ("known", np.where(known, images, 0)), *task.versions(drawn)]


def _inverse(
    task: Task, measurement: Measurement, *, own: Any = (), shown: Callable[[np.ndarray], np.ndarray]
) -> list[Column]:
    """What was measured of the images, and what could have been measured so; `shown` makes a picture of the former."""
    asked, images = task.asked, task.images
    if asked.noise < 0:
        raise ValueError(f"--noise must be 0 or more, got {asked.noise}")
    methods = {
        "dps": lambda: inverse.dps(measurement, scale=asked.scale),
        "pigdm": lambda: inverse.pigdm(measurement, noise=asked.noise, clip=task.way.clip),
    }
    around = pick(methods, asked.method or "pigdm", "--method")()
    measurement.check(images.shape[1:])
    clean = np.asarray(measurement.apply(jnp.asarray(images), own))
    y = clean + asked.noise * np.random.default_rng(task.of.seed).standard_normal(clean.shape).astype(np.float32)
    y = y * own if measurement is inverse.mask else y
    drawn = inverse.restore(
        task.key,
        task.denoise,
        task.schedule,
        task.each(y),
        measurement,
        around,
        own=task.each(own),
        shape=images.shape[1:],
        **task.options(),
    )
    off = np.asarray(measurement.apply(jnp.asarray(drawn), task.each(own))) - task.each(y)
    print(f"what was measured is met to {np.sqrt(np.mean(off**2)):.3f} (root mean square)")
    return [("image", images), ("measured", shown(y)), *task.versions(drawn)]


def colourise(task: Task) -> list[Column]:
    """The mean of the channels, and colours that it could come from."""
    channels = task.images.shape[-1]
    if channels != 3:
        raise ValueError(f"--edit colourise needs a network of 3 channels, got one of {channels}")
    return _inverse(task, inverse.gray, shown=lambda y: np.repeat(y, 3, axis=-1))


def deblur(task: Task) -> list[Column]:
    """A blurred image, and images that it could come from."""
    return _inverse(task, inverse.blur(task.asked.blur), shown=lambda y: y)


def superresolve(task: Task) -> list[Column]:
    """Means of squares, and images that they could come from."""
    if own := networks.enlarges(task.of.parts.config.net):
        small = np.asarray(cascade.shrink(task.images, own))
        return [
            ("image", task.images),
            ("small", _enlarged(small, own)),
            *task.versions(_made_large(task, small, task.key)),
        ]
    factor = task.asked.factor
    return _inverse(task, inverse.average_pool(factor), shown=lambda y: _enlarged(y, factor))


def _enlarged(images: np.ndarray, factor: int) -> np.ndarray:
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def sdedit(task: Task) -> list[Column]:
    """The image noised part of the way, and drawn from there."""
    strength = task.asked.strength
    if not 0 <= strength <= 1:
        raise ValueError(f"--strength must lie in [0, 1], got {strength}")
    steps = task.way.times.size - 1  # also of a sampler that takes its own between the ends
    walked = round(strength * steps)
    times = task.way.times[steps - walked :]
    options = task.options(times=times)
    drawn = editing.sdedit(task.key, task.denoise, task.schedule, task.each(task.images), **options)
    print(f"noised to t = {times[0]:g}, {walked} of {steps} steps from the image")
    return [("image", task.images), *task.versions(drawn)]


def invert(task: Task) -> list[Column]:
    """The latents that DDIM draws the image from, and what it draws from them: the image; with --to-label, more."""
    labels, to_label = task.labels, task.asked.to_label
    classes = num_classes(task.of.parts.config)
    if to_label is not None and not 0 <= to_label < classes:
        raise ValueError(f"--to-label must be one of the network's {classes} classes, from 0, got {to_label}")
    options = task.options(conditions=labels, sampler=ddim(), batch_size=len(task.images))
    latents = editing.invert(task.denoise, task.schedule, task.images, **options)

    def drawn(**change: Any) -> np.ndarray:
        told = options | {"x_T": latents, "num": len(latents), "shape": latents.shape[1:]} | change
        return sample(task.key, task.denoise, task.schedule, **told)

    back = drawn()
    print(f"the images come back to {np.sqrt(np.mean((back - task.images) ** 2)):.3f} (root mean square)")
    columns = [("image", task.images), ("latents / 3", latents / 3), ("back", back)]
    if to_label is None:
        return columns
    return [*columns, (f"as {to_label}", drawn(conditions=np.full(len(latents), to_label)))]


def interpolate(task: Task, num: int = 9) -> list[Column]:
    """Between the latents of two images, along the great circle (Song et al. 2020, Sec. 5.3)."""
    images, classes = task.images, num_classes(task.of.parts.config)
    if len(images) % 2:
        raise ValueError(f"--edit interpolate takes pairs of images, got {len(images)} with --image")
    if guided.acts(task.of.settings.guidance) or (classes and not without_class(task.of.parts.config)):
        needed = "a network that was also trained without its class (--net.label-dropout), and no guidance"
        raise ValueError(f"--edit interpolate draws mixtures, which are of no class: it needs {needed}")
    told = np.full(len(images), classes) if classes else None
    options = task.options(conditions=told, sampler=ddim(), batch_size=len(images))
    latents = editing.invert(task.denoise, task.schedule, images, **options)
    parts = np.linspace(0, 1, num)
    mixed = np.concatenate([slerp(latents[i], latents[i + 1], parts) for i in range(0, len(latents), 2)])
    options |= {"conditions": np.full(len(mixed), classes) if classes else None, "batch_size": num}
    drawn = sample(task.key, task.denoise, task.schedule, shape=images.shape[1:], num=len(mixed), x_T=mixed, **options)
    between = [(f"{part:.2f}", drawn[i::num]) for i, part in enumerate(parts)]
    return [("image", images[::2]), *between, ("image", images[1::2])]


def _made_large(task: Task, small: np.ndarray, key: jax.Array) -> np.ndarray:
    """What a network that enlarges images makes of `versions` of each of small [N, h, w, C]."""
    return cascade.super_resolve(
        key,
        task.denoise,
        task.schedule,
        task.each(small),
        factor=networks.enlarges(task.of.parts.config.net),
        augment=task.asked.augment,
        labels=task.each(task.labels),
        **{name: value for name, value in task.options().items() if name != "conditions"},
    )


def cascaded(task: Task) -> list[Column]:
    """Images that --base draws, and what the network makes of them: of both, `versions`."""
    factor, base = networks.enlarges(task.of.parts.config.net), task.asked.base
    if not factor or base is None:
        needs = "a run of --net.enlarges" if not factor else "--base, the folder of the run that draws the small images"
        raise ValueError(f"--edit cascade needs {needs}")
    parts, state = run.load(base)
    height, width, channels = task.of.parts.config.data.shape
    wanted, found = (height // factor, width // factor, channels), tuple(parts.config.data.shape)
    if found != wanted:
        raise ValueError(f"--base must draw images of shape {wanted}, which this run enlarges, got one of {found}")
    count = task.asked.versions
    if num_classes(task.of.parts.config):
        raise ValueError("--edit cascade needs a network without classes: those of --base aren't known")
    small, _ = draw(parts, state.ema, seed=task.of.seed, num=count, settings=parts.config.sampling)
    # A key of its own: the key of what noises the first small image would be that of the noise it was drawn from.
    key, alone = jax.random.fold_in(task.key, editing.APART), dataclasses.replace(task.asked, versions=1)
    large = _made_large(dataclasses.replace(task, asked=alone), small, key)
    shown = np.stack([_enlarged(small, factor), large], axis=1)
    return [(f"{i + 1}", pair) for i, pair in enumerate(shown)]


TASKS: dict[str, Callable[[Task], list[Column]]] = {
    "inpaint": inpaint,
    "colourise": colourise,
    "deblur": deblur,
    "superresolve": superresolve,
    "sdedit": sdedit,
    "invert": invert,
    "interpolate": interpolate,
    "cascade": cascaded,
}
"""Every task by the name that --edit takes."""
