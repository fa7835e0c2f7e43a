"""cli.evaluate as a user would call it, on the tiny run: figures, resumption, references, and what is refused."""

import dataclasses
import importlib
import json
import linecache
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import data
from ddpm_jax.cli import evaluate, flags
from ddpm_jax.config import Data
from ddpm_jax.diffusion.parameterization import PREDICTIONS
from ddpm_jax.evaluation.frechet import frechet_distance
from ddpm_jax.training import draw, evaluation, evaluation_sets, run
from ddpm_jax.training.evaluation_task import quickly

PIXELS = ("--features", "pixels", "--num-t", "0")
DIGITS = data.load(Data(source="digits"))
UNSEEN = data.load(Data(source="digits", split="test"))


@pytest.fixture
def workdir(tiny_run, tmp_path):
    return shutil.copytree(tiny_run[0], tmp_path / "tiny")


def measured(workdir, *args):
    """The one result that a call leaves, as {name: figure}; and the whole of it."""
    before = set((workdir / "evaluation").glob("*.json"))
    evaluate.main([str(workdir), *map(str, args)])
    [file] = set((workdir / "evaluation").glob("*.json")) - before
    result = json.loads(file.read_text())
    return {each["name"]: each for each in result["figures"]}, result


def stored(place, images):
    np.savez(place, images=images)
    return place


def test_a_run_is_measured_beside_held_out_images(workdir, capsys):
    found, result = measured(workdir, "--num", 40, "--features", "pixels", "--num-t", 2)
    assert (result["num_images"], result["step"], result["weights"]) == (40, 8, "ema")
    assert found["FD-pixels"]["value"] > found["FD-pixels"]["floor"]["value"] > 0  # eight steps teach little
    for figure in found.values():
        assert figure["low"] is None or figure["low"] <= figure["value"] <= figure["high"], figure
    assert found["bits/dim of held-out images"]["standard_error"] > 0
    said = capsys.readouterr().out
    assert all(name in said for name in found)
    assert "FD-pixels" in (workdir / "report.html").read_text()
    assert "40 samples and 1500 of digits train" in said
    with Image.open(workdir / "evaluation" / result["nearest"]) as picture:
        assert picture.width > picture.height / 2
    assert not list((workdir / "evaluation" / "cache").glob("8_*"))


def test_training_images_given_as_samples_are_found_out(workdir, tmp_path):
    seen = stored(tmp_path / "seen.npz", DIGITS.images[:300])
    found, result = measured(workdir, "--samples", seen, *PIXELS)
    assert found["copies-pixels"]["value"] == 1
    assert found["farther-pixels"]["value"] == 0
    assert result["sampling"] is None


def test_damage_grows_as_it_does(workdir, tmp_path):
    """Held-out images with noise of 16 and 64 levels, blurred, and 30 of them ten times."""
    images = np.asarray(UNSEEN.images)
    noise = np.random.default_rng(0).normal(size=images.shape)
    damaged = {str(s): np.clip(images + s * noise, 0, 255) for s in (16, 64)}
    damaged["blur"] = np.asarray(images, float).reshape(-1, 4, 2, 4, 2, 1).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    damaged["few"] = np.tile(images[:29], (10, 1, 1, 1))
    distances = {}
    for name, pictures in damaged.items():
        place = stored(tmp_path / f"{name}.npz", np.rint(pictures).astype(np.uint8))
        found, _ = measured(workdir, "--samples", place, *PIXELS)
        distances[name] = found["FD-pixels"]["value"]
    floor = found["FD-pixels"]["floor"]["value"]
    assert floor < distances["16"] < distances["64"]
    assert min(distances["blur"], distances["few"]) > floor
    assert found["coverage-pixels"]["value"] < 0.5 * found["coverage-pixels"]["floor"]["value"]


def test_an_interrupted_measurement_goes_on_where_it_stopped(workdir, monkeypatch):
    monkeypatch.setattr(evaluation_sets, "CHUNK", 8)
    drawn, whole = [], evaluation_sets.Drawer.images

    def images(self, numbers):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(int(numbers[0]))
        return whole(self, numbers)

    monkeypatch.setattr(evaluation_sets.Drawer, "images", images)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main([str(workdir), "--num", "20", "--batch-size", "8", *PIXELS])
    assert not list((workdir / "evaluation").glob("*.json"))
    again = []
    monkeypatch.setattr(
        evaluation_sets.Drawer, "images", lambda self, numbers: again.append(int(numbers[0])) or whole(self, numbers)
    )
    resumed, _ = measured(workdir, "--num", 20, "--batch-size", 8, *PIXELS)
    assert drawn == [0, 8]
    assert again[0] == 16
    shutil.rmtree(workdir / "evaluation")
    monkeypatch.setattr(evaluation_sets, "CHUNK", 256)
    assert measured(workdir, "--num", 20, *PIXELS)[0]["FD-pixels"]["value"] == pytest.approx(
        resumed["FD-pixels"]["value"], rel=1e-5
    )


