"""The levels that a sampler visits, in float64 before they are float32."""

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion import processes, schedules
from ddpm_jax.diffusion.levels import visit

LINEAR = schedules.linear()
BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHA_BARS = np.cumprod(1 - BETAS)


def test_all_steps_of_a_schedule_and_then_the_image():
    levels = visit(LINEAR)
    assert levels.num_steps is None
    np.testing.assert_array_equal(levels.visited.t, np.arange(999, -2, -1))
    np.testing.assert_array_equal(levels.visited.time, [*np.arange(999, -1, -1), 0])
    np.testing.assert_array_equal(levels.visited.scale, np.ones(1001))
    assert (levels.visited.alpha[-1], levels.visited.sigma[-1]) == (1, 0)
    np.testing.assert_allclose(levels.visited.alpha[:-1], np.sqrt(ALPHA_BARS[::-1]), rtol=2e-6)
    np.testing.assert_allclose(levels.visited.sigma[:-1], np.sqrt(1 - ALPHA_BARS[::-1]), rtol=2e-6)
    assert levels.start_std == 1


def test_gains_keep_their_digits_where_neighbours_are_near():
    """1 - exp(-gain) is beta_t / (1 - alpha_bar_t) for every one of a thousand steps; as a difference of float32
    log-SNRs it would be wrong by 1e-4."""
    levels = visit(LINEAR)
    wanted = (BETAS / (1 - ALPHA_BARS))[:0:-1]
    np.testing.assert_allclose(-np.expm1(-np.asarray(levels.visited.gain[:999], np.float64)), wanted, rtol=3e-6)
    difference = np.diff(np.asarray(levels.visited.log_snr))[:999]
    assert np.abs(-np.expm1(-difference) / wanted - 1).max() > 1e-5


def test_the_posteriors_of_training_are_there_for_networks_that_predict_the_mean():
    levels = visit(LINEAR, [999, 500, 1, 0, -1])
    at = np.array([999, 500, 1, 0])
    for mine, table in (
        ("coef_x0", "posterior_mean_coef_x0"),
        ("coef_xt", "posterior_mean_coef_xt"),
        ("variance", "posterior_variance"),
    ):
        np.testing.assert_allclose(
            getattr(levels.visited.own, mine)[:4], getattr(LINEAR, table)[at], rtol=1e-5, err_msg=mine
        )


