"""Where a run ran, and by what: environment.jsonl, a line for each start, recorded then and not when it is read."""

import datetime
import functools
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from ddpm_jax import files, records
from ddpm_jax.config import Config
from ddpm_jax.training.state import State

FILE = "environment.jsonl"
PACKAGES = (
    "ddpm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "grain",
    "tensorflow-datasets", "array_record", "pillow", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin",
)  # fmt: skip
"""Those of them that are installed are told with their versions."""

Start = dict[str, Any]


def read(workdir: files.Place) -> list[Start]:
    """Every start of a run, in order; lines that can't be read are left out."""
    path = workdir / FILE
    if not files.is_file(path):
        return []
    found = []
    for line in path.read_bytes().decode(errors="replace").splitlines():
        try:
            start = json.loads(line)
        except ValueError:
            continue
        if isinstance(start, dict):
            found.append(start)
    return found


def record(workdir: files.Place, start: Start) -> None:
    """Add a start, or, where the last one began at the same moment, put it in its place: the file is whole or as it
    was."""
    starts = read(workdir)
    if starts and starts[-1].get("time") == start["time"]:
        starts.pop()
    files.write(workdir / FILE, "".join(json.dumps(each) + "\n" for each in (*starts, start)).encode())


def of(config: Config, state: State) -> Start:
    """What there is to say of a run that starts now from `state`."""
    devices = jax.devices()
    changed = records.differences(Config(), config)
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        "step": int(state.step),
        "until": int(state.step),
        "seconds": 0.0,
        "command": shlex.join([Path(sys.orig_argv[0] or "python").name, *sys.orig_argv[1:]]),
        "seed": config.seed,
        "changed": {name: new for name, (_, new) in changed.items()},
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "devices": {"count": len(devices), "kind": devices[0].device_kind, "platform": devices[0].platform},
        "processes": jax.process_count(),
        **_of_program(),
    }


@functools.cache
def _of_program() -> dict[str, Any]:
    """What stays as it is while the program runs."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "packages": versions,
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpus": os.cpu_count(),
            "memory": _memory(),
        },
        "commit": commit(Path.cwd()),
    }


def commit(folder: Path) -> str:
    """What git calls the checkout that a folder lies in ("5e1f0c2-dirty"); "" if it lies in none."""
    command = ["git", "--no-optional-locks", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _memory() -> int | None:
    """Bytes of the machine, where it tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
