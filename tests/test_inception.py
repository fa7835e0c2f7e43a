"""FID's Inception network against torch-fidelity's, on random weights (see golden/record_features.py)."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from golden.random_weights import tensor
from test_torch_file import storage, zipped
from test_torch_file import tensor as stored

from ddpm_jax.evaluation import features, inception
from ddpm_jax.torch_files import torch_file

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN / "features.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def state(recorded):
    """torch-fidelity's state dict, with random weights."""
    return {str(name): tensor(name, _shape(shape)) for name, shape in _named(recorded)}


@pytest.fixture(scope="module")
def built(state, tmp_path_factory):
    """The features over a file as PyTorch would save that state dict, which holds 95 MB."""
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    records, program = {"byteorder": b"little", "version": b"3\n"}, {}
    for number, (name, value) in enumerate(state.items()):
        records[f"data/{number}"] = value.tobytes()
        strides = tuple(stride // 4 for stride in value.strides)
        program[name] = stored(0, value.shape, strides, kept=storage(str(number), value.size))
    zipped(file, program, records)
    found = features.build(f"inception:{file}")
    file.unlink()
    return found


def _named(recorded):
    return zip(recorded["inception/names"], recorded["inception/shapes"], strict=True)


def _shape(text):
    return tuple(int(word) for word in str(text).strip("(),").split(","))


def test_convolutions_have_the_names_and_shapes_of_torch_fidelity(recorded):
    theirs = {str(name): _shape(shape) for name, shape in _named(recorded) if name.endswith(".conv.weight")}
    assert {f"{name}.conv.weight": shape for name, shape in inception.kernels().items()} == theirs
    assert len(theirs) == 94


@pytest.mark.parametrize("name", ["photos", "odd", "digits"])
def test_features_and_logits_are_those_of_torch_fidelity(built, recorded, name):
    found = built.extract(recorded[name])
    for ours, theirs in ((found.features, name), (found.logits, f"{name}/logits")):
        wanted = recorded[f"inception/{theirs}"]
        assert np.abs(ours - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_an_image_s_features_do_not_depend_on_its_neighbour(built, recorded):
    pair = np.stack([recorded["photos"][1], recorded["photos"][1]])
    found = built.extract(pair).features
    wanted = recorded["inception/photos"][1]
    np.testing.assert_allclose(found, np.stack([wanted, wanted]), rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_what_is_compared_says_its_resize_and_which_weights(built):
    assert built.name == "Inception2015"
    for word in ("299x299", "TensorFlow 1", "(x - 128) / 128", "weights.pth (SHA-256 "):
        assert word in built.preprocessing


@pytest.mark.parametrize("shape", [(8, 5), (299, 299), (400, 301), (1, 2), (1, 1)])
def test_the_resize_takes_pixel_i_from_between_those_at_i_n_over_299(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    wanted = pixels.astype(np.float64)
    for axis, n in enumerate(shape):
        places = np.arange(299) * n / 299  # beyond the last pixel np.interp repeats it
        wanted = np.apply_along_axis(lambda line: np.interp(places, np.arange(n), line), axis, wanted)
    ours = np.asarray(inception.prepare(jnp.asarray(pixels[None])))[0] * 128 + 128
    np.testing.assert_allclose(ours, wanted, atol=0.02)  # places are float32, as TensorFlow's


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("Conv2d_1a_3x3.conv.weight", lambda x: None, "there is no tensor"),
        ("Mixed_6e.branch_pool.bn.running_mean", lambda x: None, "there is no tensor"),
        ("Mixed_7c.branch3x3dbl_3b.conv.weight", lambda x: x.swapaxes(2, 3), "a float of shape (384, 384, 3, 1), got"),
        ("fc.weight", lambda x: x[:1000], "a float of shape (1008, 2048), got float32 (1000, 2048)"),  # torchvision's
        ("fc.bias", lambda x: None, "there is no tensor"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(monkeypatch, state, name, change, complaint):
    kept = {key: change(value) if key == name else value for key, value in state.items()}
    kept = {key: value for key, value in kept.items() if value is not None}
    monkeypatch.setattr(torch_file, "read_tensors", lambda path: kept)
    with pytest.raises(ValueError, match=r"^x\.pth: these are not the weights of FID's Inception network: ") as told:
        inception.load(Path("x.pth"))
    assert name in str(told.value)
    assert complaint in str(told.value)


def test_another_network_s_file_is_refused_by_the_first_tensor_that_it_lacks():
    with pytest.raises(ValueError, match=r"torch_zip\.pt: .* there is no tensor Conv2d_1a_3x3\.conv\.weight"):
        features.build(f"inception:{GOLDEN / 'torch_zip.pt'}")
