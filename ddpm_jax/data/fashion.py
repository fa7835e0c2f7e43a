"""Fashion-MNIST from its four idx files, through a TFDS builder that needs neither TensorFlow nor the network."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ddpm_jax.data.cache import cache_dir, fingerprint
from ddpm_jax.data.prepared import read
from ddpm_jax.data.record import Source

SHAPE = (28, 28, 1)
DEBIAN = "/usr/share/datasets/fashion-mnist"
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def fashion_mnist(split: str = "train", path: str | Path = "") -> Source:
    """28x28 gray pictures of clothes in 10 classes, 60,000 to train and 10,000 to test (Xiao et al. 2017).

    The four files are read from `path`, or from where Debian's package puts them, and prepared once in the cache;
    MNIST and its other kin in the same format will do too.

    Raises:
        FileNotFoundError: naming the files that are missing and where they can be had.
        ValueError: for a file in another format, or a split that isn't there.
    """
    folder = Path(path or DEBIAN).expanduser()
    files = [folder / name for names in FILES.values() for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"--data.path: {folder} lacks {', '.join(missing)}; apt-get install dataset-fashion-mnist puts them in"
            f" {DEBIAN}, or give the folder that holds all four"
        )
    # The folder is part of the name, so that two sets in this format never pass for one another.
    data_dir = cache_dir() / "tfds" / fingerprint(folder, files)
    builder = FashionMnistIdx(data_dir=str(data_dir), file_format="array_record")
    if not builder.data_path.exists():
        _prepare(builder, folder)
    return read(tfds.builder_from_directory(builder.data_path), SHAPE, split, stream=False)


def _prepare(builder: tfds.core.GeneratorBasedBuilder, folder: Path) -> None:
    """TFDS writes beside the final folder and renames at the end, so a killed run leaves nothing to be read."""
    settings = tfds.download.DownloadConfig(manual_dir=folder, try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=settings)
    except OSError:
        # Of several processes that prepare at once, the first to rename has done it for all.
        if not builder.data_path.exists():
            raise


class FashionMnistIdx(tfds.core.GeneratorBasedBuilder):
    """The TFDS view of the four files."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {', '.join(n for names in FILES.values() for n in names)} into manual_dir."

    def _info(self) -> tfds.core.DatasetInfo:
        # Plain bytes: features.Image would want TensorFlow to encode an array.
        image = tfds.features.Tensor(shape=SHAPE, dtype=np.uint8, encoding="bytes")
        label = tfds.features.ClassLabel(num_classes=10)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": image, "label": label})
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = Path(dl_manager.manual_dir)
        return {split: self._generate_examples(*(folder / name for name in names)) for split, names in FILES.items()}

    def _generate_examples(self, images: Path, labels: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        pictures, classes = read_idx(images), read_idx(labels)
        if pictures.shape[1:] != SHAPE[:2] or classes.shape != pictures.shape[:1]:
            wanted = f"[N, {SHAPE[0]}, {SHAPE[1]}] and [N]"
            raise ValueError(
                f"{images.parent}: images and labels must be {wanted}, got {pictures.shape}, {classes.shape}"
            )
        for i, (picture, label) in enumerate(zip(pictures, classes, strict=True)):
            yield i, {"image": picture[..., None], "label": int(label)}


def read_idx(file: Path) -> np.ndarray:
    """The uint8 array in a gzipped idx file: a magic number 00 00 08 RANK, the sizes as big-endian int32, the bytes.

    Raises:
        ValueError: if the file isn't that.
    """
    try:
        content = gzip.decompress(file.read_bytes())
        rank = content[3]
        sizes = np.frombuffer(content, ">i4", rank, offset=4)
        if content[:3] != b"\0\0\x08":
            raise ValueError(f"magic number {content[:4].hex()}")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes)
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise ValueError(f"{file} is no gzipped idx file of bytes: {error}") from None
