"""Checkpoints whose pickles are hostile or junk: one clear line each, and nothing happens."""

import os
import pickle
import tracemalloc

import pytest
from test_torch_file import BOTH, ask, call, program, storage, streamed, tensor, zipped

from ddpm_jax.torch_files import torch_file, torch_pickle


def refusal(path, read=torch_file.read):
    """The one line of the error, after a look at whether anything was written."""
    before = {item: item.read_bytes() for item in path.parent.iterdir()}
    with pytest.raises(ValueError, match=path.name) as caught:
        read(path)
    assert {item: item.read_bytes() for item in path.parent.iterdir()} == before
    message = str(caught.value)
    assert caught.type is ValueError
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(path)) + 250
    return message


def called(marker):
    """Names with arguments: what each would do is to make the file `marker`, or to get at what could."""
    made = f"open({marker!r}, 'w').close()"
    return {
        "os.system": (f"touch {marker}",),
        "posix.system": (f"touch {marker}",),
        "nt.system": (f"touch {marker}",),
        "os.popen": (f"touch {marker}",),
        "os.mkdir": (marker,),
        "os.open": (marker, os.O_CREAT),
        "posix.mkfifo": (marker,),
        "os.execv": ("/bin/touch", ["touch", marker]),
        "subprocess.Popen": (["touch", marker],),
        "subprocess.run": (["touch", marker],),
        "subprocess.check_output": (["touch", marker],),
        "builtins.exec": (made,),
        "builtins.eval": (made,),
        "builtins.open": (marker, "w"),
        "builtins.compile": (made, "a", "exec"),
        "builtins.getattr": (ask("os.path"), "os"),
        "builtins.__import__": ("os",),
        "builtins.map": (ask("os.mkdir"), [marker]),
        "builtins.print": (marker,),
        "builtins.bytearray": (2**40,),
        "__builtin__.eval": (made,),
        "io.open": (marker, "w"),
        "_io.FileIO": (marker, "w"),
        "codecs.open": (marker, "w"),
        "codecs.decode": ("", "rot13"),
        "_codecs.encode": ("", "latin1"),
        "importlib.import_module": ("antigravity",),
        "functools.partial": (ask("os.mkdir"), marker),
        "functools.reduce": (ask("os.mkdir"), [marker]),
        "operator.attrgetter": ("__class__",),
        "operator.methodcaller": ("mkdir", marker),
        "types.CodeType": (0,),
        "types.FunctionType": (0, {}),
        "webbrowser.open": (f"file://{marker}",),
        "pathlib.Path.write_text": (call("pathlib.PosixPath", marker), ""),
        "pathlib.PosixPath": (marker,),
        "shutil.rmtree": (marker,),
        "shutil.copy": ("/etc/hostname", marker),
        "runpy.run_path": (marker,),
        "timeit.timeit": (made,),
        "pdb.run": (made,),
        "pty.spawn": (["touch", marker],),
        "socket.create_connection": (("localhost", 9),),
        "logging.FileHandler": (marker,),
        "tempfile.mkdtemp": (marker,),
        "ctypes.CDLL": (marker,),
        "pickle.loads": ("",),
        "numpy.load": (marker, None, True),
        "numpy.save": (marker, 0),
        "numpy._core.multiarray._reconstruct": (ask("numpy.ndarray"), (0,), "b"),
        "torch.load": (marker,),
        "torch.save": (0, marker),
        "torch.hub.load": ("nobody/nothing", "net"),
        "torch.nn.modules.linear.Linear": (1, 1),
        "torch.storage._load_from_bytes": ("",),
        "torch._utils._rebuild_sparse_tensor": (0, ()),
        "torch.float8_e4m3fn": (),
        "collections.OrderedDict.__init__": (),
        "collections.defaultdict": (ask("os.getcwd"),),
        "ddpm_jax.files.write": (marker, ""),
    }


