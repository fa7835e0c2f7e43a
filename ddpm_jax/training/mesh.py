"""How things lie on devices: the one file that says so.

The state is on every device whole; a batch is split over them along its first axis. XLA puts in the sums over devices
that the mean over the batch needs, so the loss, the gradient and its norm are those of the whole batch.
"""

from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")


def make_mesh() -> Mesh:
    """All devices of all processes, on one axis "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """Cut along `axis`, a part to each device."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def place(tree: T, sharding: NamedSharding) -> T:
    """Arrays of which this process holds its rows, as parts of the arrays that all processes hold together."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), tree)


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Refuse a batch that doesn't spread evenly.

    Raises:
        ValueError: with the sizes nearest to the one asked for that do.
    """
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        good = [size for size in (below, below + devices) if size > 0]
        near = " or ".join(map(str, good))
        raise ValueError(f"--batch-size must be divisible by the {devices} devices, got {batch_size}; try {near}")
