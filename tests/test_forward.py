"""The forward process against float64 NumPy, Bayes' rule and published figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.forward import prior_kl, q_posterior, q_sample, q_step

LINEAR = schedules.linear()
BETAS = np.linspace(1e-4, 0.02, 1000)
EVERY_T = jnp.arange(1000)
ONES, ZEROS = jnp.ones((1000, 1)), jnp.zeros((1000, 1))


def images(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_q_sample_agrees_with_t_single_steps():
    """Eq. 4 is Eq. 2 iterated: same mean and variance. Both are affine, so 0 and 1 show their coefficients."""
    keep = np.asarray(q_step(LINEAR, ONES, EVERY_T, ZEROS), np.float64)[:, 0]
    add = np.asarray(q_step(LINEAR, ZEROS, EVERY_T, ONES), np.float64)[:, 0]
    np.testing.assert_allclose(add, np.sqrt(BETAS), rtol=2e-7)
    mean, variance, means, variances = 1.0, 0.0, [], []
    for a, s in zip(keep, add, strict=True):
        mean, variance = a * mean, a**2 * variance + s**2
        means.append(mean)
        variances.append(variance)
    np.testing.assert_allclose(q_sample(LINEAR, ONES, EVERY_T, ZEROS)[:, 0], means, rtol=2e-5)
    np.testing.assert_allclose(q_sample(LINEAR, ZEROS, EVERY_T, ONES)[:, 0] ** 2, variances, rtol=2e-6)


def test_q_sample_mixes_each_image_at_its_own_time():
    x_0, eps, t = images(0, 3, 4, 4, 2), images(1, 3, 4, 4, 2), np.array([999, 0, 500])
    alpha_bar = np.cumprod(1 - BETAS)[t].reshape(3, 1, 1, 1)
    expected = np.sqrt(alpha_bar) * np.asarray(x_0, np.float64) + np.sqrt(1 - alpha_bar) * np.asarray(eps, np.float64)
    np.testing.assert_allclose(q_sample(LINEAR, x_0, t, eps), expected, rtol=1e-6, atol=5e-7)
    np.testing.assert_allclose(q_sample(LINEAR, x_0, t.astype(np.float32), eps), expected, rtol=3e-6, atol=3e-6)


def test_a_float_time_is_rounded_down_for_a_single_step():
    x, eps = images(0, 2, 3), images(1, 2, 3)
    np.testing.assert_array_equal(
        q_step(LINEAR, x, jnp.array([3.7, 0.2]), eps), q_step(LINEAR, x, jnp.array([3, 0]), eps)
    )


FALLING = schedules.from_betas([0.5, 0.1, 0.01, 0.001])


@pytest.mark.parametrize("schedule", [LINEAR, schedules.laplace(), schedules.jsd(), FALLING])
def test_q_posterior_is_bayes_rule(schedule):
    """(x_{t-1}, x_t) given x_0 is jointly normal; condition the first on the second, in float64."""
    t = np.arange(1, schedule.num_steps)
    alphas, betas = np.asarray(schedule.alphas, np.float64)[t], np.asarray(schedule.betas, np.float64)[t]
    before = np.asarray(schedule.sqrt_one_minus_alpha_bars, np.float64)[t - 1] ** 2
    signal = np.asarray(schedule.sqrt_alpha_bars, np.float64)[t - 1]
    x_0, x_t = np.random.default_rng(0).normal(size=(2, t.size))
    total, shared = alphas * before + betas, np.sqrt(alphas) * before
    mean = signal * x_0 + shared / total * (x_t - np.sqrt(alphas) * signal * x_0)
    variance = before - shared**2 / total
    for time in (jnp.asarray(t), jnp.asarray(t, jnp.float32)):
        # A float t goes through float32 log-SNR, and beta is a difference of two of them.
        rtol = 1e-5 if time.dtype == jnp.int32 else 2e-2
        posterior = q_posterior(schedule, jnp.float32(x_0)[:, None], jnp.float32(x_t)[:, None], time)
        np.testing.assert_allclose(posterior.mean[:, 0], mean, atol=rtol)
        np.testing.assert_allclose(posterior.variance[:, 0], variance, rtol=rtol)
        np.testing.assert_allclose(np.exp(posterior.log_variance[:, 0]), variance, rtol=rtol)


@pytest.mark.parametrize("t", [jnp.array([0, 0]), jnp.array([0.0, 0.0])])
def test_the_posterior_at_the_first_step_is_the_image(t):
    x_0, x_t = images(0, 2, 4, 4, 1), images(1, 2, 4, 4, 1)
    posterior = q_posterior(LINEAR, x_0, x_t, t)
    np.testing.assert_allclose(posterior.mean, x_0, rtol=1e-6)
    np.testing.assert_array_equal(posterior.variance, np.zeros((2, 1, 1, 1)))
    # The published code takes the logarithm of the next step's variance here.
    np.testing.assert_allclose(posterior.log_variance, np.full((2, 1, 1, 1), np.log(5.4531876613e-05)), rtol=1e-6)


def test_the_chain_is_consistent_with_its_posterior():
    """Averaged over q(x_t | x_0), the posterior has the marginal q(x_{t-1} | x_0)."""
    t = jnp.array([1, 10, 500, 999])
    one, zero = jnp.ones((4, 1)), jnp.zeros((4, 1))
    alpha, sigma = q_sample(LINEAR, one, t, zero), q_sample(LINEAR, zero, t, one)
    marginal = q_posterior(LINEAR, one, alpha, t)
    np.testing.assert_allclose(marginal.mean, q_sample(LINEAR, one, t - 1, zero), rtol=1e-6)
    variance = q_posterior(LINEAR, zero, sigma, t).mean ** 2 + marginal.variance
    np.testing.assert_allclose(variance, q_sample(LINEAR, zero, t - 1, one) ** 2, rtol=2e-6)


def test_prior_kl_has_the_published_bits_per_dimension():
    x_0 = jnp.stack([jnp.zeros((8, 8, 1)), jnp.full((8, 8, 1), 3**-0.5), -jnp.ones((8, 8, 1))])
    expected = [5.874783886761826e-10, 9.704706792354604e-06, 2.911294542028646e-05]
    np.testing.assert_allclose(prior_kl(LINEAR, x_0), expected, rtol=2e-6)


@pytest.mark.parametrize("alpha_bar", [1e-7, 1e-3, 0.0099, 0.011, 0.05, 0.3, 0.7, 0.99, 0.9999])
def test_prior_kl_is_the_closed_form(alpha_bar):
    """KL(N(m, s^2) || N(0, 1)) = (s^2 + m^2 - 1 - log s^2) / 2; exact to 2e-5 also where its terms cancel."""
    schedule = schedules.from_betas([1 - alpha_bar])
    expected = 0.5 * (-alpha_bar + alpha_bar * np.array([0, 0.25]) - np.log1p(-alpha_bar)) / np.log(2)
    if alpha_bar < 1e-3:
        expected[0] = alpha_bar**2 / 4 / np.log(2)  # float64 cancels too
    np.testing.assert_allclose(prior_kl(schedule, jnp.array([[0.0], [0.5]])), expected, rtol=2e-5)


def test_prior_kl_vanishes_with_the_signal():
    assert float(prior_kl(schedules.jsd(), jnp.ones((1, 3)))[0]) == 0


def test_jit_vmap_and_grad_pass_through():
    x_0, eps, t = images(0, 5, 2, 3), images(1, 5, 2, 3), jnp.arange(10).reshape(5, 2) * 100
    direct = jnp.stack([q_sample(LINEAR, *each) for each in zip(x_0, t, eps, strict=True)])
    mapped = jax.jit(jax.vmap(q_sample, in_axes=(None, 0, 0, 0)))(LINEAR, x_0, t, eps)
    np.testing.assert_allclose(mapped, direct, rtol=1e-6, atol=1e-7)
    slope = jax.grad(lambda x: q_sample(LINEAR, x, t[0], eps[0]).sum())(x_0[0])
    np.testing.assert_allclose(
        slope, np.broadcast_to(np.sqrt(np.cumprod(1 - BETAS))[[0, 100], None], (2, 3)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_0": jnp.zeros((2, 4), jnp.int32)}, r"q_sample: x_0 must be Float\[Array, '?\"?B \*D.*got i32\[2,4\]"),
        ({"eps": jnp.zeros((2, 5))}, "q_sample: eps must be .*got f32"),
        ({"t": jnp.zeros(3, jnp.int32)}, "q_sample: t must be .*B=2.*got i32"),
        ({"t": 3}, "q_sample: t must be "),
    ],
)
def test_wrong_shapes_and_kinds_are_refused_in_one_line(change, message):
    given = {"x_0": jnp.zeros((2, 4)), "t": jnp.zeros(2, jnp.int32), "eps": jnp.zeros((2, 4))} | change
    with pytest.raises(TypeError, match=message) as caught:
        q_sample(LINEAR, **given)
    assert "\n" not in str(caught.value)
