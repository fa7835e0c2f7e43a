"""What training leaves for a run's page, when it writes the page, and what the page takes from the run's folder."""

import io
import logging
import shutil
from importlib import metadata
from pathlib import Path

import jax
import made_up_run
import numpy as np
import pytest
from made_up_run import SMALL, jsonl, line, told, words
from PIL import Image

from ddpm_jax.cli import report
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.training import environment, processes, run_pictures, run_report

TINY = Path(__file__).parent / "presets" / "tiny.py"


@pytest.fixture
def folder(tmp_path):
    return made_up_run.folder(tmp_path)


def test_many_large_previews_are_thinned_and_shrunk_to_a_bounded_size(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (700, 700)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png", compress_level=0)
    paths = [tmp_path / f"step_{step:08d}.png" for step in range(40)]
    for path in paths:
        shutil.copy(tmp_path / "noise.png", path)
    found = run_pictures.film(paths)
    assert sum(len(frame.png) for frame in found) < 1.2 * run_pictures.FILM_BYTES
    assert (found[0].label, found[-1].label) == ("step 0", "step 39")
    assert 8 <= len(found) <= run_pictures.MOST_FRAMES
    for frame in found:
        with Image.open(io.BytesIO(frame.png)) as opened:
            assert opened.size == (frame.width, frame.height)


def test_a_line_that_a_kill_cut_short_and_steps_taken_twice_are_not_told(folder):
    log = folder / "metrics.jsonl"
    again = jsonl([line(step, loss=7.0) for step in (150, 160)])
    log.write_bytes(log.read_bytes() + b'{"step": "x"}\n[1]\n\x00\xff\n' + again.encode() + b'{"step": 170, "lo')
    found = run_report.lines(folder)
    assert [each["step"] for each in found] == [*range(10, 161, 10)]
    assert [each["loss"] for each in found[-2:]] == [7.0, 7.0]
    assert "At step 200 of 400" in words(told(folder))  # environment.jsonl says so


def test_training_leaves_a_page_and_says_when_it_runs_where_it_ran(tiny_run):
    workdir, state = tiny_run
    (start,) = environment.read(workdir)
    assert (start["step"], start["until"]) == (0, 8)
    assert start["seconds"] > 0
    assert start["packages"]["jax"] == metadata.version("jax")
    assert start["parameters"] == sum(x.size for x in jax.tree.leaves(state.ema))
    assert start["changed"]["diffusion.draw_t"] == "second_moment"
    text = (workdir / "report.html").read_text(encoding="utf-8")
    assert "Finished at step 8" in text
    assert f"jax {metadata.version('jax')}" in text
    assert not list(workdir.glob(".*"))


def test_a_run_that_goes_on_has_a_line_for_each_start(tiny_run, tmp_path):
    workdir = shutil.copytree(tiny_run[0], tmp_path / "again")
    config = load_preset(str(TINY))
    for _ in range(2):
        with run_report.open_page(workdir, config) as tell:
            tell(tiny_run[1])
    assert [(start["step"], start["until"]) for start in environment.read(workdir)] == [(0, 8), (8, 8), (8, 8)]
    assert run_report.read(workdir).resumes == [8]


def test_what_keeps_a_page_from_being_written_is_logged_and_harms_no_training(tiny_run, tmp_path, monkeypatch, caplog):
    def broken(workdir):
        raise OSError("no space left\non device")

    workdir = shutil.copytree(tiny_run[0], tmp_path / "run")
    before = (workdir / "report.html").read_bytes()
    monkeypatch.setattr(run_report, "write", broken)
    with caplog.at_level(logging.WARNING), run_report.open_page(workdir, SMALL) as tell:
        tell(tiny_run[1])
    assert [record.getMessage() for record in caplog.records] == [
        "report.html was not written (OSError: no space left on device)"
    ]
    assert (workdir / "report.html").read_bytes() == before


def test_a_page_is_written_again_only_if_its_share_of_the_time_allows(tiny_run, folder, monkeypatch):
    """One of 1 s every 50 s at most; the first after REST; the last in any case, also of a run that broke off."""
    clock, written = [0.0], []
    monkeypatch.setattr(run_report.time, "monotonic", lambda: clock[0])

    def slow(workdir):
        written.append(clock[0])
        clock[0] += 1.0

    monkeypatch.setattr(run_report, "write", slow)
    with pytest.raises(RuntimeError, match="NaN"), run_report.open_page(folder, SMALL) as tell:  # noqa: PT012
        for _ in range(100):
            tell(tiny_run[1])
            clock[0] += 1.0
        raise RuntimeError("NaN")
    first, second, last = written
    assert first == run_report.REST
    assert 50 <= second - first <= 52
    assert last > 99
    monkeypatch.setattr(processes, "writes", lambda: False)
    with run_report.open_page(folder, SMALL) as tell:
        tell(tiny_run[1])
    assert len(written) == 3


def test_the_command_writes_the_page_of_a_folder(folder, capsys):
    report.main([str(folder)])
    assert capsys.readouterr().out == f"wrote {folder / 'report.html'}\n"
    with pytest.raises(FileNotFoundError, match="no run's folder"):
        report.main([str(folder / "samples")])
    with pytest.raises(ValueError, match="takes one run's folder"):
        report.main([str(folder), "--now"])
