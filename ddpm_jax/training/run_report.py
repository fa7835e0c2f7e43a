"""A run's page: WORKDIR/report.html, read from the run's folder and written whole or not at all."""

import contextlib
import dataclasses
import datetime
import functools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import config as config_lib
from ddpm_jax import files
from ddpm_jax.config import Config, Diffusion
from ddpm_jax.diffusion import schedules, timesteps
from ddpm_jax.diffusion.weightings import WEIGHTINGS, effective
from ddpm_jax.figures import page, run_page
from ddpm_jax.figures.page import Frame
from ddpm_jax.figures.run_record import Process, RunRecord
from ddpm_jax.training import environment, own_weighting, processes, run_pictures
from ddpm_jax.training.state import State

FILE = "report.html"
SHARE, REST = 0.02, 15.0
"""Of a run's time that its page may take while it runs, and the seconds that lie between two at least."""

Tell = Callable[[State], None]
_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def open_page(workdir: files.Place, config: Config) -> Iterator[Tell]:
    """`tell(state)`: a run has come so far. The first time starts a line of environment.jsonl; later ones write the
    page anew if the last is long enough ago. It is written on the way out, too, but after Ctrl-C.

    The first process's; those of the others do nothing. What goes wrong here is logged, and harms no training.
    """
    if not processes.writes():
        yield lambda state: None
        return
    began, cost, last = time.monotonic(), 0.0, time.monotonic()
    start: environment.Start = {}

    def keep() -> None:
        environment.record(workdir, start)
        write(workdir)

    def tell(state: State) -> None:
        nonlocal start, cost, last
        now = time.monotonic()
        if not start:
            with _harmless(environment.FILE):
                start = environment.of(config, state)
                environment.record(workdir, start)
            return
        start |= {"until": int(state.step), "seconds": round(now - began, 1)}
        if now - last >= max(REST, cost / SHARE):
            with _harmless(FILE):
                keep()
            last = time.monotonic()
            cost = last - now

    def end() -> None:
        if start:
            start["seconds"] = round(time.monotonic() - began, 1)
            with _harmless(FILE):
                keep()

    try:
        yield tell
    except Exception:
        end()  # a run that broke off is looked at, too
        raise
    end()


