"""What guidance does to an output besides moving it: variance, deviation, time, and where nothing is to be moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.parameterization import PREDICTIONS
from ddpm_jax.sampling import guidance
from ddpm_jax.sampling.guidance_weights import interval

COSINE = schedules.cosine(1000)
LABELS = jnp.array([0, 1])
X = jax.random.normal(jax.random.key(0), (2, 4, 2, 1))
TIME = jnp.array([300.0, 600.0])


def plain(x, time, labels):
    """A network's answer that means nothing, other for each label."""
    return jnp.sin(3 * x + labels.reshape(-1, 1, 1, 1)) * (1 + labels.reshape(-1, 1, 1, 1)) + time[0] / 1000


def worse(x, time, labels):
    return 0.5 * x


def log_prob(x, time, labels):
    return (x**2).sum((1, 2, 3)) * (1 + labels)


def with_variance(x, time, labels):
    return jnp.concatenate([plain(x, time, labels), 10.0 + x + labels.reshape(-1, 1, 1, 1)], axis=-1)


@pytest.mark.parametrize(("wrap", "other", "none"), [("classifier", log_prob, 0.0), ("autoguidance", worse, 1.0)])
def test_the_other_wrappers_vanish_outside_their_interval_too(wrap, other, none):
    """Cosine's sigma at t = 300 is 0.5, at 600 1.4: of a batch of both, each image has its own weight."""
    found = []
    for low, high in ((2.0, 3.0), (1.0, 3.0), (0.1, 3.0)):
        weight = interval(3.0, low, high, outside=none)
        got = jax.jit(getattr(guidance, wrap)(plain, other, weight, schedule=COSINE))(X, TIME, LABELS)
        same = np.asarray(got == jax.jit(plain)(X, TIME, LABELS))
        found.append([bool(same[0].all()), bool(same[1].all())])
    assert found == [[True, True], [True, False], [False, False]]


def test_the_variance_stays_that_of_the_guided_answer():
    wrapped = (
        guidance.classifier_free(with_variance, 3.0, 5),
        guidance.autoguidance(with_variance, worse, 3.0),
        guidance.classifier(with_variance, log_prob, 1.0, schedule=COSINE),
    )
    unled, *led = jax.jit(lambda x: [denoise(x, TIME, LABELS) for denoise in (with_variance, *wrapped)])(X)
    for got in led:
        np.testing.assert_array_equal(got[..., 1:], unled[..., 1:])
        assert not np.array_equal(got[..., :1], unled[..., :1])


def test_rescaling_takes_each_image_back_to_its_own_deviation():
    """Lin et al. 2023, Eq. 15 and 16, in NumPy."""
    own, none = (np.float64(jax.jit(plain)(X, TIME, labels)) for labels in (LABELS, jnp.full(2, 5)))
    moved = none + 4.0 * (own - none)
    ratio = (own.reshape(2, -1).std(axis=1) / moved.reshape(2, -1).std(axis=1)).reshape(2, 1, 1, 1)
    ask = jax.jit(lambda phi: guidance.classifier_free(plain, 4.0, 5, rescale=phi)(X, TIME, LABELS))
    for phi in (0.0, 0.7, 1.0):
        got = ask(phi)
        np.testing.assert_allclose(got, phi * moved * ratio + (1 - phi) * moved, rtol=1e-4, atol=1e-4)
    assert (ratio < 0.8).all()


def test_a_flat_image_can_be_rescaled_and_differentiated():
    flat = guidance.classifier_free(lambda x, time, labels: 0 * x, 4.0, 5, rescale=0.7)
    assert (jax.jit(jax.grad(lambda x: flat(x, TIME, LABELS).sum()))(X) == 0).all()


def test_a_network_of_another_schedule_is_told_its_own_time():
    """Time in the linear schedule at the log-SNR of the cosine one's t; at the linear one's ends beyond them."""
    linear, cosine = schedules.linear(), schedules.cosine(500)
    told = guidance.retold(lambda x, time: time, linear, cosine)
    for t in (3, 200, 498):
        [time] = told(X[:1], cosine.times[jnp.array([t])])
        own = jnp.interp(time, linear.times, linear.log_snr)
        wanted = np.clip(cosine.log_snr[t], linear.log_snr[-1], linear.log_snr[0])
        assert float(own) == pytest.approx(float(wanted), abs=1e-4)


def test_without_signal_a_classifier_does_no_harm():
    schedule = schedules.zero_terminal_snr(schedules.linear())
    led = [guidance.classifier(plain, log_prob, 2.0, schedule=schedule, prediction=name) for name in PREDICTIONS]
    said = jax.jit(lambda x: [denoise(x, schedule.times[jnp.array([999, 0])], LABELS) for denoise in led])(X)
    assert all(np.isfinite(answer).all() for answer in said)


def test_a_changing_weight_needs_the_schedule():
    with pytest.raises(ValueError, match="a weight that changes with the noise needs the network's schedule, got none"):
        guidance.classifier_free(plain, interval(2.0, 0.1, 1.0), 5)
