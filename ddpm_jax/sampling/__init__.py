"""From noise to images."""

from ddpm_jax.sampling.interpolate import interpolate, walk_back
from ddpm_jax.sampling.loop import Path, frame_steps, sample, sample_batch, sample_path
from ddpm_jax.sampling.steps import SAMPLERS, Answer, ddim, ddpm

__all__ = [
    "SAMPLERS",
    "Answer",
    "Path",
    "ddim",
    "ddpm",
    "frame_steps",
    "interpolate",
    "sample",
    "sample_batch",
    "sample_path",
    "walk_back",
]
