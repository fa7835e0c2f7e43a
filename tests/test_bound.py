"""The bound in a world whose every term is known: x_0 ~ N(mean, std^2) and its exact denoiser."""

import float64
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import bound, schedules
from ddpm_jax.diffusion.parameterization import PREDICTIONS

LINEAR = schedules.linear()
TABLE = float64.tables(float64.linear_betas())
KEY = jax.random.key(0)
START, END = 6.0, -8.0
WORLD = float64.World()
FIXED = {"large": None, "small": None, "medium:0.5": None, "learned_range": 0.3}
"""Variances, and the v of one that is learned."""


def even_steps(num_steps, start=START, end=END):
    """Steps equally small in log-SNR, in float32 and in float64."""
    return schedules.log_snr_linear(num_steps, start, end), float64.tables(float64.log_snr_betas(num_steps, start, end))


def expected_terms(world, steps, prediction, variance, v=None, *, x_0=None, nodes=3, batch=4608, **options):
    """E L_t in bits, [T] or for given x_0 [N, T], by Gauss-Hermite nodes of (x_0, eps) through `bound.term`.

    Terms t >= 1 are quadratic in both, so that 3 nodes are exact. All goes through in a batch of one size, for which
    everything is compiled once.
    """
    schedule, table = steps
    x, weight = float64.gauss_hermite(nodes)
    points, chance = (world.mean + world.std * x, weight) if x_0 is None else (np.asarray(x_0), np.eye(len(x_0)))
    shape = (schedule.num_steps, len(points), nodes)
    t, x_0, eps = (
        a.reshape(-1) if a.dtype == int else a.reshape(-1, 1)
        for a in np.broadcast_arrays(np.arange(shape[0])[:, None, None], points[:, None], x)
    )
    x_t = float64.q_sample(table, x_0, eps, t)
    best = world.best(table.signal[t][:, None], table.noise[t][:, None], x_t)
    output = float64.say(table, prediction, *best, t)
    if v is not None:
        output = np.concatenate([output, np.broadcast_to(v, shape[:1])[t][:, None]], axis=1)
    filled = (jnp.asarray(np.resize(a, (batch, *a.shape[1:])), jnp.float32) for a in (output, x_0, x_t))
    index = jnp.asarray(np.resize(t, batch))
    bits, _ = bound.term(schedule, *filled, index, prediction=prediction, variance=variance, **options)
    return np.einsum("tne,...n,e->...t", np.asarray(bits[: t.size], np.float64).reshape(shape), chance, weight)


def expected_prior(world, schedule):
    """E L_T in bits; it is quadratic in x_0 too."""
    x, weight = float64.gauss_hermite(3)
    x_0 = jnp.asarray(world.mean + world.std * x, jnp.float32)[:, None]
    return float(weight @ np.asarray(bound.prior_kl(schedule, x_0), np.float64))


def expected_rate(world, steps, *how):
    return expected_prior(world, steps[0]) + expected_terms(world, steps, *how)[1:].sum()


def of_world(prediction, schedule, world=WORLD):
    """The exact denoiser as a function of a network's time."""

    def denoise(x_t, time):
        t = jnp.round(time * schedule.num_steps / 1000).astype(int)
        a, s = (
            table[t].reshape(-1, *[1] * (x_t.ndim - 1))
            for table in (schedule.sqrt_alpha_bars, schedule.sqrt_one_minus_alpha_bars)
        )
        x_0, eps = world.best(a, s, x_t)
        return {"x0": x_0, "eps": eps, "v": a * eps - s * x_0}[prediction]

    return denoise


def draw_world(key, shape, world=WORLD):
    return world.mean + world.std * jax.random.normal(key, shape)


@pytest.mark.parametrize("variance", FIXED)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_rate_falls_to_the_mutual_information_as_steps_shrink(prediction, variance):
    """With a variance that is right only for endless steps, each costs a KL of order 1 / T^2, T of them 1 / T.

    At any T the rate is the closed form; float32 terms are good to 1e-5 of it.
    """
    v, wanted = FIXED[variance], WORLD.information(START)
    errors = []
    for num_steps in (64, 128):
        steps = even_steps(num_steps)
        rate = expected_rate(WORLD, steps, prediction, variance, v)
        logs = float64.log_variance(steps[1], variance, np.arange(num_steps), np.full(num_steps, v or 0.0))
        assert rate == pytest.approx(WORLD.rate(steps[1], logs), abs=3e-5)
        errors.append(rate - wanted)
    assert 0 < errors[1] < errors[0]
    assert 1.7 < errors[0] / errors[1] < 2.3


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_learned_variance_that_is_right_reaches_the_mutual_information_in_20_steps(prediction):
    """p(x_{t-1} | x_t) is then q(x_{t-1} | x_t) itself; the end's gap, KL(q(x_T) || N(0, I)), is below 1e-5."""
    steps = even_steps(20)
    assert WORLD.prior_gap(steps[1]) < 1e-5
    rate = expected_rate(WORLD, steps, prediction, "learned", np.log(WORLD.spread(steps[1])))
    assert rate == pytest.approx(WORLD.information(START), abs=1e-4)


