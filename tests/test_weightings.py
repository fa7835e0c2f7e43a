"""A weighting is stated for the error of eps; `in_space` makes it the same objective for every prediction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.loss import loss
from ddpm_jax.diffusion.parameterization import PREDICTIONS, convert
from ddpm_jax.diffusion.weightings import WEIGHTINGS, in_space, simple

LINEAR = schedules.linear()
LOG_SNR = jnp.array([-9.0, -1.0, 0.0, 0.5, 9.0])
SNR = np.exp(np.asarray(LOG_SNR, np.float64))
COEF_X0 = jnp.array([1e-3, 3e-3, 0.01, 0.3, 1.0])


@pytest.mark.parametrize(
    ("prediction", "factor"),
    [
        ("eps", np.ones(5)),
        ("x0", SNR),
        ("v", SNR / (1 + SNR)),
        ("score", 1 / (1 + SNR)),
        ("flow", SNR / (1 + np.sqrt(SNR)) ** 2),
        ("mean", SNR / np.asarray(COEF_X0, np.float64) ** 2),
    ],
)
@pytest.mark.parametrize("k", [simple, jnp.exp])
def test_factors_are_the_closed_forms(prediction, factor, k):
    expected = factor * (SNR if k is jnp.exp else 1)
    got = in_space(k, prediction, LOG_SNR, posterior_mean_coef_x0=COEF_X0)
    np.testing.assert_allclose(got, expected, rtol=2e-6)


def _network(parameters, x_t, time):
    """A small network for eps, whose parameters all predictions share."""
    slope, bend, offset = parameters
    return slope * x_t + bend * jnp.tanh(x_t - time[:, None] / 1000) + offset


@pytest.mark.parametrize("k", [simple, lambda log_snr: jax.nn.sigmoid(2 - log_snr)], ids=["simple", "sigmoid"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_every_prediction_has_the_same_objective_and_the_same_gradient(schedule, prediction, k):
    """The network answers in the space asked for; what its parameters feel is the error of eps, weighted by k.

    Rounding of x_t is magnified by up to (alpha / sigma) / coef_x0, about 100, for the posterior mean: hence 1e-4.
    """
    value, slope = _objective(schedule, k, prediction)
    expected, expected_slope = _objective(schedule, k, "eps")
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4, atol=1e-5)


@functools.cache
def _objective(name, k, space):
    """The loss and its gradient, the network's eps said in another space."""
    schedule = schedules.SCHEDULES[name](1000)
    x_0 = jnp.clip(0.3 + 0.5 * jax.random.normal(jax.random.key(0), (128, 6)), -1, 1)

    def objective(parameters):
        def denoise(x_t, time):
            eps = _network(parameters, x_t, time)
            return convert(schedule, eps, x_t, time.astype(int), source="eps", target=space)

        return loss(jax.random.key(1), schedule, denoise, x_0, prediction=space, weighting=k)[0]

    return jax.value_and_grad(objective)(jnp.array([0.4, 0.3, 0.1]))


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_factors_are_finite_and_not_negative_at_every_noise_level(name, prediction):
    for schedule in (LINEAR, schedules.jsd(), schedules.zero_terminal_snr(LINEAR)):
        got = in_space(
            WEIGHTINGS[name],
            prediction,
            schedule.log_snr,
            posterior_mean_coef_x0=schedule.posterior_mean_coef_x0,
        )
        assert np.isfinite(got).all()
        assert (np.asarray(got) >= 0).all()


def test_simple_counts_every_noise_level_once():
    np.testing.assert_array_equal(WEIGHTINGS["simple"](LOG_SNR), np.ones(5))


def test_bad_predictions_are_refused():
    with pytest.raises(ValueError, match=r"prediction: there is no 'flwo', did you mean 'flow'\?"):
        in_space(simple, "flwo", LOG_SNR)
    with pytest.raises(ValueError, match="'mean' needs posterior_mean_coef_x0"):
        in_space(simple, "mean", LOG_SNR)
