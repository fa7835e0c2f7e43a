"""Which steps a short sampler visits, against the sets of the published code."""

import itertools

import pytest

from ddpm_jax.diffusion import processes, schedules
from ddpm_jax.diffusion.spacings import SPACINGS, sectioned

OF = {T: processes.of_schedule(schedules.linear(T)) for T in (1, 2, 3, 7, 10, 20, 33, 50, 1000, 4000)}


def indices(name, num_steps, counts):
    """The steps that a spacing visits, rising, without the image."""
    places = SPACINGS[name](OF[num_steps], counts)
    assert places[-1] == -1
    return tuple(places[-2::-1].astype(int))


def even(num_steps, counts):
    return indices("even", num_steps, counts)


def ddim(num_steps, counts):
    return indices("ddim", num_steps, counts)


def trailing(num_steps, counts):
    return indices("trailing", num_steps, counts)


@pytest.mark.parametrize(
    ("steps", "length", "first", "last"),
    [
        (even(4000, (250,)), 250, (0, 16, 32, 48), (3967, 3983, 3999)),
        (ddim(1000, (50,)), 50, (0, 20, 40, 60), (940, 960, 980)),
        (even(4000, (50,)), 50, (0, 82, 163, 245), (3836, 3917, 3999)),
        (sectioned(300, (10, 15, 20)), 45, (0, 11, 22, 33), (289, 294, 299)),
        (even(1000, (100,)), 100, (0, 10, 20, 30), (979, 989, 999)),
        (trailing(1000, (10,)), 10, (99, 199, 299, 399), (799, 899, 999)),
        (trailing(1000, (1,)), 1, (999,), (999,)),
        (even(1000, (1,)), 1, (999,), (999,)),
        (ddim(10, (4,)), 4, (0, 3, 6, 9), (3, 6, 9)),
    ],
)
def test_steps_are_the_published_ones(steps, length, first, last):
    assert len(steps) == length
    assert steps[: len(first)] == first
    assert steps[-len(last) :] == last


@pytest.mark.parametrize("name", ["even", "trailing"])
def test_any_count_up_to_all_steps_gives_rising_indices(name):
    for num_steps in (1, 2, 3, 7, 20, 33, 50):
        for count in range(1, num_steps + 1):
            steps = indices(name, num_steps, (count,))
            assert len(steps) == len(set(steps)) == count
            assert list(steps) == sorted(steps)
            assert min(steps) >= 0
            assert max(steps) <= num_steps - 1
            if name == "trailing":
                assert steps[-1] == num_steps - 1
            elif count > 1:
                assert (steps[0], steps[-1]) == (0, num_steps - 1)
        assert indices(name, num_steps, (num_steps,)) == tuple(range(num_steps))


def test_ddim_strides_evenly_from_zero_or_refuses():
    for num_steps in (7, 20, 33):
        for count in range(1, num_steps + 1):
            try:
                steps = ddim(num_steps, (count,))
            except ValueError:
                assert all(len(range(0, num_steps, k)) != count for k in range(1, num_steps + 1))
                continue
            assert len(steps) == count
            assert len({b - a for a, b in itertools.pairwise(steps)}) <= 1
            assert steps[0] == 0


@pytest.mark.parametrize(
    ("spacing", "counts", "message"),
    [
        ("even", (1001,), "can't take 1001 steps out of 1000: section 0 of 1000 steps"),
        ("even", (10, 501), "can't take 501 steps out of 500: section 1"),
        ("even", (0,), r"at least 1, got \(0,\)"),
        ("even", (), r"at least 1, got \(\)"),
        ("ddim", (600,), "no whole stride through 1000 steps gives 600 of them; use even"),
        ("ddim", (10, 10), r"ddim takes one count between 1 and 1000, got \(10, 10\)"),
        ("trailing", (1001,), r"trailing takes one count between 1 and 1000, got \(1001,\)"),
        ("trailing", (0,), "trailing takes one count between 1 and 1000"),
    ],
)
def test_impossible_counts_are_refused(spacing, counts, message):
    with pytest.raises(ValueError, match=message):
        SPACINGS[spacing](OF[1000], counts)
