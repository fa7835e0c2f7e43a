"""The page of a comparison: verdicts first, then what they rest on."""

import math
import re
from collections.abc import Iterator

import numpy as np
from markupsafe import Markup

from ddpm_jax.evaluation.comparison import Comparison
from ddpm_jax.evaluation.paired import CONFIDENCE, Difference, Metric, decimals, differences, outcome, plus_minus
from ddpm_jax.figures import comparison as figures
from ddpm_jax.figures import page, pictures

MOST_ROWS, MOST_COLUMNS = 4, 8
"""Seeds and latents of which samples are shown."""

_MARKS = {"better": "\u25b2", "worse": "\u25bc", "none": "=", "unknown": "?", "diverged": "!"}
_BINS = "Bins are of log-SNR: noise on the left, data on the right."


def comparison_page(comparison: Comparison) -> str:
    """The whole page as HTML; what wasn't measured has no section."""
    parts = {
        "Verdicts": _verdicts,
        "Metrics": _metrics,
        "Paired differences": _differences,
        "Samples": _samples,
        "Weights": _weights,
        "Bits by noise level": _bits,
        "Error over training": _error,
        "Gradients": _gradients,
        "Cost": _cost,
        "What was run": _facts,
    }
    sections = {title: tuple(blocks(comparison)) for title, blocks in parts.items()}
    variants, seeds = _count(len(comparison.variants), "variant"), _count(len(comparison.seeds), "seed")
    lead = f"{variants} on {seeds}, compared with the first. One seed gives all variants the same data, t and noise."
    return page.render(
        comparison.title,
        lead,
        [page.Section(title=title, blocks=blocks) for title, blocks in sections.items() if blocks],
    )


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


def _point(found: Difference, others: int) -> tuple[str, str, str]:
    """The verdict as `page.points` takes it, with a word of warning where the number of comparisons takes it back."""
    kind = outcome(found.paired)
    words = _typeset(found.verdict[0].upper() + found.verdict[1:] if kind == "none" else found.verdict)
    if kind in ("better", "worse") and found.holm > 1 - CONFIDENCE:
        return f"{kind} doubtful", _MARKS[kind], f"{words} (p\u00a0=\u00a0{found.holm:#.2g} among {others})."
    return kind, _MARKS[kind], f"{words}."


def _metrics(comparison: Comparison) -> Iterator[Markup]:
    if not comparison.metrics:
        return
    head = ["variant", *(metric.title for metric in comparison.metrics)]
    columns = [_column(metric) for metric in comparison.metrics]
    rows = [[variant.name, *cells] for variant, *cells in zip(comparison.variants, *columns, strict=True)]
    yield page.table("Mean over seeds \u00b1 deviation between them; the best mean is bold.", head, rows)
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


def _differences(comparison: Comparison) -> Iterator[Markup]:
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
    yield _spared([d.paired.ratio for _, each in found for d in each])


def _spared(ratios: list[float]) -> Markup:
    known = [ratio for ratio in ratios if math.isfinite(ratio)]
    if not known:
        return page.text("Without two seeds of each there is no deviation, and nothing to say about chance.")
    middle = float(np.median(known))
    return page.text(
        "The deviation of a difference is that over seeds; unpaired is what it would be if the two had nothing in "
        f"common. Common random numbers bring it to {middle:.2g} of that (the median over {len(known)} comparisons): "
        + (
            f"as sure a verdict from separate seeds would take about {1 / middle**2:.2g} times as many of them."
            if 0 < middle < 1
            else "here they spare nothing."
        )
    )


