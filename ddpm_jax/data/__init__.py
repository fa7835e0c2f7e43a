"""Images and their order."""

from ddpm_jax.data import arrays
from ddpm_jax.data.pipeline import Batch, batch_at, batches, to_float
from ddpm_jax.data.record import Source
from ddpm_jax.data.sources import SOURCES, load

__all__ = [
    "SOURCES",
    "Batch",
    "Source",
    "arrays",
    "batch_at",
    "batches",
    "load",
    "to_float",
]
