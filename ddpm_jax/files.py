"""Files that are there whole or not at all: a reader never meets half a picture, even if the run is killed."""

import os
from collections.abc import Sequence
from pathlib import Path


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
    """Write a file beside `path`, then move it there; folders that are missing are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)  # still there only if one of the two failed
