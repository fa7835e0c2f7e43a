"""Predicting the noise is estimating the score: E[eps | x_t] = -sigma_t grad log q(x_t).

Worlds whose marginal score is known: x_0 ~ N(m, s^2), and x_0 one of two points.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.forward import q_sample
from ddpm_jax.diffusion.loss import loss
from ddpm_jax.diffusion.parameterization import convert, target

LINEAR = schedules.linear()
ALPHA_BARS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
MEAN, STD = 0.3, 0.5


def test_the_conditional_score_is_minus_eps_over_sigma():
    """Also as the gradient of log q(x_t | x_0) itself."""
    t = jnp.array([0, 20, 500, 999])
    x_0, eps = jax.random.normal(jax.random.key(0), (2, 4, 6))
    x_t = q_sample(LINEAR, x_0, t, eps)
    score = convert(LINEAR, eps, x_t, t, source="eps", target="score")
    sigma = np.sqrt(1 - ALPHA_BARS[np.asarray(t)])[:, None]
    np.testing.assert_allclose(score, -np.asarray(eps, np.float64) / sigma, rtol=1e-6)
    mean = np.sqrt(ALPHA_BARS[np.asarray(t)])[:, None] * np.asarray(x_0, np.float64)
    log_density = lambda x: jnp.sum(-((x - mean) ** 2) / (2 * sigma**2))  # noqa: E731
    np.testing.assert_allclose(jax.grad(log_density)(x_t), score, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("t", [0, 100, 500, 999])
def test_the_best_affine_network_for_eps_is_minus_sigma_times_the_marginal_score(t):
    """Three Gauss-Hermite nodes integrate the MSE of an affine network exactly: regress on them, in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    first, second = (grid.ravel() for grid in np.meshgrid(nodes, nodes))
    weight = np.sqrt(np.outer(weights, weights).ravel())[:, None]
    x_0, eps = jnp.float32(MEAN + STD * first)[:, None], jnp.float32(second)[:, None]
    ts = jnp.full(9, t)
    x_t = np.asarray(q_sample(LINEAR, x_0, ts, eps), np.float64)
    design = np.concatenate([x_t, np.ones_like(x_t)], axis=1)
    fit = lambda y: np.linalg.lstsq(weight * design, weight * np.asarray(y, np.float64))[0][:, 0]  # noqa: E731

    variance = ALPHA_BARS[t] * STD**2 + 1 - ALPHA_BARS[t]
    score = np.array([-1, np.sqrt(ALPHA_BARS[t]) * MEAN]) / variance  # slope and offset of grad log q(x_t)
    sigma = np.sqrt(1 - ALPHA_BARS[t])
    np.testing.assert_allclose(fit(target(LINEAR, "eps", x_0, eps, ts)), -sigma * score, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(fit(target(LINEAR, "score", x_0, eps, ts)), score, rtol=2e-4, atol=1e-5)


def test_score_matching_times_sigma_squared_is_the_eps_objective_term_by_term():
    """The two objectives agree up to the coefficient sigma_t^2, for any network."""
    sigmas = jnp.float32(np.sqrt(1 - ALPHA_BARS))

    def noise_net(x_t, time):
        return jnp.tanh(2 * x_t) - 0.1 + time[:, None] / 1000

    def score_net(x_t, time):
        return -noise_net(x_t, time) / sigmas[time.astype(int)][:, None]

    x_0 = MEAN + STD * jax.random.normal(jax.random.key(0), (256, 8))
    eps_loss, eps_terms = loss(jax.random.key(1), LINEAR, noise_net, x_0)
    score_loss, score_terms = loss(jax.random.key(1), LINEAR, score_net, x_0, prediction="score")
    np.testing.assert_array_equal(score_terms.t, eps_terms.t)
    sigma2 = 1 - ALPHA_BARS[np.asarray(eps_terms.t)]
    np.testing.assert_allclose(score_terms.mse * sigma2, eps_terms.mse, rtol=1e-5)
    np.testing.assert_allclose(score_terms.loss, eps_terms.loss, rtol=1e-5)
    assert float(score_loss) == pytest.approx(float(eps_loss), rel=1e-5)


@pytest.mark.parametrize("t", [50, 300, 700])
def test_the_mean_noise_at_x_t_is_minus_sigma_times_the_marginal_score(t):
    """x_0 = +-0.8: q(x_t) is a mixture of two normals. In each bin of x_t both sides have the same mean."""
    point, n = 0.8, 200_000
    key_x, key_eps = jax.random.split(jax.random.key(t))
    x_0 = point * jax.random.rademacher(key_x, (n, 1), jnp.float32)
    eps = jax.random.normal(key_eps, (n, 1))
    x_t = np.asarray(q_sample(LINEAR, x_0, jnp.full(n, t), eps), np.float64)[:, 0]
    alpha, variance = np.sqrt(ALPHA_BARS[t]), 1 - ALPHA_BARS[t]
    score = -(x_t - alpha * point * np.tanh(alpha * point * x_t / variance)) / variance
    excess = np.asarray(eps, np.float64)[:, 0] + np.sqrt(variance) * score
    for part in np.array_split(np.argsort(x_t), 20):
        standard_error = excess[part].std() / np.sqrt(part.size)
        assert abs(excess[part].mean()) < 4.5 * standard_error + 1e-6
