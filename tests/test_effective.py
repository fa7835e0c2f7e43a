"""What an objective counts for each unit of log-SNR, schedule and draw of t taken in: Kingma & Gao 2023's w(lambda)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules, timesteps
from ddpm_jax.diffusion.schedules import from_log_snr, log_snr_linear
from ddpm_jax.diffusion.weighting_zoo import speeds
from ddpm_jax.diffusion.weightings import WEIGHTINGS, bind, effective, in_space


def straight(u):
    """Log-SNR of flow matching's path, alpha = 1 - u and sigma = u."""
    with np.errstate(divide="ignore"):
        return 2 * (np.log1p(-u) - np.log(u))


def arc(u):
    """Log-SNR of the cosine schedule without its offset, alpha = cos(u pi / 2)."""
    return np.where(u < 1, -2 * np.log(np.tan(np.minimum(u, 1 - 1e-12) * np.pi / 2)), -np.inf)


LINEAR, COSINE, JSD, FLOW = schedules.linear(), schedules.cosine(), schedules.jsd(), from_log_snr(straight, 1000)
ARC = from_log_snr(arc, 1000)
EVEN = log_snr_linear(1000, 13.3, -8.0)
ZERO = schedules.zero_terminal_snr(LINEAR)
EDM = timesteps.log_normal(uniform=1e-6)
NUM = 50_000


def k_of(name, **parameters):
    return lambda log_snr: WEIGHTINGS[name](log_snr, **parameters)


@pytest.mark.parametrize(
    ("schedule", "name", "draw_t", "correct"),
    [
        (LINEAR, "min_snr", timesteps.uniform(), True),
        (COSINE, "elbo", timesteps.uniform_antithetic(), True),
        (JSD, "p2", timesteps.in_range(0.2, 0.6), True),
        (EVEN, "edm", EDM, False),
        (LINEAR, "sigmoid", timesteps.logit_normal(), False),
        (COSINE, "vlb", timesteps.adaptive(), True),
    ],
)
def test_it_integrates_to_what_drawn_t_give(schedule, name, draw_t, correct):
    """sum of w f over what each step stands for is E_t[k f], f an error that falls with log-SNR."""
    found = effective(schedule, WEIGHTINGS[name], draw_t, correct_draw=correct)
    k = found.w * found.spans / (1 / 1000 if correct else found.density * found.spans)
    history = draw_t.init(1000)
    t, importance = jax.jit(lambda key: timesteps.draw(key, draw_t, schedule, NUM, history))(jax.random.key(0))
    f = np.asarray(jax.nn.sigmoid(-schedule.log_snr / 2), np.float64)
    direct = bind(WEIGHTINGS[name], schedule)(schedule.log_snr)
    np.testing.assert_allclose(k, direct, rtol=1e-4)
    drawn = np.asarray(direct, np.float64)[t] * f[t] * (np.asarray(importance, np.float64) if correct else 1)
    wanted = np.sum(np.asarray(found.w * found.spans, np.float64) * f)
    assert abs(drawn.mean() - wanted) < 4 * drawn.std() / np.sqrt(NUM)
    assert np.sum(found.density * found.spans) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, EVEN], ids=["linear", "cosine", "even"])
def test_the_trapezoidal_rule_over_log_snr_gives_the_same(schedule):
    found = effective(schedule, k_of("min_snr"))
    area = -np.trapezoid(np.asarray(found.w, np.float64), np.asarray(found.log_snr, np.float64))
    assert area == pytest.approx(float(WEIGHTINGS["min_snr"](schedule.log_snr).mean()), rel=3e-3)


