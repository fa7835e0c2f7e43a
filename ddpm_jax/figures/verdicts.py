"""What a comparison's page says of its metrics: verdicts, means, paired differences, and what the pairs spared."""

import math
import re
from collections.abc import Iterator

import numpy as np
from markupsafe import Markup

from ddpm_jax.evaluation.comparison import Comparison
from ddpm_jax.evaluation.paired import (
    CONFIDENCE,
    Difference,
    Metric,
    count,
    decimals,
    differences,
    outcome,
    plus_minus,
)
from ddpm_jax.figures import comparison as figures
from ddpm_jax.figures import page

_MARKS = {"better": "\u25b2", "worse": "\u25bc", "none": "=", "unknown": "?", "diverged": "!"}


def verdicts(comparison: Comparison) -> Iterator[Markup]:
    """In words, metric by metric, and which runs were unstable."""
    yield from _verdicts(comparison)
    yield from _unstable(comparison)


def _verdicts(comparison: Comparison) -> Iterator[Markup]:
    baseline, others = comparison.variants[0].name, len(comparison.variants) - 1
    found = _all(comparison)
    if not others or not found:
        yield page.text("There is nothing to compare: it takes two variants and a metric.")
        return
    for metric, each in found:
        if len(found) > 1:
            yield page.heading(metric.name)
        yield page.points([_point(d, others) for d in each])
    if len(comparison.seeds) == 1:
        yield page.text("One seed gives no interval: a second one would tell a difference from chance.")
        return
    note = (
        f"\u00b1 is half of a 95 % interval of the paired differences to {baseline} over "
        f"{len(comparison.seeds)} seeds (Student's t)."
    )
    if others > 1:
        note += (
            f" Each metric compares {baseline} with {others} others, and a comparison errs one time in twenty where "
            "there is no difference. Where a verdict doesn't outlast that number (Holm), its mark is grey and p told."
        )
    yield page.text(note)


def _unstable(comparison: Comparison) -> Iterator[Markup]:
    if comparison.skipped is None or not (comparison.skipped > 0).any():
        return
    yield page.heading("Unstable runs")
    yield page.points(
        [
            (
                "diverged",
                _MARKS["diverged"],
                f"{comparison.variants[i].name}, seed {comparison.seeds[j]} skipped "
                f"{count(int(comparison.skipped[i, j]), 'step')} whose loss or gradient was not finite: its figures "
                "are of an unstable run.",
            )
            for i, j in np.argwhere(comparison.skipped > 0)
        ]
    )


def _point(found: Difference, others: int) -> tuple[str, str, str]:
    """The verdict as `page.points` takes it, with a word of warning where the number of comparisons takes it back."""
    kind = outcome(found.paired)
    words = _typeset(found.verdict[0].upper() + found.verdict[1:] if kind == "none" else found.verdict)
    if kind in ("better", "worse") and found.holm > 1 - CONFIDENCE:
        return f"{kind} doubtful", _MARKS[kind], f"{words} (p\u00a0=\u00a0{found.holm:#.2g} among {others})."
    return kind, _MARKS[kind], f"{words}."


def means(comparison: Comparison) -> Iterator[Markup]:
    """Of each variant over its seeds."""
    if not comparison.metrics:
        return
    head = ["variant", *(metric.title for metric in comparison.metrics)]
    columns = [_column(metric) for metric in comparison.metrics]
    rows = [[variant.name, *cells] for variant, *cells in zip(comparison.variants, *columns, strict=True)]
    said = "Of the only seed" if len(comparison.seeds) == 1 else "Mean over seeds \u00b1 deviation between them"
    yield page.table(f"{said}; the best is bold.", head, rows)
    yield page.text(
        "A seed moves all variants alike: read a difference from the pairs, not from these deviations."
        + "".join(_own_error(metric) for metric in comparison.metrics)
    )


def _own_error(metric: Metric) -> str:
    errors = np.asarray(() if metric.standard_error is None else metric.standard_error, np.float64)
    errors = _finite(errors)
    return f" One member's {metric.name} has a standard error of {np.median(errors):.2g}." if errors.size else ""


