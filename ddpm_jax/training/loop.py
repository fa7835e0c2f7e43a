"""Training from start, or from where it stopped, to the end."""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ddpm_jax import config as config_lib
from ddpm_jax import data, files
from ddpm_jax.config import Config
from ddpm_jax.data.record import Source
from ddpm_jax.diffusion import bins
from ddpm_jax.figures import plots
from ddpm_jax.training import checkpoint, checks, distill, feed, gradients, processes, report, run_report, snapshots
from ddpm_jax.training import program as program_lib
from ddpm_jax.training.preview import preview, progress
from ddpm_jax.training.run import (
    ON_NONFINITE,
    Parts,
    as_learned,
    build,
    curve,
    make_train_step,
    training_key,
)
from ddpm_jax.training.state import State, learning_rate
from ddpm_jax.training.step import TrainStep
from ddpm_jax.training.watching import Watch, watch


class NonFiniteLossError(RuntimeError):
    """A loss or gradient was NaN or infinite; the checkpoints hold the last good states."""


def train(config: Config, workdir: str | os.PathLike, *, program: str | os.PathLike | None = None) -> State:
    """Train a run to config.steps, going on from its newest checkpoint if the folder holds one.

    `program` is a training step compiled beforehand (`training.program`), in place of one compiled now.

    On SIGTERM, or its platform's notice to any process, the run is saved and the state returned before its last step.

    Writes config.json, checkpoints/, metrics.jsonl, TensorBoard events, samples/, environment.jsonl and report.html
    into `workdir`, and with optimizer.ema_sigma_rels ema/.

    Raises:
        ValueError: before anything is written, for a config that can't be, or one that doesn't fit the folder's run.
        NonFiniteLossError: if a loss isn't finite and run.on_nonfinite is "stop".
    """
    workdir = files.place(workdir)
    parts = build(config)
    config = parts.config
    checks.settings(parts)
    source = data.load(config.data)
    feed.check_source(config.data, source)
    checks.labels(config, source)
    begun = checkpoint.newest(workdir / "checkpoints")
    checks.dispatches(config, begun)
    taught_by = None if begun else distill.teacher_of(parts)
    evaluated = watch(parts, workdir)
    step_fn = make_train_step(parts) if program is None else program_lib.load(files.place(program), parts)
    _claim(config, workdir)
    run = config.run
    with (
        processes.stop_requests() as stop,  # to the very end: asked twice, a run still waits for its last save
        run_report.open_page(workdir, config) as tell,
        checkpoint.open_folder(
            workdir / "checkpoints", keep_last=run.keep_last, keep_every=run.keep_every, keep_best=run.keep_best
        ) as manager,
    ):
        if manager.latest_step() is not None:
            state = checkpoint.restore(manager, parts.abstract())
        else:
            state = parts.init() if taught_by is None else parts.start_from(taught_by)
        tell(state)
        return _steps(parts, source, workdir, manager, state, step_fn, stop, tell, evaluated)


