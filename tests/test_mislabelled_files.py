"""Checkpoints that are cut short, damaged or something else: one clear line that says so."""

import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from test_hostile_files import refusal
from test_torch_file import GOLDEN, MAGIC, SYSTEM, VALUES, program, storage, streamed, tensor, zipped

from ddpm_jax.torch_files import torch_file

NAMES = pytest.mark.parametrize("name", ["torch_zip", "torch_legacy"])


def tarred():
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return packed.getvalue()


def saved(write, *args, **kwargs):
    packed = io.BytesIO()
    write(packed, *args, **kwargs)
    return packed.getvalue()


OTHERS = {
    "empty": (b"", "the file is empty"),
    "zeros": (bytes(4096), "zeros only"),
    "spaces": (b" \n\n", "isn't a PyTorch checkpoint"),
    "text": (b"{\n  'model': 1 }", "this is text, not a PyTorch checkpoint: it begins with {"),
    "text with a brace": (b"model = {'w': 1}", "this is text"),
    "one letter": (b"P", "this is text"),
    "an error in words": (b"404: Not Found", "this is text, not a PyTorch checkpoint: it begins with 404:"),
    "a pickle of protocol 0": (b"cos\nsystem\n(S'ls'\ntR.", "this is text"),
    "a web page": (b"\n<!DOCTYPE html>\n<html>", "this is a web page"),
    "a web page in capitals": (b"<HTML lang='en'><body>\xc3\xa9", "this is a web page"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a git-lfs pointer"),
    "safetensors": (safetensors.numpy.save({"w": VALUES}), "this is a safetensors file"),
    "gzip": (gzip.compress(b"weights"), "compressed with gzip"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "npy": (saved(np.save, VALUES), "a NumPy array"),
    "npz": (saved(np.savez, w=VALUES), "this is a zip, but not by torch.save"),
    "compressed npz": (saved(np.savez_compressed, w=VALUES), "this is a zip, but not by torch.save"),
    "an empty zip": (b"PK\5\6" + bytes(18), "this is a zip, but not by torch.save"),
    "tar": (tarred(), "before 0.1.10"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "this isn't a PyTorch checkpoint"),
    "bytes": (bytes(range(200, 256)), "this isn't a PyTorch checkpoint"),
    "another pickle": (program({"w": 1}), "a pickle, but not by torch.save"),
    "another opcode": (b"\x80\x04\x8e", "opcode BINBYTES8"),
    "the magic number alone": (program(MAGIC), "cut short"),
}
SYSTEMS = {
    "a big-endian machine": ({"system": SYSTEM | {"little_endian": False}}, "little-endian"),
    "a machine that doesn't say": ({"system": {}}, "little-endian"),
    "no machine": ({"system": 7}, "little-endian"),
    "another protocol": ({"protocol": 1002}, "must be 1001, got 1002"),
    "no protocol": ({"protocol": None}, "must be 1001, got None"),
    "a list without keys": ({"keys": []}, "must name 1, each once"),
    "a list of two": ({"keys": ["0", "0"]}, "must name 1, each once"),
    "a list of others": ({"keys": ["1"]}, "must name 1, each once"),
    "a list of numbers": ({"keys": [0]}, "must name 1, each once"),
    "no list": ({"keys": "0"}, "must name 1, each once"),
    "another number of elements": ({"storages": {"0": (7, bytes(28))}}, "declared with 6 elements"),
    "a negative number": ({"storages": {"0": (-6, VALUES.tobytes())}}, "declared with 6 elements"),
    "a storage cut short": ({"storages": {"0": (6, bytes(23))}}, "takes 24 bytes, and 23 are left"),
}
DATA = {"data/0": VALUES.tobytes()}
RECORDS = {
    "no data": ({}, "no data for storage 0"),
    "data cut short": ({"data/0": bytes(23)}, "must take 24 bytes, got 23"),
    "data too long": ({"data/0": bytes(25)}, "must take 24 bytes, got 25"),
    "big-endian numbers": (DATA | {"byteorder": b"big"}, "byte order must be little, got b'big'"),
    "junk for byte order": (DATA | {"byteorder": b"\n" * 999}, "byte order must be little"),
    "TorchScript": (DATA | {"code/__torch__.py": b"import os"}, "a TorchScript archive"),
    "TorchScript's constants": (DATA | {"constants.pkl": b""}, "a TorchScript archive"),
}


@pytest.mark.parametrize(("data", "why"), OTHERS.values(), ids=OTHERS)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, data, why):
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    assert why in refusal(path)


@pytest.mark.parametrize(("given", "why"), SYSTEMS.values(), ids=SYSTEMS)
def test_a_stream_of_wrong_parts_is_refused(tmp_path, given, why):
    assert why in refusal(streamed(tmp_path / "model.pt", tensor(), **given))


@pytest.mark.parametrize(("records", "why"), RECORDS.values(), ids=RECORDS)
def test_a_zip_of_wrong_records_is_refused(tmp_path, records, why):
    assert why in refusal(zipped(tmp_path / "model.pt", tensor(), records))


@pytest.mark.parametrize("root", ["", "a/b/", "../../a/"])
def test_a_zip_without_one_folder_is_refused(tmp_path, root):
    assert "this is a zip, but not by torch.save" in refusal(zipped(tmp_path / "model.pt", tensor(), root=root))


def test_names_that_climb_out_of_the_zip_write_nothing(tmp_path):
    records = {**DATA, "../../../climbed": b"x", "/climbed": b"x"}
    assert torch_file.read(zipped(tmp_path / "a.pt", tensor(), records, root="../")).shape == (2, 3)
    assert [item.name for item in tmp_path.rglob("*")] == ["a.pt"]


def test_a_zip_bomb_is_refused(tmp_path):
    bomb = {"data/0": bytes(2**24)}
    value = storage(numel=2**22)
    path = zipped(tmp_path / "model.pt", value, bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**16
    assert "is compressed or encrypted" in refusal(path)


def _edited(path, change):
    """The zip with the entry of data/0 in its directory changed."""
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"archive/data/0") - 46
    change(data, entry)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("layout", "offset", "values", "why"),
    [
        ("<H", 8, [1], "compressed or encrypted"),
        ("<H", 10, [8], "compressed or encrypted"),
        ("<I", 24, [2**31], "compressed or encrypted"),
        ("<II", 20, [2**31, 2**31], "entries claim"),
        ("<II", 20, [20, 20], "checksum differs"),
        ("<I", 16, [0], "checksum differs"),
        ("<I", 42, [7], "where the zip says"),
        ("<I", 42, [2**31], "where the zip says"),
        ("<H", 6, [99], "it starts as a zip, but"),
    ],
)
def test_a_zip_whose_directory_lies_is_refused(tmp_path, layout, offset, values, why):
    path = zipped(tmp_path / "model.pt", tensor())
    assert why in refusal(_edited(path, lambda data, entry: struct.pack_into(layout, data, entry + offset, *values)))


