"""The probability-flow ODE by adaptive steps, against the flow that keeps every quantile."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from scipy.special import expit

from ddpm_jax.diffusion import processes, schedules
from ddpm_jax.diffusion.between import trained
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.sampling import SAMPLERS, black_box, frame_steps, sample_path

KEY = jax.random.key(0)
WORLD = worlds.MIXTURE
X_0 = np.linspace(-1.1, 1.2, 8).reshape(2, 2, 2, 1)
COSINE = schedules.cosine(50)
TIGHT = {"rtol": 1e-8, "atol": 1e-8, "batch_size": 2}


@pytest.fixture(autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def there_and_back(denoise, trained, walked, times, **options):
    """Largest errors of the encoding, as parts of its deviation, and of the image that is decoded from it."""
    x_T = black_box.encode(denoise, trained, X_0, times=times, **TIGHT, **options)
    ends = [worlds.levels_of(walked, t) for t in times]
    back = black_box.decode(denoise, trained, x_T, times=times[::-1], **TIGHT, **options)
    return np.abs(x_T - WORLD.flow(X_0, *ends)).max() / np.hypot(*ends[1]), np.abs(back - X_0).max()


def test_an_image_goes_along_the_flow_to_its_noise_and_back():
    """Of a vp network, along four processes: it is told its own time, from which it knows the world."""
    vp = processes.vp()
    denoise = jax.tree_util.Partial(worlds.denoiser(WORLD, vp, prediction="v"))
    for along, times in (
        (None, (1e-3, 1.0)),
        (processes.sub_vp(), (0.05, 0.9)),
        (processes.ve(), (0.05, 0.95)),
        (processes.flow(), (0.02, 0.98)),
    ):
        errors = there_and_back(denoise, vp, along or vp, times, along=along, prediction="v")
        assert max(errors) < 1e-6, (along, errors)


def test_the_flow_begins_where_there_is_no_signal():
    """The flow process from t = 1, where x / alpha is not even defined: x_T is the normal quantile of x_0."""
    flow = processes.flow()
    denoise = jax.tree_util.Partial(worlds.denoiser(WORLD, flow))
    x_T = black_box.encode(denoise, flow, X_0, **TIGHT)
    np.testing.assert_allclose(x_T, WORLD.flow(X_0, worlds.levels_of(flow, 1e-3), (0.0, 1.0)), atol=1e-6)
    np.testing.assert_allclose(black_box.decode(denoise, flow, x_T, **TIGHT), X_0, atol=1e-6)


def by_table(x, time):
    """A network of COSINE that knows the world, by a time that may lie between two indices."""
    alpha, sigma = (
        f(jnp.interp(time[0] / 20, jnp.arange(50.0), COSINE.log_snr.astype(float)))
        for f in (lambda log_snr: jax.nn.sigmoid(log_snr) ** 0.5, lambda log_snr: jax.nn.sigmoid(-log_snr) ** 0.5)
    )
    return (x - alpha * WORLD.x_0_given(x, alpha, sigma)) / sigma


def test_of_a_schedule_the_network_is_told_the_time_between_its_indices():
    walked = processes.of_schedule(COSINE)
    assert max(there_and_back(jax.tree_util.Partial(by_table), COSINE, walked, (0.0, 47.5))) < 1e-6


def test_a_mean_between_two_indices_is_read_as_by_the_samplers_that_take_steps():
    """As that of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eq. 7), its alpha_bars by log-SNR; before t = 0 all is x_0."""
    for t in (0.4, 7.3, 30.5, 48.9):
        here = visit(COSINE, [t, -1.0]).read(0)
        log_snr = np.interp([t, t - 1], np.arange(50), np.asarray(COSINE.log_snr, np.float64))
        now, before = expit(log_snr[0]), 1.0 if t < 1 else expit(log_snr[1])
        of_x_0 = np.sqrt(before) * (1 - now / before) / (1 - now)
        of_x_t = np.sqrt(now / before) * (1 - before) / (1 - now)
        for own in (here.own, black_box.level_at(trained(COSINE), here.log_snr).own):
            np.testing.assert_allclose([own.coef_x0, own.coef_xt], [of_x_0, of_x_t], rtol=1e-5)


def test_the_sampler_goes_to_the_image_in_two_steps_whatever_is_asked():
    """By the solver to the least noisy level, from there to the prediction of x_0; frames show these."""
    sampler = SAMPLERS["ode"](rtol=1e-8, atol=1e-8)
    assert sampler is SAMPLERS["ode"](rtol=1e-8, atol=1e-8)
    x_T, heard = np.linspace(-2, 2, 8).reshape(X_0.shape), []
    for times in ([49, 30, 10, 0, -1], [49, 0, -1]):
        image, path = sample_path(
            KEY,
            jax.tree_util.Partial(by_table),
            COSINE,
            shape=(2, 2, 1),
            num=2,
            batch_size=2,
            times=times,
            x_T=x_T,
            clip=False,
            sampler=sampler,
            frames=3,
            on_step=lambda done: heard.append(int(done)),
        )
        jax.effects_barrier()
        last = WORLD.flow(x_T, *(worlds.levels_of(processes.of_schedule(COSINE), t) for t in (49, 0)))
        np.testing.assert_allclose(path.x_t[frame_steps(2, 3)], [x_T, last, image], atol=1e-6)
        alpha, sigma = worlds.levels_of(processes.of_schedule(COSINE), 0)
        np.testing.assert_allclose(image, WORLD.x_0_given(last, alpha, sigma), atol=1e-6)
    assert heard == [1, 2, 1, 2]


def test_what_cannot_be_is_refused(monkeypatch):
    for options, message in (
        ({"solver": "dopri6"}, "solver: there is no 'dopri6', did you mean 'dopri8'"),
        ({"rtol": 0.0}, "rtol must be positive, got 0.0"),
        ({"atol": float("nan")}, "atol must be positive, got nan"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            black_box.ode(**options)
    with pytest.raises(ValueError, match="tsit5 didn't arrive within max_steps=3"):
        black_box.encode(by_table, COSINE, X_0[:1], max_steps=3, batch_size=1)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"need diffrax: pip install 'ddpm_jax\[ode\]'"):
        black_box.ode()
