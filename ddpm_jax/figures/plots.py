"""Curves: what a schedule does, and how a run went.

Figures are made without pyplot: no display is needed, nothing stays open, and nothing is shared between threads.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ddpm_jax import files
from ddpm_jax.diffusion import bins
from ddpm_jax.diffusion.schedules import Schedule

CURVES = {
    "loss": {"loss": "all t"},
    "loss by quarter of t": {
        "loss_q1": "first (least noise)",
        "loss_q2": "second",
        "loss_q3": "third",
        "loss_q4": "last",
    },
    "gradient norm": {"grad_norm": "gradient norm"},
    "learning rate": {"learning_rate": "learning rate"},
    "images per second": {"images_per_second": "images per second"},
}
"""The panels of `curves`: title -> key in metrics.jsonl -> name in the legend."""

LOGARITHMIC = ("loss", "loss by quarter of t", "gradient norm")


def schedules(schedules: Mapping[str, Schedule]) -> Figure:
    """Four panels over t for schedules by name: beta, alpha_bar, log-SNR and the two standard deviations of p.

    The last has sqrt(beta) dashed and the posterior's, sqrt(beta_tilde), solid: the upper and the lower bound on the
    reverse step's standard deviation (Ho et al. 2020, Sec. 3.2).
    """
    if not schedules:
        raise ValueError("schedules must hold at least one schedule, got none")
    figure = Figure(figsize=(10, 7), layout="constrained")
    beta, alpha_bar, log_snr, deviation = figure.subplots(2, 2).flat
    for i, (name, schedule) in enumerate(schedules.items()):
        t, style = np.arange(schedule.num_steps), {"color": f"C{i}", "linewidth": 1.5}
        beta.plot(t, np.asarray(schedule.betas), **style, label=name)
        alpha_bar.plot(t, np.asarray(schedule.alpha_bars), **style)
        log_snr.plot(t, np.asarray(schedule.log_snr), **style)
        deviation.plot(t + 1, np.sqrt(schedule.posterior_variance), **style)
        deviation.plot(t + 1, np.sqrt(schedule.betas), **style, linestyle="--")
    _dress(beta, "beta", log=True)
    _dress(alpha_bar, "alpha_bar")
    _dress(log_snr, "log-SNR")
    _dress(deviation, "standard deviation of the reverse step", log=True)
    for axes in (beta, alpha_bar, log_snr):
        axes.set_xlabel("t")
    deviation.set_xscale("log")  # the two part only at the first few t
    deviation.set_xlabel("t + 1")
    figure.legend(loc="outside upper center", ncols=min(6, len(schedules)), frameon=False)
    kinds = [Line2D([], [], color="gray", label="posterior")]
    kinds += [Line2D([], [], color="gray", linestyle="--", label="sqrt(beta)")]
    deviation.legend(handles=kinds, loc="lower right", frameon=False)
    return figure


def curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each of `CURVES` that the records of metrics.jsonl have; each record has "step" and some values.

    Raises:
        ValueError: if there is nothing to draw.
    """
    found = {
        title: {key: points for key in keys if len(points := _points(records, key)) > 0}
        for title, keys in CURVES.items()
    }
    panels = {title: lines for title, lines in found.items() if lines}
    if not panels:
        known = ", ".join(key for keys in CURVES.values() for key in keys)
        raise ValueError(f"records must have a step and one of {known}; got {len(records)} records without")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    for i, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for key, points in lines.items():
            axes.plot(*points.T, linewidth=1.2, marker="." if len(points) < 30 else "", label=CURVES[title][key])
        drawn = np.concatenate(list(lines.values()))
        log = title in LOGARITHMIC and not (drawn[:, 1] <= 0).any()
        _dress(axes, title, log=log)
        axes.set_xlabel("step")
        if not log:
            axes.update_datalim([(drawn[0, 0], 0)])  # with 0 in view a wobble looks as small as it is
            axes.autoscale_view()
            axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        if len(CURVES[title]) > 1:
            axes.legend(frameon=False, fontsize="small")
    return figure


