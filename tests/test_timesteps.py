"""Draws of t: as likely as they say, and weighted so that no expectation moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules, timesteps
from ddpm_jax.diffusion.timesteps import DRAWS, Draw, build, draw

LINEAR, COSINE = schedules.linear(100), schedules.cosine(100)
KEY = jax.random.key(0)
NUM = 200_000


def seen(how, schedule, rounds=60, noise=0.3):
    """A history after losses whose mean at t is (1 + t)^-1/2, with some noise."""
    history = how.init(schedule.num_steps)
    for i in range(rounds):
        key_t, key_size = jax.random.split(jax.random.fold_in(KEY, i))
        t, _ = draw(key_t, how, schedule, 100, history)
        size = (1.0 + t) ** -0.5 * (1 + noise * jax.random.normal(key_size, t.shape))
        history = how.update(history, schedule, t, size)
    return history


WAYS = {name: make() for name, make in DRAWS.items()} | {
    "early": timesteps.in_range(0.0, 0.25, 8.0),
    "edm": timesteps.log_normal(-0.4, 1.0),
    "narrow": timesteps.log_normal(0.0, 0.05),
    "steep": Draw(probabilities=lambda schedule, _: jnp.arange(1.0, 101.0) ** 2, quantiles=timesteps.stratified),
}


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("name", WAYS)
def test_the_weights_keep_every_expectation_that_of_a_uniform_t(name, schedule):
    """sum_t p(t) w(t) f(t) = mean f, with p counted and w as it comes; f = 1, t, (t - T/2)^2."""
    how = WAYS[name]
    t, weights = jax.jit(lambda key, history: draw(key, how, schedule, NUM, history))(KEY, seen(how, schedule))
    t, weights = np.asarray(t), np.asarray(weights, np.float64)
    assert t.min() >= 0
    assert t.max() <= 99
    assert np.isfinite(weights).all()
    grid = np.arange(100.0)
    for f in (np.ones(100), grid / 99, (grid / 99 - 0.5) ** 2):
        drawn = weights * f[t]
        error = drawn.std() / np.sqrt(NUM)
        assert abs(drawn.mean() - f.mean()) < 5 * error + 1e-4


@pytest.mark.parametrize("name", WAYS)
def test_weights_are_the_reciprocal_of_how_often_t_comes(name):
    how = WAYS[name]
    t, weights = draw(KEY, how, LINEAR, NUM, seen(how, LINEAR))
    counts = np.bincount(np.asarray(t), minlength=100)
    expected = np.zeros(100)
    expected[np.asarray(t)] = NUM / (100 * np.asarray(weights, np.float64))
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(NUM / 100) + 5)


def test_uniform_weighs_nothing():
    for how in (timesteps.uniform(), timesteps.uniform_stratified(), timesteps.uniform_antithetic()):
        _, weights = draw(KEY, how, LINEAR, 64)
        np.testing.assert_array_equal(weights, np.ones(64, np.float32))


def test_a_stratified_batch_takes_every_t_once_and_an_antithetic_one_mirrors_them():
    t, _ = draw(KEY, timesteps.uniform_stratified(), LINEAR, 100)
    assert sorted(np.asarray(t).tolist()) == list(range(100))
    t, _ = draw(KEY, timesteps.uniform_antithetic(), LINEAR, 65)
    np.testing.assert_array_equal(t[:32] + t[33:65], np.full(32, 99))


@pytest.mark.parametrize("how", [timesteps.log_normal(-1.0, 0.3), timesteps.logit_normal(), timesteps.in_range()])
def test_every_t_comes_exactly_as_often_as_its_weight_says(how):
    """All 2^23 values that a random float32 in [0, 1) takes, once each; the rarest t are a few of them."""
    schedule = schedules.cosine(4000)
    every = dataclasses.replace(how, quantiles=lambda key, size: jnp.arange(size, dtype=jnp.float32) / 2**23)
    t, weights = jax.jit(lambda: draw(KEY, every, schedule, 2**23))()
    counts = np.bincount(np.asarray(t), minlength=4000)
    assert counts.min() > 0
    np.testing.assert_allclose(2**23 / (4000 * np.asarray(weights, np.float64)), counts[np.asarray(t)], rtol=1e-6)


def test_stratified_sums_vary_less_than_independent_ones():
    def spread(how):
        def total(key):
            t, weights = draw(key, how, LINEAR, 32)
            return jnp.mean(weights * LINEAR.log_snr[t])

        return float(jnp.std(jax.vmap(total)(jax.random.split(KEY, 500))))

    assert spread(timesteps.uniform_stratified()) < 0.4 * spread(timesteps.uniform())


def test_range_makes_its_steps_so_much_more_likely():
    p = timesteps.in_range(0.25, 0.5, 3.0).probabilities(LINEAR, ())
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(p) == 3.0), np.arange(25, 50))
    assert set(np.asarray(p).tolist()) == {1.0, 3.0}


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.5, 0.4)])
def test_log_normal_draws_log_sigma_with_that_mean_and_deviation(mean, std):
    """On a fine schedule, and with no uniform share; the ends, 13 and -13, are far out in the tails."""
    fine = schedules.log_snr_linear(4000, 13.0, -13.0)
    t, _ = draw(KEY, timesteps.log_normal(mean, std, 1e-6), fine, NUM)
    log_sigma = -np.asarray(fine.log_snr)[np.asarray(t)] / 2
    assert log_sigma.mean() == pytest.approx(mean, abs=5 * std / np.sqrt(NUM) + 0.004)
    assert log_sigma.std() == pytest.approx(std, rel=0.01)


def test_logit_normal_draws_the_logit_of_sigma_with_that_mean_and_deviation():
    fine = schedules.log_snr_linear(4000, 13.0, -13.0)
    t, _ = draw(KEY, timesteps.logit_normal(-0.5, 0.8, 1e-6), fine, NUM)
    sigma = np.asarray(fine.sqrt_one_minus_alpha_bars, np.float64)[np.asarray(t)]
    logit = np.log(sigma / (1 - sigma))
    assert logit.mean() == pytest.approx(-0.5, abs=0.01)
    assert logit.std() == pytest.approx(0.8, rel=0.01)


def test_second_moment_is_uniform_until_every_t_has_been_seen_ten_times():
    how = timesteps.second_moment()
    history = how.init(100)
    for i in range(10):
        np.testing.assert_allclose(how.probabilities(LINEAR, history), np.full(100, 0.01), rtol=1e-6)
        t = jnp.arange(99) if i == 9 else jnp.arange(100)
        history = how.update(history, LINEAR, t, 1.0 + t)
    np.testing.assert_allclose(how.probabilities(LINEAR, history), np.full(100, 0.01), rtol=1e-6)
    history = how.update(history, LINEAR, jnp.array([99]), jnp.array([100.0]))
    grid = np.arange(1.0, 101.0)
    expected = 0.999 * grid / grid.sum() + 0.001 / 100
    np.testing.assert_allclose(how.probabilities(LINEAR, history), expected, rtol=1e-5)


def test_second_moment_keeps_the_last_losses_of_each_t_as_one_by_one_would():
    """Against lists that are cut to their last four, batch by batch, with one t up to seven times in a batch."""
    how, rng = timesteps.second_moment(keep=4), np.random.default_rng(0)
    history, lists = how.init(5), [[] for _ in range(5)]
    short = schedules.linear(5)
    for _ in range(20):
        t, size = rng.choice(5, 9, p=[0.5, 0.3, 0.1, 0.05, 0.05]), rng.normal(size=9)
        history = jax.jit(how.update)(history, short, jnp.asarray(t), jnp.asarray(size, jnp.float32))
        for step, loss in zip(t, size, strict=True):
            lists[step] = [*lists[step], loss][-4:]
    np.testing.assert_array_equal(history["count"].sum(), 180)
    root = np.array([np.sqrt(np.mean(np.square(kept))) for kept in lists])
    np.testing.assert_allclose(how.probabilities(short, history), 0.999 * root / root.sum() + 0.0002, rtol=1e-5)


def test_second_moment_finds_the_draw_of_least_variance():
    """Of E[w l] with l = (1 + t)^-1/2 known at each t: the weighted losses come out all alike."""
    how = timesteps.second_moment(uniform=1e-6)
    history = seen(how, LINEAR, noise=0.0)
    t, weights = draw(KEY, how, LINEAR, 1000, history)
    weighted = weights * (1.0 + t) ** -0.5
    assert float(jnp.std(weighted)) < 1e-3 * float(jnp.mean(weighted))


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_adaptive_makes_the_density_in_log_snr_that_of_the_loss(schedule):
    """With loss l(lambda) per unit of t, p(t) ~ l; the density of lambda is p(t) |dt / dlambda|, as the loss's is."""
    how = timesteps.adaptive(bins=20, uniform=1e-6)
    history = how.init(100)
    t = jnp.arange(100)
    for _ in range(5):
        history = how.update(history, schedule, t, jax.nn.sigmoid(schedule.log_snr))
    p = np.asarray(how.probabilities(schedule, history), np.float64)
    log_snr = np.asarray(schedule.log_snr, np.float64)
    loss = 1 / (1 + np.exp(-log_snr))
    edges = np.linspace(log_snr[0], log_snr[-1], 21)
    where = np.clip(np.searchsorted(-edges, -log_snr, side="right") - 1, 0, 19)
    binned = np.array([loss[where == b].mean() for b in where])
    np.testing.assert_allclose(p / p.sum(), binned / binned.sum(), rtol=0.02, atol=1e-7)


