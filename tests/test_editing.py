"""Editing, held to linear algebra: normal images, whose conditionals and whose every step are known in float64."""

import itertools

import jax
import jax.numpy as jnp
import joint
import numpy as np
import pytest
import worlds

from ddpm_jax.diffusion import processes, schedules
from ddpm_jax.sampling import ddim, ddpm, editing, sample, samplers
from ddpm_jax.sampling.interpolate import slerp

KEY = jax.random.key(0)
VP = processes.vp()
IMAGE = np.array([1.2, 0.0, -0.4, 0.0])
KNOWN = joint.KNOWN
DENOISE = joint.denoiser(VP)
TRUE_MEAN, TRUE_COVARIANCE = joint.given(np.eye(4)[KNOWN], IMAGE[KNOWN])
OPTIONS = {"prediction": "x0", "clip": False, "sampler": ddpm(variance="small")}


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def places(steps, process=VP, last=1e-3):
    """Evenly in t to the least noisy level, then the image."""
    return np.append(np.linspace(process.start, last, steps), 0.0)


def images(num):
    """The same image `num` times, and which of its pixels are known."""
    shape = (num, *joint.SHAPE)
    return np.broadcast_to(IMAGE.reshape(joint.SHAPE), shape).astype(np.float32), np.broadcast_to(
        KNOWN.reshape(joint.SHAPE), shape
    )


def biases(steps, jump=10, resamples=1):
    """How far mean and covariance end from the truth, by the exact recursion."""
    times = editing.there_and_back(places(steps), jump=jump, resamples=resamples)
    mean, covariance = joint.walk(VP, times, joint.prediction, joint.replaced(joint.ancestral, IMAGE))
    np.testing.assert_array_equal(mean[KNOWN], IMAGE[KNOWN])
    return abs(mean - TRUE_MEAN).max(), abs(covariance - TRUE_COVARIANCE).max()


def assert_drawn_from(drawn, mean, covariance):
    """Four and a half standard errors around every moment of the unknown pixels; the known ones exactly."""
    flat = np.asarray(drawn, np.float64).reshape(len(drawn), 4)
    np.testing.assert_array_equal(flat[:, KNOWN], np.broadcast_to(np.float32(IMAGE[KNOWN]), flat[:, KNOWN].shape))
    variances = np.diag(covariance)
    off = abs(flat.mean(axis=0) - mean) <= 4.5 * np.sqrt(variances / len(flat)) + 1e-6
    assert off.all(), (flat.mean(axis=0), mean)
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / len(flat))
    assert (abs(np.cov(flat.T) - covariance) <= 4.5 * error + 1e-6).all()


def test_replacement_keeps_what_is_known_and_draws_the_moments_of_its_own_steps():
    """Which aren't the truth's: see the next test."""
    x_0, known = images(4096)
    drawn = editing.inpaint(KEY, DENOISE, VP, x_0, known, times=places(50), batch_size=4096, **OPTIONS)
    exact = joint.walk(VP, places(50), joint.prediction, joint.replaced(joint.ancestral, IMAGE))
    assert_drawn_from(drawn, *exact)


def test_on_the_way_known_pixels_are_as_noisy_as_their_level():
    """Stopped at sigma = 0.96, and at 0.58: the mean and deviation of q(x_t | x_0), five standard errors of 8,192."""
    x_0, known = images(4096)
    for last in (0.5, 0.2):
        alpha, sigma = worlds.levels_of(VP, last)
        drawn = editing.inpaint(KEY, DENOISE, VP, x_0, known, times=[1.0, last], batch_size=4096, **OPTIONS)
        eps = (drawn[known] - alpha * x_0[known]) / sigma
        assert eps.mean() == pytest.approx(0, abs=5 / np.sqrt(8192))
        assert eps.std() == pytest.approx(1, abs=5 / np.sqrt(2 * 8192))


def test_replacement_is_biased_however_many_steps_it_takes():
    """The mean by 0.26 of a deviation of 0.32: a step sees the known pixels through their noise only."""
    errors = [biases(steps)[0] for steps in (200, 1000)]
    assert errors[0] == pytest.approx(0.261, abs=0.002)
    assert errors[1] == pytest.approx(0.254, abs=0.002)


