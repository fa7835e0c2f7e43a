"""A small set whole in a device's memory: what crosses to it in a step is which images, not the images."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data import pipeline
from ddpm_jax.data.pipeline import Batch, Picks
from ddpm_jax.data.record import Source

LARGEST = 2**31
"""Bytes of images that may lie on every device: beside a network, more would hardly be missed in host memory."""
LOW = np.float32(1 / 255 - 257 / 2**16)
"""What 1 / 255 = 2^-8 + 2^-16 + 2^-24 + ... has beyond its first two terms."""


def check(source: Source) -> None:
    """Refuse a set that can't lie on a device whole.

    Raises:
        ValueError: for one that isn't in host memory, or is larger than 2 GiB.
    """
    columns = {"images": source.images, "labels": source.labels}
    for name, column in columns.items():
        if column is not None and not isinstance(column, np.ndarray):
            raise ValueError(f"--data.on-device needs a set in memory, whose {name} aren't: leave out --data.stream")
    size = math.prod(source.images.shape)
    if size > LARGEST:
        height, width, channels = source.images.shape[1:]
        raise ValueError(
            f"--data.on-device puts at most {LARGEST / 2**30:.3g} GiB of images on a device, got {len(source):,} of "
            f"{height}x{width}x{channels}, {size / 2**30:.3g} GiB: leave it out"
        )


def table(source: Source) -> Batch:
    """The set as it lies on a device: images uint8 [N, H W C], labels int32 [N] or None.

    A picture is one row: with its few channels as the last axis, a TPU would pad each pixel to 128 numbers.
    """
    check(source)
    images = np.ascontiguousarray(source.images[:]).reshape(len(source), -1)  # pyright: ignore[reportArgumentType]
    labels = None if source.labels is None else np.asarray(source.labels[:], np.int32)  # pyright: ignore
    return Batch(images=images, labels=labels)


def picks_at(num_images: int, step: int, **which: Any) -> Picks:
    """`pipeline.picks_at` in the few bytes that are sent to a device."""
    picks = pipeline.picks_at(num_images, step, **which)
    return dataclasses.replace(picks, indices=picks.indices.astype(np.int32))


def batch_of(held: Batch, picks: Picks, shape: tuple[int, int, int]) -> Batch:
    """`data.batch_at` on the device: pictures `picks` [...] of the set as `table` lays it, float32 [..., H, W, C]."""
    images = jnp.asarray(held.images).at[picks.indices].get(mode="promise_in_bounds")
    images = images.reshape(*images.shape[:-1], *shape)
    if picks.mirrored is not None:
        images = jnp.where(picks.mirrored[..., None, None, None], images[..., ::-1, :], images)
    labels = held.labels
    if labels is not None:
        labels = jnp.asarray(labels).at[picks.indices].get(mode="promise_in_bounds")
    return Batch(images=to_float(images), labels=labels)


def to_float(images: jax.Array) -> jax.Array:
    """`data.to_float` on the device: uint8 k to float32 k / 127.5 - 1 = (2k - 255) / 255, bit for bit.

    XLA turns a division by 255 into a product with its reciprocal, which is wrong in the last bit for half of the
    values. Here the larger of two terms is exact, so that only the sum rounds, whether or not a product is fused with
    it. That term is an integer's: of two products of one float XLA would make one.
    """
    odd = 2 * images.astype(jnp.int32) - 255
    return (257 * odd).astype(jnp.float32) * 2**-16 + odd.astype(jnp.float32) * LOW
