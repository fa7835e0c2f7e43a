"""Bins of log-SNR: every t in one of them, and errors of eps that mean the same whatever is predicted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import bins, continuous, schedules, timesteps
from ddpm_jax.diffusion.loss import loss
from ddpm_jax.diffusion.parameterization import PREDICTIONS, convert

SCHEDULES = {
    "linear": schedules.linear(),
    "cosine": schedules.cosine(),
    "zero terminal": schedules.zero_terminal_snr(schedules.linear()),
    "four steps": schedules.linear(4),
}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def binned():
    """Edges, and the bin of each t, of every schedule for every number of bins."""

    @jax.jit
    def of_all(given):
        edges = {(name, num): bins.edges(schedule, num) for name, schedule in given.items() for num in (1, 6, 20)}
        return {(name, num): (one, bins.of_steps(given[name], one)) for (name, num), one in edges.items()}

    return {key: tuple(map(np.asarray, found)) for key, found in of_all(SCHEDULES).items()}


@pytest.mark.parametrize("name", SCHEDULES)
def test_edges_are_even_in_log_snr_between_the_schedule_s_ends(binned, name):
    """Cut to +-12: linear ends at -10.1, cosine at -19.8, and a last SNR of 0 at any number one likes."""
    edges, _ = binned[name, 6]
    last, first = np.clip(np.asarray(SCHEDULES[name].log_snr, np.float64)[[-1, 0]], -12, 12)
    np.testing.assert_allclose(edges, np.linspace(last, first, 7), rtol=0, atol=3e-6)
    assert edges.dtype == np.float32
    assert (edges[0] == -12) == (name != "linear")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num", [1, 6, 20])
def test_every_step_is_in_the_bin_whose_edges_hold_its_log_snr(binned, name, num):
    (edges, where), schedule = binned[name, num], SCHEDULES[name]
    assert where.shape == (schedule.num_steps,)
    assert where[0] == num - 1  # the cleanest step; the noisiest is in bin 0
    assert where[-1] == 0
    inside = np.clip(np.asarray(schedule.log_snr), edges[0], edges[-1])
    assert (edges[where] <= inside).all()
    assert (inside <= edges[where + 1]).all()


def test_a_schedule_of_one_step_has_one_place_for_all():
    schedule = schedules.from_betas([0.5])
    assert 0 <= int(bins.of_steps(schedule, bins.edges(schedule, 3))[0]) < 3
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        bins.edges(schedule, 0)


def test_sums_are_numpy_s_and_a_value_that_is_not_a_number_stays_in_its_bin():
    rng = np.random.default_rng(0)
    where, values = rng.integers(0, 4, 100), rng.normal(size=100).astype(np.float32)
    where[where == 2] = 1
    values[np.argmax(where == 3)] = np.nan
    total, count = jax.jit(bins.sums, static_argnums=2)(jnp.asarray(where), jnp.asarray(values), 5)
    np.testing.assert_array_equal(count, np.bincount(where, minlength=5))
    np.testing.assert_allclose(total, np.bincount(where, weights=values, minlength=5), rtol=1e-5)
    assert np.isnan(total[3])


def test_a_draw_from_a_bin_takes_each_of_its_steps_equally_often():
    schedule = schedules.linear(40)
    edges = bins.edges(schedule, 5)
    inside = np.flatnonzero(np.asarray(bins.of_steps(schedule, edges)) == 3)
    drawn = jax.jit(lambda number: timesteps.draw(KEY, bins.draw(edges, number), schedule, 20_000)[0])(3)
    counts = np.bincount(np.asarray(drawn), minlength=40)
    assert set(np.flatnonzero(counts)) == set(inside)
    each = 20_000 / len(inside)
    assert np.abs(counts[inside] - each).max() < 5 * np.sqrt(each)


def test_names_say_the_middle_of_a_bin_and_are_read_back_by_rising_log_snr():
    names = bins.names("eps_error", [-12.0, -4.0, 4.0, 12.0])
    assert names == ["eps_error/log_snr_-8.00", "eps_error/log_snr_0.00", "eps_error/log_snr_8.00"]
    record = {"step": 3, names[2]: 0.3, names[0]: 0.1, "eps_error_of_another": 7.0}
    middles, values = bins.read("eps_error", record)
    np.testing.assert_array_equal(middles, [-8, 8])
    np.testing.assert_array_equal(values, [0.1, 0.3])


PLACES = jnp.array([1, 9, 20, 39])
SHORT = schedules.linear(40)
X_0 = jnp.asarray(np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 3, 2))


def wrong_eps(x_t):
    """What the network takes for eps, in whatever words."""
    return 0.3 * x_t + 0.1


@pytest.fixture(scope="module")
def losses():
    """The terms of every prediction, and x_t and eps."""
    draw = timesteps.Draw(quantiles=lambda key, size: (PLACES + 0.5) / 40)
    seen = {}

    def of(prediction):
        def denoise(x_t, time):
            del time
            seen["x_t"] = x_t
            return convert(SHORT, wrong_eps(x_t), x_t, PLACES, source="eps", target=prediction)

        return loss(KEY, SHORT, denoise, X_0, prediction=prediction, draw_t=draw, weighting=jnp.exp)[1]

    terms, x_t = jax.jit(lambda: ({prediction: of(prediction) for prediction in PREDICTIONS}, seen["x_t"]))()
    alpha, sigma = (
        np.asarray(table, np.float64)[PLACES, None, None]
        for table in (SHORT.sqrt_alpha_bars, SHORT.sqrt_one_minus_alpha_bars)
    )
    return terms, np.float64(x_t), (x_t - alpha * X_0) / sigma


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_error_of_eps_is_the_same_in_every_prediction(losses, prediction):
    """A network that says the same wrong eps in other words, under a weighting that isn't simple."""
    terms, x_t, eps = losses
    error = np.square(wrong_eps(x_t) - eps).mean(axis=(1, 2))
    np.testing.assert_allclose(terms[prediction].eps_error, error, rtol=1e-3)
    np.testing.assert_allclose(terms[prediction].log_snr, np.asarray(SHORT.log_snr)[PLACES], rtol=1e-6)


def test_in_continuous_time_too():
    """The zero network's error of v is mean v^2, of which signal is the share that an error of eps makes."""
    curve = continuous.of_schedule(schedules.cosine(40))

    @jax.jit
    def both():
        _, terms = continuous.loss(KEY, curve, lambda x_t, time: 0 * x_t, X_0, prediction="v", bits=2, num_steps=40)
        return terms, continuous.read(curve, terms.t / 40)

    terms, (log_snr, *_) = both()
    np.testing.assert_allclose(terms.log_snr, log_snr, rtol=1e-4)
    signal = 1 / (1 + np.exp(-np.float64(log_snr)))
    np.testing.assert_allclose(terms.eps_error, signal * np.float64(terms.mse), rtol=1e-4)
