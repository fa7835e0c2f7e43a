"""Guidance in worlds whose conditional scores are known, in float64.

Pixels are independent, and so are their classes: class k of MIXTURE is its k-th normal; an image's label is the class
of each of its pixels.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from jax.tree_util import Partial
from scipy.integrate import quad
from worlds import MIXTURE

from ddpm_jax.diffusion import processes, schedules
from ddpm_jax.sampling import ddim, ddpm, guidance, sample
from ddpm_jax.sampling.guidance_weights import interval

KEY = jax.random.key(0)
PROCESSES = {name: build() for name, build in processes.PROCESSES.items()}
X = np.linspace(-1.5, 1.5, 8).reshape(2, 2, 2, 1)
LABELS, NONE = jnp.array([0, 1]), 2
PARTS = ((1.0, 0.0), (0.0, 1.0), MIXTURE.weights)
"""What each label has of MIXTURE's normals; NONE all of it."""
# A class that is narrower than the population it is of, so that every weight tilts to a density.
(MEAN, STD), (NARROW_MEAN, NARROW_STD) = (0.3, 0.5), (0.7, 0.2)
GAUSSIANS = {"parts": ((1.0, 0.0), (0.0, 1.0)), "means": (NARROW_MEAN, MEAN), "stds": (NARROW_STD, STD)}
"""Label 0 is the class, 1 none."""


