"""Figures of one run: how it went, what it was told to learn, and how its images measured.

Long runs are thinned to windows of steps: a line through their means, and a band from their least to their greatest.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from ddpm_jax.diffusion import bins
from ddpm_jax.figures import style
from ddpm_jax.figures.comparison import DECADES
from ddpm_jax.figures.page import COLOURS, INK, MUTED, PAPER, WIDTH
from ddpm_jax.figures.run_record import Line, Process

MOST_POINTS, MOST_MARKS, MOST_PANELS = 240, 24, 9
"""Points of a line, marks of resumes, panels of a figure."""

QUARTERS = {"loss_q1": "first (least noise)", "loss_q2": "second", "loss_q3": "third", "loss_q4": "last"}
OTHERS = {
    "norm of the gradient": ("grad_norm",),
    "learning rate": ("learning_rate",),
    "images per second": ("images_per_second",),
    "share of time that devices waited for images": ("input_bound",),
    "log-SNR, first and last": ("log_snr_first", "log_snr_last"),
}
"""Panels of `others`: title -> keys in metrics.jsonl."""

_COLOURS = [*COLOURS]
# From noise to data, of one lightness that stands out from white and from black.
_NOISE = LinearSegmentedColormap.from_list("noise", ["#2f7fc1", "#8670cf", "#c4559b", "#d1495b", "#b9741d"])


def series(lines: Sequence[Line], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [N] and values [N] of the lines that have a number under the key, NaN and infinity among them."""
    found = [(line["step"], line[key]) for line in lines if is_number(line.get(key))]
    both = np.array(found, np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def loss(lines: Sequence[Line], resumes: Sequence[int]) -> Figure | None:
    """The training loss, and that of each quarter of t; None if no line has a finite one."""
    quarters = {key: label for key, label in QUARTERS.items() if _is_drawn(lines, key)}
    if not _is_drawn(lines, "loss"):
        return None
    figure, panels = _panels(1 + bool(quarters), 2.9)
    _line(panels[0], lines, "loss", INK)
    _dress(panels[0], "loss", resumes)
    if quarters:
        for i, (key, label) in enumerate(quarters.items()):
            _line(panels[1], lines, key, _COLOURS[i], label)
        _dress(panels[1], "by quarter of t", resumes)
        panels[1].legend(frameon=False, fontsize=style.SMALL, loc="upper right", ncols=2)
        _leave_room(panels[1])
    return figure


def others(lines: Sequence[Line], resumes: Sequence[int]) -> Figure | None:
    """Gradient norm, learning rate, speed: whatever the lines have."""
    found = {title: [key for key in keys if _is_drawn(lines, key)] for title, keys in OTHERS.items()}
    found = {title: keys for title, keys in found.items() if keys}
    if not found:
        return None
    figure, panels = _panels(len(found), 1.9)
    for axes, (title, keys) in zip(panels, found.items(), strict=True):
        for key in keys:
            _line(axes, lines, key, _COLOURS[0])
        log = title == "norm of the gradient"
        _dress(axes, title, resumes, log=log)
        if not log and axes.dataLim.ymin >= 0:
            axes.set_ylim(bottom=0)  # with 0 in view a wobble looks as small as it is
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    return figure


def by_noise_level(lines: Sequence[Line], resumes: Sequence[int]) -> Figure | None:
    """The error of eps in each bin of log-SNR: over training, and at last; and the newest gradients, if measured."""
    names = [key for key in bins.keys("eps_error", {key: 0 for line in lines for key in line}) if _is_drawn(lines, key)]
    if not names:
        return None
    gradients = [line for line in lines if bins.keys("grad_noise", line)]
    figure, panels = _panels(3 if gradients else 2, 2.9)
    middles = [bins.middle(name) for name in names]
    places = np.linspace(0, 1, len(names)) if len(names) > 1 else np.array([0.5])
    named = {*np.rint(np.linspace(0, len(names) - 1, min(len(names), 5))).astype(int).tolist()}
    for i, (name, place) in enumerate(zip(names, places, strict=True)):
        label = f"{middles[i]:.3g}".replace("-", "\N{MINUS SIGN}") if i in named else ""
        _line(panels[0], lines, name, _NOISE(place), label, band=False)
    _dress(panels[0], "error of eps, by log-SNR", resumes)
    panels[0].legend(frameon=False, fontsize=style.SMALL, loc="upper right", ncols=5, columnspacing=1, handlelength=1)
    _leave_room(panels[0])
    last = [values[np.isfinite(values)][-1] for values in (series(lines, name)[1] for name in names)]
    panels[1].plot(middles, last, color=INK, lw=1.2)
    panels[1].scatter(middles, last, c=[_NOISE(place) for place in places], s=26, zorder=3)
    style.dress(panels[1], "error of eps, last logged", log=True, xlabel="log-SNR")
    if gradients:
        for i, (key, label) in enumerate((("grad_norm", "of the mean"), ("grad_noise", "noise of one image"))):
            x, y = bins.read(key, gradients[-1])
            y = np.where(y > 0, y, np.nan)  # 0 says that noise hides it, and not that there is none
            panels[2].plot(x, y, **style.line(i + 1, marked=True), label=label)
        style.dress(panels[2], f"norm of the gradient, step {gradients[-1]['step']:,}", log=True, xlabel="log-SNR")
        panels[2].legend(frameon=False, fontsize=style.SMALL)
    return figure


def process(shown: Process) -> Figure:
    """alpha_bar and log-SNR over t, and w(lambda) over its mean."""
    figure, panels = _panels(2 + (shown.w is not None), 2.5)
    t = np.arange(len(shown.log_snr))
    keep = np.unique(np.linspace(0, len(t) - 1, MOST_POINTS).astype(int))
    for axes, title, values in zip(panels, ("alpha_bar", "log-SNR"), (shown.alpha_bars, shown.log_snr), strict=False):
        axes.plot(t[keep], np.asarray(values, np.float64)[keep], color=_COLOURS[0], lw=1.5)
        style.dress(axes, title, log=False, xlabel="t")
    if shown.w is not None:
        inside = np.isfinite(shown.log_snr) & np.isfinite(shown.w) & (np.abs(shown.log_snr) <= bins.LIMIT)
        x, w = (np.asarray(values, np.float64)[inside][::-1] for values in (shown.log_snr, shown.w))
        mean = np.trapezoid(w, x) / (x[-1] - x[0]) if len(x) > 1 and x[-1] > x[0] else 1.0
        keep = np.unique(np.linspace(0, max(len(x) - 1, 0), min(len(x), MOST_POINTS)).astype(int))
        y = np.where(w > 0, w, np.nan)[keep] / (mean if mean > 0 else 1.0)
        panels[2].plot(x[keep], y, color=_COLOURS[1], lw=1.5, ls="-" if shown.monotone else (0, (5, 2)))
        style.dress(panels[2], "w(\u03bb) over its mean", log=True, xlabel="log-SNR \u03bb")
        if panels[2].get_yscale() == "log":
            panels[2].set_ylim(bottom=max(panels[2].get_ylim()[0], np.nanmax(y) * 10.0**-DECADES))
    return figure


def measured(figures: Mapping[str, Sequence[Line]], resumes: Sequence[int]) -> Figure | None:
    """Figures of evaluations over training, with their 95 % intervals; a dashed line is the floor, if there is one.

    Args:
        figures: name -> lines with `step`, `value` and, if known, `low`, `high` and `floor`, each in order of step.
        resumes: steps at which the run was started again.
    """
    found = {name: [line for line in lines if is_number(line.get("value")) and math.isfinite(line["value"])]
             for name, lines in figures.items()}  # fmt: skip
    found = {name: lines for name, lines in found.items() if lines}
    if not found:
        return None
    names = [*found][:MOST_PANELS]
    figure, panels = _panels(len(names), 2.1)
    for axes, name in zip(panels, names, strict=True):
        lines = found[name]
        lines = [lines[i] for i in np.unique(np.linspace(0, len(lines) - 1, min(len(lines), MOST_POINTS)).astype(int))]
        step, value = series(lines, "value")
        errors = [[max(0.0, abs(line[end] - line["value"])) if _is_finite(line.get(end)) else 0.0 for line in lines]
                  for end in ("low", "high")]  # fmt: skip
        axes.errorbar(step, value, yerr=errors, capsize=2, elinewidth=1, **style.line(1, marked=len(lines) < 40))
        floors = [line["floor"]["value"] for line in lines if _is_finite((line.get("floor") or {}).get("value"))]
        if floors:
            axes.axhline(floors[-1], color=MUTED, lw=1, ls=(0, (4, 2)))
        _dress(axes, name, resumes, log=False)
    return figure


def _panels(number: int, height: float) -> tuple[Figure, list[Axes]]:
    """Two in a row, or three where there are no more: placed by hand, which takes half the time of a layout engine."""
    columns = min(number, 3 if number in (3, 5, 6, 9) else 2)
    rows = math.ceil(number / columns)
    high = rows * height + 0.1
    figure = Figure(figsize=(WIDTH, high))
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.065, right=0.99, top=1 - 0.3 / high, bottom=0.5 / high,
        hspace=0.72 / (height - 0.72), wspace=0.22 if columns > 1 else 0,
    )  # fmt: skip
    for unused in axes.flat[number:]:
        unused.remove()
    return figure, [*axes.flat[:number]]


