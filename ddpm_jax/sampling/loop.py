"""The loop: every sampler over any levels, in one jit (Ho et al. 2020, Algorithm 2, is one of them).

Image i draws all its noise from fold_in(key, i): it is the same image in any batch, on any number of devices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from ddpm_jax.diffusion.levels import Level, Levels, visit
from ddpm_jax.diffusion.parameterization import x0_and_eps_at
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.reverse import split
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.sampling import thresholds
from ddpm_jax.sampling.ancestral import ddpm
from ddpm_jax.sampling.places import spread, to_host
from ddpm_jax.sampling.sampler import Answer, Model, Sampler, Step
from ddpm_jax.sampling.thresholds import Threshold
from ddpm_jax.types import Denoiser


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Path:
    """What sampling looked like on the way: F frames of N images, from noise to image."""

    x_t: jax.Array
    """[F, N, ...]; the first frame is x_T, the last the image."""
    x_0: jax.Array
    """[F, N, ...], the prediction of x_0 at the same moments."""


def frame_steps(num_steps: Any, frames: int) -> Any:
    """How many steps have been done at each of the frames, from 0 to num_steps (it may be traced), evenly: int [F]."""
    last = max(frames - 1, 1)
    return (2 * np.arange(frames) * num_steps + last) // (2 * last)  # to the nearest, halves up


def ask(
    denoise: Denoiser,
    *,
    prediction: str = "eps",
    clip: bool | Threshold = True,
    conditions: Any = None,
) -> Model:
    """A network as samplers see it: model(x, level) -> Answer, whatever it predicts and was trained along.

    `clip` is applied to the prediction of x_0; eps follows from what is left of it, so that x = alpha x_0 + sigma eps.
    The arguments are those of `sample`.
    """
    threshold = thresholds.static if clip is True else clip
    more = () if conditions is None else (conditions,)

    def model(x: jax.Array, level: Level) -> Answer:
        own_x = level.scale * x
        output, v = split(denoise(own_x, jnp.full(len(x), level.time), *more), x.shape[-1])
        x_0, eps = x0_and_eps_at(level.own, output, own_x, source=prediction, preserving=False)
        if threshold:
            x_0 = threshold(x_0)
            none = level.sigma == 0
            eps = jnp.where(none, eps, (x - level.alpha * x_0) / jnp.where(none, 1.0, level.sigma))
        return Answer(x_0=x_0.astype(x.dtype), eps=eps.astype(x.dtype), v=v)

    return model


@partial(jax.jit, static_argnames=("shape", "sampler", "prediction", "clip", "frames", "on_step"))
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
    on_step: Callable[[Any], None] | None = None,
) -> tuple[jax.Array, Path]:
    """Draw the images whose numbers are `indices` [B], in one compiled loop. For use inside a jit of your own.

    `denoise` and `around` must be pytrees: jax.tree_util.Partial(function, parameters, ...). `levels` are those of
    `levels.visit`, with the sampler's stages. The rest is as in `sample`.

    Returns:
        images [B, *shape], and the Path of `frames` frames.
    """
    sampler = ddpm() if sampler is None else sampler
    most = levels.visited.t.shape[0] - 1
    num_steps = most if levels.num_steps is None else levels.num_steps
    dtype = levels.visited.alpha.dtype
    if x_T is None:
        x_T = levels.start_std * first_noise(key, indices, shape, dtype)
    key_steps = _keys(key, indices)[:, 1]
    x_T = jnp.asarray(x_T, dtype)
    moments = jnp.asarray(frame_steps(num_steps, frames))
    model = ask(denoise, prediction=prediction, clip=clip, conditions=conditions)
    step = sampler.step if around is None else around(sampler.step, conditions)

    def back(i: jax.Array, carry: tuple[Any, Path]) -> tuple[Any, Path]:
        state, path = carry
        moved, info = step(state, model, levels, (i, i + 1))
        if frames:
            now = moments == i
            path = Path(x_t=_put(path.x_t, now, state.x), x_0=_put(path.x_0, now, info.x_0))
        if on_step is not None:
            jax.debug.callback(on_step, i + 1)
        return moved, path

    empty = jnp.zeros((frames, *x_T.shape), dtype)
    state, path = jax.lax.fori_loop(0, num_steps, back, (sampler.init(key_steps, x_T), Path(x_t=empty, x_0=empty)))
    if frames:
        end = moments == num_steps
        path = Path(x_t=_put(path.x_t, end, state.x), x_0=_put(path.x_0, end, state.x))
    return state.x, path


def _keys(key: jax.Array, indices: jax.Array | np.ndarray) -> jax.Array:
    """Each image's key of its start and that of its steps, [B, 2]."""
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(indices)


