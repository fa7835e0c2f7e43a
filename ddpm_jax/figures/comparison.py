"""Figures of a comparison of variants over seeds; a variant has the same colour and marker in all of them.

The first variant, to which the others are compared, is drawn in ink. Bands span the seeds; members that diverged are
left out where they aren't finite.
"""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from ddpm_jax.evaluation.comparison import Comparison
from ddpm_jax.evaluation.paired import Metric, differences, paired
from ddpm_jax.figures import style
from ddpm_jax.figures.page import INK, MINUS, MUTED

MOST_POINTS, MOST_PANELS, DECADES = 60, 12, 4
"""Points of a curve over training, panels of a figure, and powers of ten that a weighting is shown over."""

_HOT, _COLD = "#d1495b", "#2f7fc1"


def weights(comparison: Comparison) -> Figure:
    """w(lambda) of each variant over its mean; dashed if it rises somewhere."""
    figure, (axes,) = style.panels(1, 3.0)
    highest = 0.0
    for i, variant in enumerate(comparison.variants):
        order = np.argsort(variant.log_snr)
        x, w = np.asarray(variant.log_snr, np.float64)[order], np.asarray(variant.w, np.float64)[order]
        x, w = x[np.isfinite(w)], w[np.isfinite(w)]
        if len(x) > 1 and (mean := np.trapezoid(w, x) / (x[-1] - x[0])) > 0:
            w = w / mean
        if not (w > 0).any():
            continue
        highest = max(highest, w.max())
        keep = np.unique(np.linspace(0, len(x) - 1, 200).astype(int))
        axes.plot(
            x[keep], np.where(w > 0, w, np.nan)[keep], **style.line(i), ls="-" if variant.monotone else (0, (5, 2))
        )
    style.dress(axes, "w over its mean", log=True, xlabel="log-SNR (noise on the left, data on the right)")
    if highest:
        axes.set_ylim(max(axes.get_ylim()[0], highest * 10.0**-DECADES), 2 * highest)
    style.legend(figure, comparison)
    return figure


def losses(comparison: Comparison) -> Figure:
    """The training loss, a panel a variant, each on its own scale."""
    figure, panels = style.panels(len(comparison.variants), 2.1, "step")
    steps, loss = _thin(comparison.steps, comparison.loss[..., None])
    for i, (variant, axes) in enumerate(zip(comparison.variants, panels, strict=True)):
        axes.plot(steps, loss[i, :, :, 0].T, **style.line(i, width=1.1))
        style.dress(axes, _wrapped(variant.name), log=True)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def error_over_training(comparison: Comparison) -> Figure:
    """The mean squared error of eps, a panel a bin."""
    return _by_bin(comparison, *_thin(comparison.steps, comparison.eps_error), log=True)


def error_against_baseline(comparison: Comparison) -> Figure:
    """The same over the first variant's, seed by seed: what chance does to both cancels."""
    steps, error = _thin(comparison.steps, comparison.eps_error)
    ratio = np.divide(error, error[:1], out=np.full_like(error, np.nan), where=error[:1] > 0)
    return _by_bin(comparison, steps, ratio, log=False)


def bits_by_bin(comparison: Comparison) -> Figure:
    """bits/dim of each bin, and its difference to the first variant with the 95 % interval over seeds."""
    bits, centres = _measured(comparison.bits_by_bin, "bits_by_bin"), comparison.centres
    figure, panels = style.panels(1 + (len(bits) > 1), 3.1, "log-SNR")
    left, right = panels[0], panels[-1]
    space = 0.75 * np.diff(comparison.edges) / max(1, len(bits) - 1)
    for i, values in enumerate(bits):
        left.plot(centres, style.mean(values, 0), **style.line(i, marked=True))
        if i:
            found = [paired(a, b) for a, b in zip(bits[0].T, values.T, strict=True)]
            mean, half = np.transpose([(each.difference, each.half_width) for each in found])
            at = centres + (i - len(bits) / 2) * space
            right.errorbar(at, mean, yerr=np.nan_to_num(half), ls="", **style.line(i, marked=True))
    style.dress(left, "bits/dim of the bin", log=False)
    if len(bits) > 1:
        style.dress(right, f"difference to {comparison.variants[0].name}", log=False)
        right.axhline(0, color=INK, lw=1)
        right.set_xticks(comparison.edges, [""] * len(comparison.edges), minor=True)
        right.grid(visible=False, axis="x")
        right.grid(visible=True, axis="x", which="minor", color=MUTED, alpha=0.25, lw=0.6)
    style.legend(figure, comparison)
    return figure