def _steps(
    parts: Parts,
    source: Source,
    workdir: files.Place,
    manager: checkpoint.Manager,
    state: State,
    step_fn: TrainStep,
    asked_to_stop: Callable[[int], bool],
    tell: run_report.Tell,
    evaluated: Watch | None,
) -> State:
    config, run = parts.config, parts.config.run
    start = int(state.step)
    key = training_key(config)
    rate = learning_rate(config.optimizer, config.steps)
    edges = np.asarray(bins.edges(parts.schedule, run.bins)) if run.bins else None
    taken = gradients.statistics(parts, source, _compile_together) if run.gradients_every else None
    pauses = (*checks.intervals(config).values(), *snapshots.interval(config))
    recent, metrics, since = [], None, time.perf_counter()
    quiet = not processes.writes()
    bar = tqdm(total=config.steps, initial=min(start, config.steps), unit="step", smoothing=0.05, disable=quiet)
    with (
        report.open_log(workdir, start) as (write, push_log),
        snapshots.open_folder(workdir, config, start) as (take_average, finish_averages),
        feed.open_feed(parts, source, start) as batches,
        bar,
    ):
        for step in range(start, config.steps, run.steps_per_dispatch):
            batch = batches.take(metrics)
            if metrics is None:
                _compile_together(step_fn, state, batch, key)
            state, metrics = step_fn(state, batch, key)
            recent.append(metrics)
            done = step + run.steps_per_dispatch
            bar.update(run.steps_per_dispatch)
            ends = done == config.steps
            stops = asked_to_stop(done // run.steps_per_dispatch)
            if not (ends or stops or any(done % every == 0 for every in pauses)):
                continue
            # The host waits for the devices to have no step left here and nowhere else.
            _stop_if_nonfinite(config, recent, done, manager)
            values: report.Values = {}
            if ends or done % run.log_every == 0:
                values = report.summary(recent, edges)
                now = time.perf_counter()
                values["images_per_second"] = len(recent) * run.steps_per_dispatch * config.batch_size / (now - since)
                values["input_bound"] = min(1.0, batches.idle() / (now - since))
                values["learning_rate"] = float(np.asarray(rate(done - 1)))
                if config.diffusion.learn_schedule:
                    learned = curve(parts, state.noise).log_snr
                    values |= {"log_snr_first": float(learned[0]), "log_snr_last": float(learned[-1])}
                bar.set_postfix_str(report.postfix(values))
                recent, since = [], now
            pause = time.perf_counter()
            if taken is not None and edges is not None and done % run.gradients_every == 0:
                values |= report.of_gradients(jax.device_get(taken(state)), edges)
            if values:
                write(done, values)
            score = None
            if evaluated is not None and not stops and done % run.evaluate_every == 0:
                found, score = evaluated(state)
                if found:
                    write(done, found)
            # The picture first: a run killed in between takes these steps again, and draws it again.
            if ends or done % run.sample_every == 0:
                preview(as_learned(parts, state), state.ema, done, workdir)
            take_average(state)
            if ends or stops or done % run.checkpoint_every == 0:
                push_log()  # what a resume keeps of the log has no gap
                finish_averages()  # nor has what it keeps of the averages
                checkpoint.save(manager, state, score)
            if ends or stops or done % run.sample_every == 0 or done % run.checkpoint_every == 0:
                tell(state)
            if stops:
                return state  # the manager waits for its save on the way out
            since += time.perf_counter() - pause  # pictures don't count against images/s
    if processes.writes():
        progress(workdir)
        if lines := report.read(workdir):
            plots.save(plots.curves(lines), workdir / "samples" / "curves.png")
            if any(bins.keys("eps_error", line) for line in lines):
                plots.save(plots.by_bin(lines), workdir / "samples" / "bins.png")
    return state


def _compile_together(step_fn: Any, *arguments: Any) -> None:
    """On CPUs a process waits 30 s at most for the others' first collective: to compile may take longer."""
    if jax.process_count() == 1:
        return
    if hasattr(step_fn, "lower"):  # one loaded from a file is compiled
        step_fn.lower(*arguments).compile()
    processes.meet("every process has compiled the step")


def _stop_if_nonfinite(config: Config, recent: list, done: int, manager: checkpoint.Manager) -> None:
    found = report.first_nonfinite(recent)
    if found is None or not ON_NONFINITE[config.run.on_nonfinite]:
        return
    bad = done - len(recent) * config.run.steps_per_dispatch + found + 1
    manager.wait_until_finished()
    kept = manager.latest_step()
    raise NonFiniteLossError(
        f"the loss or its gradient was not finite at step {bad}; the newest checkpoint is "
        f"{'none' if kept is None else f'step {kept}'}. Lower --optimizer.learning-rate, or go on without such steps "
        "with --run.on-nonfinite skip"
    )


def _claim(config: Config, workdir: files.Place) -> None:
    """Make the run's folder, or see that the one that is there is this run's; then write config.json."""
    changed = checks.folder(config, workdir)
    if changed and processes.writes():
        tqdm.write(f"{workdir} goes on with " + "; ".join(changed))
    processes.meet("every process has seen the folder as it was")
    if processes.writes():
        config_lib.write(config, workdir / "config.json")