def test_the_whole_bound_is_the_entropy_of_the_quantised_gaussian():
    """12 bits, with noise at the first index of 4 bins: sums over bins are then integrals but for exp(-300).

    What remains is the decoder's own gap: it takes all values for equally likely before it sees x_0's noised image,
    which costs KL(N(x_0 | z) || N(z, noise^2)) = log2(1 + noise^2 / std^2) / 2 on average, 1.8e-4 bits.
    """
    bits, world = 12, float64.World(mean=0.1, std=0.125)
    values = np.linspace(-1, 1, 2**bits)
    bin_width = values[1] - values[0]
    start = -2 * np.log(4 * bin_width)
    chances = np.exp(-0.5 * ((values - world.mean) / world.std) ** 2)
    chances /= chances.sum()
    entropy = -(chances * np.log2(np.maximum(chances, 1e-300))).sum()
    assert entropy == pytest.approx(0.5 * np.log2(2 * np.pi * np.e * (world.std / bin_width) ** 2), abs=1e-9)
    gap = 0.5 * np.log2(1 + (4 * bin_width / world.std) ** 2)
    assert gap < 2e-4

    steps = even_steps(20, start, -10.0)
    first = jax.tree.map(lambda row: row[:2], steps[0]), steps[1]
    grid = values[[np.argmin(np.abs(values - world.mean))]]
    kind = {"bits": bits, "decoder": "categorical"}
    decoder = expected_terms(world, first, "eps", "large", x_0=grid, nodes=16, batch=32, **kind)[0, 0]
    assert decoder == pytest.approx(0.5 * np.log2(2 * np.pi * np.e * 16), abs=1e-4)

    exact = expected_rate(world, steps, "eps", "learned", np.log(world.spread(steps[1]))) + decoder
    assert exact == pytest.approx(entropy + gap, abs=3e-4)
    for variance in ("large", "small"):
        some, more = (expected_rate(world, even_steps(n, start, -10.0), "eps", variance) + decoder for n in (256, 512))
        assert some > more > entropy + gap
        # Without its part in 1 / T; that in 1 / T^2 is left.
        assert 2 * more - some == pytest.approx(entropy + gap, abs=0.01)


SHORT = even_steps(24)
DENOISE = of_world("eps", SHORT[0])
X_0 = draw_world(jax.random.key(1), (256, 8, 1))


def test_bits_per_dim_agrees_with_the_quadrature_term_by_term():
    """256 images of 8 dimensions: within four standard errors, and so is the error of x_0, its posterior variance."""
    schedule, table = SHORT
    found = bound.bits_per_dim(KEY, schedule, DENOISE, X_0, clip=False)
    terms = expected_terms(WORLD, SHORT, "eps", "large", nodes=12)
    wanted = {
        "terms": terms,
        "prior": expected_prior(WORLD, schedule),
        "total": terms.sum() + expected_prior(WORLD, schedule),
        "mse": WORLD.std**2 * table.noise**2 / (table.alpha_bar * WORLD.std**2 + table.noise**2),
    }
    for name, value in wanted.items():
        drawn = np.asarray(getattr(found, name), np.float64)
        error = drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn))
        assert (np.abs(drawn.mean(axis=0) - value) < 4 * error).all(), name


def test_rate_and_distortion_add_up_to_the_total():
    found = bound.bits_per_dim(KEY, SHORT[0], DENOISE, X_0, clip=False)
    np.testing.assert_allclose(found.rate + found.distortion, found.total, rtol=1e-6)
    np.testing.assert_allclose(found.prior + found.terms.sum(axis=1), found.total, rtol=1e-6)
    rate, rmse = found.rate_distortion()
    assert rate.shape == rmse.shape == (256, 24)
    np.testing.assert_array_equal(rate[:, 0], found.prior)  # before anything else is sent
    np.testing.assert_allclose(rate[:, 1] - rate[:, 0], found.terms[:, -1], atol=1e-6)
    np.testing.assert_allclose(rate[:, -1] + found.terms[:, 0], found.total, rtol=1e-6)
    assert (np.diff(rate, axis=1) > 0).all()
    # Each column is what is known at that x_t: from x_{T-1}, nearly nothing, to x_0 noised once.
    np.testing.assert_allclose(rmse[:, 0], 127.5 * np.sqrt(found.mse[:, -1]), rtol=1e-6)
    assert np.sqrt(np.mean(rmse[:, 0] ** 2)) == pytest.approx(127.5 * WORLD.std, rel=0.1)
    assert np.sqrt(np.mean(rmse[:, -1] ** 2)) == pytest.approx(127.5 * np.exp(-START / 2), rel=0.1)


