"""The page of a run: whatever its folder holds, it is told whole, truly and safely; and a browser shows it."""

import base64
import dataclasses
import html
import json
import re

import made_up_run
import numpy as np
import pytest
from devtools import Devtools
from made_up_run import FIGURE, SMALL, START, evaluation, jsonl, line, told, words
from test_page import BROWSER

from ddpm_jax import config as config_lib
from ddpm_jax.config import Classifier, Config, Diffusion, Distill
from ddpm_jax.figures import page, run_curves, run_facts, run_page
from ddpm_jax.figures.run_record import RunRecord
from ddpm_jax.training import run_report


@pytest.fixture
def folder(tmp_path):
    return made_up_run.folder(tmp_path)


def titles(text):
    return [html.unescape(title) for title in re.findall(r"<h2[^>]*>([^<]*)</h2>", text)]


def test_a_page_is_whole_and_tells_everything_that_the_folder_holds(folder):
    reader = told(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert reader.open == []
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len({*ids})
    targets = [value for _, a in reader.tags for name, value in a.items() if name in ("href", "src")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in targets)
    assert not re.search(r"https?://|@import|@font-face", text)
    wanted = ["At a glance", "Samples", "Evaluation", "Training", "Noise levels", "Likelihood", "Cost", "What was run"]
    assert titles(text) == wanted
    assert all(attributes["alt"] for attributes in reader.named("img"))
    for fact in ("At step 200 of 400 (50%)", "python train.py small", "4 \u00d7 TPU v4", "jax 0.8.0 \u2192 as usual",
                 "3.2500 \u00b1 0.0196 (95 %)", "25,600 in 200 steps of 128", "2 h", "1,234,567",
                 "1.5 kB in 1 checkpoint"):  # fmt: skip
        assert fact in words(reader), fact


def test_device_hours_are_hours_times_devices(folder):
    """Two starts of an hour on 4 devices."""
    assert "<dt>device-hours</dt><dd>8</dd>" in "".join(run_facts.cost(run_report.read(folder)))


def test_evaluations_have_interval_and_floor_and_the_best_of_like_ones_is_marked(folder):
    reader = told(folder)
    table = words(reader)
    assert "FD-EffNetLite0@64 (PCA-64) 200 11.6 (best)10.8 to 12.4 9.89.2 to 10.4 2,000" in table
    assert "FD-EffNetLite0@64 (PCA-64) 100 2010.8 to 12.4" in table
    assert "bootstrap over images, 100 draws" in table
    assert "The floor: what held-out images get at as many." in table
    assert "against digits train, 1500 images, drawn by ddim in 50 steps" in table
    other = evaluation(200, value=5.0) | {"num_images": 500}
    (folder / "evaluation" / "200_other.json").write_text(json.dumps(other))
    (folder / "evaluation" / "100.json").unlink()
    assert "(best)" not in words(told(folder))


def test_figures_over_training_are_those_of_the_log_and_of_evaluations(folder):
    quick = [{"step": s, "evaluation": {FIGURE["name"]: {"value": 30.0, "low": 29, "high": 31}}} for s in (50, 100)]
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(jsonl(quick))
    run = run_report.read(folder)
    assert len([each for each in run.lines if "loss" in each]) == 20  # lines of older steps drop none
    found = run_page.evaluation_table.over_training(run)[FIGURE["name"]]
    assert [(each["step"], each["value"]) for each in found] == [(50, 30), (100, 20), (200, 11.6)]
    drawn = run_curves.measured({FIGURE["name"]: found}, [])
    ((low, _), (high, _)) = drawn.axes[0].containers[0].lines[2][0].get_segments()[2][:, ::-1]
    assert (low, high) == pytest.approx((10.8, 12.4))


def test_samples_are_the_previews_as_they_are_with_a_slider_over_training(folder):
    reader = told(folder)
    first = (folder / "samples" / "step_00000050.png").read_bytes()
    images = reader.named("img")
    assert images[0]["src"] == "data:image/png;base64," + base64.b64encode(first).decode()
    assert [image["data-label"] for image in images[:3]] == ["step 50", "step 100", "step 200"]
    assert ["hidden" in image for image in images[:3]] == [True, True, False]
    sliders = reader.named("input")
    assert sliders[0] | {"type": "range", "min": "0", "max": "2", "value": "2"} == sliders[0]
    assert sliders[0]["aria-label"] == "Samples over training"
    assert len(sliders) == 2  # the other is of the denoising
    assert [image["data-label"] for image in images[3:6]] == [f"frame {i} of 3" for i in (1, 2, 3)]


def test_losses_that_are_not_finite_are_counted_and_left_out(folder):
    bad = [line(210, loss=float("nan"), skipped=3.0), line(220, loss=float("inf"), grad_norm=float("nan"))]
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(jsonl(bad))
    text = words(told(folder))
    assert "2 of 22 logged losses not finite" in text
    assert "3 steps skipped" in text
    drawn = run_curves.loss(run_report.lines(folder), []).axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(np.isnan(drawn), [False] * 20 + [True] * 2)
    assert run_curves.loss(bad, []) is None


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, net=Classifier(num_classes=10), diffusion=Diffusion(objective="classifier")),
        dataclasses.replace(SMALL, distill=Distill(method="consistency", teacher="gone")),
        dataclasses.replace(SMALL, distill=Distill(method="progressive", teacher="gone", steps=4)),
        dataclasses.replace(SMALL, diffusion=Diffusion(num_steps=20, weighting="/gone/away.py:mine")),
        dataclasses.replace(SMALL, diffusion=Diffusion(num_steps=20, objective="continuous", learn_schedule=True)),
        dataclasses.replace(SMALL, diffusion=Diffusion(num_steps=20, objective="vlb", zero_terminal_snr=True)),
    ],
    ids=["plain", "classifier", "consistency", "progressive", "own_weighting", "learned", "zero_terminal"],
)
def test_a_run_that_has_only_begun_has_a_page_whatever_its_kind(config, tmp_path):
    config_lib.write(config, tmp_path / "config.json")
    text = words(told(tmp_path))
    assert "At step 0 of 400 (0%)" in text
    assert "not recorded: this run has no environment.jsonl" in text
    has_schedule = config.diffusion.objective != "classifier"
    assert ("Schedule and weighting" in text) is has_schedule
    gone = config.distill.method == "consistency" or ":" in config.diffusion.weighting
    assert ("is what a nat of log-SNR counts for" in text) is (has_schedule and not gone)


