"""What happens before the first step: no JAX for a mistyped flag, compiled programs kept, the network traced once."""

import os
import subprocess
import sys
import time
import zlib

import jax
import pytest
from conftest import ROOT, TINY

from ddpm_jax.cli.flags import load_preset
from ddpm_jax.training import compiled, run

HEAVY = ("jax", "flax", "numpy", "orbax", "matplotlib", "tensorflow_datasets", "sklearn")

TOLD = """
import sys
from ddpm_jax.cli import flags
import runpy
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("loaded:", *[name for name in {heavy} if name in sys.modules])
"""

COMPILES = """
from ddpm_jax.cli import flags
flags.begin()
import jax
print(jax.config.jax_compilation_cache_dir, jax.jit(lambda x: x + 1)(1))
"""

CHOICES = """
import os, jax
from ddpm_jax.training import compiled
jax.config.update("jax_enable_compilation_cache", False)
print(compiled.keep())
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", "mine")
print(compiled.keep(), jax.config.jax_compilation_cache_dir)
jax.config.update("jax_compilation_cache_dir", None)
print(compiled.keep())
os.environ["DDPM_JAX_CACHE"] = "~/ours"
print(compiled.keep())
"""


@pytest.mark.parametrize(
    "args",
    [
        ["train.py", "--help"],
        ["train.py", "digits", "--help"],
        ["train.py", "digits", "--batchsize", "3"],
        ["sample.py", "--help"],
        ["sample.py", "{run}", "--help"],
        ["sample.py", "{run}", "--stepps", "3"],
    ],
)
def test_help_and_mistyped_flags_load_nothing_that_is_slow(args, tiny_run):
    args = [arg.replace("{run}", str(tiny_run[0])) for arg in args]
    code = f"import sys; sys.argv = {args!r}" + TOLD.replace("{heavy}", repr(HEAVY))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "loaded:", done.stdout + done.stderr


def start(tmp_path, code=COMPILES, **env):
    """A program, with a home of its own and none of the tests' settings; what it said."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    every = {"HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}
    kept.pop("XDG_CACHE_HOME", None)
    kept.pop("DDPM_JAX_CACHE", None)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=kept | every | env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_compiled_programs_are_kept_in_the_users_cache_folder(tmp_path):
    folder = tmp_path / ".cache" / "ddpm_jax" / "compiled"
    assert start(tmp_path).stdout == f"{folder} 2\n"
    written = {entry.name for entry in folder.glob("*-cache")}
    assert any("lambda" in name for name in written)
    assert folder.stat().st_mode & 0o077 == 0
    assert start(tmp_path).stdout == f"{folder} 2\n"
    assert {entry.name for entry in folder.glob("*-cache")} == written  # found again


def test_a_folder_that_others_can_write_to_is_not_read(tmp_path):
    """What lies there is run."""
    folder = tmp_path / ".cache" / "ddpm_jax" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    done = start(tmp_path)
    assert done.stdout == "None 2\n"
    assert f"compiled programs aren't kept ({folder}: others can write to it)" in done.stderr
    assert list(folder.iterdir()) == []


def test_the_users_own_settings_decide_where_and_whether(tmp_path):
    """And a folder that can't be written costs a line, not the run."""
    (tmp_path / "file").write_text("")
    done = start(tmp_path, CHOICES, DDPM_JAX_CACHE=str(tmp_path / "file"))
    assert done.stdout.split() == ["None", "None", "mine", "None", str(tmp_path / "ours" / "compiled")]
    assert not (tmp_path / ".cache").exists()
    [line] = done.stderr.splitlines()
    assert line.startswith(f"compiled programs aren't kept ({tmp_path / 'file' / 'compiled'}: Not a directory); ")


def entry(folder, name, content, *, age):
    """An entry that was written, and last read, so many seconds ago."""
    file = folder / f"{name}-cache"
    file.write_bytes(content)
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def test_half_an_entry_is_removed_and_one_that_is_being_written_is_not(tmp_path):
    packed = zlib.compress(os.urandom(1000))
    whole = entry(tmp_path, "whole", packed, age=3600)
    half = entry(tmp_path, "half", packed[:500], age=3600)
    nothing = entry(tmp_path, "nothing", b"", age=3600)
    other = entry(tmp_path, "other", b"\x28\xb5\x2f\xfd zstandard's, which isn't known here", age=3600)
    growing = entry(tmp_path, "growing", packed[:500], age=1)
    compiled.tidy(tmp_path)
    assert [file.exists() for file in (whole, half, nothing, other, growing)] == [True, False, False, True, True]
    entry(tmp_path, "growing", packed[:500], age=30)  # its writer was killed; a minute later it is seen to be broken
    os.utime(tmp_path / ".checked", (time.time() - 120, time.time() - 120))
    entry(tmp_path, "growing", packed[:500], age=90)
    compiled.tidy(tmp_path)
    assert not growing.exists()


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    packed = zlib.compress(os.urandom(1000))
    files = [entry(tmp_path, str(age), packed, age=age) for age in (400, 100, 300, 200)]
    compiled.tidy(tmp_path, most=2 * len(packed) + 10)
    assert [file.exists() for file in files] == [False, True, False, True]


def test_a_run_traces_its_network_once_before_the_step(monkeypatch):
    """Shapes, places and the first state come of one trace: a large network takes seconds for each."""
    traced = []
    init = run.nets.init
    monkeypatch.setattr(run.nets, "init", lambda *args: traced.append(1) or init(*args))
    parts = run.build(load_preset(str(TINY)))
    run.make_train_step(parts)
    state = parts.init()
    assert len(traced) == 1
    assert jax.tree.map(lambda x: x.sharding, state) == parts.shardings()