def gradients(comparison: Comparison) -> Figure:
    """Norm of the mean gradient of each bin's loss, and how far a draw's gradient strays from it.

    A norm of 0 isn't drawn, nor averaged: it says that noise hides the gradient, and not that there is none.
    """
    norm = comparison.grad_norm
    seen = None if norm is None else np.where(norm > 0, norm, np.nan)
    titles = {"norm of the mean gradient": seen, "noise of the gradient": comparison.grad_noise}
    given = {title: values for title, values in titles.items() if values is not None}
    figure, panels = style.panels(len(given), 3.1, "log-SNR")
    for axes, (title, values) in zip(panels, given.items(), strict=True):
        for i, of_variant in enumerate(values):
            style.band(axes, comparison.centres, of_variant, i, marked=True)
        style.dress(axes, title, log=True)
    style.legend(figure, comparison)
    return figure


def cosines(comparison: Comparison) -> Figure:
    """Cosine between the mean gradients of every two bins, a map a variant, averaged over seeds."""
    figure, panels = style.panels(len(comparison.variants), 3.0, "log-SNR")
    n, edges = len(comparison.edges) - 1, comparison.edges
    ticks = np.arange(0, n + 1, max(1, math.ceil(n / 8)))
    for variant, values, axes in zip(comparison.variants, _measured(comparison.cosine, "cosine"), panels, strict=True):
        cosine = style.mean(values, 0)
        axes.pcolormesh(np.ma.masked_invalid(cosine), cmap=_diverging(), norm=Normalize(-1, 1), edgecolors="none")
        for row, column in np.ndindex(n, n) if n <= 12 else ():
            told = _cosine(float(cosine[row, column]))
            axes.text(column + 0.5, row + 0.5, told, ha="center", va="center", fontsize=8 if n <= 8 else 6)
        axes.set_title(_wrapped(variant.name), fontsize=style.TEXT)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=style.SMALL, length=2, color=MUTED)
        axes.set_xticks(ticks, [_signed(edges[tick]) for tick in ticks])
        axes.set_yticks(ticks, [_signed(edges[tick]) for tick in ticks])
        axes.spines[:].set_visible(False)
    figure.supylabel("log-SNR", fontsize=style.SMALL)
    return figure


def paired_differences(comparison: Comparison) -> Figure:
    """Each metric's differences to the first variant: mean, 95 % interval, and a ring for each seed."""
    names = [variant.name for variant in comparison.variants]
    figure, panels = style.panels(len(comparison.metrics), 0.42 * (len(names) - 1) + 0.9, sharey=True)
    for metric, axes in zip(comparison.metrics, panels, strict=True):
        _differences(axes, metric, names)
    return figure


def seeds(comparison: Comparison) -> Figure:
    """What pairs of a seed spare: the first metric seed by seed, and each metric's deviation of the paired differences
    over that of unpaired ones.
    """
    figure, (left, right) = style.panels(2, 3.0)
    metric, names = comparison.metrics[0], [variant.name for variant in comparison.variants]
    for i, values in enumerate(metric.values):
        left.plot(comparison.seeds, values, **style.line(i, width=1.0, marked=True))
    style.dress(left, f"{metric.title} of each seed", log=False, xlabel="seed")
    left.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    rows = range(1, len(names))
    for i, each in enumerate(comparison.metrics):
        ratios = [found.paired.ratio for found in differences(each, names)]
        right.plot(ratios, rows, ls="", marker="os^Dv"[i % 5], ms=6, label=each.title, mfc="none", mec=INK)
    right.axvline(1, color=INK, lw=1)
    style.dress(right, "deviation of differences, paired over unpaired", log=False)
    right.set_yticks(rows, names[1:])
    right.set_ylim(len(names) - 0.5, 0.5)
    right.set_xlim(left=0)
    right.grid(visible=False, axis="y")
    right.legend(frameon=False, fontsize=style.SMALL)
    style.legend(figure, comparison)
    return figure


