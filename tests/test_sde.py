"""Samplers of the reverse SDE, followed exactly: of a Gaussian every step is linear, so that moments need no draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from ddpm_jax.diffusion import processes, schedules
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.sampling import Answer, ask, ddim, ddpm, sample
from ddpm_jax.sampling.sampler import noise, start
from ddpm_jax.sampling.sde import correct, euler_maruyama, exponential_sde, predictor_corrector, reverse_diffusion

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 2)
GAUSSIAN = worlds.GAUSSIAN
SPANS = {"vp": (0.7, 0.1), "sub_vp": (0.7, 0.1), "ve": (0.7, 0.3), "edm": (3.0, 0.2), "flow": (0.9, 0.1)}
LINEAR = schedules.linear()


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def exact(process, t):
    """Mean and variance of the Gaussian's marginal at t."""
    alpha, sigma = worlds.levels_of(process, t)
    return alpha * GAUSSIAN.mean(), (alpha * GAUSSIAN.std()) ** 2 + sigma**2


def linear_parts(step, draws=1):
    """(a, b, c [draws]) of a step x -> a x + b + c . z, from what it does to zeros and ones."""
    state = start(jnp.stack([KEYS[0], KEYS[0]]), jnp.stack([jnp.zeros(8), jnp.ones(8)]))
    moved = step(state)
    design = jnp.stack([jnp.ones(8)] + [noise(state, draw)[0] for draw in range(draws)], axis=1)
    found = jnp.linalg.lstsq(design, moved[0])[0]
    return jnp.mean(moved[1] - moved[0]), found[0], found[1:]


def moments(sampler, process, times, draws=1):
    """Mean and variance at the end of `times`, started from the exact ones."""
    model = ask(worlds.denoiser(GAUSSIAN, process), clip=False)
    levels = visit(process, times)
    of = jax.jit(
        jax.vmap(lambda i: linear_parts(lambda state: sampler.step(state, model, levels, (i, i + 1))[0].x, draws))
    )
    mean, variance = exact(process, times[0])
    for a, b, c in zip(*map(np.asarray, of(jnp.arange(len(times) - 1))), strict=True):
        mean, variance = a * mean + b, a**2 * variance + np.sum(c**2)
    return mean, variance


ORDER_ONE = [
    *((euler_maruyama(), name) for name in SPANS),
    (exponential_sde(), "vp"),
    (exponential_sde(hold="x0"), "flow"),
    (reverse_diffusion(), "vp"),
    (reverse_diffusion(), "ve"),
]


@pytest.mark.parametrize(("sampler", "name"), ORDER_ONE)
def test_the_reverse_sde_is_solved_to_weak_order_one(sampler, name, float64):
    """Errors of mean and variance halve with the steps: from 128 to 256 of them by 2 within 15 %."""
    process = processes.PROCESSES[name]()
    begin, end = SPANS[name]
    wanted = np.array(exact(process, end))
    errors = [np.array(moments(sampler, process, np.linspace(begin, end, n + 1))) - wanted for n in (128, 256)]
    assert np.abs(errors[1]).max() > 1e-6  # or there would be nothing to measure
    large = np.abs(errors[1]) > 1e-9  # ve keeps the mean
    np.testing.assert_allclose((errors[0] / errors[1])[large], 2, rtol=0.15)


def answered(sampler, levels, i, x, x_0, eps):
    moved, _ = sampler.step(start(KEYS, x), lambda x, level: Answer(x_0=x_0, eps=eps), levels, (i, i + 1))
    return moved.x, noise(start(KEYS, x))


def some(levels, i):
    x_0, eps = jax.random.normal(KEY, (2, 2, 5), levels.visited.alpha.dtype)
    here = levels.read(i)
    return here.alpha * x_0 + here.sigma * eps, x_0, eps


