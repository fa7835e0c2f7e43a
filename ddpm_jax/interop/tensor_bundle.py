"""TensorFlow's checkpoints ("V2", tensor bundles) without TensorFlow: PREFIX.index and PREFIX.data-0000I-of-0000N.

The index is a table in LevelDB's format: blocks of entries sorted by key, then a block that says where those stand, and
a footer that says where that one stands. Key "" holds the header; any other key is a tensor's name, its value a
protocol buffer that says where in which data file the numbers are.

Nothing in the files is believed: blocks and tensors must lie within their file, apart from each other and in order, so
that no small file unfolds into a large one, and each must have the CRC-32C written with it.
"""

import dataclasses
import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

_FOOTER = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER = 5  # after each block: how it is compressed, and its checksum
# The types that are read, by TensorFlow's numbers; bytes lie little end first.
_DTYPES = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 9: "i8", 17: "u2", 19: "f2", 22: "u4", 23: "u8"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    """Where a tensor is: bytes [offset, offset + size) of data file number `shard`."""

    dtype: np.dtype
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


def names(prefix: str | Path) -> list[str]:
    """The names of a checkpoint's tensors, sorted.

    Raises:
        FileNotFoundError: if there is no PREFIX.index.
        ValueError: if that is no whole index, naming it and the fault.
    """
    return list(_read_index(prefix)[1])


