"""The training objectives and their gradients against float64, for every prediction and every variance."""

import float64
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import reverse, schedules
from ddpm_jax.diffusion.loss import loss
from ddpm_jax.diffusion.parameterization import PREDICTIONS
from ddpm_jax.diffusion.timesteps import Draw

WORLDS = {
    "linear": (schedules.linear(), float64.tables(float64.linear_betas())),
    "cosine": (schedules.cosine(), float64.tables(float64.cosine_betas())),
}
KEY = jax.random.key(0)
SOME_T = np.array([0, 1, 500, 999])
THERE = Draw(quantiles=lambda key, size: (jnp.asarray(SOME_T)[:size] + 0.5) / 1000)
"""One image at each of SOME_T."""
SHAPE = (4, 3, 2)
RNG = np.random.default_rng(0)
X_0 = jnp.asarray(RNG.integers(0, 256, SHAPE) / 127.5 - 1, jnp.float32).at[:, 0].set(jnp.array([-1.0, 1.0]))
"""Bytes, those of the open bins among them."""
MISS = RNG.uniform(0.3, 1, SHAPE) * RNG.choice([-1, 1], SHAPE)
"""By how much the network errs in eps."""
V = {"learned": RNG.uniform(-0.7, 0.7, SHAPE), "learned_range": RNG.uniform(-1.2, 1.2, SHAPE)}


def value_and_gradient(world, output, x_0=X_0, **options):
    """Of the summed loss of the four images, and what the network was given."""
    seen = {}

    def total(output):
        def denoise(x_t, time):
            seen.update(x_t=x_t, time=time)
            return output

        value, terms = loss(KEY, WORLDS[world][0], denoise, x_0, draw_t=THERE, **options)
        np.testing.assert_array_equal(terms.t, SOME_T)
        return len(SOME_T) * value, terms

    (_, terms), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(output, jnp.float32))
    return terms, np.asarray(gradient, np.float64), seen


def noise(world):
    """The noise of KEY, seen through images of zeros: x_t = sigma eps."""
    _, _, seen = value_and_gradient(world, np.zeros(SHAPE), x_0=0 * X_0)
    return np.float64(seen["x_t"]) / float64.like(WORLDS[world][1].noise[SOME_T], X_0)


@pytest.fixture(scope="module")
def given():
    """For each schedule eps and x_t, as the network gets it."""
    parts = {}
    for world in WORLDS:
        _, _, seen = value_and_gradient(world, np.zeros(SHAPE))
        parts[world] = noise(world), np.float64(seen["x_t"])
    return parts


def answer(world, prediction, variance, given):
    """A network's float32 output, and its halves: off by MISS in eps, with a variance that isn't far off."""
    table, (eps, x_t) = WORLDS[world][1], given[world]
    a, s = float64.like(table.signal[SOME_T], x_t), float64.like(table.noise[SOME_T], x_t)
    hat = eps + MISS
    said = float64.say(table, prediction, (x_t - s * hat) / a, hat, SOME_T)
    v = V.get(variance, np.zeros(SHAPE))
    if variance == "learned":
        v = v + float64.log_variance(table, "small", SOME_T, v)
    output = np.concatenate([said, v], axis=-1) if variance in V else said
    output = np.float32(output)
    return output, np.float64(output[..., :2]), np.float64(np.float32(v))


def close(found, wanted, rtol, atol=0.0):
    """Relative to the largest of an image's entries: x_t of size 1 rounds by 6e-8, what is compared is a difference."""
    size = np.abs(wanted).reshape(len(wanted), -1).max(axis=1)
    assert (np.abs(np.float64(found) - wanted) <= atol + rtol * float64.like(size, wanted)).all()


