"""Sets that TFDS holds or prepares, streamed or read into memory, without TensorFlow and without the network."""

import contextlib
import gzip
import io
import socket
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.config import Data
from ddpm_jax.data.cache import cache_dir
from ddpm_jax.data.fashion import FILES, FashionMnistIdx
from ddpm_jax.data.pipeline import batch_at, batches
from ddpm_jax.data.sources import load


def png(value: int, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(file, "png")
    return file.getvalue()


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    """Picture i is red i, blue 255 - i, of a size of its own; its kind is i % 3."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        photo = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        features = {"photo": photo, "kind": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 20), "validation": self._generate_examples(100, 104)}

    def _generate_examples(self, low, high):
        for i in range(low, high):
            yield i, {"photo": png(i, (8 + i % 3, 8)), "kind": i % 3}


class TinyTensors(tfds.core.GeneratorBasedBuilder):
    """Image i is a 4x4 gray square of value i, without a label, in three configs."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("low", "high", "float")]  # noqa: RUF012

    def _info(self):
        image = tfds.features.Tensor(shape=(4, 4, 1), dtype=self.dtype, encoding="bytes")
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"image": image}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            yield i, {"image": np.full((4, 4, 1), i + 200 * (self.builder_config.name == "high"), self.dtype)}

    @property
    def dtype(self):
        return np.float32 if self.builder_config.name == "float" else np.uint8


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    for builder in (
        TinyPhotos(data_dir=root, file_format="array_record"),
        *(TinyTensors(data_dir=root, config=c, file_format="array_record") for c in ("low", "high", "float")),
    ):
        builder.download_and_prepare(download_config=settings)
    return str(root)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a test reached for the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def photos(data_dir, **changes) -> Data:
    return Data(**{"source": "tfds", "name": "tiny_photos", "path": data_dir, "shape": (6, 6, 3)} | changes)


@pytest.mark.parametrize("stream", [False, True])
def test_pictures_of_any_size_arrive_with_their_labels(data_dir, stream):
    source = load(photos(data_dir, stream=stream))
    everything = np.arange(20)
    images, labels = source.images[everything], source.labels[everything]
    assert (images.shape, images.dtype, labels.dtype, source.num_classes) == ((20, 6, 6, 3), np.uint8, np.int32, 3)
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(20))
    assert np.array_equal(images[:, 5, 5, 2], 255 - images[:, 0, 0, 0])
    assert np.array_equal(labels, images[:, 3, 3, 0] % 3)


def test_a_streamed_set_gives_the_batches_of_the_set_in_memory(data_dir):
    settings = {"seed": 1, "batch_size": 6, "flip": True, "shard": (1, 2)}
    memory = load(photos(data_dir))
    with contextlib.closing(batches(load(photos(data_dir, stream=True)), start=2, **settings)) as stream:
        for step in range(2, 12):
            ours, theirs = next(stream), batch_at(memory, step=step, **settings)
            assert np.array_equal(ours.images, theirs.images)
            assert np.array_equal(ours.labels, theirs.labels)


def test_a_streamed_set_reads_nothing_until_it_is_asked(data_dir, monkeypatch):
    opened = []
    true_open = Image.open

    def watched(*args):  # an earlier test's read-ahead may still be finishing in its own thread
        if threading.current_thread() is threading.main_thread():
            opened.append(args)
        return true_open(*args)

    monkeypatch.setattr(Image, "open", watched)
    source = load(photos(data_dir, stream=True))
    assert len(opened) == 0
    source.labels[np.arange(5)]
    assert len(opened) == 0
    source.images[np.arange(5)]
    assert len(opened) == 5


def test_parts_of_a_split_are_understood(data_dir):
    assert len(load(photos(data_dir, split="train[:25%]"))) == 5
    assert len(load(photos(data_dir, split="train+validation"))) == 24


@pytest.mark.parametrize("split", ["test", "valdation", "valdation[:50%]", "train[:"])
def test_a_split_that_is_missing_is_answered_with_those_there_are(data_dir, split):
    with pytest.raises(ValueError, match=r"--data.split: tiny_photos has no split .* choose from train, validation"):
        load(photos(data_dir, split=split))


def test_an_empty_part_of_a_split_is_refused(data_dir):
    with pytest.raises(ValueError, match=r"--data.split: .*'train\[:0\]'"):
        load(photos(data_dir, split="train[:0]"))


def test_arrays_of_the_right_shape_pass_untouched_and_lack_labels(data_dir):
    source = load(photos(data_dir, name="tiny_tensors/high", shape=(4, 4, 1)))
    assert sorted(source.images[:, 1, 2, 0].tolist()) == list(range(200, 206))
    assert source.labels is None


def test_arrays_are_resized_too(data_dir):
    source = load(photos(data_dir, name="tiny_tensors/low", shape=(2, 2, 3)))
    assert source.images.shape == (6, 2, 2, 3)
    assert sorted(source.images[:, 1, 0, 2].tolist()) == list(range(6))


