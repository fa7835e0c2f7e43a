"""Schedules against the published betas, float64 NumPy and Bayes' rule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.config import Diffusion
from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.schedules import LOG_SNR_LIMIT, SCHEDULES, Schedule, at

LINEAR = schedules.linear()
ZERO_TERMINAL = schedules.zero_terminal_snr(LINEAR)

# Float64 figures of the published formulas, each at t = 0, T/2 and T-1 (posterior: at t = 1 and T/2):
# betas, alpha_bars, log-SNR at both ends, posterior variance, coefficients of x_0 and x_t, sum of alpha_bars.
# fmt: off
PUBLISHED = {
    "linear": (LINEAR,
        (0.0001, 0.010059959959959959, 0.02), (0.9999, 0.077796658365023891, 4.0358297653756761e-05),
        (9.2102403670, -10.1176731833), (5.4531876613021935e-05, 0.010051335778909593),
        (0.54529149951029032, 0.0030580570756296192), (0.45470849899053029, 0.99410435075672576), 275.513233396806),
    "linear of 4000 steps": (schedules.linear(4000),
        (2.5e-05, 0.0025131220305076268, 0.005), (0.999975, 0.078746475224252432, 4.2466522758022488e-05),
        (10.5966097328, -10.0667520248), (1.2803628613015869e-05, 0.00251258081289121),
        (0.51213874266523562, 0.00076647215286748422), (0.48786125725231805, 0.99852756261761466), 1103.4990823945),
    "cosine": (schedules.cosine(1000),
        (4.128422482196914e-05, 0.0031556914415850068, 0.999),
        (0.99995871577517803, 0.49228517244880304, 2.4287669070348567e-09),
        (10.0949888115, -19.8358821516), (2.1789496145691819e-05, 0.0031460051254634824),
        (0.52778140933448714, 0.0043678668995263291), (0.47221859042675934, 0.99535627945522509), 495.577512582486),
    "cosine of 4000 steps": (schedules.cosine(4000),
        (9.8658188136813152e-06, 0.0007889355535104503, 0.999),
        (0.99999013418118632, 0.49345397967426397, 1.5179804688514517e-10),
        (11.5264245542, -22.6084701173), (5.0076833952177031e-06, 0.00078832874233577448),
        (0.50757659219972018, 0.0010945039446133586), (0.49242340778917598, 0.99883660608902947), 1983.81003817779),
    "quadratic": (schedules.quadratic(),
        (0.0001, 0.0057420710676884821, 0.02), (0.9999, 0.33127457951725564, 0.00073341245958081591),
        (9.2102403670, -7.2170686321), (5.0656004274034093e-05, 0.0057256433079516085),
        (0.50653471410502793, 0.0049563875225559833), (0.49346528461180644, 0.99427211009235161), 422.655728545506),
    "warmup10": (schedules.warmup10(),
        (0.0001, 0.02, 0.02), (0.9999, 0.00011021388907013428, 4.6136866816713363e-09),
        (9.2102403670, -19.1942385809), (7.5068607164963713e-05, 0.01999995500978061),
        (0.75064853640773277, 0.00021212066963314155), (0.24935145982887091, 0.98994726675892131), 91.9949882375367),
    "warmup50": (schedules.warmup50(),
        (0.0001, 0.02, 0.02), (0.9999, 0.0062256565810747599, 2.6061351337022697e-07),
        (9.2102403670, -15.1602270582), (5.831584832600667e-05, 0.019997442996656501),
        (0.58312932460698341, 0.00160406424292827), (0.41687067364461522, 0.9898229284529072), 195.664623988598),
    "constant": (schedules.constant(),
        (0.02, 0.02, 0.02), (0.98, 4.0203505442562859e-05, 1.6829673572159268e-09),
        (3.8918202981, -20.2027073158), (0.01010101010101009, 0.019999983589746188),
        (0.49997449174806297, 0.00012810508804950255), (0.49997449174806341, 0.98994868139504422), 48.9999999175346),
    "jsd": (schedules.jsd(),
        (0.001, 0.002, 1), (0.999, 0.49899999999999956, 0),
        (6.9067547786, -LOG_SNR_LIMIT), (0.0005005005005005005, 0.001996007984031936),
        (0.5002501876563864, 0.0028227815616229408), (0.4997496870931985, 0.99700548852232951), 499.5),
    "scaled_linear of latent diffusion": (SCHEDULES["scaled_linear"](1000, 0.00085, 0.012),
        (0.00085, 0.0048149541417118798, 0.012), (0.99915, 0.2763326838229746, 0.0046600985130772384),
        (7.0694238470, -5.3640477003), (0.00042635312564883403, 0.0048060585720414465),
        (0.50137869064592311, 0.0035060443340147558), (0.49862121846488955, 0.99574658317798337), 373.376630569169),
    "linear with zero terminal SNR": (ZERO_TERMINAL,
        (0.0001, 0.010292617426392092, 1), (0.9999, 0.075246215704326699, 0),
        (9.2102403670, -LOG_SNR_LIMIT), (5.4689870806070987e-05, 0.010283907722364469),
        (0.54687136244170953, 0.0030689417114940928), (0.45312863604936859, 0.9939985377086441), 274.058084373704),
    "sigmoid": (schedules.sigmoid(),
        (0.00030027919974917605, 0.003314364235860956, 0.999),
        (0.99969972080025082, 0.49834281788206963, 3.0027919974932843e-07),
        (8.1104975260, -15.0185528290), (0.00015059226932309614, 0.0033034155136264045),
        (0.50143219339945688, 0.0046717350215241468), (0.49856779526134415, 0.99504350586656887), 499.500000300279),
}
# fmt: on

EVERY = {name: build(1000) for name, build in SCHEDULES.items()} | {
    "zero terminal": ZERO_TERMINAL,
    "zero terminal of cosine, shifted, respaced": schedules.respace(
        schedules.shift(schedules.zero_terminal_snr(schedules.cosine(1000)), 0.25), range(0, 1000, 37)
    ),
    "shifted": schedules.shift(LINEAR, 0.5),
    "shifted far": schedules.shift(schedules.jsd(), 1e-6),
    "respaced with the end": schedules.respace(schedules.jsd(), [3, 500, 999]),
    "infinite ends": schedules.from_log_snr(lambda u: np.where(u < 0.06, np.inf, np.where(u == 1, -np.inf, -u)), 20),
    "one step": schedules.linear(1),
    "one step to nothing": schedules.from_betas([1.0]),
    "few steps": schedules.linear(10),
}


LEVEL = ("alpha", "sigma", "log_snr", "coef_x0", "coef_xt", "variance")
COLUMNS = ("sqrt_alpha_bars", "sqrt_one_minus_alpha_bars", "log_snr")
COLUMNS += ("posterior_mean_coef_x0", "posterior_mean_coef_xt", "posterior_variance")


def table(schedule: Schedule, name: str) -> np.ndarray:
    return np.asarray(getattr(schedule, name), np.float64)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tables_have_the_published_figures(name):
    schedule, betas, alpha_bars, log_snr, variance, coef_x0, coef_xt, total = PUBLISHED[name]
    middle, last = schedule.num_steps // 2, schedule.num_steps - 1
    for field, entries, expected in [
        ("betas", [0, middle, last], betas),
        ("alpha_bars", [0, middle, last], alpha_bars),
        ("log_snr", [0, last], log_snr),
        ("posterior_variance", [0, 1, middle], (0, *variance)),
        ("posterior_mean_coef_x0", [0, 1, middle], (1, *coef_x0)),
        ("posterior_mean_coef_xt", [0, 1, middle], (0, *coef_xt)),
    ]:
        np.testing.assert_allclose(table(schedule, field)[entries], expected, rtol=1e-6, err_msg=field)
    # Each float32 entry is right to 6e-8 of itself, and so is their sum taken in float64.
    assert table(schedule, "alpha_bars").sum() == pytest.approx(total, rel=2e-7)


@pytest.mark.parametrize("name", EVERY)
def test_every_entry_is_finite_float32(name):
    for field in dataclasses.fields(Schedule):
        entries = getattr(EVERY[name], field.name)
        assert entries.dtype == jnp.float32
        assert entries.shape == (EVERY[name].num_steps,)
        assert np.isfinite(entries).all(), field.name
    log_snr = table(EVERY[name], "log_snr")
    assert (np.abs(log_snr) <= LOG_SNR_LIMIT).all()
    assert (np.diff(log_snr) < 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_tables_agree_with_the_betas_and_bayes_rule(name):
    """q(x_{t-1} | x_t, x_0) is a product of two normals: precisions add, means are weighted by them."""
    schedule = EVERY[name]
    alpha_bars, betas = table(schedule, "alpha_bars"), table(schedule, "betas")
    previous = np.append(1, alpha_bars[:-1])
    np.testing.assert_array_equal(table(schedule, "alpha_bars_prev"), previous)
    np.testing.assert_allclose(alpha_bars / previous, table(schedule, "alphas"), rtol=3e-7, atol=1e-12)
    np.testing.assert_allclose(table(schedule, "alphas"), 1 - betas, rtol=0, atol=1.2e-7)
    np.testing.assert_allclose(table(schedule, "sqrt_alpha_bars") ** 2, alpha_bars, rtol=3e-7)
    sigma2 = table(schedule, "sqrt_one_minus_alpha_bars") ** 2
    np.testing.assert_allclose(sigma2, 1 - alpha_bars, rtol=2e-7, atol=6e-8)
    level = np.log(np.maximum(alpha_bars, 1e-60) / sigma2)
    np.testing.assert_allclose(table(schedule, "log_snr"), np.clip(level, -40, 40), rtol=1e-6, atol=2e-6)
    # x_t = sqrt(alpha) x_{t-1} + noise of variance beta; x_{t-1} = sqrt(previous) x_0 + noise of variance before.
    before, alphas = sigma2[:-1], table(schedule, "alphas")[1:]
    precision = 1 / before + alphas / betas[1:]
    variance = table(schedule, "posterior_variance")
    np.testing.assert_allclose(variance[1:], 1 / precision, rtol=1e-6)
    np.testing.assert_allclose(
        table(schedule, "posterior_mean_coef_x0")[1:], np.sqrt(previous[1:]) / before / precision, rtol=1e-6
    )
    np.testing.assert_allclose(
        table(schedule, "posterior_mean_coef_xt")[1:], np.sqrt(alphas) / betas[1:] / precision, rtol=1e-6
    )
    logs = table(schedule, "posterior_log_variance_clipped")
    np.testing.assert_allclose(np.exp(logs[1:]), variance[1:], rtol=3e-6)
    assert (variance[0], table(schedule, "posterior_mean_coef_x0")[0]) == (0, 1)
    if schedule.num_steps > 1:
        assert logs[0] == logs[1]


def test_noise_at_the_first_step_keeps_seven_digits():
    """1 - alpha_bar from a float32 alpha_bar would be wrong by 1e-4 here."""
    assert float(LINEAR.sqrt_one_minus_alpha_bars[0]) == pytest.approx(0.01, rel=1e-7)


@pytest.mark.parametrize("name", ["linear", "cosine", "jsd", "laplace"])
def test_zero_terminal_snr_keeps_the_first_step_and_stretches_the_rest(name):
    schedule = SCHEDULES[name](1000)
    zeroed = schedules.zero_terminal_snr(schedule)
    root, stretched = table(schedule, "sqrt_alpha_bars"), table(zeroed, "sqrt_alpha_bars")
    assert (zeroed.alpha_bars[-1], zeroed.betas[-1], zeroed.log_snr[-1]) == (0, 1, -LOG_SNR_LIMIT)
    assert float(zeroed.betas[0]) == pytest.approx(float(schedule.betas[0]), rel=1e-6)
    np.testing.assert_allclose(stretched, root[0] * (root - root[-1]) / (root[0] - root[-1]), rtol=2e-6, atol=3e-8)


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_shift_adds_twice_the_log_of_its_factor(name, factor):
    schedule = SCHEDULES[name](1000)
    shifted = schedules.shift(schedule, factor)
    np.testing.assert_allclose(
        table(shifted, "log_snr"), table(schedule, "log_snr") + 2 * np.log(factor), rtol=1e-7, atol=3e-6
    )
    np.testing.assert_array_equal(shifted.times, schedule.times)


@pytest.mark.parametrize("schedule", [LINEAR, ZERO_TERMINAL, EVERY["cosine"]])
def test_respace_keeps_alpha_bars_and_times_of_the_steps_it_visits(schedule):
    steps = np.array([0, 3, 100, 101, 640, 999])
    short = schedules.respace(schedule, steps)
    assert short.num_steps == 6
    np.testing.assert_array_equal(short.times, schedule.times[steps])
    np.testing.assert_allclose(short.alpha_bars, schedule.alpha_bars[steps], rtol=2e-6)
    np.testing.assert_allclose(short.sqrt_one_minus_alpha_bars, schedule.sqrt_one_minus_alpha_bars[steps], rtol=2e-7)


def test_respace_of_respace_is_one_respace():
    twice = schedules.respace(schedules.respace(LINEAR, range(9, 1000, 10)), [0, 50, 99])
    once = schedules.respace(LINEAR, [9, 509, 999])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), twice, once)


def test_times_are_the_index_in_thousandths_of_the_schedule():
    np.testing.assert_array_equal(LINEAR.times, np.arange(1000))
    np.testing.assert_array_equal(schedules.cosine(4000).times, np.arange(4000) / 4)


def test_laplace_has_the_quantiles_of_a_laplace_distribution():
    """After the fraction u of the steps log-SNR has fallen past the quantile 1 - u: mean -+ scale log 2u below 1/2."""
    log_snr = table(schedules.laplace(1000, mean=1.0, scale=0.5), "log_snr")
    assert log_snr[499] == pytest.approx(1.0, abs=1e-6)
    assert log_snr[249] == pytest.approx(1.0 + 0.5 * np.log(2), abs=1e-6)
    assert log_snr[99] == pytest.approx(1.0 + 0.5 * np.log(5), abs=1e-6)
    assert log_snr[899] == pytest.approx(1.0 - 0.5 * np.log(5), abs=1e-6)
    assert log_snr[-1] == -LOG_SNR_LIMIT


def test_from_log_snr_of_linears_log_snr_is_linear():
    alpha_bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    again = schedules.from_log_snr(lambda u: np.log(alpha_bars / (1 - alpha_bars)), 1000)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7, atol=1e-10), again, LINEAR)


def test_from_log_snr_cuts_infinite_ends():
    ends = EVERY["infinite ends"]
    assert (ends.log_snr[0], ends.log_snr[-1]) == (LOG_SNR_LIMIT, -LOG_SNR_LIMIT)
    assert (ends.alpha_bars[-1], ends.betas[-1]) == (0, 1)


@pytest.mark.parametrize("name", ["linear", "cosine", "jsd", "laplace", "zero terminal", "few steps"])
def test_at_a_whole_float_time_is_the_table(name):
    """float32 log-SNR is right to 2e-6, and beta is a difference of two: within 4e-6 over the smallest step in it."""
    schedule = EVERY[name]
    t = jnp.arange(schedule.num_steps)
    exact, read = at(schedule, t), at(schedule, t.astype(jnp.float32))
    slack = 3e-6 / np.minimum(-np.diff(table(schedule, "log_snr"), prepend=41.0), 1)
    for field, column in zip(LEVEL, COLUMNS, strict=True):
        np.testing.assert_array_equal(getattr(exact, field), getattr(schedule, column))
        error = np.abs(table(read, field) - table(schedule, column))
        scale = np.maximum(np.abs(table(schedule, column)), 1e-30)
        assert (error <= (slack if field in ("coef_x0", "variance") else 3e-6) * scale).all(), field


def test_at_half_a_step_is_half_way_in_log_snr():
    t = jnp.array([0.5, 499.5, 998.25])
    level, log_snr = at(LINEAR, t), table(LINEAR, "log_snr")
    expected = np.array([log_snr[:2].mean(), log_snr[499:501].mean(), 0.75 * log_snr[998] + 0.25 * log_snr[999]])
    alpha_bar = 1 / (1 + np.exp(-expected))
    np.testing.assert_allclose(level.log_snr, expected, rtol=1e-6)
    np.testing.assert_allclose(level.alpha, np.sqrt(alpha_bar), rtol=2e-6)
    np.testing.assert_allclose(level.sigma, np.sqrt(1 / (1 + np.exp(expected))), rtol=2e-6)


@pytest.mark.parametrize("schedule", [LINEAR, ZERO_TERMINAL])
def test_gradients_with_respect_to_time_are_finite(schedule):
    slopes = jax.jacrev(lambda t: at(schedule, t))(jnp.array([0.0, 0.5, 998.5, 999.0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.from_betas([0.1, 0.0]), r"betas must lie in \(0, 1\], got 0 to 0.1"),
        (lambda: schedules.from_betas([0.1, 1.5]), r"betas must lie in \(0, 1\], got 0.1 to 1.5"),
        (lambda: schedules.from_betas([0.1, np.nan]), r"betas must lie in \(0, 1\], got nan"),
        (lambda: schedules.from_betas([0.1, 1.0, 0.2]), "only the last beta may be 1, got 1 at t = 1 of 3"),
        (lambda: schedules.from_betas([]), r"betas must have shape \[T\].*got shape \(0,\)"),
        (lambda: schedules.quadratic(10, beta_start=-1e-4), "beta_start.*-0.0001"),
        (lambda: schedules.constant(10, 1.0), "only the last beta may be 1"),
        (lambda: schedules.linear(0), "num_steps must be a whole number of at least 1, got 0"),
        (lambda: schedules.warmup(10, fraction=1.5), r"fraction must lie in \[0, 1\], got 1.5"),
        (lambda: schedules.from_log_snr(lambda u: u, 10), "log-SNR must fall, got 0.1 at t = 0 and 0.2 at t = 1"),
        (lambda: schedules.from_log_snr(lambda u: u[1:], 10), r"must return 10 numbers .* got shape \(9,\)"),
        (lambda: schedules.from_log_snr(lambda u: u * np.nan, 10), "NaN at t = 0"),
        (lambda: schedules.laplace(10, scale=0.0), "scale must be positive, got 0.0"),
        (lambda: schedules.zero_terminal_snr(schedules.linear(1)), "schedule of one step"),
        (lambda: schedules.shift(LINEAR, 0.0), "factor must be a positive number, got 0.0"),
        (lambda: schedules.shift(LINEAR, np.nan), "factor must be a positive number, got nan"),
        (lambda: schedules.respace(LINEAR, [0, 5, 5]), r"timesteps must rise within 0 .. 999, got \[0, 5, 5\]"),
        (lambda: schedules.respace(LINEAR, [5, 1000]), "timesteps must rise within 0 .. 999"),
        (lambda: schedules.respace(LINEAR, []), "timesteps must be whole numbers"),
        (lambda: schedules.respace(LINEAR, [0.5, 1.0]), "timesteps must be whole numbers.*float64"),
        (lambda: schedules.build(Diffusion(schedule="linaer")), "--diffusion.schedule: .* did you mean 'linear'?"),
        (
            lambda: schedules.build(Diffusion(schedule_args=(("beta_ned", 0),))),
            "linear takes .* did you mean 'beta_end'?",
        ),
        (lambda: schedules.build(Diffusion(schedule="jsd", schedule_args=(("s", 0.1),))), "jsd takes none, got s"),
    ],
)
def test_bad_input_is_refused_with_the_value_got(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_build_shifts_and_then_zeroes_the_terminal_snr():
    settings = Diffusion(
        schedule="cosine", num_steps=50, schedule_args=(("s", 0.1),), log_snr_shift=0.5, zero_terminal_snr=True
    )
    expected = schedules.zero_terminal_snr(schedules.shift(schedules.cosine(50, s=0.1), 0.5))
    jax.tree.map(np.testing.assert_array_equal, schedules.build(settings), expected)
