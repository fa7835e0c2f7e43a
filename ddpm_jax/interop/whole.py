"""What every writer shares: parameters that are the network's, and a folder that is there whole or not at all."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np


def check_params(params: Any, plan: Any) -> None:
    """Refuse parameters that aren't, by name and shape, those of `plan`.

    Raises:
        ValueError: listing each that is missing, extra or misshapen.
    """
    got, wanted = _shapes(params), _shapes(plan)
    faults = [f"{name} {list(got[name])} has no place in it" for name in got.keys() - wanted.keys()]
    faults += [f"{name} {list(wanted[name])} is missing" for name in wanted.keys() - got.keys()]
    faults += [
        f"{name} must be {list(wanted[name])}, got {list(got[name])}"
        for name in got.keys() & wanted.keys()
        if got[name] != wanted[name]
    ]
    if faults:
        raise ValueError("the parameters don't fit the network: " + "; ".join(sorted(faults)))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf) for path, leaf in leaves}


def refuse_used(folder: Path) -> None:
    """Refuse a path that has something in it.

    Raises:
        ValueError: naming it.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ValueError(f"{folder} has something in it already; give a new or an empty folder")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, moved there at the end; what fails leaves nothing behind.

    A killed program leaves at most the one beside it, whose name begins with a dot, until the next call for `folder`.

    Raises:
        ValueError: if `folder` has something in it.
    """
    refuse_used(folder)
    folder = folder.absolute()
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    _remove_abandoned(folder)
    shutil.rmtree(beside, ignore_errors=True)  # of a killed program that had this number
    beside.mkdir(parents=True)
    try:
        yield beside
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # still there only if something failed


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed programs left beside `folder`: their process numbers are of nothing that runs."""
    if not folder.parent.is_dir():
        return
    for path in folder.parent.iterdir():
        found = re.fullmatch(rf"\.{re.escape(folder.name)}\.(\d{{1,9}})\.tmp", path.name)
        if found and not _runs(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
