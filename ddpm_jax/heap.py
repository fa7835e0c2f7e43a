"""On CPUs, a process keeps the memory that it has freed, and the next step finds it.

XLA for CPUs asks for the room of all of a program's intermediate results anew whenever it runs the program. The GNU C
library gives so much back to the system each time, which then hands it out again page by page, every page zeroed: an
eighth to a third of a training step.
"""

import ctypes
import os
import platform
from pathlib import Path

ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel*", "vfio/[0-9]*")
"""What the devices of NVIDIA, AMD and Google are called in /dev."""
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h


def keep() -> bool:
    """Keep freed memory from here on; was anything changed? To be called before JAX starts its devices.

    Nothing is where the C library isn't GNU's; where JAX may use an accelerator (one has a device file, and
    JAX_PLATFORMS isn't cpu); and where the environment has the library's own settings (MALLOC_ARENA_MAX and its kin,
    GLIBC_TUNABLES).

    All threads then share one heap, since only the first can grow without bound: those that ran before, as JAX's would
    have, keep heaps of their own. What the process has taken at its peak it has until it ends.
    """
    theirs = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if theirs or platform.libc_ver()[0] != "glibc" or not _on_cpu():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))


def _on_cpu() -> bool:
    """Will JAX run on the CPU? Not asked of JAX, which would start its devices."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen.split(",")[0] == "cpu"
    return not any(True for pattern in ACCELERATORS for _ in Path("/dev").glob(pattern))
