"""A folder of JPEG and PNG files, brought to one size once and read from a memory map ever after."""

import os
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddpm_jax.data.cache import cache_dir, fingerprint
from ddpm_jax.data.fit import check_channels, fit_file
from ddpm_jax.data.record import Source

SUFFIXES = {".jpg", ".jpeg", ".png"}
SPLITS = {"train", "test", "val", "valid", "validation"}


def folder(path: str | Path, shape: tuple[int, int, int], split: str = "train") -> Source:
    """All JPEG and PNG files under `path`, sorted by name, cropped to the centre and resized to (H, W, C).

    Files and folders whose names begin with a dot are left out. If every picture lies in a sub-folder, the first
    sub-folder is its class (classes sorted by name); otherwise there are no labels. If the sub-folders of `path`
    are all named like splits (train, test, val, ...), `split` picks one, and "all" takes them all; without such
    sub-folders there is one split, "train" or "all".

    The resized pictures are cached (see `cache_dir`) under a name that changes with any file's name, size or time.

    Raises:
        FileNotFoundError: if there is no such folder, or no picture in it.
        ValueError: for a picture that can't be read (it is named: mend or remove it; a set that silently shrinks
            would be another set), or a split that isn't there.
    """
    check_channels(shape)
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise FileNotFoundError(f"--data.path: there is no folder {str(path)!r}; source folder reads a folder's images")
    root, depth = _split_folder(root, split)
    files = sorted(file for file in root.rglob("*") if _is_picture(file.relative_to(root)))
    if not files:
        raise FileNotFoundError(f"--data.path: no {', '.join(sorted(SUFFIXES))} file lies in {root}")
    cached = cache_dir() / "folders" / f"{fingerprint(root, files, shape)}.npy"
    if not cached.is_file():
        _write_whole(cached, files, shape)
    return Source(images=np.load(cached, mmap_mode="r"), **_classes([f.relative_to(root).parts[depth:] for f in files]))


def _split_folder(root: Path, split: str) -> tuple[Path, int]:
    """The folder that holds the split, and how many folders deep in it the classes begin."""
    names = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    is_split = bool(names) and names <= SPLITS
    if split == "all":
        return root, int(is_split)
    if is_split and split in names:
        return root / split, 0
    if not is_split and split == "train":
        return root, 0
    there = sorted(names) if is_split else ["train"]
    raise ValueError(f"--data.split: {root} has no split {split!r}; choose from {', '.join([*there, 'all'])}")


def _is_picture(relative: Path) -> bool:
    return relative.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in relative.parts)


def _classes(parts: list[tuple[str, ...]]) -> dict:
    """Labels and their count from each file's path below the place where classes begin."""
    if any(len(p) < 2 for p in parts):
        return {}
    names, labels = np.unique([p[0] for p in parts], return_inverse=True)
    return {"labels": labels.astype(np.int32), "num_classes": len(names)}


def _write_whole(cached: Path, files: list[Path], shape: tuple[int, int, int]) -> None:
    """Fill the cache beside its place and move it there, so that a killed run leaves nothing that looks whole."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=cached.parent, suffix=".partial")
    os.close(handle)
    beside = Path(name)
    try:
        images = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=(len(files), *shape))
        for i, file in enumerate(tqdm(files, desc=f"resizing to {shape}", disable=len(files) < 1000)):
            try:
                images[i] = fit_file(file, shape)
            except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for broken files
                raise ValueError(f"--data.path: can't read the picture {file}: {error}") from error
        images.flush()
        beside.replace(cached)
    finally:
        beside.unlink(missing_ok=True)
