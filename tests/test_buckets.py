"""A run's folder in a bucket: what is read and written there, and what is said where it can't be.

The bucket is a dictionary behind epath's own mock. Checkpoints reach a bucket by Orbax and TensorStore, which the mock
doesn't see: here they lie on this machine.
"""

import dataclasses
import fnmatch
import io
import runpy
import shutil
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from conftest import ROOT, TINY
from etils import epath
from PIL import Image

from ddpm_jax import config as config_lib
from ddpm_jax import files
from ddpm_jax.cli import flags
from ddpm_jax.figures import pictures
from ddpm_jax.training import preview, report
from ddpm_jax.training.loop import train

RUN = "gs://bucket/runs/tiny"


class Object(io.BytesIO):
    """What is written to an object is there when it is closed, as in a bucket."""

    def __init__(self, objects, name):
        super().__init__()
        self.objects, self.name = objects, name

    def close(self):
        if not self.closed:
            self.objects[self.name] = self.getvalue()
        super().close()


@pytest.fixture
def bucket(monkeypatch):
    """The objects of all buckets, by name. Folders are what names have in common, and nothing can be appended to."""
    objects: dict[str, bytes] = {}

    def below(path):
        return [name[len(path) + 1 :] for name in objects if name.startswith(f"{path}/")]

    def opened(path, mode):
        if mode == "wb":
            return Object(objects, path)
        if mode not in ("r", "rb"):
            raise ValueError(f"can't open an object for {mode}")
        if path not in objects:
            raise FileNotFoundError(path)
        raw = io.BytesIO(objects[path])
        return raw if mode == "rb" else io.TextIOWrapper(raw)

    there = {
        "open": opened,
        "exists": lambda path: path in objects or bool(below(path)),
        "isdir": lambda path: bool(below(path)),
        "listdir": lambda path: sorted({name.split("/")[0] for name in below(path)}),
        "glob": lambda path: [n for n in objects if n.count("/") == path.count("/") and fnmatch.fnmatch(n, path)],
    }

    def either(function):
        return lambda local, path, *mode: (function if str(path).startswith("gs://") else local)(path, *mode)

    monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(files, "_is_installed", lambda package: True)
    with epath.testing.mock_epath(**{name: either(function) for name, function in there.items()}):
        yield objects


def test_a_place_is_of_this_machine_or_of_a_bucket(bucket):
    assert files.place("runs/a") == Path("runs/a")
    assert isinstance(files.place(epath.Path("runs/a")), Path)
    place = files.place("gs://bucket/a/")
    assert str(place / "b.png") == "gs://bucket/a/b.png"
    assert str(files.absolute(place)) == str(place) == "gs://bucket/a"
    assert files.place(place) == place
    assert files.absolute(Path("a")) == Path.cwd() / "a"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s3://bucket/a", "a path must be one of this machine or gs://BUCKET/NAME, got 's3://bucket/a'"),
        (Path("gs://bucket/a"), "gs://BUCKET/NAME, got 'gs:/bucket/a'"),  # as pathlib shortens it
        ("gs://", "a path in a bucket is gs://BUCKET/NAME, got 'gs://'"),
        ("gs:///a", "a path in a bucket is gs://BUCKET/NAME, got 'gs:///a'"),
    ],
)
def test_a_name_that_is_neither_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        files.place(name)


