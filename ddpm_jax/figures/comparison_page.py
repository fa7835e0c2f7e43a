"""The page of a comparison: verdicts first, then what they rest on."""

from collections.abc import Iterator

import numpy as np
from markupsafe import Markup

from ddpm_jax.evaluation.comparison import Comparison
from ddpm_jax.evaluation.paired import count
from ddpm_jax.figures import comparison as figures
from ddpm_jax.figures import page, pictures, verdicts

MOST_ROWS, MOST_COLUMNS = 4, 8
"""Seeds and latents of which samples are shown."""

_UNCERTAINTY = "--diffusion.learn-uncertainty"
_BINS = "Bins are of log-SNR: noise on the left, data on the right."


def comparison_page(comparison: Comparison) -> str:
    """The whole page as HTML; what wasn't measured has no section."""
    parts = {
        "Verdicts": verdicts.verdicts,
        "Metrics": verdicts.means,
        "Paired differences": verdicts.paired_differences,
        "Samples": _samples,
        "Weights": _weights,
        "Bits by noise level": _bits,
        "Error over training": _error,
        "Gradients": _gradients,
        "Cost": _cost,
        "What was run": _facts,
    }
    sections = {title: tuple(blocks(comparison)) for title, blocks in parts.items()}
    variants, seeds = count(len(comparison.variants), "variant"), count(len(comparison.seeds), "seed")
    lead = f"{variants} on {seeds}, compared with the first. One seed gives all variants the same data, t and noise."
    return page.render(
        comparison.title,
        lead,
        [page.Section(title=title, blocks=blocks) for title, blocks in sections.items() if blocks],
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
            alt=f"Samples of {variant.name}: {count(rows, 'row')} of {count(columns, 'image')}",
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
            "gradient of a single image strays from it. Lines are means over seeds, bands span them. A gap: noise "
            f"hides the gradient; a seed in which it does is left out. {_BINS}{_before_uncertainty(comparison)}",
        )
    if comparison.cosine is not None:
        yield page.plot(
            "Cosine between the gradients of noise levels",
            figures.cosines(comparison),
            "Red: two noise levels pull the parameters the same way (1 is parallel). Blue: they pull against each "
            "other. Averaged over seeds; ticks are the edges of the bins.",
        )


def _before_uncertainty(comparison: Comparison) -> str:
    learned = [v for v in comparison.variants if "+uncertainty" in v.name or _UNCERTAINTY in v.settings]
    return " Where an uncertainty is learned, the loss is taken before it is divided by that." if learned else ""


def _cost(comparison: Comparison) -> Iterator[Markup]:
    measured = np.isfinite(comparison.steps_per_second)
    if not measured.any():
        return
    yield page.plot(
        "Steps per second",
        figures.cost(comparison),
        "Training steps in a second, those of all members counted; members of a kind (the same prediction and draw of "
        "t) share a program and its speed."
        + ("" if measured.all() else " Who has no bar was trained before this run."),
    )


def _facts(comparison: Comparison) -> Iterator[Markup]:
    yield page.command(comparison.command)
    yield page.facts({**comparison.facts, "seeds": ", ".join(map(str, comparison.seeds))})
    names = list(dict.fromkeys(name for variant in comparison.variants for name in variant.settings))
    if names:
        rows = [[v.name, *(v.settings.get(name, "\u2013") for name in names)] for v in comparison.variants]
        yield page.table("Settings in which variants differ from the preset.", ["variant", *names], rows, words=True)
