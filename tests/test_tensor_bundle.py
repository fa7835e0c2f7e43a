"""TensorFlow's checkpoints: the numbers that TensorFlow wrote, and one plain error for every file that isn't whole.

`golden/ho_tiny` was written by TensorFlow 2.21 (tf.compat.v1.train.Saver). The bundles made here are written from the
published description of the format.
"""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from ddpm_jax.interop.tensor_bundle import crc32c, names, read_tensors

GOLDEN = Path(__file__).parent / "golden" / "ho_tiny"
DTYPES = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 9: "i8", 17: "u2", 19: "f2", 22: "u4", 23: "u8"}
W = np.arange(6, dtype=np.float32).reshape(2, 3)


def slow_crc(data):
    """CRC-32C by its definition, a bit at a time."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data):
    crc = slow_crc(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value):
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def number(field, value):
    return varint(field << 3) + varint(value)


def nested(field, message):
    return varint(field << 3 | 2) + varint(len(message)) + message


def entry(dtype=1, shape=(2, 3), shard=0, offset=0, size=24, crc=None, extra=b""):
    sides = b"".join(nested(2, number(1, side)) for side in shape)
    where = number(3, shard) + number(4, offset) + number(5, size)
    crc = masked(W.tobytes()) if crc is None else crc
    return number(1, dtype) + nested(2, sides) + where + varint(6 << 3 | 5) + struct.pack("<I", crc) + extra


def pack(entries):
    """A block's contents: every key shares what it can with the one before it."""
    packed, last = b"", b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        packed += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return packed + struct.pack("<II", 0, 1)


def table(*blocks, kind=0, again=False, magic=0xDB4775248B80FB57, reach=0):
    """A table of these blocks; `again` points at the first block twice, `reach` makes the last reach further."""
    content, handles = b"", []

    def add(block):
        nonlocal content
        handle = varint(len(content)) + varint(len(block))
        ended = block + bytes([kind])
        content += ended + struct.pack("<I", masked(ended))
        return handle

    handles = [add(block) for block in blocks]
    if again:
        handles.append(handles[0])
    if reach:
        handles[-1] = varint(0) + varint(reach)
    notes, index = add(pack([])), add(pack([(bytes([i]), handle) for i, handle in enumerate(handles)]))
    return content + (notes + index).ljust(40, b"\0") + struct.pack("<Q", magic)


def header(shards=1, extra=b""):
    return (b"", number(1, shards) + nested(3, number(1, 1)) + extra)


def index(*entries, **options):
    return table(pack([header(), *entries]), **options)


@pytest.fixture
def bundle(tmp_path):
    """Writes PREFIX.index and data files; gives the prefix."""

    def write(index, *shards):
        Path(f"{tmp_path}/net.index").write_bytes(index)
        for i, data in enumerate(shards):
            Path(f"{tmp_path}/net.data-{i:05d}-of-{len(shards):05d}").write_bytes(data)
        return tmp_path / "net"

    return write


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (b"", 0), (b"a", 0xC1D04330)],
)
def test_the_checksum_is_crc32c(data, expected):
    """RFC 3720, B.4, and the catalogue's check value."""
    assert crc32c(data) == slow_crc(data) == expected


def test_the_checksum_of_any_length_is_that_of_the_definition():
    data = np.random.default_rng(0).bytes(70_001)
    for length in (2, 3, 4, 5, 11, 12, 13, 27, 28, 29, 255, 256, 1000, 70_001):
        assert crc32c(data[:length]) == slow_crc(data[:length])


def test_what_tensorflow_wrote_is_read():
    tensors = read_tensors(GOLDEN)
    assert list(tensors) == names(GOLDEN) == sorted(tensors)
    assert tensors["global_step"] == 1
    assert tensors["global_step"].dtype == np.int64
    # Adam multiplies both by its beta after its one step.
    np.testing.assert_allclose([tensors["beta1_power"], tensors["beta2_power"]], [0.9**2, 0.999**2], rtol=1e-6)
    assert tensors["model/conv_in/W/ExponentialMovingAverage"].shape == (3, 3, 3, 4)
    weights = [name for name in tensors if f"{name}/Adam_1" in tensors]
    assert sum(tensors[name].size for name in weights) == 11_767
    assert len(tensors) == 4 * len(weights) + 3


