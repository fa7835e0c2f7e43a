"""Forward processes against the formulas of the papers, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import processes, schedules
from ddpm_jax.diffusion.processes import PROCESSES

T = np.linspace(0.05, 0.95, 19)


def read(process, t):
    return np.exp(process.log_alpha(np, t)), np.exp(process.log_sigma(np, t))


def integral_of_beta(t):
    return 0.1 * t + 0.5 * t**2 * 19.9


@pytest.mark.parametrize(
    ("name", "alpha", "sigma"),
    [
        ("vp", lambda t: np.exp(-0.5 * integral_of_beta(t)), lambda t: np.sqrt(1 - np.exp(-integral_of_beta(t)))),
        ("sub_vp", lambda t: np.exp(-0.5 * integral_of_beta(t)), lambda t: 1 - np.exp(-integral_of_beta(t))),
        ("ve", lambda t: 1 + 0 * t, lambda t: 0.01 * 5000**t),
        ("edm", lambda t: 1 + 0 * t, lambda t: t),
        ("flow", lambda t: 1 - t, lambda t: t),
    ],
)
def test_signal_and_noise_are_the_papers(name, alpha, sigma):
    process = PROCESSES[name]()
    got = read(process, T)
    np.testing.assert_allclose(got[0], alpha(T), rtol=1e-13)
    np.testing.assert_allclose(got[1], sigma(T), rtol=1e-12)
    np.testing.assert_allclose(process.log_snr(np, T), 2 * np.log(alpha(T) / sigma(T)), atol=1e-12)
    traced = jnp.exp(process.log_alpha(jnp, jnp.asarray(T)))
    np.testing.assert_allclose(traced, alpha(T), rtol=1e-5)


def test_vp_has_the_published_codes_numbers():
    alpha, sigma = read(processes.vp(), np.array([1e-5, 0.25, 0.5, 0.75, 1.0]))
    wanted = [0.9999994995026252, 0.7236571850830864, 0.2811828807967524, 0.05866350301188082, 0.00657158649492962]
    np.testing.assert_allclose(alpha, wanted, rtol=1e-12)
    wanted = [0.00100049712591112, 0.6901596036263088, 0.9596542020680363, 0.9982778137444381, 0.9999784068923386]
    np.testing.assert_allclose(sigma, wanted, rtol=1e-10)


@pytest.mark.parametrize("name", PROCESSES)
def test_t_is_found_again_by_its_log_snr_from_end_to_end(name):
    process = PROCESSES[name]()
    t = np.linspace(process.end, process.start * (1 - 1e-9), 50)
    np.testing.assert_allclose(process.t_of(np, process.log_snr(np, t)), t, rtol=1e-7)
    assert process is PROCESSES[name](), "equal settings, the same object"
    assert processes.vp() is processes.vp(0.1) is processes.vp(beta_max=20)


def test_the_flow_ends_without_any_signal():
    alpha, sigma = (float(x) for x in _quietly(lambda: read(processes.flow(), np.float64(1.0))))
    assert (alpha, sigma) == (0, 1)
    assert _quietly(lambda: processes.flow().log_snr(np, np.float64(1.0))) == -40


def _quietly(call):
    with np.errstate(divide="ignore"):
        return call()


def test_a_schedules_process_reads_its_tables():
    for schedule in (schedules.linear(), schedules.cosine(), schedules.zero_terminal_snr(schedules.linear())):
        process, t = processes.of_schedule(schedule), np.arange(1000.0)
        alpha, sigma = read(process, t)
        np.testing.assert_allclose(alpha, schedule.sqrt_alpha_bars, rtol=2e-6, atol=1e-8)
        np.testing.assert_allclose(sigma, schedule.sqrt_one_minus_alpha_bars, rtol=2e-6)
        np.testing.assert_allclose(process.time(np, t), schedule.times)
        middle = process.log_snr(np, t[:-1] + 0.25)
        between = 0.75 * process.log_snr(np, t[:-1]) + 0.25 * process.log_snr(np, t[1:])
        np.testing.assert_allclose(middle, between, atol=1e-9)
        np.testing.assert_allclose(process.t_of(np, middle), t[:-1] + 0.25, atol=1e-6)
    assert alpha[-1] == 0


@pytest.mark.parametrize("name", PROCESSES)
def test_within_what_a_network_knows_a_process_ends_where_the_networks_own_does(name):
    own, walked = processes.of_schedule(schedules.linear()), PROCESSES[name]()
    kept = processes.within(walked, own)
    with np.errstate(divide="raise"):
        ends = [
            (own.log_snr(np, own.end), kept.end, walked.end),
            (own.log_snr(np, own.start), kept.start, walked.start),
        ]
    for log_snr, end, of_walked in ends:
        assert walked.end <= end <= walked.start
        assert end == of_walked or walked.log_snr(np, end) == pytest.approx(log_snr, abs=1e-6)
    assert own.log_snr(np, own.start) - 1e-6 <= kept.log_snr(np, kept.start)
    assert kept.log_snr(np, kept.end) <= own.log_snr(np, own.end) + 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: processes.vp(20, 0.1), "beta_min and beta_max must rise above 0.0, got 20 and 0.1"),
        (lambda: processes.sub_vp(0, 1), "beta_min and beta_max must rise above 0.0, got 0 and 1"),
        (lambda: processes.ve(0.0, 1), "sigma_min and sigma_max must rise"),
        (lambda: processes.edm(1, 1), "sigma_min and sigma_max must rise"),
        (lambda: processes.vp(end=2.0), r"end must lie in \(0, 1\), got 2.0"),
        (lambda: processes.flow(2.0), r"must rise within \(0, 1\], got 0.001 and 2.0"),
        (lambda: processes.build("sub-vp", "--process"), "--process: there is no 'sub-vp', did you mean 'sub_vp'"),
    ],
)
def test_processes_that_can_not_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