def read_tensors(prefix: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Read the tensors whose names are `wanted`, as read-only arrays.

    Raises:
        FileNotFoundError: if there is no PREFIX.index.
        ValueError: if a file is cut short, damaged or something else, a data file is missing, or a wanted tensor isn't
            numbers, is empty or was saved in slices; naming the file and the fault.
    """
    shards, messages = _read_index(prefix)
    entries = {}
    for name, message in messages.items():
        if wanted(name):
            try:
                entries[name] = _entry(message, shards)
            except ValueError as error:
                raise ValueError(f"{prefix}.index: {name} {error}") from None
    tensors = {}
    for shard in sorted({entry.shard for entry in entries.values()}):
        path = Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")
        if not path.is_file():
            raise ValueError(f"{prefix}.index wants {shards} data files, but there is no {path}")
        try:
            tensors |= _read_shard(path, {name: entry for name, entry in entries.items() if entry.shard == shard})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return {name: tensors[name] for name in entries}


def _read_shard(path: Path, entries: dict[str, _Entry]) -> dict[str, np.ndarray]:
    tensors, end, length = {}, 0, os.path.getsize(path)
    with path.open("rb") as file:
        for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
            if entry.offset + entry.size > length:
                raise ValueError(f"{name} should be at {entry.offset} + {entry.size}, past the end at {length}")
            if entry.offset < end:
                raise ValueError(
                    f"{name} should be at {entry.offset}, within the tensor before it, which ends at {end}"
                )
            end = entry.offset + entry.size
            file.seek(entry.offset)
            content = file.read(entry.size)
            if len(content) != entry.size or _masked(crc32c(content)) != entry.checksum:
                raise ValueError(f"{name} is damaged: it doesn't have the checksum that the index states")
            tensors[name] = np.frombuffer(content, entry.dtype).reshape(entry.shape)
    return tensors


def _read_index(prefix: str | Path) -> tuple[int, dict[str, bytes]]:
    """How many data files there are, and each tensor's entry as a message."""
    path = Path(f"{prefix}.index")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; a checkpoint is given by its prefix, without .index")
    try:
        entries = _table(path.read_bytes())
        key, header = next(entries, (None, b""))
        if key != b"":
            raise ValueError("it doesn't begin with a header")
        # Keys that begin with a zero byte hold slices; the variable has an entry of its own.
        messages = {key.decode(): value for key, value in entries if key[0]}
        return _shards(header), messages
    except ValueError as error:
        raise ValueError(f"{path} is no whole index of a TensorFlow checkpoint: {error}") from None


def _table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a whole table, in order."""
    if len(table) < _FOOTER or struct.unpack("<Q", table[-8:])[0] != _MAGIC:
        raise ValueError("its last 8 bytes aren't a table's")
    footer = table[-_FOOTER:-8]
    notes, at = _handle(footer, 0)
    _block(table, *notes)  # TensorFlow leaves it empty
    blocks = _block(table, *_handle(footer, at)[0])
    last, end, expanded = None, 0, 0
    for _, where in _entries(blocks):
        (offset, size), _ = _handle(where, 0)
        if offset < end:
            raise ValueError(f"a block at {offset} begins within the one before it")
        end = offset + size
        for key, value in _entries(_block(table, offset, size)):
            if last is not None and key <= last:
                raise ValueError(f"{key!r} doesn't stand in order after {last!r}")
            last = key
            yield key, value
            expanded += len(key)
            if expanded > 16 * len(table):
                raise ValueError("its names unfold to more than 16 times its size")


def _block(table: bytes, offset: int, size: int) -> bytes:
    """A block's contents, once its checksum is found right."""
    end = offset + size
    if end + _TRAILER > len(table) - _FOOTER:
        raise ValueError(f"a block should be at {offset} + {size}, past the end of {len(table)} bytes")
    if _masked(crc32c(table[offset : end + 1])) != struct.unpack("<I", table[end + 1 : end + _TRAILER])[0]:
        raise ValueError(f"the block at {offset} is damaged: it doesn't have the checksum that is written after it")
    if table[end]:
        raise ValueError(f"the block at {offset} is compressed (kind {table[end]}), which isn't read")
    return table[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A block's keys and values. A key says how much of the key before it it shares, then the rest."""
    if len(block) < 4:
        raise ValueError("a block is too short")
    end = len(block) - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    if end < 0:
        raise ValueError("a block is too short for its restart points")
    at, key = 0, b""
    entries = block[:end]
    while at < end:
        shared, at = _varint(entries, at)
        rest, at = _varint(entries, at)
        size, at = _varint(entries, at)
        if shared > len(key) or at + rest + size > end:
            raise ValueError("an entry runs out of its block")
        key = key[:shared] + entries[at : at + rest]
        at += rest + size
        yield key, entries[at - size : at]


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and where what follows begins."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where what follows begins."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("a number is cut short")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """A message's field numbers and values: an int, or the bytes of what is nested."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a message has a field of kind {kind}")
        size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        value, at = message[at : at + size], at + size
        if at > len(message):
            raise ValueError("a message is cut short")
        yield tag >> 3, value if kind == 2 else int.from_bytes(value, "little")


def _nested(message: bytes, number: int) -> list[bytes]:
    return [value for field, value in _fields(message) if field == number and isinstance(value, bytes)]


def _numbers(message: bytes) -> dict[int, int]:
    return {field: value for field, value in _fields(message) if isinstance(value, int)}


def _shards(header: bytes) -> int:
    """The number of data files."""
    stated = _numbers(header)
    shards = stated.get(1, 0)
    if not 1 <= shards <= 99_999:
        raise ValueError(f"it must have 1 to 99999 data files, got {shards}")
    if stated.get(2, 0):
        raise ValueError("its numbers lie big end first, which isn't read")
    # The version that a reader must know, of which there has been one.
    for version in _nested(header, 3):
        if _numbers(version).get(2, 0) > 1:
            raise ValueError(f"it wants a reader of version {_numbers(version)[2]}, this is one of version 1")
    return shards


def _entry(message: bytes, shards: int) -> _Entry:
    stated = _numbers(message)
    if _nested(message, 7):
        raise ValueError("is a partitioned variable, saved in slices, which aren't read")
    if stated.get(1, 0) not in _DTYPES:
        raise ValueError(f"is of type {stated.get(1, 0)}, not one of numbers (TensorFlow's {sorted(_DTYPES)})")
    dtype = np.dtype(_DTYPES[stated[1]]).newbyteorder("<")
    shapes = _nested(message, 2)
    if any(_numbers(shape).get(3) for shape in shapes):
        raise ValueError("has no shape")
    shape = tuple(_numbers(side).get(1, 0) for nested in shapes for side in _nested(nested, 2))
    if len(shape) > 32 or max(shape, default=0) > 2**40:
        raise ValueError(f"must have at most 32 axes, each of at most 2^40, got {len(shape)} axes")
    size, shard = stated.get(5, 0), stated.get(3, 0)
    if not size or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"must have the size of {dtype} {list(shape)} and not be empty, got {size} bytes")
    if shard >= shards:
        raise ValueError(f"must be in data file 0 to {shards - 1}, got {shard}")
    offset, checksum = stated.get(4, 0), stated.get(6, 0)
    return _Entry(dtype=dtype, shape=shape, shard=shard, offset=offset, size=size, checksum=checksum)


_BITS = np.arange(32, dtype=np.uint32)
# From four bytes and a register of zeros, the register that a CRC begins with: all ones.
_START = bytes.fromhex("54641f64")


def _byte_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ (table & 1) * np.uint32(0x82F63B78)
    return table


_TABLE = _byte_table()


def _moved(states: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Registers after a number of zero bytes, given what those make of each of the 32 bits: the map is linear."""
    bits = (states[:, None] >> _BITS) & 1
    return np.bitwise_xor.reduce(bits * images, axis=1)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of the data.

    The data is cut into rows, all taken on by one byte at a time; then neighbours are joined, two by two. About 100
    times as fast as a loop over bytes.
    """
    message = np.frombuffer(_START + data, np.uint8)
    width = 1 << len(message).bit_length() // 2
    count = -(-len(message) // width)
    rows = np.zeros((count, width), np.uint8)  # zeros in front leave the register at zero
    rows.reshape(-1)[-len(message) :] = message
    states = np.zeros(count, np.uint32)
    for column in np.ascontiguousarray(rows.T):
        states = _TABLE[(states ^ column) & 0xFF] ^ (states >> 8)
    one = np.uint32(1) << _BITS
    images = _TABLE[one & 0xFF] ^ (one >> 8)
    for _ in range(width.bit_length() - 1):
        images = _moved(images, images)
    while len(states) > 1:
        states = np.concatenate([np.zeros(len(states) % 2, np.uint32), states])
        states = _moved(states[::2], images) ^ states[1::2]
        images = _moved(images, images)
    return int(states[0]) ^ 0xFFFFFFFF


def _masked(checksum: int) -> int:
    """As both files write it: turned by 15 bits, and a constant added."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