@contextlib.contextmanager
def _harmless(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _LOG.warning("%s was not written (%s: %s)", name, type(error).__name__, " ".join(str(error).split()))


def write(workdir: files.Place) -> files.Place:
    """Read a run's folder, and write its page.

    Raises:
        FileNotFoundError: if it is no run's folder.
        ValueError: if its config.json can't be read.
        OSError: if the page can't be written.
    """
    path = workdir / FILE
    page.write(path, run_page.run_page(read(workdir)))
    return path


def read(workdir: files.Place) -> RunRecord:
    """A run as its folder tells it, be it at work, finished or broken off; what can't be read is left out."""
    config = config_lib.read(workdir / "config.json")
    samples, evaluation = workdir / "samples", workdir / "evaluation"
    previews = [file for file in _named(samples, "step_*.png") if run_pictures.step(file.name)]
    previews = sorted(previews, key=lambda file: int(run_pictures.step(file.name)))
    films, strips = _named(samples, "*_denoising.gif"), _named(samples, "*_denoising.png")
    evaluations = _evaluations(evaluation)
    nearest = [evaluation / Path(str(each["nearest"])).name for each in evaluations if each.get("nearest")]
    steps, size = _checkpoints(workdir / "checkpoints")
    return RunRecord(
        name=files.absolute(workdir).name,
        written=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        config=config,
        starts=tuple(environment.read(workdir)),
        lines=tuple(lines(workdir)),
        evaluations=tuple(evaluations),
        process=_process(config) if config.diffusion.objective != "classifier" else None,
        samples=run_pictures.film(previews) or run_pictures.gif(samples / "training.gif"),
        denoising=_newest(run_pictures.gif, films) or _newest(run_pictures.still, strips),
        drawn=_first(run_pictures.still(samples / "sample.png")),
        nearest=_first(_newest(run_pictures.still, nearest)),
        likelihood=_json(workdir / "likelihood.json"),
        bound=_first(run_pictures.still(workdir / "likelihood.png", side=1280)),
        checkpoints=steps,
        checkpoint_bytes=size,
    )


def _newest(read_file: Callable[[files.Place], tuple[Frame, ...]], found: list[files.Place]) -> tuple[Frame, ...]:
    return read_file(found[-1]) if found else ()


def _first(frames: tuple[Frame, ...]) -> Frame | None:
    return frames[0] if frames else None


def lines(workdir: files.Place) -> list[dict[str, Any]]:
    """Those of metrics.jsonl that can be read and have a step, in order: of steps that were taken twice the later.

    Figures of an evaluation may be older than the line before: they drop nothing.
    """
    path = workdir / "metrics.jsonl"
    text = ""
    if files.is_file(path):
        with files.local(path) as here:
            text = here.read_text(errors="replace")
    kept, measured = [], []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        step = values.get("step") if isinstance(values, dict) else None
        if not isinstance(step, (int, float)) or not abs(step) < 1e18:
            continue
        values["step"] = int(step)
        if "evaluation" in values:
            measured.append(values)
            continue
        while kept and kept[-1]["step"] >= values["step"]:
            kept.pop()
        kept.append(values)
    return sorted([*kept, *measured], key=lambda values: values["step"])


def _evaluations(folder: files.Place) -> list[dict[str, Any]]:
    found = [_json(file) for file in _named(folder, "*.json")]
    steps = [each for each in found if each is not None and isinstance(each.get("step"), int)]
    return sorted(steps, key=lambda each: each["step"])


def _json(path: files.Place) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text()) if files.is_file(path) else None
    except (ValueError, OSError):
        return None
    return found if isinstance(found, dict) else None


def _named(folder: files.Place, pattern: str) -> list[files.Place]:
    return sorted(folder.glob(pattern)) if files.is_dir(folder) else []


def _checkpoints(folder: files.Place) -> tuple[tuple[int, ...], int]:
    """Their steps, and their bytes if they lie on this machine: training may write and delete them meanwhile."""
    if not files.is_dir(folder):
        return (), 0
    steps = tuple(sorted(int(entry.name) for entry in files.entries(folder) if entry.name.isdigit()))
    total = 0
    for root, _, names in os.walk(folder) if isinstance(folder, Path) else ():
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return steps, total


def _process(config: Config) -> Process | None:
    try:
        return _process_of(config.diffusion, config.distill.method)
    except Exception as error:  # a weighting of the user's own may do anything, or be gone
        _LOG.warning("the page has no w(lambda) (%s: %s)", type(error).__name__, " ".join(str(error).split()))
    with contextlib.suppress(ValueError):
        schedule = schedules.build(config.diffusion)
        return Process(alpha_bars=np.asarray(schedule.alpha_bars), log_snr=np.asarray(schedule.log_snr))
    return None


@functools.lru_cache(maxsize=4)
def _process_of(settings: Diffusion, distilled: str) -> Process:
    schedule = schedules.build(settings)
    plain = Process(alpha_bars=np.asarray(schedule.alpha_bars), log_snr=np.asarray(schedule.log_snr))
    if distilled not in ("", "progressive"):
        return plain
    k: Any = own_weighting.late(settings.weighting, settings.weighting_args, schedule)
    if settings.objective == "vlb":  # these two leave the weighting alone
        k = functools.partial(WEIGHTINGS["vlb"], fraction=0.0 if settings.variance == "small" else 1.0)
    elif settings.objective == "continuous":
        k = WEIGHTINGS["elbo"]
    draw_t = timesteps.build(settings.draw_t, settings.draw_t_args)
    found = effective(schedule, k, draw_t, correct_draw=settings.correct_draw)
    return dataclasses.replace(plain, w=np.asarray(found.w), monotone=found.monotone)
