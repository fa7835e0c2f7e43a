"""Evaluations while a run trains: what they leave, which checkpoint they keep, and what they don't stop."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from test_ema_snapshots import CONFIG, small

from ddpm_jax.training import evaluation, report, run, watching
from ddpm_jax.training.loop import train

__all__ = ["small"]  # a network of two parameters in place of any

SETTINGS = {
    "evaluate_every": 4,
    "checkpoint_every": 4,
    "evaluate_num": 24,
    "evaluate_features": ("pixels",),
    "keep_last": 1,
    "ema_snapshot_every": 0,
}


def config(steps=8, **settings):
    optimizer = dataclasses.replace(CONFIG.optimizer, ema_sigma_rels=())
    run_settings = dataclasses.replace(CONFIG.run, **(SETTINGS | settings))
    return dataclasses.replace(CONFIG, steps=steps, optimizer=optimizer, run=run_settings)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("watched") / "tiny"
    with pytest.MonkeyPatch.context() as patch:  # the first evaluation is made the best
        patch.setattr(evaluation, "best", lambda result: float(result["step"]))
        train(config(), workdir)
    return workdir


def evaluations(workdir):
    return {line["step"]: line["evaluation"] for line in report.read(workdir) if "evaluation" in line}


def test_a_run_is_evaluated_as_often_as_it_says(watched):
    found = evaluations(watched)
    assert sorted(found) == [4, 8]
    files = [json.loads(path.read_text()) for path in (watched / "evaluation").glob("*.json")]
    assert sorted(each["step"] for each in files) == [4, 8]
    for each in files:
        assert each["quick"]
        assert each["num_images"] == 24
        assert evaluation.brief(each) == found[each["step"]]
    # the page has them
    assert "FD-pixels" in (watched / "report.html").read_text()


def test_the_best_and_the_newest_checkpoints_stay(watched):
    kept = {int(path.name) for path in (watched / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {4, 8}
    assert int(run.load(watched, step="best")[1].step) == 4
    assert int(run.load(watched)[1].step) == 8


def test_the_first_figure_says_which_is_best(watched):
    found = evaluations(watched)
    [first, _] = sorted((watched / "evaluation").glob("*.json"))
    result = json.loads(first.read_text())
    assert evaluation.best(result) == found[result["step"]]["FD-pixels (PCA-61)"]["value"]


def test_a_resumed_run_keeps_the_best_of_before(watched, tmp_path, monkeypatch):
    """Scores are in the checkpoints: those of later steps are made worse than all before."""
    workdir = shutil.copytree(watched, tmp_path / "tiny")
    monkeypatch.setattr(evaluation, "best", lambda result: 1e6)
    train(config(steps=12), workdir)
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {4, 12}
    assert sorted(evaluations(workdir)) == [4, 8, 12]


def test_no_evaluation_stops_a_run(tmp_path, monkeypatch, capsys):
    """A network that draws NaN is a reason to say so, not to lose what was trained."""
    monkeypatch.setattr(
        watching.evaluation_sets.Drawer, "images", lambda self, numbers: exec('raise ValueError("draws NaN")')
    )
    train(config(steps=4), tmp_path / "tiny")
    assert "no evaluation at step 4: draws NaN" in capsys.readouterr().out
    assert evaluations(tmp_path / "tiny") == {}
    with pytest.raises(FileNotFoundError, match="no evaluated checkpoint"):
        run.load(tmp_path / "tiny", step="best")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluate_every": 3}, "--run.evaluate-every must be a multiple of --run.checkpoint-every 4"),
        ({"evaluate_num": 0}, "--run.evaluate-num must be at least 1, got 0"),
        ({"keep_best": -1}, "--run.keep-best must be 0 or more, got -1"),
        ({"evaluate_features": ("pixel",)}, "did you mean 'pixels'"),
    ],
)
def test_what_can_not_be_evaluated_is_refused_before_the_first_step(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(config(**settings), tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


def test_data_of_one_split_has_no_floor(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", images=images)
    own = dataclasses.replace(CONFIG.data, source="array", path=str(tmp_path / "own.npz"))
    train(dataclasses.replace(config(steps=4), data=own), tmp_path / "own")
    [found] = (tmp_path / "own" / "evaluation").glob("*.json")
    assert all(each["floor"] is None for each in json.loads(found.read_text())["figures"])