def test_damaged_files_are_passed_over(folder):
    for name in ("evaluation/100.json", "likelihood.json", "samples/step_00000050.png", "samples/sample_denoising.gif",
                 "evaluation/200_nearest.png"):  # fmt: skip
        (folder / name).write_bytes(b'{"step": 100, "figures": [1, {"name"')
    (folder / "evaluation" / "other.json").write_text('{"step": 3, "figures": {"a": 1}, "features": 5, "sampling": []}')
    (folder / "environment.jsonl").write_text('{"step": 1, "packages": [], "devices": 3, "seconds": "x"}\n{"st')
    reader = told(folder)
    assert [image["data-label"] for image in reader.named("img")][:2] == ["step 100", "step 200"]
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        run_report.write(folder)


def test_settings_that_are_not_the_defaults_are_marked_and_no_others():
    summary, groups = run_facts.settings_of(SMALL)
    changed = {
        f"{group}.{row.name}": (row.value, row.usual) for group, rows in groups.items() for row in rows if row.usual
    }
    usual = Config()
    assert changed == {
        "run as a whole.steps": ("400", str(usual.steps)),
        "diffusion.num_steps": ("50", "1000"),
        "diffusion.schedule": ("cosine", "linear"),
        "run.bins": ("4", "0"),
    }
    assert summary.startswith("config.json: 4 of ")
    assert len(re.findall('class="changed"', page.settings(summary, groups))) == 4


