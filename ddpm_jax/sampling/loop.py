"""The loop: every sampler over any levels, in one jit (Ho et al. 2020, Algorithm 2, is one of them).

Image i draws all its noise from fold_in(key, i): it is the same image in any batch, on any number of devices.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from ddpm_jax import xla
from ddpm_jax.diffusion.levels import Levels
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.sampling.ancestral import ddpm
from ddpm_jax.sampling.asking import ask
from ddpm_jax.sampling.frames import Path, frame_steps, put
from ddpm_jax.sampling.places import spread, to_host
from ddpm_jax.sampling.sampler import Sampler, State, Step
from ddpm_jax.sampling.thresholds import Threshold
from ddpm_jax.sampling.visiting import way
from ddpm_jax.types import Denoiser

REPORTS = 64
"""How often a caller hears of a batch's steps at most."""
AHEAD = 16
"""Calls that may wait for the devices. A CPU takes 32; then the host would wait in the call, and hear of steps late."""

Carry = tuple[State, Path]
"""What the loop carries from step to step."""


def begin(
    key: jax.Array,
    indices: jax.Array,
    levels: Levels,
    *,
    shape: tuple[int, ...],
    sampler: Sampler,
    x_T: jax.Array | None,
    frames: int,
) -> Carry:
    """Where the loop starts: the sampler's state at the noise, or at x_T, and frames to be filled."""
    dtype = levels.visited.alpha.dtype
    if x_T is None:
        x_T = levels.start_std * first_noise(key, indices, shape, dtype)
    x_T = jnp.asarray(x_T, dtype)
    empty = 0 * jnp.broadcast_to(x_T, (frames, *x_T.shape))  # spread over devices as x_T is
    return sampler.init(_keys(key, indices)[:, 1], x_T), Path(x_t=empty, x_0=empty)


def go_on(
    carry: Carry,
    first: Any,
    last: Any,
    denoise: Denoiser,
    levels: Levels,
    *,
    sampler: Sampler,
    prediction: str,
    clip: bool | Threshold,
    conditions: Any,
    around: Callable[[Step, Any], Step] | None,
) -> tuple[Carry, jax.Array]:
    """Steps `first` up to `last` of the loop, and how many are done then, which can be waited for."""
    num_steps = _num_steps(levels)
    frames = len(carry[1].x_t)
    moments = jnp.asarray(frame_steps(num_steps, frames))
    model = ask(denoise, prediction=prediction, clip=clip, conditions=conditions)
    step = sampler.step if around is None else around(sampler.step, conditions)

    def back(i: jax.Array, carry: Carry) -> Carry:
        state, path = carry
        moved, info = step(state, model, levels, (i, i + 1))
        return moved, put(path, moments == i, state.x, info.x_0) if frames else path

    state, path = jax.lax.fori_loop(first, last, back, carry)
    if frames:
        path = put(path, (moments == num_steps) & (last == num_steps), state.x, state.x)
    return (state, path), last + 0 * state.count


def _num_steps(levels: Levels) -> Any:
    return levels.visited.t.shape[0] - 1 if levels.num_steps is None else levels.num_steps


_OF_LOOP = ("sampler", "prediction", "clip")
_begin = jax.jit(begin, static_argnames=("shape", "sampler", "frames"))
_go_on = xla.jit(go_on, static_argnames=_OF_LOOP, donate_argnums=0)


@partial(jax.jit, static_argnames=("shape", "frames", *_OF_LOOP))
def sample_batch(
    key: jax.Array,
    indices: jax.Array,
    denoise: Denoiser,
    levels: Levels,
    *,
    shape: tuple[int, ...],
    sampler: Sampler | None = None,
    prediction: str = "eps",
    clip: bool | Threshold = True,
    x_T: jax.Array | None = None,
    conditions: Any = None,
    around: Callable[[Step, Any], Step] | None = None,
    frames: int = 0,
) -> tuple[jax.Array, Path]:
    """Draw the images whose numbers are `indices` [B], in one compiled loop. For use inside a jit of your own.

    On CPUs that jit is the faster for `compiler_options=ddpm_jax.xla.options()`.

    `denoise` and `around` must be pytrees: jax.tree_util.Partial(function, parameters, ...). `levels` are those of
    `levels.visit`, with the sampler's stages. The rest is as in `sample`.

    Returns:
        images [B, *shape], and the Path of `frames` frames.
    """
    sampler = ddpm() if sampler is None else sampler
    carry = begin(key, indices, levels, shape=shape, sampler=sampler, x_T=x_T, frames=frames)
    how = {"sampler": sampler, "prediction": prediction, "clip": clip, "conditions": conditions, "around": around}
    (state, path), _ = go_on(carry, 0, _num_steps(levels), denoise, levels, **how)
    return state.x, path


def _keys(key: jax.Array, indices: jax.Array | np.ndarray) -> jax.Array:
    """Each image's key of its start and that of its steps, [B, 2]."""
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(indices)


