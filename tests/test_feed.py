"""Batches on their way to the devices: the same however they are read, no later than can be helped, and timed."""

import dataclasses
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, TINY

from ddpm_jax import data
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Data
from ddpm_jax.data import resident
from ddpm_jax.training import feed, mesh, report, run

WHICH = {"seed": 3, "batch_size": 6, "flip": True}
SHAPE = (4, 3, 2)


@pytest.fixture
def source(tmp_path):
    """Thirteen images of noise in a mapped file, each with a label of its own."""
    np.save(tmp_path / "set.npy", np.random.default_rng(0).integers(0, 256, (13, *SHAPE), np.uint8))
    images = np.load(tmp_path / "set.npy", mmap_mode="r")
    return data.Source(images=images, labels=np.arange(13, dtype=np.int32), num_classes=13)


def in_memory(source):
    return dataclasses.replace(source, images=np.array(source.images))


def first_batches(source, count, *, start=0, several=1, **settings):
    """The batches themselves, as NumPy arrays."""
    ways = Data(shape=SHAPE, flip=True, **settings)
    options = {"mesh": mesh.make_mesh(), "batch_size": 6, "seed": 3, "start": start, "several": several}
    with feed.open_stream(source, ways, **options) as stream:
        return [jax.device_get(stream.finish(next(stream.sent))) for _ in range(count)]


def assert_equal(ours, theirs):
    assert ours.images.dtype == np.float32
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.labels, theirs.labels)


@pytest.mark.parametrize(
    "settings",
    [{}, {"threads": 5}, {"ahead": 4}, {"workers": 2, "threads": 1}, {"on_device": True}],
    ids=["default", "threads", "ahead", "workers", "on_device"],
)
def test_batches_are_the_same_to_the_bit_however_they_are_read(source, settings):
    """From step 5 on, over three epochs' ends; and three steps' batches at once are those of the steps."""
    wanted = [data.batch_at(source, step=step, **WHICH) for step in range(5, 14)]
    if not settings.get("workers"):
        for ours, theirs in zip(first_batches(source, 9, start=5, **settings), wanted, strict=True):
            assert_equal(ours, theirs)
    for i, ours in enumerate(first_batches(source, 3, start=5, several=3, **settings)):
        assert_equal(ours, jax.tree.map(lambda *rows: np.stack(rows), *wanted[3 * i : 3 * i + 3]))
    assert multiprocessing.active_children() == []  # workers end with their stream


FOUR = """
import dataclasses, jax, numpy as np
from ddpm_jax import data
from ddpm_jax.config import Data
from ddpm_jax.data import resident
from ddpm_jax.training import feed, mesh as m

images = np.random.default_rng(0).integers(0, 256, (13, 4, 3, 2), np.uint8)
source = data.Source(images=images, labels=np.arange(13, dtype=np.int32), num_classes=13)
mesh = m.make_mesh(2)
for on_device in (False, True):
    settings = Data(shape=(4, 3, 2), flip=True, on_device=on_device)
    for several in (1, 2):
        with feed.open_stream(source, settings, mesh=mesh, batch_size=8, several=several) as stream:
            for step in range(0, 6, several):
                batch = stream.finish(next(stream.sent))
                wanted = m.split(mesh, axis=several - 1)
                assert batch.images.sharding.is_equivalent_to(wanted, batch.images.ndim)
                assert batch.labels.sharding.is_equivalent_to(wanted, batch.labels.ndim)
                theirs = [data.batch_at(source, seed=0, step=step + i, batch_size=8, flip=True) for i in range(several)]
                assert np.array_equal(batch.images.reshape(-1, 4, 3, 2), np.concatenate([b.images for b in theirs]))
held = m.place(resident.table(source), m.replicated(mesh))
picks = m.place(resident.picks_at(13, 0, seed=0, batch_size=8, flip=True), m.split(mesh))
text = jax.jit(resident.batch_of, static_argnums=2, out_shardings=m.split(mesh)).lower(
    held, picks, (4, 3, 2)).compile().as_text()
assert "f32[2,4,3,2]" in text  # each device makes its two pictures
assert not any(kind in text for kind in ("all-", "collective", "reduce-scatter")), text
"""


def test_four_devices_get_their_parts_and_ask_each_other_for_nothing():
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FOUR], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


# Keeping up


class Step:
    """What a step gives back: ready when `ended` is set, or after some seconds."""

    def __init__(self, seconds=None):
        self.ended, self.seconds, self.begin = threading.Event(), seconds, time.perf_counter()

    def block_until_ready(self):
        self.ended.wait(None if self.seconds is None else max(0, self.begin + self.seconds - time.perf_counter()))
        return self


class Slow:
    """A column that takes its time, and counts how often it is asked."""

    def __init__(self, column, seconds=0.0):
        self.column, self.seconds, self.shape, self.reads = column, seconds, column.shape, 0

    def __len__(self):
        return len(self.column)

    def __getitem__(self, indices):
        self.reads += 1
        time.sleep(self.seconds)
        return self.column[indices]


@pytest.fixture(scope="module")
def tiny():
    return run.build(load_preset(str(TINY)))


def digits(seconds):
    source = data.load(Data())
    return dataclasses.replace(source, images=Slow(source.images, seconds))


