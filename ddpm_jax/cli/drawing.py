"""What sample.py writes: grids, strips, animations and walks between images."""

import contextlib
import dataclasses
import io
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ddpm_jax import data, files, nets, networks, sampling
from ddpm_jax.config import Sampling
from ddpm_jax.figures import pictures
from ddpm_jax.files import Place
from ddpm_jax.training import distill_loss, guided, processes
from ddpm_jax.training.draw import draw, draw_parts, labels_of, way, width
from ddpm_jax.training.run import Parts, num_classes, without_class

MOST_IN_GRID = 400
ENCODERS = 4
"""Threads that write pictures while the devices draw."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """What all pictures of one call share. Every process draws its part of them; the first writes them."""

    parts: Parts
    params: Any
    settings: Sampling
    seed: int
    label: int | None
    """The class to draw; every class in turn for None."""
    out: Place
    """The grid's file, after which the others are named."""

    def beside(self, suffix: str) -> Place:
        """OUT_suffix."""
        return self.out.with_name(f"{self.out.stem}_{suffix}")


@contextlib.contextmanager
def _bar(of: Drawing, batches: int, title: str) -> Iterator[Callable[[int], Any]]:
    """A progress bar over all steps of all batches; it is told how many of a batch are done."""
    steps = way(of.parts, of.settings).num_steps
    with tqdm(total=steps * batches, desc=title, unit="step", disable=not processes.writes()) as bar:
        yield lambda done: bar.update((done - bar.n) % steps or steps)