def first_noise(key: jax.Array, indices: jax.Array | np.ndarray, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The standard normal [B, *shape] from which the images of these numbers start."""
    return jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(_keys(key, indices)[:, 0])


def sample_parts(
    key: jax.Array,
    denoise: Denoiser,
    schedule: Schedule | Process,
    *,
    shape: tuple[int, ...],
    num: int = 1,
    batch_size: int = 64,
    sampler: Sampler | None = None,
    times: Sequence[float] | np.ndarray | None = None,
    along: Process | None = None,
    prediction: str = "eps",
    clip: bool | Threshold = True,
    indices: jax.Array | np.ndarray | None = None,
    x_T: jax.Array | np.ndarray | None = None,
    conditions: Any = None,
    around: Callable[[Step, Any], Step] | None = None,
    frames: int = 0,
    sharding: Sharding | None = None,
    on_step: Callable[[int], Any] | None = None,
) -> Iterator[tuple[np.ndarray, Path]]:
    """`sample_path` a batch at a time: the devices draw the next batch while the caller looks at one.

    No more than two batches are on the devices at once. Errors are those of `sample`, and come with the first batch.
    """
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
    sampler = ddpm() if sampler is None else sampler
    levels = way(schedule, times, along=along, sampler=sampler, prediction=prediction)
    steps = int(_num_steps(levels))
    # A pytree of the function and its arrays: arrays are then arguments of the compiled loop, not constants in it.
    denoise = denoise if isinstance(denoise, jax.tree_util.Partial) else jax.tree_util.Partial(denoise)
    around = around if around is None or isinstance(around, jax.tree_util.Partial) else jax.tree_util.Partial(around)
    given = jax.tree.map(np.asarray, given)
    # One call, but for a caller who wants to hear of the steps: a call from inside the loop (jax.debug.callback) would
    # keep the program out of JAX's cache, to be compiled by every process anew.
    stride = max(1, steps if on_step is None else -(-steps // REPORTS))

    ahead = min(AHEAD, -(-steps // stride))
    how = {"sampler": sampler, "prediction": prediction, "clip": clip, "around": around}

    def look(start: int, carry: Carry | None, done: jax.Array) -> Iterator[tuple[np.ndarray, Path]]:
        if on_step is not None:
            on_step(int(done))
        if carry is not None:
            kept = min(batch_size, num - start)
            yield to_host(carry[0].x)[:kept], jax.tree.map(lambda a: a[:, :kept], to_host(carry[1]))

    waiting: collections.deque[tuple[int, Carry | None, jax.Array]] = collections.deque()
    for start in range(0, num, batch_size):
        # Every batch is full, the last repeats its end, so that one compilation serves any number of images.
        rows = np.minimum(np.arange(start, start + batch_size), num - 1)
        part = jax.tree.map(lambda leaf: leaf[rows], given)
        if sharding is not None:
            part = spread(part, sharding)
        of_batch = {"shape": tuple(shape), "sampler": sampler, "x_T": part["x_T"], "frames": frames}
        carry = _begin(key, part["indices"], levels, **of_batch)
        for first in range(0, steps, stride):
            last = min(first + stride, steps)
            carry, done = _go_on(carry, first, last, denoise, levels, **how, conditions=part["conditions"])
            waiting.append((start, carry if last == steps else None, done))
            while len(waiting) > ahead:
                yield from look(*waiting.popleft())
    while waiting:
        yield from look(*waiting.popleft())


def joined(parts: Iterable[tuple[np.ndarray, Path]]) -> tuple[np.ndarray, Path]:
    """The batches of `sample_parts` as one."""
    images, paths = zip(*parts, strict=True)
    return np.concatenate(images), jax.tree.map(lambda *each: np.concatenate(each, axis=1), *paths)


def sample_path(
    key: jax.Array, denoise: Denoiser, schedule: Schedule | Process, *, shape: tuple[int, ...], **options: Any
) -> tuple[np.ndarray, Path]:
    """`sample`, and the Path of `frames` frames that led there; both in host memory."""
    return joined(sample_parts(key, denoise, schedule, shape=shape, **options))


def sample(
    key: jax.Array,
    denoise: Denoiser,
    schedule: Schedule | Process,
    *,
    shape: tuple[int, ...],
    num: int = 1,
    **options: Any,
) -> np.ndarray:
    """Draw images [num, *shape] by walking from noise to image.

    Compiled once for a network, sampler and batch size, whatever `num` and the number of steps; image i depends on
    (key, i) only.

    Args:
        key: jax.random.key(seed).
        denoise: denoise(x_t, time) -> output like x_t, or of twice its channels with a learned variance in the second
            half. With a third argument if `conditions` are given. Time is
            [B] in [0, 1000), as the network was trained, whatever steps are visited. A plain function's arrays
            are compiled in as constants; wrap it in jax.tree_util.Partial (`nets.denoiser` does) to pass them.
        schedule: what the network was trained on: a `Schedule`, or a `Process` with continuous time.
        shape: of one image, (H, W, C).
        num: how many images.

    Options:
        batch_size: images at once; 64.
        sampler: from SAMPLERS; ddpm() with the large variance.
        times: where on the process to stop on the way, noisiest first, the image (-1 on a schedule, 0 on a process)
            last: see `diffusion.spacings`. All steps of the schedule.
        along: a `Process` to walk in place of the network's own. Where it is noisier than that, the network guesses:
            see `processes.within`.
        prediction: what the output means; "eps".
        clip: keep the prediction of x_0 in [-1, 1] (on), or a function from `thresholds`.
        indices: the images' numbers int [num]; 0 .. num-1. Equal numbers share their noise.
        x_T: where to start [num, *shape]; normal, as noisy as the first level.
        conditions: arrays [num, ...] that denoise gets as third argument (classes, say).
        around: around(step, conditions) -> step, what is done about each step of the sampler: see `sampling.editing`.
        sharding: of a batch's first axis over devices.
        on_step: called with the number of steps of a batch that are done, at most REPORTS times a batch, in order.

    Raises:
        ValueError: for counts, shapes or times that don't fit, naming them.
    """
    return sample_path(key, denoise, schedule, shape=shape, num=num, **options)[0]
