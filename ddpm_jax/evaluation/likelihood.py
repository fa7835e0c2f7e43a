"""Bits per dimension of a set of images, batch by batch: the bound whole, from a few t, or in continuous time."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from ddpm_jax import xla
from ddpm_jax.diffusion import bound, continuous, timesteps
from ddpm_jax.diffusion.continuous import Curve
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.sampling.loop import spread, to_host
from ddpm_jax.types import Denoiser

PerBatch = Callable[..., dict[str, jax.Array]]
"""(denoise, indices [B], images [B, ...], labels [B] if any) -> by name arrays [B], `total` among them, and [B, T]."""

Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Bits per dimension, the mean over the images, and what it is made of."""

    bits_per_dim: float
    standard_error: float
    """Of the mean: images, noise and drawn t together."""
    num_images: int
    parts: dict[str, float]
    """Means of the named parts of it."""
    terms: np.ndarray | None = None
    """[T], mean L_t, where all were worked out."""
    curve: tuple[np.ndarray, np.ndarray] | None = None
    """Mean rate [T] and root mean squared error [T], from the last t to the first (Ho et al. 2020, Fig. 5)."""


def over(
    per_batch: PerBatch,
    denoise: Denoiser,
    read: Read,
    num: int,
    *,
    batch_size: int = 128,
    sharding: Sharding | None = None,
    on_batch: Callable[[int], Any] = lambda done: None,
) -> Likelihood:
    """Measure images 0 .. num-1 in batches.

    Args:
        per_batch: from `whole`, `estimated` or `in_continuous_time`.
        denoise: the network, a pytree; it gets the labels int [B] as a third argument if there are any.
        read: read(rows int [B]) -> images [B, ...] in [-1, 1], and labels or None.
        batch_size: images at once.
        sharding: of a batch's first axis over devices.
        on_batch: called with the number of images done.

    Raises:
        ValueError: for fewer than two images, which have no standard error.
    """
    if num < 2:
        raise ValueError(f"a likelihood with its standard error needs at least 2 images, got {num}")
    # One program a batch: several at once would each wait for the others' devices.
    once = isinstance(per_batch, jax.tree_util.Partial)
    measure = functools.partial(_called, per_batch) if once else xla.jit(per_batch)
    of_image: dict[str, list[np.ndarray]] = {}
    sums: dict[str, np.ndarray] = {}
    for start in range(0, num, batch_size):
        # The last batch repeats its last image, so that one compilation serves all.
        rows = np.minimum(np.arange(start, start + batch_size), num - 1)
        images, labels = read(rows)
        batch = (rows, images) if labels is None else (rows, images, labels)
        # Every process has read the whole batch, and measures the part on its devices.
        batch = jax.device_put(batch) if sharding is None else spread(batch, sharding)
        kept = min(batch_size, num - start)
        for name, values in to_host(measure(denoise, *batch)).items():
            found = values.astype(np.float64)[:kept]
            if found.ndim == 1:
                of_image.setdefault(name, []).append(found)
            else:  # T of them an image: too many to keep
                sums[name] = sums.get(name, 0.0) + found.sum(axis=0)
        on_batch(kept)
    values = {name: np.concatenate(batches) for name, batches in of_image.items()}
    total = values.pop("total")
    return Likelihood(
        bits_per_dim=float(total.mean()),
        standard_error=float(total.std(ddof=1) / np.sqrt(num)),
        num_images=num,
        parts={name: float(part.mean()) for name, part in values.items()},
        terms=sums["terms"] / num if sums else None,
        curve=(sums["rates"] / num, np.sqrt(sums["squares"] / num)) if sums else None,
    )


def _told(denoise: Denoiser, *labels: jax.Array) -> jax.tree_util.Partial:
    """The network that has been told its labels, if there are any."""
    return jax.tree_util.Partial(lambda denoise, labels, x_t, time: denoise(x_t, time, *labels), denoise, labels)


@xla.jit
def _called(per_batch: PerBatch, *batch: Any) -> dict[str, jax.Array]:
    return per_batch(*batch)


def whole(key: jax.Array, schedule: Schedule, **options: Any) -> PerBatch:
    """Every term of the bound: T evaluations an image. `options` are those of `bound.bits_per_dim`.

    Image i's noise depends on i only. Compiled once for equal options and shapes, as `estimated`.
    """
    return jax.tree_util.Partial(_whole(tuple(sorted(options.items()))), key, schedule)


@functools.cache
def _whole(options: tuple[tuple[str, Any], ...]) -> PerBatch:
    def per_batch(
        key: jax.Array, schedule: Schedule, denoise: Denoiser, indices: jax.Array, images: jax.Array, *labels: jax.Array
    ) -> dict[str, jax.Array]:
        told = _told(denoise, *labels)
        found = bound.bits_per_dim(key, schedule, told, images, indices=indices, **dict(options))
        rates, rmse = found.rate_distortion()  # the squares are averaged, so that the error is that of the whole set
        parts = {"prior": found.prior, "rate": found.rate, "distortion": found.distortion}
        return {"total": found.total, **parts, "terms": found.terms, "rates": rates, "squares": rmse**2}

    return per_batch


def estimated(key: jax.Array, schedule: Schedule, **options: Any) -> PerBatch:
    """An unbiased estimate from a few t an image. `options` are those of `bound.estimate`.

    Image i's noise and t depend on i only.
    """
    return jax.tree_util.Partial(_estimated(tuple(sorted(options.items()))), key, schedule)


@functools.cache
def _estimated(options: tuple[tuple[str, Any], ...]) -> PerBatch:
    def per_batch(
        key: jax.Array, schedule: Schedule, denoise: Denoiser, indices: jax.Array, images: jax.Array, *labels: jax.Array
    ) -> dict[str, jax.Array]:
        told = _told(denoise, *labels)
        return {"total": bound.estimate(key, schedule, told, images, indices=indices, **dict(options)).total}

    return per_batch


def in_continuous_time(key: jax.Array, curve: Curve, *, num_t: int = 8, **options: Any) -> PerBatch:
    """The mean of `num_t` draws of the bound in continuous time, each image's u one from each of as many equal parts.

    `options` are those of `continuous.bound`. Image i's noise and u depend on i only.
    """
    curve = jax.device_put(to_host(curve))  # a learned one lies on the devices of all processes

    def of_image(denoise: Denoiser, index: jax.Array, image: jax.Array, *label: jax.Array) -> dict[str, jax.Array]:
        def once(part: jax.Array) -> dict[str, jax.Array]:
            drawn = continuous.bound(
                jax.random.fold_in(jax.random.fold_in(key, index), part),
                curve,
                _told(denoise, *(value[None] for value in label)),
                image[None],
                quantiles=lambda key, size: (part + timesteps.independent(key, size)) / num_t,
                **options,
            )
            return {name: getattr(drawn, name)[0] for name in ("total", "prior", "diffusion", "decoder")}

        return jax.tree.map(jnp.mean, jax.lax.map(once, jnp.arange(num_t)))

    def per_batch(denoise: Denoiser, *batch: jax.Array) -> dict[str, jax.Array]:
        return jax.vmap(of_image, in_axes=(None, *[0] * len(batch)))(denoise, *batch)

    return per_batch
