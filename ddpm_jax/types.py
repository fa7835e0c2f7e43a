"""The kinds of array that the library passes around, and the check at its doors.

A kind is named here once and used in signatures; `checked` holds a call to them. Put `jax.jit` outside `checked`:
the check then runs while tracing, once per shape, and costs nothing afterwards.
"""

import functools
import re
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, Int, Key, TypeCheckError, UInt8, jaxtyped

Images = Float[Array, "B *D"]
"""A batch in [-1, 1], usually [B, H, W, C]; the mathematics takes any shape after the batch axis."""

Pictures = Float[Array, "B H W C"]
"""A batch of images as a network takes it."""

Outputs = Float[Array, "B H W _"]
"""What a network answers: one output of its own width for each pixel."""

Steps = Int[Array, " B"] | Float[Array, " B"]
"""Time as an index 0 .. T-1 for each image; a float lies between two indices."""

Times = Float[Array, " B"]
"""Time as a network is told it, in [0, 1000) whatever T is."""

Labels = Int[Array, " B"]
PerImage = Float[Array, " B"]
Table = Float[Array, " T"]
Scalar = Float[Array, ""]
RandomKey = Key[Array, ""]
Bytes = UInt8[Array, "B H W C"]

Denoiser = Callable[..., jax.Array]
"""`denoise(x_t, time) -> output`: x_t [B, ...], time float32 [B] in [0, 1000), output like x_t.

Where a sampler is given conditions, `denoise(x_t, time, conditions)`.
"""

F = TypeVar("F", bound=Callable)


def checked(function: F) -> F:
    """Hold a function's arguments and result to the array kinds in its signature.

    Raises:
        TypeError: in one line, with the function, the argument, the value got and the kind wanted.
    """
    strict = jaxtyped(typechecker=beartype)(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return strict(*args, **kwargs)
        except TypeCheckError as error:
            raise TypeError(_in_one_line(function, error)) from None

    return call  # pyright: ignore[reportReturnType]


def _in_one_line(function: Callable, error: TypeCheckError) -> str:
    """Boil jaxtyping's page down to what a caller needs."""
    page = re.sub(r"<class '([\w.]+)'>", r"\1", str(error))
    page = re.sub(r"jaxlib\._jax\.|jaxtyping\.|<class '(?=\w+\[)|(?<=\])'>", "", page)
    name = re.search(r"typechecking parameter '(\w+)'", page)
    got = re.search(r"Actual value: (.*)", page)
    wanted = re.search(r"Expected type: (.*)\.", page)
    axes = " ".join(re.findall(r"^\w+=.*$", page, re.MULTILINE))
    if not (got and wanted):
        return f"{function.__name__}: " + " ".join(page.split())
    where = f" where {axes}" if axes else ""
    return f"{function.__name__}: {name[1] if name else 'the result'} must be {wanted[1]}{where}, got {got[1]}"


def per_image(values: jax.Array, x: jax.Array) -> jax.Array:
    """Shape values [B] so that they broadcast against x [B, ...]."""
    return jnp.reshape(values, values.shape + (1,) * (x.ndim - values.ndim))
