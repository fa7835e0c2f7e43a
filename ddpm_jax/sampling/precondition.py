"""Preconditioning: a denoiser made of a network F whose input and target have unit variance (Karras et al. 2022).

    x_0 = c_skip x / alpha + c_out F(c_in x / alpha, time),        s = sigma / alpha

    edm            c_skip = d^2 / (s^2 + d^2)    c_out = s d / sqrt(s^2 + d^2)    c_in = 1 / sqrt(s^2 + d^2)
    consistency    c_skip = d^2 / ((s - m)^2 + d^2)    c_out = (s - m) d / sqrt(s^2 + d^2)    c_in as above

where d = sigma_data, the data's deviation (ibid., Table 1; Song et al. 2023, App. C). The second is x / alpha itself
at s = m = sigma_min: the boundary condition of a consistency function. Both are said here in alpha and sigma,

    x_0 = skip x + out F(x / size, time),        size^2 = sigma^2 + alpha^2 d^2

so that they hold along every process, and where there is no signal. Along `processes.edm` the time that F is told is
c_noise = log(sigma) / 4. With d = 1 on a process that preserves variance F is -v: a network that predicts v is
preconditioned already.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.types import Denoiser, per_image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Coefficients:
    """x_0 = skip x + out F(x / size); [B] or shaped to broadcast against x."""

    skip: jax.Array
    out: jax.Array
    size: jax.Array
    """The deviation of x over data of deviation sigma_data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """Which coefficients; made by `edm` or `consistency`. Equal ones are told as equal by a loop compiled for one."""

    sigma_data: float
    sigma_min: float
    """Where x_0 is x / alpha itself."""

    def at(self, alpha: jax.Array, sigma: jax.Array, *, above: jax.Array | None = None) -> Coefficients:
        """The coefficients at x_t = alpha x_0 + sigma eps.

        `above` is alpha (s - sigma_min), if it is known better than sigma - alpha sigma_min says it.
        """
        above = sigma - alpha * self.sigma_min if above is None else above
        data = alpha * self.sigma_data
        size = jnp.sqrt(sigma**2 + data**2)
        return Coefficients(
            skip=alpha * self.sigma_data**2 / (above**2 + data**2), out=above * self.sigma_data / size, size=size
        )


def edm(sigma_data: float = 0.5) -> Preconditioning:
    """Karras et al. 2022, Table 1.

    Raises:
        ValueError: unless sigma_data is above 0.
    """
    return consistency(0.0, sigma_data)


def consistency(sigma_min: float = 0.002, sigma_data: float = 0.5) -> Preconditioning:
    """Song et al. 2023, App. C.

    Raises:
        ValueError: unless sigma_data is above 0 and sigma_min at least 0.
    """
    if not (sigma_data > 0 and sigma_min >= 0):
        raise ValueError(f"sigma_data must be above 0 and sigma_min at least 0, got {sigma_data} and {sigma_min}")
    return Preconditioning(sigma_data=float(sigma_data), sigma_min=float(sigma_min))


def _levels(along: Schedule | Process) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """(time) -> alpha, sigma and s, as `along` has them where a network is told `time`."""
    if isinstance(along, Schedule):
        return _of_table
    if along.steps is not None:
        raise ValueError("along must be the schedule itself, not the process that is made of it")

    def of_process(time: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        t = jnp.exp(4 * time) if along.name == "edm" else time / 1000
        log_alpha, log_sigma = along.log_alpha(jnp, t), along.log_sigma(jnp, t)
        return jnp.exp(log_alpha), jnp.exp(log_sigma), jnp.exp(log_sigma - log_alpha)

    return of_process


def _of_table(time: jax.Array, times: jax.Array, log_snr: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    here = jnp.interp(time, times, log_snr)
    return jnp.sqrt(jax.nn.sigmoid(here)), jnp.sqrt(jax.nn.sigmoid(-here)), jnp.exp(-here / 2)


@functools.lru_cache
def _read(setting: Preconditioning, along: Process | None) -> Callable[..., Coefficients]:
    """read(tables, time, x) -> coefficients shaped to broadcast against x; the tables are a schedule's."""
    of = _of_table if along is None else _levels(along)

    def read(tables: tuple[jax.Array, ...], time: jax.Array, x: jax.Array) -> Coefficients:
        alpha, sigma, s = of(time, *tables)
        above = jnp.where(alpha == 0, sigma, alpha * (s - setting.sigma_min))  # without signal s has no end
        coefficients = setting.at(alpha, sigma, above=above)
        return jax.tree.map(lambda values: per_image(values, x).astype(x.dtype), coefficients)

    return read


@functools.lru_cache
def _wrapped(setting: Preconditioning, along: Process | None) -> Callable[..., Any]:
    read = _read(setting, along)

    def denoise(network: Denoiser, tables: tuple[jax.Array, ...], x: jax.Array, time: jax.Array, *more: Any) -> Any:
        at = read(tables, time, x)
        return at.skip * x + at.out * network(x / at.size, time, *more)

    return denoise


@functools.lru_cache
def _unwrapped(setting: Preconditioning, along: Process | None) -> Callable[..., Any]:
    read = _read(setting, along)

    def network(denoise: Denoiser, tables: tuple[jax.Array, ...], x: jax.Array, time: jax.Array, *more: Any) -> Any:
        at = read(tables, time, x)
        x_t = at.size * x
        return (denoise(x_t, time, *more) - at.skip * x_t) / at.out

    return network


def _tables(along: Schedule | Process) -> tuple[jax.Array, ...]:
    return (along.times, along.log_snr) if isinstance(along, Schedule) else ()


def _bound(make: Callable, function: Denoiser, along: Schedule | Process, setting: Preconditioning) -> Denoiser:
    inner = function if isinstance(function, jax.tree_util.Partial) else jax.tree_util.Partial(function)
    made = make(setting, None if isinstance(along, Schedule) else along)
    return jax.tree_util.Partial(made, inner, _tables(along))


def wrap(network: Denoiser, along: Schedule | Process, setting: Preconditioning) -> Denoiser:
    """denoise(x_t, time) -> x_0 from any network F(x / size, time); a pytree of what `network` is one of.

    It is sampled with prediction="x0", and trained with that and the weighting `edm` (of the same sigma_data), which
    then is the plain squared error of F (Karras et al. 2022, Eq. 8). Labels, if any, are passed on.

    Args:
        along: what x_t is noised along, and `time` told by: a schedule or a process.
    """
    return _bound(_wrapped, network, along, setting)


def unwrap(denoise: Denoiser, along: Schedule | Process, setting: Preconditioning) -> Denoiser:
    """F(x / size, time) of a denoiser that says x_0: the inverse of `wrap`, but where out is 0."""
    return _bound(_unwrapped, denoise, along, setting)


def target(
    along: Schedule | Process, setting: Preconditioning, x_0: jax.Array, x_t: jax.Array, time: jax.Array
) -> jax.Array:
    """What F should say of x_t [B, ...] at time [B]: (x_0 - skip x_t) / out (Karras et al. 2022, Eq. 8)."""
    at = _read(setting, None if isinstance(along, Schedule) else along)(_tables(along), time, x_t)
    return (x_0 - at.skip * x_t) / at.out


def _negative(network: Denoiser, x: jax.Array, time: jax.Array, *more: Any) -> jax.Array:
    return -network(x, time, *more)


def of_v(network: Denoiser) -> Denoiser:
    """F of a network that predicts v on a process that preserves variance, for sigma_data = 1."""
    inner = network if isinstance(network, jax.tree_util.Partial) else jax.tree_util.Partial(network)
    return jax.tree_util.Partial(_negative, inner)