def test_every_type_and_shard_and_block_is_read(bundle):
    rng = np.random.default_rng(1)
    expected, contents, entries = {}, [b"", b"", b""], []
    for i, (dtype, kind) in enumerate(sorted(DTYPES.items())):
        value = rng.integers(0, 100, (2, i, 1)[: 1 + i % 3] if i else ()).astype(f"<{kind}")
        data, shard, name = value.tobytes(), i % 3, f"net/same/start/{i:02d}"
        where = entry(dtype, value.shape, shard, len(contents[shard]), len(data), masked(data))
        entries.append((name.encode(), where))
        contents[shard] += data
        expected[name] = value
    tensors = read_tensors(bundle(table(pack([header(shards=3), *entries[:2]]), pack(entries[2:])), *contents))
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype
        np.testing.assert_array_equal(tensors[name], value)


def test_what_is_not_wanted_is_not_looked_at(bundle):
    """A graph of objects, which TensorFlow 2 keeps as a string, and slices, whose keys begin with a zero byte."""
    entries = [(b"\0\x01slice", b""), (b"W", entry()), (b"_graph", entry(dtype=7, shape=()))]
    prefix = bundle(index(*entries), W.tobytes())
    assert names(prefix) == ["W", "_graph"]
    np.testing.assert_array_equal(read_tensors(prefix, lambda name: name == "W")["W"], W)


def test_no_flipped_bit_and_no_cut_goes_unnoticed(bundle):
    """Only the footer's padding, 40 bytes less two handles, means nothing."""
    good, data, silent = index((b"W", entry())), W.tobytes(), 0
    for i in range(len(good)):
        with pytest.raises(ValueError, match=r"net\.index is no whole index"):
            read_tensors(bundle(good[:i], data))
        spoilt = bytearray(good)
        spoilt[i] ^= 1 << i % 8
        try:
            np.testing.assert_array_equal(read_tensors(bundle(bytes(spoilt), data))["W"], W)
            silent += 1
        except ValueError as error:
            assert "net.index is no whole index" in str(error)  # noqa: PT017
    assert silent <= 40 - 4
    for i in range(len(data)):
        for spoilt in (data[:i], data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]):
            with pytest.raises(ValueError, match=r"net\.data-00000-of-00001: W "):
                read_tensors(bundle(good, spoilt))


HUGE = 2**63
INDEXES = {
    "its last 8 bytes aren't a table's": index((b"W", entry()), magic=1),
    "is compressed .kind 1., which isn't read": index((b"W", entry()), kind=1),
    "a block should be at 0 . 99999, past the end": index((b"W", entry()), reach=99_999),
    "a block should be at 0 . 9223372036854775808, past": index((b"W", entry()), reach=HUGE),
    "a block at 0 begins within the one before it": index((b"W", entry()), again=True),
    "b'V' doesn't stand in order after b'W'": index((b"W", entry()), (b"V", entry())),
    "b'W' doesn't stand in order after b'W'": index((b"W", entry()), (b"W", entry())),
    "an entry runs out of its block": table(b"\5\1\0W" + struct.pack("<II", 0, 1)),
    "entry runs out of its block$": table(b"\0\1" + varint(HUGE) + b"W" + struct.pack("<II", 0, 1)),
    "a number is cut short": table(b"\xff" * 20 + struct.pack("<II", 0, 1)),
    "a block is too short for its restart points": table(struct.pack("<I", 2**32 - 1)),
    "a block is too short$": table(b"ab"),
    "it doesn't begin with a header": table(pack([(b"W", entry())])),
    "it doesn't begin with a header$": table(),
    "1 to 99999 data files, got 0": table(pack([(b"", b"")])),
    "1 to 99999 data files, got 1000000": table(pack([header(1_000_000)])),
    "big end first": table(pack([header(extra=number(2, 1))])),
    "wants a reader of version 2": table(pack([header(extra=nested(3, number(2, 2)))])),
    "can't decode byte 0xff": index((b"\xff", entry())),
    "names unfold to more than 16 times": index(*[(b"a" * 600 + bytes([i]), b"") for i in range(200)]),
}


