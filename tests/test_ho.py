"""Ho et al.'s checkpoints: the outputs of their own network, and nothing half-loaded.

`golden/ho_tiny` was written by TensorFlow 2.21 on CPU running Ho et al.'s `models/unet.py` with ch=4, ch_mult=(1, 2),
num_res_blocks=1 and attention at 4 x 4, on random weights, averages and an optimizer's slots; the .npz holds inputs and
outputs, float32. One thing was put in: tf.contrib's group norm, gone from TensorFlow 2, with epsilon 1e-6, and with
groups of four channels, as our UNet has them where a width is below 32.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop import ho, tensor_bundle
from ddpm_jax.interop.ho import AVERAGE
from ddpm_jax.nets import NoiseNet, UNet

GOLDEN = Path(__file__).parent / "golden" / "ho_tiny"
MODULE = UNet(features=4, multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,))
APPLY = jax.jit(MODULE.apply)


def names_of(module, size):
    """Their name for every parameter, with its shape."""
    plan = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)), jnp.zeros(1))["params"]
    rename = ho._renamer(ho._tops(module))
    return {rename([entry.key for entry in path]): leaf.shape for path, leaf in jax.tree.leaves_with_path(plan)}


@pytest.fixture
def change(monkeypatch):
    """Lets `ho.load` see the golden tensors as `edit` leaves them."""

    def make(edit):
        tensors = tensor_bundle.read_tensors(GOLDEN)
        edit(tensors)
        monkeypatch.setattr(tensor_bundle, "names", lambda prefix: sorted(tensors))
        chosen = lambda prefix, wanted: {name: tensor for name, tensor in tensors.items() if wanted(name)}  # noqa: E731
        monkeypatch.setattr(tensor_bundle, "read_tensors", chosen)

    return make


@pytest.mark.parametrize(("ema", "which"), [(True, "output"), (False, "output_raw")])
def test_outputs_agree_with_tensorflow(ema, which):
    case = np.load(GOLDEN.with_suffix(".npz"))
    variables = ho.load(GOLDEN, MODULE, 3, ema=ema)
    output = APPLY(variables, case["x_t"], case["t"].astype(np.float32))
    np.testing.assert_allclose(output, case[which], rtol=0, atol=1e-5)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == case["parameters"]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_the_published_networks_names_are_told_apart():
    """CIFAR-10: 35.7M parameters, each with a name of its own, among them those that Ho et al.'s code prints."""
    shapes = names_of(UNet(), 8)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 35_746_307
    assert shapes["model/temb/dense0/W"] == (128, 512)
    assert shapes["model/down_1/block_0/nin_shortcut/W"] == (1, 1, 128, 256)
    assert shapes["model/down_2/downsample/conv/b"] == (256,)
    assert shapes["model/mid/attn_1/proj_out/W"] == (1, 1, 256, 256)
    assert shapes["model/up_1/attn_2/norm/beta"] == (256,)
    assert shapes["model/up_3/block_2/temb_proj/W"] == (512, 256)
    assert shapes["model/norm_out/gamma"] == (128,)


def test_one_error_lists_all_that_is_missing_extra_and_misshapen(change):
    def spoil(tensors):
        tensors[f"model/alien/W{AVERAGE}"] = tensors.pop(f"model/temb/dense1/W{AVERAGE}")[:, :3]
        del tensors["model/temb/dense1/W"]
        bias = f"model/conv_in/b{AVERAGE}"
        tensors[bias] = tensors[bias][:-1]

    change(spoil)
    with pytest.raises(ValueError, match="the tensors don't fit the network") as caught:
        ho.load(GOLDEN, MODULE, 3)
    faults = str(caught.value).split(": ", 1)[1].split("; ")
    assert f"model/alien/W{AVERAGE} [16, 3] has no place in it" in faults
    assert f"model/temb/dense1/W{AVERAGE} is missing, for a parameter of shape [16, 16]" in faults
    assert f"model/conv_in/b{AVERAGE} becomes [3], but the parameter is [4]" in faults
    # The weight's own slots are then of nothing that is there.
    assert len(faults) == 5
    assert sum("model/temb/dense1/W/Adam" in fault for fault in faults) == 2