@pytest.mark.parametrize("missing", [["gcsfs"], ["google.cloud.storage"], ["gcsfs", "google.cloud.storage"]])
def test_what_a_bucket_needs_is_asked_for_with_the_command_that_brings_it(monkeypatch, capsys, missing):
    monkeypatch.setattr(files, "_is_installed", lambda package: package not in missing)
    monkeypatch.setattr(sys, "argv", ["train.py", str(TINY), "--workdir", "gs://bucket/run"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert stop.value.code == 2
    said = f"train.py: gs://bucket/run needs {' and '.join(missing)}: pip install 'ddpm_jax[gcs]'"
    assert capsys.readouterr().err.strip() == said


def test_a_package_is_looked_for_without_importing_it():
    assert files._is_installed("json.decoder")
    assert not files._is_installed("no_such_package.part.of_it")


def test_an_object_is_written_once_and_whole(bucket):
    files.write("gs://bucket/deep/a.txt", b"one")
    files.write(files.place("gs://bucket/deep/a.txt"), b"two")
    assert bucket == {"gs://bucket/deep/a.txt": b"two"}
    with files.local(files.place("gs://bucket/deep/a.txt")) as copy:
        assert (copy.name, copy.read_bytes()) == ("a.txt", b"two")
    assert not copy.exists()
    with files.local(Path("a.txt")) as same:
        assert same == Path("a.txt")


class LoginError(Exception):
    """Of a kind of its own, as those of the libraries that reach buckets are."""


@pytest.mark.parametrize(
    "call",
    [
        lambda place: files.write(place, b""),
        files.is_file,
        files.is_dir,
        lambda place: files.local(place).__enter__(),
        config_lib.read,
    ],
)
def test_a_bucket_that_does_not_answer_is_one_kind_of_error(bucket, call):
    def fail(*args):
        raise LoginError("not you")

    with (
        epath.testing.mock_epath(open=fail, exists=fail, isdir=fail),
        pytest.raises(OSError, match=r"^gs://bucket/a can't be reached \(LoginError: not you\)$"),
    ):
        call(files.place("gs://bucket/a"))


def test_a_flag_takes_either_kind_of_path(bucket, tmp_path):
    at = flags.training([str(TINY), "--workdir", RUN]).workdir
    assert (str(at), at.name) == (RUN, "tiny")
    assert flags.training([str(TINY), "--workdir", str(tmp_path)]).workdir == tmp_path
    assert flags.training([str(TINY)]).workdir == Path("runs/tiny")
    with pytest.raises(ValueError, match=r"--workdir.*gs://BUCKET/NAME.*s3://bucket/run"):
        flags.training([str(TINY), "--workdir", "s3://bucket/run"])


def test_a_run_in_a_bucket_is_found_by_its_name(bucket):
    config = dataclasses.replace(flags.load_preset(str(TINY)), seed=5)
    config_lib.write(config, files.place(RUN) / "config.json")
    assert flags.run_folder(f"{RUN}/") == (files.place(RUN), config)
    again = flags.training([RUN, "--steps", "9"])
    assert (str(again.workdir), again.config) == (RUN, dataclasses.replace(config, steps=9))
    with pytest.raises(FileNotFoundError, match="gs://bucket/runs/tny is no run's folder"):
        flags.run_folder("gs://bucket/runs/tny")


def test_the_log_reaches_the_bucket_when_it_is_due_pushed_or_closed(bucket, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])
    place = files.place(RUN)
    bucket[f"{RUN}/metrics.jsonl"] = b'{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 0.5}\n{"step": 6, "lo'

    def steps():
        return [line["step"] for line in report.read(place)]

    with report.open_log(place, 2) as (write, push):
        write(4, {"loss": 0.25})
        assert steps() == [2, 4]  # as it was: nothing is due yet
        clock[0] += report.PUSH_EVERY
        write(6, {"loss": 0.5})
        assert [line["loss"] for line in report.read(place)] == [1.0, 0.25, 0.5]
        write(8, {"loss": 0.5})
        assert steps() == [2, 4, 6]
        push()
        assert steps() == [2, 4, 6, 8]
        write(10, {"loss": 0.5})
    assert steps() == [2, 4, 6, 8, 10]
    events = [content for name, content in bucket.items() if "/events.out.tfevents." in name]
    assert len(events) == 1
    assert events[0].count(b"loss") == 4


def test_pictures_of_a_bucket_become_its_film(bucket):
    place = files.place(RUN)
    assert preview.progress(place) is None
    for step in (8, 16):
        pictures.save_png(place / "samples" / f"step_{step:08d}.png", np.full((4, 4, 1), step, np.uint8))
    assert preview.progress(place) == place / "samples" / "training.gif"
    with Image.open(io.BytesIO(bucket[f"{RUN}/samples/training.gif"])) as film:
        assert film.n_frames == 2


def test_a_folder_of_other_things_is_no_place_for_a_run(bucket):
    bucket[f"{RUN}/"] = b""  # as Google's console makes an empty folder
    assert files.entries(files.place(RUN)) == []
    bucket[f"{RUN}/holiday.jpg"] = b""
    assert files.entries(files.place(RUN)) == [files.place(RUN) / "holiday.jpg"]
    with pytest.raises(ValueError, match=f"{RUN} has other things in it"):
        train(flags.load_preset(str(TINY)), RUN)
    assert list(bucket) == [f"{RUN}/", f"{RUN}/holiday.jpg"]


def test_a_run_in_a_bucket_goes_on_and_is_drawn_from(bucket, tiny_run, tmp_path, monkeypatch):
    """From step 6 to the state of the run on this machine, and to the same files; its checkpoints apart."""
    monkeypatch.setattr(files, "absolute", lambda path: tmp_path / path.name)
    shutil.copytree(tiny_run[0] / "checkpoints", tmp_path / "checkpoints", ignore=lambda *_: ["8"])
    there = {f"{RUN}/checkpoints/6": b""}  # as much of them as the mock shows
    for name in ("config.json", "metrics.jsonl", "samples/step_00000004.png"):
        there[f"{RUN}/{name}"] = (tiny_run[0] / name).read_bytes()
    bucket |= there
    chex.assert_trees_all_equal(*jax.device_get((train(flags.load_preset(str(TINY)), RUN), tiny_run[1])))

    new = {name.removeprefix(f"{RUN}/") for name in bucket if name not in there}
    events = {name for name in new if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert new - events == {
        "environment.jsonl",
        "report.html",
        "samples/curves.png",
        "samples/step_00000008.png",
        "samples/training.gif",
    }
    for name in ("config.json", "samples/step_00000008.png", "samples/training.gif"):
        assert bucket[f"{RUN}/{name}"] == (tiny_run[0] / name).read_bytes()
    lines, before = report.read(files.place(RUN)), report.read(tiny_run[0])
    assert [(line["step"], line["loss"]) for line in lines] == [(line["step"], line["loss"]) for line in before]

    asked = ["--num", "4", "--steps", "5", "--sampler", "ddim", "--frames", "0", "--out", "gs://bucket/out/a.png"]
    monkeypatch.setattr(sys, "argv", ["sample.py", RUN, *asked, "--npz", "gs://bucket/out/a.npz"])
    runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")
    assert bucket["gs://bucket/out/a.png"] == bucket[f"{RUN}/samples/step_00000008.png"]  # the preview's seed is 0, too
    with np.load(io.BytesIO(bucket["gs://bucket/out/a.npz"])) as packed:
        assert packed["images"].shape == (4, 8, 8, 1)
    assert not Path("gs:").exists()