def _column(metric: Metric) -> list[page.Cell]:
    values = np.asarray(metric.values, np.float64)
    whole = np.asarray(np.isfinite(values).all(1))
    means = np.array([row.mean() if ok else math.nan for row, ok in zip(values, whole, strict=True)])
    signed = np.where(whole, means if metric.lower_is_better else -means, np.inf)
    deviations = [float(row.std(ddof=1)) if len(row) > 1 else math.nan for row in map(_finite, values)]
    cells, digits = [], decimals(deviations)
    for i, row in enumerate(values):
        finite = _finite(row)
        text = _typeset(plus_minus(float(finite.mean()), deviations[i], digits)) if finite.size else "diverged"
        note = "" if whole[i] else f"{len(row) - len(finite)} of {len(row)} diverged"
        best = len(values) > 1 and bool(whole[i]) and signed[i] == signed.min()
        cells.append(page.Cell(text=text, note=note, best=best))
    return cells


def paired_differences(comparison: Comparison) -> Iterator[Markup]:
    """As a figure and in tables, and what common random numbers spared."""
    found = _all(comparison)
    if len(comparison.variants) < 2 or not found:
        return
    baseline = comparison.variants[0].name
    yield page.plot(
        f"Differences to {baseline}",
        figures.paired_differences(comparison),
        f"A mark is the mean over seeds, its bar the 95 % interval, each ring one seed; {baseline} is the line at 0. A "
        "bar that keeps clear of it is a difference.",
    )
    head = ["variant", "difference", "seeds better", "p", "p (Holm)", "deviation", "unpaired", "ratio"]
    for metric, each in found:
        digits = decimals([d.paired.half_width for d in each])
        rows = [
            [
                d.name,
                _typeset(plus_minus(d.paired.difference, d.paired.half_width, digits)),
                f"{d.paired.wins} of {d.paired.seeds}",
                *(_number(p) for p in (d.paired.p_value, d.holm)),
                *(_number(x) for x in (d.paired.deviation, d.paired.unpaired_deviation, d.paired.ratio)),
            ]
            for d in each
        ]
        sense = "lower is better" if metric.lower_is_better else "higher is better"
        yield page.table(f"{metric.title}: difference to {baseline}; {sense}.", head, rows)
    if len(comparison.seeds) > 1:
        yield page.plot(
            "What common random numbers spare",
            figures.seeds(comparison),
            f"Left, {comparison.metrics[0].title} of each seed: where lines run side by side, a seed is kind or unkind "
            "to all variants alike. Right, how far differences within a seed deviate, as a part of how far they would "
            "between separate runs.",
        )
    yield from _spared(found, len(comparison.seeds))


def _spared(found: list[tuple[Metric, tuple[Difference, ...]]], seeds: int) -> Iterator[Markup]:
    rows = []
    for metric, each in found:
        known = _finite(np.array([d.paired.ratio for d in each]))
        if known.size:
            middle = float(np.median(known))
            times = 1 / middle**2 if middle else math.inf
            rows.append([metric.title, _number(middle), _number(times), str(known.size)])
    if not rows:
        yield page.text("Without two seeds of each there is no deviation, and nothing to say about chance.")
        return
    yield page.table(
        f"What common random numbers spare, over {seeds} seeds; the ratio is the median over so many differences.",
        ["metric", "ratio", "times as many seeds", "differences"],
        rows,
    )
    yield page.text(
        "The deviation of a difference is that over seeds; unpaired is what it would be if the two had nothing in "
        "common, and the ratio is the one over the other: verdicts as sure from separate seeds would take about "
        f"1/ratio\u00b2 times as many. Over {seeds} seeds a deviation is known to about "
        f"{100 / math.sqrt(2 * (seeds - 1)):.0f} % of itself, so that these figures are rough."
    )


def _all(comparison: Comparison) -> list[tuple[Metric, tuple[Difference, ...]]]:
    names = [variant.name for variant in comparison.variants]
    return [(metric, differences(metric, names)) for metric in comparison.metrics]


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "\u2013"
    return f"{value:#.2g}".removesuffix(".") if abs(value) < 99.5 else f"{value:.0f}"


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _typeset(words: str) -> str:
    """A minus sign before numbers, and no line break at \u00b1."""
    words = re.sub(r"^nan$", "\u2013", words)
    return re.sub(r"(^|\s)-(?=\d)", rf"\1{page.MINUS}", words).replace(" \u00b1 ", "\u00a0\u00b1\u00a0")