@pytest.mark.parametrize(
    ("name", "drift", "diffusion"),
    [
        ("vp", lambda t, b: -b / 2, lambda t, b, i: b),
        ("sub_vp", lambda t, b: -b / 2, lambda t, b, i: b * (1 - np.exp(-2 * i))),
        ("ve", lambda t, b: 0 * t, lambda t, b, i: 2 * np.log(5000) * (0.01 * 5000**t) ** 2),
        ("flow", lambda t, b: -1 / (1 - t), lambda t, b, i: 2 * t / (1 - t)),
    ],
)
def test_drift_and_diffusion_are_those_of_the_forward_sde(name, drift, diffusion):
    """Song et al. 2021, Eq. 30, 33, 29 with beta(t) = 0.1 + 19.9 t and its integral."""
    t = np.linspace(0.9, 0.1, 9)
    levels = visit(processes.PROCESSES[name](), t)
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
    np.testing.assert_allclose(levels.visited.drift, drift(t, beta), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(levels.visited.diffusion, diffusion(t, beta, integral), rtol=1e-5)
    np.testing.assert_allclose(levels.visited.dt[:-1], -0.1, rtol=1e-5)


def test_a_schedules_sde_is_that_of_its_betas():
    levels = visit(LINEAR, [999, 500, 0, -1])
    np.testing.assert_allclose(levels.visited.diffusion[:3], -np.log1p(-BETAS[[999, 500, 0]]), rtol=1e-5)
    np.testing.assert_allclose(levels.visited.drift[:3], 0.5 * np.log1p(-BETAS[[999, 500, 0]]), rtol=1e-5)


@pytest.mark.parametrize("name", processes.PROCESSES)
def test_along_another_process_the_network_is_asked_at_the_same_log_snr(name):
    walked = processes.PROCESSES[name]()
    t = walked.t_of(np, np.array([-7.5, -2.0, 0.0, 5.0]))
    levels = visit(LINEAR, t, along=walked)
    own = levels.visited.own
    np.testing.assert_allclose(own.alpha**2 + own.sigma**2, np.ones(4), rtol=1e-6)
    np.testing.assert_allclose(2 * np.log(own.alpha / own.sigma), [-7.5, -2, 0, 5], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(levels.visited.scale * levels.visited.alpha, own.alpha, rtol=1e-6)
    np.testing.assert_allclose(levels.visited.scale * levels.visited.sigma, own.sigma, rtol=1e-6)
    log_snr = np.log(ALPHA_BARS / (1 - ALPHA_BARS))
    np.testing.assert_allclose(levels.visited.time, np.interp([7.5, 2, 0, -5], -log_snr, np.arange(1000)), rtol=1e-5)


def test_stages_lie_where_they_are_asked_for():
    times = [900, 500, 100, -1]
    levels = visit(LINEAR, times, stages=(0.25, 0.5))
    for k, part in enumerate((0.25, 0.5)):
        stage = levels.stages[k]
        wanted = levels.visited.log_snr[:2] + part * levels.visited.gain[:2]
        np.testing.assert_allclose(stage.log_snr[:2], wanted, rtol=1e-5)
        np.testing.assert_allclose(stage.gain[:2], part * levels.visited.gain[:2], rtol=1e-5)
        np.testing.assert_allclose(2 * np.log(stage.alpha / stage.sigma)[:2], wanted, rtol=1e-5, atol=1e-5)
        assert np.isfinite(np.asarray(jax.tree.leaves(stage))).all()
    halves = visit(LINEAR, times, stages=(0.5,), stages_in="t").stages[0]
    np.testing.assert_array_equal(halves.time[:2], [700, 300])
    np.testing.assert_array_equal(halves.dt, [-200, -200, -50.5])


@pytest.mark.parametrize("schedule", [schedules.jsd(50), schedules.laplace(50), schedules.cosine(50), LINEAR])
def test_every_number_is_finite_whatever_the_schedules_ends(schedule):
    levels = visit(schedule, stages=(0.5,))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(levels))


def test_padding_repeats_the_image_and_counts_the_steps():
    levels = visit(LINEAR, [999, 500, -1], stages=(0.5,), size=6)
    assert levels.num_steps == 2
    np.testing.assert_array_equal(levels.visited.t, [999, 500, -1, -1, -1, -1])
    assert levels.stages[0].t.shape == (5,)


def test_the_way_up_has_the_gains_of_the_way_down_with_their_signs_turned():
    down, up = visit(LINEAR, [900, 400, 10, -1]), visit(LINEAR, [-1, 10, 400, 900])
    np.testing.assert_allclose(up.visited.gain[:3], -down.visited.gain[2::-1], rtol=1e-6)
    assert up.visited.time[0] == 0


@pytest.mark.parametrize(
    ("times", "options", "message"),
    [
        ([999], {}, r"at least two places \[S \+ 1\], got shape \(1,\)"),
        ([[999, -1]], {}, r"got shape \(1, 2\)"),
        ([1000, -1], {}, r"within -1 \(the image\) and 999 of the process schedule, got -1 to 1000"),
        ([999, -2], {}, "got -2 to 999"),
        ([999, np.nan], {}, "times must lie within"),
        ([999, 5, 5, -1], {}, "times must differ from one to the next, got 5 twice"),
        ([999, 5, -1], {"size": 2}, "size must be above the number of steps, 2, got 2"),
        ([999, 5, -1], {"stages": (1.5,)}, r"stages must lie in \[0, 1\], got 1.5"),
        ([999, 5, -1], {"stages": (0.5,), "stages_in": "sigma"}, "stages_in must be log_snr or t, got 'sigma'"),
        (None, {"along": processes.vp()}, "times must be given for the process vp"),
    ],
)
def test_ways_that_can_not_be_walked_are_refused(times, options, message):
    with pytest.raises(ValueError, match=message):
        visit(LINEAR, times, **options)