@BOTH
@pytest.mark.parametrize("name", called("marker"))
def test_a_file_that_asks_for_anything_else_runs_nothing(tmp_path, write, name):
    marker = tmp_path / "marker"
    payload = call(name, *called(str(marker))[name])
    path = write(tmp_path / "model.pt", {"w": tensor(), "x": payload})
    assert refusal(path).endswith(
        f"refused: the file asks for {name}; a checkpoint needs tensors and plain containers only"
    )
    assert not marker.exists()


@pytest.mark.parametrize("place", ["magic", "protocol", "system", "keys"])
def test_every_pickle_of_a_stream_is_read_with_the_same_care(tmp_path, place):
    marker = tmp_path / "marker"
    path = streamed(tmp_path / "model.pt", tensor(), **{place: call("os.system", f"touch {marker}")})
    assert "the file asks for os.system" in refusal(path)
    assert not marker.exists()


def test_python_s_own_reader_would_have_run_them(tmp_path):
    """So the payloads above are real ones."""
    for name in ("os.system", "builtins.exec", "pathlib.Path.write_text"):
        marker = tmp_path / name
        payload = call(name, *called(str(marker))[name])
        if name == "pathlib.Path.write_text":
            payload = payload.replace(b"cpathlib.Path\nwrite_text\n", b"\x8c\7pathlib\x8c\x0fPath.write_text\x93")
        pickle.loads(b"\x80\x04" + program(payload)[2:])
        assert marker.exists()


