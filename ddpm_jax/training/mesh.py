"""How things lie on devices: the one file that says so.

A mesh has two axes. A batch is split over both; parameters, their average and the optimizer's state are split over
"fsdp" and the same along "data" (fully sharded data parallelism, Rajbhandari et al. 2020, stage 3). A parameter is
gathered whole where it is used and its gradient is cut right after it is made, so that XLA moves weights (all-gather,
reduce-scatter) and never activations. The loss, the gradient and its norm are those of the whole batch on any mesh, to
the rounding of sums; where a network computes in bfloat16, XLA adds the devices' gradients in bfloat16, too.
"""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")
BATCH = ("data", "fsdp")
SMALL = 2**10
"""Arrays of fewer numbers than this are the same everywhere: to gather them would take longer than it spares memory."""


def make_mesh(fsdp: int = 1, devices: list[Any] | None = None) -> Mesh:
    """All devices of all processes, or those given: `fsdp` neighbours share a copy of the state.

    Several TPU slices lie one after the other along "data", so that parameters never cross the network between them:
    only the sums of gradients do.

    Raises:
        ValueError: if fsdp doesn't divide the devices of a slice, with the numbers that do.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda d: (_slice(d), d.process_index, d.id))
    slices = len({_slice(device) for device in devices})
    each = len(devices) // slices
    if len(devices) % slices:
        raise ValueError(f"slices must have equally many devices, got {len(devices)} devices in {slices} slices")
    if fsdp < 1 or each % fsdp:
        good = ", ".join(str(n) for n in range(1, each + 1) if each % n == 0)
        where = f"the {each} devices" + (f" of each of the {slices} slices" if slices > 1 else "")
        raise ValueError(f"--devices.fsdp must divide {where}, got {fsdp}; try one of {good}")
    grid = np.array(devices).reshape(slices * each // fsdp, fsdp)
    if _is_whole(devices) and slices > 1:
        grid = create_hybrid_device_mesh((each // fsdp, fsdp), (slices, 1), devices, allow_split_physical_axes=True)
    elif _is_whole(devices):
        grid = create_device_mesh(grid.shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, BATCH, axis_types=(AxisType.Auto, AxisType.Auto))


def _slice(device: Any) -> int:
    """Which of several TPU slices, joined by a slower network, a device is of."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def _is_whole(devices: list[Any]) -> bool:
    """Are these TPU chips of one device each that fill a box of their torus, so that a mesh can follow it?"""
    if any(device.platform != "tpu" or device.core_on_chip for device in devices):
        return False
    places = np.array([device.coords for device in devices])
    box = np.prod(places.max(axis=0) - places.min(axis=0) + 1)
    return len(devices) == box * len({_slice(device) for device in devices})


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
        # Whole first: asked to cut at once, XLA's partitioner makes of convolution and sum a ring of permutations.
        return (jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(gradient, whole), cut),)

    gather.defvjp(forward, backward)
    return gather(leaf)


def place(tree: T, sharding: NamedSharding) -> T:
    """Arrays of which this process holds its rows, as parts of the arrays that all processes hold together."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), tree)


def rows(mesh: Mesh, batch_size: int, *, process: int | None = None) -> np.ndarray:
    """Which rows of a batch a process's devices hold, rising, int [B / processes]: those that `place` wants of it.

    On a torus of TPU chips they needn't be side by side. `process` is this one if not given.
    """
    process = jax.process_index() if process is None else process
    each = batch_size // mesh.size
    held = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == process]
    return (np.array(held)[:, None] * each + np.arange(each)).ravel()


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
