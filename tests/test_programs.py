"""The programs as a user meets them: files they write, and one line for what went wrong."""

import runpy
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY
from PIL import Image

from ddpm_jax import config as config_lib
from ddpm_jax.cli import flags


@pytest.fixture
def call(monkeypatch):
    """call(file or module, arguments...) runs a program in this process, as `run` would; returns its status."""

    def run(target, *args):
        monkeypatch.setattr(sys, "argv", [str(target), *map(str, args)])
        try:
            if str(target).endswith(".py"):
                runpy.run_path(str(ROOT / target), run_name="__main__")
            else:
                monkeypatch.delitem(sys.modules, target, raising=False)  # another test may have imported it
                runpy.run_module(target, run_name="__main__", alter_sys=False)
        except SystemExit as stop:
            return stop.code or 0
        return 0

    return run


def picture(path):
    with Image.open(path) as file:
        return np.asarray(file)


def test_train_without_a_preset_lists_them_all_with_a_line_each(call, capsys):
    assert call("train.py") == 0
    said = capsys.readouterr().out
    for file in (ROOT / "configs").glob("*.py"):
        line = file.read_text().split("\n")[0].strip('"')
        assert any(row.split() and row.split()[0] == file.stem and row.endswith(line) for row in said.splitlines())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["digts"], "there is no preset 'digts', did you mean 'digits'?"),
        (["digits", "--batchsize", "3"], "--batch-size"),
        (["digits", "--steps", "many"], "--steps"),
        (["--steps", "3"], "the first argument must be a preset, got '--steps'"),
        (["digits", "--diffusion.schedule", "cosin"], "did you mean 'cosine'?"),
        (
            ["digits", "--diffusion.schedule", "linear", "--diffusion.schedule-args", "beta_edn", "1"],
            "did you mean 'beta_end'?",
        ),
        (["digits", "--data.source", "digit"], "did you mean 'digits'?"),
        (["digits", "--data.split", "tran"], "train"),
        (["prints", "--data.path", "no/such/folder"], "no/such/folder"),
        (["digits", "--data.shape", "10", "10", "1"], "(8, 8, 1)"),
    ],
)
def test_train_answers_a_mistake_with_one_line_that_names_the_way_out(call, args, message, capsys, tmp_path):
    workdir = [] if args[0].startswith("-") else ["--workdir", tmp_path / "run"]
    assert call("train.py", *args, *workdir) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("train.py: ")
    assert message in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{run}x"], "did you mean '{run}'?"),
        (["{run}", "--sampler", "dim"], "did you mean 'ddim'?"),
        (["{run}", "--step", "10"], "--steps"),
        (["{run}", "--steps", "41"], "41"),
        (["{run}", "--label", "10"], "0 .. 9"),
        (["{run}", "--out", "x.jpg"], "--out must end in .png, got x.jpg"),
        (["{run}", "--npz", "x.npy"], "--npz must end in .npz, got x.npy"),
        (["{run}", "--checkpoint", "5"], "no checkpoint 5: found [6, 8]"),
        (["{run}", "--num", "0"], "--num"),
        (["{run}", "--eta", "2", "--sampler", "ddim"], "eta must lie in [0, 1], got 2.0"),
        (["{run}", "--variance", "learned"], ": --variance learned needs a run of that --diffusion.variance"),
        (["{run}", "--frames", "1"], "--frames must be 0 or at least 2, got 1"),
        (
            ["{run}", "--interpolate", "1", "--interpolate-from", "40"],
            "--interpolate-from must lie in 0 .. 39, got 40.0",
        ),
    ],
)
def test_sample_answers_a_mistake_with_one_line_that_names_the_way_out(call, tiny_run, args, message, capsys, tmp_path):
    args = [arg.replace("{run}", str(tiny_run[0])) for arg in args]
    out = [] if "--out" in args else ["--out", tmp_path / "x.png"]
    assert call("sample.py", *args, *out) == 2
    said = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("sample.py: ")]
    assert len(said) == 1
    assert message.replace("{run}", str(tiny_run[0])) in said[0]


