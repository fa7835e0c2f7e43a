"""Solvers in s = sigma / alpha: their order, another library's steps, and where they end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded
import solvers
import worlds
from scipy.stats import norm

from ddpm_jax.diffusion import processes, schedules, spacings
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.sampling import Answer, ancestral, build, ddim, sample, sigma_space, way
from ddpm_jax.sampling.sigma_space import dpm2, dpm2_ancestral, edm, euler, euler_ancestral, heun, lms

LINEAR = schedules.linear()
NO_SIGNAL = schedules.zero_terminal_snr(LINEAR)
KEY = jax.random.key(0)


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("sampler", "published", "before"),
    [(euler(), 1, 0), (heun(), 2, 0), (heun(straight=True), 2, 0), (dpm2(), 2, 0)]
    + [(lms(order=order), order, order - 1) for order in (2, 3, 4)],
    ids=["euler", "heun", "heun straight", "dpm2", "lms 2", "lms 3", "lms 4"],
)
def test_the_order_of_convergence_is_the_published_one(sampler, published, before):
    """LMS is given its first steps: begun with Euler's, whose error is h^2, orders above 2 would measure 2."""
    for name, bend in {"vp": 1.0, "ve": 0.0, "flow": 0.0}.items():
        found = solvers.order(sampler, name, bend=bend, exact_steps=before, remembers=solvers.values(False))
        assert found == pytest.approx(published, abs=0.15), name


@pytest.mark.usefixtures("float64")
def test_lms_has_its_order_from_its_own_start_where_the_first_steps_are_small():
    process, errors = processes.vp(), []
    low, high = (process.log_snr(np, t) for t in solvers.ENDS["vp"])
    for steps in (128, 256):
        times = process.t_of(np, low + (high - low) * np.linspace(0, 1, steps + 1) ** 2)
        levels = solvers.levels_for(lms(), process, times)
        got = solvers.run(lms(), levels, solvers.start(lms(), solvers.exact("vp", times[0])))[steps - 1]
        errors.append(np.abs(got - solvers.exact("vp", times[-1])).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.2)


def calls(name, number):
    """Of a recording with `number` calls a step but one in the last: the first and the last call of every step."""
    count = len(recorded.ARRAYS[name])
    first = range(0, count, number)
    return list(first), [min(k + number - 1, count - 1) for k in first]


