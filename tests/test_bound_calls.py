"""How the bound is called: batches, compilation, times and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import bound, schedules

KEY = jax.random.key(0)
SHORT = schedules.log_snr_linear(12, 6.0, -8.0)
X_0 = 0.5 * jax.random.normal(jax.random.key(1), (16, 8, 1))


def shrink(x_t, time):
    """A network that isn't right, and not the same at all times."""
    return x_t * (0.5 + time / 2000).reshape(-1, *[1] * (x_t.ndim - 1))


def test_an_image_has_its_own_noise_whatever_the_batch():
    """Image 5 in a batch of 16 and in another's company; without `indices` it would have image 1's noise."""
    whole = bound.bits_per_dim(KEY, SHORT, shrink, X_0, clip=False)
    pair = bound.bits_per_dim(KEY, SHORT, shrink, X_0[jnp.array([9, 5])], indices=jnp.array([9, 5]), clip=False)
    np.testing.assert_allclose(pair.terms, whole.terms[jnp.array([9, 5])], rtol=1e-4, atol=1e-6)
    other = bound.bits_per_dim(KEY, SHORT, shrink, X_0[jnp.array([9, 5])], clip=False)
    assert (np.abs(other.terms / pair.terms - 1) > 1e-3).mean() > 0.9


def test_the_network_is_traced_once_for_equal_shapes():
    traces = []

    def denoise(weight, x_t, time):
        del time
        traces.append(x_t.shape)
        return weight * x_t

    totals = []
    for weight in (0.0, 0.5):
        network = jax.tree_util.Partial(denoise, jnp.float32(weight))
        totals.append(bound.bits_per_dim(jax.random.key(3), SHORT, network, X_0[:2]).total)
        assert len(traces) == 1
    assert (totals[0] != totals[1]).all()


def test_l_t_of_the_linear_schedule_is_the_published_one():
    x_0 = jnp.stack([jnp.zeros((2, 1)), jnp.full((2, 1), 3**-0.5), -jnp.ones((2, 1))])
    found = bound.bits_per_dim(KEY, schedules.linear(), lambda x, _: x, x_0)
    np.testing.assert_allclose(
        found.prior, [5.874783886761826e-10, 9.704706792354604e-06, 2.911294542028646e-05], rtol=2e-6
    )


@pytest.mark.parametrize(("num_steps", "skip"), [(4000, 1), (4000, 40), (1000, 7)])
def test_the_network_is_told_the_long_schedules_times(num_steps, skip):
    """It answers with its time as x_0; of an image of zeros, the error is then the time."""
    schedule = schedules.cosine(num_steps)
    if skip > 1:
        schedule = schedules.respace(schedule, range(0, num_steps, skip))
    found = bound.bits_per_dim(
        KEY,
        schedule,
        lambda x_t, time: 0 * x_t + time[:, None],
        jnp.zeros((1, 1)),
        prediction="x0",
        variance="small",
        clip=False,
    )
    times = np.sqrt(np.asarray(found.mse[0], np.float64))
    np.testing.assert_allclose(times, np.arange(0, num_steps, skip) * 1000 / num_steps, rtol=1e-5, atol=1e-6)
    assert times.max() < 1000
    assert np.isfinite(found.total).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance": "learnt"}, r"variance: there is no 'learnt', did you mean 'learned'\?"),
        ({"variance": "medium:1.5"}, r"medium:F takes F in \[0, 1\], got medium:1.5"),
        ({"variance": "learned"}, "a learned variance needs a network with twice as many outputs as channels"),
        ({"decoder": "gausian"}, r"decoder: there is no 'gausian', did you mean 'gaussian'\?"),
        ({"prediction": "epsilon"}, r"there is no 'epsilon', did you mean 'eps'\?"),
        ({"bits": 0}, r"bits must lie in 1 \.\. 16, got 0"),
        ({"bits": 17, "decoder": "categorical"}, r"bits must lie in 1 \.\. 16, got 17"),
        ({"denoise": lambda x, _: jnp.concatenate([x, x, x], -1)}, r"must return 1 channels, or 2 with a variance"),
    ],
)
def test_what_does_not_exist_is_refused(options, message):
    options = {"denoise": lambda x, _: x} | options
    for function in (bound.bits_per_dim, bound.estimate):
        with pytest.raises(ValueError, match=message):
            function(KEY, SHORT, options["denoise"], X_0[:2], **{k: v for k, v in options.items() if k != "denoise"})


@pytest.mark.parametrize(("num_t", "num_steps"), [(0, 24), (8, 1)])
def test_an_estimate_of_too_little_is_refused(num_t, num_steps):
    with pytest.raises(ValueError, match=f"num_t >= 1 and a schedule of at least 2 steps, got {num_t} and {num_steps}"):
        bound.estimate(KEY, schedules.linear(num_steps), shrink, X_0[:2], num_t=num_t)


def test_probabilities_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"probabilities must have shape \(11,\), got \(24,\)"):
        bound.estimate(KEY, SHORT, shrink, X_0[:2], probabilities=jnp.ones(24))


def test_one_image_has_an_estimate_but_no_error():
    found = bound.estimate(KEY, SHORT, shrink, X_0[:1])
    assert np.isfinite(found.mean)
    assert np.isinf(found.standard_error)


@pytest.mark.parametrize(
    "schedule", [schedules.zero_terminal_snr(schedules.linear(20)), schedules.jsd(20), schedules.laplace(20)]
)
def test_an_estimate_is_finite_where_the_last_step_has_no_signal(schedule):
    whole = bound.bits_per_dim(KEY, schedule, shrink, X_0[:2], prediction="x0")
    few = bound.estimate(KEY, schedule, shrink, X_0[:2], prediction="x0", num_t=64)
    np.testing.assert_allclose(few.mean, whole.total.mean(), rtol=0.2)
