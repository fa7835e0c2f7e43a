"""Published weights: the same numbers as PyTorch's, and nothing half-loaded.

`golden/` holds weights, inputs and outputs of PyTorch 2.13 on CPU in float32; diffusers_options is of diffusers 0.42.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from test_torch_file import storage, tensor, zipped

from ddpm_jax.interop import diffusers, noise_net, unet2d

GOLDEN = Path(__file__).parent / "golden"
LOADERS = {"noise_net": noise_net.load, "diffusers_unet2d": diffusers.load}
BOTH = pytest.mark.parametrize("name", LOADERS)
# For what runs once, compiling takes longer than running.
QUICK = {"xla_backend_optimization_level": 1}
# Settings of the published checkpoints as their config.json has them; widths made 1/4.
CELEBA_256 = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "block_out_channels": [32, 32, 64, 64, 128, 128],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 256,
}


def write_bin(path, tensors):
    """What torch.save writes of a state dict."""
    value, records = {}, {"byteorder": b"little", "version": b"3\n"}
    for i, (name, kept) in enumerate(tensors.items()):
        strides = tuple(stride // kept.itemsize for stride in kept.strides)
        value[name] = tensor(0, kept.shape, strides, storage(str(i), kept.size))
        records[f"data/{i}"] = kept.tobytes()
    return zipped(path, value, records)


@pytest.fixture
def copy(tmp_path):
    """Copies a golden case; then `change` edits its JSON and its tensors in place."""

    def make(name, change=lambda plain, tensors: None):
        plain = json.loads((GOLDEN / f"{name}.json").read_text())
        tensors = safetensors.numpy.load_file(GOLDEN / f"{name}.safetensors")
        change(plain, tensors)
        prefix = tmp_path / name
        Path(f"{prefix}.json").write_text(json.dumps(plain))
        safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, f"{prefix}.safetensors")
        return prefix

    return make


@pytest.fixture
def pipeline(tmp_path):
    """The golden network as a pipeline is laid out."""
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    shutil.copy(GOLDEN / "diffusers_unet2d.json", folder / "unet" / "config.json")
    shutil.copy(GOLDEN / "diffusers_unet2d.safetensors", folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


@BOTH
def test_outputs_agree_with_pytorch(name):
    module, variables = LOADERS[name](GOLDEN / name)
    case = np.load(GOLDEN / f"{name}.npz")
    output = jax.jit(module.apply, compiler_options=QUICK)(variables, case["x_t"], case["t"])
    np.testing.assert_allclose(output, case["output"], rtol=0, atol=2e-5)


def test_outputs_agree_with_pytorch_for_the_rarer_settings():
    """Heads, groups, scale_shift, blocks that resize, classes, twice the outputs, images that aren't square."""
    module, variables = diffusers.load(GOLDEN / "diffusers_options")
    wanted = {"num_heads": 2, "groups": 4, "num_classes": 3, "scale_shift_norm": True, "resblock_updown": True}
    assert {name: getattr(module, name) for name in wanted} == wanted
    case = np.load(GOLDEN / "diffusers_options.npz")
    output = jax.jit(module.apply, compiler_options=QUICK)(variables, case["x_t"], case["t"], case["labels"])
    np.testing.assert_allclose(output, case["output"], rtol=0, atol=5e-6)


@BOTH
def test_every_parameter_is_read_in_float32(name):
    _, variables = LOADERS[name](str(GOLDEN / name))
    stated = json.loads((GOLDEN / f"{name}.json").read_text())["parameters"]
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == stated
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_a_folder_of_the_hub_and_a_prefix_are_read_alike(tmp_path):
    shutil.copy(GOLDEN / "diffusers_unet2d.json", tmp_path / "config.json")
    shutil.copy(GOLDEN / "diffusers_unet2d.safetensors", tmp_path / "diffusion_pytorch_model.safetensors")
    (module, variables), (again, same) = diffusers.load(tmp_path), diffusers.load(GOLDEN / "diffusers_unet2d")
    assert module == again
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, same))


def test_a_pipelines_folder_is_read_from_its_unet(pipeline):
    (module, variables), (again, same) = diffusers.load(pipeline), diffusers.load(GOLDEN / "diffusers_unet2d")
    assert module == again
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, same))