def first_noise(key: jax.Array, indices: jax.Array | np.ndarray, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The standard normal [B, *shape] from which the images of these numbers start."""
    return jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(_keys(key, indices)[:, 0])


def _put(frames: jax.Array, now: jax.Array, x: jax.Array) -> jax.Array:
    """Frames [F, ...] with x in those of this moment."""
    return jax.lax.cond(
        now.any(), lambda: jnp.where(now.reshape(-1, *[1] * x.ndim), x.astype(frames.dtype), frames), lambda: frames
    )


def sample_path(
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
    sampler = ddpm() if sampler is None else sampler
    levels = way(schedule, times, along=along, sampler=sampler, prediction=prediction)
    # A pytree of the function and its arrays: arrays are then arguments of the compiled loop, not constants in it.
    denoise = denoise if isinstance(denoise, jax.tree_util.Partial) else jax.tree_util.Partial(denoise)
    around = around if around is None or isinstance(around, jax.tree_util.Partial) else jax.tree_util.Partial(around)
    given = jax.tree.map(np.asarray, given)
    images, paths = [], []
    for start in range(0, num, batch_size):
        # Every batch is full, the last repeats its end, so that one compilation serves any number of images.
        rows = np.minimum(np.arange(start, start + batch_size), num - 1)
        part = jax.tree.map(lambda leaf: leaf[rows], given)
        if sharding is not None:
            part = spread(part, sharding)
        x, path = sample_batch(
            key,
            part["indices"],
            denoise,
            levels,
            shape=tuple(shape),
            sampler=sampler,
            prediction=prediction,
            clip=clip,
            x_T=part["x_T"],
            conditions=part["conditions"],
            around=around,
            frames=frames,
            on_step=on_step,
        )
        kept = min(batch_size, num - start)
        images.append(to_host(x)[:kept])
        paths.append(jax.tree.map(lambda a: a[:, :kept], to_host(path)))
    return np.concatenate(images), jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *paths)


def way(
    schedule: Schedule | Process,
    times: Sequence[float] | np.ndarray | None,
    *,
    along: Process | None = None,
    sampler: Sampler,
    prediction: str = "eps",
    padded: bool = True,
) -> Levels:
    """The levels of `times` for a sampler, padded so that all numbers of steps have one shape.

    Raises:
        ValueError: as `levels.visit`; for "mean" without a schedule; for a sampler that needs a signal where there is
            none, or one that only goes down on a way up.
    """
    if prediction == "mean" and not isinstance(schedule, Schedule):
        raise ValueError("the prediction mean needs a schedule: it is of a step, which a process doesn't have")
    options = {"along": along, "stages": sampler.stages, "stages_in": sampler.stages_in, "anywhere": sampler.whole}
    if sampler.whole:
        visited = visit(schedule, times, along=along)
        times = np.asarray(visited.visited.t if times is None else times)[visited.ends()]
    most = schedule.num_steps if isinstance(schedule, Schedule) else 1000
    steps = most if times is None else max(np.size(times) - 1, 1)
    levels = visit(schedule, times, **options, size=max(most, 2 ** (steps - 1).bit_length()) + 1 if padded else None)
    if sampler.needs_signal and float(levels.visited.alpha[0]) == 0:
        raise ValueError(
            "this sampler divides by alpha, which is 0 at the first level: begin at a level with some signal, or take "
            "one that can (ddim, lms, dpm_solver_pp_2m, unipc; heun and rk4 with straight 1)"
        )
    if sampler.only_down and (np.asarray(levels.visited.gain) < 0).any():
        raise ValueError("this sampler adds noise of its own and only goes down: times must fall; ddim goes up")
    return levels


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
        on_step: called with the number of steps done, from inside the loop. Another function compiles anew.

    Raises:
        ValueError: for counts, shapes or times that don't fit, naming them.
    """
    return sample_path(key, denoise, schedule, shape=shape, num=num, **options)[0]