NETWORK = ask("collections.OrderedDict")
REDUCED = {
    "a call of what isn't callable": (b"K\1)R", "calls 1 with"),
    "a call of a storage type": (call("torch.FloatStorage", 2**40), "calls torch.FloatStorage"),
    "a call of a dtype": (call("torch.float32"), "calls torch.float32"),
    "a call without a tuple": (NETWORK + b"]R", "calls collections.OrderedDict"),
    "OrderedDict of a string": (call("collections.OrderedDict", "junk"), "needs pairs"),
    "OrderedDict of two": (call("collections.OrderedDict", [], []), "takes 0 to 1 arguments, got 2"),
    "OrderedDict with tuple keys": (call("collections.OrderedDict", [((), 1)]), "keys must be strings"),
    "Size of strings": (call("torch.Size", ("a",)), "torch.Size needs"),
    "Size of a negative": (call("torch.Size", (-1,)), "torch.Size needs"),
    "device of a list": (call("torch.device", []), "torch.device needs"),
    "parameter of a number": (call("torch._utils._rebuild_parameter", 1, True, None), "a parameter needs a tensor"),
    "attributes of a function": (ask("torch.device") + b"}b", "sets attributes of torch.device"),
    "attributes of a dict": (b"}}b", "sets attributes"),
    "attributes from a list": (NETWORK + b")R]b", "sets attributes"),
    "attributes from a pair": (NETWORK + b")RN}\x86b", "sets attributes"),
    "NEWOBJ": (NETWORK + b")\x81", "opcode NEWOBJ"),
    "NEWOBJ_EX": (NETWORK + b")}\x92", "opcode NEWOBJ_EX"),
    "INST": (b"(ios\nsystem\n", "opcode INST"),
    "OBJ": (b"(" + NETWORK + b"o", "opcode OBJ"),
    "EXT1": (b"\x82\1", "opcode EXT1"),
    "EXT2": (b"\x83\1\0", "opcode EXT2"),
    "EXT4": (b"\x84\1\0\0\0", "opcode EXT4"),
    "PERSID": (b"P0\n", "opcode PERSID"),
    "BYTEARRAY8": (b"\x96" + b"\xff" * 8, "opcode BYTEARRAY8"),
    "NEXT_BUFFER": (b"\x97", "opcode NEXT_BUFFER"),
    "LONG4": (b"\x8b\xff\xff\xff\x7f", "opcode LONG4"),
    "no opcode": (b"\xff", "unknown to Python"),
    "a name of no text": (b"K\1K\2\x93", "isn't a name"),
    "a name with an escape": (b"cos\n\x1b[2J\rsystem\n", "refused: the file asks for 'os.\\x1b[2J\\rsystem'"),
    "a name without an end": (b"c" + b"a" * 3000, "a name that doesn't end"),
    "a name that isn't UTF-8": (b"c\xff\nx\n", "isn't UTF-8"),
    "a function for a value": (NETWORK, "holds collections.OrderedDict itself"),
    "a storage type for a value": (ask("torch.FloatStorage"), "holds torch.FloatStorage itself"),
    "an empty stack": (b"R", "never made"),
    "no mark": (b"t", "never opened"),
    "an open mark": (b"(", "never made"),
    "values left over": (b"NN", "left over"),
    "a memo never kept": (b"h\7", "recalls value 7"),
    "items of a list": (b"]K\1K\2s", "sets 2 keys and values"),
    "appending to a tuple": (b")K\1a", "appends to"),
    "half an item": (b"}(K\1u", "sets 1 keys"),
    "a dict as a key": (b"}}K\1s", "keys must be strings"),
    "a vast number as a key": (b"}" + b"\x8a\x10" + b"\x7f" * 16 + b"K\1s", "keys must be strings"),
    "a string of negative length": (b"T\xff\xff\xff\xff", "length -1"),
    "a string of 4 GB": (b"X\xff\xff\xff\xff", "cut short"),
    "a string that isn't UTF-8": (b"X\1\0\0\0\xff", "isn't UTF-8"),
    "a list that holds itself": (b"]q\0h\0a", "or one holds itself"),
    "a dict that holds itself": (b"}q\0X\1\0\0\0ah\0s", "or one holds itself"),
    "a cycle through a tuple": (b"]q\0h\0\x85a", "or one holds itself"),
    "nesting": (b"]" * 200 + b"a" * 199, "nested deeper"),
    "nesting of tuples": (b")" + b"\x85" * 1000, "nested deeper"),
    "nesting of what was read before": (b"](" + b")" + b"\x85" * 90 + b"q\0h\0" + b"\x85" * 90 + b"e", "nested deeper"),
}
DECLARED = {
    "no tuple": (b"K\1Q", "got 1"),
    "too few": (b"(NNtQ", "got a value of type tuple"),
    "another kind": (b"X\1\0\0\0aNNNN(NNNNNtQ", "got a value of type tuple"),
    "no type": (b"(X\7\0\0\0storageNX\1\0\0\x000NK\6tQ", "declared as None"),
    "a function for a type": (storage(kind="torch.device"), "declared as torch.device"),
    "a number for a key": (storage(key=0), "key 0"),
    "a negative size": (storage(numel=-1), "size -1"),
    "a size of True": (storage(numel=True), "size True"),
    "a size far beyond the file": (storage(numel=2**40), "takes 4398046511104 bytes of the file's"),
    "a size beyond 64 bits": (storage(numel=2**64), "size 18446744073709551616"),
    "an unknown key": (storage(key="../../etc/passwd"), "no data for storage ../../etc/passwd"),
    "another size": (storage(numel=5), "must take 20 bytes, got 24"),
    "two sizes": (b"(" + storage() + storage(numel=5) + b"t", "declared twice"),
    "two types": (b"(" + storage() + storage(numel=6, kind="torch.IntStorage") + b"t", "declared twice"),
}
PLACED = {
    "beyond the end": (tensor(0, (7,), (1,)), "reaches to element 6"),
    "beyond by its offset": (tensor(4, (3,), (1,)), "reaches to element 6"),
    "beyond by its stride": (tensor(0, (2,), (6,)), "reaches to element 6"),
    "of a vast stride": (tensor(0, (2,), (2**62,)), "outside its storage"),
    "of a vast shape": (tensor(0, (2**62, 2**62), (1, 1)), "outside its storage"),
    "of a vast shape that stands still": (tensor(0, (2**40,), (0,)), "more than 16777216 elements"),
    "of a vast empty shape": (tensor(0, (0, 2**62), (1, 1)), "more than 16777216 elements"),
    "of a negative offset": (tensor(-1), "offset must be"),
    "of a negative stride": (tensor(5, (3,), (-1,)), "strides must be"),
    "of a negative size": (tensor(0, (-1,), (1,)), "shape must be"),
    "of a size beyond 64 bits": (tensor(0, (2**64,), (0,)), "shape must be"),
    "of 65 axes": (tensor(0, (1,) * 65, (1,) * 65), "at most 64"),
    "of a stride too few": (tensor(0, (2, 3), (1,)), "as many strides, got 1"),
    "of a string for a shape": (tensor(0, "ab", (1, 1)), "shape must be"),
    "of a list for a shape": (tensor(0, [6], (1,)), "shape must be"),
    "of numbers with a point": (tensor(0, (2.0,), (1,)), "shape must be"),
    "of truth": (tensor(True, (1,), (1,)), "offset must be"),
    "over no storage": (tensor(0, (1,), (1,), kept=b"N"), "needs a storage, got None"),
    "over a storage type": (tensor(0, (1,), (1,), kept=ask("torch.FloatStorage")), "needs a storage"),
    "conjugated": (tensor(more=({"conj": True},)), "conjugated"),
    "with junk for bits": (tensor(more=(7,)), "conjugated"),
    "with too many arguments": (tensor(more=(None, None)), "takes 6 to 7 arguments, got 8"),
    "with too few": (call("torch._utils._rebuild_tensor_v2", storage()), "takes 6 to 7 arguments, got 1"),
    "of bytes without a dtype": (call("torch._utils._rebuild_tensor_v3", *[None] * 7), "needs a dtype"),
    "of a dtype over floats": (
        call("torch._utils._rebuild_tensor_v3", storage(), 0, (1,), (1,), False, None, ask("torch.int64")),
        "over float32",
    ),
}