def both(name, sampler, number=1, model=recorded.model):
    """The sampler's own path along a recording's levels, and the recording's, x after each step."""
    case, x, steps = recorded.CASES[name], recorded.ARRAYS[name], recorded.ARRAYS[f"{name}/steps"]
    first, last = calls(name, number)
    sigmas = np.append(steps[first, 1], 0.0)
    flow = case["space"] == "flow"
    times = sigmas if flow else [recorded.place(sigma) for sigma in sigmas]
    scale = np.sqrt(1 + sigmas**2).reshape(-1, 1, 1) if case["space"] == "sigma" else np.ones((len(sigmas), 1, 1))
    levels = solvers.levels_for(sampler, processes.flow() if flow else recorded.WIDE, times)
    state = solvers.start(sampler, case["start_scale"] * recorded.ARRAYS["x_T"] / scale[0])
    return solvers.run(sampler, levels, state, model=model)[: len(first)] * scale[1:], x[last]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "sampler", "number"),
    [(f"euler_{name}", euler(), 1) for name in ("leading", "trailing", "linspace", "karras", "beta", "zero_snr")]
    + [(name, euler(), 1) for name in ("euler_exponential", "edm_euler", "flow_euler", "flow_euler_shift3")]
    + [(name, heun(), 2) for name in ("heun", "heun_karras")]
    + [("flow_heun", heun(straight=True), 2), ("dpm2", dpm2(), 2), ("dpm2_exponential", dpm2(), 2)]
    + [("lms", lms(), 1), ("lms_karras", lms(), 1), ("lms_2", lms(order=2), 1)],
)
def test_every_step_is_the_recorded_one(name, sampler, number):
    """`flow_heun` starts at alpha = 0."""
    ours, theirs = both(name, sampler, number)
    assert len(ours) == recorded.CASES[name]["steps"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "sampler", "number", "module"),
    [
        ("euler_ancestral_trailing", euler_ancestral(), 1, ancestral),
        ("euler_ancestral_linspace", euler_ancestral(), 1, ancestral),
        ("dpm2_ancestral", dpm2_ancestral(), 2, sigma_space),
    ],
)
def test_every_step_is_the_recorded_one_with_the_recorded_noise(name, sampler, number, module, monkeypatch):
    table = jnp.asarray(recorded.ARRAYS["noise"])
    monkeypatch.setattr(module, "noise", lambda state: table[state.count])
    own = lambda x, level: recorded.model(x, level)  # noqa: E731 - compiled anew, with this noise
    ours, theirs = both(name, sampler, number, own)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "process", "steps", "num"),
    [
        (euler_ancestral(), processes.flow(), 512, 8),
        (dpm2_ancestral(eta=0.8), processes.vp(), 64, 16),
        (edm(s_churn=20.0, s_tmin=0.01, s_tmax=50.0), processes.edm(), 128, 16),
    ],
    ids=["euler_ancestral", "dpm2_ancestral", "edm"],
)
def test_stochastic_samplers_draw_the_mixture(sampler, process, steps, num):
    """1024 pixels an image: mean, variance and the weight of the lower mode within four standard errors.

    The network hears of a level by its time alone. Euler's own error is 0.02 of the variance at 128 steps, and falls
    with their number.
    """
    times = spacings.log_snr(processes.flow(start=0.999) if process.name == "flow" else process, (steps,))
    denoise = worlds.denoiser(worlds.MIXTURE, process)
    options = {"num": num, "batch_size": num, "times": times, "clip": False, "sampler": sampler}
    images = sample(KEY, denoise, process, shape=(32, 32, 1), **options)
    assert_is_the_mixture(images)


def assert_is_the_mixture(images, world=worlds.MIXTURE):
    variance, size = world.std() ** 2, images.size
    fourth = sum(
        w * ((m - world.mean()) ** 4 + 6 * (m - world.mean()) ** 2 * s**2 + 3 * s**4)
        for w, m, s in zip(world.weights, world.means, world.stds, strict=True)
    )
    assert images.mean() == pytest.approx(world.mean(), abs=4 * np.sqrt(variance / size))
    assert images.var() == pytest.approx(variance, abs=4 * np.sqrt((fourth - variance**2) / size))
    below = float(np.dot(world.weights, norm.cdf((0.05 - np.array(world.means)) / world.stds)))
    assert (images < 0.05).mean() == pytest.approx(below, abs=4 * np.sqrt(below * (1 - below) / size))


POINT = jnp.linspace(-1, 1, 12).reshape(2, 6)
STEPS = 6
EVALUATIONS = {
    "euler": STEPS,
    "heun": 2 * STEPS - 1,
    "heun straight=1": 2 * STEPS - 1,
    "edm s_churn=3": 2 * STEPS - 1,
    "dpm2": 2 * STEPS - 1,
    "dpm2_ancestral": 2 * STEPS - 1,
    "lms": STEPS,
    "rk4": 4 * STEPS - 3,
    "rk4 straight=1": 4 * STEPS - 3,
    "exponential order=3": 3 * STEPS - 2,
    "exponential order=4": 4 * STEPS - 3,
    "pndm": STEPS + 9,
    "pndm runge_kutta=0": STEPS + 1,
    "ipndm": STEPS,
}


def named(words):
    name, *arguments = words.split()
    return build(name, [(key, float(value)) for key, value in (word.split("=") for word in arguments)])


