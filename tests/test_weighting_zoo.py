"""Each weighting is the formula of its paper, in the space that the paper states it in, worked out in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import records
from ddpm_jax.config import Config, Diffusion, NoiseNet
from ddpm_jax.diffusion import schedules, weightings
from ddpm_jax.diffusion.weightings import WEIGHTINGS, in_space
from ddpm_jax.training import run

LINEAR, JSD = schedules.linear(), schedules.jsd()
LOG_SNR = np.arange(-18, 18.5, 0.5)
SNR = np.exp(LOG_SNR)
S = SNR**-0.5
"""EDM's sigma: noise per unit of signal."""
U = 1 / (1 + np.sqrt(SNR))
"""Time on the straight path from x_0 to eps, alpha = 1 - u and sigma = u."""


def normal(x, mean, std):
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))


def edm(s, sigma_data=0.5):
    return (s**2 + sigma_data**2) / (s * sigma_data) ** 2


def edm_objective(log_snr, mean, std, sigma_data):
    """On the error of x_0: the density of ln s for each unit of log-SNR, d ln s = d lambda / 2, times EDM's factor."""
    s = np.exp(-log_snr / 2)
    return normal(np.log(s), mean, std) / 2 * edm(s, sigma_data)


def monotone(mean, std, sigma_data):
    """On the error of eps: the largest EDM objective at lambda or above it, looked for on a grid."""
    grid = np.arange(-60, 60, 1e-3)
    best = np.maximum.accumulate((edm_objective(grid, mean, std, sigma_data) * np.exp(-grid))[::-1])[::-1]
    return np.interp(LOG_SNR, grid, best)


FORMULAS = [
    ("simple", {}, "eps", np.ones_like(SNR)),
    ("snr", {}, "x0", SNR),
    ("x0_mse", {}, "x0", np.ones_like(SNR)),
    ("v_mse", {}, "v", np.ones_like(SNR)),
    ("flow_mse", {}, "flow", np.ones_like(SNR)),
    ("truncated", {}, "x0", np.maximum(SNR, 1)),
    ("snr_plus_one", {}, "x0", SNR + 1),
    ("inverse_snr", {}, "x0", 1 / SNR),
    ("min_snr", {}, "x0", np.minimum(SNR, 5)),
    ("min_snr", {"gamma": 2.0}, "x0", np.minimum(SNR, 2)),
    ("max_snr", {}, "x0", np.maximum(SNR, 1)),
    ("max_snr", {"gamma": 5.0}, "x0", np.maximum(SNR, 5)),
    ("soft_min_snr", {}, "x0", 5 * SNR / (SNR + 5)),
    ("soft_min_snr", {"gamma": 4.0}, "x0", 1 / (S**2 + 0.5**2)),
    ("p2", {}, "eps", 1 / (1 + SNR)),
    ("p2", {"k": 0.5, "gamma": 0.5}, "eps", 1 / (0.5 + SNR) ** 0.5),
    ("p2", {"k": 0.0, "gamma": 1.0}, "eps", 1 / SNR),
    ("debiased", {}, "eps", 1 / np.sqrt(SNR)),
    ("edm", {}, "x0", edm(S)),
    ("edm", {"sigma_data": 1.0}, "x0", edm(S, 1.0)),
    ("sigma_sqrt", {}, "flow", U**-2.0),
    ("elbo", {}, "eps", np.ones_like(SNR)),
    ("likelihood", {}, "eps", np.ones_like(SNR)),
    ("vlb", {}, "eps", np.full_like(SNR, 0.5)),
    ("sigmoid", {}, "eps", 1 / (1 + np.exp(LOG_SNR - 2))),
    ("sigmoid", {"bias": -3.0}, "x0", np.exp(-3) / (1 + np.exp(-LOG_SNR - 3))),  # SiD2's form, on x_0
    ("log_normal", {}, "x0", edm_objective(LOG_SNR, -1.2, 1.2, 0.5)),
    ("log_normal", {"mean": -0.4, "std": 1.0}, "x0", edm_objective(LOG_SNR, -0.4, 1.0, 0.5)),
    ("monotone_edm", {}, "eps", monotone(-1.2, 1.2, 0.5)),
    ("monotone_edm", {"std": 2.0, "sigma_data": 5.0}, "eps", monotone(-1.2, 2.0, 5.0)),  # two maxima
    ("logit_normal", {}, "flow", normal(np.log(U / (1 - U)), 0, 1) / 2),
    ("logit_normal", {"mean": -0.5, "std": 0.6}, "flow", normal(np.log(U / (1 - U)), -0.5, 0.6) / 2),
    ("cosmap", {}, "flow", 2 / (np.pi * (1 - 2 * U + 2 * U**2)) * U * (1 - U) / 2),
]


@pytest.mark.parametrize(("name", "parameters", "space", "formula"), FORMULAS)
def test_weightings_are_their_papers_formulas(name, parameters, space, formula):
    def k(log_snr):
        return WEIGHTINGS[name](log_snr, **parameters)

    np.testing.assert_allclose(in_space(k, space, jnp.asarray(LOG_SNR, jnp.float32)), formula, rtol=2e-5, atol=1e-30)


def test_every_weighting_has_a_formula_here():
    assert {name for name, *_ in FORMULAS} == set(WEIGHTINGS)


