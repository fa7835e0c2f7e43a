"""Order, shares and values of batches, against what the contract says in closed form."""

import contextlib
import gc
import threading

import jax
import numpy as np
import pytest

from ddpm_jax.data import resident
from ddpm_jax.data.pipeline import batch_at, batches, read_at, to_float
from ddpm_jax.data.record import Source


def numbered(count: int) -> Source:
    """Image i is 2x2, its label i; its left column holds i and its right column i + 1, so that a flip shows."""
    left = np.arange(count, dtype=np.uint8)
    images = np.stack([left, left + 1], axis=-1)[:, None, :, None].repeat(2, axis=1)
    return Source(images=images, labels=np.arange(count, dtype=np.int32), num_classes=count)


def labels(source: Source, steps: range, **settings) -> np.ndarray:
    return np.concatenate([batch_at(source, step=step, **settings).labels for step in steps])


def test_every_epoch_is_a_permutation_and_no_two_are_equal():
    """12 images in batches of 5: five epochs are exactly twelve batches, and four batches cross an epoch's end."""
    epochs = labels(numbered(12), range(12), seed=3, batch_size=5).reshape(5, 12)
    assert np.array_equal(np.sort(epochs), np.tile(np.arange(12), (5, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_the_order_does_not_depend_on_the_batch_size():
    straight = labels(numbered(7), range(12), seed=0, batch_size=2)
    assert np.array_equal(labels(numbered(7), range(2), seed=0, batch_size=12), straight)


def test_seeds_give_different_orders():
    orders = [tuple(labels(numbered(50), range(1), seed=seed, batch_size=50)) for seed in range(4)]
    assert len(set(orders)) == 4


def test_first_place_is_fair():
    """Over 3,000 epochs of 6 images each stands first 500 times; 5 standard deviations of a binomial are 102."""
    epochs = labels(numbered(6), range(3000), seed=1, batch_size=6).reshape(-1, 6)
    assert np.abs(np.bincount(epochs[:, 0], minlength=6) - 500).max() < 102


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_may_hold_more_images_than_the_set(count):
    batch = batch_at(numbered(count), seed=0, step=5, batch_size=6)
    assert np.array_equal(np.bincount(batch.labels), np.full(count, 6 // count))


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_shares_laid_end_to_end_are_the_global_batch(processes):
    settings = {"seed": 5, "batch_size": 6, "flip": True}
    for step in (0, 1, 17):
        whole = batch_at(numbered(10), step=step, **settings)
        parts = [batch_at(numbered(10), step=step, shard=(i, processes), **settings) for i in range(processes)]
        assert np.array_equal(np.concatenate([part.images for part in parts]), whole.images)
        assert np.array_equal(np.concatenate([part.labels for part in parts]), whole.labels)


def test_values_are_k_over_127_5_minus_1_correctly_rounded():
    every = np.arange(256, dtype=np.uint8)
    assert to_float(every).dtype == np.float32
    assert np.array_equal(to_float(every), (np.arange(256) / 127.5 - 1).astype(np.float32))
    assert to_float(every)[[0, 255]].tolist() == [-1.0, 1.0]


def test_floats_made_on_a_device_are_those_of_the_host():
    """To the bit: a product with 1 / 255 in float32, which XLA makes of a division, would miss half of them."""
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(jax.jit(resident.to_float)(every), to_float(every))


@pytest.mark.parametrize("flip", [False, True])
def test_rows_of_a_batch_are_those_of_the_whole(flip):
    """On a torus of chips, a process's rows needn't be side by side."""
    rows, settings = np.array([1, 2, 6, 11]), {"seed": 5, "batch_size": 12, "flip": flip}
    part, whole = (read_at(numbered(10), 4, **settings, **more) for more in ({"rows": rows}, {}))
    assert np.array_equal(part.images, whole.images[rows])
    assert np.array_equal(part.labels, whole.labels[rows])


def test_images_keep_their_labels_under_flips():
    """Image i holds i and i + 1, so that the lesser of its columns is its label whether or not it's mirrored."""
    batch = batch_at(numbered(40), seed=2, step=3, batch_size=32, flip=True)
    columns = np.rint((batch.images[:, 0, :, 0] + 1) * 127.5).astype(int)
    assert np.array_equal(columns.min(axis=1), batch.labels)
    assert np.array_equal(np.abs(np.diff(columns, axis=1))[:, 0], np.ones(32))
    assert 0 < (np.diff(columns, axis=1) < 0).sum() < 32


def test_half_of_the_images_are_mirrored_and_flips_change_from_epoch_to_epoch():
    """4,000 fair coins: 5 standard deviations are 158. Two epochs' coins for one image agree half of the time."""
    mirrored = np.zeros((2, 200), bool)
    total = 0
    for step in range(20):
        batch = batch_at(numbered(200), seed=0, step=step, batch_size=200, flip=True)
        flipped = batch.images[:, 0, 0, 0] > batch.images[:, 0, 1, 0]
        total += flipped.sum()
        if step < 2:
            mirrored[step, batch.labels] = flipped
    assert abs(total - 2000) < 158
    assert 60 < (mirrored[0] == mirrored[1]).sum() < 140


def test_flips_do_not_depend_on_the_batch_size():
    small = [batch_at(numbered(9), seed=4, step=s, batch_size=3, flip=True).images for s in range(4)]
    assert np.array_equal(batch_at(numbered(9), seed=4, step=0, batch_size=12, flip=True).images, np.concatenate(small))


def test_a_batch_leaves_the_source_as_it_was():
    source = numbered(8)
    before = source.images.copy()
    batch_at(source, seed=0, step=0, batch_size=8, flip=True).images[:] = 0
    assert np.array_equal(source.images, before)


def test_a_source_without_labels_gives_none():
    source = Source(images=numbered(4).images)
    assert batch_at(source, seed=0, step=0, batch_size=2).labels is None
    with contextlib.closing(batches(source, seed=0, batch_size=2)) as stream:
        assert next(stream).labels is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 7, "shard": (0, 2)}, "multiple of the 2 processes, got 7"),
        ({"batch_size": 0}, "got 0"),
        ({"shard": (2, 2)}, r"0 <= i < n, got \(2, 2\)"),
        ({"seed": -1}, "seed must lie in .*, got -1"),
        ({"seed": 2**32}, "seed must lie in .*, got 4294967296"),
        ({"step": -3}, "step must be 0 or more, got -3"),
    ],
)
def test_bad_arguments_are_refused_with_the_value_got(change, message):
    with pytest.raises(ValueError, match=message):
        batch_at(numbered(4), **{"seed": 0, "step": 0, "batch_size": 4} | change)


def test_an_empty_source_is_refused_before_a_thread_starts():
    with pytest.raises(ValueError, match="at least one image"):
        batches(numbered(0), seed=0, batch_size=1)


def test_resuming_at_a_step_equals_a_straight_run():
    settings = {"seed": 9, "batch_size": 4, "flip": True}
    with contextlib.closing(batches(numbered(10), **settings)) as stream:
        straight = [next(stream) for _ in range(12)]
    with contextlib.closing(batches(numbered(10), start=7, **settings)) as stream:
        resumed = [next(stream) for _ in range(5)]
    for ours, theirs in zip(resumed, straight[7:], strict=True):
        assert np.array_equal(ours.images, theirs.images)
        assert np.array_equal(ours.labels, theirs.labels)


def test_an_error_in_a_background_thread_reaches_the_caller():
    class Broken:
        shape = (4, 2, 2, 1)

        def __len__(self):
            return 4

        def __getitem__(self, indices):
            raise OSError("the disk is gone")

    with (
        contextlib.closing(batches(Source(images=Broken()), seed=0, batch_size=2)) as stream,
        pytest.raises(OSError, match="gone"),
    ):
        next(stream)


@pytest.mark.parametrize("let_go", ["close", "forget"])
def test_a_stream_that_is_let_go_leaves_no_thread(let_go):
    before = set(threading.enumerate())
    stream = batches(numbered(10), seed=0, batch_size=4)
    next(stream)
    started = set(threading.enumerate()) - before
    assert started
    if let_go == "close":
        stream.close()
    del stream
    gc.collect()
    for thread in started:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in started)
