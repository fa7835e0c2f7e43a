"""Ours over PyTorch's as a picture and as tables: python benchmarks/draw.py [--out FILE.png]

Reads what step.py, sample.py and memory.py left in benchmarks/results, makes docs/speed.png and prints the tables.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ddpm_jax.cli import flags
from ddpm_jax.figures import plots, style
from ddpm_jax.figures.page import MUTED, PAPER

DTYPES = {"jax-float32": "float32", "jax-bfloat16": "bfloat16"}
PANELS = {
    "step": "training step, time",
    "sample": "50 DDIM steps, time",
    "memory": "training step, memory",
}
"""The panels by the file whose results they show."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Where results are read and the picture goes."""

    results: Path = Path("benchmarks/results")
    out: Path = Path("docs/speed.png")


def bars(results: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Variant -> case -> median and quartiles of its ratio to PyTorch's best; memory has one number."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for case, result in results.items():
        for name, ratio in result["ratios"].items():
            if best := ratio.get("best"):
                found.setdefault(name, {})[case] = best["median"], best["low"], best["high"]
            elif "ratio" in ratio:
                found.setdefault(name, {})[case] = (ratio["ratio"],) * 3
    return found


def panel(axes: Axes, title: str, found: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> None:
    """Bars by case, one for each dtype, their quartiles, and the line where both are equally fast."""
    cases = list(dict.fromkeys(case for of in found.values() for case in of))
    width, top = 0.8 / len(DTYPES), 1.0
    for i, name in enumerate(DTYPES):
        for case, (median, low, high) in found.get(name, {}).items():
            x = cases.index(case) + (i - (len(DTYPES) - 1) / 2) * width
            axes.bar(x, median, width * 0.94, color=style.colour(i + 1))
            if low < high:
                axes.errorbar(x, median, [[median - low], [high - median]], color=MUTED, capsize=2.5)
            behind = {"fc": PAPER, "ec": "none", "pad": 0.5}
            place = {"textcoords": "offset points", "ha": "center", "size": style.SMALL}
            axes.annotate(f"{median:.2f}", (x, high), (0, 4), **place, bbox=behind)
            top = max(top, high)
    style.dress(axes, title, log=False)
    axes.axhline(1, color="black", lw=1)
    axes.set_ylim(0, 1.15 * top)
    axes.set_xlim(-0.6, len(cases) - 0.4)
    axes.set_xticks(range(len(cases)), [case.replace(":", "\nbatch ") for case in cases])
    axes.grid(visible=False, axis="x")


def values_of(kind: str, result: Mapping[str, Any]) -> dict[str, float]:
    """Of every variant: seconds of a step, or of one of the steps of sampling; or bytes."""
    if kind == "memory":
        return {name: of["steps"] for name, of in result["bytes"].items()}
    return {name: of["median"] / result.get("steps", 1) for name, of in result["seconds"].items()}


def table(kind: str, results: Mapping[str, Any]) -> list[str]:
    """The results of a file as Markdown: times (in sampling, of a network evaluation) or sizes, and our ratios."""
    unit, scale = ("MiB", 2**-20) if kind == "memory" else ("ms", 1e3)
    lines = [f"| {kind} | variant | {unit} | ratio | of | share of the peak |", "|---|---|---|---|---|---|"]
    for case, result in results.items():
        for name, value in values_of(kind, result).items():
            ratio = result["ratios"].get(name, {})
            ratio = ratio.get("best") or ratio
            said = f"{ratio['ratio']:.2f}" if "ratio" in ratio else ""
            if "median" in ratio:
                said = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            share = result.get("share_of_peak", {}).get(name)
            peak = f"{share:.0%}" if share is not None else ""
            lines.append(f"| {case} | {name} | {scale * value:.1f} | {said} | {ratio.get('of', '')} | {peak} |")
    return lines


def figure(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A panel for each kind of results.

    Raises:
        ValueError: if there are none.
    """
    if not results:
        raise ValueError(f"there must be results of {', '.join(PANELS)}, got none: run benchmarks/step.py first")
    found = {kind: bars(of) for kind, of in results.items()}
    widths = [max((len(of) for of in each.values()), default=1) for each in found.values()]
    drawn, axes = style.panels(len(results), 3.2, gridspec_kw={"width_ratios": widths})
    for each, (kind, of) in zip(axes, found.items(), strict=True):
        panel(each, PANELS[kind], of)
    axes[0].set_ylabel("ours over PyTorch's best", fontsize=style.SMALL)
    handles = [Patch(color=style.colour(i + 1)) for i in range(len(DTYPES))]
    drawn.legend(handles, list(DTYPES.values()), loc="outside upper left", ncols=len(DTYPES), frameon=False)
    return drawn


def main(args: list[str]) -> None:
    asked = flags.parse(Flags, args, prog="draw.py", default=Flags())
    files = {kind: asked.results / f"{kind}.json" for kind in PANELS}
    results = {kind: json.loads(file.read_text()) for kind, file in files.items() if file.exists()}
    plots.save(figure(results), asked.out)
    for kind, of in results.items():
        print(*table(kind, of), "", sep="\n")


if __name__ == "__main__":
    flags.run(main)
