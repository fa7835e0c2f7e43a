"""What a measurement was taken on: the processor, its limits as matrix products reach them, and a process' memory.

Nothing heavy is imported here: the sides read their memory before they load anything.
"""

import contextlib
import ctypes
import os
import platform
import re
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
"""Of /proc/cpuinfo, those that matter to arithmetic."""
PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers", "numpy")
SIZES = (1024, 2048, 4096)
"""Of the square matrices multiplied for the peak."""


def describe() -> dict[str, Any]:
    """Processor, memory, system and versions; a line that this system can't say is left out."""
    info = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.M)
    total = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.M)
    has = set(flags[1].split()) if flags else set()
    found = {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "flags": [name for name in FLAGS if name in has],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(int(total[1]) / 2**20, 1) if total else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }
    return {name: value for name, value in found.items() if value is not None}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def peak(product: Callable[[int], Callable[[], Any]], *, sizes: tuple[int, ...] = SIZES, tries: int = 3) -> float:
    """Floating-point operations a second of the best matrix product: the most over sizes n, each the best of tries.

    product(n) -> a function that multiplies two n by n matrices and waits for the result.
    """
    most = 0.0
    for n in sizes:
        multiply = product(n)
        multiply()
        for _ in range(tries):
            begun = time.perf_counter()
            multiply()
            most = max(most, 2 * n**3 / (time.perf_counter() - begun))
    return most


def resident() -> dict[str, int]:
    """Bytes of this process' memory that are resident now, and the most that were since `forget_peak`; and of those
    that are now, its own and those of files, program code above all, which the system may drop and read again."""
    said = _read("/proc/self/status")
    names = {"now": "VmRSS", "peak": "VmHWM", "own": "RssAnon", "files": "RssFile"}
    found = {key: re.search(rf"^{name}:\s*(\d+) kB", said, re.M) for key, name in names.items()}
    return {key: int(match[1]) * 1024 for key, match in found.items() if match}


def forget_peak() -> bool:
    """Let the peak of `resident` begin anew; False where the system doesn't allow that.

    What the allocator keeps of memory that nobody uses any more is given back first (glibc).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def forget(_: str) -> dict[str, Any]:
    """The command "forget": the peak begins anew; what is resident now."""
    return {"forgotten": forget_peak(), **resident()}
