"""Where prepared images are kept between runs, and how they are told apart."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def cache_dir() -> Path:
    """DDPM_JAX_CACHE if set, else ddpm_jax in the user's cache folder (XDG_CACHE_HOME or ~/.cache)."""
    chosen = os.environ.get("DDPM_JAX_CACHE")
    general = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen).expanduser() if chosen else Path(general) / "ddpm_jax"


def fingerprint(root: Path, files: Iterable[Path], *settings: object) -> str:
    """A name for what these files under `root` hold: it changes with their names, sizes, times or the settings."""
    digest = hashlib.sha256(repr((str(root.resolve()), settings)).encode())
    for file in files:
        facts = file.stat()
        digest.update(repr((str(file.relative_to(root)), facts.st_size, facts.st_mtime_ns)).encode())
    return digest.hexdigest()[:20]