# At t = 0 and 1 the means of p and q lie sigma MISS = 0.01 apart, and each rounds by 1e-7.
ROUNDING = 1e-4


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("world", WORLDS)
def test_simple_is_the_error_of_eps_whatever_is_predicted(world, prediction, given):
    table, (eps, x_t) = WORLDS[world][1], given[world]
    output, said, _ = answer(world, prediction, "large", given)
    terms, gradient, seen = value_and_gradient(world, output, prediction=prediction)
    np.testing.assert_allclose(seen["time"], SOME_T)

    def exact(said):
        return float64.simple(table, eps, x_t, SOME_T, said, prediction)

    # Some outputs hold eps with a factor of 1e-2 to 1e-4 (x0 at t = 0, mean): so much more does their rounding count.
    close(terms.objective, float64.images_mean(exact(said)), 5e-4)
    np.testing.assert_array_equal(terms.loss, terms.objective)
    slope = float64.slope(exact, said, 1e-4 * np.maximum(np.abs(said), 1e-2)) / said[0].size
    close(gradient, slope, 5e-4)
    target = float64.say(table, prediction, np.float64(X_0), eps, SOME_T)
    close(terms.mse, float64.images_mean((said - target) ** 2), 5e-4)


@pytest.mark.parametrize("variance", ["large", "small", "medium:0.5", "learned", "learned_range"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("world", WORLDS)
def test_the_bound_and_its_gradients_are_those_of_float64(world, prediction, variance, given):
    """The decoder at t = 0, KL elsewhere, T times as large, by the mean's half of the output and by the variance's."""
    table, (_, x_t) = WORLDS[world][1], given[world]
    output, said, v = answer(world, prediction, variance, given)
    terms, gradient, _ = value_and_gradient(world, output, prediction=prediction, objective="vlb", variance=variance)

    def exact(said, v):
        return float64.vlb(table, np.float64(X_0), x_t, SOME_T, said, v, prediction, variance)

    close(terms.objective, float64.images_mean(exact(said, v)), ROUNDING)
    t_1 = np.maximum(SOME_T, 1)
    # A thousandth of a deviation of p, as the output holds the mean.
    unit = np.sqrt(table.beta_tilde[t_1]) / table.of_x_0[t_1] / held(table, prediction)
    slope = float64.slope(lambda said: exact(said, v), said, 1e-3 * float64.like(unit, said))
    close(gradient[..., :2], slope / said[0].size, ROUNDING)
    if reverse.is_learned(variance):
        slope = float64.slope(lambda v: exact(said, v), v, 1e-5)
        # A range's v moves a logarithm by half of what its ends are apart, late in a schedule 1e-6 of what they are:
        # each is rounded by 5e-7 at the most.
        logs = float64.log_variance(table, variance, SOME_T, v)
        by_log = float64.slope(lambda logs: float64.vlb(
            table, np.float64(X_0), x_t, SOME_T, said, logs, prediction, "learned"), logs, 1e-5)  # fmt: skip
        ends = 5e-7 * np.abs(by_log) if variance == "learned_range" else 0.0
        close(gradient[..., 2:], slope / said[0].size, ROUNDING, ends / said[0].size)


def held(table, prediction):
    """How much an output moves x_0, [4]."""
    a, s, weight = table.signal[SOME_T], table.noise[SOME_T], table.of_x_0[SOME_T]
    return {"eps": s / a, "x0": 1 + 0 * s, "v": s, "score": s**2 / a, "mean": 1 / weight, "flow": s / (a + s)}[
        prediction
    ]


@pytest.mark.parametrize("variance", V)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("world", WORLDS)
def test_the_hybrid_teaches_the_mean_by_simple_and_the_variance_by_the_bound(world, prediction, variance, given):
    """Nichol & Dhariwal 2021, Eq. 16; its value is the sum of both."""
    output, _, _ = answer(world, prediction, variance, given)
    options = {"prediction": prediction, "variance": variance}
    both, by_both, _ = value_and_gradient(world, output, objective="hybrid", vlb_weight=0.25, **options)
    simple, by_simple, _ = value_and_gradient(world, output, **options)
    bound, by_bound, _ = value_and_gradient(world, output, objective="vlb", **options)
    np.testing.assert_allclose(both.objective, simple.objective + 0.25 * bound.objective, rtol=1e-6)
    np.testing.assert_array_equal(by_both[..., :2], by_simple[..., :2])
    np.testing.assert_array_equal(by_both[..., 2:], 0.25 * by_bound[..., 2:])
    np.testing.assert_array_equal(by_simple[..., 2:], np.zeros(SHAPE))
    assert (by_bound[..., :2] != 0).all()


def test_the_hybrids_weight_is_a_thousandth(given):
    output, _, _ = answer("cosine", "eps", "learned_range", given)
    one, by_one, _ = value_and_gradient("cosine", output, objective="hybrid", variance="learned_range")
    other, by_other, _ = value_and_gradient(
        "cosine", output, objective="hybrid", variance="learned_range", vlb_weight=0.001
    )
    np.testing.assert_array_equal(one.objective, other.objective)
    np.testing.assert_array_equal(by_one, by_other)


def test_the_bound_takes_the_datas_depth(given):
    """A bin of 5 bits is 8 times as wide: at t = 0 less is left to say, elsewhere nothing changes."""
    output, said, v = answer("linear", "eps", "large", given)
    table, (_, x_t) = WORLDS["linear"][1], given["linear"]
    deep, _, _ = value_and_gradient("linear", output, objective="vlb")
    coarse, _, _ = value_and_gradient("linear", output, objective="vlb", bits=5)
    np.testing.assert_array_equal(deep.objective[1:], coarse.objective[1:])
    exact = float64.vlb(table, np.float64(X_0), x_t, SOME_T, said, v, "eps", "large", bits=5)
    np.testing.assert_allclose(coarse.objective, float64.images_mean(exact), rtol=ROUNDING)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("objective", ["simple", "hybrid", "vlb"])
def test_gradients_are_finite_where_the_signal_is_gone(objective, prediction):
    """The last step of a schedule with zero terminal SNR."""
    schedule = schedules.zero_terminal_snr(schedules.linear())
    last = Draw(quantiles=lambda key, size: jnp.full(size, 0.9995))

    def value(output):
        options = {"variance": "learned_range", "objective": objective, "prediction": prediction, "draw_t": last}
        return loss(KEY, schedule, lambda x_t, time: output, X_0, **options)[0]

    found, gradient = jax.value_and_grad(value)(jnp.full((*SHAPE[:-1], 4), 0.5))
    assert np.isfinite(found)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("options", "width", "message"),
    [
        ({"objective": "hybird"}, 2, r"objective: there is no 'hybird', did you mean 'hybrid'\?"),
        ({"objective": "vlb", "variance": "larg"}, 2, r"variance: there is no 'larg', did you mean 'large'\?"),
        ({"objective": "vlb", "variance": "medium:1.5"}, 2, r"medium:F takes F in \[0, 1\], got medium:1.5"),
        ({"objective": "vlb", "variance": "learned"}, 2, r"and of a learned variance.*\(4, 3, 4\), got \(4, 3, 2\)"),
        ({"objective": "vlb", "bits": 17}, 2, r"bits must lie in 1 \.\. 16, got 17"),
        ({"objective": "hybrid", "variance": "learned_range"}, 2, r"learned variance.*\(4, 3, 4\), got \(4, 3, 2\)"),
        ({"objective": "hybrid"}, 2, "the hybrid objective needs a variance of learned or learned_range"),
        ({"objective": "hybrid", "variance": "small"}, 4, r"the shape of x_0, \(4, 3, 2\), got \(4, 3, 4\)"),
        ({"objective": "vlb"}, 3, r"the shape of x_0, \(4, 3, 2\), got \(4, 3, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(options, width, message):
    with pytest.raises(ValueError, match=message):
        loss(KEY, WORLDS["linear"][0], lambda x_t, time: jnp.zeros((4, 3, width)), X_0, **options)
