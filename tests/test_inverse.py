"""Inverse problems in normal worlds: what is measured, and what the posterior is, are matrices in float64."""

import jax
import jax.numpy as jnp
import joint
import numpy as np
import pytest

from ddpm_jax.diffusion import processes
from ddpm_jax.sampling import ddim, ddpm, inverse, sample

KEY = jax.random.key(0)
VP = processes.vp()
IMAGE = np.array([1.2, 0.0, -0.4, 0.0])
MASK = joint.KNOWN.astype(np.float32)
A = np.eye(4)[joint.KNOWN]
ROUND = np.eye(4)
DENOISE, ROUND_DENOISE = joint.denoiser(VP), joint.denoiser(VP, covariance=ROUND)
OPTIONS = {"prediction": "x0", "clip": False, "shape": joint.SHAPE}


def places(steps):
    return np.append(np.linspace(1.0, 1e-3, steps), 0.0)


def guided(covariance, noise=0.0, weight=1.0):
    """Song et al. 2023, Eq. 5 to 7: the moved prediction of x_0, affine in x_t."""

    def moved(alpha, sigma):
        gain, offset = joint.prediction(alpha, sigma, covariance=covariance)
        r2 = sigma**2 / (alpha**2 + sigma**2)
        pull = weight * sigma**2 / alpha * gain.T @ A.T @ np.linalg.inv(r2 * A @ A.T + noise**2 * np.eye(2))
        return gain - pull @ A @ gain, offset + pull @ (IMAGE[joint.KNOWN] - A @ offset)

    return moved


def restored(around, *, num, steps, covariance=joint.COVARIANCE, sampler=None, batch_size=None, **options):
    own = np.broadcast_to(MASK.reshape(joint.SHAPE), (num, *joint.SHAPE))
    drawn = inverse.restore(
        KEY,
        ROUND_DENOISE if covariance is ROUND else DENOISE,
        VP,
        own * IMAGE.reshape(joint.SHAPE).astype(np.float32),
        inverse.mask,
        around,
        own=own,
        times=places(steps),
        sampler=sampler or ddim(),
        batch_size=batch_size or num,
        **OPTIONS | options,
    )
    return drawn.reshape(num, 4).astype(np.float64)


def assert_moments(drawn, mean, covariance):
    variances = np.diag(covariance)
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / len(drawn))
    assert (abs(drawn.mean(axis=0) - mean) <= 4.5 * np.sqrt(variances / len(drawn)) + 1e-4).all()
    assert (abs(np.cov(drawn.T) - covariance) <= 4.5 * error + 1e-4).all()


def test_pigdm_of_a_round_normal_comes_to_the_posterior_at_the_order_of_its_solver():
    """Its r^2 is then the truth: a quarter of the error for four times the steps of DDIM."""
    true_mean, true_covariance = joint.given(A, IMAGE[joint.KNOWN], covariance=ROUND)
    errors = []
    for steps in (50, 200, 800):
        mean, covariance = joint.walk(VP, places(steps), guided(ROUND), joint.ddim)
        assert abs(mean - true_mean).max() < 1e-3
        errors.append(abs(covariance - true_covariance).max())
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4, rtol=0.05)
    drawn = restored(inverse.pigdm(inverse.mask), num=4096, steps=200, covariance=ROUND)
    assert_moments(drawn, *joint.walk(VP, places(200), guided(ROUND), joint.ddim))


@pytest.mark.parametrize(
    ("sampler", "step", "off"), [(ddim(), joint.ddim, 0.20), (ddpm(variance="small"), joint.ancestral, 0.13)]
)
def test_pigdm_of_a_correlated_normal_draws_what_its_approximation_gives(sampler, step, off):
    """It meets the measurement; the unknown pixels' mean is off by as much as r^2 I is wrong, whatever the steps."""
    true_mean, _ = joint.given(A, IMAGE[joint.KNOWN])
    mean, covariance = joint.walk(VP, places(50), guided(joint.COVARIANCE), step)
    assert abs(mean - true_mean).max() == pytest.approx(off, abs=0.005)
    drawn = restored(inverse.pigdm(inverse.mask), num=4096, steps=50, sampler=sampler)
    assert_moments(drawn, mean, covariance)
    assert abs(drawn - IMAGE)[:, joint.KNOWN].max() < 0.03


def test_pigdm_of_a_round_normal_is_right_along_another_process_too():
    """Variance exploding, where r^2 = sigma^2 / (1 + sigma^2) is far from sigma^2; with a noisy measurement."""
    ve = processes.ve()
    own = np.broadcast_to(MASK.reshape(joint.SHAPE), (4096, *joint.SHAPE))
    drawn = inverse.restore(
        KEY,
        joint.denoiser(ve, covariance=ROUND),
        ve,
        own * IMAGE.reshape(joint.SHAPE).astype(np.float32),
        inverse.mask,
        inverse.pigdm(inverse.mask, noise=0.5),
        own=own,
        times=places(900),
        sampler=ddim(),
        batch_size=4096,
        **OPTIONS,
    ).reshape(4096, 4)
    mean, covariance = joint.given(A, IMAGE[joint.KNOWN], noise=0.5, covariance=ROUND)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=5 / np.sqrt(4096))
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.1)


def test_noise_in_the_measurement_is_left_room_for():
    around = inverse.pigdm(inverse.mask, noise=0.5)
    exact = joint.walk(VP, places(50), guided(joint.COVARIANCE, noise=0.5), joint.ddim)
    assert_moments(restored(around, num=4096, steps=50), *exact)
    assert exact[1][0, 0] > 0.02


