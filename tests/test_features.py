"""What a word for features builds, what it holds images to, and what it says of a word that means nothing."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.evaluation import features

GOLDEN = Path(__file__).parent / "golden"
OWN = '''
import numpy as np
import jax.numpy as jnp

SIZE = 3

def means(images):
    """Mean of each channel, as bytes.

    More.
    """
    return images.mean((1, 2))

def wide(images):
    return images.reshape(len(images), -1)[:, :2] > 10

def host(images):
    return np.asarray(images).mean((1, 2))

def whole(images):
    return images

def broken(images):
    raise KeyError("no such layer")
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own, its folder on the path."""
    (tmp_path / "my_features.py").write_text(OWN)
    (tmp_path / "bad_features.py").write_text("import numpy\nimport not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="module")
def efficientnet():
    return features.build("efficientnet")


@pytest.fixture(scope="module")
def photos():
    with np.load(GOLDEN / "features.npz") as arrays:
        return arrays["photos"]


def test_efficientnet_says_its_resolution_resize_and_weights(efficientnet):
    assert efficientnet.name == "EffNetLite0@64"
    for word in ("64x64", "antialiased bilinear", "(x - 127) / 128", "efficientnet-lite0-57934424.pth", "57934424)"):
        assert word in efficientnet.preprocessing
    assert "\n" not in efficientnet.preprocessing
    other = features.build("efficientnet:128")
    assert (other.name, other.preprocessing[:7]) == ("EffNetLite0@128", "128x128")


def test_gray_images_count_as_three_equal_channels(efficientnet, photos):
    gray = photos[..., :1]
    found, wanted = efficientnet.extract(gray), efficientnet.extract(gray.repeat(3, axis=-1))
    assert found.features.shape == (2, 1280)
    assert found.logits.shape == (2, 1000)
    assert found.features.dtype == found.logits.dtype == np.float32
    np.testing.assert_array_equal(found.features, wanted.features)


def test_passed_as_an_argument_its_weights_are_not_compiled_in(efficientnet, photos):
    run = jax.jit(lambda extract, images: extract(images))
    assert len(jax.tree.leaves(efficientnet.extract)) == 100
    assert len(run.lower(efficientnet.extract, photos).as_text()) < 1_000_000  # the weights alone take 18 MB


def test_pixels_are_the_image_from_minus_one_to_one():
    images = np.array([0, 255, 51, 204], np.uint8).reshape(1, 2, 2, 1)
    found = features.build("pixels").extract(images)
    np.testing.assert_allclose(found.features, [[-1, 1, -0.6, 0.6]], atol=1e-6)
    assert found.logits is None
    assert features.build("pixels").extract(np.zeros((2, 3, 5, 3), np.uint8)).features.shape == (2, 45)


@pytest.mark.usefixtures("own")
def test_a_function_of_the_user_s_own_is_called_by_its_module_and_name():
    built = features.build("my_features:means")
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    for extract in (built.extract, jax.jit(built.extract)):
        found = extract(images)
        np.testing.assert_allclose(found.features, images.mean((1, 2)), rtol=1e-6)
        assert found.logits is None
    assert built.name == "my_features:means"
    said = "as my_features:means does it: Mean of each channel, as bytes.; source (SHA-256 "
    assert built.preprocessing.startswith(said)
    assert features.build("my_features:wide").extract(images).features.dtype == jnp.float32


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("whole", "features my_features:whole: it must return [2, D], got [2, 4, 4, 1]"),
        ("broken", "features my_features:broken: the function raised KeyError: 'no such layer'"),
        ("host", "it must be written in jax.numpy, as it is compiled"),
    ],
)
def test_a_function_that_returns_something_else_is_told_so(name, complaint):
    built = features.build(f"my_features:{name}")
    with pytest.raises(ValueError, match=re.escape(complaint)):
        jax.jit(built.extract)(np.zeros((2, 4, 4, 1), np.uint8))


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "float32 [2, 8, 8, 3]"),
        (np.zeros((2, 8, 8, 3), np.int64), "int64 [2, 8, 8, 3]"),
        (np.zeros((8, 8, 3), np.uint8), "uint8 [8, 8, 3]"),
        (np.zeros((2, 8, 8, 4), np.uint8), "uint8 [2, 8, 8, 4]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "uint8 [0, 8, 8, 3]"),
        (np.zeros((2, 0, 8, 3), np.uint8), "uint8 [2, 0, 8, 3]"),
        ([[[[1]]]], "list [1, 1, 1, 1]"),
        ("x.png", "str []"),
    ],
)
@pytest.mark.parametrize("name", ["efficientnet", "pixels"])
def test_other_images_are_refused_with_what_they_are(efficientnet, name, images, got):
    built = efficientnet if name == "efficientnet" else features.build(name)
    with pytest.raises(
        ValueError, match=re.escape(f"images must be uint8 [B, H, W, 1 or 3], none of them 0, got {got}")
    ):
        built.extract(images)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("eficientnet", "there is no 'eficientnet', did you mean 'efficientnet'?; known are efficientnet[:RESOLUTION]"),
        ("incepton:weights.pth", "there is no 'incepton:weights.pth'"),
        ("", "there is no ''; known are"),
        (":f", "there is no ':f'; known are"),
        ("efficientnet:31", "must be a whole number, 32 to 512, got '31'"),
        ("efficientnet:64.0", "got '64.0'"),
        ("efficientnet:99999999999", "got '99999999999'"),
        ("inception", "inception:FILE.pth; pytorch-fid publishes one as pt_inception-2015-12-05-6726825d.pth"),
        ("pixels:3", "pixels takes nothing behind a colon, got '3'"),
        ("no_such_module:f", "there is no module no_such_module; known are"),
        ("my_features.more:f", "there is no module my_features.more"),
        ("my_features.py:means", "name a module that Python can import, not a file"),
        ("my_features:mean", "my_features has no function mean, did you mean 'means'?"),
        ("my_features:SIZE", "my_features has no function SIZE"),
        ("my_features:_hidden.f", "there is no 'my_features:_hidden.f'"),
        ("bad_features:f", "importing bad_features raised ModuleNotFoundError: No module named 'not_there_at_all'"),
    ],
)
def test_a_word_that_means_nothing_is_refused_with_what_is_known(spec, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        features.build(spec)


def test_a_file_of_weights_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"no_such\.pth"):
        features.build("inception:no_such.pth")