def test_two_entries_of_one_name_are_refused(tmp_path):
    path = zipped(tmp_path / "model.pt", tensor(), {**DATA, "data/1": DATA["data/0"]})
    path.write_bytes(path.read_bytes().replace(b"data/1", b"data/0"))
    assert "the same name" in refusal(path)


@NAMES
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
    whole = (GOLDEN / f"{name}.pt").read_bytes()
    path = tmp_path / "model.pt"
    for length in sorted({*range(0, len(whole), 29), *range(len(whole) - 30, len(whole)), *range(30)}):
        path.write_bytes(whole[:length])
        refusal(path)


@NAMES
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_gives_arrays_or_one_clear_error(tmp_path, name, seed):
    """Up to eight bytes changed, two hundred times: never another exception."""
    whole = (GOLDEN / f"{name}.pt").read_bytes()
    rng = np.random.default_rng(seed)
    path, refusals = tmp_path / "model.pt", []
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(len(data) if rng.random() < 0.5 else 1500, size=rng.integers(1, 9)):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            found = torch_file.read_tensors(path)
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert all(len(array.tobytes()) == array.nbytes for array in found.values())
    assert len(refusals) > 50
    assert all(message.startswith(f"{path}: ") and len(message.splitlines()) == 1 for message in refusals)