@jax.jit
def estimates(key, x_0, probabilities=None):
    """For every row of x_0 [K, B, ...] an estimate of its own."""

    def once(key, x):
        return bound.estimate(key, SHORT[0], DENOISE, x, num_t=2, clip=False, probabilities=probabilities)

    return jax.vmap(once)(jax.random.split(key, len(x_0)), x_0)


@pytest.mark.parametrize("probabilities", [None, jnp.linspace(1.0, 4.0, 23)])
def test_every_images_estimate_is_unbiased(probabilities):
    """Over 1500 keys, within four standard errors of the expectation for that image, by quadrature over the noise."""
    values = np.array([-0.9, -0.2, 0.1, 0.7])
    exact = expected_terms(WORLD, SHORT, "eps", "large", x_0=values, nodes=12).sum(axis=1)
    exact = exact + float64.prior_bits(SHORT[1], values[:, None])
    x_0 = np.broadcast_to(np.float32(values)[:, None, None], (1500, 4, 2, 1))
    totals = np.asarray(estimates(KEY, jnp.asarray(x_0), probabilities).total, np.float64)
    error = totals.std(axis=0, ddof=1) / np.sqrt(len(totals))
    assert (error < 0.03 * exact).all()
    assert (np.abs(totals.mean(axis=0) - exact) < 4 * error).all()


def test_an_estimate_knows_its_own_error():
    """Its standard error is the spread of its mean over 1500 keys and sets of images."""
    few = estimates(jax.random.key(2), draw_world(jax.random.key(3), (1500, 4, 2, 1)))
    few = jax.tree.map(lambda a: np.asarray(a, np.float64), few)
    np.testing.assert_allclose(few.mean, few.total.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(few.standard_error, few.total.std(axis=1, ddof=1) / 2, rtol=1e-4)
    assert np.sqrt((few.standard_error**2).mean()) == pytest.approx(few.mean.std(), rel=0.25)


def test_an_estimate_agrees_with_the_whole_sum_on_the_same_images():
    whole = bound.bits_per_dim(KEY, SHORT[0], DENOISE, X_0, clip=False)
    few = bound.estimate(jax.random.key(2), SHORT[0], DENOISE, X_0, clip=False)
    assert abs(float(few.mean) - float(whole.total.mean())) < 4 * float(few.standard_error)
    assert float(few.standard_error) < 0.1 * float(few.mean)


SOME_T = np.array([0, 1, 10, 100, 250, 500, 750, 900, 999])
WEIGHTS = {
    "large": [0.5000500050005551, 0.2726920842780491, 0.06822398899050612, 0.00999623022646137, 0.00533447937068327,
              0.00550973453343037, 0.00766007632106117, 0.00918193180156924, 0.01020449346863788],
    "small": [np.inf, 0.5996715121593821, 0.0789765416111674, 0.01017838341947422, 0.00536432130899201,
              0.0055144619596353, 0.00766046362590419, 0.00918197736927589, 0.01020450187380003],
}  # fmt: skip


def test_the_bounds_weights_on_the_error_of_eps_are_the_known_ones():
    for name, variance in {"large": LINEAR.betas, "small": LINEAR.posterior_variance}.items():
        np.testing.assert_allclose(bound.eps_weights(LINEAR, variance)[SOME_T], WEIGHTS[name], rtol=1e-5)


@pytest.mark.parametrize("variance", WEIGHTS)
def test_a_term_is_its_weight_times_the_error_of_eps_and_the_variances_own_part(variance):
    """KL of normals whose means lie beta / sqrt(alpha) / sigma apart for each unit of eps, at every t but 0."""
    t = SOME_T[1:]
    x_0, eps, miss = np.random.default_rng(0).uniform(0.3, 1, (3, t.size, 4))
    output = (jnp.asarray(a, jnp.float32) for a in (eps + miss, x_0, float64.q_sample(TABLE, x_0, eps, t)))
    bits, _ = bound.term(LINEAR, *output, jnp.asarray(t), variance=variance)
    ratio = TABLE.beta_tilde[t] / (TABLE.beta if variance == "large" else TABLE.beta_tilde)[t]
    nats = np.array(WEIGHTS[variance])[1:] * (miss**2).mean(axis=1) + 0.5 * (ratio - 1 - np.log(ratio))
    # At t = 1 the means are 0.002 apart, each rounded by 3e-8.
    np.testing.assert_allclose(bits, nats / float64.LOG_2, rtol=5e-5)
