"""Freed memory that a process keeps: told by the pages that the system has to hand out anew."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ddpm_jax import heap
from ddpm_jax.cli import flags

FAULTS = """
import resource
from ddpm_jax import heap
kept = heap.keep()
import jax
import jax.numpy as jnp
f = jax.jit(lambda x: jnp.cumsum(2 * x, axis=0)[::2].sum())
x = jnp.ones((4096, 4096))
assert f.lower(x).compile().memory_analysis().temp_size_in_bytes >= 2**26
found = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(x).block_until_ready()
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, sorted(found)[4])
"""

ON_GLIBC = pytest.mark.skipif(heap.platform.libc_ver()[0] != "glibc", reason="only the GNU C library is told")


def a_calls_faults(**env):
    """Whether freed memory was kept, and the pages asked for in a call, the median of nine, of a program with 64 MiB or
    more of intermediate results: 16,384 of 4 KiB. (JAX gives a call to a thread now and then.)"""
    theirs = ("MALLOC_", "GLIBC_", "JAX_", "XLA_FLAGS")
    free = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    command = [sys.executable, "-c", FAULTS]
    env = free | {"JAX_PLATFORMS": "cpu"} | env
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@ON_GLIBC
def test_a_program_finds_the_memory_of_its_last_call_again():
    kept, faults = a_calls_faults()
    assert kept
    assert faults < 1000


@ON_GLIBC
@pytest.mark.parametrize(
    "theirs",
    [
        {"MALLOC_ARENA_MAX": "8"},
        {"GLIBC_TUNABLES": "glibc.malloc.arena_max=8"},
        {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "true"},
        {"JAX_NUM_CPU_DEVICES": "2"},
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    ],
)
def test_the_users_own_settings_stand_and_several_devices_are_left_alone(theirs):
    kept, faults = a_calls_faults(**theirs)
    assert not kept
    assert faults > 10_000


@pytest.mark.parametrize("where", ["tpu", "gpu", "musl", "cpu"])
def test_nothing_is_kept_beside_an_accelerator_or_by_another_library(where, monkeypatch):
    for name in list(os.environ):
        if name.startswith("MALLOC_") or name in (*heap._SETTINGS, "XLA_FLAGS"):
            monkeypatch.delenv(name)
    config = SimpleNamespace(jax_num_cpu_devices=-1, update=lambda *_: None)
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(config=config, default_backend=lambda: where))
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("", "") if where == "musl" else ("glibc", "2.36"))
    told = []
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *how: told.append(how) or 1))
    assert heap.keep() is (where == "cpu")
    assert len(told) == (2 if where == "cpu" else 0)


@pytest.mark.parametrize(("saves", "several", "kept"), [("runs/x", False, 1), ("runs/x", True, 0), ("", False, 0)])
def test_programs_that_train_alone_keep_it(saves, several, kept, monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "keep", lambda: calls.append(1))
    monkeypatch.setattr("ddpm_jax.training.compiled.keep", lambda: None)
    monkeypatch.setattr("ddpm_jax.training.processes.join", lambda launch, saves: None)
    flags.begin(flags.Launch(num_processes=2) if several else None, saves=saves)
    assert len(calls) == kept
