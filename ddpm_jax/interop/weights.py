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
# What weights may be of; NumPy's own have no bfloat16, and files have kinds of eight bits and less.
_FLOATS = ("bfloat16", "float16", "float32", "float64")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: naming the path.
        ValueError: if it holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, which should hold the network's settings")
    try:
        plain = json.loads(path.read_text(), parse_int=_whole)
    except RecursionError:
        raise ValueError(f"{path} is not JSON that is read: its lists or objects are nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(plain).__name__}")
    return plain


def _whole(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)


def read_tensors(path: Path) -> Tensors:
    """Read a .safetensors file whole.

    Raises:
        FileNotFoundError: naming the path.
        ValueError: if the file is cut short or is something else, or holds a type that NumPy lacks (float8, ...).
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, which should hold the weights")
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None
    except (AttributeError, KeyError, TypeError) as error:
        wanted = ", ".join(_FLOATS)
        raise ValueError(f"{path} holds tensors of a type that isn't read, wanted {wanted}: {error}") from None


def _from_pytorch(part: str, tensor: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """OIHW -> HWIO for convolutions, [out, in] -> [in, out] for dense layers; a vector and an embedding stay.

    A 1x1 convolution may be kept as a dense layer, or as one over a sequence: its [in, out] is then [1, 1, in, out].
    """
    if part == "embedding":
        return tensor
    turned = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    return turned.reshape(1, 1, *turned.shape[-2:]) if _is_pixelwise(turned.shape, wanted) else turned


def _is_pixelwise(turned: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return wanted[:-2] == (1, 1) and (len(turned) == 2 or (len(turned) == 3 and turned[0] == 1))


def _to_pytorch(part: str, value: np.ndarray, dense: bool) -> np.ndarray:
    """The way back; `dense` makes the kernel of a 1x1 convolution that of a dense layer."""
    if part == "embedding":
        return value
    value = value[0, 0] if dense and value.ndim == 4 else value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def fill(
    module: Any, channels: int, halvings: int, tensors: Tensors, rename: Callable[[list[str]], str]
) -> dict[str, Any]:
    """Put PyTorch's tensors where the network, for images of so many channels, has its parameters, in float32.

    `rename` gives the tensor's name for a parameter's path (["conv_in", "kernel"] -> "conv_in.weight"). Everything is
    checked before anything is placed.

    Returns:
        {"params": ...} as module.apply takes it.

    Raises:
        ValueError: one for all, listing each missing, extra and misshapen tensor by name and shape, and each of whole
            numbers or with numbers that aren't finite in float32.
    """
    # Parameters don't depend on the images' size, so that the smallest will do.
    smallest = jax.ShapeDtypeStruct((1, 2**halvings, 2**halvings, channels), jnp.float32)
    plan = jax.eval_shape(module.init, jax.random.key(0), smallest, jax.ShapeDtypeStruct((1,), jnp.float32))
    leaves, tree = jax.tree.flatten_with_path(plan)
    paths = [[entry.key for entry in path[1:]] for path, _ in leaves]
    names = [rename(path) for path in paths]
    faults = [f"{name} {list(tensors[name].shape)} has no place in it" for name in sorted(tensors.keys() - set(names))]
    values = []
    for name, (*_, part), (_, leaf) in zip(names, paths, leaves, strict=True):
        if name not in tensors:
            faults.append(f"{name} is missing, for a parameter of shape {list(leaf.shape)}")
            continue
        value = _from_pytorch(part, tensors[name], leaf.shape)
        if value.shape != leaf.shape:
            faults.append(f"{name} becomes {list(value.shape)}, but the parameter is {list(leaf.shape)}")
            continue
        if value.dtype.name not in _FLOATS:
            faults.append(f"{name} must be of {', '.join(_FLOATS)}, got {value.dtype.name}")
            continue
        with np.errstate(over="ignore"):
            values.append(np.asarray(value, np.float32))
        if not np.isfinite(values[-1]).all():
            faults.append(f"{name} holds {np.sum(~np.isfinite(values[-1]))} numbers that aren't finite in float32")
    if faults:
        raise ValueError("the tensors don't fit the network: " + "; ".join(faults))
    return jax.tree.unflatten(tree, [jnp.asarray(value) for value in values])


def collect(
    variables: dict[str, Any], rename: Callable[[list[str]], str], *, dense: Callable[[str], bool] = lambda name: False
) -> Tensors:
    """PyTorch's tensors from {"params": ...}, by name and in float32: what `fill` with the same `rename` takes back.

    `dense` says by a tensor's name whether PyTorch keeps that 1x1 convolution as a dense layer, [out, in].

    Raises:
        ValueError: if two parameters get one name, or `dense` names a convolution that isn't 1x1.
    """
    tensors: Tensors = {}
    for path, leaf in jax.tree.leaves_with_path(variables["params"]):
        parts = [entry.key for entry in path]
        name, value = rename(parts), np.asarray(leaf, np.float32)
        if name in tensors:
            raise ValueError(f"{name} would be the name of two parameters, one of them {'.'.join(parts)}")
        if dense(name) and value.ndim == 4 and value.shape[:2] != (1, 1):
            raise ValueError(f"{name} can't be a dense layer: it is a convolution of shape {list(value.shape)}")
        tensors[name] = np.ascontiguousarray(_to_pytorch(parts[-1], value, dense(name)))
    return tensors


def renamer(tops: Mapping[str, str], parts: Mapping[str, str]) -> Callable[[list[str]], str]:
    """A `rename` for `fill`: the path's first part by `tops`, the others by `parts` or as they are, joined by dots."""
    return lambda path: ".".join([tops[path[0]], *(parts.get(part, part) for part in path[1:])])