def by_bin(records: Sequence[Mapping[str, Any]]) -> Figure:
    """What a run said of its bins of log-SNR: the error of eps in each over training; and, if it took statistics of the
    gradients, the newest norms and noises of each bin and the cosines between them.

    Raises:
        ValueError: if no record has anything by bin.
    """
    names = bins.keys("eps_error", {key for record in records for key in record})
    errors = {name: _points(records, name) for name in names}
    taken = [record for record in records if record.get("grad_cosine")]
    if not errors:
        raise ValueError(f"records must have errors of eps by bin (--run.bins), got {len(records)} records without")
    figure = Figure(figsize=(14 if taken else 5, 4), layout="constrained")
    left, *others = figure.subplots(1, 3 if taken else 1, squeeze=False)[0]
    middles = [bins.middle(name) for name in names]
    colours = ScalarMappable(Normalize(*_ends(middles)), "viridis")
    for points, colour in zip(errors.values(), colours.to_rgba(np.array(middles)), strict=True):
        left.plot(*points.T, linewidth=1.2, marker="." if len(points) < 30 else "", color=colour)
    drawn = np.concatenate(list(errors.values()))
    _dress(left, "squared error of eps", log=not (drawn[:, 1] <= 0).any())
    left.set_xlabel("step")
    figure.colorbar(colours, ax=left, label="log-SNR")
    if taken:
        newest = max(taken, key=lambda record: record["step"])
        _gradients(figure, newest, *others)
    return figure


def _gradients(figure: Figure, record: Mapping[str, Any], sizes: Axes, matrix: Axes) -> None:
    for name, label in (("grad_norm", "norm of the mean"), ("grad_noise", "noise of one image")):
        middles, values = bins.read(name, record)
        sizes.plot(middles, values, marker=".", linewidth=1.2, label=label)
    _dress(sizes, f"gradient at step {record['step']}", log=True)
    sizes.set_xlabel("log-SNR")
    sizes.legend(frameon=False, fontsize="small")
    cosine = np.array(record["grad_cosine"], np.float64)  # null becomes NaN, which is left blank
    low, high = _ends(record["log_snr_edges"])
    drawn = matrix.imshow(
        cosine, vmin=-1, vmax=1, cmap="RdBu_r", origin="lower", extent=(low, high, low, high), aspect="equal"
    )
    matrix.set_title("cosine between gradients", fontsize="medium")
    matrix.set_xlabel("log-SNR")
    matrix.set_ylabel("log-SNR")
    figure.colorbar(drawn, ax=matrix)


def _ends(places: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest, apart even if there is one place only."""
    low, high = min(places), max(places)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def bound(terms: np.ndarray, rate: np.ndarray, rmse: np.ndarray) -> Figure:
    """The terms of a variational bound over t, and its rate-distortion curve (Ho et al. 2020, Fig. 5).

    Args:
        terms: L_t in bits/dim [T].
        rate: bits/dim received [T], from the last t to the first.
        rmse: root mean squared error of x_0 [T] at the same moments, on the scale 0 .. 255.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(np.arange(len(terms)) + 1, terms, linewidth=1.5)
    left.set_xscale("log")
    left.set_xlabel("t + 1")
    _dress(left, f"L_t, bits/dim (sum {terms.sum():.3f})", log=bool((terms > 0).all()))
    right.plot(rate, rmse, linewidth=1.5)
    right.set_xlabel("rate, bits/dim")
    _dress(right, "root mean squared error of x_0 (0 .. 255)")
    right.set_ylim(bottom=0)
    return figure


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as .png, .svg or .pdf, whole or not at all."""
    kind = files.suffix(path, [".png", ".svg", ".pdf"])
    encoded = io.BytesIO()
    figure.savefig(encoded, format=kind[1:], dpi=120)
    files.write(path, encoded.getvalue())


def _points(records: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Step and value [N, 2] of the records that have both, in order of step."""
    points = [(r["step"], r[key]) for r in records if r.get("step") is not None and r.get(key) is not None]
    points = np.array(points, np.float64).reshape(-1, 2)
    return points[np.argsort(points[:, 0], kind="stable")]


def _dress(axes: Axes, title: str, *, log: bool = False) -> None:
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    if log:
        axes.set_yscale("log", nonpositive="mask")  # beta_tilde is 0 at t = 0
