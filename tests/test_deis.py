"""DEIS: order, its integrals, another library's numbers, and the ends of the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded
import solvers
from scipy.integrate import quad

from ddpm_jax.diffusion import processes
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.sampling import Answer
from ddpm_jax.sampling.deis import deis
from ddpm_jax.sampling.sampler import first_order

SETTINGS = [(2, False), (3, False), (4, False), (3, True)]


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(("order", "log_rho"), SETTINGS)
def test_the_order_of_convergence_is_the_published_one(order, log_rho, float64):
    """With exact values for the steps before the first full one."""
    for process, bend in {"vp": 0.0, "ve": 0.0, "flow": 1.1}.items():
        sampler, counts = deis(order=order, log_rho=log_rho), solvers.MORE_STEPS if order == 4 else solvers.STEPS
        remembers = solvers.values(False)
        got = solvers.order(sampler, process, bend=bend, exact_steps=order - 1, remembers=remembers, counts=counts)
        assert got == pytest.approx(order, abs=0.25), process


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_path_is_the_recorded_one(order, float64):
    """The recorded polynomial is in log rho."""
    ours, theirs = solvers.recorded_path(f"deis_{order}", deis(order=order, log_rho=True))
    assert len(ours) == recorded.CASES[f"deis_{order}"]["steps"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_an_eps_that_is_a_parabola_in_t_is_integrated_exactly(name, float64):
    """d(x / alpha) = eps d(sigma / alpha), by SciPy's quadrature, once three values are known."""
    process = processes.build(name)
    parabola = lambda t: 1 - 2 * t + 3 * t**2  # noqa: E731

    def model(x, level):
        return Answer(x_0=(x - level.sigma * parabola(level.t)) / level.alpha, eps=parabola(level.t) + 0 * x)

    times = np.array([0.9, 0.8, 0.65, 0.5, 0.4, 0.2])
    sampler = deis(order=3, lower_final=False)
    levels = visit(process, times, stages=sampler.stages)
    path = solvers.run(sampler, levels, solvers.start(sampler, np.zeros((1, 1))), model=model)
    path = path[:, 0, 0]
    rho = lambda t: float(np.exp(-0.5 * process.log_snr(np, t)))  # noqa: E731
    alpha = np.asarray(levels.visited.alpha)
    for i in range(2, 5):
        # By parts, int eps d rho = [eps rho] - int rho d eps: no derivative of rho is asked for.
        a, b = times[i], times[i + 1]
        inner = quad(lambda t: rho(t) * (-2 + 6 * t), a, b, epsabs=1e-13)[0]
        wanted = path[i - 1] / alpha[i] + parabola(b) * rho(b) - parabola(a) * rho(a) - inner
        assert path[i] / alpha[i + 1] == pytest.approx(wanted, rel=1e-9)


def test_where_t_is_log_rho_both_polynomials_are_one(float64):
    """The variance exploding process's t is straight in log sigma."""
    process = processes.build("ve")
    times = solvers.times_of(process, 16, 0.7)
    ends = []
    for log_rho in (False, True):
        sampler = deis(order=3, log_rho=log_rho)
        start = solvers.start(sampler, solvers.exact("ve", times[0]))
        ends.append(solvers.run(sampler, solvers.levels_for(sampler, process, times), start)[-1])
    np.testing.assert_allclose(*ends, rtol=1e-12)


def test_order_one_is_ddim(float64):
    levels = visit(processes.build("vp"), [0.8, 0.5])
    start = solvers.start(deis(order=1), solvers.X)
    got = solvers.run(deis(order=1), levels, start)[0]
    wanted = first_order(recorded.model(jnp.asarray(solvers.X), levels.read(0)), levels.read(1))
    np.testing.assert_allclose(got, wanted, rtol=1e-14)


@pytest.mark.parametrize("log_rho", [False, True])
def test_it_starts_without_signal_and_ends_at_the_prediction_of_the_image(log_rho, float64):
    """Along a schedule with zero terminal SNR; the last step is of first order."""
    path, predicted = solvers.from_no_signal(deis(log_rho=log_rho))
    assert np.isfinite(path).all()
    np.testing.assert_allclose(path[-1], predicted, atol=1e-14)


def test_a_setting_that_cannot_be_is_named():
    with pytest.raises(ValueError, match="order must be a whole number from 1 to 4, got 0"):
        deis(order=0)
    assert deis(order=3.0, log_rho=0.0) is deis()