def _samples(comparison: Comparison) -> Iterator[Markup]:
    if comparison.samples is None:
        return
    shown = comparison.samples[:, :MOST_ROWS, :MOST_COLUMNS]
    _, rows, columns, height, width, _ = shown.shape
    seeds = ", ".join(str(seed) for seed in comparison.seeds[:rows])
    items = [
        page.Picture(
            name=variant.name,
            pixels=pictures.grid(images.reshape(-1, *images.shape[2:]), columns=columns, padding=1, scale=1),
            alt=f"Samples of {variant.name}: {_count(rows, 'row')} of {_count(columns, 'image')}",
            zoom=max(1, round(256 / (columns * width))),
        )
        for variant, images in zip(comparison.variants, shown, strict=True)
    ]
    yield page.pictures(
        items,
        f"Each row is a seed ({seeds}), each column a latent: images in one place began from the same noise. "
        f"They have {height} x {width} pixels.",
    )


def _weights(comparison: Comparison) -> Iterator[Markup]:
    yield page.plot(
        "w(\u03bb) of each variant",
        figures.weights(comparison),
        "What a nat of log-SNR counts for once schedule and draw of t are taken in, each over its own mean, so that "
        "shapes compare. A solid line never rises from left to right: such a loss is a bound on the likelihood of data "
        "with noise added (Kingma & Gao 2023). A dashed one rises somewhere.",
    )


def _bits(comparison: Comparison) -> Iterator[Markup]:
    if comparison.bits_by_bin is None:
        return
    yield page.plot(
        "bits/dim by noise level",
        figures.bits_by_bin(comparison),
        "Left, what each bin of log-SNR adds to the bound, averaged over seeds. Right, the difference to "
        f"{comparison.variants[0].name} with its 95 % interval: below 0 is better. {_BINS}",
    )


def _error(comparison: Comparison) -> Iterator[Markup]:
    thinned = len(comparison.steps) > figures.MOST_POINTS
    means = (
        f" A point is the mean of {len(comparison.steps) / figures.MOST_POINTS:.2g} logged steps." if thinned else ""
    )
    yield page.plot(
        "Squared error of eps over training",
        figures.error_over_training(comparison),
        f"A panel a bin of log-SNR, from noise to data; lines are means over seeds, bands span them.{means}",
    )
    if len(comparison.variants) > 1:
        yield page.plot(
            f"The same, as a multiple of {comparison.variants[0].name}'s",
            figures.error_against_baseline(comparison),
            "Seed by seed, so that what chance does to both cancels. Below 1, this noise level is learned better.",
        )
    yield page.plot(
        "Training loss",
        figures.losses(comparison),
        "A line a seed, each panel on its own scale: losses under different weightings can't be compared.",
    )


def _gradients(comparison: Comparison) -> Iterator[Markup]:
    if comparison.grad_norm is not None or comparison.grad_noise is not None:
        yield page.plot(
            "Gradients by noise level",
            figures.gradients(comparison),
            "Of the weighted loss at the t of each bin, after training. Norm: of the mean gradient. Noise: how far the "
            f"gradient of a single image strays from it. Lines are means over seeds, bands span them. {_BINS}",
        )
    if comparison.cosine is not None:
        yield page.plot(
            "Cosine between the gradients of noise levels",
            figures.cosines(comparison),
            "Red: two noise levels pull the parameters the same way (1 is parallel). Blue: they pull against each "
            "other. Averaged over seeds; ticks are the edges of the bins.",
        )


def _cost(comparison: Comparison) -> Iterator[Markup]:
    yield page.plot(
        "Steps per second",
        figures.cost(comparison),
        "Training steps in a second, those of all members counted; members of a kind (the same prediction and draw of "
        "t) share a program and its speed.",
    )


def _facts(comparison: Comparison) -> Iterator[Markup]:
    yield page.command(comparison.command)
    yield page.facts({**comparison.facts, "seeds": ", ".join(map(str, comparison.seeds))})
    names = list(dict.fromkeys(name for variant in comparison.variants for name in variant.settings))
    if names:
        rows = [[v.name, *(v.settings.get(name, "\u2013") for name in names)] for v in comparison.variants]
        yield page.table("Settings in which variants differ from the preset.", ["variant", *names], rows, words=True)


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


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