def test_statistics_written_are_statistics_read(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation_sets, "LOT", 400)  # so that there are several
    evaluate.main([str(workdir), "--write-reference", str(tmp_path / "s.npz"), "--features", "pixels"])
    assert "pixels of 1,500 images, digits train" in capsys.readouterr().out
    with np.load(tmp_path / "s.npz") as written:
        pixels = DIGITS.images.reshape(1500, -1) / 127.5 - 1
        np.testing.assert_allclose(written["mu"], pixels.mean(0), atol=1e-6)
        np.testing.assert_allclose(written["sigma"], np.cov(pixels.T), atol=1e-6)
    images = stored(tmp_path / "a.npz", UNSEEN.images)
    found, result = measured(workdir, "--samples", images, "--reference", tmp_path / "s.npz", "--features", "pixels")
    assert result["reference"] == {"what": str(tmp_path / "s.npz"), "num_images": 1500}
    direct = frechet_distance(*(np.asarray(each.images) / 127.5 - 1 for each in (UNSEEN, DIGITS)))
    assert found["FD-pixels"]["value"] == pytest.approx(direct, rel=1e-4)


def test_a_folder_of_pictures_can_be_measured(workdir, tmp_path):
    for i, image in enumerate(UNSEEN.images[:40]):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(tmp_path / "pictures" / f"{i}.png")
    same = stored(tmp_path / "same.npz", UNSEEN.images[:40])
    folder, _ = measured(workdir, "--samples", tmp_path / "pictures", *PIXELS)
    packed, _ = measured(workdir, "--samples", same, *PIXELS)
    assert folder["FD-pixels"]["value"] == pytest.approx(packed["FD-pixels"]["value"], rel=1e-6)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--features", "pixel"], "did you mean 'pixels'"),
        (["--num", "-1"], "--num must be at least 0, got -1"),
        (["--num-reference", "1"], "--num-reference must be at least 2"),
        (["--held-out", "tset", *PIXELS], "did you mean 'test'"),
        (["--samples", "{tmp}/one.npz", *PIXELS], "at least 2 samples, got 1"),
        (["--samples", "{tmp}/wide.npz", *PIXELS], r"--samples must be images of shape \(8, 8, 1\), got \(9, 9, 1\)"),
        (["--samples", "{tmp}/empty", *PIXELS], "empty"),
        (["--reference", "{tmp}/fid.npz", "--features", "pixels"], "of 2048 features, pixels has 64; published"),
        (["--reference", "{tmp}/none.npz", "--features", "pixels"], "there is no file"),
        (["--reference", "a.npz", "--features", "pixels", "efficientnet"], "one kind of features, got 2"),
        (["--reference", "a.npz", "--write-reference", "b.npz"], "give one"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_a_line(workdir, tmp_path, args, message):
    stored(tmp_path / "one.npz", UNSEEN.images[:1])
    stored(tmp_path / "wide.npz", np.zeros((4, 9, 9, 1), np.uint8))
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate.main([str(workdir), *(arg.format(tmp=tmp_path) for arg in args)])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_quick_measurement_takes_few_steps_of_any_network(prediction):
    config = flags.load_preset("digits")
    config = dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, prediction=prediction))
    task = quickly(config, features=("pixels",))
    assert (task.num, task.sampling.steps, task.data) == (2000, (20,), config.data)
    assert draw.way(run.build(config, to_train=False), task.sampling).num_steps == 20


def test_what_was_asked_for_is_not_made_quicker(workdir, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "evaluate", lambda parts, state, task, *rest, **options: asked.append(task) or {})
    monkeypatch.setattr(evaluate, "_print", lambda *said: None)
    for args in (
        ["--num-t", "16"],
        ["--num-reference", "50000"],
        ["--steps", "10"],
        ["--guidance-interval", "0.1", "9"],
    ):
        evaluate.main([str(workdir), "--quick", *args])
    assert (asked[0].num_t, asked[1].num_reference, asked[2].sampling.steps) == (16, 50_000, (10,))
    assert [task.sampling.sampler for task in asked] == ["dpm_solver_pp_2m"] * 4
    assert [task.num for task in asked] == [2000] * 4


def test_data_of_one_split_are_measured_without_a_floor(workdir, tmp_path):
    own = stored(tmp_path / "own.npz", DIGITS.images[:60])
    found, result = measured(workdir, "--num", 12, *PIXELS, "--data.source", "array", "--data.path", own)
    assert all(figure["floor"] is None for figure in found.values())
    assert result["reference"]["held_out"] == 0
    found, _ = measured(workdir, "--num", 12, *PIXELS, "--data.split", "all")
    assert "copies-pixels" not in found


def test_features_that_changed_are_looked_for_again(workdir, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    distances = []
    for i, factor in enumerate((1.0, 100.0)):
        (tmp_path / "mine.py").write_text(f"def sums(images):\n    return images.sum((2, 3)) * {factor}  # {i}\n")
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        linecache.clearcache()
        found, _ = measured(workdir, "--num", 12, "--num-t", 0, "--features", "mine:sums")
        distances.append(found["FD-mine:sums"]["value"])
    assert distances[1] == pytest.approx(1e4 * distances[0], rel=1e-3)


def test_weights_have_a_name_of_their_own():
    params = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    name = evaluation_sets.fingerprint(params)
    assert name == evaluation_sets.fingerprint({key: value.copy() for key, value in params.items()})
    swapped = params | {"a": params["a"][:, ::-1].copy()}
    nudged = params | {"b": np.nextafter(params["b"], np.float32(2))}
    assert len({name, evaluation_sets.fingerprint(swapped), evaluation_sets.fingerprint(nudged)}) == 3
