"""Every sampler by name. A new one is a function of its settings that returns a `Sampler`, and a line here."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ddpm_jax.records import match_arguments, pick
from ddpm_jax.sampling.ancestral import ddim, ddpm
from ddpm_jax.sampling.black_box import ode
from ddpm_jax.sampling.consistency import consistency
from ddpm_jax.sampling.deis import deis
from ddpm_jax.sampling.dpm_multistep import (
    dpm_solver_2m,
    dpm_solver_3m,
    dpm_solver_pp_2m,
    dpm_solver_pp_3m,
    dpm_solver_pp_sde,
)
from ddpm_jax.sampling.dpm_solver import dpm_solver, dpm_solver_pp_2s, dpm_solver_pp_3s
from ddpm_jax.sampling.pndm import ipndm, pndm
from ddpm_jax.sampling.runge_kutta import exponential, rk4
from ddpm_jax.sampling.sampler import Sampler
from ddpm_jax.sampling.sde import euler_maruyama, exponential_sde, predictor_corrector, reverse_diffusion
from ddpm_jax.sampling.sigma_space import dpm2, dpm2_ancestral, edm, euler, euler_ancestral, heun, lms
from ddpm_jax.sampling.unipc import unipc

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm2": dpm2,
    "lms": lms,
    "euler_ancestral": euler_ancestral,
    "dpm2_ancestral": dpm2_ancestral,
    "edm": edm,
    "rk4": rk4,
    "exponential": exponential,
    "pndm": pndm,
    "ipndm": ipndm,
    "consistency": consistency,
    "euler_maruyama": euler_maruyama,
    "exponential_sde": exponential_sde,
    "reverse_diffusion": reverse_diffusion,
    "predictor_corrector": predictor_corrector,
    "ode": ode,
    "dpm_solver": dpm_solver,
    "dpm_solver_2m": dpm_solver_2m,
    "dpm_solver_3m": dpm_solver_3m,
    "dpm_solver_pp_2s": dpm_solver_pp_2s,
    "dpm_solver_pp_3s": dpm_solver_pp_3s,
    "dpm_solver_pp_2m": dpm_solver_pp_2m,
    "dpm_solver_pp_3m": dpm_solver_pp_3m,
    "dpm_solver_pp_sde": dpm_solver_pp_sde,
    "unipc": unipc,
    "deis": deis,
}


def settings_of(name: str) -> list[str]:
    """What a sampler can be told."""
    return list(inspect.signature(SAMPLERS[name]).parameters)


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
    takes = settings_of(name)
    given = match_arguments(make, arguments, f"{under}sampler-args: {name}")
    settings = {key: value for key, value in usual.items() if key in takes} | given
    try:
        return make(**settings)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{under}sampler {name}: {error}") from None
