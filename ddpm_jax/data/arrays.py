"""Images that are a NumPy file already."""

import zipfile
from pathlib import Path

import numpy as np

from ddpm_jax.data.record import Source

CONVERSION = "np.rint((x + 1) * 127.5).astype(np.uint8) for x in [-1, 1], np.rint(x * 255) for x in [0, 1]"


def array(path: str | Path) -> Source:
    """Read uint8 images [N, H, W, C] or [N, H, W] from `.npy` (mapped, not read) or `.npz` (read whole).

    A `.npz` holds them as `images`, `arr_0` or its only array of such a rank, and may hold integer `labels` [N].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another kind of file, another type or rank of array, or labels that don't fit.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"--data.path: there is no file {str(path)!r}; source array reads a .npy or .npz file")
    try:
        opened = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"--data.path: {path} is no .npy or .npz file of plain arrays: {error}") from None
    if isinstance(opened, np.ndarray):
        return Source(images=_pictures(opened, str(path)))
    with opened as members:
        key = _images_key(members, path)
        images = _pictures(members[key], f"{path}[{key!r}]")
        if "labels" not in members:
            return Source(images=images)
        return Source(images=images, **_labels(members["labels"], len(images), path))


def _images_key(members: np.lib.npyio.NpzFile, path: Path) -> str:
    for key in ("images", "arr_0"):
        if key in members:
            return key
    of_rank = [key for key in members if members[key].ndim in (3, 4)]
    if len(of_rank) != 1:
        raise ValueError(f"--data.path: {path} must hold its images as 'images', got {sorted(members)}")
    return of_rank[0]


def _pictures(array: np.ndarray, where: str) -> np.ndarray:
    # A float array says nothing about its range, and a guess would be wrong in silence.
    if array.dtype != np.uint8:
        raise ValueError(f"--data.path: {where} must be uint8, got {array.dtype}; convert it: {CONVERSION}")
    if array.ndim not in (3, 4):
        raise ValueError(f"--data.path: {where} must be [N, H, W, C] or [N, H, W], got shape {array.shape}")
    return array if array.ndim == 4 else array[..., None]


def _labels(labels: np.ndarray, count: int, path: Path) -> dict:
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or (labels < 0).any():
        wanted = f"{count} integers from 0 on"
        raise ValueError(f"--data.path: labels in {path} must be {wanted}, got {labels.dtype} {labels.shape}")
    return {"labels": labels.astype(np.int32), "num_classes": int(labels.max(initial=-1)) + 1}
