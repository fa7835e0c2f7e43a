"""The bound in continuous time, where x_0 ~ N(mean, std^2) makes its integral a closed form."""

import functools

import float64
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from ddpm_jax.diffusion import bound as discrete
from ddpm_jax.diffusion import continuous, schedules, timesteps
from ddpm_jax.diffusion.continuous import bound, learned, of_schedule
from ddpm_jax.diffusion.parameterization import PREDICTIONS

KEY = jax.random.key(0)
WORLD = float64.World(mean=0.1, std=0.125)
"""Narrow, so that no byte lies at the edge."""
IMAGES = 2048
EVEN = schedules.log_snr_linear(100, 8.0, -6.0)


def uneven(seed=0):
    """A learned curve whose pieces are up to 50 times as wide as others."""
    params = continuous.init(EVEN)
    logits = jax.random.uniform(jax.random.key(seed), params["logits"].shape, minval=-2, maxval=2)
    return learned(params | {"logits": logits}, 8.0, -6.0)


FLAT = learned(continuous.init(EVEN), 8.0, -6.0)
CURVES = {
    "linear": of_schedule(schedules.linear()),
    "cosine": of_schedule(schedules.cosine(100)),
    "log_snr_linear": of_schedule(EVEN),
    "learned": uneven(),
}


def of_world(prediction, curve):
    """The exact denoiser: it reads log-SNR off its time, which rises along the curve."""

    def denoise(x_u, time):
        log_snr = jnp.interp(time, curve.times, curve.log_snr).reshape(-1, *[1] * (x_u.ndim - 1))
        a, s = jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))
        x_0, eps = WORLD.best(a, s, x_u)
        return {"eps": eps, "x0": x_0, "v": a * eps - s * x_0, "score": -eps / s, "flow": eps - x_0}[prediction]

    return denoise


def draw_bytes(key, shape):
    """x_0 as 8-bit data; rounding adds 1e-5 to a variance of 0.0156, which the decoder's noise hides."""
    x_0 = WORLD.mean + WORLD.std * jax.random.normal(key, shape)
    return jnp.round((x_0 + 1) * 127.5) / 127.5 - 1


X_0 = draw_bytes(jax.random.key(1), (IMAGES, 2))


def mse(log_snr):
    """E (eps - eps_hat)^2 over the noise, for this X_0; it is quadratic in x_0.

    eps - eps_hat = (SNR s^2 eps - sqrt(SNR) (x_0 - mean)) / (1 + SNR s^2)
    """
    snr, s2, square = np.exp(log_snr), WORLD.std**2, np.square(np.float64(X_0) - WORLD.mean).mean()
    return (snr**2 * s2**2 + snr * square) / (1 + snr * s2) ** 2


def expected(curve):
    """Prior, 1/2 integral of the error of eps over log-SNR, and decoder: in bits, in float64 and for this X_0."""
    first, last = float(curve.log_snr[0]), float(curve.log_snr[-1])
    diffusion = 0.5 * quad(mse, last, first, epsabs=1e-10, limit=200)[0] / float64.LOG_2
    end = 1 / (1 + np.exp(-last))
    prior = 0.5 * (end * np.square(np.float64(X_0)).mean() - end - np.log1p(-end)) / float64.LOG_2
    noise, weight = float64.gauss_hermite(60)
    middle = np.full(60, 2 * 140 / 255 - 1)
    decoder = weight @ float64.categorical_nll(middle, middle + np.exp(-first / 2) * noise, first) / float64.LOG_2
    return {"prior": prior, "diffusion": diffusion, "decoder": decoder}


@pytest.mark.parametrize("prediction", [name for name in PREDICTIONS if name != "mean"])
@pytest.mark.parametrize("curve", CURVES)
def test_the_bound_averages_to_its_integral(curve, prediction):
    """Within four standard errors of 2048 images, each at one u; the prior has no noise at all."""
    curve = CURVES[curve]
    drawn = bound(KEY, curve, of_world(prediction, curve), X_0, prediction=prediction)
    wanted = expected(curve)
    assert float(drawn.prior.mean()) == pytest.approx(wanted["prior"], rel=1e-4, abs=1e-7)
    for name in ("diffusion", "decoder"):
        values = np.asarray(getattr(drawn, name), np.float64)
        assert abs(values.mean() - wanted[name]) < 4 * values.std() / np.sqrt(IMAGES)
    np.testing.assert_allclose(drawn.total, drawn.prior + drawn.diffusion + drawn.decoder, rtol=1e-6)


