"""Files that are there whole or not at all: a reader never meets half a picture, even if the run is killed.

They lie on this machine (pathlib) or in a bucket (etils.epath, by gs://BUCKET/NAME).
"""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from etils import epath

Place = Path | epath.Path
"""A path on this machine, or one in a bucket. Both have pathlib's methods; appending is for this machine only."""

_BUCKET = "gs://"
_NEEDED = ("gcsfs", "google.cloud.storage")  # by epath, and by Orbax beside it


def place(name: str | os.PathLike) -> Place:
    """The path that was named; nothing is looked up.

    `Path("gs://a/b")` is `gs:/a/b`, a folder of this machine: whatever may be a bucket's comes through here.

    Raises:
        ValueError: for another scheme than gs://, no bucket, or a name that pathlib has shortened.
        ImportError: for a bucket, if what reaches it isn't installed, with the command that mends it.
    """
    name = os.fspath(name)
    if not name.startswith(_BUCKET):
        if "://" in name or name.startswith("gs:/"):
            raise ValueError(f"a path must be one of this machine or gs://BUCKET/NAME, got {name!r}")
        return Path(name)
    if not name.removeprefix(_BUCKET).split("/")[0]:
        raise ValueError(f"a path in a bucket is gs://BUCKET/NAME, got {name!r}")
    if missing := [package for package in _NEEDED if not _is_installed(package)]:
        raise ImportError(f"{name} needs {' and '.join(missing)}: pip install 'ddpm_jax[gcs]'")
    return epath.Path(name)


def absolute(path: Place) -> Place:
    """The path from the root on; one in a bucket is that already, though epath's own `absolute` would spoil it."""
    return path if isinstance(path, epath.Path) else path.absolute()


def is_file(path: Place) -> bool:
    """Is there such a file? A bucket that doesn't answer is an OSError in every case."""
    with _reaching(path):
        return path.is_file()


def is_dir(path: Place) -> bool:
    """Is there such a folder? In a bucket: is there anything under this name?"""
    with _reaching(path):
        return path.is_dir()


def entries(folder: Place) -> list[Place]:
    """What is in this folder. Google's console makes a folder as an object of its own name, which doesn't count."""
    with _reaching(folder):
        found = list(folder.iterdir())
    return [entry for entry in found if isinstance(folder, Path) or entry.name != folder.name]


@contextlib.contextmanager
def local(path: Place) -> Iterator[Path]:
    """The file on this machine, for what reads no other: a copy, gone in the end, if it lies in a bucket."""
    if not isinstance(path, epath.Path):
        yield path
        return
    with _reaching(path):
        content = path.read_bytes()
    with tempfile.TemporaryDirectory(prefix="ddpm_jax_") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(content)
        yield copy


def suffix(path: str | os.PathLike, known: Sequence[str]) -> str:
    """The suffix of `path` in lower case: the format to write.

    Raises:
        ValueError: if it is none of the known ones, such as ".png".
    """
    found = Path(path).suffix.lower()
    if found not in known:
        raise ValueError(f"path must end in {' or '.join(known)}, got {os.fspath(path)!r}")
    return found


def write(path: str | os.PathLike, data: bytes) -> None:
    """Write a file beside `path`, then move it there; folders that are missing are made.

    In a bucket there is nothing to move: an object appears with its last byte.

    Raises:
        OSError: if it can't be written.
    """
    path = place(path)
    if isinstance(path, epath.Path):
        with _reaching(path):
            path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)  # still there only if one of the two failed


@contextlib.contextmanager
def _reaching(path: Place) -> Iterator[None]:
    """One kind of error for a bucket: each layer below (gcsfs, aiohttp, Google's own) has kinds of its own."""
    try:
        yield
    except Exception as error:
        if not isinstance(path, epath.Path):
            raise
        raise OSError(f"{path} can't be reached ({type(error).__name__}: {error})") from error


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False