def _dress(axes: Axes, title: str, resumes: Sequence[int], *, log: bool = True) -> None:
    style.dress(axes, title, log=log, xlabel="step")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for step in [*resumes][-MOST_MARKS:]:
        axes.axvline(step, color=MUTED, lw=0.8, ls=(0, (1, 2)))


def _leave_room(axes: Axes) -> None:
    """For a legend above the lines."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.3 if axes.get_yscale() == "log" else high + 0.3 * (high - low))


def _line(axes: Axes, lines: Sequence[Line], key: str, colour: Any, label: str = "", *, band: bool = True) -> None:
    steps, values = series(lines, key)
    windows = np.array_split(np.arange(len(steps)), min(len(steps), MOST_POINTS))
    x = np.array([steps[window].mean() for window in windows])
    finite = np.where(np.isfinite(values), values, np.nan)
    y = np.array([style.mean(finite[window], 0) for window in windows])
    marks = {"marker": "o", "ms": 3.5, "mec": PAPER, "mew": 0.4} if len(x) < 30 else {}
    axes.plot(x, y, color=colour, lw=1.3, label=label or "_", **marks)
    if band and len(windows) < len(steps):
        low = [np.where(np.isfinite(finite[window]), finite[window], np.inf).min() for window in windows]
        high = [np.where(np.isfinite(finite[window]), finite[window], -np.inf).max() for window in windows]
        axes.fill_between(x, low, high, where=np.isfinite(y).tolist(), color=colour, alpha=0.2, lw=0)


def _is_drawn(lines: Sequence[Line], key: str) -> bool:
    return any(_is_finite(line.get(key)) for line in lines)


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
