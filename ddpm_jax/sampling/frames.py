"""What sampling looked like on the way: a few moments of it, kept inside the loop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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


def put(path: Path, now: jax.Array, x_t: jax.Array, x_0: jax.Array) -> Path:
    """The path with these in the frames of this moment, bool [F]."""
    return Path(x_t=_put(path.x_t, now, x_t), x_0=_put(path.x_0, now, x_0))


def _put(frames: jax.Array, now: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.cond(
        now.any(), lambda: jnp.where(now.reshape(-1, *[1] * x.ndim), x.astype(frames.dtype), frames), lambda: frames
    )
