"""What several test files share: a tiny run, trained once."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Set before JAX starts, and inherited by workers and programs: what one test compiled, another reads.
CACHE = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="ddpm_jax_tests_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
# Most of the time would go into optimising programs that run for a few steps: a third less with this.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

import pytest

from ddpm_jax.cli.flags import load_preset
from ddpm_jax.training.loop import train

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "presets" / "tiny.py"


def pytest_unconfigure():
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A finished run of tests/presets/tiny.py: its folder, and the state it ended with."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    return workdir, train(load_preset(str(TINY)), workdir)


@pytest.fixture
def program():
    """program(file or module, arguments..., devices=1) runs it as a user would; returns the finished process."""
    return run_program


def run_program(*args, devices=1, **options):
    command = [sys.executable, *map(str, args)]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, **options)
