"""What an error counts for by its size: one number an image, [B], from the error of the prediction [B, ...].

Each is a mean over the image's dimensions and is applied where the network answers, to prediction - target. The factor
`in_space` then stands before it, as it does before the squared error. Only there does it make one objective of all
predictions: where errors differ by a factor f, squares differ by f^2 and other norms otherwise. With another norm than
l2 the choice of prediction is a choice of objective, too. The weighting that is 1 on the prediction's own error
(`x0_mse` for x0, `v_mse` for v, `flow_mse` for flow, `simple` for eps) gives the bare norm.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.weighting_zoo import Number
from ddpm_jax.records import match_arguments, pick

Norm = Callable[..., jax.Array]
"""error [B, ...] -> what it counts for, [B]; parameters are keywords."""


def _mean(values: jax.Array) -> jax.Array:
    return jnp.mean(values.reshape(values.shape[0], -1), axis=1)


def l2(error: jax.Array) -> jax.Array:
    """e^2, the mean squared error (Ho et al. 2020, Eq. 14)."""
    return _mean(jnp.square(error))


def l1(error: jax.Array) -> jax.Array:
    """|e|, the mean absolute error (Chen et al. 2021, WaveGrad; Saharia et al. 2022, Palette)."""
    return _mean(error * jnp.sign(error))  # the slope of JAX's abs at 0 is 1, of this 0


def huber(error: jax.Array, *, delta: Number = 1.0) -> jax.Array:
    """e^2 up to |e| = delta, then the straight line that goes on from there (Huber 1964).

    Twice what libraries call the Huber loss, so that it is l2 for small errors and a weighting means what it means
    there. `delta` is above 0.
    """
    size = jnp.abs(error)
    return _mean(jnp.where(size <= delta, jnp.square(error), delta * (2 * size - delta)))


def pseudo_huber(error: jax.Array, *, c: Number = 0.00054) -> jax.Array:
    """sqrt(mse + c^2) - c, of the image as a whole (Song & Dhariwal 2023, Eq. 8, there summed over dimensions).

    In d dimensions theirs is sqrt(d) times this with sqrt(d) times this c, which is their advice, 0.00054 sqrt(d).
    Below c it is mse / (2 c), above it the root mean square. `c` is above 0.
    """
    mse = l2(error)
    return mse / (jnp.sqrt(mse + jnp.square(c)) + c)


NORMS: dict[str, Norm] = {"l2": l2, "l1": l1, "huber": huber, "pseudo_huber": pseudo_huber}


def build(name: str, arguments: Sequence[tuple[str, float]]) -> Norm:
    """The norm that a config describes, as a function of the error alone.

    Raises:
        ValueError: for an unknown name, arguments that it doesn't take (with the nearest good one), or a value that is
            not a finite number above 0.
    """
    norm = pick(NORMS, name, "--diffusion.norm")
    where = f"--diffusion.norm-args: {name}"
    given = match_arguments(norm, arguments, where, but=("error",))
    for argument, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{where}: {argument} must be a finite number above 0, got {value}")
    return functools.partial(norm, **given)
