"""DEIS: Adams and Bashforth's extrapolation of eps, integrated with the exponential (Zhang & Chen 2023)."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.levels import Level, Levels
from ddpm_jax.sampling.dpm_multistep import multistep, nonzero
from ddpm_jax.sampling.dpm_solver import flag, whole
from ddpm_jax.sampling.sampler import Sampler

# Gauss and Legendre's rule on [0, 1]; six nodes leave 1e-11 of a step that multiplies sigma / alpha by e^2.
_NODES, _WEIGHTS = (a for a in np.polynomial.legendre.leggauss(6))
_PARTS = tuple(float(p) for p in (1 + _NODES) / 2)


def _dt(level: Level) -> jax.Array:
    return level.dt


def _in_t(levels: Levels, i: jax.Array, z: jax.Array, degree: int) -> list[jax.Array]:
    """The integrals over log-SNR of powers of t, by quadrature: between them stands the process."""
    whole_step = nonzero(levels.read(i).dt)
    places = jnp.stack([stage.dt[i] for stage in levels.stages]) / whole_step
    at = jnp.stack([0.5 * float(w) * jnp.exp(z * (1 - part)) for w, part in zip(_WEIGHTS, _PARTS, strict=True)])
    return [jnp.sum(at * places**m) for m in range(degree + 1)]


def deis(*, order: int = 3, log_rho: bool = False, lower_final: bool = True) -> Sampler:
    """tAB-DEIS (Zhang & Chen 2023): eps as a polynomial in t of degree order - 1 through the last steps.

    Order 1 is DDIM; their tAB3 has degree 3, order 4.

    Args:
        log_rho: a polynomial in log(sigma / alpha) instead (their code's "logrho"; what diffusers has).
        lower_final: below 15 steps the last is of order 1, the one before of order 2 at most, and so on.

    Raises:
        ValueError: for an order other than 1 to 4.
    """
    order = whole("order", order, 1, 4)
    if flag("log_rho", log_rho) or order == 1:
        return multistep(False, order, exact=True, lower_final=flag("lower_final", lower_final))
    return multistep(
        False,
        order,
        exact=True,
        lower_final=flag("lower_final", lower_final),
        length=_dt,
        moments_of=_in_t,
        stages=_PARTS,
    )
