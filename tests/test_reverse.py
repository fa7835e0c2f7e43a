"""p(x_{t-1} | x_t) from a network's output, against float64."""

import float64
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import reverse, schedules
from ddpm_jax.diffusion.forward import q_posterior
from ddpm_jax.diffusion.parameterization import PREDICTIONS

WORLDS = {
    "linear": (schedules.linear(), float64.tables(float64.linear_betas())),
    "cosine": (schedules.cosine(), float64.tables(float64.cosine_betas())),
}
SOME_T = np.array([0, 1, 500, 999])
RNG = np.random.default_rng(0)
X_0, EPS = np.float32(RNG.uniform(-1, 1, (4, 3, 2))), np.float32(RNG.normal(size=(4, 3, 2)))
V = np.float32(RNG.uniform(-1.2, 1.2, (4, 3, 2)))


@pytest.mark.parametrize("name", ["large", "small", "medium:0.5", "medium:.25", "learned", "learned_range"])
@pytest.mark.parametrize("world", WORLDS)
def test_variances_are_the_papers(world, name):
    """log beta and log beta_tilde, both log beta_tilde_1 at t = 0; a float32 logarithm of -12 rounds by 5e-7."""
    schedule, table = WORLDS[world]
    found = reverse.variance(name)(schedule, jnp.asarray(SOME_T), jnp.asarray(V))
    assert found.shape == (V.shape if reverse.is_learned(name) else (4,))
    exact = float64.log_variance(table, name, SOME_T, np.float64(V))
    found = found if found.ndim == 3 else float64.like(found, V)
    np.testing.assert_allclose(np.broadcast_to(found, V.shape), exact, atol=3e-6)


def test_the_published_variances_of_the_linear_schedule():
    t = jnp.array([0, 1, 500, 999])
    small, large = (np.exp(reverse.variance(name)(schedules.linear(), t, None)) for name in ("small", "large"))
    np.testing.assert_allclose(small[:3], [5.4531876613021935e-05, 5.4531876613021935e-05, 0.010051335778909593], 3e-6)
    np.testing.assert_allclose(
        large, [5.4531876613021935e-05, 0.00011991991991991993, 0.01001001001 + 5e-5, 0.02], 3e-4
    )
    np.testing.assert_allclose(large[[1, 3]], [1e-4 + 0.0199 / 999, 0.02], rtol=3e-6)


def test_a_learned_range_runs_from_small_to_large():
    """Exactly at v = -1 and 1; at 0 it is the geometric mean, beyond 1 it goes on."""
    schedule, t = schedules.linear(), jnp.array([1, 10, 500, 999])
    small, large = (reverse.variance(name)(schedule, t, None) for name in ("small", "large"))
    between = reverse.variance("learned_range")
    for v, wanted in {-1: small, 1: large}.items():
        np.testing.assert_array_equal(between(schedule, t, jnp.full((4, 1), v, jnp.float32))[:, 0], wanted)
    np.testing.assert_allclose(
        np.exp(between(schedule, t, jnp.zeros((4, 1)))[:, 0]), np.exp(small / 2) * np.exp(large / 2), rtol=3e-6
    )
    beyond = between(schedule, t, jnp.full((4, 1), 3.0))[:, 0]
    np.testing.assert_allclose(beyond, small + 2 * (large - small), atol=3e-6)
    slope = jax.grad(lambda v: between(schedule, t, v).sum())(jnp.full((4, 1), 0.3))[:, 0]
    np.testing.assert_allclose(slope, (large - small) / 2, rtol=1e-5, atol=1e-7)


def test_a_medium_variance_has_the_ends_of_the_range():
    schedule, t = schedules.cosine(), jnp.arange(1000)
    for name, end in {"medium:0": "small", "medium:1": "large", "medium:1.0": "large"}.items():
        np.testing.assert_allclose(
            reverse.variance(name)(schedule, t, None), reverse.variance(end)(schedule, t, None), rtol=1e-6, atol=1e-6
        )


