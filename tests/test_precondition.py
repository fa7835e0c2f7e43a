"""EDM's and consistency's preconditioning against their closed forms, in float64 where the process is continuous."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import processes, schedules, weightings
from ddpm_jax.diffusion.parameterization import convert
from ddpm_jax.sampling import precondition
from ddpm_jax.sampling.precondition import consistency, edm, of_v, target, unwrap, wrap

PROCESSES = {name: processes.build(name) for name in ("vp", "edm", "flow")}
COSINE = schedules.cosine(1000)
X = jnp.linspace(-2, 2, 12).reshape(3, 2, 2, 1)


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def odd(x, time):
    """A network that is nothing in particular."""
    return jnp.sin(3 * x) + jnp.cos(time).reshape(-1, 1, 1, 1)


def places(process):
    """Times of a process as a network is told them, and its alpha and sigma there."""
    t = np.linspace(process.end, process.start, 5)[:-1]
    return process.time(np, t), np.exp(process.log_alpha(np, t)), np.exp(process.log_sigma(np, t))


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("name", PROCESSES)
def test_input_and_target_of_the_network_have_unit_variance(name, sigma_data, float64):
    """Of data of that deviation: both are linear in x_0 and eps, so that their variances are sums of two squares."""
    process, setting = PROCESSES[name], edm(sigma_data)
    for time, alpha, sigma in zip(*places(process), strict=True):
        size = setting.at(alpha, sigma).size
        assert (alpha**2 * sigma_data**2 + sigma**2) / size**2 == pytest.approx(1, abs=1e-12)
        x_0, x_t = jnp.array([1.0, 0.0]).reshape(2, 1), jnp.array([alpha, sigma]).reshape(2, 1)
        of_x_0, of_eps = target(process, setting, x_0, x_t, jnp.full(2, time)).ravel()
        assert sigma_data**2 * of_x_0**2 + of_eps**2 == pytest.approx(1, abs=1e-9)


def test_the_coefficients_are_those_of_the_paper():
    """Karras et al. 2022, Table 1, at sigma = sigma_data = 1/2."""
    at = edm().at(jnp.array(1.0), jnp.array(0.5))
    np.testing.assert_allclose([at.skip, at.out, 1 / at.size], [0.5, 0.5 / np.sqrt(2), np.sqrt(2)], rtol=1e-6)


@pytest.mark.parametrize("setting", [edm(), consistency(0.001, 0.7)], ids=["edm", "consistency"])
@pytest.mark.parametrize("name", PROCESSES)
def test_wrapped_and_unwrapped_a_network_is_itself(name, setting, float64):
    process = PROCESSES[name]
    time = jnp.asarray(places(process)[0][1:])
    there = unwrap(wrap(odd, process, setting), process, setting)
    np.testing.assert_allclose(there(X.astype(float), time), odd(X.astype(float), time), atol=1e-9)
    back = wrap(unwrap(odd, process, setting), process, setting)
    np.testing.assert_allclose(back(X.astype(float), time), odd(X.astype(float), time), atol=1e-9)


@pytest.mark.parametrize("along", [*PROCESSES.values(), COSINE], ids=[*PROCESSES, "schedule"])
def test_a_network_that_says_its_target_says_the_image(along):
    setting = consistency(1e-3, 0.6)
    time = COSINE.times[jnp.array([1, 400, 999])] if along is COSINE else jnp.asarray(places(along)[0][1:])
    x_t = 0.7 * X + 0.3
    network = jax.tree_util.Partial(lambda x, time: target(along, setting, X, x_t, time))
    np.testing.assert_allclose(wrap(network, along, setting)(x_t, time), X, atol=1e-4)


def test_at_sigma_min_a_consistency_function_is_the_image_whatever_the_network_says(float64):
    setting = consistency(0.002)
    at = setting.at(jnp.array(1.0), jnp.array(0.002))
    assert (float(at.skip), float(at.out)) == (1.0, 0.0)
    x, time = X.astype(float), jnp.full(3, 0.25 * np.log(0.002))
    np.testing.assert_allclose(
        wrap(lambda x, time: 1e3 * odd(x, time), PROCESSES["edm"], setting)(x, time), x, rtol=1e-11
    )


def test_on_a_schedule_it_is_the_image_over_alpha_there():
    least = float(np.exp(-0.5 * processes.of_schedule(COSINE).log_snr(np, 0.0)))
    f = wrap(odd, COSINE, consistency(least, 1.0))
    np.testing.assert_allclose(f(X, jnp.zeros(3)), X / COSINE.sqrt_alpha_bars[0], atol=1e-6)
    assert not np.allclose(f(X, jnp.full(3, 10.0)), X, atol=1e-3)


@pytest.mark.parametrize("schedule", [COSINE, schedules.zero_terminal_snr(COSINE)], ids=["cosine", "zero terminal"])
def test_a_network_of_v_is_preconditioned_already(schedule):
    """With sigma_data = 1 and F = -v, down to where there is no signal at all."""
    t = jnp.array([0, 500, 999])
    x_0 = convert(schedule, odd(X, schedule.times[t]), X, t, source="v", target="x0")
    np.testing.assert_allclose(wrap(of_v(odd), schedule, edm(1.0))(X, schedule.times[t]), x_0, atol=1e-5)


def test_where_a_process_has_no_signal_the_network_says_the_image_in_deviations():
    """At the start of flow alpha is 0 and sigma / alpha has no end: skip is 0, out sigma_data and size 1."""
    for setting in (edm(0.7), consistency(0.002, 0.7)):
        time = jnp.full(3, 1000.0)
        np.testing.assert_allclose(wrap(odd, PROCESSES["flow"], setting)(X, time), 0.7 * odd(X, time), rtol=1e-6)
        np.testing.assert_allclose(target(PROCESSES["flow"], setting, X, 3 * X, time), X / 0.7, rtol=1e-6)


def test_a_schedule_is_given_itself_for_its_process_tells_other_times():
    with pytest.raises(ValueError, match="along must be the schedule itself"):
        wrap(odd, processes.of_schedule(schedules.linear(50)), edm())(X, jnp.zeros(3))


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_the_weighting_of_edm_is_the_plain_squared_error_of_the_network(sigma_data):
    """k on x_0 times the square of out is 1 (Karras et al. 2022, Eq. 8)."""
    log_snr = jnp.linspace(-8, 8, 9)
    k = weightings.in_space(lambda log_snr: weightings.WEIGHTINGS["edm"](log_snr, sigma_data=sigma_data), "x0", log_snr)
    out = edm(sigma_data).at(jnp.ones(9), jnp.exp(-log_snr / 2)).out
    np.testing.assert_allclose(k * out**2, np.ones(9), rtol=1e-5)


def test_wrapped_alike_networks_share_a_compilation():
    """A loop finds its compilation again by the function in the pytree."""
    a, b = (wrap(odd, COSINE, edm(0.5)) for _ in range(2))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.structure(a) != jax.tree.structure(wrap(odd, COSINE, edm(0.6)))


@pytest.mark.parametrize(("build", "value"), [(edm, 0.0), (edm, -1.0), (consistency, -0.1)])
def test_deviations_that_can_not_be_are_refused(build, value):
    with pytest.raises(ValueError, match="sigma_data must be above 0 and sigma_min at least 0"):
        build(value)
    assert isinstance(edm(), precondition.Preconditioning)
