"""What every reader of weights shares: files in, PyTorch's layout to ours, and nothing left over or left out."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

Tensors = dict[str, np.ndarray]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: naming the path.
        ValueError: if it holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, which should hold the network's settings")
    try:
        plain = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(plain).__name__}")
    return plain


def read_tensors(path: Path) -> Tensors:
    """Read a .safetensors file whole.

    Raises:
        FileNotFoundError: naming the path.
        ValueError: if the file is cut short or is something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, which should hold the weights")
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


def _from_pytorch(tensor: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """OIHW -> HWIO for convolutions, [out, in] -> [in, out] for dense layers; a vector stays.

    A 1x1 convolution may be kept as a dense layer, whose [in, out] is then [1, 1, in, out].
    """
    turned = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    return turned[None, None] if turned.ndim == 2 and wanted[:-2] == (1, 1) else turned


def fill(
    module: Any, channels: int, halvings: int, tensors: Tensors, rename: Callable[[list[str]], str]
) -> dict[str, Any]:
    """Put PyTorch's tensors where the network, for images of so many channels, has its parameters, in float32.

    `rename` gives the tensor's name for a parameter's path (["conv_in", "kernel"] -> "conv_in.weight"). Everything is
    checked before anything is placed.

    Returns:
        {"params": ...} as module.apply takes it.

    Raises:
        ValueError: one for all, listing each missing, extra and misshapen tensor by name and shape.
    """
    # Parameters don't depend on the images' size, so that the smallest will do.
    smallest = jnp.zeros((1, 2**halvings, 2**halvings, channels))
    plan = jax.eval_shape(module.init, jax.random.key(0), smallest, jnp.zeros(1))
    leaves, tree = jax.tree.flatten_with_path(plan)
    names = [rename([entry.key for entry in path[1:]]) for path, _ in leaves]
    faults = [f"{name} {list(tensors[name].shape)} has no place in it" for name in sorted(tensors.keys() - set(names))]
    values = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if name not in tensors:
            faults.append(f"{name} is missing, for a parameter of shape {list(leaf.shape)}")
            continue
        value = _from_pytorch(tensors[name], leaf.shape)
        if value.shape != leaf.shape:
            faults.append(f"{name} becomes {list(value.shape)}, but the parameter is {list(leaf.shape)}")
        values.append(value)
    if faults:
        raise ValueError("the tensors don't fit the network: " + "; ".join(faults))
    return jax.tree.unflatten(tree, [jnp.asarray(value, jnp.float32) for value in values])


def renamer(tops: Mapping[str, str], parts: Mapping[str, str]) -> Callable[[list[str]], str]:
    """A `rename` for `fill`: the path's first part by `tops`, the others by `parts` or as they are, joined by dots."""
    return lambda path: ".".join([tops[path[0]], *(parts.get(part, part) for part in path[1:])])
