"""PyTorch's checkpoints (.pt, .pth, .bin), read with NumPy alone: nothing in a file is ever run.

torch.save has written two layouts. Since 1.6 a zip: NAME/data.pkl is the pickled object, NAME/data/KEY the bytes of a
storage, stored and not compressed. Before that a stream: pickles of a magic number, a protocol version, the system, the
object and the storages' keys; then for each key the number of elements (int64) and the elements.

Whatever a file claims, no memory is taken for what it doesn't hold: arrays are views of the bytes that were read.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.torch_files import torch_pickle
from ddpm_jax.torch_files.torch_names import DTYPES, LAYOUTS, Global, Storage, Tensor, show

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DEEPEST = 100
# Tied and expanded tensors count elements more than once: all together at most so many, or so many a byte of the file.
_MOST_ELEMENTS, _ELEMENTS_PER_BYTE = 2**24, 64
# What else is found under these suffixes, by its first bytes.
_OTHERS = {
    b"version https://git-lfs": "a git-lfs pointer, not the weights that it points to: run `git lfs pull`",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\x89HDF\r\n": "an HDF5 file, not a PyTorch checkpoint",
    b"\x93NUMPY": "a NumPy array, not a PyTorch checkpoint",
}


def _refuse_others(head: bytes) -> None:
    """Say what a file is, from its first bytes, if it is no checkpoint."""
    for start, what in _OTHERS.items():
        if head.startswith(start):
            raise ValueError(f"this is {what}")
    if head[4:9] == b"\0\0\0\0{":  # the length of its header, in eight bytes, then JSON
        raise ValueError("this is a safetensors file: name it .safetensors")
    if head.startswith((b"PK", b"\x80")):
        return
    if not head.strip(b"\0"):
        raise ValueError("the file holds zeros only" if head else "the file is empty")
    if head[257:262] == b"ustar":
        raise ValueError("this is a tar file, as PyTorch wrote before 0.1.10: save it anew with a later one")
    words = head.lower().split()
    if words and words[0].startswith((b"<!doctype", b"<html")):
        raise ValueError("this is a web page, not the weights: the download went wrong")
    if words and all(word.isascii() and word.decode().isprintable() for word in words):
        raise ValueError(f"this is text, not a PyTorch checkpoint: it begins with {show(head.decode().split()[0])}")
    raise ValueError(f"this isn't a PyTorch checkpoint: it begins with {head[:8]!r}")


def _entries(data: bytes) -> dict[str, zipfile.ZipInfo]:
    """The zip's directory, by name."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise ValueError(f"cut short or damaged: it starts as a zip, but {show(str(error))}") from None
    entries = {entry.filename: entry for entry in listed}
    if len(entries) < len(listed):
        raise ValueError("damaged: two entries of the zip have the same name")
    return entries


def _refuse_bombs(entries: Mapping[str, zipfile.ZipInfo], size: int) -> None:
    """What is stored as it is, and each byte once, can't take more than the file does."""
    for name, entry in entries.items():
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise ValueError(f"refused: {show(name)} is compressed or encrypted, which torch.save never does")
    total = sum(entry.file_size for entry in entries.values())
    if total > size:
        raise ValueError(f"damaged: its entries claim {total} bytes, and the file has {size}")


def _record(data: bytes, entry: zipfile.ZipInfo) -> memoryview:
    start = entry.header_offset
    header = data[start : start + 30] if start >= 0 else b""
    if len(header) < 30 or not header.startswith(b"PK\3\4"):
        raise ValueError(f"damaged: there is no {show(entry.filename)} where the zip says")
    start += 30 + sum(struct.unpack("<HH", header[26:]))
    found = memoryview(data)[start : start + entry.file_size]
    if len(found) < entry.file_size or zlib.crc32(found) != entry.CRC:
        raise ValueError(f"damaged: {show(entry.filename)} isn't what was written (its checksum differs)")
    return found


def _read_zip(data: bytes) -> Any:
    entries = _entries(data)
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise ValueError(f"this is a zip, but not by torch.save: it holds {len(roots)} NAME/data.pkl, not one")
    (root,) = roots
    if any(name.startswith((f"{root}code/", f"{root}constants.pkl")) for name in entries):
        raise ValueError("this is a TorchScript archive, a program with its weights: save the module's state_dict()")
    _refuse_bombs(entries, len(data))
    order = entries.get(f"{root}byteorder")
    if order is not None and bytes(_record(data, order)) != b"little":
        raise ValueError(f"refused: its byte order must be little, got {bytes(_record(data, order))[:10]!r}")
    storages: dict[str, Storage] = {}
    value = torch_pickle.read(io.BytesIO(_record(data, entries[f"{root}data.pkl"])), len(data), storages)
    found = {}
    for key, storage in storages.items():
        if f"{root}data/{key}" not in entries:
            raise ValueError(f"damaged: it has no data for storage {show(key)}")
        found[key] = _record(data, entries[f"{root}data/{key}"])
        if len(found[key]) != storage.nbytes:
            raise ValueError(f"damaged: storage {show(key)} must take {storage.nbytes} bytes, got {len(found[key])}")
    return _plain(value, found, len(data))


def _preamble(source: io.BytesIO, size: int) -> None:
    """The three pickles in front of the object's."""
    if torch_pickle.read(source, size, {}) != _MAGIC:
        raise ValueError("this is a pickle, but not by torch.save: its magic number is missing")
    protocol = torch_pickle.read(source, size, {})
    if protocol != _PROTOCOL:
        raise ValueError(f"refused: its protocol version must be {_PROTOCOL}, got {show(protocol)}")
    system = torch_pickle.read(source, size, {})
    if type(system) is not dict or system.get("little_endian") is not True:
        raise ValueError("refused: it must come from a little-endian machine, and doesn't say so")


