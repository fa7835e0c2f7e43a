"""DPM-Solver and DPM-Solver++ within a step: order, another library's numbers, and the ends of the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import solvers
import worlds

from ddpm_jax.diffusion import processes, spacings
from ddpm_jax.sampling import sample
from ddpm_jax.sampling.dpm_solver import divided, dpm_solver, dpm_solver_pp_2s, dpm_solver_pp_3s, moments, phi, weights

SOLVERS = {
    "1": (1, dpm_solver(order=1)),
    "2": (2, dpm_solver(order=2)),
    "2 exact": (2, dpm_solver(order=2, exact=True)),
    "3": (3, dpm_solver(order=3)),
    "3 exact": (3, dpm_solver(order=3, exact=True)),
    "++ 2S": (2, dpm_solver_pp_2s()),
    "++ 2S exact": (2, dpm_solver_pp_2s(exact=True)),
    "++ 3S": (3, dpm_solver_pp_3s()),
    "++ 3S exact": (3, dpm_solver_pp_3s(exact=True)),
}
SECOND, THIRD = [1, 3, 5, 7, 9, 10], [2, 5, 8, 9]
"""The recorded calls that stand at the end of a step; the others are within one."""
RECORDED = {
    "dpm_1s": ("1", slice(None)),
    "dpmpp_1s": ("1", slice(None)),
    "dpm_2s": ("2", SECOND[:-1]),
    "dpmpp_2s": ("++ 2S", SECOND),
    "dpm_3s_heun": ("3 exact", THIRD[:-1]),
    "dpmpp_3s_heun": ("++ 3S exact", THIRD),
}


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_order_of_convergence_is_the_published_one(name, float64):
    """On two processes with even steps, on a third with steps that grow threefold on the way."""
    order, sampler = SOLVERS[name]
    for process, bend in {"vp": 0.0, "ve": 0.0, "flow": 1.1}.items():
        assert solvers.order(sampler, process, bend=bend) == pytest.approx(order, abs=0.1), process


@pytest.mark.parametrize("process", ["sub_vp", "edm"])
def test_the_order_is_the_same_along_other_processes(process, float64):
    for name in ("3", "++ 2S"):
        order, sampler = SOLVERS[name]
        assert solvers.order(sampler, process) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", RECORDED)
def test_the_path_is_the_recorded_one(name, float64):
    """Third order in the form that the authors' code calls taylor: the recorded other form isn't the paper's."""
    solver, calls = RECORDED[name]
    ours, theirs = solvers.recorded_path(name, SOLVERS[solver][1], calls)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_it_starts_without_signal_and_ends_at_the_prediction_of_the_image(name, float64):
    """Along a schedule with zero terminal SNR; the last step is of first order."""
    path, predicted = solvers.from_no_signal(SOLVERS[name][1])
    assert np.isfinite(path).all()
    np.testing.assert_allclose(path[-1], predicted, atol=1e-14)


def test_images_without_signal_at_the_start_come_from_a_network_that_predicts_v():
    """The straight line from alpha = 0 in 24 steps: images of the world, within four standard errors."""
    flow = processes.build("flow")
    times = spacings.build(flow, "trailing", (24,))
    denoise = worlds.denoiser(worlds.MIXTURE, flow, "v")
    options = {"shape": (64, 64, 1), "num": 8, "batch_size": 8, "prediction": "v", "clip": False, "times": times}
    images = sample(jax.random.key(0), denoise, flow, sampler=dpm_solver_pp_3s(), **options)
    mean, std = worlds.MIXTURE.mean(), worlds.MIXTURE.std()
    assert images.mean() == pytest.approx(mean, abs=4 * std / np.sqrt(images.size))
    assert images.std() == pytest.approx(std, abs=4 * std / np.sqrt(images.size))


@pytest.mark.parametrize("name", ["3", "++ 3S"])
def test_up_and_down_again_returns_to_where_it_was(name, float64):
    """Inversion: both ways follow one flow, each to its error."""
    sampler, process = SOLVERS[name][1], processes.build("vp")
    times = solvers.times_of(process, 128, 0.0)[::-1]
    start = solvers.exact("vp", times[0])
    up = solvers.run(sampler, solvers.levels_for(sampler, process, times), solvers.start(sampler, start))[-1]
    np.testing.assert_allclose(up, solvers.exact("vp", times[-1]), atol=1e-6)
    down = solvers.run(sampler, solvers.levels_for(sampler, process, times[::-1]), solvers.start(sampler, up))[-1]
    np.testing.assert_allclose(down, start, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 2e-6)])
def test_phi_is_its_integral_for_large_and_small_arguments(dtype, tolerance, float64):
    """phi_k(z) = int_0^1 e^(z (1 - r)) r^(k - 1) dr / (k - 1)!, by a rule of 60 nodes."""
    nodes, weight = np.polynomial.legendre.leggauss(60)
    r, factorial = (1 + nodes) / 2, np.array([1, 1, 2, 6])
    for z in (-20.0, -1.01, -0.99, -1e-3, -1e-9, 0.0, 1e-6, 0.5, 1.0, 3.0, 20.0):
        wanted = [np.sum(weight / 2 * np.exp(z * (1 - r)) * r**k) / factorial[k] for k in range(4)]
        np.testing.assert_allclose(phi(jnp.asarray(z, dtype), 4), wanted, rtol=tolerance, err_msg=str(z))


def test_newtons_form_integrates_the_parabola_through_three_values(float64):
    """1 - 2 r + 3 r^2 at uneven nodes, against e^(z (1 - r)) in closed form for z = 0 and by a rule for z = -2."""
    nodes, parabola = (0.0, 0.3, 1.0), lambda r: 1 - 2 * r + 3 * r**2
    points, weight = np.polynomial.legendre.leggauss(30)
    r = (1 + points) / 2
    for z in (0.0, -2.0):
        by = weights(nodes, moments(jnp.float64(z), 2))
        total = sum(w * d for w, d in zip(by, divided([jnp.float64(parabola(n)) for n in nodes], nodes), strict=True))
        assert total == pytest.approx(np.sum(weight / 2 * np.exp(z * (1 - r)) * parabola(r)), rel=1e-12)


@pytest.mark.parametrize(("settings", "named"), [({"order": 4}, "order .* 1 to 3, got 4"), ({"exact": 0.5}, "exact")])
def test_a_setting_that_cannot_be_is_named(settings, named):
    with pytest.raises(ValueError, match=named):
        dpm_solver(**settings)


def test_equal_settings_give_the_same_sampler():
    """Also as a command line gives them, in floats: the loop is then compiled once."""
    assert dpm_solver(order=3.0, exact=0.0) is dpm_solver()