@pytest.mark.parametrize("i", [0, 500, 998])
def test_reverse_diffusion_is_the_published_step(i, float64):
    """Of DDPM's chain (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z (Song et al. 2021, Algorithm 3), of SMLD's
    x + (sigma^2 - sigma'^2) score + sqrt(sigma^2 - sigma'^2) z (Algorithm 2)."""
    levels, beta = visit(LINEAR), np.linspace(1e-4, 0.02, 1000)[999 - i]
    x, x_0, eps = some(levels, i)
    got, z = answered(reverse_diffusion(), levels, i, x, x_0, eps)
    sigma = np.sqrt(1 - np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[999 - i])
    wanted = (2 - np.sqrt(1 - beta)) * x - beta * eps / sigma + np.sqrt(beta) * z
    np.testing.assert_allclose(got, wanted, atol=2e-6)
    sigmas = 0.01 * 5000 ** np.linspace(1, 0, 1001)
    levels = visit(processes.ve(), np.linspace(1, 0, 1001)[:-1])
    x, x_0, eps = some(levels, i)
    got, z = answered(reverse_diffusion(), levels, i, x, x_0, eps)
    grown = sigmas[i] ** 2 - sigmas[i + 1] ** 2
    np.testing.assert_allclose(got, x - grown * eps / sigmas[i] + np.sqrt(grown) * z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
def test_the_exponential_integrator_joins_ddim_and_ddpm(name, float64):
    levels = visit(processes.PROCESSES[name](), (0.8, 0.5))
    x, x_0, eps = some(levels, 0)

    def got(sampler):
        return answered(sampler, levels, 0, x, x_0, eps)[0]

    np.testing.assert_allclose(got(exponential_sde(hold="x0")), got(ddpm(variance="small")), rtol=1e-9, atol=1e-9)
    for hold in ("x0", "eps"):
        np.testing.assert_allclose(got(exponential_sde(tau=0, hold=hold)), got(ddim()), rtol=1e-9, atol=1e-9)


ALL = [
    euler_maruyama(),
    exponential_sde(),
    exponential_sde(hold="x0"),
    reverse_diffusion(),
    predictor_corrector(corrections=0),
]


@pytest.mark.parametrize("sampler", ALL)
def test_the_last_step_lands_on_x_0_without_noise(sampler):
    for levels in (visit(LINEAR, (500, -1)), visit(processes.flow(), (0.5, 0.0)), visit(processes.ve(), (0.5, 0.0))):
        x, x_0, eps = some(levels, 0)
        np.testing.assert_allclose(answered(sampler, levels, 0, x, x_0, eps)[0], x_0, atol=1e-6)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_annealed_langevin_steps_leave_the_marginal_as_their_size_goes_to_0(name, float64):
    """Of a normal with variance V, a step of size e settles at V / (1 - e / 2V): the error goes as snr^2."""
    process = processes.PROCESSES[name]()
    here = visit(process, (0.4, 0.3)).read(0)
    model, (mean, variance) = ask(worlds.denoiser(GAUSSIAN, process), clip=False), exact(process, 0.4)
    errors = []
    for snr in (0.2, 0.1):

        def step(state, snr=snr):
            return correct(state, model, here, snr=snr, steps=1, corrector="annealed", keep=jnp.float64(1)).x

        a, b, c = map(np.asarray, jax.jit(lambda: linear_parts(step, draws=2))())
        assert b / (1 - a) == pytest.approx(mean, rel=1e-6)
        settled, size = c[1] ** 2 / (1 - a**2), 2 * snr**2 * float(here.sigma) ** 2
        assert settled == pytest.approx(variance / (1 - size / (2 * variance)), rel=1e-6)
        errors.append(settled - variance)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("D", [4, 16])
def test_langevin_steps_by_norms_settle_wider_than_the_marginal(D):
    """At sigma = 1 without data x is normal; the step's size, |z|^2 / |x|^2, makes its variance ((D + 2) / D)^2."""
    levels = visit(processes.edm(), (1.0, 0.9))
    state = start(jax.random.split(KEY, 8192 * 4 // D), jax.random.normal(KEY, (8192 * 4 // D, D)))

    @jax.jit
    def settled(state, corrector_keep):
        return correct(
            state,
            lambda x, level: Answer(x_0=0 * x, eps=x),
            levels.read(0),
            snr=0.12,
            steps=300,
            corrector="langevin",
            keep=corrector_keep,
        ).x

    # The standard error is 0.01; finite steps add 0.07 of it for D = 4.
    assert float(jnp.var(settled(state, 1.0))) == pytest.approx(((D + 2) / D) ** 2, rel=0.1)


def test_the_corrector_asks_about_the_level_where_x_stands(float64):
    """Small corrections between steps keep the moments, here with a network that knows the Gaussian by the time."""
    process = processes.vp()
    sampler = predictor_corrector(corrector="annealed", snr=0.1, predictor="ancestral")
    bare = predictor_corrector(corrections=0, predictor="ancestral")
    times, wanted = np.linspace(0.7, 0.1, 65), np.array(exact(process, 0.1))
    off, bare_off = (np.array(moments(s, process, times, draws=2)) - wanted for s in (sampler, bare))
    assert np.abs(off).max() < np.abs(bare_off).max() < 0.02


TURN = np.array([[0.8, -0.6], [0.6, 0.8]])


def turned_mixture(process):
    """The mixture in two dimensions that are turned against the channels: they are correlated."""
    denoise = worlds.denoiser(worlds.World(weights=(0.4, 0.6), means=(-0.8, 0.6), stds=(0.3, 0.1)), process)
    turn = jnp.asarray(TURN, jnp.float32)
    return lambda x, time: denoise(x @ turn, time) @ turn.T


@pytest.mark.parametrize(
    ("sampler", "name"),
    [(euler_maruyama(), "vp"), (exponential_sde(), "ve"), (predictor_corrector(snr=0.05), "flow")],
)
def test_draws_have_the_mean_covariance_and_weights_of_the_mixture(sampler, name):
    """Correlated pairs, 8,192 of them: each value within four standard errors and the steps' own error."""
    process = processes.PROCESSES[name]()
    begin, count = {"flow": 0.999}.get(name, process.start), 400
    times = [*np.linspace(begin, process.end, count), 0.0]
    options = {"shape": (16, 16, 2), "num": 32, "batch_size": 32, "times": times, "clip": False, "sampler": sampler}
    x = sample(KEY, turned_mixture(process), process, **options).reshape(-1, 2)
    world = worlds.World(weights=(0.4, 0.6), means=(-0.8, 0.6), stds=(0.3, 0.1))
    own, error = x @ TURN, 4 / np.sqrt(len(x))
    np.testing.assert_allclose(own.mean(axis=0), world.mean(), atol=error * world.std())
    np.testing.assert_allclose(np.cov(own.T), world.std() ** 2 * np.eye(2), atol=1.5 * error * world.std() ** 2)
    np.testing.assert_allclose((own < -0.1).mean(axis=0), 0.4 * 0.990185, atol=error * 0.5)  # Phi(0.7 / 0.3)
    assert abs(np.cov(x.T)[0, 1]) < 1.5 * error * world.std() ** 2


def test_bad_settings_are_refused():
    for make, options, message in (
        (exponential_sde, {"tau": 1.5}, r"tau must lie in \[0, 1\], got 1.5"),
        (exponential_sde, {"hold": "x_0"}, "hold: there is no 'x_0', did you mean 'x0'"),
        (predictor_corrector, {"predictor": "euler"}, "predictor: there is no 'euler', did you mean 'euler_maruyama'"),
        (predictor_corrector, {"corrector": "langvin"}, "corrector: there is no 'langvin', did you mean 'langevin'"),
        (predictor_corrector, {"snr": float("nan")}, "snr must be at least 0, got nan"),
        (predictor_corrector, {"corrections": 1.5}, "corrections must be a whole number of at least 0, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    assert predictor_corrector(corrections=1.0) is predictor_corrector()
    with pytest.raises(ValueError, match="divides by alpha, which is 0 at the first level"):
        sample(KEY, lambda x, t: x, processes.flow(), shape=(1,), times=(1.0, 0.5), sampler=euler_maruyama())
