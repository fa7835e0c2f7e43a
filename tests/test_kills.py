"""Runs that are killed, or told to end, over and over: the same command goes on, and nothing is lost.

With DDPM_JAX_KILLS=20 in the environment each signal is sent twenty times, to one process and to two, which takes an
hour; else one process is killed once.
"""

import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
from conftest import ROOT, TINY
from together import free_port

from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Run
from ddpm_jax.training import checkpoint, loop, processes, run

KILLS = int(os.environ.get("DDPM_JAX_KILLS", "1"))
SIGNALS = [signal.SIGKILL, signal.SIGTERM] * KILLS if KILLS > 1 else [signal.SIGKILL]
SEED = int(os.environ.get("DDPM_JAX_KILLS_SEED", "10"))  # of which the first moment is during a save
STEPS = 10 * KILLS + 6  # more than are taken between the signals
PATIENCE = 600  # seconds for anything at all to happen

PRESET = """
from ddpm_jax.config import Config, Data, Devices, Diffusion, Optimizer, Run, Sampling, UNet

config = Config(
    steps={steps},
    batch_size=8,
    data=Data(source="digits", shape=(8, 8, 1)),
    diffusion=Diffusion(num_steps=4),
    net=UNet(features=8, multipliers=(1,), num_res_blocks=1, attention_levels=(), dropout=0.1),
    optimizer=Optimizer(ema_decay=0.9),
    sampling=Sampling(steps=(2,)),
    run=Run(log_every=1, sample_every=1000, num_samples=1, preview_steps=1, checkpoint_every=3, keep_last=2),
    devices=Devices(fsdp={fsdp}),
)
"""


def start(preset, workdir, count, log):
    """The processes of a run: one of one device, or two of two."""
    env = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(count),
        "JAX_PLATFORMS": "cpu",
        # So that a program that has been killed twenty times isn't compiled twenty times.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    where = ["--launch.coordinator", f"localhost:{free_port()}", "--launch.num-processes", str(count)]
    command = [sys.executable, "train.py", str(preset), "--workdir", str(workdir)]
    started = []
    for i in range(count):
        launch = [*where, "--launch.process-id", str(i), "--launch.timeout", "30"] if count > 1 else []
        with (log / f"{i}.txt").open("w") as said:
            started.append(subprocess.Popen([*command, *launch], cwd=ROOT, env=env, stdout=said, stderr=said))
    return started


def logged(workdir):
    """The steps in metrics.jsonl, of which a kill may have cut the last line short."""
    with contextlib.suppress(FileNotFoundError):
        lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line)["step"] for line in lines if line.endswith("\n")]
    return []


def being_saved(workdir):
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def reach(moment, running, workdir, rng):
    """Wait for a moment of a run that was just started, or its end."""
    before, begun = logged(workdir), time.monotonic()
    saves = set(being_saved(workdir))
    ahead, late = rng.randint(1, 4), rng.uniform(0, 0.1)
    reached = {
        "start": lambda: time.monotonic() > begun + 60 * late,
        "step": lambda: logged(workdir) != before and len(logged(workdir)) >= ahead + len(before) // 3 * 3,
        "save": lambda: set(being_saved(workdir)) - saves,
    }[moment]
    while not reached() and all(process.poll() is None for process in running):
        assert time.monotonic() < begun + PATIENCE, (moment, workdir)
        time.sleep(0.002)
    time.sleep(late / (5 if moment == "save" else 1))


def disturb(signals, preset, workdir, count, log, rng):
    """Start a run, send it a signal, and again for every signal; then let it end. What was hit is for counting."""
    hits = []
    for number in signals:
        running = start(preset, workdir, count, log)
        moment = rng.choice(["start", "step", "save", "save"])
        reach(moment, running, workdir, rng)
        # The platform's notice comes to all; a death is one process's own.
        for process in [rng.choice(running)] if number == signal.SIGKILL else running:
            process.send_signal(number)
        statuses = [process.wait(PATIENCE) for process in running]
        said = [(log / f"{i}.txt").read_text() for i in range(count)]
        hits.append((number.name, moment, bool(being_saved(workdir)), statuses, len(logged(workdir))))
        print(hits[-1], flush=True)
        assert "Traceback" not in "".join(said), said
        if number == signal.SIGKILL:
            assert -signal.SIGKILL in statuses, said
            for status, words in zip(statuses, said, strict=True):
                assert status == -signal.SIGKILL or is_told_of_a_death(words), (hits[-1], words)
                assert status != 0
        else:
            # One that wasn't yet listening ends by the signal, with nothing to lose.
            assert set(statuses) in ({0}, {-signal.SIGTERM}) or moment == "start", said
        assert_whole(workdir)
    running = start(preset, workdir, count, log)
    statuses = [process.wait(PATIENCE) for process in running]
    assert set(statuses) == {0}, [(log / f"{i}.txt").read_text() for i in range(count)]
    return hits


