"""OpenAI's checkpoints: the same numbers as PyTorch's, names both ways, and nothing half-loaded.

`golden/adm_*` holds weights, inputs and outputs of PyTorch 2.13 on CPU in float32. A transcription of the published
description, written for this, drew each weight from a generator with a fixed seed (none is zero) and ran; it agrees
with improved-diffusion's and guided-diffusion's own modules to 1.2e-6. `adm_improved.pt` is what torch.save wrote.
"""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ddpm_jax import nets
from ddpm_jax.cli import convert, flags
from ddpm_jax.interop import openai, weights
from ddpm_jax.nets.adm import ADM

GOLDEN = Path(__file__).parent / "golden"
SMALL = ADM(features=8, groups=4, multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,), num_classes=3)
PLAIN = dataclasses.replace(SMALL, num_classes=0)
CASES = {
    "adm_improved.pt": SMALL,
    "adm_guided.safetensors": dataclasses.replace(
        PLAIN, multipliers=(0.5, 1), head_features=4, qkv_by_head=False, resblock_updown=True
    ),
    "adm_lsun.safetensors": dataclasses.replace(
        PLAIN, multipliers=(1,), num_res_blocks=2, attention_levels=(0,), num_heads=1, scale_shift_norm=False
    ),
}
EACH = pytest.mark.parametrize("name", CASES)
ADM64 = ADM(features=192, multipliers=(1, 2, 3, 4), attention_levels=(1, 2, 3), resblock_updown=True, num_classes=9)


def read(name):
    """The tensors of a case, and its weights as ADM takes them."""
    path = GOLDEN / name
    return openai.READERS[path.suffix](path), openai.load(path, CASES[name], 3)


@EACH
def test_outputs_agree_with_pytorch(name):
    """A fractional time among them, and the ends; with labels where there are classes."""
    _, variables = read(name)
    case = np.load((GOLDEN / name).with_suffix(".npz"))
    labels = [case["labels"]] if "labels" in case else []
    run = jax.jit(CASES[name].apply, compiler_options={"xla_backend_optimization_level": 0})
    output = run(variables, case["x_t"], case["t"], *labels)
    np.testing.assert_allclose(output, case["output"], rtol=0, atol=1e-5)
    assert np.abs(case["output"]).max() > 1


@EACH
def test_what_was_read_is_written_bit_for_bit(name):
    tensors, variables = read(name)
    written = openai.collect(variables, CASES[name])
    assert written.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(written[key], tensor, strict=True)


def test_every_kind_of_file_is_read_alike(tmp_path):
    tensors, variables = read("adm_improved.pt")
    safetensors.numpy.save_file(dict(tensors), tmp_path / "same.safetensors")
    for ending in (".pth", ".bin"):
        shutil.copy(GOLDEN / "adm_improved.pt", tmp_path / f"same{ending}")
    for path in tmp_path.iterdir():
        again = openai.load(path, CASES["adm_improved.pt"], 3)
        assert jax.tree.all(jax.tree.map(np.array_equal, again, variables))
        assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {jnp.dtype("float32")}