def images(of: Drawing, *, num: int, batch_size: int, singles: Place | None, npz: Place | None) -> None:
    """Draw `num` images; write the grid, and single PNGs and an .npz where asked.

    Raises:
        ValueError: for less than one image, at once or in all, or a label that the network doesn't have.
    """
    if num < 1 or batch_size < 1:
        raise ValueError(f"--num and --batch-size must be at least 1, got {num} and {batch_size}")
    shown, packed, busy = [], io.BytesIO(), []
    labels = labels_of(of.parts, np.arange(num), of.label, of.settings.guidance)
    with (
        _bar(of, -(-num // width(of.parts, num, batch_size)), "sampling") as on_step,
        ThreadPoolExecutor(ENCODERS) as pool,
        _npz(packed, num, of.parts.config.data.shape, labels) as pack,
    ):
        done = 0
        how = {"seed": of.seed, "num": num, "settings": of.settings, "batch_size": batch_size, "label": of.label}
        for drawn, _ in draw_parts(of.parts, of.params, **how, on_step=on_step):
            if not processes.writes():
                continue
            # Threads encode these while the devices draw the next: but no more than these, or memory would fill.
            for encoded in busy:
                encoded.result()
            found = pictures.to_bytes(drawn)
            if done < MOST_IN_GRID:
                shown.append(found[: MOST_IN_GRID - done].copy())  # a view would keep the whole batch
            names = enumerate(found, done) if singles is not None else ()
            busy = [pool.submit(pictures.save_png, singles / f"{i:06d}.png", image) for i, image in names]
            busy += [pool.submit(pack, found.tobytes())] if npz is not None else []
            done += len(found)
        for encoded in busy:
            encoded.result()
    if not processes.writes():
        return
    pictures.save_png(of.out, pictures.grid(np.concatenate(shown)))
    print(f"wrote {of.out}" + (f", the first {MOST_IN_GRID} of {num}" if num > MOST_IN_GRID else ""))
    if singles is not None:
        print(f"wrote {num} PNGs into {singles}")
    if npz is not None:
        files.write(npz, packed.getvalue())
        print(f"wrote {npz}")


@contextlib.contextmanager
def _npz(
    packed: io.BytesIO, num: int, shape: tuple[int, ...], labels: np.ndarray | None
) -> Iterator[Callable[[bytes], Any]]:
    """`pack(rows)` adds the next images, uint8, to the `images` [num, *shape] of an .npz like np.savez_compressed's:
    not even all images as bytes are in memory at once."""
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as arrays:
        if labels is not None:
            with arrays.open("labels.npy", "w") as array:
                np.lib.format.write_array(array, labels, allow_pickle=False)
        with arrays.open("images.npy", "w", force_zip64=True) as array:
            head = {"descr": "|u1", "fortran_order": False, "shape": (num, *shape)}
            np.lib.format.write_array_header_1_0(array, head)
            yield array.write


def denoising(of: Drawing, *, num: int, frames: int) -> None:
    """Write OUT_denoising.png, a strip, and OUT_denoising.gif: x_t beside the network's idea of x_0, from noise on."""
    with _bar(of, 1, "denoising") as on_step:
        _, path = draw(
            of.parts,
            of.params,
            seed=of.seed,
            num=num,
            settings=of.settings,
            frames=frames,
            label=of.label,
            on_step=on_step,
        )
    if not processes.writes():
        return
    steps = way(of.parts, of.settings).num_steps
    left = steps - sampling.frame_steps(steps, frames)
    x_t, x_0 = np.asarray(path.x_t), np.asarray(path.x_0)
    shown = np.unique(np.round(np.linspace(0, frames - 1, min(frames, 11))).astype(int))
    rows = [kind[shown, i] for i in range(min(num, 3)) for kind in (x_t, x_0)]
    strip = pictures.strip(
        np.stack(rows),
        titles=[f"{t} left" if k == 0 else str(t) for k, t in enumerate(left[shown])],
        labels=["x_t", "x_0"] * (len(rows) // 2),
    )
    still, film = of.beside("denoising.png"), of.beside("denoising.gif")
    pictures.save_png(still, strip)
    titles = [(f"x_t, {t} steps left", "x_0 as predicted") for t in left]
    pictures.save_gif(film, pictures.side_by_side(x_t, x_0, titles), seconds=max(4.0, 0.05 * frames))
    print(f"wrote {still} and {film}")


def check(of: Drawing) -> None:
    """Find out before anything is drawn what can't be.

    Raises:
        ValueError: for settings that can't be, by the names of sample.py's flags.
        FileNotFoundError: for a run that is to lead this one and isn't there.
    """
    way(of.parts, of.settings, under="--")
    guided.denoiser(of.parts, of.params, of.settings.guidance)


def halfway(of: Drawing, t: float | None) -> float:
    """The place on the schedule from which images are interpolated; the middle of the way for None.

    Raises:
        ValueError: if t doesn't lie on it, for a way along another process, or for settings that can't be.
    """
    chosen, last = way(of.parts, of.settings, under="--"), of.parts.schedule.num_steps - 1
    if chosen.along is not None:
        raise ValueError(f"--interpolate walks the network's own schedule, got --process {of.settings.process}")
    if guided.acts(of.settings.guidance):
        raise ValueError("--interpolate draws mixtures, which are of no class to be led to: it takes no guidance")
    if t is not None and not 0 <= t <= last:
        raise ValueError(f"--interpolate-from must lie in 0 .. {last}, got {t}")
    return float(chosen.times[(chosen.times.size - 1) // 2]) if t is None else t


def interpolation(of: Drawing, *, pairs: int, t: float, num: int = 9) -> None:
    """Write OUT_interpolation.png: real images at both ends, between them what their mixed noised versions become.

    Raises:
        ValueError: for a network that must be told a class.
    """
    config = of.parts.config
    chosen = way(of.parts, of.settings)
    batch = data.batch_at(data.load(config.data), seed=of.seed, step=0, batch_size=2 * pairs)
    classes = num_classes(config)
    if classes and not without_class(config):
        raise ValueError("--interpolate needs a network that was also trained without its class (--net.label-dropout)")
    if networks.enlarges(config.net):
        raise ValueError("--interpolate draws mixtures, which have no small image: not for a network that enlarges")
    denoise, prediction = distill_loss.as_sampled(config, of.parts.schedule, nets.denoiser(of.parts.module, of.params))
    rows = []
    for i in tqdm(range(pairs), desc="interpolating", unit="pair", disable=not processes.writes()):
        ends = jnp.asarray(batch.images[2 * i : 2 * i + 2])
        between = sampling.interpolate(
            jax.random.fold_in(jax.random.key(of.seed), i),
            denoise,
            of.parts.schedule,
            ends,
            t=t,
            num=num,
            batch_size=num,
            **chosen.options(),
            prediction=prediction,
            conditions=np.full(num, classes) if classes else None,  # "no class": a mixture has none
        )
        rows.append(np.concatenate([ends[:1], between, ends[1:]]))
    if not processes.writes():
        return
    mixed = [f"{part:.2f}" for part in np.linspace(0, 1, num)]
    path = of.beside("interpolation.png")
    pictures.save_png(path, pictures.strip(np.stack(rows), titles=["source", *mixed, "source"]))
    print(f"wrote {path}, by way of t = {t:g}")