def test_weights_in_a_bin_are_read_where_there_is_no_safetensors(pipeline):
    kept, older = diffusers.weights_file(pipeline), pipeline / "unet" / "diffusion_pytorch_model.bin"
    _, wanted = diffusers.load(pipeline)
    write_bin(older, safetensors.numpy.load_file(kept))
    assert diffusers.weights_file(pipeline) == kept
    kept.unlink()
    assert diffusers.weights_file(pipeline) == older
    assert jax.tree.all(jax.tree.map(np.array_equal, diffusers.load(pipeline)[1], wanted))


def test_a_pipeline_of_more_than_a_network_is_refused(pipeline):
    """Latent diffusion: what the network makes are no images."""
    index = {"unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"], "safety_checker": [None, None]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model_index.json must list a unet and a scheduler alone, got unet, vqvae$"):
        diffusers.load(pipeline)


def test_the_old_names_of_attention_are_read_as_the_new(copy):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(_, tensors):
        for name in list(tensors):
            for new, former in old.items():
                if f".{new}." in name:
                    tensors[name.replace(new, former)] = tensors.pop(name)
        assert not any("to_" in name for name in tensors)

    _, variables = diffusers.load(copy("diffusers_unet2d", rename))
    _, same = diffusers.load(GOLDEN / "diffusers_unet2d")
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, same))


def test_the_old_names_are_read_in_blocks_of_two_digits_too():
    assert diffusers._newer("up_blocks.1.attentions.12.proj_attn.bias") == "up_blocks.1.attentions.12.to_out.0.bias"


def test_the_256_networks_settings_are_ours(tmp_path):
    """google/ddpm-celebahq-256: six levels, attention at 16 x 16, the fifth of them."""
    plain = {**json.loads((GOLDEN / "diffusers_unet2d.json").read_text()), **CELEBA_256}
    net = unet2d.net(unet2d.read(plain, tmp_path), tmp_path)
    assert (net.multipliers, net.attention_levels) == ((1, 1, 2, 2, 4, 4), (4,))
    rename = diffusers._renamer(net)
    assert rename(["up4_block2_attention", "q", "kernel"]) == "up_blocks.1.attentions.2.to_q.weight"
    assert rename(["down0_resize", "bias"]) == "down_blocks.0.downsamplers.0.conv.bias"


NAME = {"noise_net": "ups.1.attn.to_qkv.weight", "diffusers_unet2d": "up_blocks.0.attentions.1.to_q.weight"}


@BOTH
def test_one_error_lists_all_that_is_missing_extra_and_misshapen(name, copy):
    bias = {"noise_net": "input_conv.bias", "diffusers_unet2d": "conv_in.bias"}[name]

    def spoil(plain, tensors):
        tensors["alien.weight"] = tensors.pop(NAME[name])[:1]
        tensors[bias] = tensors[bias][:-3]
        plain["parameters"] = sum(tensor.size for tensor in tensors.values())

    with pytest.raises(ValueError, match="the tensors don't fit the network") as caught:
        LOADERS[name](copy(name, spoil))
    faults = str(caught.value).split(": ", 1)[1].split("; ")
    wide = 16 if name == "noise_net" else 32
    assert sum(f"{NAME[name]} is missing" in fault for fault in faults) == 1
    assert sum("alien.weight [1, " in fault and "has no place" in fault for fault in faults) == 1
    assert f"{bias} becomes [{wide - 3}], but the parameter is [{wide}]" in faults
    assert len(faults) == 3


@BOTH
@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_a_missing_file_is_named(name, ending, copy):
    prefix = copy(name)
    Path(f"{prefix}.{ending}").unlink()
    with pytest.raises(FileNotFoundError, match=rf"there is no .*{name}\.{ending}"):
        LOADERS[name](prefix)


@BOTH
@pytest.mark.parametrize("kept", [0, 5, 1000, 100_000, -1])
def test_a_file_cut_short_is_refused(name, kept, copy):
    path = Path(f"{copy(name)}.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{name}\.safetensors is no whole safetensors file"):
        LOADERS[name](path.with_suffix(""))