@pytest.mark.parametrize(("value", "why"), REDUCED.values(), ids=REDUCED)
@BOTH
def test_a_pickle_of_junk_is_refused(tmp_path, write, value, why):
    assert why in refusal(write(tmp_path / "model.pt", value, {}))


@pytest.mark.parametrize(("value", "why"), DECLARED.values(), ids=DECLARED)
def test_a_storage_declared_wrongly_is_refused(tmp_path, value, why):
    assert why in refusal(zipped(tmp_path / "model.pt", value))


@pytest.mark.parametrize(("value", "why"), PLACED.values(), ids=PLACED)
@BOTH
def test_a_tensor_never_reaches_outside_its_storage(tmp_path, write, value, why):
    assert why in refusal(write(tmp_path / "model.pt", {"w": value}), torch_file.read_tensors)


@BOTH
def test_what_a_small_file_claims_takes_no_memory(tmp_path, write):
    claims = [
        (storage(numel=2**33), "takes 34359738368 bytes"),
        (b"X\xff\xff\xff\xff", "cut short"),
        (b"Nr\xff\xff\xff\xff" + b"R", "never made"),
        (b"\x8a\xff", "cut short"),
        (b"\x95" + b"\xff" * 8 + b"R", "never made"),
        ([tensor(0, (2**20,), (0,)) for _ in range(40)], "more than 16777216 elements"),
    ]
    paths = [write(tmp_path / f"{i}.pt", value) for i, (value, _) in enumerate(claims)]
    tracemalloc.start()
    try:
        for path, (_, why) in zip(paths, claims, strict=True):
            assert why in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_lists_that_share_lists_are_read_once(tmp_path):
    """Ten times itself, forty times over: 10^40 lists if each were followed."""
    shared = b"]"
    for _ in range(40):
        shared = b"](" + shared + b"q\0" + b"h\0" * 9 + b"e"
    found = torch_file.read(zipped(tmp_path / "a.pt", shared))
    assert len(found) == 10
    assert found[0] is found[9]


def test_a_pickle_without_end_is_given_up(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.pt", b"]" * 20_000)
    assert f"more than {1024 + path.stat().st_size // 2} steps" in refusal(path)
    monkeypatch.setattr(torch_pickle, "_MOST_STEPS", 1000)
    assert "more than 1000 steps" in refusal(path)
