"""The flow's likelihood against densities that are known in closed form, and against change of variables."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from scipy.special import expit, log_ndtr, logit

from ddpm_jax.cli import likelihood as program
from ddpm_jax.diffusion import processes, schedules
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.evaluation import dequantisation, likelihood
from ddpm_jax.evaluation.flow_likelihood import by_flow
from ddpm_jax.sampling import flow_likelihood

KEY = jax.random.key(0)
VP = processes.vp(beta_max=60.0, end=1e-6)  # no more than 3e-7 of the signal is left at its end
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def know(weights, means, stds, turn, x, time):
    """An eps network of VP for pixels that are independent once x is turned."""
    t = time[0].astype(x.dtype) / 1000
    alpha, sigma = jnp.exp(VP.log_alpha(jnp, t)), jnp.exp(VP.log_sigma(jnp, t))
    own = jnp.reshape(x, (len(x), -1)) @ turn
    x_0 = worlds.World(weights=weights, means=means, stds=stds).x_0_given(own, alpha, sigma) @ turn.T
    return (x - alpha * jnp.reshape(x_0, x.shape)) / sigma


def network(world, turn):
    twice = [(*values, *values)[:2] for values in (world.weights, world.means, world.stds)]
    weights = np.array(twice[0]) / np.sum(twice[0])
    return jax.tree_util.Partial(know, weights, *map(np.array, twice[1:]), turn)


@functools.partial(jax.jit, static_argnames=("exact", "probes", "probe"))
def density(denoise, levels, x, **options):
    return flow_likelihood.log_density(KEY, denoise, levels, x, rtol=1e-7, atol=1e-7, **options)


def wanted(world, levels, x):
    """log p(x) and x_T, by change of variables: a normal x_T, and dx_T / dx from the two levels' densities."""
    start, end = ((float(levels.read(i).alpha), float(levels.read(i).sigma)) for i in (0, -1))
    x_T, std = world.flow(x, end, start), float(levels.start_std)
    prior = -0.5 * (x_T / std) ** 2 - 0.5 * np.log(2 * np.pi) - np.log(std)
    logs = prior + world.log_density(x, *end) - world.log_density(x_T, *start)
    return np.sum(logs.reshape(len(x), -1), axis=1), x_T


@pytest.mark.parametrize("shape", [(1,), (2, 3, 1)])
def test_the_likelihood_is_exact_to_1e_4_nats(shape, float64):
    """Gaussian and mixture, along vp, sub_vp, ve and flow: the density of the flow, and of the data where x_T is as
    normal as the prior says. The encoding is the exact one to 1e-6."""
    size = int(np.prod(shape))
    x = np.linspace(-0.9, 1.1, 2 * size).reshape(2, *shape)
    for world in (worlds.GAUSSIAN, worlds.MIXTURE):
        for along, times in (
            (None, (1.0, 1e-6)),
            (processes.sub_vp(beta_max=40.0), (0.98, 0.01)),
            (processes.ve(), (0.95, 0.05)),
            (processes.flow(), (0.98, 0.02)),
        ):
            levels = visit(VP, times, along=along, anywhere=True)
            found = density(network(world, np.eye(size)), levels, x, exact=True)
            logs, x_T = wanted(world, levels, x)
            np.testing.assert_allclose(found.log_p, logs, atol=1e-5)
            np.testing.assert_allclose(found.latent / levels.start_std, x_T / levels.start_std, atol=1e-6)
            if along is None:
                np.testing.assert_allclose(found.log_p, world.log_density(x).reshape(2, -1).sum(axis=1), atol=1e-4)


def test_one_rademacher_probe_is_exact_where_the_jacobian_is_diagonal(float64):
    """Pixels that are independent: e . J e is the trace for e of signs, and not for normal e."""
    x, levels = np.linspace(-0.9, 1.1, 8).reshape(2, 2, 2), flow_likelihood.ends(VP)
    denoise, (logs, _) = network(worlds.MIXTURE, np.eye(4)), wanted(worlds.MIXTURE, levels, x)
    np.testing.assert_allclose(density(denoise, levels, x).log_p, logs, atol=1e-5)
    assert np.abs(density(denoise, levels, x, probe="gaussian").log_p - logs).min() > 1e-2


def test_hutchinsons_estimate_is_unbiased(float64):
    """Turned pixels: 400 probes scatter, and their mean is the exact density within four of its standard errors."""
    own, levels = np.linspace(-0.9, 1.1, 8).reshape(2, 4), flow_likelihood.ends(VP)
    logs, _ = wanted(worlds.MIXTURE, levels, own)
    found = density(network(worlds.MIXTURE, TURN), levels, own @ TURN.T, probes=400)
    error = np.std(found.by_probe, axis=0, ddof=1) / 20
    assert (error > 0.003).all()
    np.testing.assert_allclose((found.log_p - logs) / error, 0, atol=4)