def cost(comparison: Comparison) -> Figure:
    """Steps per second of each variant; nothing where they weren't measured."""
    names, speed = [variant.name for variant in comparison.variants], np.asarray(comparison.steps_per_second)
    figure, (axes,) = style.panels(1, 0.3 * len(names) + 0.3)
    places = np.arange(len(names))
    axes.barh(places, speed, height=0.65, color=[style.colour(int(i)) for i in places])
    for place, value in zip(places, speed, strict=True):
        if not np.isfinite(value):
            continue
        told = f"{value:#.3g}" if value < 100 else f"{value:,.0f}"
        axes.annotate(told, (value, place), (4, 0), textcoords="offset points", va="center", fontsize=style.SMALL)
    style.dress(axes, "", log=False, xlabel="steps per second")
    axes.set_yticks(places, names)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.1 * max(np.nan_to_num(speed).max(), 1e-9))
    axes.invert_yaxis()
    return figure


def _differences(axes: Axes, metric: Metric, names: Sequence[str]) -> None:
    for i, found in enumerate(differences(metric, names), start=1):
        both = np.asarray(np.isfinite(metric.values[[0, i]]).all(0))
        each = metric.values[i][both] - metric.values[0][both]
        axes.plot(each, np.full(len(each), i + 0.22), ls="", marker="o", ms=4, mfc="none", mec=style.colour(i), mew=0.9)
        half = np.nan_to_num(found.paired.half_width)
        axes.errorbar(found.paired.difference, i - 0.1, xerr=half, capsize=3, **style.line(i, marked=True))
        if not both.all():
            told, at = f"{len(both) - len(each)} of {len(both)} diverged", (1, i + 0.22 * (len(each) > 0))
            where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center"}
            axes.annotate(told, at, **where, fontsize=style.SMALL, color=MUTED)
    axes.axvline(0, color=INK, lw=1)
    style.dress(axes, metric.title, log=False, xlabel="\u2190 better" if metric.lower_is_better else "better \u2192")
    axes.set_yticks(range(1, len(names)), names[1:])
    axes.set_ylim(len(names) - 0.4, 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(visible=False, axis="y")


def _by_bin(comparison: Comparison, steps: np.ndarray, values: np.ndarray, *, log: bool) -> Figure:
    """Values [V, S, P, n] over steps [P], a panel a bin, from noise to data."""
    measured = np.isfinite(values).any((0, 1, 2))
    bins = np.flatnonzero(measured | ~measured.any())
    bins = bins[np.unique(np.linspace(0, len(bins) - 1, min(MOST_PANELS, len(bins))).astype(int))]
    figure, panels = style.panels(len(bins), 2.1, "step", most=3 if len(bins) <= 9 else 4)
    for axes, k in zip(panels, bins, strict=True):
        for i, of_variant in enumerate(values):
            style.band(axes, steps, of_variant[:, :, k], i)
        low, high = comparison.edges[k : k + 2]
        style.dress(axes, f"log-SNR {_signed(low)} to {_signed(high)}", log=log)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    style.legend(figure, comparison)
    return figure


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values [V, S, K, n] as means over at most MOST_POINTS windows of steps: [P] and [V, S, P, n]."""
    windows = np.array_split(np.arange(len(steps)), min(len(steps), MOST_POINTS))
    means = [style.mean(values[:, :, window], 2) for window in windows]
    return np.array([np.mean(steps[window]) for window in windows]), np.stack(means, axis=2)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 34))


def _signed(value: float) -> str:
    return f"{value:.3g}".replace("-", MINUS)


def _cosine(value: float) -> str:
    """ "-.12" for -0.12: cells are small."""
    if not math.isfinite(value):
        return ""
    return f"{value:.0f}" if abs(value) > 0.995 else f"{value:.2f}".replace("0.", ".")


def _measured(values: np.ndarray | None, name: str) -> np.ndarray:
    if values is None:
        raise ValueError(f"{name} must be measured to be drawn, got None")
    return values


def _diverging() -> ListedColormap:
    """-1 to 1, and clear at 0, whatever the page's colour."""
    clear = np.linspace(-1, 1, 201)
    rgb = np.where(clear[:, None] < 0, to_rgb(_COLD), to_rgb(_HOT))
    return ListedColormap(np.column_stack([rgb, 0.8 * np.abs(clear)]))
