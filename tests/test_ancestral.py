"""One step back of each sampler against the formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.forward import q_posterior, q_sample
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.sampling import Answer, ddim, ddpm
from ddpm_jax.sampling.sampler import noise, start

LINEAR = schedules.linear()
SCHEDULES = {
    "linear": LINEAR,
    "cosine": schedules.cosine(1000),
    "zero terminal": schedules.zero_terminal_snr(LINEAR),
    "respaced": schedules.respace(LINEAR, range(0, 1000, 25)),
}
X_0, EPS = jax.random.normal(jax.random.key(0), (2, 2, 5))
KEYS = jax.random.split(jax.random.key(1), 2)


def step_from(sampler, schedule, t, x_0=X_0, eps=EPS):
    """The step from x_t = q_sample(x_0, eps) to t - 1, x_t, and the noise that the step drew."""
    x_t = q_sample(schedule, x_0, jnp.full(len(x_0), t), eps)
    state = sampler.init(KEYS[: len(x_0)], x_t)
    place = schedule.num_steps - 1 - t
    moved, _ = sampler.step(state, lambda x, level: Answer(x_0=x_0, eps=eps), visit(schedule), (place, place + 1))
    return moved.x, x_t, noise(start(state.keys, x_t))


def times(schedule):
    return [0, 1, schedule.num_steps // 2, schedule.num_steps - 1]


def read(table, t):
    return float(table[t])


@pytest.mark.parametrize("variance", ["large", "small"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddpm_draws_from_the_posterior_with_the_variance_asked_for(name, variance):
    schedule = SCHEDULES[name]
    for t in times(schedule):
        got, x_t, z = step_from(ddpm(variance=variance), schedule, t)
        posterior = q_posterior(schedule, X_0, x_t, jnp.full(2, t))
        spread = {"large": schedule.betas, "small": schedule.posterior_variance}[variance]
        deviation = np.sqrt(read(spread, t)) if t > 0 else 0.0
        np.testing.assert_allclose(got, posterior.mean + deviation * z, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_is_equation_12(name, eta):
    schedule = SCHEDULES[name]
    for t in times(schedule):
        got, _, z = step_from(ddim(eta=eta), schedule, t)
        alpha_bar, before = read(schedule.alpha_bars, t), read(schedule.alpha_bars_prev, t)
        noise = read(schedule.sqrt_one_minus_alpha_bars, t) ** 2
        noise_before = read(schedule.sqrt_one_minus_alpha_bars, t - 1) ** 2 if t else 0.0
        sigma = eta * np.sqrt(noise_before / noise * (1 - alpha_bar / before))
        towards = np.sqrt(max(noise_before - sigma**2, 0.0))
        np.testing.assert_allclose(got, np.sqrt(before) * X_0 + towards * EPS + sigma * z, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_with_eta_one_is_ddpm_with_the_small_variance_step_by_step(name):
    schedule = SCHEDULES[name]
    for t in times(schedule):
        np.testing.assert_allclose(
            step_from(ddim(eta=1.0), schedule, t)[0],
            step_from(ddpm(variance="small"), schedule, t)[0],
            rtol=1e-5,
            atol=3e-6,
        )


@pytest.mark.parametrize("sampler", [ddpm(), ddpm(variance="small"), ddim(), ddim(eta=1.0)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_last_step_adds_no_noise_and_lands_on_x_0(name, sampler):
    np.testing.assert_array_equal(step_from(sampler, SCHEDULES[name], 0)[0], X_0)


def test_deterministic_ddim_stays_on_the_line_of_its_noise():
    """x_0 and eps fixed: the step from q_sample at t is q_sample at t - 1."""
    for t in (1, 500, 999):
        got, *_ = step_from(ddim(), LINEAR, t)
        np.testing.assert_allclose(got, q_sample(LINEAR, X_0, jnp.full(2, t - 1), EPS), rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("sampler", [ddpm(variance="small"), ddim(), ddim(eta=0.5)])
def test_steps_keep_the_marginal_when_x_0_and_eps_are_true(sampler):
    """But for ddpm's large variance, every step takes q(x_t | x_0) to q(x_{t-1} | x_0): mean and variance add up."""
    one, zero = jnp.ones((2, 1)), jnp.zeros((2, 1))
    for t in (1, 500, 999):
        before = jnp.array([t - 1, t - 1])
        base, _, z = step_from(sampler, LINEAR, t, zero, zero)
        of_z = float(base[0, 0] / z[0, 0])
        of_x = float((step_from(sampler, LINEAR, t, one, zero)[0] - base)[0, 0])
        of_eps = float((step_from(sampler, LINEAR, t, zero, one)[0] - base)[0, 0])
        assert of_x == pytest.approx(float(q_sample(LINEAR, one, before, zero)[0, 0]), rel=1e-5)
        wanted = float(q_sample(LINEAR, zero, before, one)[0, 0]) ** 2
        assert of_eps**2 + of_z**2 == pytest.approx(wanted, rel=1e-4)


def test_the_same_settings_give_the_same_sampler():
    """The loop is compiled for a sampler and found again by it."""
    assert ddpm() is ddpm(variance="large")
    assert ddim(eta=1) is ddim(eta=1.0)
    assert ddim(eta=0.0) is not ddim(eta=1.0)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"variance: there is no 'larg', did you mean 'large'\?"):
        ddpm(variance="larg")
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"eta must lie in \[0, 1\], got {eta}"):
            ddim(eta=eta)
