"""The sampling loop in worlds whose best denoiser, and so whose answer, is known exactly."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.forward import q_sample
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.diffusion.parameterization import PREDICTIONS, convert
from ddpm_jax.sampling import ddim, ddpm, frame_steps, sample, sample_batch, sample_path

LINEAR = schedules.linear()
SHORT = schedules.respace(LINEAR, range(49, 1000, 50))
KEY = jax.random.key(0)
MEAN, STD = 0.3, 0.5
STEPS = {"large": ddpm(), "small": ddpm(variance="small"), "ddim": ddim(), "ddim noisy": ddim(eta=1.0)}
SHAPE = (16, 16, 1)


def of_gaussian(prediction="eps"):
    """The exact denoiser of x_0 ~ N(MEAN, STD^2): E[x_0 | x_t], said as `prediction`. Time is the index in LINEAR."""

    def denoise(x_t, time):
        t = time.astype(int)
        alpha, sigma = (
            table[t].reshape(-1, 1, 1, 1) for table in (LINEAR.sqrt_alpha_bars, LINEAR.sqrt_one_minus_alpha_bars)
        )
        x_0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x_t - alpha * MEAN)
        return convert(LINEAR, x_0, x_t, t, source="x0", target=prediction)

    return denoise


GAUSSIAN = {prediction: of_gaussian(prediction) for prediction in PREDICTIONS}


def exact_moments(name, betas):
    """Each step is affine in x_t: follow mean, variance and the slope in x_T through all of them, in float64."""
    alpha_bars = np.cumprod(1 - betas)
    mean, variance, slope = 0.0, 1.0, 1.0
    for t in range(betas.size - 1, -1, -1):
        a, s2, before = np.sqrt(alpha_bars[t]), 1 - alpha_bars[t], alpha_bars[t - 1] if t else 1.0
        gain = a * STD**2 / (a**2 * STD**2 + s2)
        posterior = betas[t] * (1 - before) / s2
        if name.startswith("ddim"):
            noise = posterior if name == "ddim noisy" else 0.0
            towards = np.sqrt(1 - before - noise) / np.sqrt(s2)
            of_x_0, of_x_t = np.sqrt(before) - towards * a, towards
        else:
            noise = {"large": betas[t] if t else 0.0, "small": posterior}[name]
            of_x_0, of_x_t = np.sqrt(before) * betas[t] / s2, np.sqrt(1 - betas[t]) * (1 - before) / s2
        a_step, offset = of_x_t + of_x_0 * gain, of_x_0 * MEAN * (1 - gain * a)
        mean, variance, slope = a_step * mean + offset, a_step**2 * variance + noise, a_step * slope
    return mean, np.sqrt(variance), slope


@pytest.mark.parametrize("name", STEPS)
def test_the_sampler_draws_the_gaussian_it_was_given(name):
    """64 x 256 independent draws: four standard errors around the exact moments of 1000 float64 steps.

    Those lie within the discretisation's 0.01 of N(0.3, 0.5^2).
    """
    mean, std, slope = exact_moments(name, np.linspace(1e-4, 0.02, 1000))
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert std == pytest.approx(STD, abs=0.01)
    options = {"shape": SHAPE, "num": 64, "sampler": STEPS[name], "clip": False}
    images = sample(KEY, GAUSSIAN["eps"], LINEAR, **options)
    assert images.mean() == pytest.approx(mean, abs=4 * std / np.sqrt(images.size))
    assert images.std() == pytest.approx(std, abs=4 * std / np.sqrt(2 * images.size))
    # The same noise from two starts: the difference is the product of 1000 coefficients, not a statistic.
    if name == "ddim":
        low, high = (
            sample(KEY, GAUSSIAN["eps"], LINEAR, **options, x_T=jnp.full((64, *SHAPE), x)) for x in (-1.0, 1.0)
        )
        np.testing.assert_allclose((high - low) / 2, np.full_like(high, slope), rtol=1e-4)
        np.testing.assert_allclose((high + low) / 2, np.full_like(high, mean), rtol=1e-4)


@pytest.mark.parametrize("name", ["large", "ddim noisy"])
def test_a_short_loop_has_the_exact_moments_of_its_own_steps(name):
    """Twenty steps are far from the data's own moments; the loop must show that error and no other."""
    alpha_bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[49::50]
    betas = 1 - alpha_bars / np.append(1, alpha_bars[:-1])
    mean, std, _ = exact_moments(name, betas)
    images = sample(KEY, GAUSSIAN["eps"], SHORT, shape=(32, 32, 1), num=256, sampler=STEPS[name], clip=False)
    assert images.mean() == pytest.approx(mean, abs=4 * std / np.sqrt(images.size))
    assert images.std() == pytest.approx(std, abs=4 * std / np.sqrt(2 * images.size))


