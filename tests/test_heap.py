"""Freed memory that a process keeps: told by the pages that the system has to hand out anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_jax import heap

FAULTS = """
import resource
from ddpm_jax import heap
kept = heap.keep()
import jax
import jax.numpy as jnp
f = jax.jit(lambda x: (jnp.sort(2 * x, axis=0) + 1)[::2].sum())
x = jnp.ones((1024, 4096))
assert f.lower(x).compile().memory_analysis().temp_size_in_bytes >= 2**24
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(x).block_until_ready()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def last_calls_faults(**env):
    """Whether freed memory was kept, and the pages asked for in the fourth call of a program with 16 MiB or more of
    intermediate results: 4,096 of 4 KiB."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=free | env, capture_output=True, text=True, check=True, timeout=120)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(heap.platform.libc_ver()[0] != "glibc", reason="only the GNU C library is told what to keep")
def test_a_program_finds_the_memory_of_its_last_call_again():
    kept, faults = last_calls_faults(JAX_PLATFORMS="cpu")
    assert kept
    assert faults < 500
    kept, faults = last_calls_faults(JAX_PLATFORMS="cpu", MALLOC_ARENA_MAX="8")  # the user's own settings stand
    assert not kept
    assert faults > 3000


def test_only_a_cpu_is_meant(monkeypatch):
    monkeypatch.setattr(heap, "ACCELERATORS", ())
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert heap._on_cpu()
    for platforms, wanted in (("cuda,cpu", False), ("tpu", False), ("cpu", True)):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        assert heap._on_cpu() is wanted


def test_a_device_file_is_an_accelerator(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(heap, "ACCELERATORS", ("null",))
    assert Path("/dev/null").exists()
    assert not heap._on_cpu()
