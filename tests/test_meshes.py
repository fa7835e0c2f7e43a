"""Every mesh computes the same run: one device or eight, data parallel or cut, one process or two."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from together import SETTINGS, together

MESHES = ROOT / "tests" / "presets" / "meshes.py"

# In one process of eight devices: 20 steps on four meshes, then steps 21 to 24 from a checkpoint on three.
ONE_PROCESS = """
import dataclasses, functools, sys
from pathlib import Path
import jax
import numpy as np
from ddpm_jax import config as config_lib
from ddpm_jax import data
from ddpm_jax.config import Devices
from ddpm_jax.training import checkpoint, run
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.preview import preview

workdir, out = map(Path, sys.argv[1:])
config = config_lib.read(workdir / "config.json")
source, key = data.load(config.data), jax.random.key(config.seed + 1)

@functools.cache
def on(count, fsdp):
    parts = run.build(dataclasses.replace(config, devices=Devices(fsdp=fsdp)), devices=jax.devices()[:count])
    return parts, run.make_train_step(parts)

def read(parts):
    with checkpoint.open_folder(workdir / "checkpoints", read_only=True) as manager:
        return checkpoint.restore(manager, parts.abstract(), step=20)

def go_on(name, mesh, state, end):
    parts, step = on(*mesh)
    losses, cut = [], sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    for number in range(int(state.step), end):
        batch = data.batch_at(source, seed=config.seed, step=number, batch_size=config.batch_size, flip=True)
        state, metrics = step(state, mesh_lib.place(batch, mesh_lib.split(parts.mesh)), key)
        losses.append(float(metrics["loss"]))
    keep(name, state, losses=losses, cut=cut)
    return state

def keep(name, state, **more):
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    np.savez(out / f"{name}.npz", **jax.device_get(found), **more)

for name, mesh in {"one": (1, 1), "data": (8, 1), "fsdp": (8, 8), "mixed": (8, 4)}.items():
    go_on(name, mesh, on(*mesh)[0].init(), 20)
keep("processes", read(on(1, 1)[0]))
for name, mesh in {"from_one": (1, 1), "from_data": (8, 1), "from_four": (4, 2)}.items():
    parts = on(*mesh)[0]
    preview(parts, go_on(name, mesh, read(parts), 24).ema, 24, out / name)
"""


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def picture(folder):
    with Image.open(folder / "samples" / "step_00000024.png") as file:
        return np.asarray(file).astype(int)


def on_every_mesh(folder):
    """What each comes to; `two` is the run of two processes of four devices, `on` its continuation on two each."""
    train = ["train.py", MESHES, "--workdir"]
    for ended in together(lambda i: [*train, folder / "two", "--devices.fsdp", "4"], devices=4):
        assert ended.status == 0, ended
    shutil.copytree(folder / "two", folder / "on", ignore=shutil.ignore_patterns("24", "samples"))
    settings = os.environ | SETTINGS | {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", ONE_PROCESS, str(folder / "two"), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for ended in together(lambda i: [*train, folder / "on", "--devices.fsdp", "2"], devices=2):
        assert ended.status == 0, ended


def agree(found, wanted, name):
    """Equal to float32 summation error: 1e-5 of an array's largest number, a hundred units in its last place.

    The meshes add up the same products in other orders, which costs about one such unit a step. A number that is
    nothing but rounding, as the gradient of a key's bias is, has no digits to compare: 1e-9 is far below any other.
    """
    if ".nu" in name:  # of squares of gradients
        found, wanted = np.sqrt(found), np.sqrt(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max() + 1e-9, err_msg=name)


@pytest.mark.slow
def test_every_mesh_computes_the_same_run_and_goes_on_with_the_checkpoint_of_another(tmp_path):
    """Losses, parameters, their average and the optimizer's state after 20 steps are those of one device; and from the
    two processes' checkpoint at 20, steps 21 to 24 and the picture at 24 are theirs.
    """
    on_every_mesh(tmp_path)
    one = dict(np.load(tmp_path / "one.npz"))
    assert one.pop("cut") == 0
    assert one["losses"][-1] < 0.3 * one["losses"][0]  # the steps did something
    for mesh in ("data", "fsdp", "mixed", "processes"):
        other = dict(np.load(tmp_path / f"{mesh}.npz"))
        cut = other.pop("cut", 0)
        assert cut > 20 if mesh in ("fsdp", "mixed") else cut == 0
        other.setdefault("losses", np.array(losses(tmp_path / "two")[:20]))
        assert one.keys() == other.keys()
        for name, wanted in one.items():
            agree(other[name], wanted, f"{name} on {mesh}")
    for name in ("from_one", "from_data", "from_four", "on"):
        found = losses(tmp_path / "on")[20:] if name == "on" else np.load(tmp_path / f"{name}.npz")["losses"]
        assert len(found) == 4
        np.testing.assert_allclose(found, losses(tmp_path / "two")[20:], rtol=1e-5, err_msg=name)
        # One of 255 levels: a sum that rounds the other way.
        assert np.abs(picture(tmp_path / name) - picture(tmp_path / "two")).max() <= 1, name