@pytest.mark.parametrize("words", EVALUATIONS)
def test_a_point_of_data_is_reached_in_as_many_evaluations_as_are_said(words):
    """In float32, from no signal at all where the sampler can, and nothing on the way is NaN."""
    sampler, asked = named(words), []

    def model(x, level):
        asked.append(level)
        return Answer(x_0=POINT, eps=(x - level.alpha * POINT) / level.sigma)

    schedule = LINEAR if sampler.needs_signal else NO_SIGNAL
    times = spacings.trailing(processes.of_schedule(schedule), (STEPS,))
    levels = visit(schedule, times, stages=sampler.stages, stages_in=sampler.stages_in)
    levels = jax.tree.map(np.asarray, levels)  # read faster than arrays on a device, step by step
    state = solvers.start(sampler, jax.random.normal(KEY, POINT.shape))
    with jax.disable_jit():
        for i in range(STEPS):
            state, _ = sampler.step(state, model, levels, (jnp.int32(i), jnp.int32(i + 1)))
            assert jnp.isfinite(state.x).all()
    assert len(asked) == EVALUATIONS[words]
    np.testing.assert_allclose(state.x, POINT, atol=1e-5)


def test_what_divides_by_alpha_does_not_start_without_signal():
    refused = {words for words in EVALUATIONS if named(words).needs_signal}
    assert refused == {"heun", "edm s_churn=3", "dpm2", "dpm2_ancestral", "rk4", "pndm", "pndm runge_kutta=0"}
    for words in refused:
        with pytest.raises(ValueError, match="divides by alpha, which is 0 at the first level"):
            way(NO_SIGNAL, None, sampler=named(words))


def test_heun_goes_up_from_the_image_and_back(float64):
    """Encoding and decoding leave a hundredth of what Euler's steps, DDIM's inversion, leave."""
    process, apart = processes.vp(), {}
    x_0 = np.linspace(-1, 1, 12).reshape(2, 6)
    down = np.append(process.t_of(np, np.linspace(-4, 12, 64)), 0.0)
    for sampler in (euler(), heun()):
        x = x_0
        for times in (down[::-1], down):
            x = solvers.run(sampler, solvers.levels_for(sampler, process, times), solvers.start(sampler, x))[63]
        apart[sampler] = np.abs(x - x_0).max()
    assert apart[heun()] < 3e-4
    assert apart[heun()] < 0.01 * apart[euler()]


def test_settings_are_bound_once_and_bad_ones_refused():
    assert euler() is ddim()
    assert euler_ancestral(eta=0.5) is ddim(eta=0.5)
    assert lms(order=4.0) is lms()  # pyright: ignore[reportArgumentType]
    assert lms(order=1) is euler()
    assert dpm2_ancestral(eta=0) is dpm2()
    assert edm() is heun()
    for order in (0, 5, 1.5):
        with pytest.raises(ValueError, match=f"order must be a whole number from 1 to 4, got {order}"):
            lms(order=order)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got 2"):
        dpm2_ancestral(eta=2)


@pytest.mark.parametrize(
    ("process", "times"),
    [
        (processes.edm(0.0625, 64.0), spacings.log_snr(processes.edm(0.0625, 64.0), (11,))),  # each step half the last
        (processes.flow(), np.linspace(1.0, 0.0, 33)),
        (processes.flow(), np.linspace(1.0, 0.0, 21)),
    ],
)
def test_lms_goes_ways_whose_steps_stand_in_whole_ratios(process, times):
    """There what stands in for a step not yet taken must not fall on one that was: 0 / 0."""
    network = worlds.denoiser(worlds.GAUSSIAN, process, "x0")
    x = sample(
        KEY,
        network,
        process,
        shape=(4, 4, 1),
        num=4,
        batch_size=4,
        times=times,
        sampler=lms(),
        prediction="x0",
        clip=False,
    )
    assert np.isfinite(x).all()
    assert np.abs(x - worlds.GAUSSIAN.mean()).max() < 6 * worlds.GAUSSIAN.std()