def test_resampling_comes_to_the_conditional_mean():
    """Lugmayr et al. 2022, Sec. 4.2: the error halves with twice the resamples, at last. The covariance needs smaller
    steps, too, for resampling repeats what each step does to it."""
    means = [biases(200, jump=1, resamples=r)[0] for r in (1, 5, 10, 20)]
    np.testing.assert_allclose(means, [0.261, 0.044, 0.020, 0.010], atol=0.001)
    covariances = [biases(steps, jump=steps // 50, resamples=5)[1] for steps in (50, 200, 400)]
    np.testing.assert_allclose(covariances, [0.045, 0.015, 0.009], atol=0.002)


def test_repaint_draws_the_moments_of_its_own_steps():
    x_0, known = images(4096)
    way = {"jump": 5, "resamples": 3}
    drawn = editing.repaint(KEY, DENOISE, VP, x_0, known, times=places(40), batch_size=4096, **way, **OPTIONS)
    times = editing.there_and_back(places(40), **way)
    exact = joint.walk(VP, times, joint.prediction, joint.replaced(joint.ancestral, IMAGE))
    assert_drawn_from(drawn, *exact)


def published(levels, jump, resamples):
    """Lugmayr et al. 2022, Fig. 9: every level visited, one noising step at a time on the way up."""
    jumps = dict.fromkeys(range(0, levels - jump, jump), resamples - 1)
    t, visited = levels, []
    while t >= 1:
        t -= 1
        visited.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump):
                t += 1
                visited.append(t)
    return [*visited, -1]


@pytest.mark.parametrize(("levels", "jump", "resamples"), [(250, 10, 10), (250, 5, 3), (20, 7, 2), (20, 1, 1)])
def test_the_way_there_and_back_is_the_published_one(levels, jump, resamples):
    way = editing.there_and_back(np.arange(levels - 1, -2, -1), jump=jump, resamples=resamples)
    assert (np.abs(np.diff(way)[np.diff(way) > 0]) == jump).all()
    one_by_one = [way[0]]
    for place in way[1:]:
        one_by_one += range(int(one_by_one[-1]) + 1, int(place) + 1) if place > one_by_one[-1] else [place]
    assert one_by_one == published(levels, jump, resamples)


def test_the_papers_setting_takes_4570_steps_of_which_2410_ask_the_network():
    way = editing.there_and_back(np.arange(249, -2, -1), jump=10, resamples=10)
    assert len(published(250, 10, 10)) - 1 == 4570
    assert (np.diff(way) < 0).sum() == 2410


def test_going_up_does_not_ask_the_network():
    asked = []

    def denoise(x, time):
        jax.debug.callback(lambda _: asked.append(0), time[0])
        return 0.0 * x

    times = editing.there_and_back(np.arange(9, -2, -1), jump=3, resamples=2)
    sample(KEY, denoise, schedules.linear(10), shape=(1, 1, 1), batch_size=1, times=times,
           sampler=editing.resampling(ddpm()))  # fmt: skip
    jax.effects_barrier()
    assert len(asked) == (np.diff(times) < 0).sum() == 10 + 3 * 3


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("rk4", 4)])
def test_inverted_and_drawn_again_an_image_comes_back_as_exactly_as_the_solver_is(float64, name, order):
    """The latents are those of the exact flow, but for an error of the solver's order; and so is what comes back."""
    x_0 = np.array([-0.7, 0.1, 0.5, 0.9, -0.3, 0.6, 0.2, 0.0]).reshape(2, 2, 2, 1)
    denoise, sampler = worlds.denoiser(worlds.MIXTURE, VP), samplers.build(name)
    exact = worlds.MIXTURE.flow(x_0, worlds.levels_of(VP, 0.01), worlds.levels_of(VP, 1.0))
    there, back = [], []
    for steps in (128, 256):
        options = {"times": np.linspace(1.0, 0.01, steps + 1), "batch_size": 2, "clip": False, "sampler": sampler}
        latents = editing.invert(denoise, VP, x_0, **options)
        there.append(abs(latents - exact).max())
        back.append(abs(sample(KEY, denoise, VP, shape=(2, 2, 1), num=2, x_T=latents, **options) - x_0).max())
    assert np.log2(there[0] / there[1]) == pytest.approx(order, abs=0.25)
    assert np.log2(back[0] / back[1]) > order - 0.25
    assert max(there[1], back[1]) < {1: 0.03, 2: 1e-3, 4: 1e-7}[order]


