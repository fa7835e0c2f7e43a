"""Every prediction turned into every other, against float64 with stated rounding."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.parameterization import PREDICTIONS, convert, target, x0_and_eps

T = np.array([0, 1, 500, 999])
SCHEDULES = {name: build(1000) for name, build in schedules.SCHEDULES.items() if name != "scaled_linear"}
SCHEDULES["zero terminal"] = schedules.zero_terminal_snr(SCHEDULES["linear"])
PAIRS = list(itertools.permutations(PREDICTIONS, 2))
RNG = np.random.default_rng(0)
X_0, EPS = RNG.uniform(-1, 1, (4, 50)), RNG.normal(size=(4, 50))
ULP = 2.0**-24


class Truth:
    """The formulas in float64, each [4, 1] or [4, 50], at the four times T."""

    def __init__(self, schedule):
        read = lambda table: np.asarray(table, np.float64)[T][:, None]  # noqa: E731
        self.alpha, self.sigma = read(schedule.sqrt_alpha_bars), read(schedule.sqrt_one_minus_alpha_bars)
        self.c_0, self.c_t = read(schedule.posterior_mean_coef_x0), read(schedule.posterior_mean_coef_xt)
        self.x_t = self.alpha * X_0 + self.sigma * EPS

    def say(self, x_0, eps, x_t):
        return {
            "eps": eps,
            "x0": x_0,
            "v": self.alpha * eps - self.sigma * x_0,
            "score": -eps / self.sigma,
            "mean": self.c_0 * x_0 + self.c_t * x_t,
            "flow": eps - x_0,
        }

    def slopes(self, source):
        """How x_0 and eps move when the prediction does, at a fixed x_t."""
        a, s = self.alpha, self.sigma
        with np.errstate(divide="ignore"):
            return {
                "eps": (-s / a, 1 + 0 * a),
                "x0": (1 + 0 * a, -a / s),
                "v": (-s, a),
                "score": (s**2 / a, -s),
                "mean": (1 / self.c_0, -a / (s * self.c_0)),
                "flow": (-s / (a + s), a / (a + s)),
            }[source]

    def condition(self, source, to):
        """What a rounding of size 1 in the prediction (in units of its own) and in x_t can become.

        x_0 from eps or score is divided by alpha, from a mean by coef_x0; eps from x_0 is divided by sigma.
        """
        one = np.ones_like(self.alpha)
        with np.errstate(divide="ignore"):
            x_0 = {"eps": 1 / self.alpha, "score": 1 / self.alpha, "mean": 1 / self.c_0}.get(source, one)
        eps = (1 + self.alpha * x_0) / self.sigma if source in ("x0", "mean") else one
        return {
            "eps": eps,
            "x0": x_0,
            "v": self.alpha * eps + self.sigma * x_0,
            "score": eps / self.sigma,
            "mean": self.c_0 * x_0 + 1,
            "flow": eps + x_0,
        }[to]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "cosine", "zero terminal"])
def test_target_is_the_float64_formula(name, prediction):
    truth = Truth(SCHEDULES[name])
    got = target(SCHEDULES[name], prediction, jnp.float32(X_0), jnp.float32(EPS), T)
    expected = truth.say(X_0, EPS, truth.x_t)[prediction]
    np.testing.assert_allclose(got, expected, rtol=4 * ULP, atol=8 * ULP)


@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_convert_is_the_float64_truth_within_its_condition_and_comes_back(source, to):
    """Tolerance: a few float32 ulps of the largest number around (4), times the conversion's condition number."""
    for name, schedule in SCHEDULES.items():
        truth = Truth(schedule)
        says = truth.say(X_0, EPS, truth.x_t)
        possible = (truth.alpha > 0)[:, 0] if source in ("eps", "score") else np.full(4, True)
        back_possible = possible & ((truth.alpha > 0)[:, 0] if to in ("eps", "score") else True)
        x_t = jnp.float32(truth.x_t)
        got = convert(schedule, jnp.float32(says[source]), x_t, T, source=source, target=to)
        assert np.isfinite(got).all()
        allowed = 4 * 4 * ULP * truth.condition(source, to)
        error = np.abs(np.asarray(got, np.float64) - says[to])
        assert (error <= allowed)[possible].all(), (name, (error / allowed).max(1))

        back = convert(schedule, got, x_t, T, source=to, target=source)
        # The first error comes back by the slope of the second conversion, which adds its own.
        with np.errstate(invalid="ignore"):
            slope = np.abs(truth.say(*truth.slopes(to), 0)[source])
            allowed = slope * allowed + 4 * 4 * ULP * truth.condition(to, source)
        error = np.abs(np.asarray(back, np.float64) - says[source])
        assert (error <= allowed)[back_possible].all(), (name, (error / allowed).max(1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_converted_to_itself_is_untouched(prediction):
    output = jnp.float32(EPS)
    got = convert(SCHEDULES["linear"], output, output, T, source=prediction, target=prediction)
    np.testing.assert_array_equal(got, output)


@pytest.mark.parametrize("source", PREDICTIONS)
def test_x0_and_eps_are_the_two_conversions(source):
    schedule, output, x_t = SCHEDULES["cosine"], jnp.float32(EPS), jnp.float32(X_0)
    x_0, eps = x0_and_eps(schedule, output, x_t, T, source=source)
    to = lambda name: convert(schedule, output, x_t, T, source=source, target=name)  # noqa: E731
    np.testing.assert_allclose(x_0, to("x0"), rtol=1e-6)
    np.testing.assert_allclose(eps, to("eps"), rtol=1e-6)


def _slopes(schedule, source, to, t):
    """The conversion's gradients with respect to output and x_t, at ones."""
    ones, t = jnp.ones((1, 3)), jnp.array([t])
    total = lambda output, x_t: convert(schedule, output, x_t, t, source=source, target=to).sum()  # noqa: E731
    return jax.grad(total, (0, 1))(ones, ones)


@pytest.mark.parametrize("source", ["eps", "score"])
@pytest.mark.parametrize("name", ["zero terminal", "jsd"])
def test_without_signal_x_0_comes_back_as_zero(name, source):
    output, t = jnp.full((1, 3), 2.0), jnp.array([999])
    for to, expected in {"x0": 0.0, "v": 0.0, "mean": 0.0, "flow": 2.0 if source == "eps" else -2.0}.items():
        got = convert(SCHEDULES[name], output, jnp.ones((1, 3)), t, source=source, target=to)
        np.testing.assert_array_equal(got, np.full((1, 3), expected))
        assert all(np.isfinite(slope).all() for slope in _slopes(SCHEDULES[name], source, to, 999))


@pytest.mark.parametrize("source", ["x0", "v", "mean", "flow"])
def test_without_signal_the_other_predictions_still_tell_x_0(source):
    schedule, x_0, eps, t = SCHEDULES["zero terminal"], jnp.full((1, 3), 0.7), jnp.full((1, 3), -0.2), jnp.array([999])
    output = target(schedule, source, x_0, eps, t)
    np.testing.assert_allclose(convert(schedule, output, eps, t, source=source, target="x0"), x_0, rtol=1e-6)


@pytest.mark.parametrize(("source", "to"), [("x0", "eps"), ("x0", "score"), ("mean", "eps"), ("score", "eps")])
def test_without_noise_eps_and_score_come_back_as_zero(source, to):
    linear = SCHEDULES["linear"]
    clean = dataclasses.replace(
        linear,
        sqrt_alpha_bars=linear.sqrt_alpha_bars.at[0].set(1),
        sqrt_one_minus_alpha_bars=linear.sqrt_one_minus_alpha_bars.at[0].set(0),
    )
    x_t = jnp.full((1, 3), 0.7)
    got = convert(clean, x_t, x_t, jnp.array([0]), source=source, target=to)
    np.testing.assert_array_equal(got, np.zeros((1, 3)))
    assert all(np.isfinite(slope).all() for slope in _slopes(clean, source, to, 0))
    said = target(clean, "score", x_t, jnp.ones((1, 3)), jnp.array([0]))
    np.testing.assert_array_equal(said, np.zeros((1, 3)))


@pytest.mark.parametrize("half", [0.0, 0.5])
def test_a_float_time_is_read_between_the_steps(half):
    linear = SCHEDULES["linear"]
    t = jnp.float32(T[1:3]) + half
    log_snr = np.interp(np.asarray(t, np.float64), np.arange(1000), np.asarray(linear.log_snr, np.float64))
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(-sign * log_snr)))[:, None] for sign in (1, -1))
    got = target(linear, "v", jnp.float32(X_0[:2]), jnp.float32(EPS[:2]), t)
    np.testing.assert_allclose(got, alpha * EPS[:2] - sigma * X_0[:2], rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(("source", "to"), [("eps", "x0"), ("v", "score"), ("flow", "mean")])
def test_jit_vmap_and_grad_pass_through_convert(source, to):
    linear, output, x_t = SCHEDULES["linear"], jnp.float32(EPS), jnp.float32(X_0)
    direct = convert(linear, output, x_t, T, source=source, target=to)

    @jax.jit
    @jax.vmap
    def one(output, x_t, t):
        return convert(linear, output[None], x_t[None], t[None], source=source, target=to)[0]

    np.testing.assert_allclose(one(output, x_t, jnp.asarray(T)), direct, rtol=1e-5, atol=1e-6)
    truth = Truth(linear)
    slope = jax.grad(lambda y: convert(linear, y, x_t, T, source=source, target=to).sum())(output)
    expected = np.broadcast_to(truth.say(*truth.slopes(source), 0)[to], EPS.shape)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_unknown_predictions_get_the_nearest_good_name():
    x, t, linear = jnp.zeros((1, 3)), jnp.array([0]), SCHEDULES["linear"]
    with pytest.raises(ValueError, match=r"source: there is no 'epss', did you mean 'eps'\?.*choose from eps, x0, v"):
        convert(linear, x, x, t, source="epss", target="x0")
    with pytest.raises(ValueError, match=r"target: there is no 'flows', did you mean 'flow'\?"):
        convert(linear, x, x, t, source="eps", target="flows")
    with pytest.raises(ValueError, match=r"prediction: there is no 'scores', did you mean 'score'\?"):
        target(linear, "scores", x, x, t)
    with pytest.raises(TypeError, match=r"source must be str.*, got None"):
        convert(linear, x, x, t, source=None, target="x0")
