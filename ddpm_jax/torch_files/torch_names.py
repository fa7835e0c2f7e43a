"""What a PyTorch checkpoint may ask for by name, and what stands for it here: nothing is imported.

A tensor stays a note of where it lies: storage, offset, shape and strides, held against the storage's declared size.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

# How the elements of each of torch's types lie in a file; a bfloat16 is the upper half of a float32.
LAYOUTS = {
    "bool": "u1",
    "uint8": "u1",
    "int8": "i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
}
STORAGES = {
    "torch.BoolStorage": "bool",
    "torch.ByteStorage": "uint8",
    "torch.CharStorage": "int8",
    "torch.ShortStorage": "int16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.UntypedStorage": "uint8",
    "torch.storage.UntypedStorage": "uint8",
}
DTYPES = {f"torch.{name}": name for name in LAYOUTS}


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that a pickle asks for. It stays a name."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A block of elements, found in the file by its key."""

    key: str
    dtype: str
    numel: int

    @property
    def nbytes(self) -> int:
        """Its size by what the pickle declares."""
        return self.numel * np.dtype(LAYOUTS[self.dtype]).itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor inside its storage; offset and strides count elements of `dtype`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


def show(value: Any) -> str:
    """A short form, of one line, of something that a file holds: a name, a number, or else its type."""
    if isinstance(value, str):
        return value[:100] if value.isascii() and value.isprintable() and value.strip() else ascii(value[:30])
    if type(value) in (int, float, bool, type(None)):
        return repr(value)[:100]
    return show(value.name) if isinstance(value, Global) else f"a value of type {type(value).__name__}"


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 0 up, of 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def put(target: Any, items: list[Any]) -> None:
    """Add keys and values, in turn, to a dict.

    Raises:
        ValueError: for another target or a key that is neither a string nor a 64-bit number. Those hash at once; a
            tuple may be nested without end, and large numbers may be chosen so that they collide.
    """
    if type(target) not in (dict, collections.OrderedDict) or len(items) % 2:
        raise ValueError(f"damaged: its pickle sets {len(items)} keys and values in {show(target)}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str and not (type(key) is int and abs(key) < 2**63):
            raise ValueError(f"refused: a dict's keys must be strings or 64-bit numbers, got {show(key)}")
        target[key] = value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None, extra: Any = None) -> Tensor:
    """The tensor, if it lies inside its storage."""
    if not isinstance(storage, Storage):
        raise ValueError(f"damaged: a tensor needs a storage, got {show(storage)}")
    if extra is not None and (type(extra) is not dict or extra):
        raise ValueError("refused: a tensor is kept as conjugated or negated; resolve that before saving")
    name = storage.dtype
    if dtype is not None:
        if not isinstance(dtype, Global) or dtype.name not in DTYPES or storage.dtype != "uint8":
            raise ValueError(
                f"damaged: a tensor needs a dtype over plain bytes, got {show(dtype)} over {storage.dtype}"
            )
        name = DTYPES[dtype.name]
    for what, got in (("shape", shape), ("strides", strides)):
        if type(got) is not tuple or len(got) > 64 or not all(map(is_count, got)):
            raise ValueError(f"damaged: a tensor's {what} must be at most 64 whole numbers from 0 up")
    if len(shape) != len(strides):
        raise ValueError(f"damaged: a tensor of {len(shape)} axes must have as many strides, got {len(strides)}")
    if not is_count(offset):
        raise ValueError(f"damaged: a tensor's offset must be a whole number from 0 up, got {show(offset)}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last + 1) * np.dtype(LAYOUTS[name]).itemsize > storage.nbytes:
        raise ValueError(f"damaged: a tensor reaches to element {last}, outside its storage of {storage.nbytes} bytes")
    return Tensor(storage, offset, shape, strides, name)


def _tensor_v2(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, extra: Any = None) -> Tensor:
    return _tensor(storage, offset, shape, strides, extra=extra)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, extra: Any = None
) -> Tensor:
    """For types without a storage class of their own, such as uint16: the storage is bytes."""
    if dtype is None:
        raise ValueError("damaged: a tensor over plain bytes needs a dtype")
    return _tensor(storage, offset, shape, strides, dtype, extra)


def _parameter(tensor: Any, grad: Any, hooks: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"damaged: a parameter needs a tensor, got {show(tensor)}")
    return tensor


def _ordered_dict(pairs: Any = ()) -> collections.OrderedDict[Any, Any]:
    """Empty, for later opcodes to fill; Python 2 gave a list of pairs at once."""
    if type(pairs) not in (list, tuple) or any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
        raise ValueError("damaged: an OrderedDict needs pairs")
    made = collections.OrderedDict()
    for pair in pairs:
        put(made, list(pair))
    return made


def _size(sizes: Any) -> tuple[int, ...]:
    if type(sizes) is not tuple or not all(map(is_count, sizes)):
        raise ValueError("damaged: a torch.Size needs whole numbers from 0 up")
    return sizes


def _device(kind: Any, index: Any = None) -> str:
    if type(kind) is not str or not (index is None or is_count(index)):
        raise ValueError(f"damaged: a torch.device needs a name and a number, got {show(kind)} and {show(index)}")
    return kind if index is None else f"{kind}:{index}"


# What may be called, with the fewest and the most arguments.
CALLS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "collections.OrderedDict": (_ordered_dict, 0, 1),
    "torch.Size": (_size, 1, 1),
    "torch.device": (_device, 1, 2),
    "torch._utils._rebuild_tensor": (_tensor, 4, 4),
    "torch._utils._rebuild_tensor_v2": (_tensor_v2, 6, 7),
    "torch._utils._rebuild_tensor_v3": (_tensor_v3, 7, 8),
    "torch._utils._rebuild_parameter": (_parameter, 3, 3),
}
