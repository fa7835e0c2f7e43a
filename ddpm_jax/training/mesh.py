"""How things lie on devices: the one file that says so.

A mesh has two axes. A batch is split over both; parameters, their average and the optimizer's state are split over
"fsdp" and the same along "data" (fully sharded data parallelism, Rajbhandari et al. 2020, stage 3). A parameter is
gathered whole where it is used and its gradient is cut right after it is made, so that XLA moves weights (all-gather,
reduce-scatter) and never activations. The loss, the gradient and its norm are those of the whole batch on any mesh.
"""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")
BATCH = ("data", "fsdp")
SMALL = 2**10
"""Arrays of fewer numbers than this are the same everywhere: to gather them would take longer than it spares memory."""


def make_mesh(fsdp: int = 1, devices: list[Any] | None = None) -> Mesh:
    """All devices of all processes, those of a process side by side: `fsdp` of them share a copy of the state.

    Raises:
        ValueError: if fsdp doesn't divide the devices, with the numbers that do.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        good = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise ValueError(f"--devices.fsdp must divide the {count} devices, got {fsdp}; try one of {good}")
    # Rows of a batch follow the processes, whose shares laid end to end are the batch (`data.batch_at`).
    grid = np.array(devices).reshape(count // fsdp, fsdp)
    return Mesh(grid, BATCH, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """Cut along `axis`, a part to each device."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH))


def of_state(mesh: Mesh, tree: Any) -> Any:
    """A sharding for each array of a training state, or for its shape: cut over "fsdp" along its longest axis.

    Of those axes that divide; an array without one, or a small one, is the same everywhere.
    """
    return jax.tree.map(lambda leaf: _cut(mesh, cut_axis(mesh, np.shape(leaf))), tree)


def cut_axis(mesh: Mesh, shape: tuple[int, ...]) -> int | None:
    """The axis along which an array of the state is cut, None if it is whole on every device."""
    parts = mesh.shape["fsdp"]
    sides = [(side, axis) for axis, side in enumerate(shape) if side >= parts and side % parts == 0]
    if parts == 1 or not sides or np.prod(shape) < SMALL:
        return None
    return max(sides)[1]


def _cut(mesh: Mesh, axis: int | None) -> NamedSharding:
    return replicated(mesh) if axis is None else NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))


def whole(mesh: Mesh, tree: T) -> T:
    """The arrays, whole on every device."""
    return jax.jit(lambda arrays: arrays, out_shardings=replicated(mesh))(tree) if mesh.size > 1 else tree


def gathered(mesh: Mesh, tree: T) -> T:
    """Inside a jit: the arrays whole on every device; the gradient that comes back is cut as they are."""
    if mesh.shape["fsdp"] == 1:
        return tree
    whole, cuts = replicated(mesh), of_state(mesh, tree)
    return jax.tree.map(lambda leaf, cut: _gather(leaf, whole, cut), tree, cuts)


def _gather(leaf: jax.Array, whole: NamedSharding, cut: NamedSharding) -> jax.Array:
    @jax.custom_vjp
    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, whole)

    def forward(x: jax.Array) -> tuple[jax.Array, None]:
        return gather(x), None

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        return (jax.lax.with_sharding_constraint(gradient, cut),)

    gather.defvjp(forward, backward)
    return gather(leaf)


def place(tree: T, sharding: NamedSharding) -> T:
    """Arrays of which this process holds its rows, as parts of the arrays that all processes hold together."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), tree)


def check_batch(batch_size: int, mesh: Mesh, *, parts: int = 1) -> None:
    """Refuse a batch that doesn't spread evenly over the devices, in each of the `parts` it is taken in.

    Raises:
        ValueError: with the sizes nearest to the one asked for that do.
    """
    if parts < 1:
        raise ValueError(f"--devices.accumulate must be at least 1, got {parts}")
    each = mesh.size * parts
    if batch_size < 1 or batch_size % each:
        below = batch_size // each * each
        good = [size for size in (below, below + each) if size > 0]
        near = " or ".join(map(str, good))
        over = f"the {mesh.size} devices" + (f" times {parts} parts" if parts > 1 else "")
        raise ValueError(f"--batch-size must be divisible by {over}, got {batch_size}; try {near}")
