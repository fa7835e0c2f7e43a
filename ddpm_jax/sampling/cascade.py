"""A cascade: a network that makes small images large, in the end those that another has drawn (Ho et al. 2022).

It sees the small image, enlarged, beside x_t. So that it learns not to trust it to the last detail, which one that was
drawn doesn't have right, the small image is noised first: in training to any step s of the network's own schedule, and
the network is told which (conditioning augmentation, ibid., Sec. 4); in sampling to a step that one chooses.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.forward import q_sample
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.sampling.inverse import average_pool
from ddpm_jax.sampling.loop import sample
from ddpm_jax.types import Denoiser

AUGMENT = 0.1
"""How far up the schedule a small image is noised, if nobody says: a tenth of the way."""


def shrink(images: jax.Array | np.ndarray, factor: int) -> jax.Array:
    """Means of squares of factor x factor pixels: [B, H / factor, W / factor, C].

    Raises:
        ValueError: for a factor below 2 or one that doesn't divide the sides.
    """
    measurement = average_pool(factor)
    measurement.check(np.shape(images)[1:])
    return measurement.apply(jnp.asarray(images), ())


def shown(schedule: Schedule, low: jax.Array, t: jax.Array, eps: jax.Array, factor: int) -> dict[str, jax.Array]:
    """What the network is shown of small images low [B, h, w, C], noised by eps to the steps t [B], float."""
    noised = q_sample(schedule, low, t, eps)
    b, h, w, c = low.shape
    enlarged = jax.image.resize(noised, (b, factor * h, factor * w, c), "bilinear")
    places = jnp.arange(schedule.num_steps, dtype=t.dtype)
    return {"low": enlarged, "low_t": jnp.interp(t, places, schedule.times)}


def in_training(
    key: jax.Array, schedule: Schedule, images: jax.Array, factor: int, labels: jax.Array | None = None
) -> dict[str, Any]:
    """What the network is told of images [B, H, W, C] while it trains: they, shrunk and noised to any step."""
    key_t, key_eps = jax.random.split(key)
    low = shrink(images, factor)
    t = jax.random.randint(key_t, (len(low),), 0, schedule.num_steps).astype(jnp.float32)
    told = shown(schedule, low, t, jax.random.normal(key_eps, low.shape, low.dtype), factor)
    return told if labels is None else {"labels": labels, **told}


def conditions(
    key: jax.Array,
    schedule: Schedule,
    low: jax.Array | np.ndarray,
    *,
    factor: int,
    augment: float = AUGMENT,
    labels: np.ndarray | None = None,
    indices: np.ndarray | None = None,
) -> dict[str, Any]:
    """The `conditions` under which a network enlarges low [N, h, w, C]; image i's noise depends on (key, i) only.

    Args:
        indices: the images' numbers int [N]; 0 .. N-1.
        augment: how far up the schedule the small images are noised, 0 (hardly) to 1 (nothing of them is left).

    Raises:
        ValueError: for an augment outside [0, 1].
    """
    if not 0 <= augment <= 1:
        raise ValueError(f"augment must lie in [0, 1], got {augment}")
    low = jnp.asarray(low)
    eps = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), low.shape[1:]))(
        jnp.arange(len(low)) if indices is None else jnp.asarray(indices)
    )
    t = jnp.full(len(low), augment * (schedule.num_steps - 1), jnp.float32)
    told = shown(schedule, low, t, eps, factor)
    return told if labels is None else {"labels": labels, **told}


def super_resolve(
    key: jax.Array,
    denoise: Denoiser,
    schedule: Schedule,
    low: jax.Array | np.ndarray,
    *,
    factor: int,
    augment: float = AUGMENT,
    labels: np.ndarray | None = None,
    **options: Any,
) -> np.ndarray:
    """Draw images [N, factor h, factor w, C] of which low [N, h, w, C] are the small ones.

    Args:
        denoise: a network that enlarges by that factor (`config.UNet.enlarges`).
        labels: the classes that it is told, if it takes any.
        options: as `sampling.sample` takes them.

    Raises:
        ValueError: as `conditions` and `sampling.sample`.
    """
    key_low, key_sample = jax.random.split(key)
    _, h, w, c = np.shape(low)
    return sample(
        key_sample,
        denoise,
        schedule,
        shape=(factor * h, factor * w, c),
        num=len(low),
        conditions=conditions(key_low, schedule, low, factor=factor, augment=augment, labels=labels),
        **options,
    )