def test_equal_names_are_the_same_function():
    """A compiled loop that took it as a static argument is found again."""
    for name in ("large", "medium:0.5", "medium:0.25"):
        assert reverse.variance(name) is reverse.variance(name)
    assert reverse.variance("medium:.5") is reverse.variance("medium:0.50")


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("world", WORLDS)
def test_the_mean_follows_from_what_was_predicted(world, prediction, clip):
    """A network that errs by 0.3 in eps; x_0 is read off it and weighed with x_t (Ho et al. 2020, Eq. 7)."""
    schedule, table = WORLDS[world]
    x_t = np.float32(float64.q_sample(table, np.float64(X_0), np.float64(EPS), SOME_T))
    exact_x_t, eps = np.float64(x_t), np.float64(EPS) + 0.3
    a, s = float64.like(table.signal[SOME_T], X_0), float64.like(table.noise[SOME_T], X_0)
    output = np.float32(float64.say(table, prediction, (exact_x_t - s * eps) / a, eps, SOME_T))
    p, x_0 = reverse.p_posterior(
        schedule,
        jnp.concatenate([output, V], axis=-1),
        jnp.asarray(x_t),
        jnp.asarray(SOME_T),
        prediction=prediction,
        log_variance=reverse.variance("learned_range"),
        clip=clip,
    )
    exact = float64.hear(table, prediction, np.float64(output), exact_x_t, SOME_T)
    exact = np.clip(exact, -1, 1) if clip else exact
    # Rounding of x_t and of the output, magnified as `convert` says.
    factor = {"eps": table.signal, "score": table.signal, "mean": table.of_x_0}.get(prediction, np.ones(1000))
    magnified = float64.like(1 / factor[SOME_T], X_0)
    assert (np.abs(x_0 - exact) < 5e-7 * (magnified + np.abs(exact))).all()
    mean = float64.like(table.of_x_0[SOME_T], X_0) * exact + float64.like(table.of_x_t[SOME_T], X_0) * exact_x_t
    np.testing.assert_allclose(p.mean, mean, rtol=3e-6, atol=3e-6)
    logs = float64.log_variance(table, "learned_range", SOME_T, np.float64(V))
    np.testing.assert_allclose(p.log_variance, logs, atol=3e-6)
    np.testing.assert_allclose(p.variance, np.exp(logs), rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_finds_the_posterior(prediction):
    """With the small variance p(x_{t-1} | x_t) is then q(x_{t-1} | x_t, x_0)."""
    schedule, table = WORLDS["linear"]
    x_t = jnp.asarray(float64.q_sample(table, X_0, EPS, SOME_T), jnp.float32)
    output = jnp.asarray(float64.say(table, prediction, np.float64(X_0), np.float64(EPS), SOME_T), jnp.float32)
    t = jnp.asarray(SOME_T)
    p, _ = reverse.p_posterior(schedule, output, x_t, t, prediction=prediction, log_variance=reverse.variance("small"))
    q = q_posterior(schedule, jnp.asarray(X_0), x_t, t)
    np.testing.assert_allclose(p.mean, q.mean, atol=1e-6)
    np.testing.assert_array_equal(p.log_variance, q.log_variance)
    assert p.log_variance.shape == p.variance.shape == (4, 1, 1)


def test_an_output_is_split_into_prediction_and_variance():
    output = jnp.arange(8.0).reshape(2, 4)
    prediction, v = reverse.split(output, 2)
    assert v is not None
    np.testing.assert_array_equal(prediction, [[0, 1], [4, 5]])
    np.testing.assert_array_equal(v, [[2, 3], [6, 7]])
    assert reverse.split(output, 4)[1] is None
    with pytest.raises(ValueError, match=r"must return 3 channels, or 6 with a variance, got shape \(2, 4\)"):
        reverse.split(output, 3)


@pytest.mark.parametrize("name", ["learned", "learned_range"])
def test_a_learned_variance_needs_its_half_of_the_output(name):
    x = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="needs a network with twice as many outputs as channels"):
        reverse.p_posterior(schedules.linear(), x, x, jnp.array([3]), log_variance=reverse.variance(name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("larg", r"variance: there is no 'larg', did you mean 'large'\?"),
        ("learned-range", r"there is no 'learned-range', did you mean 'learned_range'\?"),
        ("medium", r"there is no 'medium', did you mean 'medium:0.5'\?"),
        ("medium:1.5", r"medium:F takes F in \[0, 1\], got medium:1.5"),
        ("medium:-0.5", r"there is no 'medium:-0.5', did you mean 'medium:0.5'\?"),
    ],
)
def test_a_variance_that_does_not_exist_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        reverse.variance(name)
    with pytest.raises(ValueError, match=r"--diffusion.variance: there is no 'x'"):
        reverse.variance("x", "--diffusion.variance")