def is_told_of_a_death(words):
    told = re.findall(r"^train\.py: .* start all processes again with the same command to go on$", words, re.MULTILINE)
    return len(told) == 1 and "*** Check failure" not in words


def assert_whole(workdir):
    """Every checkpoint that looks whole can be read."""
    with contextlib.suppress(FileNotFoundError):
        steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
        for step in steps:
            state = run.load(workdir, step=step)[1]
            assert int(state.step) == step
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
@pytest.mark.parametrize(
    "count",
    [1, pytest.param(2, marks=pytest.mark.skipif("DDPM_JAX_KILLS" not in os.environ, reason="DDPM_JAX_KILLS not set"))],
)
def test_nothing_is_lost_by_a_signal_at_any_moment(count, tmp_path):
    """Each step is logged once, and the state at the end is the undisturbed run's, bit for bit."""
    rng = random.Random(SEED + count)
    preset, log = tmp_path / "preset.py", tmp_path / "log"
    log.mkdir()
    preset.write_text(PRESET.format(steps=STEPS, fsdp=count))
    hits = disturb(SIGNALS, preset, tmp_path / "disturbed", count, log, rng)
    assert logged(tmp_path / "disturbed") == list(range(1, STEPS + 1))
    assert len(list((tmp_path / "disturbed" / "checkpoints").iterdir())) == 2
    disturb([], preset, tmp_path / "whole", count, log, rng)
    disturbed, whole = (run.load(tmp_path / name)[1] for name in ("disturbed", "whole"))
    chex.assert_trees_all_equal(*jax.device_get((disturbed, whole)))
    during = sum(saving for name, _, saving, _, _ in hits if name == "SIGKILL")
    print(f"{count} process(es): {len(hits)} signals, {during} of the kills during a save")


def test_an_old_checkpoint_is_moved_away_whole_before_it_is_deleted(tiny_run, tmp_path, monkeypatch):
    """A kill in the middle of its deletion leaves nothing that looks like a checkpoint and is none."""

    def content(folder):
        return {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*")}

    state = tiny_run[1]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_empty_trash", lambda manager: None)
        with checkpoint.open_folder(tmp_path, keep_last=1) as manager:
            checkpoint.save(manager, state)
            manager.wait_until_finished()
            before = content(tmp_path / "8")
            checkpoint.save(manager, dataclasses.replace(state, step=state.step + 1))
    assert {path.name for path in tmp_path.iterdir()} == {"9", checkpoint.TRASH}
    assert content(tmp_path / checkpoint.TRASH / "8") == before
    with checkpoint.open_folder(tmp_path) as manager:
        assert manager.all_steps() == [9]
        assert [path.name for path in tmp_path.iterdir()] == ["9"]


def test_processes_are_asked_to_stop_at_every_number_in_turn(tmp_path, monkeypatch):
    """With two steps to a dispatch too: they agree on the next number, and would wait for ever for one passed over."""
    asked = []

    @contextlib.contextmanager
    def stop_requests():
        yield lambda n: asked.append(n) or n == 3

    def step(state, batch, key):
        metrics = dict.fromkeys(("loss", "grad_norm", "nonfinite"), np.zeros(2))
        metrics |= dict.fromkeys(("quarter_sum", "quarter_count"), np.ones((2, 4)))
        return dataclasses.replace(state, step=state.step + 2), metrics

    monkeypatch.setattr(processes, "stop_requests", stop_requests)
    monkeypatch.setattr(loop, "make_train_step", lambda parts: step)
    config = load_preset(str(TINY))
    config = dataclasses.replace(config, run=Run(steps_per_dispatch=2, sample_every=1000, num_samples=1))
    assert int(loop.train(config, tmp_path).step) == 6
    assert asked == [1, 2, 3]


def test_an_interrupt_that_python_lost_is_raised_by_the_next_question():
    """As one is that comes while a callback of the garbage collector runs: that is printed and dropped."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with processes.stop_requests() as asked:
            assert not asked(1)
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                asked(2)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
        with processes.stop_requests() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked(1)
    finally:
        signal.signal(signal.SIGINT, before)
