"""PNDM and iPNDM: another library's steps, and the order that their fixed weights leave them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded
import solvers
import worlds

from ddpm_jax.diffusion import processes
from ddpm_jax.sampling import ddim
from ddpm_jax.sampling.pndm import ipndm, pndm

ENDS = solvers.ENDS | {"edm": (2.0, 0.5)}
BETAS = np.linspace(1e-4, 0.02, 1000)


@pytest.fixture(autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def linear():
    """The linear schedule's process with log-SNR from betas that were never float32."""
    logs = np.cumsum(np.log1p(-BETAS))
    log_snr, places = logs - np.log(-np.expm1(logs)), np.arange(1000.0)
    return processes.Process(
        name="linear",
        log_alpha=lambda xp, t: -0.5 * xp.logaddexp(0.0, -xp.interp(t, places, log_snr)),
        log_sigma=lambda xp, t: -0.5 * xp.logaddexp(0.0, xp.interp(t, places, log_snr)),
        t_of=lambda xp, wanted: xp.interp(-wanted, -log_snr, places),
        time=lambda xp, t: t,
        start=999.0,
        end=0.0,
        clean=-1.0,
    )


@pytest.mark.parametrize(
    ("name", "sampler", "path"),
    [
        ("pndm_prk", pndm(), [3, 7, *range(11, 29)]),
        ("pndm_plms", pndm(runge_kutta=False), range(1, 21)),
    ],
)
def test_every_step_of_pndm_is_the_recorded_one(name, sampler, path):
    """Of several calls in a step, x after the last is compared."""
    levels = solvers.levels_for(sampler, linear(), [*range(950, -1, -50), -1])
    ours = solvers.run(sampler, levels, solvers.start(sampler, recorded.ARRAYS["x_T"]))[:20]
    theirs = recorded.ARRAYS[name][list(path)]
    assert len(theirs) == recorded.CASES[name]["steps"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_every_step_of_ipndm_is_the_recorded_one():
    steps = recorded.ARRAYS["ipndm_from_1/steps"]
    levels = solvers.levels_for(ipndm(), recorded.WIDE, [recorded.place(s) for s in (*steps[:, 1], 0.0)])
    ours = solvers.run(ipndm(), levels, solvers.start(ipndm(), recorded.ARRAYS["x_T"]))[:10]
    np.testing.assert_allclose(ours, recorded.ARRAYS["ipndm_from_1"], rtol=1e-9, atol=1e-9)


def even(process, steps):
    return np.linspace(*ENDS[process.name], steps + 1)


def uneven(process, steps):
    """Short and long steps in turn, one to two."""
    parts = np.append(0, np.cumsum(np.resize([1, 2], steps)))
    first, last = ENDS[process.name]
    return first + (last - first) * parts / parts[-1]


def order(sampler, name, spacing=even, exact_steps=0):
    """The slope of log error over log of the steps; the first steps may be done exactly."""
    process, errors = processes.build(name), []
    ends, x = worlds.levels_of(process, ENDS[name][0]), np.resize([-1.5, -0.3, 0.2, 1.1], (2, 6))

    def exact(t):
        values = worlds.MIXTURE.flow(x.flat[:4] * np.hypot(*ends), ends, worlds.levels_of(process, t))
        return np.resize(values, x.shape)

    for steps in solvers.STEPS:
        times = spacing(process, steps)
        levels = solvers.levels_for(sampler, process, times)
        before = [exact(t) for t in times[: exact_steps + 1]]
        state = solvers.start(sampler, before[-1])
        if exact_steps:
            past = [recorded.model(jnp.asarray(v), levels.read(k)).eps for k, v in enumerate(before[:-1])][::-1]
            state = dataclasses.replace(state, count=jnp.int32(exact_steps), past=jnp.stack(past))
        got = solvers.run(sampler, levels, state, exact_steps)[steps - exact_steps - 1]
        errors.append(np.abs(got - exact(times[-1])).max())
    return -np.polyfit(np.log(solvers.STEPS), np.log(errors), 1)[0]


@pytest.mark.parametrize("sampler", [pndm(), pndm(runge_kutta=False)], ids=["runge_kutta", "plms"])
def test_pndm_is_of_second_order_and_of_fourth_where_s_is_t(sampler):
    """Even steps in t. On `edm` s = t, and the pseudo methods are the classical ones."""
    for name in ("sub_vp", "ve", "flow"):
        assert order(sampler, name) == pytest.approx(2, abs=0.15), name
    assert order(sampler, "edm") == pytest.approx(4, abs=0.15)


@pytest.mark.parametrize("classical", [2, 3, 4])
def test_ipndm_is_of_second_order_and_of_its_own_where_s_is_t(classical):
    sampler = ipndm(order=classical)
    for name in ("sub_vp", "ve", "flow"):
        assert order(sampler, name, exact_steps=classical - 1) == pytest.approx(2, abs=0.15), name
    assert order(sampler, "edm", exact_steps=classical - 1) == pytest.approx(classical, abs=0.15)


def test_on_uneven_steps_fixed_weights_leave_the_first_order():
    assert order(ipndm(order=2), "ve", uneven) == pytest.approx(1, abs=0.15)


def test_settings_are_bound_once_and_bad_ones_refused():
    assert ipndm(order=1) is ddim()
    assert ipndm(order=4.0) is ipndm()  # pyright: ignore[reportArgumentType]
    assert pndm(runge_kutta=True) is pndm()
    with pytest.raises(ValueError, match="order must be a whole number from 1 to 4, got 0"):
        ipndm(order=0)