def _read_stream(data: bytes) -> Any:
    source = io.BytesIO(data)
    _preamble(source, len(data))
    storages: dict[str, Storage] = {}
    value = torch_pickle.read(source, len(data), storages)
    keys = torch_pickle.read(source, len(data), {})
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError(f"damaged: the list of its storages must name {len(storages)}, each once")
    found = {}
    for key in keys:
        numel, nbytes = storages[key].numel, storages[key].nbytes
        header, start = source.read(8), source.tell()
        if len(header) == 8 and struct.unpack("<q", header)[0] != numel:
            raise ValueError(f"damaged: storage {show(key)} is declared with {numel} elements and kept with others")
        found[key] = memoryview(data)[start : start + nbytes]
        if len(header) < 8 or len(found[key]) < nbytes:
            raise ValueError(f"cut short: storage {show(key)} takes {nbytes} bytes, and {len(found[key])} are left")
        source.seek(nbytes, io.SEEK_CUR)
    return _plain(value, found, len(data))


def _elements(raw: memoryview, dtype: str) -> np.ndarray:
    """A storage's bytes as numbers; copied only where they lie askew or NumPy has no such type."""
    layout = np.dtype(LAYOUTS[dtype])
    kept = np.require(np.frombuffer(raw, layout, len(raw) // layout.itemsize), requirements="A")
    if dtype == "bool":
        return kept != 0
    return (kept.astype("<u4") << 16).view("<f4") if dtype == "bfloat16" else kept


def _arrays(found: dict[str, memoryview], size: int) -> Callable[[Tensor], np.ndarray]:
    """array(tensor), a view that can't be written to, over storages that are turned into numbers once."""
    elements: dict[tuple[str, str], np.ndarray] = {}
    most, counted = max(_MOST_ELEMENTS, _ELEMENTS_PER_BYTE * size), [0]

    def array(tensor: Tensor) -> np.ndarray:
        counted[0] += math.prod(max(axis, 1) for axis in tensor.shape)
        if counted[0] > most:
            raise ValueError(f"refused: its tensors have more than {most} elements, in a file of {size} bytes")
        where = (tensor.storage.key, tensor.dtype)
        if where not in elements:
            elements[where] = _elements(found[tensor.storage.key], tensor.dtype)
        flat = elements[where]
        # Along an axis of length 1, or in an empty tensor, a stride moves nothing and may be any number.
        moving = [axis > 1 and 0 not in tensor.shape for axis in tensor.shape]
        strides = [stride * flat.itemsize * moves for stride, moves in zip(tensor.strides, moving, strict=True)]
        return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)

    return array


def _plain(value: Any, found: dict[str, memoryview], size: int) -> Any:
    """What the pickle described, with arrays for tensors; what it shares stays shared."""
    array = _arrays(found, size)
    done: dict[int, tuple[Any, int]] = {}  # by id(): the result, and how many levels of containers it has

    def walk(value: Any, depth: int) -> tuple[Any, int]:
        if depth > _DEEPEST:
            raise ValueError(f"refused: its containers are nested deeper than {_DEEPEST}, or one holds itself")
        if id(value) not in done:
            done[id(value)] = turn(value, depth)
        if depth + done[id(value)][1] > _DEEPEST:
            raise ValueError(f"refused: its containers are nested deeper than {_DEEPEST}")
        return done[id(value)]

    def turn(value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, Tensor):
            return array(value), 0
        if isinstance(value, Storage):
            return array(Tensor(value, 0, (value.numel,), (1,), value.dtype)), 0
        if isinstance(value, Global):
            if value.name not in DTYPES:
                raise ValueError(f"refused: the file holds {show(value)} itself, not a tensor")
            return DTYPES[value.name], 0
        if not isinstance(value, dict | list | tuple):
            return value, 0
        inner = [walk(held, depth + 1) for held in (value.values() if isinstance(value, dict) else value)]
        results, height = [result for result, _ in inner], 1 + max((levels for _, levels in inner), default=0)
        if isinstance(value, dict):
            return type(value)(zip(value, results, strict=True)), height
        return (results if isinstance(value, list) else tuple(results)), height

    return walk(value, 0)[0]


def read(path: Path) -> Any:
    """Read a checkpoint of torch.save, of either layout.

    Tensors, parameters and storages come as arrays [shape as saved] that can't be written to and share memory where
    they did; bfloat16 comes as float32, which holds it exactly. Containers, numbers and strings come as they are, a
    torch.Size as a tuple, a device ("cuda:0") and a dtype ("float32") as a string.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, for anything that isn't such a checkpoint from end to end, and for one that asks
            for any other name (os.system, or a class of the project that saved it).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, which should hold the weights")
    with path.open("rb", buffering=0) as file:  # a buffered file would join two copies
        head = file.read(512)
        try:
            _refuse_others(head)
            file.seek(0)
            data = file.readall()
            return _read_zip(data) if head.startswith(b"PK") else _read_stream(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a flat state dict, {name: array}, as `read` does; nothing is unwrapped.

    Raises:
        FileNotFoundError, ValueError: as `read`; also if the file holds no dict or the dict holds anything else, with
            the names and types of what it does.
    """
    value = read(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a dict of tensors by name, got {show(value)}")
    others = [
        f"{show(name)} ({type(held).__name__})"
        for name, held in value.items()
        if not isinstance(held, np.ndarray) or not isinstance(name, str)
    ]
    if others:
        more = f" and {len(others) - 10} more" if len(others) > 10 else ""
        raise ValueError(f"{path}: must hold tensors by name and nothing else, got {', '.join(others[:10])}{more}")
    return dict(value)
