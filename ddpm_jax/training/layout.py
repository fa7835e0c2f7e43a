"""How the members of a population lie on devices.

Members are spread over the devices, one or several to a device. How those of a device are run is a choice in
ARRANGEMENTS: on CPUs each has a device of its own, since XLA runs convolutions with many kernels at once, and those in
loops, many times slower there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ddpm_jax import xla
from ddpm_jax.records import pick

OfOne = Callable[..., Any]


def _together(of_one: OfOne) -> OfOne:
    return jax.vmap(of_one)


def _in_turn(of_one: OfOne) -> OfOne:
    return lambda *stacked: jax.lax.map(lambda one: of_one(*one), stacked)


def _laid_out(of_one: OfOne) -> OfOne:
    def several(*stacked: Any) -> Any:
        count = len(jax.tree.leaves(stacked)[0])
        results = [of_one(*jax.tree.map(lambda x: x[i], stacked)) for i in range(count)]
        return jax.tree.map(lambda *x: jnp.stack(x), *results)

    return several


ARRANGEMENTS: dict[str, Callable[[OfOne], OfOne]] = {"vmap": _together, "map": _in_turn, "unroll": _laid_out}
"""How the members of one device are run: as one batch, in a loop, or one after the other as code."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How a population lies on its devices."""

    arrangement: str
    each: int
    """Members on a device at a time; 0 for all."""
    resident: bool = True
    """Do all states stay on the devices? If not, chunks of members take turns there (memory is short)."""


LAYOUTS = {"cpu": Layout(arrangement="unroll", each=1)}
OTHERWISE = Layout(arrangement="map", each=0)
"""What is taken by backend: the fastest where it was measured (docs/weightings.md)."""


def layout_of(backend: str, *, arrangement: str = "", at_once: int = 0, devices: int = 1) -> Layout:
    """The layout for a backend, unless it is said otherwise.

    Raises:
        ValueError: for an unknown arrangement.
    """
    best = LAYOUTS.get(backend, OTHERWISE)
    if arrangement:
        pick(ARRANGEMENTS, arrangement, "--arrangement")
        best = dataclasses.replace(best, arrangement=arrangement, each=0)
    if at_once:
        best = dataclasses.replace(best, each=-(-at_once // devices), resident=False)
    return best


def shape(members: int, devices: int, each: int) -> tuple[int, int]:
    """How many devices, and members on each at a time: the fewest that take no more rounds than all would."""
    devices = min(devices, members)
    each = min(each or members, -(-members // devices))
    rounds = -(-members // (devices * each))
    return -(-members // (rounds * each)), each


def spread(arrangement: str, mesh: Mesh, of_one: Callable[..., Any], *, donate: bool = False) -> Callable[..., Any]:
    """A compiled function of arrays stacked over members from a function of one member's."""
    arranged = pick(ARRANGEMENTS, arrangement, "--arrangement")(of_one)
    of_member = PartitionSpec("member")
    mapped = jax.shard_map(arranged, mesh=mesh, in_specs=of_member, out_specs=of_member, check_vma=False)
    options = xla.options(mesh.devices.flat[0].platform)
    return jax.jit(mapped, donate_argnums=0 if donate else (), compiler_options=options)
