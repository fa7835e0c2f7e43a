"""The algebra of weightings, drawn: what a noise level counts for, and as which factor in which space."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ddpm_jax.diffusion.bins import LIMIT
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.weightings import WEIGHTINGS, Weighting, bind, effective, in_space
from ddpm_jax.figures.page import COLOURS, INK, MUTED
from ddpm_jax.records import pick

SHOWN = ("elbo", "sigmoid", "monotone_edm", "v_mse", "log_normal", "simple", "min_snr", "p2")
SPACES = ("eps", "x0", "v", "flow")

DASHED = (0, (5, 2))
LOWEST, HIGHEST = 1e-3, 1e3
"""What a weight is shown between: below it hardly counts, above nothing else does."""


def effective_weights(schedules: Mapping[str, Schedule], names: Sequence[str] = SHOWN) -> Figure:
    """w(lambda) of weightings of the zoo, a panel a schedule; solid if it never rises with log-SNR, else dashed.

    t is uniform. Each w is divided by its own value at log-SNR 0 (or at the end of the schedule that is nearest to it),
    so that shapes compare and all curves cross there. The first and the last step, which know one neighbour only, are
    left out, as they are in the verdict.

    Raises:
        ValueError: for no schedule, or a weighting that the zoo doesn't have.
    """
    if not schedules:
        raise ValueError("schedules must hold at least one schedule, got none")
    figure = Figure(figsize=(1.8 + 4.4 * len(schedules), 4.2), layout="constrained")
    panels = figure.subplots(1, len(schedules), sharey=True, squeeze=False)[0]
    for axes, (schedule_name, schedule) in zip(panels, schedules.items(), strict=True):
        # Wide to narrow, so that a line shows beneath another where the two agree.
        for i, (name, width) in enumerate(zip(names, np.linspace(2.8, 1.4, len(names)), strict=True)):
            found = effective(schedule, pick(WEIGHTINGS, name, "names"))
            x, w = np.asarray(found.log_snr[::-1], np.float64), np.asarray(found.w[::-1], np.float64)
            inside = (np.abs(x) <= LIMIT) & (x > x[0]) & (x < x[-1])
            stroke = "-" if found.monotone else DASHED
            axes.plot(
                x[inside], (w / np.interp(0.0, x, w))[inside],
                color=_colour(i), linewidth=width, linestyle=stroke, label=name,
            )  # fmt: skip
        _dress(axes, f"{schedule_name} schedule")
        axes.set_ylim(LOWEST, HIGHEST)
    panels[0].set_ylabel("w(log-SNR) / w(0)")
    figure.legend(handles=[*panels[0].lines, *_kinds()], loc="outside right center", frameon=False)
    return figure


def factors(schedule: Schedule, k: Weighting, name: str, spaces: Sequence[str] = SPACES) -> Figure:
    """One objective as a factor on the squared error of each prediction, over the log-SNR of a schedule.

    Args:
        schedule: says the range of log-SNR, and is handed to k if it takes one.
        k: the factor on the error of eps.
        name: what k is called in the title.
        spaces: predictions, but not "mean", which is none of log-SNR alone.

    Raises:
        ValueError: for an unknown prediction, or "mean".
    """
    low, high = (float(np.clip(schedule.log_snr[t], -LIMIT, LIMIT)) for t in (-1, 0))
    log_snr = jnp.linspace(low, high, 400)
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for i, (space, width) in enumerate(zip(spaces, np.linspace(4, 1.5, len(spaces)), strict=True)):
        axes.plot(log_snr, in_space(bind(k, schedule), space, log_snr), color=_colour(i), linewidth=width, label=space)
    _dress(axes, f"{name}: one objective in {len(spaces)} spaces")
    axes.set_ylabel("factor on the squared error")
    axes.legend(title="of", frameon=False)
    return figure


def _kinds() -> list[Line2D]:
    """The key to the strokes, an empty line above it."""
    return [
        Line2D([], [], linestyle="none", label=" "),
        Line2D([], [], color=MUTED, label="never rises:\nan ELBO"),
        Line2D([], [], color=MUTED, linestyle=DASHED, label="rises\nsomewhere"),
    ]


def _colour(i: int) -> str:
    return [INK, *COLOURS][i % (1 + len(COLOURS))]


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("log-SNR (noise on the left, data on the right)")
    axes.set_yscale("log", nonpositive="mask")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
