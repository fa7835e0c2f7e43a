"""train.py --dry-run: what would be done is said, and nothing is."""

import dataclasses
import runpy

import jax
import numpy as np
import pytest
from conftest import ROOT, TINY

from ddpm_jax.cli import dry_run
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Data

CONFIG = load_preset(str(TINY))


def told(config, workdir, **options):
    """What is said, by its title; lines without one go with the one before."""
    found, title = {}, ""
    for line in dry_run.lines(config, workdir, **options):
        title = line[:10].strip() or title
        found[title] = f"{found[title]}\n{line[10:]}" if title in found else line[10:]
    return found


def test_it_says_what_a_new_run_would_do_and_writes_nothing(tmp_path, program):
    workdir = tmp_path / "new"
    home = {"HOME": str(tmp_path), "DDPM_JAX_CACHE": str(tmp_path / "cache")}
    done = program("-c", f"import os, runpy, sys; os.environ.update({home}); sys.argv = "
                   f"['train.py', {str(TINY)!r}, '--workdir', {str(workdir)!r}, '--dry-run']; "
                   f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')", devices=2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{workdir}, from the beginning, to step 8, 8 images each" in done.stdout
    assert "2 of cpu (cpu), mesh data 2 x fsdp 1" in done.stdout
    assert done.stdout.endswith("nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_parameters_bytes_and_images_are_those_of_the_run(tiny_run, tmp_path):
    _, state = tiny_run
    said = told(CONFIG, tmp_path / "new")
    count = sum(x.size for x in jax.tree.leaves(state.params))
    assert said["network"] == f"unet, {count:,} parameters, computes in float32"
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert float(said["memory"].split()[0]) == pytest.approx(held / 2**20, abs=0.051)
    assert said["data"] == f"digits train, 1,500 images of 8x8x1, each seen {8 * 8 / 1500:.3g} times"
    assert said["compiles"].splitlines() == [
        "the step, of images [8, 8, 8, 1]",
        "previews: 5 steps of ddim, 4 images at once",
    ]


def test_a_finished_run_has_nothing_left_and_a_longer_one_goes_on(tiny_run):
    workdir, _ = tiny_run
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert "there is nothing left to do" in told(CONFIG, workdir)["run"]
    longer = dataclasses.replace(CONFIG, steps=12)
    assert told(longer, workdir)["run"] == (
        f"{workdir} goes on from step 8, to step 12, 8 images each\nwith steps: 8 -> 12"
    )
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_what_the_run_would_refuse_is_refused(tiny_run, tmp_path):
    with pytest.raises(ValueError, match=r"holds a run that this config can't go on with; .*diffusion.num_steps"):
        told(dataclasses.replace(CONFIG, diffusion=dataclasses.replace(CONFIG.diffusion, num_steps=41)), tiny_run[0])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="has other things in it"):
        told(CONFIG, tmp_path)
    with pytest.raises(ValueError, match="log-every must be at least 1, got 0"):
        told(dataclasses.replace(CONFIG, run=dataclasses.replace(CONFIG.run, log_every=0)), tmp_path / "new")


def test_a_program_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--program: there is no file .*/none"):
        told(CONFIG, tmp_path / "new", program=tmp_path / "none")


def test_launch_flags_are_refused_since_it_is_of_one_process(tmp_path):
    main = runpy.run_path(str(ROOT / "train.py"))["main"]
    with pytest.raises(ValueError, match="--dry-run is of this process alone: leave --launch out"):
        main([str(TINY), "--workdir", str(tmp_path / "new"), "--dry-run", "--launch.num-processes", "2"])


def test_data_that_is_not_there_is_told_and_not_fetched(tmp_path):
    absent = Data(source="array", path=str(tmp_path / "none.npy"), shape=(8, 8, 1))
    said = told(dataclasses.replace(CONFIG, data=absent), tmp_path / "new")
    assert said["data"].startswith("NOT HERE: ")
    assert str(tmp_path / "none.npy") in said["data"]
    folder = Data(source="folder", path=str(tmp_path / "none"), shape=(8, 8, 1))
    assert "not looked into" in told(dataclasses.replace(CONFIG, data=folder), tmp_path / "new")["data"]


def test_work_is_three_forward_passes_of_every_image():
    twice = dataclasses.replace(CONFIG, batch_size=16)
    once, double = (
        float(told(config, ROOT / "no" / "such" / "folder")["work"].split()[0]) for config in (CONFIG, twice)
    )
    np.testing.assert_allclose(double, 2 * once, rtol=0.01)
