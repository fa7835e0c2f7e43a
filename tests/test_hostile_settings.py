"""Settings and weights that are hostile or junk: one line each that names the file, at once and in little memory."""

import contextlib
import json
import os
import shutil
import struct
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ddpm_jax.cli import convert
from ddpm_jax.config import Diffusion, Sampling
from ddpm_jax.interop import diffusers, noise_net, schedulers, weights
from ddpm_jax.interop.whole import new_folder
from ddpm_jax.nets import UNet

GOLDEN = Path(__file__).parent / "golden"
LOADERS = {"noise_net": noise_net.load, "diffusers_unet2d": diffusers.load}
DEEP = {
    "block_out_channels": [32] * 60,
    "down_block_types": ["DownBlock2D"] * 60,
    "up_block_types": ["UpBlock2D"] * 60,
}
WIDE = {name: value[:16] for name, value in DEEP.items()}
UNETS = [
    (DEEP, "block_out_channels must be at most 16 widths up to 65536, got 60 up to 32$"),
    (WIDE | {"layers_per_block": 64}, "there must be at least 20480 tensors in .*, got 144$"),
    ({"block_out_channels": [32, 2**33]}, "at most 16 widths up to 65536, got 2 up to 8589934592$"),
    ({"block_out_channels": []}, r"block_out_channels must be multiples .*, got \[\]$"),
    ({"block_out_channels": [32] * 10**5}, "got 100000 up to 32$"),
    ({"up_block_types": ["UpBlock2D"] * 10**5}, "up_block_types must have 2 entries, one a level, got 100000$"),
    ({"in_channels": 0}, "in_channels must be 1 to 64, got 0$"),
    ({"in_channels": -1}, "in_channels must be 1 to 64, got -1$"),
    ({"in_channels": 10**9}, "in_channels must be 1 to 64, got 1000000000$"),
    ({"out_channels": 0}, "out_channels must be 1 to 128, got 0$"),
    ({"out_channels": -1}, "out_channels must be 1 to 128, got -1$"),
    ({"layers_per_block": 10**8}, "layers_per_block must be 1 to 64, got 100000000$"),
    ({"layers_per_block": 300}, "layers_per_block must be 1 to 64, got 300$"),
    ({"layers_per_block": 64}, "there must be at least 2560 tensors in .*, got 144$"),
    ({"layers_per_block": 0}, "layers_per_block must be 1 to 64, got 0$"),
    ({"layers_per_block": -1}, "layers_per_block must be 1 to 64, got -1$"),
    ({"num_class_embeds": 2**40}, "num_class_embeds must be 2 to 1000000, got 1099511627776$"),
    ({"num_class_embeds": -2}, "num_class_embeds must be 2 to 1000000, got -2$"),
    ({"dropout": float("nan")}, r"dropout must lie in \[0, 1\), got nan$"),
    ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0$"),
    ({"dropout": 10**400}, "is not JSON: it holds a whole number of 401 digits$"),
]
NOISE_NETS = [
    ({"channels": 0}, "channels must be 1 to 64, got 0$"),
    ({"channels": 10**9}, "channels must be 1 to 64, got 1000000000$"),
    ({"image_dim": 0}, "image_dim must be 1 to 65536, got 0$"),
    ({"init_dim": 2**33}, "init_dim must be 1 to 65536, got 8589934592$"),
    ({"dim_mults": []}, r"dim_mults must be 1 to 16 numbers from 1 to 1024, got \(\)$"),
    ({"dim_mults": [1] * 60}, r"dim_mults must be 1 to 16 numbers from 1 to 1024, got \(1, 1, .*$"),
    ({"dim_mults": [1, 2**33]}, r"dim_mults must be 1 to 16 numbers from 1 to 1024, got \(1, 8589934592\)$"),
    ({"dim_mults": [1, 0]}, r"dim_mults must be 1 to 16 numbers from 1 to 1024, got \(1, 0\)$"),
]
SCHEDULERS = [
    ({"num_train_timesteps": 3 * 10**8, "trained_betas": [0.1]}, "must be 2 to 100000, got 300000000$"),
    ({"num_train_timesteps": 3 * 10**8}, "must be 2 to 100000, got 300000000$"),
    ({"num_train_timesteps": -1}, "must be 2 to 100000, got -1$"),
    ({"num_train_timesteps": 10**5, "trained_betas": [0.1] * 9}, "trained_betas must be 100000 numbers, got 9$"),
    ({"trained_betas": [float("nan")] * 1000}, "trained_betas is a list without a name, .* at t = 0 it has nan"),
    ({"beta_start": float("nan")}, r"beta_start must lie in \(0, 1\], got nan$"),
    ({"beta_end": 5.0}, r"beta_end must lie in \(0, 1\], got 5.0$"),
    ({"beta_end": -0.1}, r"beta_end must lie in \(0, 1\], got -0.1$"),
]


