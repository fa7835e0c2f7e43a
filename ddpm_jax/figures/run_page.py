"""The page of a run: what came out, how it went, and what was run. Drawn from a record; no file is read here."""

import functools
from collections.abc import Iterator, Mapping

import numpy as np
from markupsafe import Markup

from ddpm_jax.evaluation.paired import count
from ddpm_jax.figures import evaluation_table, page, run_curves, run_facts
from ddpm_jax.figures.page import Frame
from ddpm_jax.figures.run_curves import is_number, series
from ddpm_jax.figures.run_record import Line, Process, RunRecord

WIDEST, BESIDE = 560, 400
"""Pixels of the page that a film may take where its pictures are enlarged: the first, and what stands beside others."""


def run_page(run: RunRecord) -> str:
    """The whole page as HTML; what the run doesn't hold has no section."""
    parts = {
        "At a glance": _glance,
        "Samples": _samples,
        "Evaluation": evaluation_table.blocks,
        "Training": _training,
        "Noise levels": _noise_levels,
        "Likelihood": _likelihood,
        "Cost": run_facts.cost,
        "What was run": run_facts.facts,
    }
    sections = {title: tuple(blocks(run)) for title, blocks in parts.items()}
    return page.render(
        run.name,
        f"{_state(run)}. Written {run.written}.",
        [page.Section(title=title, blocks=blocks) for title, blocks in sections.items() if blocks],
    )


def _state(run: RunRecord) -> str:
    step, steps = run_facts.step_of(run), run.config.steps
    return f"Finished at step {step:,}" if step >= steps else f"At step {step:,} of {steps:,} ({step / steps:.0%})"


def _glance(run: RunRecord) -> Iterator[Markup]:
    found = {"state": _state(run)}
    for key, name in (("loss", "loss, last logged"), ("grad_norm", "gradient norm")):
        _, values = series(run.lines, key)
        if len(values):
            found[name] = f"{values[-1]:.4g}"
    found |= evaluation_table.newest(run)
    if run.likelihood is not None and is_number(run.likelihood.get("bits_per_dim")):
        found["bits/dim"] = _bits(run.likelihood)
    if parameters := run_facts.of_starts(run, "parameters"):
        found["parameters"] = f"{parameters:,}"
    yield page.facts(found)
    warnings = [*_warnings(run)]
    if warnings:
        yield page.points([("worse", "!", warning) for warning in warnings])


def _warnings(run: RunRecord) -> Iterator[str]:
    _, values = series(run.lines, "loss")
    if bad := int((~np.isfinite(values)).sum()):
        yield f"{bad} of {len(values)} logged losses not finite: the curves leave them out."
    if skipped := int(np.nansum(series(run.lines, "skipped")[1])):
        yield f"{count(skipped, 'step')} skipped: the loss or its gradient was not finite."


def _samples(run: RunRecord) -> Iterator[Markup]:
    if run.samples:
        yield page.film(
            "Samples over training",
            run.samples,
            f"The averaged network's answer to one fixed noise: {count(len(run.samples), 'picture')}. "
            "What changes from one to the next is what training changed.",
            zoom=_zoom(run.samples[-1], WIDEST),
        )
    if run.denoising:
        how = "From noise to images: x_t, and beside it what the network takes x_0 for."
        yield page.film("Denoising", run.denoising, how, zoom=_zoom(run.denoising[-1], BESIDE))
    if run.drawn is not None:
        how = "The newest grid that sample.py wrote into this folder."
        yield page.film("Drawn by sample.py", [run.drawn], how, zoom=_zoom(run.drawn, BESIDE))


def _zoom(frame: Frame, widest: int) -> float:
    """A whole number: pixels stay squares."""
    return max(1, widest // max(frame.width, 1))


def _training(run: RunRecord) -> Iterator[Markup]:
    lines = [line for line in run.lines if "evaluation" not in line]
    ways = {
        "Loss": (run_curves.loss, "Means over the steps between two lines of the log."),
        "Error by noise level": (
            run_curves.by_noise_level,
            "Bins of log-SNR: noise on the left, data on the right. The error is the mean square of eps's.",
        ),
        "Optimisation and speed": (run_curves.others, ""),
    }
    for name, (draw, caption) in ways.items():
        figure = draw(lines, run.resumes)
        if figure is not None:
            windows = len(lines) > run_curves.MOST_POINTS
            thinned = (
                f" Windows of {len(lines) / run_curves.MOST_POINTS:.2g} lines; bands span them." if windows else ""
            )
            dotted = " Dotted: the run was started again." if run.resumes else ""
            yield page.plot(name, figure, caption + thinned + dotted)


def _noise_levels(run: RunRecord) -> Iterator[Markup]:
    if run.process is not None:
        yield _process(run.process, run.config.diffusion.learn_schedule)


@functools.lru_cache(maxsize=4)
def _process(process: Process, learned: bool) -> Markup:
    """Drawn once for all pages of a run."""
    caption = "The schedule that training starts with, before it is learned." if learned else "The noise schedule."
    if process.w is not None:
        caption += (
            " w(\u03bb) is what a nat of log-SNR counts for once schedule and draw of t are taken in, over its mean; "
        )
        caption += (
            "it never rises from left to right, so that the loss is a bound on the likelihood of data with noise "
            "added (Kingma & Gao 2023)."
            if process.monotone
            else "dashed, for it rises somewhere (Kingma & Gao 2023)."
        )
    return page.plot("Schedule and weighting", run_curves.process(process), caption)


def _likelihood(run: RunRecord) -> Iterator[Markup]:
    found = run.likelihood
    if found is None or not is_number(found.get("bits_per_dim")):
        return
    shown = {"bits/dim": _bits(found)}
    told = {"bits_per_dim", "standard_error", "ode", "data", "how", "num_images", "step", "weights", "seed"}
    shown |= {name: f"{value:.4g}" for name, value in found.items() if name not in told and is_number(value)}
    words = ("num_images", "how", "step", "weights", "seed")
    shown |= {name.replace("num_", ""): str(found[name]) for name in words if name in found}
    ode = found.get("ode")
    if isinstance(ode, Mapping) and is_number(ode.get("bits_per_dim")):
        shown["by the ODE"] = _bits(ode)
    yield page.facts(shown)
    if run.bound is not None:
        yield page.film(
            "The bound by t", [run.bound], "What each step of the bound costs, and its rate and distortion."
        )


def _bits(found: Line) -> str:
    bits, error = found["bits_per_dim"], found.get("standard_error")
    return f"{bits:.4f} \u00b1 {1.96 * error:.4f} (95 %)" if isinstance(error, float) else f"{bits:.4f}"
