"""Between two images, and back to one: with the denoiser of N(0.3, 0.5^2), which is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.sampling import ddim, ddpm, frame_steps, interpolate, sample, walk_back

SCHEDULE = schedules.linear(50)
KEY = jax.random.key(0)
PAIR = jnp.stack([jnp.full((4, 4, 1), -0.8), jnp.linspace(0, 1, 16).reshape(4, 4, 1)])


def denoise(x_t, time):
    t = jnp.round(time / 20).astype(int)
    alpha, sigma = (
        table[t].reshape(-1, 1, 1, 1) for table in (SCHEDULE.sqrt_alpha_bars, SCHEDULE.sqrt_one_minus_alpha_bars)
    )
    return sigma * (x_t - alpha * 0.3) / (alpha**2 * 0.25 + sigma**2)


OPTIONS = {"t": 25, "num": 9, "sampler": ddim(), "batch_size": 9, "clip": False}


def test_the_ends_are_the_endpoints_own_reconstructions():
    """Each end is noised and brought back by itself: it never hears of the other image."""
    strip = interpolate(KEY, denoise, SCHEDULE, PAIR, **OPTIONS)
    assert strip.shape == (9, 4, 4, 1)
    other = jnp.zeros((4, 4, 1))
    first = interpolate(KEY, denoise, SCHEDULE, jnp.stack([PAIR[0], other]), **OPTIONS)
    last = interpolate(KEY, denoise, SCHEDULE, jnp.stack([other, PAIR[1]]), **OPTIONS)
    np.testing.assert_allclose(first[0], strip[0], atol=1e-6)
    np.testing.assert_allclose(last[-1], strip[-1], atol=1e-6)
    assert not np.allclose(first[-1], strip[-1], atol=0.1)
    two = interpolate(KEY, denoise, SCHEDULE, PAIR, **OPTIONS | {"num": 2})
    np.testing.assert_allclose(two, strip[[0, -1]], atol=1e-6)


def test_the_ends_are_the_walk_back_from_their_own_x_t():
    """Deterministic DDIM is affine here: strip = gain q_sample(x_0, eps) + offset, and both images share the gain."""
    strips = [interpolate(KEY, denoise, SCHEDULE, x * PAIR, **OPTIONS | {"num": 2}) for x in (0, 1)]
    gain = (strips[1] - strips[0]) / np.where(PAIR == 0, np.inf, PAIR)
    gain = gain[PAIR != 0] / float(SCHEDULE.sqrt_alpha_bars[25])
    np.testing.assert_allclose(gain, np.full_like(gain, gain[0]), rtol=1e-4)
    starts = [
        sample(
            KEY,
            denoise,
            SCHEDULE,
            times=range(25, -2, -1),
            shape=(4, 4, 1),
            x_T=jnp.full((1, 4, 4, 1), start),
            sampler=ddim(),
            clip=False,
        )
        for start in (0.0, 1.0)
    ]
    np.testing.assert_allclose(starts[1] - starts[0], np.full((1, 4, 4, 1), gain[0]), rtol=1e-4)


def test_barely_noised_images_come_back():
    strip = interpolate(KEY, denoise, SCHEDULE, PAIR, **OPTIONS | {"t": 0, "num": 2})
    np.testing.assert_allclose(strip, PAIR, atol=0.2)  # sigma_0 is 0.045


@pytest.mark.parametrize("sampler", [ddim(), ddpm()])
def test_an_affine_denoiser_mixes_the_images_evenly(sampler):
    """A Gaussian world is affine in x_t: equal parts of latents are equal parts of images, symmetric about the middle.

    With ddpm's noise too, for all mixtures share it.
    """
    strip = interpolate(KEY, denoise, SCHEDULE, PAIR, **OPTIONS | {"sampler": sampler})
    part = np.linspace(0, 1, 9).reshape(9, 1, 1, 1)
    np.testing.assert_allclose(strip, (1 - part) * strip[0] + part * strip[-1], atol=1e-5)
    np.testing.assert_allclose(strip + strip[::-1], np.broadcast_to(2 * strip[4], strip.shape), atol=1e-5)
    assert not np.allclose(strip[0], strip[-1], atol=0.1)


@pytest.mark.parametrize(
    ("x_0", "change", "message"),
    [
        (PAIR[:1], {}, "takes a pair of images and num >= 2, got 1 images and num=9"),
        (PAIR, {"num": 1}, "takes a pair of images and num >= 2, got 2 images and num=1"),
        (PAIR, {"t": 50}, "t must lie in 0 .. 49, got 50"),
        (PAIR, {"t": -1}, "t must lie in 0 .. 49, got -1"),
    ],
)
def test_bad_input_is_refused(x_0, change, message):
    with pytest.raises(ValueError, match=message):
        interpolate(KEY, denoise, SCHEDULE, x_0, **OPTIONS | change)


X_0 = jnp.broadcast_to(jnp.array([-1.0, 0.5, 1.0, 1.7])[:, None, None, None], (4, 64, 64, 1))


def test_walk_back_ends_at_x_0_exactly():
    """Whatever its range, and with more frames than steps too."""
    for frames in (5, 60):
        path = walk_back(KEY, SCHEDULE, X_0, frames=frames)
        assert path.x_t.shape == (frames, 4, 64, 64, 1)
        np.testing.assert_array_equal(path.x_t[-1], X_0)
        np.testing.assert_array_equal(path.x_0, np.broadcast_to(X_0, path.x_0.shape))


def test_walk_back_passes_through_q_of_x_t_given_x_0():
    """Noise in, posterior out: at every frame mean and variance are the forward process's (4096 draws, 4.5 errors)."""
    path = walk_back(KEY, SCHEDULE, X_0, frames=5)
    alpha_bars = np.cumprod(1 - np.linspace(20 * 1e-4, 20 * 0.02, 50))
    for frame, done in list(enumerate(frame_steps(50, 5)))[:-1]:
        alpha_bar = alpha_bars[49 - done]
        for image, x_0 in zip(path.x_t[frame], (-1.0, 0.5, 1.0, 1.7), strict=True):
            deviation = np.sqrt(1 - alpha_bar)
            assert image.mean() == pytest.approx(np.sqrt(alpha_bar) * x_0, abs=4.5 * deviation / 64)
            assert image.std() == pytest.approx(deviation, rel=4.5 / np.sqrt(2 * 4096))