def test_blocks_are_numbered_as_they_are_published():
    """ADM's 64x64 network: 16 lists of layers down, 16 up; the last block of a level up also enlarges."""
    rename = openai.names(ADM64)
    assert rename(["down3_block2", "conv1", "kernel"]) == "input_blocks.15.0.in_layers.2.weight"
    assert rename(["down0_resize", "norm2", "scale"]) == "input_blocks.4.0.out_layers.0.weight"
    assert rename(["up3_block0", "shortcut", "bias"]) == "output_blocks.0.0.skip_connection.bias"
    assert rename(["up3_resize", "emb", "kernel"]) == "output_blocks.3.2.emb_layers.1.weight"
    assert rename(["up0_block3", "conv2", "kernel"]) == "output_blocks.15.0.out_layers.3.weight"
    assert rename(["classes", "embedding"]) == "label_emb.weight"
    plain = openai.names(ADM())
    assert plain(["down0_resize", "kernel"]) == "input_blocks.4.0.op.weight"
    assert plain(["up1_resize", "kernel"]) == "output_blocks.11.2.conv.weight"
    assert openai.names(ADM(attention_levels=()))(["up1_resize", "bias"]) == "output_blocks.11.1.conv.bias"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"num_classes": 4}, r"label_emb.weight becomes \[3, 32\], but the parameter is \[4, 32\]"),
        ({"num_classes": 0}, r"label_emb.weight \[3, 32\] has no place in it"),
        ({"null_class": True}, r"label_emb.weight becomes \[3, 32\], but the parameter is \[4, 32\]"),
        ({"out_channels": 3}, r"out.2.bias becomes \[6\], but the parameter is \[3\]"),
        ({"attention_levels": ()}, r"input_blocks.3.1.qkv.weight \[48, 16, 1\] has no place in it"),
        ({"scale_shift_norm": False}, r"middle_block.0.emb_layers.1.bias becomes \[32\], but the parameter is \[16\]"),
        ({"resblock_updown": True}, r"input_blocks.2.0.op.weight \[8, 8, 3, 3\] has no place in it"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_by_tensor(change, fault):
    with pytest.raises(ValueError, match=fault):
        openai.load(GOLDEN / "adm_improved.pt", dataclasses.replace(SMALL, **change), 3)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    module = CASES["adm_improved.pt"]
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        openai.load(tmp_path / "nothing.pt", module, 3)
    shutil.copy(GOLDEN / "adm_improved.pt", tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"model\.ckpt must end in \.pt or .* or \.safetensors, got '\.ckpt'"):
        openai.load(tmp_path / "model.ckpt", module, 3)
    whole = (GOLDEN / "adm_improved.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.pt"):
        openai.load(tmp_path / "cut.pt", module, 3)


def test_collect_keeps_a_pixelwise_convolution_as_it_is_told():
    kernel = np.arange(6.0, dtype=np.float32).reshape(1, 1, 2, 3)
    variables = {"params": {"q": {"kernel": kernel}, "dense": {"kernel": kernel[0, 0]}, "wide": {"kernel": kernel}}}
    got = weights.collect(variables, ".".join, dense=lambda name: name.startswith("q"))
    np.testing.assert_array_equal(got["q.kernel"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(got["dense.kernel"], [[0, 3], [1, 4], [2, 5]])
    assert got["wide.kernel"].shape == (3, 2, 1, 1)


def test_collect_refuses_what_could_not_be_read_back():
    pair = {"a": {"bias": np.zeros(2)}, "b": {"bias": np.ones(2)}}
    with pytest.raises(ValueError, match=r"bias would be the name of two parameters, one of them b\.bias"):
        weights.collect({"params": pair}, lambda path: path[-1])
    wide = {"params": {"a": {"kernel": np.zeros((3, 3, 1, 1))}}}
    with pytest.raises(ValueError, match=r"a\.kernel can't be a dense layer: .* shape \[3, 3, 1, 1\]"):
        weights.collect(wide, ".".join, dense=lambda name: True)


PUBLISHED = {
    273_049_350: "--preset iddpm_imagenet64 --net.features 192 --net.num-classes 1000 --diffusion.time-range 4000 "
    "--diffusion.vlb-weight 0.00025",
    113_676_678: "--preset iddpm_imagenet64 --data.shape 256 256 3 --net.multipliers 1 1 2 2 4 4 "
    "--net.num-res-blocks 2 --net.attention-levels 4 --net.num-heads 1 --net.no-scale-shift-norm "
    "--diffusion.schedule linear --diffusion.num-steps 1000",
    553_838_086: "--preset adm64 --data.shape 256 256 3 --net.features 256 --net.multipliers 1 1 2 2 4 4 "
    "--net.num-res-blocks 2 --net.attention-levels 3 4 5 --net.qkv-by-head --net.dropout 0 --diffusion.schedule linear",
}


@pytest.mark.parametrize("count", PUBLISHED)
def test_the_flags_in_a_presets_docstring_are_those_of_the_published_network(count):
    args = PUBLISHED[count].split()
    said = " ".join((flags.PRESETS / f"{args[1]}.py").read_text().split())
    assert f"({count:,}" in said
    assert PUBLISHED[count] in said
    default = convert.Read(config=flags.load_preset(args[1]))
    config = flags.parse(convert.Read, args, prog="convert", default=default).config
    module = nets.build(config)
    small = (32, 32, 3)  # parameters don't depend on the images' size
    plan = jax.eval_shape(lambda key: nets.init(key, module, small), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(plan)) == count