def test_every_prediction_gives_the_same_images():
    options = {"shape": SHAPE, "num": 64, "sampler": STEPS["small"], "clip": False}
    images = {name: sample(KEY, GAUSSIAN[name], LINEAR, **options, prediction=name) for name in PREDICTIONS}
    for name in PREDICTIONS:
        np.testing.assert_allclose(images[name], images["eps"], atol=2e-4, err_msg=name)


def test_deterministic_ddim_of_a_point_walks_the_line_to_it():
    """One point of data: eps never changes, so every x_t is q_sample of that point, and the end is the point."""
    point = jnp.linspace(-1, 1, 256).reshape(1, *SHAPE)
    x_T = jax.random.normal(KEY, (1, *SHAPE))
    image, path = sample_path(
        KEY,
        jax.tree_util.Partial(lambda point, x_t, time: point, point),
        LINEAR,
        shape=SHAPE,
        batch_size=1,
        sampler=ddim(),
        prediction="x0",
        x_T=x_T,
        frames=5,
    )
    np.testing.assert_array_equal(image, point)
    last = jnp.array([999])
    eps = (x_T - q_sample(LINEAR, point, last, 0 * x_T)) / LINEAR.sqrt_one_minus_alpha_bars[-1]
    for frame, done in list(enumerate(frame_steps(1000, 5)))[:-1]:
        np.testing.assert_allclose(path.x_t[frame], q_sample(LINEAR, point, last - done, eps), atol=2e-5)


def test_clipping_keeps_the_prediction_of_x_0_within_the_data():
    far = lambda x_t, time: 3 * jnp.ones_like(x_t)  # noqa: E731
    options = {"shape": (2, 2, 1), "num": 2, "batch_size": 2, "prediction": "x0", "frames": 6}
    image, path = sample_path(KEY, far, SHORT, **options)
    np.testing.assert_array_equal(path.x_0, np.ones((6, 2, 2, 2, 1)))
    np.testing.assert_array_equal(image, np.ones((2, 2, 2, 1)))
    image, path = sample_path(KEY, far, SHORT, **options, clip=False)
    np.testing.assert_array_equal(path.x_0, 3 * np.ones((6, 2, 2, 2, 1)))


def test_ddims_direction_follows_the_clipped_x_0():
    """Then a constant x_0 of 3, clipped to 1, walks the line to 1: eps of x_t and 1 never changes."""
    far = lambda x_t, time: 3 * jnp.ones_like(x_t)  # noqa: E731
    options = {"shape": (2, 2, 1), "batch_size": 1, "prediction": "x0", "frames": 21, "sampler": STEPS["ddim"]}
    _, path = sample_path(KEY, far, SHORT, **options)
    alpha, sigma = (
        table[::-1].reshape(20, 1, 1, 1, 1) for table in (SHORT.sqrt_alpha_bars, SHORT.sqrt_one_minus_alpha_bars)
    )
    eps = (path.x_t[:-1] - alpha) / sigma
    np.testing.assert_allclose(eps, np.broadcast_to(eps[:1], eps.shape), atol=1e-4)


