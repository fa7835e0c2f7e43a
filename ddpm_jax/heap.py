"""On a CPU, a program that trains keeps the memory that it has freed, and the next step finds it.

XLA for CPUs asks for the room of all of a program's intermediate results anew whenever it runs the program. The GNU C
library gives so much back to the system each time, which then hands it out again page by page, every page zeroed: a
fifth to a third of a training step (`benchmarks/README.md`).
"""

import ctypes
import os
import platform
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_SETTINGS = ("GLIBC_TUNABLES", "JAX_CPU_ENABLE_ASYNC_DISPATCH")
_DEVICES = "--xla_force_host_platform_device_count"


def keep() -> bool:
    """Keep freed memory from here on; is it kept? To be called in the main thread before JAX starts its devices.

    Only the heap of a process' first thread grows without bound. So JAX is told to run programs in the thread that
    calls them (jax_cpu_enable_async_dispatch off): the other threads, the compiler's among them, leave that heap in one
    piece. What the process has taken at its peak it has until it ends.

    Nothing is kept where JAX has an accelerator or several devices; where the C library isn't GNU's; and where the
    environment has a say of its own (MALLOC_ARENA_MAX and its kin, GLIBC_TUNABLES, JAX_CPU_ENABLE_ASYNC_DISPATCH).
    """
    import jax  # late: `hold` is for programs without it, too

    chosen: Any = jax.config
    theirs = [name for name in os.environ if name.startswith("MALLOC_") or name in _SETTINGS]
    several = chosen.jax_num_cpu_devices > 1 or _DEVICES in os.environ.get("XLA_FLAGS", "")
    if theirs or several or platform.libc_ver()[0] != "glibc":
        return False
    chosen.update("jax_cpu_enable_async_dispatch", False)
    return jax.default_backend() == "cpu" and hold()


def hold() -> bool:
    """The GNU C library's half of `keep`: what is freed isn't given back to the system. Was that to be had?"""
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))
