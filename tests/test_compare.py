"""python -m ddpm_jax.cli.compare, as a user runs it."""

import html

import numpy as np
import pytest
from conftest import ROOT, run_program

from ddpm_jax.cli.compare import main
from ddpm_jax.config import read
from ddpm_jax.evaluation import comparison
from ddpm_jax.training import report, run

SMALLEST = ROOT / "tests" / "presets" / "smallest.py"
OWN = "import jax.numpy as jnp\n\n\ndef tilted(log_snr, *, slope=0.5):\n    return jnp.exp(-slope * log_snr)\n"
FEW = ["--bins", "3", "--pairs", "4", "--num-samples", "6", "--shown", "2", "--sample-steps", "2"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder of a finished comparison, and the program that made it."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "own.py").write_text(OWN)
    asked = ["--weightings", "simple", f"{folder / 'own.py'}:tilted(slope=0.3)", "--seeds", "2", *FEW, "--export"]
    command = ["-m", "ddpm_jax.cli.compare", SMALLEST, "--workdir", folder / "run", *asked]
    return folder / "run", run_program(*command, devices=2)


def test_it_trains_measures_and_tells_what_it_found(compared):
    workdir, done = compared
    assert done.returncode == 0, done.stderr
    verdicts = [line for line in done.stdout.splitlines() if "own.py:tilted(slope=0.3)" in line]
    assert len(verdicts) == 4
    assert all("of 2 seeds" in line for line in verdicts)
    assert f"wrote {workdir / 'report.html'}" in done.stdout
    assert [line["step"] for line in report.read(workdir)] == [2, 4]
    assert "own.py:tilted(slope=0.3)" in html.unescape((workdir / "report.html").read_text())


def test_the_record_has_every_figure_of_every_member(compared):
    found = comparison.read(compared[0])
    assert [variant.name for variant in found.variants] == ["simple", "own.py:tilted(slope=0.3)"]
    assert found.variants[0].settings == {}
    assert found.variants[1].settings["--diffusion.weighting-args"] == "slope 0.3"
    assert found.seeds == (0, 1)
    names = ["bits/dim", "L_simple", "L_simple in training", "Frechet distance of pixels"]
    assert [metric.name for metric in found.metrics] == names
    for metric in found.metrics:
        assert np.isfinite(metric.values).all()
        assert len(np.unique(metric.values)) == 4
    assert np.isfinite(found.loss).all()
    for array in (found.bits_by_bin, found.grad_norm, found.grad_noise):
        assert array is not None
        assert array.shape == (2, 2, 3)
    assert found.samples is not None
    assert found.samples.shape == (2, 2, 2, 8, 8, 1)
    assert (found.steps_per_second > 0).all()


def test_at_the_start_members_of_a_seed_have_met_the_same(compared):
    """One parameter update apart, their errors in each bin are all but equal; those of two seeds are not."""
    error = comparison.read(compared[0]).eps_error[:, :, 0]
    np.testing.assert_allclose(error[0], error[1], rtol=0.05)
    assert np.abs(error[:, 0] / error[:, 1] - 1).max() > 0.05


def test_an_exported_member_is_a_run(compared):
    folder = compared[0] / "members" / "own.py_tilted_slope=0.3_seed_1"
    assert read(folder / "config.json").seed == 1
    parts, state = run.load(folder)
    assert int(state.step) == 4
    assert parts.config.diffusion.weighting.endswith("own.py:tilted")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--num-samples", "1"], "--num-samples must be 0, or at least 2"),
        (["--pairs", "1"], "--pairs must be at least 2, got 1"),
        (["--weigthings", "simple"], "--weightings"),
        (["--weightings", "simple", "--weightings", "p2"], "--weightings takes all its values at once.*2 times"),
        (["--weightings", "simple"], "at least two variants"),
        (["--weightings", "simple", "p2", "--held-out", "tset"], "--held-out tset: .*'test'"),
        (["--weightings", "simple", "p2", "--bins", "1000"], "--bins must be at most 100"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(more, told):
    with pytest.raises(ValueError, match=told):
        main(["digits", *more])