@pytest.mark.parametrize(
    ("space", "factors"),
    [
        ("x0", [5, 5, 1, 0.1]),
        ("eps", [0.05, 1, 1, 1]),
        ("v", [5 / 101, 5 / 6, 1 / 2, 0.1 / 1.1]),
    ],
)
def test_min_snr_5_at_snr_100_5_1_and_a_tenth(space, factors):
    log_snr = jnp.log(jnp.array([100.0, 5.0, 1.0, 0.1]))
    np.testing.assert_allclose(in_space(WEIGHTINGS["min_snr"], space, log_snr), factors, rtol=1e-5)


def test_min_snr_for_eps_put_on_v_would_be_another_objective():
    """The mistake that `in_space` is there against: said for x_0 it counts 5.05, 6, 2, 1.1 and not 5, 5, 1, 0.1."""
    log_snr = jnp.log(jnp.array([100.0, 5.0, 1.0, 0.1]))
    x0_by_v = in_space(WEIGHTINGS["simple"], "x0", log_snr) / in_space(WEIGHTINGS["simple"], "v", log_snr)
    np.testing.assert_allclose(WEIGHTINGS["min_snr"](log_snr) * x0_by_v, [5.05, 6, 2, 1.1], rtol=1e-5)


def _vlb(betas, fraction):
    """Ho et al. 2020, Eq. 12, the variance a mixture in the logarithm; float64 [T]."""
    alpha_bars = np.cumprod(1 - betas)
    before = np.append(1.0, alpha_bars[:-1])
    small = betas * (1 - before) / (1 - alpha_bars)
    small[0] = small[1]
    variance = betas**fraction * small ** (1 - fraction)
    return betas**2 / (2 * variance * (1 - betas) * (1 - alpha_bars))


@pytest.mark.parametrize("fraction", [1.0, 0.0, 0.3])
def test_vlb_is_what_a_step_counts_in_the_bound(fraction):
    k = weightings.build("vlb", [("fraction", fraction)], LINEAR)
    np.testing.assert_allclose(k(LINEAR.log_snr), _vlb(np.linspace(1e-4, 0.02, 1000), fraction), rtol=1e-5)


def test_vlb_is_the_published_table():
    k = weightings.build("vlb", (), LINEAR)
    wanted = [0.50005, 0.27269208, 0.06822399, 0.00999623, 0.00533448, 0.0055097345, 0.0091819318, 0.0102044935]
    np.testing.assert_allclose(k(LINEAR.log_snr)[np.array([0, 1, 10, 100, 250, 500, 900, 999])], wanted, rtol=1e-5)


@pytest.mark.parametrize("schedule", [LINEAR, JSD], ids=["linear", "jsd"])
def test_vlb_on_the_posterior_mean_is_half_a_variance_even_without_signal(schedule):
    """KL of two normals of one variance s^2: ||mean - mean_hat||^2 / (2 s^2)."""
    k = weightings.build("vlb", (), schedule)
    got = in_space(k, "mean", schedule.log_snr, posterior_mean_coef_x0=schedule.posterior_mean_coef_x0)
    np.testing.assert_allclose(got, 0.5 / np.asarray(schedule.betas, np.float64), rtol=1e-5)


def test_likelihood_is_g_squared_on_the_score():
    """g^2 du = beta_t in a step: the same to the size of the steps, 1 % from t = 50 on."""
    k = weightings.build("likelihood", (), LINEAR)
    got = in_space(k, "score", LINEAR.log_snr)[50:]
    np.testing.assert_allclose(got, 1000 * np.linspace(1e-4, 0.02, 1000)[50:], rtol=0.015)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("min_snrr", (), r"--diffusion.weighting: there is no 'min_snrr', did you mean 'min_snr'\?"),
        ("min_snr", (("gama", 5.0),), "weighting-args: min_snr takes gamma, got gama, did you mean 'gamma'"),
        ("elbo", (("gamma", 5.0),), "--diffusion.weighting-args: elbo takes none, got gamma"),
        ("elbo", (("schedule", 5.0),), "--diffusion.weighting-args: elbo takes none, got schedule"),
        ("p2", (("k", float("nan")),), "p2: k must be a finite number, got nan"),
        ("min_snr", (("gamma", -1.0),), r"min_snr: gamma -1 makes a factor of nan at t = 0 \(log-SNR 9.21\)"),
        ("min_snr", (("gamma", 0.0),), "min_snr: gamma 0 makes a factor of 0 at every t"),
        ("p2", (("k", 0.0), ("gamma", 30.0)), "p2: k 0 gamma 30 makes a factor of inf at t = "),
        ("edm", (("sigma_data", 0.0),), "edm: sigma_data 0 makes a factor of inf"),
    ],
)
def test_names_and_values_that_can_not_be_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        weightings.build(name, arguments, LINEAR)


def test_a_run_is_weighted_as_its_config_says():
    settings = Diffusion(weighting="min_snr", weighting_args=(("gamma", 2.0),), num_steps=100)
    config = Config(diffusion=settings, net=NoiseNet(init_dim=8, dim_mults=(1, 2)))
    assert records.from_dict(records.to_dict(config), Config, "config.json") == config
    k = run.build(config).weighting
    np.testing.assert_allclose(k(jnp.log(jnp.array([8.0, 2.0, 0.1]))), [0.25, 1, 1], rtol=1e-6)
    with pytest.raises(ValueError, match="did you mean 'gamma'"):
        run.build(dataclasses.replace(config, diffusion=Diffusion(weighting="p2", weighting_args=(("gam", 1.0),))))
    with pytest.raises(ValueError, match=r"--diffusion.weighting-args .* has no part in --diffusion.objective vlb"):
        run.build(dataclasses.replace(config, diffusion=dataclasses.replace(settings, objective="vlb")))