def opened(parts, source, **settings):
    config = parts.config
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **settings))
    return feed.open_feed(dataclasses.replace(parts, config=config), source, 0)


def test_devices_that_wait_for_a_slow_source_are_seen(tiny):
    """0.2 s a batch on one thread against steps of no time: a second of waiting, and hardly anything else."""
    with opened(tiny, digits(0.2), threads=1) as batches:
        batches.take(None)
        batches.idle()
        begin = time.perf_counter()
        for _ in range(5):
            batches.take(Step(0))
        waited, whole = batches.idle(), time.perf_counter() - begin
        assert 0.5 * whole < waited <= whole
        assert batches.idle() == 0


def test_waiting_counts_only_once_the_step_before_has_ended(tiny):
    """A step of 0.5 s, a batch of 0.1 s or more if the machine is busy: no wait begins before the step's end."""
    with opened(tiny, digits(0.1), threads=1) as batches:
        batches.take(None)
        assert batches.idle() > 0.05
        step = Step(0.5)
        batches.take(step)
        assert batches.idle() < time.perf_counter() - step.begin - 0.5 + 1e-3


def test_a_pause_between_steps_is_not_waiting(tiny):
    """A preview of 0.5 s, in which no batch is asked for, though none is there."""
    with opened(tiny, digits(0.1), threads=1) as batches:
        batches.take(None)
        batches.idle()
        begin = time.perf_counter()
        time.sleep(0.5)
        batches.take(Step(0))
        assert batches.idle() < time.perf_counter() - begin - 0.5 + 1e-3


def test_no_more_batches_than_asked_for_wait_for_a_device(tiny):
    """Of steps that never end two may wait; the third batch is held back until the first ends."""
    steps = [Step() for _ in range(3)]
    with opened(tiny, digits(0), ahead=2) as batches:
        for before in (None, *steps[:2]):
            batches.take(before)
        third = threading.Thread(target=batches.take, args=(steps[2],))
        third.start()
        third.join(timeout=0.3)
        assert third.is_alive()
        steps[0].ended.set()
        third.join(timeout=60)
        assert not third.is_alive()
        for step in steps:
            step.ended.set()


def test_batches_are_read_ahead_no_further_than_asked(tiny):
    """Two threads hold four batches, two wait on the devices, and one is on its way there."""
    source = digits(0)
    with opened(tiny, source, threads=2, ahead=2) as batches:
        batches.take(None)
        deadline = time.monotonic() + 60
        while source.images.reads < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert source.images.reads == 8


def test_the_bar_says_when_input_is_late():
    assert report.postfix({"loss": 0.5, "images_per_second": 10.0, "input_bound": 0.02}) == "loss 0.5000, 10 images/s"
    said = report.postfix({"loss": 0.5, "images_per_second": 10.0, "input_bound": 0.314})
    assert said == "loss 0.5000, 10 images/s, input-bound 31%"


def test_every_log_line_says_how_long_the_devices_waited(tiny_run):
    shares = [line["input_bound"] for line in report.read(tiny_run[0])]
    assert len(shares) == 4
    assert all(0 <= share <= 1 for share in shares)


def test_a_source_is_measured_alone():
    """At 10 ms a batch of eight on one thread, 800 images a second at most, and what was ready at the start."""
    settings = Data(threads=1, ahead=1)
    rate = feed.images_per_second(digits(0.01), settings, batch_size=8, mesh=mesh.make_mesh(), seconds=0.2)
    assert 0 < rate < 1200


# Beginning and end


def test_an_error_while_reading_reaches_the_run_and_leaves_no_thread(tiny):
    class Broken(Slow):
        def __getitem__(self, indices):
            raise OSError("the disk is gone")

    before = set(threading.enumerate())
    source = data.load(Data())
    broken = dataclasses.replace(source, images=Broken(source.images))
    with pytest.raises(OSError, match="the disk is gone"), opened(tiny, broken) as batches:
        batches.take(None)
    gc.collect()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in left)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threads": 0}, "--data.threads must be at least 1, got 0"),
        ({"ahead": 0}, "--data.ahead must be at least 1, got 0"),
        ({"workers": -1}, "--data.workers must be at least 0, got -1"),
        ({"workers": 1}, "--data.workers 0 is for images in memory"),
        ({"workers": 2, "on_device": True}, "--data.on-device leaves nothing for --data.workers to read, got 2"),
    ],
)
def test_what_cannot_be_is_refused(source, settings, message):
    with pytest.raises(ValueError, match=message):
        feed.check_source(Data(**settings), in_memory(source))


def test_a_set_that_is_read_on_demand_or_too_large_stays_off_the_devices(source):
    with pytest.raises(ValueError, match=r"--data.on-device needs a set in memory, whose images aren't: .*stream"):
        resident.check(dataclasses.replace(source, images=Slow(source.images)))
    large = np.broadcast_to(np.zeros((), np.uint8), (200_000, 64, 64, 3))
    with pytest.raises(ValueError, match=r"at most 2 GiB of images on a device, got 200,000 of 64x64x3, 2.29 GiB"):
        resident.check(data.Source(images=large))


def test_a_batch_that_does_not_divide_is_refused(source):
    with pytest.raises(ValueError, match="must be divisible by the 1 devices, got 0"):
        feed.images_per_second(source, Data(), batch_size=0, mesh=mesh.make_mesh())
