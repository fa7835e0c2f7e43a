"""The reverse process: one scan over the steps in one jit, whatever the sampler (Ho et al. 2020, Algorithm 2).

Image i draws all its noise from fold_in(key, i): it is the same image in any batch, on any number of devices.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from ddpm_jax.diffusion.parameterization import convert, x0_and_eps
from ddpm_jax.diffusion.reverse import split
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.sampling.steps import Answer, Step, ddpm
from ddpm_jax.types import Denoiser


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Path:
    """What sampling looked like on the way: F frames of N images, from noise to image."""

    x_t: jax.Array
    """[F, N, ...]; the first frame is x_T, the last the image."""
    x_0: jax.Array
    """[F, N, ...], the prediction of x_0 at the same moments."""


def frame_steps(num_steps: int, frames: int) -> np.ndarray:
    """How many steps have been done at each of the frames, from 0 to num_steps, evenly: int [F]."""
    return np.round(np.linspace(0, num_steps, frames)).astype(int)


@partial(jax.jit, static_argnames=("shape", "step", "prediction", "clip", "frames", "on_step"))
def sample_batch(
    key: jax.Array,
    indices: jax.Array,
    denoise: Denoiser,
    schedule: Schedule,
    *,
    shape: tuple[int, ...],
    step: Step | None = None,
    prediction: str = "eps",
    clip: bool = True,
    x_T: jax.Array | None = None,
    conditions: Any = None,
    frames: int = 0,
    on_step: Callable[[Any], None] | None = None,
) -> tuple[jax.Array, Path]:
    """Draw the images whose numbers are `indices` [B], in one compiled loop. For use inside a jit of your own.

    `denoise` must be a pytree: jax.tree_util.Partial(function, parameters, ...). The rest is as in `sample`.

    Returns:
        images [B, *shape], and the Path of `frames` frames.
    """
    step = ddpm() if step is None else step
    last = schedule.num_steps - 1
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(indices)
    key_start, key_steps = keys[:, 0], keys[:, 1]
    if x_T is None:
        x_T = jax.vmap(lambda k: jax.random.normal(k, shape))(key_start)
    # A moment is written at the step before which so many steps were done; other steps write out of bounds. More frames
    # than moments show some of them twice.
    moments, moment_of = np.unique(frame_steps(schedule.num_steps, frames), return_inverse=True)
    slots = np.full(schedule.num_steps, moments.size)
    slots[moments[:-1]] = np.arange(moments.size)[:-1]  # the last moment is the image
    slots = jnp.asarray(slots)
    more = () if conditions is None else (conditions,)

    def back(carry: tuple[jax.Array, Path], t: jax.Array) -> tuple[tuple[jax.Array, Path], None]:
        x_t, path = carry
        ts = jnp.full(indices.shape, t)
        output = denoise(x_t, schedule.times[ts], *more)
        output, v = split(output, shape[-1])
        x_0, eps = x0_and_eps(schedule, output, x_t, ts, source=prediction)
        if clip:
            x_0 = jnp.clip(x_0, -1, 1)
            eps = convert(schedule, x_0, x_t, ts, source="x0", target="eps")
        if frames:
            slot = slots[last - t]
            path = Path(x_t=path.x_t.at[slot].set(x_t, mode="drop"), x_0=path.x_0.at[slot].set(x_0, mode="drop"))
        z = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, t), shape))(key_steps)
        if on_step is not None:
            jax.debug.callback(on_step, last - t + 1)
        return (step(schedule, t, x_t, Answer(x_0=x_0, eps=eps, v=v), z), path), None

    empty = jnp.zeros((moments.size, *x_T.shape), x_T.dtype)
    (x, path), _ = jax.lax.scan(back, (x_T, Path(x_t=empty, x_0=empty)), jnp.arange(last, -1, -1))
    if frames:
        path = Path(x_t=path.x_t.at[-1].set(x), x_0=path.x_0.at[-1].set(x))
        path = jax.tree.map(lambda a: a[moment_of], path) if moments.size < frames else path
    return x, path


def sample_path(
    key: jax.Array,
    denoise: Denoiser,
    schedule: Schedule,
    *,
    shape: tuple[int, ...],
    num: int = 1,
    batch_size: int = 64,
    step: Step | None = None,
    prediction: str = "eps",
    clip: bool = True,
    indices: jax.Array | np.ndarray | None = None,
    x_T: jax.Array | np.ndarray | None = None,
    conditions: Any = None,
    frames: int = 0,
    sharding: Sharding | None = None,
    on_step: Callable[[Any], None] | None = None,
) -> tuple[np.ndarray, Path]:
    """`sample`, and the Path of `frames` frames that led there; both in host memory."""
    if num < 1 or batch_size < 1:
        raise ValueError(f"num and batch_size must be at least 1, got {num} and {batch_size}")
    if frames == 1:
        raise ValueError("frames must be 0 or at least 2 (the noise and the image), got 1")
    given = {
        "indices": np.arange(num) if indices is None else np.asarray(indices),
        "x_T": x_T,
        "conditions": conditions,
    }
    for name, value in given.items():
        for leaf in jax.tree.leaves(value):
            if np.shape(leaf)[:1] != (num,):
                got = len(leaf) if np.ndim(leaf) else "a single value"
                raise ValueError(f"{name} must have one entry for each of num={num} images, got {got}")
    if x_T is not None and x_T.shape[1:] != tuple(shape):
        raise ValueError(f"x_T must have shape {(num, *shape)}, got {x_T.shape}")
    # A pytree of the function and its arrays: arrays are then arguments of the compiled loop, not constants in it.
    if not isinstance(denoise, jax.tree_util.Partial):
        denoise = jax.tree_util.Partial(denoise)
    images, paths = [], []
    for start in range(0, num, batch_size):
        # Every batch is full, the last repeats its end, so that one compilation serves any number of images.
        rows = np.minimum(np.arange(start, start + batch_size), num - 1)
        part = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], given)
        if sharding is not None:
            part = spread(part, sharding)
        x, path = sample_batch(
            key,
            part["indices"],
            denoise,
            schedule,
            shape=tuple(shape),
            step=step,
            prediction=prediction,
            clip=clip,
            x_T=part["x_T"],
            conditions=part["conditions"],
            frames=frames,
            on_step=on_step,
        )
        kept = min(batch_size, num - start)
        images.append(to_host(x)[:kept])
        paths.append(jax.tree.map(lambda a: a[:, :kept], to_host(path)))
    return np.concatenate(images), jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *paths)


def spread(tree: Any, sharding: Sharding) -> Any:
    """Arrays that every process has whole, in parts on the devices of all of them."""

    def placed(leaf: Any) -> jax.Array:
        rows = np.asarray(leaf)
        return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

    return jax.tree.map(placed, tree)


def to_host(tree: Any) -> Any:
    """Arrays in the memory of every process, whole; every process must ask."""

    def gathered(x: jax.Array) -> np.ndarray:
        return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(gathered, tree)


def sample(
    key: jax.Array, denoise: Denoiser, schedule: Schedule, *, shape: tuple[int, ...], num: int = 1, **options: Any
) -> np.ndarray:
    """Draw images [num, *shape] by walking the schedule back from noise.

    Compiled once for a network, schedule length and batch size, whatever `num`; image i depends on (key, i) only.

    Args:
        key: jax.random.key(seed).
        denoise: denoise(x_t, time) -> output like x_t, or of twice its channels with a learned variance in the second
            half. With a third argument if `conditions` are given. Time is
            float32 [B] in [0, 1000), as the network was trained, for respaced schedules too. A plain function's arrays
            are compiled in as constants; wrap it in jax.tree_util.Partial (`nets.denoiser` does) to pass them.
        schedule: its steps are all visited; `schedules.respace` makes a short one of a long one.
        shape: of one image, (H, W, C).
        num: how many images.

    Options:
        batch_size: images at once; 64.
        step: from `steps`; ddpm() with the large variance.
        prediction: what the output means; "eps".
        clip: keep the prediction of x_0 in [-1, 1]; on.
        indices: the images' numbers int [num]; 0 .. num-1. Equal numbers share their noise.
        x_T: where to start [num, *shape]; standard normal.
        conditions: arrays [num, ...] that denoise gets as third argument (classes, say).
        sharding: of a batch's first axis over devices.
        on_step: called with the number of steps done, from inside the loop.

    Raises:
        ValueError: for counts or shapes that don't fit, naming them.
    """
    return sample_path(key, denoise, schedule, shape=shape, num=num, **options)[0]