def test_a_dequantised_byte_has_its_probability():
    """Each identity holds for every draw, or in the mean: the corrections are what they say."""
    level, x_0 = visit(VP, (1.0, 0.003)).read(-1), np.array([-1.0, -1 / 3, 1 / 3, 1.0], np.float32)
    grid, bits = np.linspace(-1, 1, 4), 2
    # A density even over all bins gives each byte 1/4.
    x, log_q = dequantisation.uniform(KEY, x_0, level, bits)
    assert np.abs(x - x_0).max() < 1 / 3
    np.testing.assert_allclose(log_q + 4 * np.log(1 / (8 / 3)), 4 * np.log(1 / 4), rtol=1e-5)
    # So does, under the process's noise, the density that data even over the bytes has there.
    x, log_q = dequantisation.noise(KEY, x_0, level, bits)
    data = worlds.World(weights=(0.25,) * 4, means=tuple(grid), stds=(0.0,) * 4)
    logs = data.log_density(x, float(level.alpha), float(level.sigma)).sum()
    np.testing.assert_allclose(logs + log_q, 4 * np.log(1 / 4), rtol=1e-4)
    # A network's q(u) is the slope of its cumulative probability, sigmoid((logit(u) - mean) / scale).
    image, module = x_0.reshape(2, 2, 1), dequantisation.Dequantiser()
    params = jax.tree.map(lambda p: p + 0.01, module.init(KEY, image[None])["params"])
    x, log_q = dequantisation.variational(params)(KEY, image, level, bits)
    mean, log_scale = (np.asarray(said[0], np.float64) for said in module.apply({"params": params}, image[None]))
    assert np.abs(log_scale).min() > 0.01
    u = (np.asarray(x, np.float64) - image) * 1.5 + 0.5
    low, high = (expit((logit(u + move) - mean) / np.exp(log_scale)) for move in (-1e-5, 1e-5))
    np.testing.assert_allclose(log_q, np.sum(np.log(2 / 3) - np.log((high - low) / 2e-5)), rtol=1e-4)


def test_a_fitted_dequantisation_comes_near_the_true_probability():
    """Four levels of a narrow Gaussian: uniform noise costs 0.8 nats a pixel, a fitted one a fraction of it."""
    world, levels, bits = worlds.World(weights=(1.0,), means=(0.1,), stds=(0.15,)), flow_likelihood.ends(VP), 2
    grid = np.linspace(-1, 1, 4)
    edges = np.stack([grid - 1 / 3, grid + 1 / 3])
    below, above = (log_ndtr((edge - 0.1) / 0.15) for edge in edges)
    log_p = np.log(np.exp(above) - np.exp(below) + 1e-300)[1:3]  # of the two levels that are drawn
    images = np.random.default_rng(0).choice(grid[1:3], size=(256, 1, 1, 1)).astype(np.float32)
    params = dequantisation.fit(
        KEY,
        network(world, np.eye(1, dtype=np.float32)),
        levels,
        lambda rows: (images[rows], None),
        256,
        bits=bits,
        steps=150,
        batch_size=32,
        learning_rate=2e-2,
    )
    truth = np.where(images > 0, log_p[1], log_p[0]).mean()

    def cost(dequantise):
        keys = jax.random.split(KEY, 256)
        x, log_q = jax.vmap(lambda key, x_0: dequantise(key, x_0, levels.read(-1), bits))(keys, images)
        return truth - float(np.mean(world.log_density(x)) + np.mean(log_q))

    assert cost(dequantisation.uniform) > 0.6
    assert -0.02 < cost(dequantisation.variational(params)) < 0.1


def test_more_draws_of_the_dequantisation_give_a_tighter_bound():
    """Two pixels of 2 bits: the mean of many draws' probabilities comes near the true one, from below."""
    levels, bits = flow_likelihood.ends(VP), 2
    denoise = network(worlds.GAUSSIAN, np.eye(2, dtype=np.float32))
    grid = np.linspace(-1, 1, 4)
    images = np.tile(np.stack(np.meshgrid(grid, grid), axis=-1).reshape(16, 2, 1), (32, 1, 1)).astype(np.float32)
    edges = np.exp(log_ndtr((np.stack([images - 1 / 3, images + 1 / 3]) - 0.3) / 0.5))
    truth = -np.log2(edges[1] - edges[0]).mean()
    options = {"exact": True, "bits": bits, "rtol": 1e-4, "atol": 1e-4}
    found = {
        draws: likelihood.over(
            by_flow(KEY, levels, draws=draws, **options),
            denoise,
            lambda rows: (images[rows], None),
            512,
            batch_size=512,
        )
        for draws in (1, 32)
    }
    assert found[1].bits_per_dim > found[32].bits_per_dim + 0.03
    assert found[32].bits_per_dim == pytest.approx(truth, abs=0.03)
    assert found[32].parts["steps"] > 5


@pytest.mark.slow
def test_the_program_measures_the_flow_beside_the_bound(tiny_run, capsys):
    workdir, _ = tiny_run
    more = ["--ode", "--probes", "2", "--rtol", "0.1", "--atol", "0.1", "--dequantisation", "variational"]
    more = [*more, "--dequantiser-steps", "2"]
    program.main([str(workdir), "--num", "2", "--batch-size", "2", "--num-t", "2", *more])
    found = json.loads((workdir / "likelihood.json").read_text())
    assert f"{found['ode']['bits_per_dim']:.4f} +- " in capsys.readouterr().out
    assert found["ode"]["dequantisation"] == "variational"
    assert found["ode"]["probe_error"] > 0


def test_what_cannot_be_measured_is_refused(tiny_run):
    for flags, message in {
        ("--probes", "2"): "--probes 2 needs --ode",
        ("--ode", "--probes", "0"): "--probes must be at least 1, got 0",
        ("--ode", "--dequantisation", "unifrom"): "--dequantisation: there is no 'unifrom', did you mean 'uniform'",
        ("--ode", "--draws", "2"): "--draws 2 needs --exact-trace",
        ("--ode", "--exact-trace", "--probes", "2"): "--probes 2 has no part with --exact-trace",
        ("--ode", "--rtol", "0"): "rtol must be positive, got 0",
    }.items():
        with pytest.raises(ValueError, match=message):
            program.main([str(tiny_run[0]), *flags])
    levels = flow_likelihood.ends(schedules.cosine(20))
    for options, message in (({"probes": 0}, "probes must be at least 1"), ({"probe": "normal"}, "probe: there is no")):
        with pytest.raises(ValueError, match=message):
            flow_likelihood.log_density(KEY, network(worlds.GAUSSIAN, np.eye(1)), levels, np.zeros((1, 1)), **options)
