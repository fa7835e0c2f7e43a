"""The stochastic sampler of Karras et al. 2022, Algorithm 2, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded
import solvers
import worlds

from ddpm_jax.diffusion import processes, schedules, spacings
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.sampling import sigma_space
from ddpm_jax.sampling.sigma_space import edm, heun

SIGMAS = spacings.edm(processes.edm(), (10,))
CHURN = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}


@pytest.fixture(autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def algorithm_2(x, sigmas, draws, *, s_churn, s_tmin, s_tmax, s_noise):
    """Every x, in sigma space."""
    path, steps = [], len(sigmas) - 1
    for i, (t, t_next) in enumerate(itertools.pairwise(sigmas)):
        gamma = min(s_churn / steps, np.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        t_hat = t + gamma * t
        x_hat = x + np.sqrt(t_hat**2 - t**2) * s_noise * draws[i]
        d = (x_hat - denoised(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next != 0:
            again = (x - denoised(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d + again) / 2
        path.append(x)
    return np.stack(path)


def denoised(x, sigma):
    """E[x_0 | x] by Bayes' rule over the two components of worlds.MIXTURE."""
    world = worlds.MIXTURE
    spread = np.square(world.stds) + sigma**2
    away = x[..., None] - np.array(world.means)
    shares = np.array(world.weights) / np.sqrt(spread) * np.exp(-(away**2) / (2 * spread))
    each = np.array(world.means) + np.square(world.stds) / spread * away
    return (shares * each).sum(-1) / shares.sum(-1)


@pytest.mark.parametrize(
    ("path", "churn"),
    [("edm", CHURN), ("vp", CHURN), ("vp", {"s_churn": 40.0, "s_tmin": 0.0, "s_tmax": 79.0, "s_noise": 1.0})],
)
def test_churn_is_algorithm_2(path, churn, monkeypatch):
    """Along either process, s and x / alpha are what they call sigma and x; 40 / 10 is above the limit of gamma."""
    table = jnp.asarray(recorded.ARRAYS["noise"])
    monkeypatch.setattr(sigma_space, "noise", lambda state: table[state.count])
    vp = path == "vp"
    scale = np.sqrt(1 + SIGMAS**2).reshape(-1, 1, 1) if vp else np.ones((11, 1, 1))
    times = [recorded.place(sigma) for sigma in SIGMAS] if vp else SIGMAS
    sampler, x = edm(**churn), 80 * recorded.ARRAYS["x_T"]
    levels = solvers.levels_for(sampler, recorded.WIDE if vp else processes.edm(), times)
    own = lambda x, level: recorded.model(x, level)  # noqa: E731 - compiled anew, with this noise
    ours = solvers.run(sampler, levels, solvers.start(sampler, x / scale[0]), model=own)[:10] * scale[1:]
    wanted = algorithm_2(x, SIGMAS, recorded.ARRAYS["noise"], **churn)
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)
    quiet = algorithm_2(x, SIGMAS, recorded.ARRAYS["noise"], **churn | {"s_churn": 0.0})
    assert np.abs(quiet - wanted)[-1].max() > 0.05


def test_without_churn_it_is_heun():
    """Said so, or because no level lies between s_tmin and s_tmax."""
    assert edm(s_noise=1.1) is heun()
    sampler = edm(s_churn=4.0, s_tmin=100.0)
    x = 80 * recorded.ARRAYS["x_T"]
    paths = [
        solvers.run(s, solvers.levels_for(s, processes.edm(), SIGMAS), solvers.start(s, x))[:10]
        for s in (sampler, heun())
    ]
    np.testing.assert_allclose(*paths, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [processes.edm(), processes.vp(), processes.flow(start=0.99), schedules.linear()],
    ids=["edm", "vp", "flow", "linear"],
)
def test_the_network_is_told_of_the_raised_level(schedule):
    """By what it is told at that noise, not at the level that was visited; never of more noise than it knows."""
    own = processes.of_schedule(schedule) if isinstance(schedule, schedules.Schedule) else schedule
    times = spacings.karras(own, (12,))
    levels = visit(schedule, times, stages=edm(s_churn=1.2).stages)
    asked, s = levels.stages[0], np.exp(-0.5 * levels.visited.log_snr[:-1])
    wanted = np.minimum(1.1 * s, s[0])
    np.testing.assert_allclose(asked.sigma / asked.alpha, wanted, rtol=1e-6)
    np.testing.assert_allclose(np.exp(-0.5 * own.log_snr(np, np.asarray(asked.t))), wanted, rtol=1e-6)
    np.testing.assert_allclose(asked.time, own.time(np, np.asarray(asked.t)), rtol=1e-12)
    assert (np.asarray(asked.time)[1:] > np.asarray(levels.visited.time)[1:-1]).all()
    assert float(asked.time[0]) == pytest.approx(float(levels.visited.time[0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"s_churn": -1}, "s_churn must be at least 0 and finite, got -1"),
        ({"s_noise": float("nan")}, "s_noise must be at least 0 and finite, got nan"),
        ({"s_tmin": 2, "s_tmax": 1}, "s_tmax must be at least s_tmin, 2, got 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        edm(**settings)