@pytest.fixture
def copy(tmp_path):
    """Copies a golden case, with settings and tensors changed."""

    def make(name, settings=None, tensors=None):
        plain = json.loads((GOLDEN / f"{name}.json").read_text()) | (settings or {})
        (tmp_path / f"{name}.json").write_text(json.dumps(plain))
        if tensors is None:
            shutil.copy(GOLDEN / f"{name}.safetensors", tmp_path)
        else:
            kept = safetensors.numpy.load_file(GOLDEN / f"{name}.safetensors")
            safetensors.numpy.save_file(kept | tensors, tmp_path / f"{name}.safetensors")
        return tmp_path / name

    return make


@contextlib.contextmanager
def refused(message):
    """One line, not a page, within five seconds."""
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        yield
    assert caught.type is ValueError
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("settings", "message"), UNETS, ids=[message for _, message in UNETS])
def test_settings_of_no_network_are_refused_before_it_is_laid_out(settings, message, copy):
    with refused(rf"diffusers_unet2d\.json.*{message}"):
        diffusers.load(copy("diffusers_unet2d", settings))


@pytest.mark.parametrize(("settings", "message"), NOISE_NETS, ids=[message for _, message in NOISE_NETS])
def test_settings_of_no_noise_net_are_refused_before_it_is_laid_out(settings, message, copy):
    with refused(rf"noise_net\.json\.{message}"):
        noise_net.load(copy("noise_net", settings))


@pytest.mark.parametrize(("settings", "message"), SCHEDULERS, ids=[message for _, message in SCHEDULERS])
def test_settings_of_no_scheduler_are_refused_before_it_is_built(settings, message):
    with refused(rf"^s\.json: .*{message}"):
        schedulers.read(settings, Path("s.json"), Diffusion(), Sampling())


@pytest.mark.parametrize("size", [0, -3, 2**40, [8], [8, 0], ["8", 8], [8] * 10**5])
def test_a_size_of_no_image_is_refused(size, copy):
    with refused(r"unet2d\.json: sample_size must be a number of pixels up to 65536, or height and width, got "):
        diffusers.describe(copy("diffusers_unet2d", {"sample_size": size}), convert.Config())


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_settings_nested_too_deep_are_refused(name, text, copy):
    prefix = copy(name)
    prefix.with_suffix(".json").write_text(text)
    with refused(rf"{name}\.json is not JSON that is read: its lists or objects are nested too deep$"):
        LOADERS[name](prefix)


def test_the_deepest_network_takes_no_memory_to_lay_out():
    """Its smallest image has 2^30 pixels: shapes alone are looked at."""
    module = UNet(features=4, multipliers=(1,) * 16, num_res_blocks=1, attention_levels=(), groups=2)
    with pytest.raises(ValueError, match="the tensors don't fit the network: "):
        weights.fill(module, 3, 15, {}, ".".join)


BIAS = "conv_in.bias"
TENSORS = {
    "must be of bfloat16, float16, float32, float64, got int32$": np.zeros(32, np.int32),
    "must be of bfloat16, float16, float32, float64, got bool$": np.zeros(32, bool),
    "must be of .*, got complex64$": np.zeros(32, np.complex64),
    "holds 1 numbers that aren't finite in float32$": np.array([np.nan] + [0] * 31, np.float32),
    "holds 2 numbers that aren't finite in float32$": np.array([np.inf, -np.inf] + [0] * 30, np.float16),
    "holds 32 numbers that aren't finite in float32$": np.full(32, 1e300),
}


@pytest.mark.parametrize("message", TENSORS)
def test_tensors_that_are_no_weights_are_refused(message, copy):
    with refused(f"the tensors don't fit the network: {BIAS} {message}"):
        diffusers.load(copy("diffusers_unet2d", tensors={BIAS: TENSORS[message]}))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_every_float_is_read_as_float32(dtype, copy):
    kept = np.linspace(-1, 1, 32).astype(dtype)
    _, variables = diffusers.load(copy("diffusers_unet2d", tensors={BIAS: kept}))
    bias = variables["params"]["conv_in"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, kept.astype(np.float32))


@pytest.mark.parametrize(("dtype", "size"), [("F8_E4M3", 4), ("F8_E5M2", 4), ("F8_E8M0", 4), ("F4", 2), ("F9", 4)])
def test_a_safetensors_file_of_another_float_is_named(dtype, size, tmp_path):
    header = json.dumps({"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, size]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with refused(r"w\.safetensors (holds tensors of a type that isn't read|is no whole safetensors file)"):
        weights.read_tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.safetensors"])
def test_a_file_of_tensors_is_told_by_its_name(name, tmp_path):
    """A safetensors file begins with its header's length, which may be the byte that Flax's begin with."""
    (tmp_path / name).write_bytes(b"\x88\0\0\0\0\0\0\0{")
    assert convert.guess(tmp_path / name) == "openai"


def test_what_a_killed_program_left_beside_a_folder_is_removed(tmp_path):
    """No process has the number 999,999,999: Linux stops at 2^22."""
    left, running = ".run.999999999.tmp", f".run.{os.getppid()}.tmp"
    kept = {running, ".ran.999999999.tmp", ".run.x.tmp", "run.999999999.tmp"}
    for name in {left, *kept}:
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    with new_folder(tmp_path / "run") as beside:
        (beside / "config.json").write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"run", *kept}
