"""What one program compiled, the next one reads: JAX's cache of compiled programs, on unless the user says otherwise.

JAX's own settings come first: JAX_COMPILATION_CACHE_DIR names another folder, which is then left alone, and
JAX_ENABLE_COMPILATION_CACHE=false switches the cache off. An entry's name holds all that its program depends on, JAX's
version and the features of the machine's CPU among it: machines of several kinds may share a home.
"""

import os
import stat
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import jax

from ddpm_jax.data.cache import cache_dir

MOST = 4 * 2**30
"""Bytes; beyond them the entries go that were not used for longest. A run of the digits needs 3 MB."""
LEAST_SECONDS = 0.2
"""Of compilation, for a program to be kept: one that compiles faster is read no faster."""
SETTLED = 60.0
"""Seconds after which an entry that another program began to write is whole, or never will be."""


def keep() -> Path | None:
    """Keep compiled programs in the user's cache folder from here on; the folder, None where nothing was changed.

    A folder that can't be written costs a line on stderr, and the time to compile.
    """
    chosen: Any = jax.config
    if chosen.jax_compilation_cache_dir is not None or not chosen.jax_enable_compilation_cache:
        return None
    folder: Path | None = None
    try:
        folder = cache_dir() / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_own(folder)
        tidy(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        why = f"{folder}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print(f"compiled programs aren't kept ({why}); DDPM_JAX_CACHE names another folder for them", file=sys.stderr)
        return None
    chosen.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        chosen.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return folder


def _check_own(folder: Path) -> None:
    """What is read from it is run: nobody else may write there."""
    facts = folder.stat()
    if hasattr(os, "getuid") and (facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise RuntimeError(f"{folder}: others can write to it")


def tidy(folder: Path, *, most: int = MOST) -> None:
    """Remove broken entries, and the oldest beyond `most` bytes.

    JAX neither locks nor renames what it writes: a program that was killed on the way leaves half an entry, which no
    other would ever replace. Each entry is looked into once. (JAX's own limit wants a lock, which every read of every
    process would wait for, and which not all file systems have.)

    Raises:
        OSError: for a folder that can't be written.
    """
    mark, now = folder / ".checked", time.time()
    before = mark.stat().st_mtime if mark.exists() else 0.0
    found = []
    for entry in folder.glob("*-cache"):
        try:
            facts = entry.stat()
            if before < facts.st_mtime <= now - SETTLED and not _is_whole(entry):
                entry.unlink()
            else:
                found.append((max(facts.st_atime, facts.st_mtime), facts.st_size, entry))
        except FileNotFoundError:
            continue  # another program tidies, too
    total = sum(size for _, size, _ in found)
    for _, size, entry in sorted(found):
        if total <= most:
            break
        entry.unlink(missing_ok=True)
        total -= size
    mark.touch()
    os.utime(mark, (now - SETTLED, now - SETTLED))


def _is_whole(entry: Path) -> bool:
    """JAX compresses with zlib, whose checksum stands last; with zstandard where that is installed: not looked into."""
    packed = zlib.decompressobj()
    content = entry.read_bytes()
    if content[:1] != b"\x78":
        return len(content) > 0
    try:
        packed.decompress(content)
    except zlib.error:
        return False
    return packed.eof
