"""Curves hold the data they were given, without a display."""

import subprocess
import sys
import types

import numpy as np
import pytest

from ddpm_jax.figures import plots


def _schedule(beta_end):
    betas = np.linspace(1e-4, beta_end, 50)
    alpha_bars = np.cumprod(1 - betas)
    before = np.append(1, alpha_bars[:-1])
    return types.SimpleNamespace(
        num_steps=50,
        betas=betas,
        alpha_bars=alpha_bars,
        log_snr=np.log(alpha_bars / (1 - alpha_bars)),
        posterior_variance=betas * (1 - before) / (1 - alpha_bars),
    )


RECORDS = [
    {
        "step": step,
        "loss": 1 / step,
        "grad_norm": 0.1 * step,
        "learning_rate": 1e-4,
        "images_per_second": 90.0 + step,
        **{f"loss_q{i}": i / step for i in (1, 2, 3, 4)},
    }
    for step in (10, 20, 30)
]


def test_schedules_draws_every_table_of_every_schedule():
    given = {"short": _schedule(0.02), "long": _schedule(0.1)}
    figure = plots.schedules(given)
    panels = {axes.get_title(): axes.lines for axes in figure.axes}
    assert len(panels) == 4
    for i, s in enumerate(given.values()):
        for title, table in (("beta", s.betas), ("alpha_bar", s.alpha_bars), ("log-SNR", s.log_snr)):
            np.testing.assert_array_equal(panels[title][i].get_xdata(), np.arange(50))
            np.testing.assert_array_equal(panels[title][i].get_ydata(), table)
        posterior, forward = panels["standard deviation of the reverse step"][2 * i : 2 * i + 2]
        np.testing.assert_allclose(posterior.get_ydata() ** 2, s.posterior_variance, rtol=1e-12)
        np.testing.assert_allclose(forward.get_ydata() ** 2, s.betas, rtol=1e-12)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["short", "long"]
    assert all(axes.get_xlabel() for axes in figure.axes)


def test_curves_draws_every_value_against_its_step():
    figure = plots.curves(RECORDS)
    panels = {axes.get_title(): axes.lines for axes in figure.axes}
    assert {title: len(lines) for title, lines in panels.items()} == {
        "loss": 1,
        "loss by quarter of t": 4,
        "gradient norm": 1,
        "learning rate": 1,
        "images per second": 1,
    }
    np.testing.assert_array_equal(panels["loss"][0].get_xydata(), [[10, 1 / 10], [20, 1 / 20], [30, 1 / 30]])
    np.testing.assert_array_equal(panels["loss by quarter of t"][2].get_ydata(), [3 / 10, 3 / 20, 3 / 30])


def test_curves_skips_missing_keys_and_sorts_steps():
    records = [{"step": 2, "loss": 0.5}, {"step": 1, "loss": 0.7}, {"step": 3, "bits_per_dim": 4.0}]
    (axes,) = plots.curves(records).axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1, 0.7], [2, 0.5]])


def test_curves_survives_a_loss_that_is_not_a_number(tmp_path):
    plots.save(plots.curves([{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("nan")}]), tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="records must have a step and one of loss"):
        plots.curves([{"step": 1}])
    with pytest.raises(ValueError, match="at least one schedule"):
        plots.schedules({})


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_save_writes_the_format_of_the_suffix_and_no_other_file(tmp_path, name, start):
    plots.save(plots.schedules({"one": _schedule(0.02)}), tmp_path / "new" / name)
    assert (tmp_path / "new" / name).read_bytes().startswith(start)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [name]


def test_save_that_fails_leaves_no_file(tmp_path):
    figure = plots.curves(RECORDS)
    figure.axes[0].set_title("$\\no_such_command$")
    with pytest.raises(ValueError, match="no_such_command"):
        plots.save(figure, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"must end in \.png or \.svg or \.pdf"):
        plots.save(figure, tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_plots_never_load_pyplot():
    code = "import sys; from ddpm_jax.figures import plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