@pytest.fixture(autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def level_of(process, time):
    t = time.reshape(-1, 1, 1, 1) / 1000
    return jnp.exp(process.log_alpha(jnp, t)), jnp.exp(process.log_sigma(jnp, t))


def said(prediction, x_0, x, alpha, sigma):
    eps = (x - alpha * x_0) / sigma
    return {"x0": x_0, "eps": eps, "v": alpha * eps - sigma * x_0, "score": -eps / sigma, "flow": eps - x_0}[prediction]


def x_0_given(x, alpha, sigma, parts, means=MIXTURE.means, stds=MIXTURE.stds):
    """E[x_0 | x_t] for images of which each has its own parts [B, K] of the normals."""
    alpha, sigma, means, stds = alpha[..., None], sigma[..., None], jnp.array(means), jnp.array(stds)
    variance = alpha**2 * stds**2 + sigma**2
    away = x[..., None] - alpha * means
    chances = parts.reshape(-1, 1, 1, 1, 2) * jnp.exp(-0.5 * away**2 / variance) / jnp.sqrt(variance)
    each = means + alpha * stds**2 / variance * away
    return (chances * each).sum(-1) / chances.sum(-1)


def conditional(process, prediction="eps", parts=PARTS, **normals):
    """The exact network of the labels."""

    def denoise(x, time, labels):
        alpha, sigma = level_of(process, time)
        return said(prediction, x_0_given(x, alpha, sigma, jnp.array(parts)[labels], **normals), x, alpha, sigma)

    return denoise


def log_densities(x, alpha, sigma):
    """Of each pixel: log (weight N) of each class, [..., K], written from the formula of the normal."""
    means, stds = jnp.array(MIXTURE.means), jnp.array(MIXTURE.stds)
    variance = alpha**2 * stds**2 + sigma**2
    normal = -0.5 * (x[..., None] - alpha * means) ** 2 / variance - 0.5 * jnp.log(2 * jnp.pi * variance)
    return jnp.log(jnp.array(MIXTURE.weights)) + normal


def bayes(process):
    """The exact classifier: log p(labels | x_t)."""

    def log_prob(x, time, labels):
        alpha, sigma = level_of(process, time)
        logs = log_densities(x, alpha[..., None], sigma[..., None])
        return jax.nn.log_softmax(logs)[jnp.arange(len(x)), ..., labels].sum((1, 2, 3))

    return log_prob


def as_eps(process, output, x, t, prediction):
    alpha, sigma = worlds.levels_of(process, t)
    return {
        "eps": lambda: output,
        "x0": lambda: (x - alpha * output) / sigma,
        "v": lambda: (sigma * x + alpha * output) / (alpha**2 + sigma**2),
        "score": lambda: -sigma * output,
        "flow": lambda: (x + alpha * output) / (alpha + sigma),
    }[prediction]()


@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
def test_the_guided_score_is_that_of_the_tilted_density_at_every_level(name):
    """grad log p_t(x) + w grad log p_t(c | x), by the slope of the densities' formulas."""
    process = PROCESSES[name]

    def log_tilted(x, alpha, sigma, w, label):
        logs = log_densities(x, alpha, sigma)
        return jax.scipy.special.logsumexp(logs, axis=-1) + w * jax.nn.log_softmax(logs)[label]

    slope = jax.jit(jax.vmap(jax.grad(log_tilted), (0, None, None, None, None)))
    ask = jax.jit(lambda denoise, x, time: denoise(x, time, LABELS))
    plain = Partial(conditional(process))
    for w in (0.0, 1.0, 3.5):
        denoise = guidance.classifier_free(plain, w, NONE)
        for t in (0.01, 0.1, 0.3, 0.6, 0.9, 0.99):
            alpha, sigma = worlds.levels_of(process, t)
            x = X * np.hypot(alpha, sigma)
            got = -ask(denoise, jnp.asarray(x), jnp.full(2, 1000 * t)) / sigma
            wanted = [slope(x[i].ravel(), alpha, sigma, w, i) for i in (0, 1)]
            np.testing.assert_allclose(np.reshape(got, (2, 4)), wanted, rtol=1e-10, atol=1e-10 / sigma)


@pytest.mark.parametrize(
    ("name", "prediction"), [("vp", "eps"), ("ve", "x0"), ("sub_vp", "v"), ("vp", "score"), ("flow", "flow")]
)
def test_the_exact_classifier_leads_as_the_exact_conditionals_do(name, prediction):
    """Unconditional and w of the slope, or conditional and w - 1 of it, are w of classifier-free guidance."""
    process = PROCESSES[name]
    options = {"schedule": process, "prediction": prediction}
    free = guidance.classifier_free(conditional(process, prediction), 2.5, NONE)
    alone = guidance.unconditional(worlds.denoiser(MIXTURE, process, prediction))
    alone = guidance.classifier(alone, bayes(process), 2.5, **options)
    more = guidance.classifier(conditional(process, prediction), bayes(process), 1.5, **options)
    all_three = jax.jit(lambda time: [denoise(jnp.asarray(X), time, LABELS) for denoise in (free, alone, more)])
    for t in (0.02, 0.5, 0.95):
        said = map(np.asarray, all_three(jnp.full(2, 1000 * t)))
        eps = [as_eps(process, output, X, t, prediction) for output in said]
        np.testing.assert_allclose(eps[1], eps[0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(eps[2], eps[0], rtol=1e-9, atol=1e-9)


def guided_end(x, w, start, end):
    """Where the flow of the guided score takes x from (alpha, sigma) = start to end, for the two GAUSSIANS.

    With y = x / alpha and s = sigma / alpha it is linear: dy/ds = s (1 - w) (y - m) / (std^2 + s^2) + the like for the
    class. The solution without the constant term is a product of powers; the constant's part is an integral.
    """
    a, b, first, last = STD**2, NARROW_STD**2, start[1] / start[0], end[1] / end[0]

    def free(s):
        return (a + s**2) ** ((1 - w) / 2) * (b + s**2) ** (w / 2)

    def pushed(s):
        return (1 - w) * s / (a + s**2) * (NARROW_MEAN - MEAN) / free(s)

    push, _ = quad(pushed, first, last, epsabs=1e-13, epsrel=1e-13)
    return end[0] * (NARROW_MEAN + free(last) * ((x / start[0] - NARROW_MEAN) / free(first) + push))


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_a_guided_sampler_ends_where_the_guided_flow_does(name):
    """DDIM's error is of first order: of 256 and 512 steps together what is left is of second."""
    process, ends = PROCESSES[name], {"vp": (0.9, 0.01), "flow": (0.99, 0.01)}[name]
    plain = Partial(conditional(process, **GAUSSIANS))
    start, end = (worlds.levels_of(process, t) for t in ends)
    options = {"shape": (2, 2, 1), "num": 2, "batch_size": 2, "clip": False, "sampler": ddim(), "x_T": X * start[1]}
    low, high = (process.log_snr(np, t) for t in ends)

    def drawn(w, steps):
        denoise = guidance.classifier_free(plain, w, 1)
        times = process.t_of(np, np.linspace(low, high, steps + 1))
        return sample(KEY, denoise, process, times=times, conditions=jnp.zeros(2, int), **options)

    for w in (2.0, 4.0):
        few, many, exact = drawn(w, 256), drawn(w, 512), guided_end(X * start[1], w, start, end)
        assert 1.9 < np.abs(few - exact).max() / np.abs(many - exact).max() < 2.1
        np.testing.assert_allclose(2 * many - few, exact, atol=2e-4)


def test_the_guided_flow_does_not_end_in_the_tilted_density():
    """Its deviation is a geometric mean of both, the tilted one's precision an arithmetic mean."""
    w, far = 3.0, 1e4
    spread = guided_end(1 + far, w, (1, far), (1, 1e-9)) - guided_end(1.0, w, (1, far), (1, 1e-9))
    assert spread == pytest.approx(STD ** (1 - w) * NARROW_STD**w, rel=1e-6)
    tilted = ((1 - w) / STD**2 + w / NARROW_STD**2) ** -0.5
    assert spread == pytest.approx(0.032, rel=1e-6)
    assert tilted == pytest.approx(0.1222, abs=1e-4)


def test_leading_away_from_oneself_is_no_guidance_and_from_no_class_is_classifier_free():
    process, time = PROCESSES["vp"], jnp.array([200.0, 800.0])
    told, untold = conditional(process), guidance.unconditional(worlds.denoiser(MIXTURE, process))
    of_itself, none, away, free, plain = jax.jit(
        lambda x: [
            denoise(x, time, LABELS)
            for denoise in (
                guidance.autoguidance(told, told, 3.0),
                guidance.autoguidance(told, untold, 1.0),
                guidance.autoguidance(told, untold, 3.0),
                guidance.classifier_free(told, 3.0, NONE),
                told,
            )
        ]
    )(X)
    np.testing.assert_array_equal(of_itself, plain)
    np.testing.assert_array_equal(none, plain)
    np.testing.assert_allclose(away, free, rtol=1e-12)
    assert np.abs(free - plain).max() > 0.1


def test_wrappers_compose():
    """Classifier-free guidance of an autoguided network, and a classifier around both, by hand."""
    process, time = PROCESSES["vp"], jnp.array([300.0, 600.0])
    good, bad, log_prob = conditional(process), conditional(process, parts=((0.5, 0.5),) * 3), bayes(process)
    both = guidance.classifier_free(guidance.autoguidance(good, bad, 1.5), 2.0, NONE)
    all_three = guidance.classifier(both, log_prob, 0.5, schedule=process)

    def by_hand(x):
        def auto(labels):
            return bad(x, time, labels) + 1.5 * (good(x, time, labels) - bad(x, time, labels))

        free = auto(jnp.full(2, NONE)) + 2.0 * (auto(LABELS) - auto(jnp.full(2, NONE)))
        slope = jax.grad(lambda x: log_prob(x, time, LABELS).sum())(x)
        return free, free - 0.5 * level_of(process, time)[1] * slope

    got = jax.jit(lambda x: (both(x, time, LABELS), all_three(x, time, LABELS)))(X)
    for one, wanted in zip(got, jax.jit(by_hand)(X), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-11, atol=1e-11)


def test_outside_its_interval_guidance_is_gone_bit_for_bit_and_costs_nothing():
    process, rows = PROCESSES["ve"], []
    plain = conditional(process)

    def seen(x, time, labels):
        jax.debug.callback(rows.append, len(x))
        return plain(x, time, labels)

    options = {"shape": (2, 2, 1), "num": 2, "conditions": LABELS, "clip": False}
    times = process.t_of(np, -2 * np.log([8.0, 4.0, 2.0, 1.0, 0.5]))  # steps from sigma 8, 4, 2 and 1
    wanted = sample(KEY, plain, process, times=times, sampler=ddim(), **options)
    seen = Partial(seen)
    for low, high, guided in ((8.1, 50.0, 0), (0.0, 0.9, 0), (0.9, 4.1, 3), (0.0, np.inf, 4)):
        rows.clear()
        denoise = guidance.classifier_free(seen, interval(4.0, low, high), NONE, schedule=process)
        got = sample(KEY, denoise, process, times=times, sampler=ddim(), batch_size=2, **options)
        jax.effects_barrier()
        assert sorted(map(int, rows)) == [2] * (4 - guided) + [4] * guided
        assert np.array_equal(got, wanted) == (guided == 0)
    always = guidance.classifier_free(plain, 4.0, NONE)
    np.testing.assert_array_equal(got, sample(KEY, always, process, times=times, sampler=ddim(), **options))


def in_table(schedule, prediction):
    """The exact network of the labels and its classifier on a schedule's table, so that mean is among predictions."""

    def read(time, name):
        return getattr(schedule, name)[jnp.round(time).astype(int)].reshape(-1, 1, 1, 1)

    def level(time):
        return read(time, "sqrt_alpha_bars"), read(time, "sqrt_one_minus_alpha_bars")

    def denoise(x, time, labels):
        x_0 = x_0_given(x, *level(time), jnp.array(PARTS)[labels])
        if prediction == "mean":
            return read(time, "posterior_mean_coef_x0") * x_0 + read(time, "posterior_mean_coef_xt") * x
        return said(prediction, x_0, x, *level(time))

    def log_prob(x, time, labels):
        alpha, sigma = level(time)
        logs = log_densities(x, alpha[..., None], sigma[..., None])
        return jax.nn.log_softmax(logs)[jnp.arange(len(x)), ..., labels].sum((1, 2, 3))

    return denoise, log_prob


def test_every_prediction_gives_the_same_guided_images():
    """By both, classifier and classifier-free. The other predictions are in a test above, at every level."""
    schedule, images = schedules.cosine(1000), []
    options = {"shape": (2, 2, 1), "num": 2, "batch_size": 2, "conditions": LABELS, "clip": False, "sampler": ddpm()}
    for prediction in ("eps", "v", "mean"):
        denoise, log_prob = in_table(schedule, prediction)
        denoise = guidance.classifier_free(denoise, 2.0, NONE)
        denoise = guidance.classifier(denoise, log_prob, 0.5, schedule=schedule, prediction=prediction)
        images.append(sample(KEY, denoise, schedule, prediction=prediction, **options))
    np.testing.assert_allclose(images[1], images[0], atol=1e-4)
    np.testing.assert_allclose(images[2], images[0], atol=1e-4)


def test_one_trace_serves_all_weights():
    process = PROCESSES["vp"]
    plain = Partial(chex.assert_max_traces(conditional(process), n=1))
    options = {"shape": (2, 2, 1), "num": 2, "batch_size": 2, "conditions": LABELS, "times": [0.9, 0.1], "clip": False}
    images = [
        sample(KEY, guidance.classifier_free(plain, w, NONE, rescale=phi), process, **options)
        for w, phi in ((1, 0.0), (2.5, 0.0), (2.5, 0.7), (4, 0.7))
    ]
    assert len({image.tobytes() for image in images}) == 4