def test_an_image_inverted_as_one_class_and_drawn_as_another_moves_from_mean_to_mean(float64):
    """Of classes N(m, 0.5^2) the flow keeps (x - m) / 0.5."""
    means = jnp.array([-0.4, 0.5])

    def denoise(x, time, labels):
        t = time[:, None, None, None] / 1000
        alpha, sigma = jnp.exp(VP.log_alpha(jnp, t)), jnp.exp(VP.log_sigma(jnp, t))
        mean = means[labels][:, None, None, None]
        return mean + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * mean)

    x_0 = np.array([-0.7, 0.1, 0.5, 0.3]).reshape(1, 2, 2, 1)
    options = {"times": places(1000, last=1e-4), "batch_size": 1, "clip": False, "prediction": "x0"}
    latents = editing.invert(denoise, VP, x_0, conditions=np.array([0]), **options)
    drawn = sample(KEY, denoise, VP, shape=(2, 2, 1), x_T=latents, sampler=ddim(), conditions=np.array([1]), **options)
    np.testing.assert_allclose(drawn, x_0 + 0.9, atol=0.01)


def test_sdedit_from_pure_noise_is_plain_sampling_and_from_no_noise_the_image_itself():
    flow = processes.flow()
    denoise = joint.denoiser(flow)
    x_0, options = images(3)[0], {"batch_size": 3, "prediction": "x0", "clip": False, "sampler": ddim()}
    way = places(20, flow)
    edited = editing.sdedit(KEY, denoise, flow, x_0, times=way, **options)
    plain = sample(KEY, denoise, flow, shape=joint.SHAPE, num=3, times=way, **options)
    np.testing.assert_array_equal(edited, plain)
    np.testing.assert_array_equal(editing.sdedit(KEY, denoise, flow, x_0, times=way[-1:], **options), x_0)
    little = editing.sdedit(KEY, denoise, flow, x_0, times=way[-2:], **options)
    np.testing.assert_allclose(little, x_0, atol=5e-3)  # sigma is 1e-3 there


def test_an_edited_image_depends_on_its_own_number_mask_and_class_only():
    rng = np.random.default_rng(0)
    x_0 = rng.uniform(-1, 1, (5, 4, 4, 1)).astype(np.float32)
    known, labels = rng.random((5, 4, 4, 1)) < 0.5, np.arange(5)

    def denoise(x, time, labels):
        return 0.1 * labels[:, None, None, None] + jnp.tanh(x + jnp.roll(x, 1, axis=1))

    options = {"prediction": "x0", "times": editing.there_and_back(np.arange(19, -2, -1), jump=4, resamples=2)}
    options |= {"sampler": editing.resampling(ddpm()), "conditions": labels}
    schedule = schedules.linear(20)
    together = editing.inpaint(KEY, denoise, schedule, x_0, known, **options, batch_size=5)
    by_two = editing.inpaint(KEY, denoise, schedule, x_0, known, **options, batch_size=2)
    np.testing.assert_allclose(by_two, together, atol=1e-6)
    np.testing.assert_array_equal(together[known], x_0[known])
    np.testing.assert_array_equal(
        editing.inpaint(KEY, denoise, schedule, x_0, known, **options, batch_size=5), together
    )


def test_on_the_great_circle_a_mixture_is_as_long_as_its_ends():
    a, b = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    mixed = slerp(a, b, np.linspace(0, 1, 5))
    np.testing.assert_allclose(mixed[[0, -1]], [a, b], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(mixed.reshape(5, -1), axis=1), np.linalg.norm(a), rtol=1e-5)
    angles = [np.arccos(np.sum(x * y) / np.sum(a * a, dtype=float)) for x, y in itertools.pairwise(mixed)]
    np.testing.assert_allclose(angles, angles[0], rtol=1e-3)
    np.testing.assert_allclose(slerp(a, 2 * a, [0.5])[0], 1.5 * a, rtol=1e-5)
    assert slerp(a, -a, [0.5]).tolist() == np.zeros((1, 8, 8, 3)).tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: editing.there_and_back([3, 2, 5, -1]), "times must fall"),
        (lambda: editing.there_and_back([3, 2, -1], jump=0), "jump and resamples must be at least 1, got 0 and 10"),
        (lambda: editing.there_and_back([3, 2, -1], resamples=0), "must be at least 1, got 10 and 0"),
        (lambda: editing.there_and_back([3, 2, -1], jump=2), "jump must be below the number of steps, 2, .* got 2"),
        (lambda: editing.resampling(samplers.build("dpm_solver_pp_2m")), "a multistep sampler can't"),
        (
            lambda: editing.inpaint(KEY, None, VP, np.zeros((2, 2, 2, 1)), np.ones((2, 2, 2), bool)),
            r"known must have the images' shape \(2, 2, 2, 1\), or one channel of it, got \(2, 2, 2\)",
        ),
        (
            lambda: editing.repaint(KEY, None, VP, np.zeros((2, 2, 2, 1)), np.ones((2, 2, 2, 1), bool)),
            "times must be given for a process",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