def test_float_images_are_refused_rather_than_cut_to_bytes(data_dir):
    with pytest.raises(ValueError, match="tiny_tensors must have uint8 images, got float32"):
        load(photos(data_dir, name="tiny_tensors/float", shape=(4, 4, 1)))


def test_a_set_with_configs_wants_one_named(data_dir):
    with pytest.raises(
        ValueError, match=r"needs a config; prepared: tiny_tensors/float, tiny_tensors/high, tiny_tensors/low"
    ):
        load(photos(data_dir, name="tiny_tensors"))


def test_a_version_can_be_asked_for(data_dir):
    assert len(load(photos(data_dir, name="tiny_photos:1.2.0"))) == 20
    with pytest.raises(FileNotFoundError, match=r"'tiny_photos:1.1.0' is not prepared"):
        load(photos(data_dir, name="tiny_photos:1.1.0"))


def test_an_unprepared_set_is_refused_at_once_with_the_way_to_prepare_it(data_dir):
    """TFDS itself would try its servers for more than three minutes."""
    begin = time.monotonic()
    with pytest.raises(
        FileNotFoundError, match=r"'cifar10' is not prepared in .*array_record'\)\.download_and_prepare"
    ):
        load(photos(data_dir, name="cifar10"))
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(("name", "near"), [("cifer10", "cifar10"), ("tiny_photo", "tiny_photos")])
def test_an_unknown_set_is_answered_with_the_nearest(data_dir, name, near):
    with pytest.raises(ValueError, match=f"TFDS has no '{name}', did you mean '{near}'"):
        load(photos(data_dir, name=name))


def test_a_set_must_be_named(data_dir):
    with pytest.raises(ValueError, match=r"--data.name: source tfds needs a data set's name"):
        load(photos(data_dir, name=""))


def test_a_set_without_random_access_is_refused(data_dir, tmp_path):
    """A set's metadata says how it is stored; here it says tfrecord, TFDS's own default."""
    folder = tmp_path / "tiny_photos" / "1.2.0"
    folder.mkdir(parents=True)
    for file in (tfds.core.Path(data_dir) / "tiny_photos" / "1.2.0").glob("*.json"):
        (folder / file.name).write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"prepared as tfrecord, which has no random access; prepare it again"):
        load(photos(str(tmp_path)))


# Fashion-MNIST from idx files


def write_idx(file, array):
    sizes = np.array(array.shape, ">i4").tobytes()
    file.write_bytes(gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()))


@pytest.fixture
def idx_files(tmp_path, monkeypatch):
    """Image i is filled with i, its label is i % 10; 25 to train, 5 (from 100 on) to test."""
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "idx").mkdir()
    for split, values in {"train": np.arange(25), "test": np.arange(100, 105)}.items():
        images, labels = (tmp_path / "idx" / name for name in FILES[split])
        write_idx(images, np.tile(values.astype(np.uint8)[:, None, None], (1, 28, 28)))
        write_idx(labels, (values % 10).astype(np.uint8))
    return tmp_path / "idx"


def fashion(path, split="train"):
    return load(Data(source="fashion_mnist", path=str(path), shape=(28, 28, 1), split=split))


def test_idx_files_arrive_whole_with_their_labels(idx_files):
    """TFDS stores in an order of its own, so that the pairs are compared, not the places."""
    for split, values in {"train": range(25), "test": range(100, 105)}.items():
        source = fashion(idx_files, split)
        assert sorted(source.images[:, 5, 6, 0].tolist()) == list(values)
        assert np.array_equal(source.labels, source.images[:, 0, 0, 0] % 10)
        assert (source.images.shape[1:], source.num_classes) == ((28, 28, 1), 10)


def test_idx_files_are_prepared_once_and_again_when_they_change(idx_files, monkeypatch):
    runs = []
    prepare = FashionMnistIdx.download_and_prepare
    monkeypatch.setattr(
        FashionMnistIdx, "download_and_prepare", lambda self, **kw: runs.append(1) or prepare(self, **kw)
    )
    fashion(idx_files)
    fashion(idx_files, "test")
    assert len(runs) == 1
    write_idx(idx_files / FILES["train"][0], np.full((25, 28, 28), 7, np.uint8))
    assert np.unique(fashion(idx_files).images).tolist() == [7]


def test_a_preparation_that_is_killed_is_not_read_later(idx_files, monkeypatch):
    def killed(self, images, labels):
        yield 0, {"image": np.zeros((28, 28, 1), np.uint8), "label": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FashionMnistIdx, "_generate_examples", killed)
        with pytest.raises(KeyboardInterrupt):
            fashion(idx_files)
    assert list(cache_dir().rglob("features.json")) == []
    assert len(fashion(idx_files)) == 25


def test_missing_idx_files_are_named_with_the_way_to_get_them(idx_files):
    (idx_files / FILES["test"][1]).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"idx lacks t10k-labels-idx1-ubyte.gz; apt-get install dataset-fashion"
    ):
        fashion(idx_files)


def test_a_broken_idx_file_is_named(idx_files):
    (idx_files / FILES["train"][1]).write_bytes(b"not gzip")
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz is no gzipped idx file"):
        fashion(idx_files)
