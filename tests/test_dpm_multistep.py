"""DPM-Solver over several steps and its SDE: order, another library's numbers, moments, and the ends of the way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded
import solvers
from scipy.stats import norm
from worlds import GAUSSIAN, MIXTURE

from ddpm_jax.diffusion import processes, spacings
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.sampling import Answer, dpm_multistep
from ddpm_jax.sampling.dpm_multistep import (
    dpm_solver_2m,
    dpm_solver_3m,
    dpm_solver_pp_2m,
    dpm_solver_pp_3m,
    dpm_solver_pp_sde,
)

TWO, THREE, SDE = dpm_solver_pp_2m(), dpm_solver_pp_3m(exact=False), dpm_solver_pp_sde()
ONE = dpm_solver_pp_sde(order=1, eta=0.0)
RECORDED = {
    "dpmpp_1m": ONE,
    "dpmpp_2m": TWO,
    "dpmpp_2m_leading": TWO,
    "dpmpp_2m_trailing": TWO,
    "dpmpp_2m_karras": TWO,
    "dpmpp_2m_lu": TWO,
    "dpmpp_2m_20": TWO,
    "dpmpp_2m_cosine": TWO,
    "dpmpp_2m_zero_snr": TWO,
    "dpmpp_2m_full_order": dpm_solver_pp_2m(lower_final=False),
    "dpmpp_2m_heun": dpm_solver_pp_2m(exact=True),
    "dpmpp_3m": THREE,
    "dpmpp_3m_lu": THREE,
    "dpmpp_3m_full_order": dpm_solver_pp_3m(exact=False, lower_final=False),
    "dpm_1m": ONE,
    "dpm_2m": dpm_solver_2m(),
    "dpm_2m_heun": dpm_solver_2m(exact=True),
    "dpm_3m": dpm_solver_3m(exact=False),
    "edm_dpmpp_1m": ONE,
    "edm_dpmpp_2m": TWO,
    "edm_dpmpp_3m": THREE,
}
WITH_NOISE = {
    "sde_dpmpp_1m": dpm_solver_pp_sde(order=1),
    "sde_dpmpp_2m": SDE,
    "sde_dpmpp_2m_heun": dpm_solver_pp_sde(exact=True),
    "edm_sde_dpmpp_2m": SDE,
}
ORDERS = {
    "++ 2M": (2, TWO, True),
    "++ 2M exact": (2, RECORDED["dpmpp_2m_heun"], True),
    "++ 3M": (3, dpm_solver_pp_3m(), True),
    "2M": (2, RECORDED["dpm_2m"], False),
    "2M exact": (2, RECORDED["dpm_2m_heun"], False),
    "3M": (3, dpm_solver_3m(), False),
}
VP = processes.build("vp")


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_convergence_is_the_published_one(name, float64):
    """With exact values for the steps before the first full one. Steps are even on two processes, grow on a third."""
    order, sampler, data = ORDERS[name]
    for process, bend in {"vp": 0.0, "ve": 0.0, "flow": 1.1}.items():
        got = solvers.order(sampler, process, bend=bend, exact_steps=order - 1, remembers=solvers.values(data))
        assert got == pytest.approx(order, abs=0.25), process


def test_a_first_step_of_first_order_leaves_order_two(float64):
    """Its error falls with the square of its length: in the end that is what is left of third order, but of second
    order nothing is lost."""
    assert solvers.order(TWO, "ve") == pytest.approx(2, abs=0.1)
    assert solvers.order(ORDERS["++ 3M"][1], "ve") == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("sampler", [THREE, RECORDED["dpm_3m"]])
def test_the_published_third_order_step_is_of_second_order(sampler, float64):
    """Half of the parabola's last term is missing, whatever came before."""
    remembers = solvers.values(sampler is THREE)
    got = solvers.order(sampler, "vp", exact_steps=2, remembers=remembers)
    assert got == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("name", RECORDED)