@pytest.mark.parametrize("ema", [True, False])
def test_a_tensor_that_no_optimizer_keeps_is_refused(change, ema):
    change(lambda tensors: tensors.update({"model/conv_in/W/Adamant": np.zeros((3, 2), np.float32)}))
    with pytest.raises(ValueError, match=r"model/conv_in/W/Adamant \[3, 2\] has no place in it$"):
        ho.load(GOLDEN, MODULE, 3, ema=ema)


def test_an_average_of_nothing_is_refused(change):
    change(lambda tensors: tensors.update({f"model/alien/b{AVERAGE}": np.zeros(3, np.float32)}))
    with pytest.raises(ValueError, match=rf"model/alien/b{AVERAGE} \[3\] has no place in it$"):
        ho.load(GOLDEN, MODULE, 3, ema=False)


def test_a_checkpoint_without_averages_says_so(change):
    def strip(tensors):
        for name in [name for name in tensors if name.endswith(AVERAGE)]:
            del tensors[name]

    change(strip)
    with pytest.raises(ValueError, match=r"ho_tiny\.index names no moving average .*; ema=False reads"):
        ho.load(GOLDEN, MODULE, 3)
    assert jax.tree.leaves(ho.load(GOLDEN, MODULE, 3, ema=False))


def test_one_average_that_is_missing_is_not_made_up_from_the_weight(change):
    """The weight itself would fit its place: it may not stand in for its average in silence."""
    change(lambda tensors: tensors.pop(f"model/conv_out/W{AVERAGE}"))
    with pytest.raises(ValueError, match="the tensors don't fit the network") as caught:
        ho.load(GOLDEN, MODULE, 3)
    assert f"model/conv_out/W{AVERAGE} is missing, for a parameter of shape [3, 3, 4, 3]" in str(caught.value)
    assert "model/conv_out/W [3, 3, 4, 3] has no place in it" in str(caught.value)


def test_whole_numbers_are_no_weights(change):
    name = f"model/conv_out/b{AVERAGE}"
    change(lambda tensors: tensors.update({name: tensors[name].astype(np.int32)}))
    with pytest.raises(
        ValueError, match=r"fit the network: model/conv_out/b/.*Average must be of .*float32, float64, got int32$"
    ):
        ho.load(GOLDEN, MODULE, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 4}, "groups must be 32, as in Ho et al.'s network, got 4"),
        ({"num_heads": 2}, "num_heads must be 1, .* got 2"),
        ({"num_classes": 10}, "num_classes must be 0, .* got 10"),
        ({"scale_shift_norm": True}, "scale_shift_norm must be False, .* got True"),
        ({"resblock_updown": True}, "resblock_updown must be False, .* got True"),
        ({"features": 8}, r"model/conv_in/W becomes \[3, 3, 3, 4\], but the parameter is \[3, 3, 3, 8\]"),
        ({"attention_levels": (0, 1)}, "model/down_0/attn_0/k/W is missing, for a parameter of shape"),
        ({"attention_levels": ()}, r"model/up_1/attn_1/q/W \[8, 8\] has no place in it"),
        ({"num_res_blocks": 2}, "model/up_0/block_2/conv1/W is missing"),
        ({"multipliers": (1, 1)}, r"model/down_1/block_0/nin_shortcut/W \[4, 8\] has no place in it"),
    ],
)
def test_a_network_that_is_not_the_checkpoints_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ho.load(GOLDEN, dataclasses.replace(MODULE, **settings), 3, ema=False)


def test_other_channels_and_other_networks_are_refused():
    with pytest.raises(
        ValueError, match=r"model/conv_in/W becomes \[3, 3, 3, 4\], but the parameter is \[3, 3, 1, 4\]"
    ):
        ho.load(GOLDEN, MODULE, 1, ema=False)
    with pytest.raises(ValueError, match="the network must be a UNet, got NoiseNet"):
        ho.load(GOLDEN, NoiseNet(), 3)  # pyright: ignore[reportArgumentType]


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*model\.ckpt-790000\.index"):
        ho.load(tmp_path / "model.ckpt-790000", MODULE, 3)