def test_the_network_is_traced_once_whatever_the_number_of_images():
    calls = []

    def denoise(x_t, time):
        calls.append(x_t.shape)
        return 0.1 * x_t

    images = {num: sample(KEY, denoise, SHORT, shape=(2, 2, 1), num=num) for num in (1, 7, 64, 100)}
    assert calls == [(64, 2, 2, 1)]
    for num in (1, 7, 64):
        np.testing.assert_array_equal(images[num], images[100][:num])


def test_an_image_depends_on_its_key_and_number_only():
    """Not on the batch size, the others in the batch, or their order; another key is another image."""
    options = {"shape": (4, 4, 1), "sampler": STEPS["large"]}
    all_of_them = sample(KEY, GAUSSIAN["eps"], SHORT, num=64, **options)
    for batch_size in (1, 7):
        np.testing.assert_allclose(
            sample(KEY, GAUSSIAN["eps"], SHORT, num=10, batch_size=batch_size, **options), all_of_them[:10], atol=1e-6
        )
    chosen = sample(KEY, GAUSSIAN["eps"], SHORT, num=3, indices=np.array([40, 3, 40]), **options)
    np.testing.assert_array_equal(chosen, all_of_them[[40, 3, 40]])
    assert len({image.tobytes() for image in all_of_them}) == 64
    assert not np.allclose(
        sample(jax.random.key(1), GAUSSIAN["eps"], SHORT, num=1, **options), all_of_them[:1], atol=0.1
    )


ON_DEVICES = """
import sys
import jax, numpy as np
devices = int(sys.argv[1])
jax.config.update("jax_num_cpu_devices", devices)
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ddpm_jax.diffusion import schedules
from ddpm_jax.sampling import sample
assert jax.device_count() == devices
mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
images = sample(
    jax.random.key(0), lambda x, t: 0.3 * x + 0.1, schedules.linear(20), shape=(4, 4, 1), num=13, batch_size=8,
    conditions=None, sharding=NamedSharding(mesh, PartitionSpec("data")),
)
np.save(sys.argv[2], images)
"""


def test_four_devices_draw_the_images_of_one(tmp_path):
    images = []
    for devices in (1, 4):
        out = tmp_path / f"{devices}.npy"
        subprocess.run([sys.executable, "-c", ON_DEVICES, str(devices), str(out)], check=True, timeout=120)
        images.append(np.load(out))
    assert images[0].shape == (13, 4, 4, 1)
    np.testing.assert_allclose(images[1], images[0], atol=1e-6)