def test_sample_writes_a_grid_a_strip_an_animation_and_what_was_asked_for(call, tiny_run, tmp_path, capsys):
    out = tmp_path / "deep" / "a.png"
    status = call(
        "sample.py", tiny_run[0], "--num", 5, "--out", out, "--npz", tmp_path / "a.npz", "--singles", tmp_path / "s",
        "--interpolate", 2, "--frames", 5, "--sampler", "ddim", "--steps", 4,
    )  # fmt: skip
    assert status == 0, capsys.readouterr().err
    assert {path.name for path in out.parent.iterdir()} == {
        "a.png", "a_denoising.png", "a_denoising.gif", "a_interpolation.png",
    }  # fmt: skip
    with Image.open(out.parent / "a_denoising.gif") as film:
        assert film.n_frames == 5
    with np.load(tmp_path / "a.npz") as packed:
        images, labels = packed["images"], packed["labels"]
    assert images.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(labels, range(5))
    assert len(list((tmp_path / "s").iterdir())) == 5
    np.testing.assert_array_equal(picture(tmp_path / "s" / "000003.png"), images[3, :, :, 0])


def drawn(call, workdir, file, *args):
    assert call("sample.py", workdir, "--npz", file, "--out", file.with_suffix(".png"), "--frames", 0, *args) == 0
    with np.load(file) as packed:
        return packed["images"].astype(int)


def test_an_image_is_the_same_in_any_batch_and_another_for_another_seed(call, tiny_run, tmp_path):
    seven = drawn(call, tiny_run[0], tmp_path / "a.npz", "--num", 7, "--batch-size", 7)
    one = drawn(call, tiny_run[0], tmp_path / "b.npz", "--num", 7, "--batch-size", 1)
    other = drawn(call, tiny_run[0], tmp_path / "c.npz", "--num", 7, "--batch-size", 7, "--seed", 1)
    assert abs(seven - one).max() <= 1  # of 255: sums in another order
    assert abs(seven - other).max() > 50


def test_averaged_weights_are_used_unless_raw_ones_are_asked_for(call, tiny_run, tmp_path):
    averaged = drawn(call, tiny_run[0], tmp_path / "a.npz", "--num", 2)
    raw = drawn(call, tiny_run[0], tmp_path / "b.npz", "--num", 2, "--raw")
    assert abs(averaged - raw).max() > 0


def test_explain_draws_the_way_there_the_way_back_the_schedules_and_the_weightings(call, tmp_path, capsys):
    assert call("ddpm_jax.cli.explain", "digits", "--out", tmp_path / "e", "--diffusion.num-steps", 50) == 0
    names = {path.name for path in (tmp_path / "e").iterdir()}
    assert names == {
        "forward.png", "reverse_known_x0.png", "schedules.png", "schedule.png", "weightings.png", "factors.png",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert all(name in said for name in names)
    there, back = (picture(tmp_path / "e" / f"{n}.png") for n in ("forward", "reverse_known_x0"))
    assert there.shape == back.shape
    # The first frame of the way there and the last of the way back are the image itself.
    width = there.shape[1]
    cell = (width - 4) // 8
    np.testing.assert_array_equal(there[20:, 4:cell], back[20:, width - cell : width - 4])


def test_presets_name_command_hardware_and_result(call):
    for file in (ROOT / "configs").glob("*.py"):
        text = file.read_text()
        assert all(mark in text for mark in ("Command:   python train.py", "Hardware:", "Result:")), file.name
        assert isinstance(flags.load_preset(file.stem), config_lib.Config)


def test_a_preset_of_ones_own_is_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("from ddpm_jax.config import Config\nconfig = Config(steps=7)\n")
    asked = flags.training([str(tmp_path / "mine.py"), "--seed", "3"])
    assert (asked.config.steps, asked.config.seed, asked.workdir.name) == (7, 3, "mine")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"empty.py must define `config`"):
        flags.load_preset(str(tmp_path / "empty.py"))


def test_tiny_is_no_preset_of_the_product():
    assert TINY.stem not in flags.presets()