@functools.partial(jax.jit, static_argnames="quantiles")
def diffusion(keys, curve, quantiles=timesteps.stratified):
    """The diffusion part of all images, a draw for each key."""
    return jax.vmap(
        lambda key: bound(key, curve, of_world("eps", curve), X_0, bits=1, quantiles=quantiles).diffusion.mean()
    )(keys)


def test_what_lies_between_the_ends_does_not_change_the_expectation():
    """Three curves with the same ends: what x_u at the first knows of x_0 and at the last doesn't."""
    wanted = expected(FLAT)["diffusion"]
    assert wanted == pytest.approx(WORLD.information(8.0) - WORLD.information(-6.0), rel=0.03)  # of this X_0
    for curve in (uneven(0), uneven(1), FLAT):
        np.testing.assert_allclose(curve.log_snr[jnp.array([0, -1])], [8.0, -6.0], rtol=1e-6)
        values = np.asarray(diffusion(jax.random.split(KEY, 64), curve), np.float64)
        error = values.std(ddof=1) / 8
        assert error < 0.01 * wanted
        assert abs(values.mean() - wanted) < 4 * error


def test_stratified_quantiles_make_the_estimate_quieter():
    """By what u alone brings to it; the noise of eps is left."""
    keys = jax.random.split(KEY, 200)
    quiet, noisy = (diffusion(keys, FLAT, how).var() for how in (timesteps.stratified, timesteps.independent))
    assert quiet < 0.8 * noisy


