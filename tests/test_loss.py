"""The training objective on networks whose loss is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.forward import q_sample
from ddpm_jax.diffusion.loss import loss
from ddpm_jax.diffusion.parameterization import PREDICTIONS, target
from ddpm_jax.diffusion.timesteps import Draw

LINEAR = schedules.linear()
KEY = jax.random.key(0)
X_0 = jax.random.uniform(jax.random.key(7), (2048, 4, 4, 1), minval=-1)


def zero(x_t, time):
    del time
    return jnp.zeros_like(x_t)


def test_the_zero_network_loses_the_variance_of_the_noise():
    """E[eps^2] = 1, with standard error sqrt(2 / n); and per image the noise's own mean square."""
    value, terms = loss(KEY, LINEAR, zero, X_0)
    assert float(value) == pytest.approx(1, abs=4 * np.sqrt(2 / X_0.size))
    assert float(jnp.var(terms.mse)) == pytest.approx(2 / 16, rel=0.2)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_loses_nothing(prediction):
    """It knows x_0, works the noise out of x_t, and answers with the target: what is left is rounding."""

    def knows(x_t, time):
        t = time.astype(int)
        alpha, sigma = (
            table[t].reshape(-1, 1, 1, 1) for table in (LINEAR.sqrt_alpha_bars, LINEAR.sqrt_one_minus_alpha_bars)
        )
        return target(LINEAR, prediction, X_0, (x_t - alpha * X_0) / sigma, t)

    value, terms = loss(KEY, LINEAR, knows, X_0, prediction=prediction)
    assert float(value) < 1e-9
    if prediction == "x0":
        np.testing.assert_array_equal(terms.loss, np.zeros(len(X_0)))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_terms_are_per_image_and_average_to_the_loss(prediction):
    value, terms = loss(KEY, LINEAR, zero, X_0, prediction=prediction)
    assert terms.loss.shape == terms.mse.shape == terms.t.shape == (2048,)
    assert float(value) == pytest.approx(np.asarray(terms.loss, np.float64).mean(), rel=1e-6)
    snr = np.exp(np.asarray(LINEAR.log_snr, np.float64))[np.asarray(terms.t)]
    factor = {"eps": 1, "x0": snr, "v": snr / (1 + snr)}[prediction]
    np.testing.assert_allclose(terms.loss, factor * np.asarray(terms.mse, np.float64), rtol=3e-6)


def test_t_is_uniform_over_the_whole_schedule():
    t = np.asarray(loss(KEY, schedules.linear(8), zero, X_0)[1].t)
    counts = np.bincount(t, minlength=8)
    assert counts.size == 8
    assert (np.abs(counts - 256) < 4.5 * np.sqrt(2048 * 7 / 64)).all()


def test_the_key_decides_t_and_eps():
    value, terms = loss(KEY, LINEAR, zero, X_0)
    again, same = loss(KEY, LINEAR, zero, X_0)
    other, different = loss(jax.random.key(1), LINEAR, zero, X_0)
    assert float(value) == float(again) != float(other)
    np.testing.assert_array_equal(terms.t, same.t)
    np.testing.assert_array_equal(terms.mse, same.mse)
    assert (terms.t != different.t).any()
    assert (terms.mse != different.mse).all()


def test_the_network_sees_q_sample_and_the_schedules_time():
    seen = {}

    def look(x_t, time):
        seen.update(x_t=x_t, time=time)
        return jnp.zeros_like(x_t)

    short = schedules.respace(LINEAR, [5, 300, 999])
    _, terms = loss(KEY, short, look, X_0)
    np.testing.assert_array_equal(seen["time"], np.array([5.0, 300.0, 999.0])[np.asarray(terms.t)])
    signal, noise = q_sample(short, X_0, terms.t, 0 * X_0), q_sample(short, 0 * X_0, terms.t, jnp.ones_like(X_0))
    eps = (seen["x_t"] - signal) / noise
    np.testing.assert_allclose((eps**2).mean((1, 2, 3)), terms.mse, rtol=1e-3)


def test_the_weighting_is_read_at_the_images_own_log_snr():
    _, terms = loss(KEY, LINEAR, zero, X_0, weighting=lambda log_snr: log_snr)
    np.testing.assert_allclose(terms.loss, terms.mse * LINEAR.log_snr[terms.t], rtol=1e-6)


def test_another_draw_of_t_brings_its_importance():
    low = Draw(probabilities=lambda schedule, history: jnp.where(jnp.arange(schedule.num_steps) < 4, 1.0, 0.0))
    value, terms = loss(KEY, LINEAR, zero, X_0, draw_t=low)
    assert set(np.asarray(terms.t).tolist()) == {0, 1, 2, 3}
    np.testing.assert_allclose(terms.loss, 0.004 * terms.mse, rtol=1e-6)
    assert float(value) == pytest.approx(0.004, rel=0.05)
    np.testing.assert_allclose(terms.objective, terms.mse, rtol=1e-6)
    _, left = loss(KEY, LINEAR, zero, X_0, draw_t=low, correct_draw=False)
    np.testing.assert_allclose(left.loss, terms.mse, rtol=1e-6)


def test_gradients_are_finite_where_the_signal_is_gone():
    schedule = schedules.zero_terminal_snr(LINEAR)

    last = Draw(probabilities=lambda schedule, history: jnp.where(jnp.arange(schedule.num_steps) == 999, 1.0, 0.0))
    for prediction in ("eps", "score", "mean", "v"):
        slope = jax.grad(lambda w, p: loss(KEY, schedule, lambda x, _: w * x, X_0[:4], prediction=p, draw_t=last)[0])(
            0.5, prediction
        )
        assert np.isfinite(slope)


def test_an_output_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"denoise must return the shape of x_0, \(2, 4, 4, 1\), got \(2, 4, 4, 2\)"):
        loss(KEY, LINEAR, lambda x, _: jnp.concatenate([x, x], -1), X_0[:2])
    with pytest.raises(ValueError, match=r"prediction: there is no 'epsilon', did you mean 'eps'\?"):
        loss(KEY, LINEAR, zero, X_0[:2], prediction="epsilon")
