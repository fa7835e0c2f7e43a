"""A weighting is stated for the error of eps; `in_space` makes it the same objective for every prediction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.loss import loss
from ddpm_jax.diffusion.parameterization import PREDICTIONS, convert
from ddpm_jax.diffusion.timesteps import Draw
from ddpm_jax.diffusion.weighting_zoo import read
from ddpm_jax.diffusion.weightings import WEIGHTINGS, bind, build, from_effective, in_space, simple

LINEAR = schedules.linear()
SCHEDULES = {
    "linear": LINEAR,
    "cosine": schedules.cosine(),
    "log_snr_linear": schedules.log_snr_linear(),
    "jsd": schedules.jsd(),
    "zero_terminal_snr": schedules.zero_terminal_snr(LINEAR),
    "laplace": schedules.laplace(),
}
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
    """A small network whose parameters all predictions share."""
    slope, bend, offset = parameters
    return slope * x_t + bend * jnp.tanh(x_t - time[:, None] / 1000) + offset


@functools.partial(jax.jit, static_argnames="prediction")
def _objectives(schedule, factors, *, prediction):
    """The loss under weightings with these factors [W, T] on eps, and its gradient, [W] and [W, 3], twice.

    Once as the network says it in the space of `prediction`, once with what it says turned into eps. A last step
    without signal is never drawn: no eps comes from it.
    """
    x_0 = jnp.clip(0.3 + 0.5 * jax.random.normal(jax.random.key(0), (64, 6)), -1, 1)
    some_signal = Draw(probabilities=lambda schedule, _: (schedule.log_snr > -40).astype(jnp.float32))

    def objective(parameters, table, space):
        def denoise(x_t, time):
            said, t = _network(parameters, x_t, time), jnp.searchsorted(schedule.times, time)
            return convert(schedule, said, x_t, t, source=prediction, target=space)

        return loss(
            jax.random.key(1),
            schedule,
            denoise,
            x_0,
            prediction=space,
            weighting=lambda log_snr: read(schedule, table, log_snr),
            draw_t=some_signal,
        )[0]

    def every(space):
        slopes = jax.value_and_grad(functools.partial(objective, space=space))
        return jax.vmap(slopes, (None, 0))(jnp.array([0.4, 0.3, 0.1]), factors)

    return every(prediction), every("eps")


@jax.jit
def _every_factor(schedule):
    """[W, P, T] of the zoo."""
    coef = schedule.posterior_mean_coef_x0
    zoo = [bind(k, schedule) for k in WEIGHTINGS.values()]
    factors = [[in_space(k, name, schedule.log_snr, posterior_mean_coef_x0=coef) for name in PREDICTIONS] for k in zoo]
    return jnp.asarray(factors)


@pytest.mark.parametrize("prediction", [name for name in PREDICTIONS if name != "eps"])
def test_every_prediction_has_the_same_objective_and_gradient_under_every_weighting(prediction):
    """The output is kept and weighted by `in_space`, or turned into eps and weighted by k.

    An eps error can be as small as alpha = 5e-5 where little signal is left. In float32 x_t has been taken from x_t to
    get it, to 1e-7 or 0.2 %.
    """
    for name, schedule in SCHEDULES.items():
        factors = _every_factor(schedule)[:, PREDICTIONS.index("eps")]
        (kept, slope), (value, expected) = _objectives(schedule, factors, prediction=prediction)
        np.testing.assert_allclose(kept, value, rtol=3e-3, err_msg=name)
        sizes = np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(slope / sizes, expected / sizes, atol=3e-3, err_msg=name)
        assert (sizes > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_factors_are_finite_and_not_negative_at_every_noise_level(name):
    factors = np.asarray(_every_factor(SCHEDULES[name]))
    assert factors.shape == (len(WEIGHTINGS), len(PREDICTIONS), 1000)
    assert np.isfinite(factors).all()
    assert (factors >= 0).all()
    assert (factors.max(axis=2) > 0).all()


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings_are_finite_at_the_ends_of_every_table(name):
    log_snr = jnp.array([-40.0, -39.9, 39.9, 40.0])
    for prediction in PREDICTIONS:
        got = np.asarray(in_space(WEIGHTINGS[name], prediction, log_snr, posterior_mean_coef_x0=jnp.ones(4)))
        assert np.isfinite(got).all()
        assert (got >= 0).all()


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("simple", "eps"), ("snr", "eps"), ("x0_mse", "x0"), ("v_mse", "v"), ("snr_plus_one", "v"), ("flow_mse", "flow")],
)
def test_a_plain_squared_error_counts_itself_once_even_without_signal_or_noise(name, prediction):
    log_snr = jnp.array([-40.0, -17.0, 0.0, 17.0, 40.0])
    np.testing.assert_allclose(in_space(WEIGHTINGS[name], prediction, log_snr), np.ones(5), rtol=1e-5)


def test_from_effective_weighs_each_step_by_the_log_snr_it_stands_for():
    """A log-SNR that falls evenly makes every step count alike; one that falls from 13.3 to -5 falls by 18.3 nats."""
    k = from_effective(jnp.exp, schedules.log_snr_linear(1000, 13.3, -5.0))
    np.testing.assert_allclose(k(LOG_SNR[1:]), SNR[1:] * 18.3 * 1000 / 999, rtol=1e-5)
    for name in ("sigmoid", "monotone_edm", "elbo"):
        known, made = build(name, (), LINEAR), from_effective(WEIGHTINGS[name], LINEAR)
        np.testing.assert_allclose(known(LINEAR.log_snr), made(LINEAR.log_snr), rtol=1e-6)


def test_bad_predictions_are_refused():
    with pytest.raises(ValueError, match=r"prediction: there is no 'flwo', did you mean 'flow'\?"):
        in_space(simple, "flwo", LOG_SNR)
    with pytest.raises(ValueError, match="'mean' needs posterior_mean_coef_x0"):
        in_space(simple, "mean", LOG_SNR)