def test_a_curve_is_read_in_straight_pieces():
    curve = continuous.Curve(
        u=jnp.array([0.0, 0.25, 1.0]), log_snr=jnp.array([6.0, 2.0, -1.0]), times=jnp.array([0.0, 400.0, 1000.0])
    )
    log_snr, slope, time, piece = continuous.read(curve, jnp.array([0.0, 0.125, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(log_snr, [6, 4, 2, 1, -1], atol=1e-6)
    np.testing.assert_allclose(slope, [-16, -16, -4, -4, -4], rtol=1e-6)
    np.testing.assert_allclose(time, [0, 200, 400, 600, 1000], rtol=1e-6)
    np.testing.assert_array_equal(piece, [0, 0, 1, 1, 1])


@pytest.mark.parametrize("build", [schedules.linear, schedules.cosine])
def test_a_learned_curve_starts_as_its_schedule(build):
    schedule = build(100)
    first, last = float(schedule.log_snr[0]), float(schedule.log_snr[-1])
    curve = learned(continuous.init(schedule), first, last)
    u = jnp.linspace(0.02, 0.98, 30)
    # Equal bins of log-SNR cut the corners of the steep ends.
    found, wanted = continuous.read(curve, u)[0], continuous.read(of_schedule(schedule), u)[0]
    np.testing.assert_allclose(found, wanted, atol=0.1)
    np.testing.assert_allclose(curve.times[jnp.array([0, -1])], [0, 1000], atol=1e-3)
    back = continuous.as_schedule(continuous.init(schedule), first, last, 50)
    np.testing.assert_allclose(back.log_snr[jnp.array([0, -1])], [first, last], rtol=1e-5)


def test_a_learned_curve_tells_the_network_the_log_snr():
    """Whatever the ends have become: 0 where log-SNR is the old start, 1000 at the old end."""
    params = continuous.init(EVEN) | {"start": jnp.float32(9.0), "log_span": jnp.log(16.0)}
    curve = learned(params, 8.0, -6.0)
    np.testing.assert_allclose(curve.times, 1000 * (8.0 - curve.log_snr) / 14.0, rtol=1e-5, atol=1e-3)


def test_only_the_ends_learn_by_the_bound():
    """As Leibniz has it, by half of the error there; what lies between them has no gradient."""

    def value(params, key):
        return bound(key, learned(params, 8.0, -6.0), of_world("eps", FLAT), X_0, bits=1).diffusion.mean()

    params = continuous.init(EVEN) | {"log_span": jnp.log(6.0)}
    slopes = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(params, jax.random.split(KEY, 64))
    np.testing.assert_array_equal(slopes["logits"], np.zeros((64, continuous.BINS)))
    for name, exact in {"start": 0.5 * (mse(8.0) - mse(2.0)), "log_span": 0.5 * mse(2.0) * 6}.items():
        values = np.asarray(slopes[name], np.float64) * float64.LOG_2
        error = values.std(ddof=1) / 8
        assert error < 0.05 * exact
        assert abs(values.mean() - exact) < 4 * error


def test_the_draws_gradient_is_that_of_the_second_moment():
    """Of log E[diffusion^2]: each bin's chance less its share of that, for the exact denoiser's normal errors.

    With p_k the chance of bin k, f = c_k / p_k there and E[f^2] = sum_k c_k^2 / p_k.
    """
    logits = continuous.init(EVEN)["logits"]

    def value(logits):
        return continuous.loss(KEY, FLAT, of_world("eps", FLAT), X_0, logits=logits)[0]

    total, found = jax.value_and_grad(value)(logits)
    drawn = bound(KEY, FLAT, of_world("eps", FLAT), X_0)
    assert float(total) == pytest.approx(float(drawn.total.mean()), rel=1e-6)  # a value of 0
    knots = np.linspace(8.0, -6.0, continuous.BINS + 1)
    snr, s2 = np.exp((knots[1:] + knots[:-1]) / 2), WORLD.std**2
    share = (snr * s2 / (1 + snr * s2)) ** 2
    wanted = 1 / continuous.BINS - share / share.sum()
    pooled = [np.asarray(a, np.float64).reshape(10, 10).sum(axis=1) for a in (found, wanted)]
    np.testing.assert_allclose(pooled[0], pooled[1], atol=0.03)
    assert abs(pooled[0].sum()) < 1e-5


def test_the_loss_is_the_mean_bound_with_its_terms():
    curve = CURVES["linear"]
    value, terms = continuous.loss(KEY, curve, of_world("eps", curve), X_0, num_steps=1000)
    drawn = bound(KEY, curve, of_world("eps", curve), X_0)
    assert float(value) == pytest.approx(float(drawn.total.mean()), rel=1e-6)
    np.testing.assert_array_equal(terms.objective, drawn.total)
    np.testing.assert_allclose(terms.t, np.minimum(1000 * drawn.u, 999), rtol=1e-6)


def test_many_small_steps_have_the_bound_of_continuous_time():
    """The same denoiser, 400 steps even in log-SNR with the small variance: 1 / T above it (ibid., App. F)."""
    wanted = expected(CURVES["log_snr_linear"])
    schedule = schedules.log_snr_linear(400, 8.0, -6.0)
    curve = of_schedule(schedule)
    found = discrete.bits_per_dim(
        KEY, schedule, of_world("eps", curve), X_0[:256], variance="small", clip=False, decoder="categorical"
    )
    total = sum(wanted.values())
    assert float(found.total.mean()) == pytest.approx(total, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "mean"}, "prediction in continuous time: there is no 'mean'"),
        ({"prediction": "epsilon"}, r"there is no 'epsilon', did you mean 'eps'\?"),
        ({"bits": 0}, r"bits must lie in 1 \.\. 16, got 0"),
    ],
)
def test_what_has_no_meaning_without_steps_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bound(KEY, CURVES["linear"], lambda x, _: x, X_0[:2], **options)


def test_an_output_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"denoise must return the shape of x_0, \(2, 2\), got \(2, 4\)"):
        bound(KEY, CURVES["linear"], lambda x, _: jnp.concatenate([x, x], -1), X_0[:2])


def test_a_curve_needs_two_steps():
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        of_schedule(schedules.linear(1))
