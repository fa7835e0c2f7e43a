"""Figures of weightings hold what the algebra says."""

import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.weightings import WEIGHTINGS
from ddpm_jax.figures import weightings as figures

COSINE = schedules.cosine(200)


def at(line, log_snr):
    x, y = np.asarray(line.get_data(), np.float64)
    return np.exp(np.interp(log_snr, x, np.log(y)))


def test_each_schedule_has_a_panel_with_every_weighting_dashed_where_it_rises():
    names = ("elbo", "simple")
    figure = figures.effective_weights({"cosine": COSINE, "even": schedules.log_snr_linear(200)}, names)
    assert [axes.get_title() for axes in figure.axes] == ["cosine schedule", "even schedule"]
    strokes = [[line.get_linestyle() for line in axes.lines] for axes in figure.axes]
    assert strokes == [["-", "--"], ["-", "-"]]  # where log-SNR falls evenly, simple is the ELBO
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:2] == list(names)
    elbo, simple = figure.axes[0].lines
    np.testing.assert_allclose(np.asarray(elbo.get_ydata(), np.float64), 1, rtol=1e-3)
    # The density of the cosine schedule's log-SNR is sech(log-SNR / 2) / (2 pi), but for its offset.
    for log_snr in (-4.0, 3.0):
        assert at(simple, log_snr) == pytest.approx(1 / np.cosh(log_snr / 2), rel=0.05)


def test_the_factors_of_min_snr_are_those_of_its_paper():
    figure = figures.factors(schedules.linear(200), WEIGHTINGS["min_snr"], "min_snr")
    (axes,) = figure.axes
    wanted = {"eps": 0.05, "x0": 5, "v": 0.05 * 100 / 101, "flow": 0.05 * (10 / 11) ** 2}
    assert [line.get_label() for line in axes.lines] == list(wanted)
    for line, factor in zip(axes.lines, wanted.values(), strict=True):
        assert at(line, np.log(100)) == pytest.approx(factor, rel=1e-3)
    assert "min_snr" in axes.get_title()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.effective_weights({}), "at least one schedule"),
        (lambda: figures.effective_weights({"cosine": COSINE}, ["min_snt"]), "did you mean 'min_snr'"),
        (lambda: figures.factors(COSINE, WEIGHTINGS["simple"], "simple", ["mean"]), "posterior_mean_coef_x0"),
    ],
)
def test_what_cant_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
