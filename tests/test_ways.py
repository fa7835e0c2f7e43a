"""The loop along ways of any length, any process; and what can be done with it as a function."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import processes, schedules, spacings
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.sampling import SAMPLERS, build, ddim, frame_steps, sample, sample_batch, sample_path, way

LINEAR = schedules.linear()
KEY = jax.random.key(0)
SHAPE = (16, 16, 1)
POINT = jax.tree_util.Partial(lambda x_t, time: jnp.tanh(x_t + 0.1 * jnp.sin(time / 100).reshape(-1, 1, 1, 1)))


def test_one_trace_serves_10_20_and_50_steps_in_chunks_of_any_number_of_images():
    """And gives what a loop of exactly that length gives."""
    chex.clear_trace_counter()
    denoise = jax.tree_util.Partial(chex.assert_max_traces(lambda x_t, time: 0.4 * x_t, n=1))
    for count, num in ((10, 5), (20, 3), (50, 9)):
        times = spacings.trailing(processes.of_schedule(LINEAR), (count,))
        images = sample(KEY, denoise, LINEAR, shape=(2, 2, 1), num=num, batch_size=4, times=times)
        plain = jax.tree_util.Partial(lambda x_t, time: 0.4 * x_t)
        alone, _ = sample_batch(KEY, jnp.arange(num), plain, visit(LINEAR, times), shape=(2, 2, 1))
        np.testing.assert_allclose(images, alone, atol=1e-6)


def test_the_loop_can_be_differentiated():
    """DDIM with x_0 = slope x_t, by hand: each step multiplies x_t."""
    levels = visit(LINEAR, [900, 500, 100, -1])
    alpha, sigma = (np.asarray(a, np.float64) for a in (levels.visited.alpha, levels.visited.sigma))

    def gain(slope):
        denoise = jax.tree_util.Partial(lambda slope, x_t, time: slope * x_t, slope)
        options = {"sampler": ddim(), "prediction": "x0", "clip": False, "x_T": jnp.ones((1, 1, 1, 1))}
        return sample_batch(KEY, jnp.arange(1), denoise, levels, shape=(1, 1, 1), **options)[0].sum()

    def by_hand(slope):
        return np.prod([alpha[i + 1] * slope + sigma[i + 1] * (1 - alpha[i] * slope) / sigma[i] for i in range(3)])

    assert gain(0.7) == pytest.approx(by_hand(0.7), rel=1e-5)
    assert jax.grad(gain)(0.7) == pytest.approx((by_hand(0.7 + 1e-5) - by_hand(0.7 - 1e-5)) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("name", processes.PROCESSES)
def test_along_any_process_a_network_draws_the_same_images_without_noise(name):
    """DDIM's step is the same for all of them, at the same log-SNR: only the start must be scaled alike."""
    walked = processes.PROCESSES[name]()
    wanted = np.linspace(-7.0, 7.0, 11)
    x_T = jax.random.normal(KEY, (1, *SHAPE))
    options = {"shape": SHAPE, "batch_size": 1, "sampler": ddim(), "prediction": "x0"}
    images = {}
    for process in (processes.of_schedule(LINEAR), walked):
        times = np.append(process.t_of(np, wanted), process.clean)
        along = None if process.steps else process
        size = np.hypot(*(np.exp(f(np, times[0])) for f in (process.log_alpha, process.log_sigma)))
        images[process.name] = sample(KEY, POINT, LINEAR, **options, times=times, along=along, x_T=size * x_T)
    np.testing.assert_allclose(images[name], images["schedule"], atol=2e-5)


def test_a_network_of_a_process_starts_as_noisy_as_its_first_level():
    start = lambda **options: sample_path(  # noqa: E731
        KEY, lambda x_t, time: x_t, processes.ve(), shape=SHAPE, num=64, sampler=ddim(), frames=2, **options
    )[1].x_t[0]
    x_T = start(times=[1.0, 0.5, 0.0])
    assert x_T.std() == pytest.approx(50, rel=4 / np.sqrt(2 * x_T.size))
    with pytest.raises(ValueError, match="the prediction mean needs a schedule"):
        start(times=[1.0, 0.0], prediction="mean")


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_with_noise_of_their_own_only_go_down(name):
    """And say so; those without go up, to something finite."""
    sampler = build(name)
    if not sampler.only_down:
        return
    with pytest.raises(ValueError, match="only goes down: times must fall"):
        way(LINEAR, [10, 100, 500], sampler=sampler)
    assert way(LINEAR, [500, 100, 10], sampler=sampler).visited.t.shape == (1001,)


def test_which_samplers_only_go_down():
    down = {name for name in SAMPLERS if build(name).only_down}
    noisy = {"ddpm", "euler_ancestral", "dpm2_ancestral", "dpm_solver_pp_sde", "consistency"}
    assert down == noisy | {"euler_maruyama", "exponential_sde", "reverse_diffusion", "predictor_corrector"}
    assert build("ddim", (("eta", 0.5),)).only_down
    assert build("edm", (("s_churn", 5.0),)).only_down


@pytest.mark.parametrize("name", processes.PROCESSES)
def test_a_network_is_told_times_it_knows_wherever_it_is_walked(name):
    """Also where the process begins noisier, or ends less noisy, than the network's own."""
    walked = processes.PROCESSES[name]()
    for own in (LINEAR, processes.vp(), processes.flow()):
        times = spacings.even(walked, (9,))
        time = np.asarray(visit(own, times, along=walked, stages=(0.5,)).visited.time)
        assert (time >= 0).all()
        assert (time <= 1000).all()


def test_frames_in_the_loop_are_those_that_their_titles_say():
    for frames in (2, 5, 11, 51):
        for steps in (1, 2, 5, 25, 50, 250, 999, 1000):
            traced = jax.jit(frame_steps, static_argnums=1)(jnp.int32(steps), frames)
            np.testing.assert_array_equal(traced, frame_steps(steps, frames))
