"""Every sampler by name. A new one is a function of its settings that returns a `Sampler`, and a line here."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ddpm_jax.records import match_arguments, pick
from ddpm_jax.sampling.ancestral import ddim, ddpm
from ddpm_jax.sampling.sampler import Sampler

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": ddpm,
    "ddim": ddim,
}


def build(name: str, arguments: Sequence[tuple[str, Any]] = (), *, under: str = "--", **usual: Any) -> Sampler:
    """The sampler of that name.

    Args:
        arguments: its settings, as (name, value).
        under: what the flags of the settings begin with.
        usual: settings that are passed on to samplers that take them, where `arguments` doesn't say them.

    Raises:
        ValueError: for an unknown sampler or setting, with the nearest good one, or a value that can't be.
    """
    make = pick(SAMPLERS, name, f"{under}sampler")
    takes = inspect.signature(make).parameters
    given = match_arguments(make, arguments, f"{under}sampler-args: {name}")
    return make(**{key: value for key, value in usual.items() if key in takes} | given)
