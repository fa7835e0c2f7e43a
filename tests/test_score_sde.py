"""score_sde's Flax checkpoints: the outputs of its own network, and nothing half-loaded.

`golden/score_sde_tiny.msgpack` holds random weights of score_sde's `models/ddpm.py` with nf=4, ch_mult=(1, 2),
num_res_blocks=1 and attention at 4 x 4, in a training state without the optimizer's moments, written by Flax 0.12; the
.npz has that code's outputs on CPU, float32. One thing was put in: a group norm with groups of four channels, as our
UNet has them where a width is below 32, and parameters of shape [1, 1, 1, C], as Flax 0.3.1 made them.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization

from ddpm_jax.interop import score_sde
from ddpm_jax.nets import UNet

GOLDEN = Path(__file__).parent / "golden" / "score_sde_tiny.msgpack"
MODULE = UNet(features=4, multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,))
APPLY = jax.jit(MODULE.apply)
PLACE = ("params_ema", "Conv_0", "bias")


def array(shape=(4,), dtype: object = "float32", data=bytes(16), code=1):
    """An array as Flax packs it."""
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


@pytest.fixture
def changed(tmp_path):
    """Writes the golden state as `edit` leaves it."""

    def make(edit):
        state = msgpack.unpackb(GOLDEN.read_bytes())
        edit(state)
        path = tmp_path / "checkpoint_8"
        path.write_bytes(msgpack.packb(state))
        return path

    return make


def put(value, place=PLACE):
    def edit(state):
        for key in place[:-1]:
            state = state[key]
        state[place[-1]] = value

    return edit


@pytest.mark.parametrize(("ema", "which"), [(True, "output"), (False, "output_raw")])
def test_outputs_agree_with_score_sde(ema, which):
    case = np.load(GOLDEN.with_suffix(".npz"))
    variables = score_sde.load(GOLDEN, MODULE, 3, ema=ema)
    output = APPLY(variables, case["x_t"], case["t"])
    np.testing.assert_allclose(output, case[which], rtol=0, atol=1e-5)
    leaves = jax.tree.leaves(variables["params"])
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    silent = variables["params"]["up1_block0_attention"]
    assert not silent["out"]["kernel"].any()
    assert silent["v"]["kernel"].any()
    assert sum(leaf.size for leaf in leaves) == case["parameters"] + sum(leaf.size for leaf in jax.tree.leaves(silent))


def test_the_cifar10_network_has_35_218_947_parameters_of_theirs():
    """Ours has 35,746,307: two more blocks of attention over 256 channels on the way up."""
    plan = jax.eval_shape(UNet().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))["params"]
    tops, silent = score_sde._tops(UNet())
    assert list(silent.values()) == [256, 256]
    assert sum(leaf.size for name in plan if tops[name] not in silent for leaf in jax.tree.leaves(plan[name])) == (
        35_218_947
    )
    assert len({tops[name] for name in plan}) == len(plan)
    assert tops["middle_block1"] == "ResnetBlockDDPM_9"
    assert tops["up0_block2"] == "ResnetBlockDDPM_21"
    assert tops["middle_attention"] == "AttnBlock_2"
    assert tops["up1_block2_attention"] == "AttnBlock_3"
    assert tops["up1_resize"] == "Upsample_2/Conv_0"


def test_large_arrays_are_read_in_the_chunks_that_flax_cuts(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
    path = tmp_path / "checkpoint_8"
    path.write_bytes(serialization.msgpack_serialize(serialization.msgpack_restore(GOLDEN.read_bytes())))
    assert path.read_bytes().count(b"__msgpack_chunked_array__") > 50
    whole, joined = (score_sde.read_tensors(name, ("params_ema",)) for name in (GOLDEN, path))
    assert whole.keys() == joined.keys()
    assert all(np.array_equal(whole[name], joined[name]) for name in whole)


def test_a_norm_as_flax_writes_it_today_is_read_too(changed):
    norm = {"scale": array((4,)), "bias": array((1, 1, 1, 4))}
    tensors = score_sde.read_tensors(changed(put(norm, ("params_ema", "GroupNorm_0"))), ("params_ema",))
    assert tensors["GroupNorm_0/scale"].shape == tensors["GroupNorm_0/bias"].shape == (4,)


def test_one_error_lists_all_that_is_missing_extra_and_misshapen(changed):
    def spoil(state):
        params = state["params_ema"]
        params["Dense_7"] = {"kernel": array((2, 2))}
        params["Conv_0"]["bias"] = array((2, 2))
        del params["AttnBlock_1"]["NIN_2"]["W"]

    with pytest.raises(ValueError, match="the tensors don't fit the network") as caught:
        score_sde.load(changed(spoil), MODULE, 3)
    faults = str(caught.value).split(": ", 1)[1].split("; ")
    assert sorted(faults) == [
        "AttnBlock_1/NIN_2/W is missing, for a parameter of shape [1, 1, 8, 8]",
        "Conv_0/bias becomes [2, 2], but the parameter is [4]",
        "Dense_7/kernel [2, 2] has no place in it",
    ]


def without(start):
    def edit(state):
        for name in [name for name in state["params_ema"] if name.startswith(start)]:
            del state["params_ema"][name]

    return edit


def renamed(state):
    state["params_ema"]["ResnetBlockBigGANpp_0"] = state["params_ema"].pop("ResnetBlockDDPM_0")


def chunks(**fields):
    return put({"__msgpack_chunked_array__": True, **fields})


FIVE = {str(i): array() for i in range(5)}
FAULTS = {
    "layers of kind ResnetBlockBigGANpp; only score_sde's model 'ddpm'": renamed,
    "has no Dense_0: .* conditional=False: it isn't told the time": without("Dense_"),
    "has no Downsample_0: that network has resamp_with_conv=False": without("Downsample_"),
    "it holds no params_ema": lambda state: state.pop("params_ema"),
    "it holds no params_ema$": lambda state: state.update(params=state.pop("params_ema")),
    "its params_ema is empty": lambda state: state.update(params_ema={}),
    "extension type 4, Flax writes 1 to 3 alone": put(array(code=4)),
    "extension type 77, ": put(array(code=77), ("rng",)),
    "Conv_0/bias must be an array, got ExtType": put(array(code=2)),
    "Conv_0/bias must be an array, got list": put([0.0] * 4),
    "Conv_0/bias must be an array, got NoneType": put(None),
    "Conv_0/bias is of dtype 'object'": put(array(dtype="object")),
    "Conv_0/bias is of dtype 'V4'": put(array(dtype="V4")),
    "Conv_0/bias is of dtype 'bool'": put(array(dtype="bool")),
    "Conv_0/bias is of dtype .'f4'.": put(array(dtype=["f4"])),
    r"must have the size of float32 \[5\], got 16 bytes": put(array((5,))),
    r"must have the size of float32 \[4611686018427387904\], got 16": put(array((2**62,))),
    "isn't a shape of whole numbers, a dtype and bytes": put(array((-4,))),
    "isn't a shape of whole numbers, a dtype and bytes$": put(array((4.0,))),
    "a shape of whole numbers, a dtype and bytes$": put(array((0, 2**62, 2**62), data=b"")),
    "fit the network: Conv_0/bias must be of .*, got int32$": put(array(dtype="int32")),
    "Conv_0/bias isn't a shape, a dtype and bytes": put(msgpack.ExtType(1, msgpack.packb([1, 2]))),
    "exceeds max_array_len|exceeds max": put(array((1,) * 100)),
    "holds more levels of names": put({"a": {"b": {"c": array()}}}),
    "'a b' in 'Conv_0' is no name": put(array(), ("params_ema", "Conv_0", "a b")),
    "'none after up1_block0' in '' is no name": put({}, ("params_ema", "none after up1_block0")),
    "Conv_0/bias isn't a shape and the chunks of an array": chunks(shape={"0": 4}),
    "isn't a shape and the chunks of an array$": chunks(shape={"0": 4}, chunks={"1": array()}),
    "a shape and the chunks of an array$": chunks(shape={"0": "4"}, chunks={"0": array()}),
    r"Conv_0/bias of shape \[21\] has 20 numbers": chunks(shape={"0": 21}, chunks=FIVE),
    r"Conv_0/bias of shape \[1073741824\] has 20 numbers": chunks(shape={"0": 2**30}, chunks=FIVE),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_hostile_or_foreign_state_is_refused(message, changed):
    with pytest.raises(ValueError, match=message):
        score_sde.load(changed(FAULTS[message]), MODULE, 3)


def test_no_cut_goes_unnoticed(tmp_path):
    data, path = GOLDEN.read_bytes(), tmp_path / "checkpoint_8"
    for kept in [*range(200), *range(200, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:kept])
        with pytest.raises(ValueError, match="checkpoint_8 is no whole training state of Flax's"):
            score_sde.read_tensors(path, ("params_ema",))


TWICE = b"\x82\xa1a\x01\xa1a\x02"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOLDEN.read_bytes() + b"\0", "extra data"),
        (TWICE, "names something twice among a, a"),
        (b"\x81\x01\x02", "int is not allowed for map key"),
        (b"\x81\xc4\x01a\x02", "a name that isn't text"),
        (b"\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
        (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
        (b"\xc6\xff\xff\xff\xff", "incomplete input"),
        (b"\xc9\xff\xff\xff\xff\x01", "exceeds max_ext_len|incomplete input"),
        (b"\x81\xa1a" * 5000, "StackError"),
        (b"\x91" * 5000, "StackError"),
        (b"\xc1", "FormatError"),
        (b"\xa1\xff", "can't decode byte"),
        (b"PK\x03\x04 a zip file", "extra data"),
        (b"\x80\x04\x95.", "extra data"),
        (msgpack.packb([1, 2]), "it holds no params_ema"),
    ],
)
def test_bytes_that_are_no_state_are_refused(data, message, tmp_path):
    path = tmp_path / "checkpoint_8"
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"checkpoint_8 is no whole training state of Flax's: .*(?:{message})"
    ) as caught:
        score_sde.load(path, MODULE, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 4}, "groups must be 32"),
        ({"num_heads": 2}, "num_heads must be 1"),
        ({"attention_levels": ()}, r"AttnBlock_1/NIN_0/W \[8, 8\] has no place in it"),
        ({"attention_levels": (0, 1)}, "AttnBlock_4/NIN_0/W is missing"),
        ({"num_res_blocks": 2}, "ResnetBlockDDPM_11/Conv_0/kernel is missing"),
    ],
)
def test_a_network_that_is_not_the_checkpoints_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        score_sde.load(GOLDEN, dataclasses.replace(MODULE, **settings), 3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*checkpoint_26, which should hold"):
        score_sde.load(tmp_path / "checkpoint_26", MODULE, 3)
