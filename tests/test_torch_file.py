"""PyTorch's checkpoints without PyTorch: what is in them, exactly.

`golden/torch_zip.pt` and `golden/torch_legacy.pt` are one state dict, saved by torch.save of PyTorch 2.13, the second
with `_use_new_zipfile_serialization=False`: a Linear's weights, a parameter, views that share one storage, and a tensor
of each common type. `golden/torch_files.npz` holds what `.numpy()` gave for each (`.float().numpy()` for bfloat16).

The other files here are written by `zipped` and `streamed`, opcode by opcode, so that they may also be wrong.
"""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ddpm_jax.torch_files import torch_file

GOLDEN = Path(__file__).parent / "golden"
VALUES = np.arange(6, dtype="<f4")
MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def code(value):
    """The opcodes that make a value; bytes are opcodes already."""
    if isinstance(value, bytes):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        length = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, dict):
        return b"}(" + b"".join(code(key) + code(held) for key, held in value.items()) + b"u"
    start, end = (b"](", b"e") if isinstance(value, list) else (b"(", b"t")
    return start + b"".join(map(code, value)) + end


def ask(name):
    return "c{}\n{}\n".format(*name.rsplit(".", 1)).encode()


def call(name, *args):
    return ask(name) + code(args) + b"R"


def storage(key="0", numel=6, kind="torch.FloatStorage"):
    return code(("storage", ask(kind), key, "cpu", numel)) + b"Q"


def tensor(offset=0, shape=(2, 3), strides=(3, 1), kept=None, more=()):
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", kept or storage(), offset, shape, strides, False, hooks, *more)


def program(value):
    return b"\x80\x02" + code(value) + b"."


def zipped(path, value, records=None, method=zipfile.ZIP_STORED, root="archive/"):
    """A zip around the pickle of `value`, with records by name beside it (unless given, storage 0 of 0 .. 5)."""
    records = {"data/0": VALUES.tobytes(), "byteorder": b"little", "version": b"3\n"} if records is None else records
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{root}data.pkl", program(value))
        for name, record in records.items():
            archive.writestr(root + name, record)
    return path


def streamed(path, value, storages=None, magic=MAGIC, protocol=1001, system=SYSTEM, keys=None):
    """The older layout; `storages` holds (number of elements, bytes) by key (unless given, storage 0 of 0 .. 5)."""
    storages = {"0": (6, VALUES.tobytes())} if storages is None else storages
    pickles = (magic, protocol, system, value, list(storages) if keys is None else keys)
    blocks = b"".join(struct.pack("<q", numel) + block for numel, block in storages.values())
    path.write_bytes(b"".join(map(program, pickles)) + blocks)
    return path


BOTH = pytest.mark.parametrize("write", [zipped, streamed])


@pytest.mark.parametrize("name", ["torch_zip", "torch_legacy"])
def test_every_tensor_is_what_pytorch_saved(name):
    found = torch_file.read_tensors(GOLDEN / f"{name}.pt")
    with np.load(GOLDEN / "torch_files.npz") as wanted:
        assert list(found) == list(wanted)
        for key, array in wanted.items():
            assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found[key], array)


@pytest.mark.parametrize("name", ["torch_zip", "torch_legacy"])
def test_views_of_one_storage_share_memory_and_stay_as_they_are(name):
    found = torch_file.read_tensors(str(GOLDEN / f"{name}.pt"))
    assert np.shares_memory(found["float32"], found["transposed"])
    assert not any(array.flags.writeable for array in found.values())
    assert all(array.flags.aligned for array in found.values())


@BOTH
def test_containers_numbers_and_strings_come_as_they_are(tmp_path, write):
    plain = {"step": 3, "rate": 1e-4, "deep": [1, (2, "é", {7: None})], "ema": True, "far": -(2**40), "none": ()}
    state = {"size": call("torch.Size", (2, 3)), "device": call("torch.device", "cuda", 0), "type": ask("torch.int8")}
    found = torch_file.read(write(tmp_path / "a.pt", {**plain, **state, "model": {"w": tensor()}}))
    np.testing.assert_array_equal(found.pop("model")["w"], VALUES.reshape(2, 3))
    assert found == {**plain, "size": (2, 3), "device": "cuda:0", "type": "int8"}


