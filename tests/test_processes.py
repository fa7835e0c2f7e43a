"""Several processes, several devices, and a run that is asked to stop: real processes on this machine."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY

from ddpm_jax.cli import flags
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Launch
from ddpm_jax.training import mesh, processes
from ddpm_jax.training.loop import train

COLLECTIVES = """
import collections, dataclasses, re, jax
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Devices
from ddpm_jax.data import Batch
from ddpm_jax.training import run
from ddpm_jax.training.step import make_step

preset = load_preset("tests/presets/tiny.py")
parts = run.build(dataclasses.replace(preset, devices=Devices(fsdp=4)))
step = make_step(run.make_loss(parts), parts.optimizer, ema_decay=0.9, num_steps=40, mesh=parts.mesh,
                 remember=run.make_remember(parts), shardings=parts.shardings())
batch = Batch(images=jax.ShapeDtypeStruct((8, 8, 8, 1), "float32"), labels=jax.ShapeDtypeStruct((8,), "int32"))
text = step.lower(parts.abstract(), batch, jax.random.key(0)).compile().as_text()
kinds = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
print(dict(collections.Counter(re.findall(rf" ({kinds})(?:-start)?\\(", text))))
"""


def start(workdir, *arguments, devices=1):
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "train.py", TINY, "--workdir", workdir, *arguments]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_goes_on_alone(tiny_run, tmp_path):
    """Two processes of two devices, the state cut in two; then one process with one device, from their checkpoint.

    Sums in another order: 1e-4 relative over ten steps, as for four devices.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launch = ["--launch.coordinator", f"localhost:{port}", "--launch.num-processes", "2", "--launch.timeout", "60"]
    both = [
        start(tmp_path / "two", "--devices.fsdp", "2", *launch, "--launch.process-id", str(i), devices=2)
        for i in range(2)
    ]
    said = [process.communicate(timeout=280)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "is at step 8" in said[0]
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tiny_run[0]), rtol=1e-4)
    shutil.copytree(tiny_run[0], tmp_path / "one")
    for name in ("one", "two"):
        train(dataclasses.replace(load_preset(str(TINY)), steps=10), tmp_path / name)
    assert len(losses(tmp_path / "two")) == 5
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)


@pytest.mark.slow
def test_a_run_that_is_told_to_end_is_saved_and_ends_well(tmp_path):
    every = ["--run.log-every", "1", "--run.checkpoint-every", "4000", "--run.sample-every", "4000"]
    process = start(tmp_path / "run", "--steps", "4000", *every)
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "metrics.jsonl").exists() or len(losses(tmp_path / "run")) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    found = re.search(r"was asked to stop, and is saved at step (\d+); the same command goes on", said)
    assert found, said
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == [found[1]]


def test_the_step_moves_weights_and_never_activations():
    """Eight devices, the state cut in four: gathers and sums. Permutations and all-to-alls would be of activations."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COLLECTIVES], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1].replace("'", '"'))
    assert found.get("all-gather", 0) > 10
    assert not {"collective-permute", "all-to-all"} & found.keys(), found


def test_arrays_are_cut_along_their_longest_axis_that_divides():
    class Four:
        shape = {"data": 1, "fsdp": 4}  # noqa: RUF012

    whole = {"bias": (512,), "odd": (3, 3, 15, 9)}
    cut = {"kernel": (3, 3, 64, 128), "wide": (3, 3, 256, 6), "dense": (30, 1024)}
    axes = {"kernel": 3, "wide": 2, "dense": 1}
    for shape in whole.values():
        assert mesh.cut_axis(Four, shape) is None  # pyright: ignore[reportArgumentType]
    for name, shape in cut.items():
        assert mesh.cut_axis(Four, shape) == axes[name]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (Launch(coordinator="localhost:1"), "go together, got 'localhost:1', 0 and -1"),
        (Launch(num_processes=2, process_id=0), "go together, got '', 2 and 0"),
        (Launch(coordinator="localhost:1", num_processes=2, process_id=2), "process-id must lie in 0 .. 1, got 2"),
        (Launch(timeout=0), "--launch.timeout must be at least 1 second, got 0"),
    ],
)
def test_half_a_launch_is_refused(launch, message):
    with pytest.raises(ValueError, match=message):
        processes.join(launch)


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"--devices\.fsdp must divide the 1 devices, got 3; try one of 1"):
        mesh.make_mesh(3)
    with pytest.raises(ValueError, match="by the 1 devices times 3 parts, got 8; try 6 or 9"):
        mesh.check_batch(8, mesh.make_mesh(), parts=3)


def test_how_processes_meet_is_no_part_of_a_run(tmp_path):
    asked = flags.training(["digits", "--launch.timeout", "7", "--devices.accumulate", "2"])
    assert asked.launch.timeout == 7
    assert asked.config.devices.accumulate == 2
    assert not hasattr(asked.config, "launch")
