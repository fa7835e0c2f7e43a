"""Pictures that training makes as it goes: the averaged network's answer to one fixed noise."""

import io
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.config import Classifier, Config, Sampling
from ddpm_jax.figures import pictures
from ddpm_jax.files import Place
from ddpm_jax.training import processes
from ddpm_jax.training.draw import draw
from ddpm_jax.training.run import Parts


def preview(parts: Parts, ema: Any, step: int, workdir: Place) -> Place | None:
    """Write samples/step_NNNNNNNN.png: the averaged network's pictures of one fixed noise. A classifier draws none.

    Values that aren't finite come out gray: a picture that can't be drawn is no reason to stop a run.
    """
    if isinstance(parts.config.net, Classifier):
        return None
    images, _ = draw(parts, ema, seed=parts.config.seed, num=parts.config.run.num_samples, settings=how(parts.config))
    path = workdir / "samples" / f"step_{step:08d}.png"
    if processes.writes():
        pictures.save_png(path, pictures.grid(np.nan_to_num(images, posinf=1, neginf=-1)))
    return path


def how(config: Config) -> Sampling:
    """How a preview is drawn."""
    if config.distill.method:  # a network of few steps is worth what it draws in them
        return config.sampling
    return Sampling(sampler="ddim", steps=(min(config.run.preview_steps, config.diffusion.num_steps),))


def progress(workdir: Place, *, most: int = 100) -> Place | None:
    """Write samples/training.gif from the previews so far: the same noise, drawn better and better."""
    files = sorted((workdir / "samples").glob("step_*.png"))
    if len(files) < 2:
        return None
    files = [files[i] for i in sorted({round(i) for i in np.linspace(0, len(files) - 1, min(most, len(files)))})]
    frames = [_read(file) for file in files]
    # A run that went on with other previews has pictures of several sizes: the newest decides.
    frames = np.stack([frame for frame in frames if frame.shape == frames[-1].shape])
    path = workdir / "samples" / "training.gif"
    pictures.save_gif(path, frames)
    return path


def _read(file: Place) -> np.ndarray:
    with Image.open(io.BytesIO(file.read_bytes())) as opened:
        picture = np.asarray(opened)
    return picture if picture.ndim == 3 else picture[..., None]