def test_adaptive_follows_a_loss_that_changes_and_leaves_unseen_bins_at_the_average():
    how = timesteps.adaptive(bins=4, decay=0.5, uniform=1e-6)
    even = schedules.log_snr_linear(8, 7.0, 0.0)
    history = how.update(how.init(8), even, jnp.array([0, 7]), jnp.array([1.0, 3.0]))
    p = np.asarray(how.probabilities(even, history))
    np.testing.assert_allclose(p / p[0], [1, 1, 2, 2, 2, 2, 3, 3], rtol=1e-5)
    for _ in range(30):
        history = how.update(history, even, jnp.array([0, 7]), jnp.array([5.0, 5.0]))
    p = np.asarray(how.probabilities(even, history))
    np.testing.assert_allclose(p, np.full(8, 1 / 8), rtol=1e-5)


def test_history_is_the_same_whether_batches_lie_on_one_device_or_not():
    """Arrays are global under jit: a batch in another order leaves the same sums, counts and rings."""
    for how in (timesteps.second_moment(keep=3), timesteps.adaptive(bins=10)):
        t = jnp.array([4, 9, 4, 1, 7, 9])
        size = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        order = jnp.array([5, 3, 0, 4, 2, 1])
        there = how.update(how.init(100), LINEAR, t, size)
        other = how.update(how.init(100), LINEAR, t[order], size[order])
        p = how.probabilities(LINEAR, there)
        np.testing.assert_allclose(how.probabilities(LINEAR, other), p, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("unifrom", [], "--diffusion.draw-t: there is no 'unifrom', did you mean 'uniform'?"),
        ("log_normal", [("men", 0.0)], "log_normal takes mean, std, uniform, got men, did you mean 'mean'?"),
        ("uniform", [("mean", 0.0)], "uniform takes none, got mean"),
        ("range", [("begin", 0.5), ("end", 0.5)], "0 <= begin < end <= 1, got 0.5 and 0.5"),
        ("range", [("factor", 0.0)], "factor must be positive, got 0.0"),
        ("log_normal", [("std", 0.0)], "std must be positive, got 0.0"),
        ("log_normal", [("uniform", 0.0)], r"uniform must lie in \(0, 1\], got 0.0"),
        ("log_normal", [("mean", float("nan"))], "log_normal: mean must be a finite number, got nan"),
        ("second_moment", [("uniform", 0.0)], r"uniform must lie in \(0, 1\], got 0.0"),
        ("second_moment", [("keep", 2.5)], "keep must be a whole number of at least 1, got 2.5"),
        ("adaptive", [("bins", 0.0)], "bins must be a whole number of at least 1, got 0.0"),
        ("adaptive", [("decay", 1.0)], r"decay must lie in \[0, 1\), got 1.0"),
        ("adaptive", [("uniform", 0.0)], r"uniform must lie in \(0, 1\], got 0.0"),
    ],
)
def test_a_draw_that_can_not_be_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        build(name, arguments)