@BOTH
@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "must hold a JSON object, got list")])
def test_settings_that_are_no_json_object_are_refused(name, text, message, copy):
    path = Path(f"{copy(name)}.json")
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        LOADERS[name](path.with_suffix(""))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip_sin_to_cos": True}, "flip_sin_to_cos must be False, got True$"),
        ({"freq_shift": 0}, "freq_shift must be 1, got 0$"),
        ({"downsample_padding": 1}, "downsample_padding must be 0, got 1$"),
        ({"norm_eps": 1e-5}, "norm_eps must be 1e-06, got 1e-05$"),
        ({"norm_num_groups": 24}, r"must be multiples of norm_num_groups 24 and of the first, got \[32, 64\]$"),
        ({"norm_num_groups": 0}, "must be multiples of norm_num_groups 0"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups must be norm_num_groups 32, got None$"),
        ({"resnet_time_scale_shift": "spatial"}, "there is no 'spatial'; choose from default, scale_shift$"),
        ({"attn_norm_num_groups": 16}, "attn_norm_num_groups must be norm_num_groups 32, got 16$"),
        ({"attention_head_dim": 24}, r"split the attending widths \[64\] into equally many heads, got 24$"),
        (
            {
                "attention_head_dim": 8,
                "down_block_types": ["AttnDownBlock2D"] * 2,
                "up_block_types": ["AttnUpBlock2D"] * 2,
            },
            r"split the attending widths \[32, 64\] into equally many heads, got 8$",
        ),
        ({"upsample_type": "resnet"}, "all levels must be resized alike, got .*with upsample_type 'resnet'$"),
        ({"downsample_type": "resnt"}, "downsample_type: there is no 'resnt', did you mean 'resnet'"),
        ({"num_class_embeds": 1}, "num_class_embeds must be 2 to 1000000, got 1$"),
        ({"class_embed_type": "timestep"}, "class_embed_type must be None, got 'timestep'$"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name must be 'UNet2DModel', got 'UNet2DConditionModel'$"),
        ({"down_block_types": ["DownBlock2D", "AttnDownBlok2D"]}, "down_block_types: .*did you mean 'AttnDownBlock2D'"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types must attend where down_block_types do"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types must have 2 entries"),
        ({"block_out_channels": [32, 48]}, r"block_out_channels must be multiples of .* 32 .*, got \[32, 48\]"),
        ({"block_out_channels": "32"}, "block_out_channels must be a list, got '32'"),
        ({"layers_per_blok": 2}, "layers_per_blok: there is no such field, did you mean 'layers_per_block'"),
    ],
)
def test_a_setting_that_our_unet_lacks_is_refused(change, message, copy):
    with pytest.raises(ValueError, match=message):
        diffusers.load(copy("diffusers_unet2d", lambda plain, tensors: plain.update(change)))


def test_a_setting_that_is_not_given_takes_the_default_of_the_library(copy):
    """UNet2DModel's own freq_shift is 0, which ours can't express."""
    with pytest.raises(ValueError, match=r"freq_shift must be 1, got 0 \(the default\)"):
        diffusers.load(copy("diffusers_unet2d", lambda plain, tensors: plain.pop("freq_shift")))


def test_a_name_in_both_fashions_is_refused(copy):
    name = "mid_block.attentions.0.query.bias"
    with pytest.raises(ValueError, match=rf"{name} \[64\] has no place in it$"):
        diffusers.load(copy("diffusers_unet2d", lambda plain, tensors: tensors.update({name: np.zeros(64)})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_dims": 16}, "init_dims: there is no such field, did you mean 'init_dim'"),
        ({"init_dim": 16.5}, "init_dim must be int, got 16.5"),
        ({"init_dim": 32}, "input_conv.bias becomes .16., but the parameter is .32."),
        ({"parameters": 5}, "parameters is 5, but .* holds 626369"),
    ],
)
def test_settings_that_are_not_noise_nets_are_refused(change, message, copy):
    with pytest.raises(ValueError, match=message):
        noise_net.load(copy("noise_net", lambda plain, tensors: plain.update(change)))