COMPILED = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_log_compiles", True)
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ddpm_jax.diffusion import schedules
from ddpm_jax.sampling import SAMPLERS, sample_path
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
sample_path(
    jax.random.key(0), lambda x, t: 0.3 * x + 0.1, schedules.linear(20), shape=(4, 4, 1), num=8, batch_size=4,
    sampler=SAMPLERS["dpm_solver_pp_2m"](), frames=3, sharding=NamedSharding(mesh, PartitionSpec("data")),
    on_step=lambda step: None,
)
"""


def test_on_several_devices_the_loop_is_compiled_once():
    """What the sampler remembers, and the frames, lie from the first call on where later calls leave them."""
    done = subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=120, capture_output=True, text=True)
    assert done.stderr.count("Compiling jit(go_on)") == 1, done.stderr


@pytest.mark.parametrize("frames", [5, 50])
def test_frames_lead_from_the_noise_to_the_image(frames):
    """Also more frames than moments: some are then shown twice."""
    x_T = jax.random.normal(jax.random.key(3), (3, 2, 2, 1))
    options = {"shape": (2, 2, 1), "num": 3, "batch_size": 2, "x_T": x_T}
    image, path = sample_path(KEY, GAUSSIAN["eps"], SHORT, **options, frames=frames)
    assert path.x_t.shape == path.x_0.shape == (frames, 3, 2, 2, 1)
    np.testing.assert_array_equal(path.x_t[0], x_T)
    np.testing.assert_array_equal(path.x_t[-1], image)
    np.testing.assert_array_equal(path.x_0[-1], image)
    # Each frame is the walk at the moment that frame_steps names.
    every = sample_path(KEY, GAUSSIAN["eps"], SHORT, **options, frames=21)[1]
    done = frame_steps(20, frames)
    assert (done[0], done[-1]) == (0, 20)
    np.testing.assert_allclose(path.x_t, every.x_t[done], atol=1e-6)
    np.testing.assert_allclose(path.x_0, every.x_0[done], atol=1e-6)
    np.testing.assert_array_equal(image, sample(KEY, GAUSSIAN["eps"], SHORT, **options))


def test_a_respaced_schedule_tells_the_network_the_original_times():
    tell = lambda x_t, time: jnp.broadcast_to(time[:, None, None, None], x_t.shape)  # noqa: E731
    options = {"shape": (1, 1, 1), "num": 1, "batch_size": 1, "prediction": "x0", "clip": False}
    _, path = sample_path(KEY, tell, SHORT, **options, frames=21)
    np.testing.assert_array_equal(path.x_0[:-1].ravel(), np.arange(999, 0, -50))
    _, path = sample_path(KEY, tell, schedules.linear(20), **options, frames=21)
    np.testing.assert_array_equal(path.x_0[:-1].ravel(), np.arange(950, -1, -50))


def test_conditions_follow_their_images_through_the_batches():
    classes = np.arange(5)
    obey = lambda x_t, time, c: jnp.broadcast_to(c[:, None, None, None] / 10, x_t.shape)  # noqa: E731
    options = {"shape": (2, 2, 1), "num": 5, "batch_size": 2, "prediction": "x0"}
    images = sample(KEY, obey, SHORT, **options, conditions=classes)
    np.testing.assert_allclose(images, np.broadcast_to(classes.reshape(5, 1, 1, 1) / 10, images.shape), rtol=1e-6)


def test_the_loop_runs_inside_a_jit_of_ones_own():
    @jax.jit
    def drawn(key, slope):
        denoise = jax.tree_util.Partial(lambda slope, x_t, time: slope * x_t, slope)
        return sample_batch(key, jnp.arange(3), denoise, visit(SHORT), shape=(2, 2, 1))[0]

    expected = sample(KEY, lambda x_t, time: 0.2 * x_t, SHORT, shape=(2, 2, 1), num=3, batch_size=3)
    np.testing.assert_allclose(drawn(KEY, 0.2), expected, atol=1e-6)


def test_on_step_hears_of_every_step():
    heard = []
    sample(KEY, GAUSSIAN["eps"], SHORT, shape=(1, 1, 1), batch_size=1, on_step=lambda done: heard.append(int(done)))
    jax.effects_barrier()
    assert sorted(heard) == list(range(1, 21))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 0}, "num and batch_size must be at least 1, got 0 and 64"),
        ({"batch_size": 0}, "num and batch_size must be at least 1, got 2 and 0"),
        ({"frames": 1}, "frames must be 0 or at least 2"),
        ({"indices": np.arange(3)}, "indices must have one entry for each of num=2 images, got 3"),
        ({"x_T": np.zeros((3, 2, 2, 1))}, "x_T must have one entry for each of num=2 images, got 3"),
        ({"x_T": np.zeros((2, 2, 3, 1))}, r"x_T must have shape \(2, 2, 2, 1\), got \(2, 2, 3, 1\)"),
        ({"conditions": np.zeros(5)}, "conditions must have one entry for each of num=2 images, got 5"),
        ({"conditions": 3}, "conditions must have one entry for each of num=2 images, got a single value"),
    ],
)
def test_counts_and_shapes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample_path(KEY, GAUSSIAN["eps"], SHORT, **{"shape": (2, 2, 1), "num": 2} | options)
