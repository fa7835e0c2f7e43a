"""From noise to images."""

from ddpm_jax.sampling.ancestral import ddim, ddpm
from ddpm_jax.sampling.interpolate import interpolate, walk_back
from ddpm_jax.sampling.loop import Path, ask, frame_steps, sample, sample_batch, sample_path, way
from ddpm_jax.sampling.sampler import Answer, Sampler
from ddpm_jax.sampling.samplers import SAMPLERS, build

__all__ = [
    "SAMPLERS",
    "Answer",
    "Path",
    "Sampler",
    "ask",
    "build",
    "ddim",
    "ddpm",
    "frame_steps",
    "interpolate",
    "sample",
    "sample_batch",
    "sample_path",
    "walk_back",
    "way",
]
