"""Between two images through the latent space (Ho et al. 2020, Sec. 4.4; Song et al. 2020, Sec. 5.3); the walk back."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.forward import q_sample
from ddpm_jax.diffusion.levels import every_place
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.sampling.ancestral import ddpm
from ddpm_jax.sampling.loop import Path, sample, sample_path
from ddpm_jax.types import Denoiser


def interpolate(
    key: jax.Array,
    denoise: Denoiser,
    schedule: Schedule,
    x_0: jax.Array,
    *,
    t: float,
    num: int = 9,
    times: Sequence[float] | np.ndarray | None = None,
    **options: Any,
) -> np.ndarray:
    """Noise both images of x_0 [2, H, W, C] to step t, mix them in `num` even parts, and denoise each mixture.

    All mixtures share the noise of their way back, so that only the mixture differs. They go from t on to those of
    `times` that lie below it; all steps, if not given. `options` as in `sampling.sample`.

    Returns:
        [num, H, W, C], from the first image's reconstruction to the second's.

    Raises:
        ValueError: if x_0 isn't a pair, num is below 2, or t doesn't lie on the schedule.
    """
    if x_0.shape[0] != 2 or num < 2:
        raise ValueError(f"interpolation takes a pair of images and num >= 2, got {x_0.shape[0]} images and num={num}")
    way = from_place(schedule, t, times)
    key_eps, key_back = jax.random.split(key)
    ends = q_sample(schedule, x_0, jnp.full(2, float(t)), jax.random.normal(key_eps, x_0.shape))
    part = jnp.linspace(0, 1, num).reshape(num, *[1] * (x_0.ndim - 1))
    return sample(
        key_back,
        denoise,
        schedule,
        shape=x_0.shape[1:],
        num=num,
        times=way,
        x_T=(1 - part) * ends[0] + part * ends[1],
        indices=np.zeros(num, int),
        **options,
    )


def from_place(schedule: Schedule, t: float, times: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """The part of a way, `times` or all steps, that begins at t: t itself, then what lies below it, then the image.

    Raises:
        ValueError: if t isn't on the schedule.
    """
    if not 0 <= t <= schedule.num_steps - 1:
        raise ValueError(f"t must lie in 0 .. {schedule.num_steps - 1}, got {t}")
    way = every_place(schedule) if times is None else np.asarray(times, np.float64)
    return np.concatenate([[t], way[way < t]])


def slerp(first: np.ndarray, last: np.ndarray, parts: Sequence[float] | np.ndarray) -> np.ndarray:
    """Along the great circle from one latent [H, W, C] to another, [len(parts), H, W, C] (Song et al. 2020, Eq. 67).

    Mixtures of normal noise are shorter than noise is; on the circle they are as long, so that a sampler draws images
    from them as from any noise. 0 is the first, 1 the last. Where the two point almost the same way, or opposite ways,
    so that the circle isn't known, the mixture is straight.
    """
    a, b = (np.asarray(x, np.float64) for x in (first, last))
    part = np.asarray(parts, np.float64).reshape(-1, *[1] * a.ndim)
    angle = np.arccos(np.clip(np.sum(a * b) / np.sqrt(np.sum(a**2) * np.sum(b**2)), -1, 1))
    whole = np.sin(angle)
    straight = whole < 1e-6
    of_first, of_last = (1 - part, part) if straight else (np.sin((1 - part) * angle), np.sin(part * angle))
    return ((of_first * a + of_last * b) / (1.0 if straight else whole)).astype(np.asarray(first).dtype)


def walk_back(key: jax.Array, schedule: Schedule, x_0: jax.Array, *, frames: int = 8) -> Path:
    """Noise x_0 [N, ...] to x_T, then come back by q(x_{t-1} | x_t, x_0), the exact posterior (Ho et al. 2020, Eq. 6).

    What a perfect network would do: the sampler with a denoiser that knows x_0. The last frame is x_0 itself.
    """
    key_eps, key_back = jax.random.split(key)
    last = jnp.full(len(x_0), schedule.num_steps - 1)
    x_T = q_sample(schedule, x_0, last, jax.random.normal(key_eps, x_0.shape))
    return sample_path(
        key_back,
        _know,
        schedule,
        shape=x_0.shape[1:],
        num=len(x_0),
        batch_size=len(x_0),
        sampler=ddpm(variance="small"),
        prediction="x0",
        clip=False,
        x_T=x_T,
        conditions=x_0,
        frames=frames,
    )[1]


def _know(x_t: jax.Array, time: jax.Array, x_0: jax.Array) -> jax.Array:
    del x_t, time
    return x_0