def test_dps_meets_the_measurement_and_comes_nearer_than_the_prior_to_the_truth():
    """An approximation: measured here, with 200 steps of size 0.3."""
    true_mean, true_covariance = joint.given(A, IMAGE[joint.KNOWN])
    drawn = restored(inverse.dps(inverse.mask, scale=0.3), num=4096, steps=200, sampler=ddpm(variance="small"))
    assert abs(drawn - IMAGE)[:, joint.KNOWN].max() < 0.4
    assert abs(joint.MEAN - true_mean).max() > 0.8
    assert abs(drawn.mean(axis=0) - true_mean).max() < 0.15
    assert abs(np.cov(drawn.T) - true_covariance).max() < 0.06


def test_without_weight_both_are_plain_sampling():
    plain = sample(KEY, DENOISE, VP, num=8, batch_size=8, times=places(20), sampler=ddim(), **OPTIONS).reshape(8, 4)
    for around in (inverse.dps(inverse.mask, scale=0.0), inverse.pigdm(inverse.mask, weight=0.0)):
        np.testing.assert_allclose(restored(around, num=8, steps=20), plain, atol=1e-5)


@pytest.mark.parametrize("make", [inverse.dps, inverse.pigdm])
def test_an_image_depends_on_its_own_number_and_measurement_only(make):
    around = make(inverse.mask)
    together = restored(around, num=5, steps=20)
    np.testing.assert_allclose(restored(around, num=5, steps=20, batch_size=2), together, atol=1e-5)
    np.testing.assert_array_equal(restored(around, num=5, steps=20), together)


def test_a_matrix_is_as_good_as_a_mask():
    rows = np.broadcast_to(A.astype(np.float32), (6, 2, 4))
    y = np.broadcast_to(IMAGE[joint.KNOWN].astype(np.float32), (6, 2))
    options = {"times": places(20), "sampler": ddim(), "batch_size": 6, **OPTIONS}
    around = inverse.pigdm(inverse.matrix, noise=0.1)
    drawn = inverse.restore(KEY, DENOISE, VP, y, inverse.matrix, around, own=rows, **options)
    masked = restored(inverse.pigdm(inverse.mask, noise=0.1), num=6, steps=20)
    np.testing.assert_allclose(drawn.reshape(6, 4), masked, atol=1e-5)


def _own(name):
    rng = np.random.default_rng(1)
    return {
        "mask": jnp.asarray(rng.random((1, 4, 4, 3)) < 0.5, jnp.float32),
        "matrix": jnp.asarray(rng.standard_normal((1, 5, 48)), jnp.float32),
    }.get(name, ())


MEASUREMENTS = {
    "mask": inverse.mask,
    "gray": inverse.gray,
    "average_pool": inverse.average_pool(2),
    "blur": inverse.blur(0.8),
    "matrix": inverse.matrix,
}


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize("noise2", [0.0, 0.3])
def test_solve_is_the_inverse_of_the_measured_covariance(name, noise2):
    """Against the matrix of apply, written out; where that is singular, its pseudo-inverse."""
    measurement, own, r2 = MEASUREMENTS[name], _own(name), 0.7
    apply = lambda x: measurement.apply(x.reshape(1, 4, 4, 3), own)  # noqa: E731
    dense = np.asarray(jax.jacobian(lambda x: apply(x).ravel())(jnp.zeros(48)), np.float64)
    y = apply(jnp.asarray(np.random.default_rng(2).standard_normal(48), jnp.float32))
    covariance = r2 * dense @ dense.T + noise2 * np.eye(y.size)
    wanted = np.linalg.pinv(covariance, rcond=1e-6) @ np.asarray(y, np.float64).ravel()
    got = np.asarray(measurement.solve(y, own, jnp.float32(r2), noise2)).ravel()
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-3 * abs(wanted).max())


def test_blur_keeps_the_mean_and_smooths_a_wave_as_a_gaussian_does():
    """A cosine of angular frequency w is left with exp(-w^2 s^2 / 2) of itself."""
    waves = np.cos(np.pi * 3 * (2 * np.arange(16) + 1) / 32).reshape(1, 1, 16, 1) * np.ones((1, 16, 1, 1))
    blurred = inverse.blur(1.3).apply(jnp.asarray(0.4 + waves, jnp.float32), ())
    w = np.pi * 3 / 16
    np.testing.assert_allclose(blurred, 0.4 + np.exp(-0.5 * w**2 * 1.3**2) * waves, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inverse.average_pool(1), "factor must be at least 2, got 1"),
        (lambda: inverse.average_pool(3).check((8, 8, 1)), "factor must divide the sides of the images, 8x8, got 3"),
        (lambda: inverse.gray.check((8, 8, 1)), "colours are found for images of 3 channels, got 1"),
        (lambda: inverse.blur(0.0), "deviation must be positive, got 0.0"),
        (lambda: inverse.dps(inverse.mask, scale=-1.0), "scale must be 0 or more, got -1.0"),
        (lambda: inverse.pigdm(inverse.mask, noise=-1.0), "noise and weight must be 0 or more, got -1.0 and 1.0"),
        (
            lambda: inverse.restore(
                KEY, None, VP, np.zeros((2, 2, 2, 1)), inverse.average_pool(2), None, shape=(8, 8, 1)
            ),
            r"y must be the measurement of images \(8, 8, 1\), of shape \(2, 4, 4, 1\), got \(2, 2, 2, 1\)",
        ),
    ],
)
def test_what_can_not_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