@pytest.mark.parametrize("message", INDEXES)
def test_a_hostile_index_is_refused(message, bundle):
    with pytest.raises(ValueError, match=rf"net\.index is no whole index .*: .*{message}"):
        read_tensors(bundle(INDEXES[message], W.tobytes()))


ENTRIES = {
    r"net\.index: W is of type 7, not one of numbers": entry(dtype=7),
    r"net\.index: W is of type 0, ": b"",
    r"net\.index: W is of type 9999, ": entry(dtype=9999),
    r"net\.index: W must have the size of float32 \[2, 4\] and not be empty, got 24 bytes": entry(shape=(2, 4)),
    r"net\.index: W must have .* got 0 bytes": entry(shape=(0, 2**40, 2**40), size=0),
    r"net\.index: W must have the size of float32 \[1099511627776": entry(shape=(2**40, 2**40)),
    r"net\.index: W must have at most 32 axes, each of at most 2\^40, got 2 axes$": entry(shape=(0, HUGE)),
    r"net\.index: W must have at most 32 axes, .* got 4000 axes$": entry(shape=(2**40,) * 4000),
    r"net\.index: W is a partitioned variable": entry(extra=nested(7, b"")),
    r"net\.index: W has no shape": number(1, 1) + nested(2, number(3, 1)),
    r"net\.index: W must be in data file 0 to 0, got 1": entry(shard=1),
    r"net\.index: W a message is cut short": entry(extra=varint(7 << 3 | 2) + b"\x09abc"),
    r"net\.index: W a message has a field of kind 3": entry(extra=varint(8 << 3 | 3)),
    r"net\.data-00000-of-00001: W should be at 1 \+ 24, past the end at 24": entry(offset=1),
    r"W should be at 9223372036854775808 \+ 24, past": entry(offset=HUGE),
    r"W should be at 0 \+ 4611686018427387904, past the end at 24": entry(shape=(2**40, 2**20), size=2**62),
    r"net\.data-00000-of-00001: W is damaged": entry(crc=0),
}


@pytest.mark.parametrize("message", ENTRIES)
def test_a_hostile_entry_is_refused(message, bundle):
    with pytest.raises(ValueError, match=message):
        read_tensors(bundle(index((b"W", ENTRIES[message])), W.tobytes()))


def test_tensors_may_not_share_bytes(bundle):
    """A thousand names of one stretch of a file would be read a thousand times."""
    prefix = bundle(index((b"V", entry()), (b"W", entry())), W.tobytes())
    with pytest.raises(ValueError, match="W should be at 0, within the tensor before it, which ends at 24"):
        read_tensors(prefix)


def test_missing_files_are_named(bundle, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*net\.index; .* without \.index"):
        read_tensors(tmp_path / "net")
    with pytest.raises(ValueError, match=r"net\.index wants 1 data files, but there is no .*net\.data-00000-of-00001"):
        read_tensors(bundle(index((b"W", entry()))))


def test_a_genuine_data_file_cut_short_is_refused(tmp_path):
    shutil.copy(f"{GOLDEN}.index", tmp_path / "net.index")
    data = Path(f"{GOLDEN}.data-00000-of-00001").read_bytes()
    (tmp_path / "net.data-00000-of-00001").write_bytes(data[:-1])
    with pytest.raises(ValueError, match=rf"past the end at {len(data) - 1}"):
        read_tensors(tmp_path / "net")
