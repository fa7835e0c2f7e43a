"""Any data set that TensorFlow Datasets has prepared, read without TensorFlow and without the network."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants
from tqdm import tqdm

from ddpm_jax.data.fit import check_channels, fit_array, fit_file
from ddpm_jax.data.record import Source
from ddpm_jax.records import suggest

CHUNK = 1024


def prepared(
    name: str, shape: tuple[int, int, int], split: str = "train", path: str = "", *, stream: bool = False
) -> Source:
    """A prepared TFDS set: `name` is NAME, NAME/CONFIG or either with :VERSION, `path` its data_dir.

    Images of another size or mode are cropped to the centre and resized to (H, W, C). With `stream` they are read
    when they are asked for, otherwise all at once into memory.

    Raises:
        FileNotFoundError: if the set isn't prepared in data_dir, saying how to prepare it; nothing is downloaded.
        ValueError: for an unknown name or split, a set without images, or one stored without random access.
    """
    check_channels(shape)
    root = path or constants.DATA_DIR
    return read(tfds.builder_from_directory(find(name, root)), shape, split, stream=stream)


def find(name: str, root: str) -> tfds.core.Path:
    """The folder under `root` that holds the newest prepared version of a set.

    Looking at folders is the whole check: a builder made from TFDS's code would start a download when read.

    Raises:
        FileNotFoundError: if it isn't prepared there.
        ValueError: if no such set is known, or it has configs and none is named.
    """
    if not name:
        raise ValueError("--data.name: source tfds needs a data set's name (cifar10, lsun/bedroom, ...)")
    plain, _, version = name.partition(":")
    folder = tfds.core.Path(root).expanduser() / plain
    # features.json is written with the rest of a set's metadata, before the folder takes its final name
    found = {file.parent.name: file.parent for file in folder.glob(f"{version or '*'}/features.json")}
    versions = [v for v in found if tfds.core.Version.is_valid(v)]
    if versions:
        return found[max(versions, key=tfds.core.Version)]
    configs = sorted({file.parent.parent.name for file in folder.glob("*/*/features.json")})
    if configs:
        raise ValueError(
            f"--data.name: {name!r} needs a config; prepared: {', '.join(f'{plain}/{c}' for c in configs)}"
        )
    known = {*tfds.list_builders(with_community_datasets=False), *_subfolders(tfds.core.Path(root).expanduser())}
    if plain.split("/")[0] not in known:
        raise ValueError(f"--data.name: TFDS has no {name!r}{suggest(name, known)}, and none is prepared in {root}")
    how = f"tfds.builder({name!r}, data_dir={str(root)!r}, file_format='array_record').download_and_prepare()"
    raise FileNotFoundError(
        f"--data.name: {name!r} is not prepared in {root} (--data.path names another data_dir); where there is"
        f" network and TensorFlow, prepare it once: {how}"
    )


def read(builder: tfds.core.DatasetBuilder, shape: tuple[int, int, int], split: str, *, stream: bool) -> Source:
    """A split of a prepared builder: images uint8 [N, H, W, C] and, if it has a class feature, labels int32 [N]."""
    available = builder.info.available_file_formats()
    if not available & tfds.core.FileFormat.with_random_access():
        stored = ", ".join(sorted(f.value for f in available))
        raise ValueError(
            f"--data.name: {builder.name} is prepared as {stored}, which has no random access; prepare it again into"
            " another data_dir with file_format='array_record'"
        )
    features: Any = builder.info.features
    image, label = _image_key(builder.name, features), _label_key(features)
    count = features[label].num_classes if label else 0
    skip: dict[str, Any] = {image: tfds.decode.SkipDecoding()}
    # An encoded picture is left to Pillow: TFDS would decode it at full size, and warns where OpenCV is missing.
    encoded = isinstance(features[image], tfds.features.Image)
    rows = _open(builder, split, skip if encoded else {})

    def picture(row: dict[str, Any]) -> np.ndarray:
        return fit_file(bytes(row[image]), shape) if encoded else fit_array(row[image], shape)

    if not stream:
        return _in_memory(rows, picture, shape, label, count)
    images = OnDemand(rows, picture, (len(rows), *shape), np.uint8)
    # A label costs a second look at its record, but not at its picture.
    labels = OnDemand(_open(builder, split, skip), lambda row: row[label], (len(rows),), np.int32) if label else None
    return Source(images=images, labels=labels, num_classes=count)


@dataclasses.dataclass(frozen=True)
class OnDemand:
    """A column of records that is read when it is indexed, with an array of positions."""

    rows: Any
    value: Callable[[dict[str, Any]], Any]
    shape: tuple[int, ...]
    dtype: type

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        found = self.rows.__getitems__(np.asarray(indices).tolist())
        return np.array([self.value(row) for row in found], self.dtype).reshape(-1, *self.shape[1:])


def _in_memory(rows: Any, picture: Callable, shape: tuple[int, int, int], label: str | None, count: int) -> Source:
    """Read every record once."""
    images = np.empty((len(rows), *shape), np.uint8)
    labels = np.empty(len(rows), np.int32)
    for start in tqdm(range(0, len(rows), CHUNK), desc="reading into memory", disable=len(rows) < 100 * CHUNK):
        for i, row in enumerate(rows.__getitems__(list(range(start, min(start + CHUNK, len(rows))))), start):
            images[i] = picture(row)
            labels[i] = row[label] if label else 0
    return Source(images=images, labels=labels if label else None, num_classes=count)


def _open(builder: Any, split: str, decoders: dict[str, Any]) -> Any:
    try:
        return builder.as_data_source(split, decoders=decoders or None)
    except ValueError as error:
        there = ", ".join(builder.info.splits)
        raise ValueError(
            f"--data.split: {builder.name} has no split {split!r}{suggest(split, builder.info.splits)}; choose from"
            f" {there}, or a part of one such as train[:90%] ({error})"
        ) from None


def _image_key(name: str, features: Mapping[str, Any]) -> str:
    """The feature that holds the picture: named image, or the only one that is an image."""
    kinds = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    key = "image" if "image" in features else kinds[0] if len(kinds) == 1 else None
    if key is None:
        raise ValueError(f"--data.name: {name} must have one image feature or one named 'image', got {list(features)}")
    if features[key].np_dtype != np.uint8:
        raise ValueError(f"--data.name: {name} must have uint8 images, got {np.dtype(features[key].np_dtype)}")
    return key


def _label_key(features: Mapping[str, Any]) -> str | None:
    """The feature that holds the class: named label, or the only class feature there is."""
    kinds = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    return "label" if "label" in kinds else kinds[0] if len(kinds) == 1 else None


def _subfolders(root: Any) -> list[str]:
    return [entry.name for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []
