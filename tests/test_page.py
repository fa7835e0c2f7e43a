"""The page of a comparison is whole, safe and readable: as text, as figures, and in a real browser."""

import dataclasses
import html.parser
import re
import shutil
import subprocess

import made_up
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.evaluation.paired import paired
from ddpm_jax.figures import comparison as figures
from ddpm_jax.figures import page, verdicts
from ddpm_jax.figures.comparison_page import comparison_page

BINS = 4
COMPARISON = made_up.comparison(3, 2, bins=BINS)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = """--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --disable-sync --no-first-run
--disable-background-networking --disable-component-update --hide-scrollbars --enable-logging=stderr --v=0"""
VOID = {"meta", "img", "link", "br"}


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, the text, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def text():
    return comparison_page(COMPARISON)


def test_a_page_is_whole_and_loads_nothing(text):
    reader = Reader(text)
    assert reader.open == []
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len({*ids}) > 10
    targets = [value for _, a in reader.tags for name, value in a.items() if name in ("href", "src")]
    assert {value[1:] for value in targets if value.startswith("#")} <= {*ids}
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in targets)
    assert {*re.findall(r"url\(#([^)]*)\)", text)} <= {*ids}
    assert not re.search(r"https?://|@import|@font-face", text)
    assert len(text) < 3e6


def test_a_page_is_told_to_who_cannot_see_it(text):
    reader = Reader(text)
    assert all(attributes["alt"] for attributes in reader.named("img"))
    assert len(reader.named("img")) == 3
    assert all("scope" in attributes for attributes in reader.named("th"))
    assert all(attributes["aria-hidden"] == "true" for attributes in reader.named("svg"))
    assert len([a for a in reader.named("div") if a.get("role") == "img" and a["aria-label"]]) == len(
        reader.named("svg")
    )


def test_a_page_begins_with_its_verdicts_and_has_a_way_to_every_section(text):
    reader = Reader(text)
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", text)
    assert titles[0] == "Verdicts"
    assert titles[-1] == "What was run"
    assert [a["href"] for a in reader.named("a")[1:]] == [f"#{page.slug(title)}" for title in titles]
    assert "min_snr(gamma=5)" in re.search(r'<ul class="points">(.*?)</ul>', text, re.DOTALL).group(1)
    assert COMPARISON.command in reader.text


def test_figures_have_marks_and_letters_in_the_colours_of_the_page(text):
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawn) == 10
    for svg in drawn:
        assert svg.count("<text") > 5
        assert svg.count("<path") + svg.count("<use") > 10
        assert "font-family" not in svg
        assert {*re.findall("#[0-9a-f]{6}", svg)} <= {"#d1495b", "#2f7fc1"}  # of the map of cosines
    assert all("var(--line-1)" in svg for svg in drawn[:1])
    assert all(f"--line-{i}: light-dark(" in text for i in range(len(page.COLOURS)))


def test_names_are_text_and_never_markup():
    names = ("<script>alert(1)</script>", 'R&D "<b>"')
    given = made_up.comparison(2, 1, bins=BINS, names=names)
    given = dataclasses.replace(
        given, title="<i>", facts={"<u>": "<s>"}, command="a < b && c", cosine=None, grad_noise=None
    )
    given.eps_error[:] = np.nan
    given.variants[1].settings["--diffusion.learn-uncertainty"] = "True"
    reader = Reader(comparison_page(given))
    assert "Where an uncertainty is learned, the loss is taken before it is divided by that." in reader.text
    assert "2 variants on 1 seed, compared" in reader.text
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"i", "u", "s"}
    assert len(reader.named("script")) == 1
    for name in (*names, "<i>", "<u>", "<s>", "a < b && c"):
        assert name in reader.text
    assert any(a["alt"].startswith(f"Samples of {names[1]}") for a in reader.named("img"))


def test_what_was_not_measured_has_no_section():
    given = made_up.comparison(1, 1, bins=BINS)
    bare = dict.fromkeys(("bits_by_bin", "grad_norm", "grad_noise", "cosine", "samples"))
    lost = {"metrics": (), "eps_error": given.eps_error * np.nan, "steps_per_second": given.steps_per_second * np.nan}
    text = comparison_page(dataclasses.replace(given, **bare, **lost))
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", text)
    assert titles == ["Verdicts", "Weights", "Error over training", "What was run"]
    assert "1 variant on 1 seed, compared" in text
    assert "There is nothing to compare" in text


def test_steps_that_were_skipped_are_told_with_the_verdicts():
    skipped = COMPARISON.skipped.copy()
    skipped[1, 1], skipped[2, 0] = 37, 1
    told = Reader("".join(verdicts.verdicts(dataclasses.replace(COMPARISON, skipped=skipped)))).text
    why = "whose loss or gradient was not finite: its figures are of an unstable run."
    assert f"min_snr(gamma=5), seed 1 skipped 37 steps {why}" in told
    assert f"p2(k=1,gamma=1), seed 0 skipped 1 step {why}" in told
    for none in (COMPARISON.skipped, None):
        assert "unstable" not in "".join(verdicts.verdicts(dataclasses.replace(COMPARISON, skipped=none)))


def test_what_pairs_spare_is_told_by_metric(text):
    """Half the deviation takes a quarter of the seeds; the ratios are those of the pairs."""
    table = re.search(r"<table(?:(?!</table>).)*as many seeds.*?</table>", text, re.DOTALL).group()
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in table.split("<tr")[2:]]
    assert [row[0].strip() for row in rows] == [metric.title for metric in COMPARISON.metrics]
    for metric, (_, ratio, times, number) in zip(COMPARISON.metrics, rows, strict=True):
        known = [paired(metric.values[0], values).ratio for values in metric.values[1:]]
        assert float(ratio) == pytest.approx(np.median(known), rel=0.06)
        assert float(times) == pytest.approx(np.median(known) ** -2, rel=0.06)
        assert int(number) == 2
    assert "Over 2 seeds a deviation is known to about 71 % of itself" in text


def test_a_gradient_that_noise_hides_is_a_gap_and_not_a_small_one(text):
    norm = COMPARISON.grad_norm.copy()
    norm[0, :, 1], norm[1, 0, 2] = 0, 0
    axes = figures.gradients(dataclasses.replace(COMPARISON, grad_norm=norm)).axes[0]
    first, second, _ = (line.get_ydata() for line in axes.lines)
    np.testing.assert_array_equal(np.isnan(first), [False, True, False, False])
    assert second[2] == pytest.approx(norm[1, 1, 2])
    assert "A gap: noise hides the gradient" in text
    assert "an uncertainty is learned" not in text


def test_a_speed_that_was_not_measured_has_no_bar():
    speeds = np.array([30, np.nan, 20], np.float32)
    axes = figures.cost(dataclasses.replace(COMPARISON, steps_per_second=speeds)).axes[0]
    assert [told.get_text() for told in axes.texts] == ["30.0", "20.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [v.name for v in COMPARISON.variants]
    assert axes.get_xlim() == (0, pytest.approx(33))


def test_two_sections_of_one_address_are_refused():
    one = page.Section(title="Cost", blocks=())
    with pytest.raises(ValueError, match="titles of sections must differ, got Cost, Cost"):
        page.render("", "", [one, one])


def test_a_page_is_written_under_its_own_suffix(tmp_path):
    page.write(tmp_path / "new" / "report.html", "<p>ä")
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == "<p>ä"
    with pytest.raises(ValueError, match=r"must end in \.html"):
        page.write(tmp_path / "report.txt", "")


def test_weights_are_drawn_over_their_mean_and_dashed_where_they_rise():
    axes = figures.weights(COMPARISON).axes[0]
    for line, variant in zip(axes.lines, COMPARISON.variants, strict=True):
        x, w = line.get_data()
        assert np.trapezoid(w, x) / (x[-1] - x[0]) == pytest.approx(1, rel=1e-3)
        assert (line.get_linestyle() == "-") is variant.monotone
    assert len({line.get_color() for line in axes.lines}) == 3


def test_differences_are_drawn_where_the_pairs_put_them():
    axes = figures.paired_differences(COMPARISON).axes[0]
    bits = COMPARISON.metrics[0].values
    for i, bar in enumerate(axes.containers, start=1):
        found = paired(bits[0], bits[i])
        ((low, _), (high, _)) = bar.lines[2][0].get_segments()[0]
        np.testing.assert_allclose(
            [low, high], [found.difference - found.half_width, found.difference + found.half_width], rtol=1e-6
        )


def test_a_ratio_to_the_baseline_is_taken_seed_by_seed():
    common = np.exp(np.random.default_rng(0).normal(size=(1, 2, made_up.STEPS, BINS)))
    given = dataclasses.replace(COMPARISON, eps_error=common * np.array([1, 0.9, 1.2])[:, None, None, None])
    for axes in figures.error_against_baseline(given).axes:
        heights = [line.get_ydata() for line in axes.lines]
        np.testing.assert_allclose(heights, np.broadcast_to([[1], [0.9], [1.2]], np.shape(heights)))


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_a_browser_shows_the_page_light_and_dark_without_complaint(text, tmp_path):
    page.write(tmp_path / "report.html", text)
    seen = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{scheme}.png"
        command = [BROWSER, *SWITCHES.split(), f"--user-data-dir={tmp_path / scheme}", f"--screenshot={shot}"]
        command += [f"--blink-settings=preferredColorScheme={number}", "--window-size=1200,3000"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", (tmp_path / "report.html").as_uri()]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert [line for line in ran.stderr.splitlines() if "CONSOLE" in line] == []
        seen[scheme] = np.asarray(Image.open(shot).convert("L"), np.float64)
    assert seen["dark"].shape == seen["light"].shape == (3000, 1200)
    assert np.median(seen["dark"]) < 40
    assert np.median(seen["light"]) > 240
    for shown in seen.values():
        ink = np.abs(shown - np.median(shown)) > 60
        assert 0.01 < ink.mean() < 0.5
        assert (ink.reshape(10, 300, 1200).mean((1, 2)) > 0.002).all()  # on every screen of it