def test_what_a_run_is_told_is_text_and_never_markup(folder):
    evil = "<script>alert(1)</script>"
    (folder / "environment.jsonl").write_text(jsonl([START | {"command": evil, "commit": evil}]))
    (folder / "evaluation" / "100.json").write_text(json.dumps(evaluation(100, name=evil, how=evil)))
    run = folder.rename(folder.with_name("<b>&"))
    reader = told(run)
    assert len(reader.named("script")) == 1
    assert not reader.named("b") or "<b>&" in reader.text
    assert evil in reader.text


def test_a_week_of_lines_makes_a_page_of_bounded_size(folder):
    """20,000 lines with 8 bins, drawn by as many points as 240 lines."""
    lines = tuple(line(step, loss=0.1 + step % 7) for step in range(100, 2_000_001, 100))
    run = dataclasses.replace(run_report.read(folder), lines=lines)
    assert isinstance(run, RunRecord)
    text = run_page.run_page(run)
    assert len(text) < 1e6
    axes = run_curves.loss(lines, []).axes[0]
    assert len(axes.lines[0].get_xdata()) == run_curves.MOST_POINTS
    low, high = axes.collections[0].get_datalim(axes.transData).intervaly
    assert (low, high) == (pytest.approx(0.1), pytest.approx(6.1))


def test_durations_and_sizes_are_told_in_units_for_people():
    known = {0.25: "0.25 s", 59.0: "59 s", 200: "3 min 20 s", 3600: "1 h", 100000: "1 d 3 h", float("nan"): "unknown"}
    assert {seconds: run_facts.duration(seconds) for seconds in known} == known
    assert [run_facts.size(n) for n in (0, 999, 46.1e6, 2e13)] == ["0 bytes", "999 bytes", "46.1 MB", "20 TB"]


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_a_browser_shows_the_page_and_its_slider_goes_by_keys(folder, tmp_path):
    address = run_report.write(folder).as_uri()
    browser = Devtools(tmp_path / "profile")
    try:
        for domain in ("Page", "Network", "Runtime", "Log"):
            browser(f"{domain}.enable")
        browser("Emulation.setDeviceMetricsOverride", width=1100, height=3000, deviceScaleFactor=1, mobile=False)
        browser("Page.navigate", url=address)
        browser.run(
            "new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        )
        seen = {}
        for scheme in ("light", "dark"):
            browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            seen[scheme] = browser.shot()
        assert np.median(seen["dark"]) < 40
        assert np.median(seen["light"]) > 240
        for shown in seen.values():
            ink = np.abs(shown - np.median(shown)) > 60
            assert 0.005 < ink.mean() < 0.5

        shown = "[...document.querySelectorAll('.film img')].slice(0, 3).map((image) => image.checkVisibility()).join()"
        state = (
            f"[{shown}, document.querySelector('input').ariaValueText, document.querySelector('.label').textContent]"
        )
        assert browser.run(state) == ["false,false,true", "step 200", "step 200"]
        browser.run("document.querySelector('input').focus()")
        browser.press("ArrowLeft", 37)
        assert browser.run(state) == ["false,true,false", "step 100", "step 100"]
        browser.press("Home", 36)
        assert browser.run(state) == ["true,false,false", "step 50", "step 50"]
        browser.press("ArrowRight", 39)
        assert browser.run(state)[1] == "step 100"

        browser.run("document.querySelector('.film button').focus()")
        browser(
            "Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
        assert browser.run("document.querySelector('.film button').textContent") == "Pause"
        browser.run("new Promise((done) => setTimeout(done, 700))")
        assert browser.run(state)[1] == "step 200"
        assert browser.run("document.querySelector('.film button').textContent") == "Play"
        browser.press("Home", 36)  # the button has the focus: nothing moves
        assert browser.run(state)[1] == "step 200"

        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        browser("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        browser("Emulation.setEmulatedMedia", media="print")
        assert not browser.run("document.querySelector('.controls').checkVisibility()")
        asked = [
            e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"
        ]
        assert [url for url in asked if not url.startswith("data:")] == [address]
        said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        assert [event for event in browser.events if event.get("method") in said] == []
    finally:
        browser.close()