def test_the_path_is_the_recorded_one(name, float64):
    ours, theirs = solvers.recorded_path(name, RECORDED[name])
    assert len(ours) == recorded.CASES[name]["steps"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", WITH_NOISE)
def test_the_path_with_the_recorded_noise_is_the_recorded_one(name, float64, monkeypatch):
    table = jnp.asarray(recorded.ARRAYS["noise"])
    monkeypatch.setattr(dpm_multistep, "noise", lambda state: table[state.count])
    # Traced by itself: nothing that was compiled with its own noise may be found again, nor this later.
    monkeypatch.setattr(solvers, "_run", jax.jit(functools.partial(solvers._run.__wrapped__), static_argnums=(0, 1)))
    ours, theirs = solvers.recorded_path(name, WITH_NOISE[name])
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sampler", [TWO, dpm_solver_pp_3m(), dpm_solver_2m(), dpm_solver_3m(), SDE])
def test_it_starts_without_signal_and_ends_at_the_prediction_of_the_image(sampler, float64):
    """Along a schedule with zero terminal SNR; the last step is of first order and adds no noise."""
    path, predicted = solvers.from_no_signal(sampler)
    assert np.isfinite(path).all()
    np.testing.assert_allclose(path[-1], predicted, atol=1e-14)


def draw(sampler, times, world, process=VP, num=65536):
    """x at the end of the way [num], float32."""
    levels = visit(process, times)
    x_T = levels.start_std * jax.random.normal(jax.random.key(7), (256, num // 256))

    def model(x, level):
        x_0 = world.x_0_given(x, level.alpha, level.sigma)
        return Answer(x_0=x_0, eps=(x - level.alpha * x_0) / level.sigma)

    return solvers.run(sampler, levels, solvers.start(sampler, x_T), model=model)[-1].ravel()


def exact_moments(order, eta, times, process=VP):
    """Mean and std at the end for GAUSSIAN, where x_0 is affine in x: those of (x, the last two x_0) through all steps.

    A step integrates the polynomial through the values that it knows by a rule of 20 nodes; with two values, the
    paper's approximation (order 2) or the line (order 3).
    """
    mean, cov = np.zeros(3), np.diag([1.0, 0.0, 0.0])
    half = 0.5 * process.log_snr(np, times[:-1])
    nodes, weight = np.polynomial.legendre.leggauss(20)
    for i, t in enumerate(times[:-1]):
        alpha, sigma = (float(np.exp(f(np, t))) for f in (process.log_alpha, process.log_sigma))
        slope = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
        ask = np.array([[1, 0, 0], [slope, 0, 0], [0, 1, 0], [0, 0, 1]])  # x, x_0 now, x_0 before and before that
        mean, cov = ask @ mean + np.array([0, (1 - slope * alpha) * 0.3, 0, 0]), ask @ cov @ ask.T
        if i == len(times) - 2:
            return mean[1], np.sqrt(cov[1, 1])
        after = times[i + 1]
        alpha_t, sigma_t = (float(np.exp(f(np, after))) for f in (process.log_alpha, process.log_sigma))
        h, known = half[i + 1] - half[i], min(order, i + 1, len(times) - 1 - i if len(times) < 16 else 3)
        places = (half[i : i - known : -1] if i >= known else half[i::-1]) - half[i]
        if known == 2 and order == 2:
            kernel = alpha_t * -np.expm1(-(1 + eta) * h)
            by = kernel * np.array([1 - h / (2 * places[1]), h / (2 * places[1])])
        else:
            u = h * (1 + nodes) / 2
            kernel = weight * h / 2 * alpha_t * (1 + eta) * np.exp(-(1 + eta) * (h - u))
            others = [[b for b in places[:known] if b != a] for a in places[:known]]
            by = np.array(
                [
                    np.sum(kernel * np.prod([(u - b) / (a - b) for b in rest] or [np.ones(20)], axis=0))
                    for a, rest in zip(places, others, strict=False)
                ]
            )
        row = np.zeros(4)
        row[0], row[1 : 1 + known] = sigma_t / sigma * np.exp(-eta * h), by
        go = np.stack([row, [0, 1, 0, 0], [0, 0, 1, 0]])
        mean, cov = go @ mean, go @ cov @ go.T
        cov[0, 0] += sigma_t**2 * -np.expm1(-2 * eta * h)


@pytest.mark.parametrize(("order", "eta", "steps"), [(1, 1.0, 10), (2, 0.5, 10), (3, 1.0, 20)])
def test_samples_have_the_exact_moments_of_the_steps(order, eta, steps):
    """Within four standard errors; with ten steps the world's own std is 0.01 to 0.1 away."""
    times = spacings.build(VP, "log_snr", (steps,))
    mean, std = exact_moments(order, eta, times)
    x = draw(dpm_solver_pp_sde(order=order, eta=eta), times, GAUSSIAN)
    assert x.mean() == pytest.approx(mean, abs=4 * std / np.sqrt(x.size))
    assert x.std() == pytest.approx(std, abs=4 * std / np.sqrt(2 * x.size))


def test_many_noisy_steps_draw_the_world():
    """Mean, std and the share of each component, within four standard errors."""
    x = draw(SDE, spacings.build(VP, "log_snr", (80,)), MIXTURE)
    assert x.mean() == pytest.approx(MIXTURE.mean(), abs=4 * MIXTURE.std() / np.sqrt(x.size))
    assert x.std() == pytest.approx(MIXTURE.std(), abs=4 * MIXTURE.std() / np.sqrt(2 * x.size))
    right = sum(w * norm.sf(0.05, m, s) for w, m, s in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.stds, strict=True))
    assert (x > 0.05).mean() == pytest.approx(right, abs=4 * np.sqrt(right * (1 - right) / x.size))


@pytest.mark.parametrize(("order", "eta"), [(2, 0.5), (3, 2.0)])
def test_a_point_has_its_exact_marginals_after_any_steps_and_is_reached_by_the_last(order, eta):
    """x_0 is constant, so that nothing is approximated: mean alpha x_0 and std sigma wherever one stops."""
    sampler = dpm_solver_pp_sde(order=order, eta=eta)

    def point(x, level):
        return Answer(x_0=0 * x + 0.7, eps=(x - 0.7 * level.alpha) / level.sigma)

    levels = visit(VP, [0.9, 0.6, 0.3, 0.2, 0.0])
    first, last = levels.read(0), levels.read(3)
    x = first.alpha * 0.7 + first.sigma * jax.random.normal(jax.random.key(4), (256, 256))
    *_, x, image = solvers.run(sampler, levels, solvers.start(sampler, x), model=point)
    np.testing.assert_allclose(image, 0.7, atol=1e-6)
    assert x.mean() == pytest.approx(0.7 * float(last.alpha), abs=4 * float(last.sigma) / np.sqrt(x.size))
    assert x.std() == pytest.approx(float(last.sigma), abs=4 * float(last.sigma) / np.sqrt(2 * x.size))


def test_a_setting_that_cannot_be_is_named():
    with pytest.raises(ValueError, match="eta must be a number of at least 0, got -1"):
        dpm_solver_pp_sde(eta=-1.0)
    with pytest.raises(ValueError, match="order must be a whole number from 1 to 3"):
        dpm_solver_pp_sde(order=2.5)
    assert dpm_solver_pp_sde(order=2.0) is SDE
