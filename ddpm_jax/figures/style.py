"""How the figures of a comparison look: the same colour and marker for a variant in all of them."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ddpm_jax.evaluation.comparison import Comparison
from ddpm_jax.figures.page import COLOURS, INK, MUTED, PAPER, WIDTH

SMALL, TEXT = 9.0, 9.5
"""Letters, in points."""

_MARKERS = "os^Dvp*<>h"
_TICKS = (1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,)
"""Of a logarithmic axis, in each power of ten: the fewer, the longer it is."""


def panels(number: int, height: float, xlabel: str = "", most: int = 3, **options: Any) -> tuple[Figure, list[Axes]]:
    """A new figure of so many axes in rows of at most `most`, each row `height` inches high, over one label."""
    columns = min(number, most)
    rows = math.ceil(number / columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.4), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06))
    grid = [*figure.subplots(rows, columns, squeeze=False, **options).flat]
    for axes in grid[number:]:
        axes.remove()
    figure.supxlabel(xlabel, fontsize=SMALL)
    return figure, grid[:number]


def dress(axes: Axes, title: str, *, log: bool, xlabel: str = "") -> None:
    """Title, grid, spines and ticks as all figures have them; `log` asks for a logarithmic axis where that pays."""
    axes.set_title(title, fontsize=TEXT)
    axes.set_xlabel(xlabel, fontsize=SMALL)
    axes.tick_params(labelsize=SMALL, length=3, color=MUTED)
    axes.grid(color=MUTED, alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    low, high = axes.dataLim.intervaly
    if log and 0 < 3 * low < high < math.inf:  # a shorter axis has better ticks as it is
        axes.set_yscale("log", nonpositive="mask")
        decades = math.log10(high / low)
        axes.yaxis.set_major_locator(LogLocator(subs=_TICKS[int(decades > 0.7) + int(decades > 2)]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(5))


def legend(figure: Figure, comparison: Comparison) -> None:
    """The names, once for the whole figure, above it."""
    entries = [Line2D([], [], **line(i, marked=True)) for i in range(len(comparison.variants))]
    names = [variant.name for variant in comparison.variants]
    columns = min(len(names), max(1, 118 // (max(map(len, names)) + 9)))  # a figure is about 118 letters wide
    figure.legend(entries, names, loc="outside upper left", ncols=columns, frameon=False, fontsize=SMALL)
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(names) / columns))


def colour(i: int) -> str:
    """Of variant i: ink for the first."""
    return [INK, *COLOURS][i and (i - 1) % len(COLOURS) + 1]


def line(i: int, *, width: float = 1.5, marked: bool = False) -> dict[str, Any]:
    """How variant i is drawn."""
    marker = {"marker": _MARKERS[i % len(_MARKERS)], "ms": 6, "mec": PAPER, "mew": 0.5} if marked else {}
    return {"color": colour(i), "lw": width, **marker}


def band(axes: Axes, x: np.ndarray, values: np.ndarray, i: int, *, marked: bool = False) -> None:
    """Mean over seeds of values [S, P], and the span of the seeds."""
    axes.plot(x, mean(values, 0), **line(i, marked=marked))
    if len(values) > 1:
        finite = np.isfinite(values)
        low, high = np.where(finite, values, np.inf).min(0), np.where(finite, values, -np.inf).max(0)
        axes.fill_between(x, low, high, where=finite.any(0), color=colour(i), alpha=0.16, lw=0)


def mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    count = finite.sum(axis)
    total = np.where(finite, values, 0).sum(axis, dtype=np.float64)
    return np.divide(total, count, out=np.full(np.shape(count), np.nan), where=count > 0)