@BOTH
def test_newer_opcodes_and_python_2_strings_are_read(tmp_path, write):
    def short(text):
        return b"\x8c" + bytes([len(text)]) + text + b"\x94"

    newer = b"\x95" + bytes(8) + short(b"collections") + short(b"OrderedDict") + b"\x93)R\x94"
    older = ask("collections.OrderedDict") + b"(](](T\1\0\0\0aK\1ee" + b"tR"
    value = [newer + b"h\0K\7s}b", older, b"U\1z", b"M\1\2", b"J\xfe\xff\xff\xff"]
    found = torch_file.read(write(tmp_path / "a.pt", value, {}))
    assert found == [{"collections": 7}, {"a": 1}, "z", 513, -2]


@BOTH
@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        ("BFloat16Storage", np.array([0x3F80, 0xC040, 0x7F80, 0x0001], "<u2"), [1.0, -3.0, np.inf, 2.0**-133]),
        ("HalfStorage", np.array([1.0, -2.5], "<f2"), [1.0, -2.5]),
        ("BoolStorage", np.array([0, 1, 2, 255], "u1"), [False, True, True, True]),
        ("LongStorage", np.array([2**62, -1], "<i8"), [2**62, -1]),
        ("CharStorage", np.array([-128, 127], "i1"), [-128, 127]),
    ],
)
def test_each_type_keeps_its_numbers(tmp_path, write, kind, values, wanted):
    kept = storage(numel=len(values), kind=f"torch.{kind}")
    value = {"w": tensor(0, (len(values),), (1,), kept)}
    block = values.tobytes()
    given = {"data/0": block} if write is zipped else {"0": (len(values), block)}
    found = torch_file.read_tensors(write(tmp_path / "a.pt", value, given))["w"]
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == (np.float32 if kind == "BFloat16Storage" else bool if kind == "BoolStorage" else values.dtype)


@BOTH
@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ((0, (2, 3), (3, 1)), [[0, 1, 2], [3, 4, 5]]),
        ((0, (3, 2), (1, 3)), [[0, 3], [1, 4], [2, 5]]),
        ((1, (2, 2), (3, 1)), [[1, 2], [4, 5]]),
        ((5, (), ()), 5),
        ((2, (3,), (0,)), [2, 2, 2]),
        ((4, (1, 2), (2**62, 1)), [[4, 5]]),
        ((9, (0, 7), (1, 1)), np.zeros((0, 7))),
    ],
)
def test_a_view_holds_the_elements_that_its_strides_reach(tmp_path, write, place, wanted):
    found = torch_file.read_tensors(write(tmp_path / "a.pt", {"w": tensor(*place)}))["w"]
    np.testing.assert_array_equal(found, wanted)


def test_types_without_a_storage_class_are_read_from_bytes(tmp_path):
    """torch.uint16 and its kin: a storage of bytes, and a tensor that names its dtype."""
    kept = storage(numel=8, kind="torch.storage.UntypedStorage")
    hooks = call("collections.OrderedDict")
    given = (kept, 1, (3,), (1,), False, hooks, ask("torch.uint16"))
    block = np.array([7, 65535, 0, 1], "<u2").tobytes()
    path = zipped(tmp_path / "a.pt", {"w": call("torch._utils._rebuild_tensor_v3", *given)}, {"data/0": block})
    found = torch_file.read_tensors(path)["w"]
    assert found.tolist() == [65535, 0, 1]
    assert found.dtype == np.uint16


@BOTH
def test_a_bare_storage_comes_as_a_vector(tmp_path, write):
    np.testing.assert_array_equal(torch_file.read(write(tmp_path / "a.pt", storage())), VALUES)


def test_a_state_dict_of_anything_else_is_refused_by_name_and_type(tmp_path):
    path = zipped(tmp_path / "a.pt", {"w": tensor(), "step": 3, "model": {"w": tensor()}})
    assert torch_file.read(path)["step"] == 3
    with pytest.raises(ValueError, match=r"a\.pt: .* got step \(int\), model \(dict\)$"):
        torch_file.read_tensors(path)
    with pytest.raises(ValueError, match=r"a\.pt: must hold a dict of tensors by name, got a value of type ndarray"):
        torch_file.read_tensors(zipped(tmp_path / "a.pt", tensor()))
    with pytest.raises(ValueError, match=r"a\.pt: .* got 7 \(ndarray\)$"):
        torch_file.read_tensors(zipped(tmp_path / "a.pt", {7: tensor()}))


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"there is no {tmp_path}"):
        torch_file.read(tmp_path / name)
