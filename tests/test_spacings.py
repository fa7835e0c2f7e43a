"""Which steps a short sampler visits, against the sets of the published code."""

import itertools

import numpy as np
import pytest

from ddpm_jax.diffusion import processes, schedules, spacings
from ddpm_jax.diffusion.spacings import SPACINGS, sectioned

OF = {T: processes.of_schedule(schedules.linear(T)) for T in (1, 2, 3, 7, 10, 20, 33, 50, 100, 1000, 4000)}


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


@pytest.mark.parametrize("num_steps", [50, 100, 1000])
def test_every_count_gives_that_many_places_from_the_noisiest_level_down_to_the_image(num_steps):
    """Where others went wrong: n + 1 places that end in the table's index -1, the noisiest; the same index twice;
    all zeros; a start in the middle; a previous step that is none of the list's."""
    for name in ("even", "linspace", "trailing", "quadratic", "leading"):
        for count in range(1, num_steps + 1):
            steps = indices(name, num_steps, (count,))
            assert len(steps) == count, (name, count)
            assert steps[0] >= 0
            assert all(b > a for a, b in itertools.pairwise(steps)), (name, count)
            assert steps[-1] == (num_steps - 1 if name != "leading" else round((count - 1) * num_steps / count))


@pytest.mark.parametrize(
    ("name", "num_steps", "count", "places"),
    [
        ("even", 1000, 10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0, -1]),
        ("even", 100, 5, [99, 74, 50, 25, 0, -1]),
        ("trailing", 1000, 13, [999, 922, 845, 768, 691, 614, 537, 461, 384, 307, 230, 153, 76, -1]),
        ("trailing", 1000, 5, [999, 799, 599, 399, 199, -1]),
        ("leading", 1000, 5, [800, 600, 400, 200, 0, -1]),
    ],
)
def test_short_ways_that_others_got_wrong(name, num_steps, count, places):
    """huggingface/diffusers' threads 5921, 9261, 11347, 12633 have what came out there."""
    np.testing.assert_array_equal(SPACINGS[name](OF[num_steps], (count,)), places)


def test_leading_begins_near_the_noise_for_any_count():
    """By whole strides 501 steps of 1000 would begin at 500."""
    assert indices("leading", 1000, (501,))[-1] == 998


def test_edm_has_the_papers_eighteen_levels():
    """Karras et al. 2022, Table 1, on its own process and on any that reaches as far."""
    sigmas = [80.0, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.40094, 5.31519, 3.25682, 1.92334, 1.08817, 0.585348]
    sigmas += [0.296442, 0.139516, 0.0599473, 0.0229345, 0.00752802, 0.002, 0.0]
    np.testing.assert_allclose(SPACINGS["edm"](processes.edm(), (18,)), sigmas, rtol=5e-6)
    np.testing.assert_allclose(SPACINGS["karras"](processes.edm(), (18,)), sigmas, rtol=5e-6)
    wide = processes.ve(0.001, 100.0, end=1e-9)
    np.testing.assert_allclose(np.exp(wide.log_sigma(np, SPACINGS["edm"](wide, (18,))[:-1])), sigmas[:-1], rtol=5e-6)


def test_spacings_by_noise_are_even_in_what_they_are_named_after():
    process = OF[1000]
    for name, of in (("log_snr", lambda x: x), ("karras", lambda x: np.exp(-x / 14))):
        places = SPACINGS[name](process, (20,))
        assert (places[0], places[-2], places[-1]) == (999, 0, -1)
        gaps = np.diff(of(process.log_snr(np, places[:-1])))
        np.testing.assert_allclose(gaps, np.full(19, gaps[0]), rtol=1e-6)
    places = spacings.build(process, "karras", (20,), (("rho", 3.0),))
    gaps = np.diff(np.exp(-process.log_snr(np, places[:-1]) / 6))
    np.testing.assert_allclose(gaps, np.full(19, gaps[0]), rtol=1e-6)


def test_beta_lies_at_the_quantiles_of_its_distribution():
    """a = b = 1 is even; a = b = 1/2 has the quantiles sin^2(pi u / 2)."""
    process, part = OF[1000], np.linspace(1, 0, 11)
    np.testing.assert_allclose(SPACINGS["beta"](process, (11,), a=1, b=1)[:-1], 999 * part, atol=1e-9)
    wanted = 999 * np.sin(np.pi / 2 * part) ** 2
    np.testing.assert_allclose(SPACINGS["beta"](process, (11,), a=0.5, b=0.5)[:-1], wanted, atol=1e-6)


@pytest.mark.parametrize(
    "process", [processes.vp(), processes.ve(), processes.edm(), processes.flow(), processes.flow(0.999)]
)
def test_a_continuous_process_is_walked_from_its_start_to_the_image(process):
    for name in ("even", "trailing", "quadratic", "log_snr", "karras", "edm", "beta"):
        for count in (1, 2, 20):
            places = SPACINGS[name](process, (count,))
            assert places.shape == (count + 1,)
            assert (np.diff(places) < 0).all()
            assert places[-1] == process.clean
            if name != "edm" or process.name == "edm":
                assert places[0] == pytest.approx(process.start, rel=1e-6)


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
        ("karras", (5, 5), r"karras takes one count between 1 and 1000, got \(5, 5\)"),
    ],
)
def test_impossible_counts_are_refused(spacing, counts, message):
    with pytest.raises(ValueError, match=message):
        SPACINGS[spacing](OF[1000], counts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spacings.build(OF[10], "karass", (3,)), "--spacing: there is no 'karass', did you mean 'karras'"),
        (lambda: spacings.build(OF[10], "karras", (3,), (("rh", 3.0),)), "--spacing-args: karras takes rho, got rh"),
        (lambda: spacings.build(OF[10], "karras", (3,), (("rho", 0.0),)), "rho must be positive, got 0.0"),
        (lambda: spacings.build(OF[10], "beta", (3,), (("a", -1.0),)), "a and b must be positive, got -1.0 and 0.6"),
        (lambda: spacings.edm(OF[10], (3,), sigma_min=2, sigma_max=1), "must rise above 0, got 2 and 1"),
        (lambda: spacings.edm(OF[1000], (3,), sigma_min=1e6, sigma_max=1e7), "must reach into the process's"),
        (lambda: SPACINGS["leading"](processes.vp(), (3,)), "the process vp has none: take trailing"),
    ],
)
def test_settings_that_can_not_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