def test_speeds_are_those_of_float64_and_finite_without_signal():
    log_snr = np.log(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    log_snr -= np.log(-np.expm1(log_snr))
    np.testing.assert_allclose(speeds(LINEAR), -1000 * np.gradient(log_snr), rtol=1e-6)
    for schedule in (JSD, ZERO, FLOW, schedules.jsd(2), schedules.constant(1)):
        found = np.asarray(speeds(schedule))
        assert np.isfinite(found).all()
        assert (found > 0).all()
        assert found[-1] == found[-2:][0]


# Kingma & Gao 2023, Table 1: schedule, weighting, draw, w(lambda) up to a constant, and whether it is monotone.
TABLE = {
    "iDDPM": (ARC, k_of("simple"), None, lambda x: 1 / np.cosh(x / 2), False),
    "EDM": (EVEN, k_of("edm"), EDM, lambda x: np.exp(-(((x - 2.4) / 2.4) ** 2) / 2) * (np.exp(-x) + 0.25), False),
    "v, cosine": (ARC, k_of("v_mse"), None, lambda x: np.exp(-x / 2), True),
    "flow matching": (FLOW, k_of("flow_mse"), None, lambda x: np.exp(-x / 2), True),
    "InDI": (FLOW, k_of("x0_mse"), None, lambda x: np.exp(-x) / np.cosh(x / 4) ** 2, True),
    "P2": (ARC, k_of("p2"), None, lambda x: 1 / np.cosh(x / 2) / (1 + np.exp(x)), False),
    "min-SNR": (ARC, k_of("min_snr"), None, lambda x: np.minimum(1, 5 * np.exp(-x)) / np.cosh(x / 2), False),
}


@pytest.mark.parametrize("row", TABLE)
def test_published_objectives_have_the_w_and_the_verdict_of_kingma_and_gao(row):
    schedule, k, draw_t, formula, monotone = TABLE[row]
    found = effective(schedule, k, draw_t, correct_draw=draw_t is None)
    log_snr = np.asarray(found.log_snr, np.float64)
    inside = abs(log_snr) < 7
    ratio = np.asarray(found.w, np.float64)[inside] / formula(log_snr[inside])
    np.testing.assert_allclose(ratio / np.median(ratio), np.ones_like(ratio), rtol=5e-3)
    assert found.monotone is monotone


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, JSD, ZERO, FLOW, EVEN])
@pytest.mark.parametrize(
    ("name", "monotone"),
    [
        ("elbo", True),
        ("likelihood", True),
        ("sigmoid", True),
        ("monotone_edm", True),
        ("cosmap", True),
        ("log_normal", False),
        ("logit_normal", False),
    ],
)
def test_a_weight_of_log_snr_is_the_same_under_every_schedule(schedule, name, monotone):
    found = effective(schedule, WEIGHTINGS[name])
    np.testing.assert_allclose(found.w, WEIGHTINGS[name](schedule.log_snr), rtol=1e-5)
    assert found.monotone is monotone


def test_a_corrected_draw_changes_the_density_and_not_the_weight():
    plain, drawn = effective(LINEAR, k_of("p2")), effective(LINEAR, k_of("p2"), EDM)
    np.testing.assert_array_equal(plain.w, drawn.w)
    assert float(jnp.abs(plain.density - drawn.density).max()) > 0.01
    uncorrected = effective(LINEAR, k_of("p2"), EDM, correct_draw=False)
    np.testing.assert_allclose(uncorrected.w, WEIGHTINGS["p2"](LINEAR.log_snr) * drawn.density, rtol=1e-5)


def test_a_draw_that_learns_is_read_with_its_history():
    """The loss was seen at one noise level only: the density is highest there."""
    how, seen = timesteps.adaptive(bins=10.0), {"sum": jnp.zeros(10).at[3].set(1.0), "mass": jnp.ones(10)}
    density = effective(LINEAR, k_of("simple"), how, history=seen).density
    place = (LINEAR.log_snr[0] - LINEAR.log_snr) / (LINEAR.log_snr[0] - LINEAR.log_snr[-1])
    assert 0.3 <= float(place[jnp.argmax(density)]) <= 0.4


@pytest.mark.parametrize("num_steps", [50, 4000])
def test_verdicts_hold_for_few_steps_and_for_many(num_steps):
    cosine, even = schedules.cosine(num_steps), log_snr_linear(num_steps)
    assert effective(cosine, k_of("v_mse")).monotone
    assert not effective(cosine, k_of("simple")).monotone
    assert effective(cosine, WEIGHTINGS["elbo"]).monotone
    assert effective(even, k_of("min_snr")).monotone
    assert not effective(even, lambda log_snr: in_space(jnp.exp, "score", log_snr)).monotone
