"""What students are taught, in worlds whose denoiser, flow and consistency function are known; float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from worlds import GAUSSIAN, MIXTURE, denoiser, levels_of

from ddpm_jax.diffusion import distillation, processes, schedules, spacings, weightings
from ddpm_jax.diffusion.distillation import Ladder
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.diffusion.parameterization import PREDICTIONS, target_at
from ddpm_jax.sampling import ask, ddim

X = np.linspace(-1.5, 1.5, 8).reshape(2, 2, 2, 1)
LINEAR = schedules.linear(1000)
PROCESSES = {
    "vp": (processes.vp(), [0.9, 0.7, 0.5, 0.3, 0.0]),
    "flow": (processes.flow(), [0.9, 0.8, 0.4, 0.1, 0.0]),
    "ve": (processes.ve(), [0.7, 0.5, 0.3, 0.2, 0.0]),
    "edm": (processes.edm(), [20.0, 3.0, 1.0, 0.1, 0.0]),
    "schedule": (LINEAR, spacings.trailing(processes.of_schedule(LINEAR), (4,))),
    "zero terminal": (
        schedules.zero_terminal_snr(LINEAR),
        spacings.trailing(processes.of_schedule(schedules.zero_terminal_snr(LINEAR)), (4,)),
    ),
}


@pytest.fixture(autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def ddim_steps(levels, model, x, count):
    """By the sampler's own step."""
    sampler = ddim()
    state = sampler.init(jax.random.split(jax.random.key(0), len(x)), x)
    for i in range(count):
        state, _ = sampler.step(state, model, levels, (i, i + 1))
    return state.x


def speaks(x, level, prediction):
    """A mixture's exact denoiser at a level of any process, as an output of that prediction."""
    own = distillation.shape(level.own, x)
    x_0 = MIXTURE.x_0_given(x, own.alpha, own.sigma)
    return target_at(own, prediction, x_0, (x - own.alpha * x_0) / own.sigma)


CASES = [
    (name, prediction, first)
    for name, (along, _) in PROCESSES.items()
    for prediction in PREDICTIONS
    for first in (0, 2)
    # A process has no step to take the mean of.
    if prediction == "v" or name in ("vp", "schedule")  # any of them on any process is the same algebra
    if (prediction != "mean" or isinstance(along, schedules.Schedule))
]


@pytest.mark.parametrize(("name", "prediction", "first"), CASES)
def test_one_step_of_the_student_lands_where_two_of_the_teacher_do(name, prediction, first):
    """On the way, and where the second step ends at the image itself."""
    along, times = PROCESSES[name]
    times = np.asarray(times, float)[first:]
    of_teacher, of_student = visit(along, times[:3]), visit(along, times[[0, 2]])
    here, between, there = (jax.tree.map(lambda a, i=i: jnp.full(2, a[i]), of_teacher.visited) for i in range(3))
    x = jnp.asarray(X) * float(np.hypot(here.alpha[0], here.sigma[0]))

    def teacher(x, time):
        level = here if float(time[0]) == float(here.time[0]) else between
        return speaks(x, level, prediction)

    wanted = ddim_steps(of_teacher, ask(teacher, prediction=prediction, clip=False), x, 2)
    answer = distillation.answers(teacher, prediction, clip=False)
    x_0 = distillation.two_steps(x, answer, here, between, there)
    own = distillation.shape(here.own, x)
    said = target_at(own, prediction, x_0, (x - own.alpha * x_0) / own.sigma)
    got = ddim_steps(of_student, ask(lambda x, time: said, prediction=prediction, clip=False), x, 1)
    size = float(1 / here.alpha[0]) if prediction in ("eps", "score", "mean") and here.alpha[0] else 1.0
    np.testing.assert_allclose(got, wanted, atol=1e-12 * max(size, 1.0))
    if first == 2:  # nothing is left of what the teacher said first
        at = [distillation.shape(level, x) for level in (here, between)]
        np.testing.assert_array_equal(x_0, answer(distillation.step(x, answer(x, here), *at), between))


def test_a_student_of_a_point_is_taught_the_point_and_weighed_by_the_truncated_snr():
    """Two steps of a teacher that knows one image only lead to it. A student that is off by 0.1 in x_0 then loses
    max(SNR, 1) 0.01 on average over its steps."""
    point, steps = jnp.linspace(-1, 1, 4).reshape(1, 2, 2, 1), 4
    places = spacings.trailing(processes.of_schedule(LINEAR), (2 * steps,))
    levels = visit(LINEAR, places)
    x_0 = jnp.broadcast_to(point, (4000, 2, 2, 1))
    off = {
        by: distillation.progressive(
            jax.random.key(0),
            levels,
            lambda x, time, by=by: jnp.broadcast_to(point + by, x.shape),
            lambda x, time: jnp.broadcast_to(point, x.shape),
            x_0,
            prediction="x0",
            weighting=weightings.WEIGHTINGS["truncated"],
        )
        for by in (0.0, 0.1)
    }
    assert float(off[0.0][0]) == pytest.approx(0, abs=1e-20)
    terms = off[0.1][1]
    visited = np.unique(np.asarray(terms.t))
    np.testing.assert_array_equal(visited, places[:-1:2][::-1])
    snr = np.exp(np.asarray(terms.log_snr))
    np.testing.assert_allclose(terms.loss, np.maximum(snr, 1) * 0.01, rtol=1e-9)
    counts = [(np.asarray(terms.t) == t).sum() for t in visited]
    np.testing.assert_allclose(counts, 1000, atol=4 * np.sqrt(4000 * 3 / 16))


@pytest.mark.parametrize(
    ("k", "count"),
    [(0, 11), (49_999, 11), (50_000, 21), (100_000, 41), (349_999, 641), (350_000, 1281), (399_999, 1281)],
)
def test_levels_double_as_published(k, count):
    """Song & Dhariwal 2023: 400,000 steps, s_0 = 10, s_1 = 1280."""
    assert int(distillation.doubling(jnp.asarray(k), 400_000, 10, 1280)) == count


def test_levels_grow_by_the_square_root_and_mu_with_them():
    """Song et al. 2023: 2 to 150 on CIFAR-10, mu_0 = 0.9."""
    grown = [int(distillation.square_root(jnp.asarray(k), 800_000, 2, 150)) for k in (0, 200_000, 800_000)]
    assert grown == [2, int(np.ceil(np.sqrt((151**2 - 4) / 4 + 4) - 1)) + 1, 151]
    assert float(distillation.decay(jnp.asarray(2), 2, 0.9)) == pytest.approx(0.9)
    assert float(distillation.decay(jnp.asarray(151), 2, 0.9)) == pytest.approx(0.9 ** (2 / 151))


@pytest.mark.parametrize("growth", distillation.GROWTHS)
def test_with_equal_ends_the_number_of_levels_stays(growth):
    assert {int(distillation.GROWTHS[growth](jnp.asarray(k), 100, 18, 18)) for k in (1, 50, 99)} == {19}


def test_levels_are_drawn_as_a_log_normal_cut_to_the_ladder():
    ladder = Ladder(count=8, sigma_min=0.01, sigma_max=50.0)
    s = np.asarray(ladder.level(jnp.arange(8)))
    np.testing.assert_allclose(s[[0, -1]], [0.01, 50.0], rtol=1e-12)
    n = np.asarray(ladder.draw(jax.random.key(0), (40_000,)))
    below = norm.cdf((np.log(s) + 1.1) / 2.0)
    chances = np.diff(below) / (below[-1] - below[0])
    shares = np.bincount(n, minlength=7) / n.size
    np.testing.assert_allclose(shares, chances, atol=4 * np.sqrt(0.25 / n.size))


@pytest.mark.parametrize("name", ["edm", "vp"])
def test_a_heun_step_errs_by_the_cube_of_its_length(name):
    process, errors = PROCESSES[name][0], []
    teacher = denoiser(MIXTURE, process, "x0")
    for length in (0.2, 0.1, 0.05):
        here, there = (distillation.rung(process, jnp.full(2, s), jnp.asarray(X)) for s in (1.0, 1.0 - length))
        ends = [levels_of(process, float(at.t[0])) for at in (here, there)]
        x = X * np.hypot(*ends[0])
        got = jax.jit(lambda x, here=here, there=there: distillation.heun(x, teacher, here, there))(x)
        errors.append(np.abs(got - MIXTURE.flow(x, *ends)).max())
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert orders == pytest.approx(3, abs=0.35)


def maps_to(end, mean, std):
    """The flow of N(mean, std^2) along edm from sigma to `end`: what its consistency function is."""

    def f(x, time):
        sigma = jnp.exp(4 * time).reshape(-1, 1, 1, 1)
        return mean + (x - mean) * jnp.sqrt((std**2 + end**2) / (std**2 + sigma**2))

    return f


def test_only_the_flow_of_the_data_is_consistent():
    """Its loss falls as Heun's error does, h^6 / h; that of others, for they change along the path, as h^2 / h."""
    process, end = processes.edm(), 0.002
    x_0 = 0.3 + 0.5 * jax.random.normal(jax.random.key(0), (256, 2, 2, 1))
    others = {
        "denoiser": denoiser(GAUSSIAN, process, "x0"),
        "wider": maps_to(end, 0.3, 0.6),
        "elsewhere": maps_to(end, 0.5, 0.5),
    }

    @functools.partial(jax.jit, static_argnums=0)
    def loss(f, count):
        ladder = Ladder(count=count, sigma_min=end, sigma_max=80.0)
        options = {"ladder": ladder, "teacher": denoiser(GAUSSIAN, process, "x0")}
        return distillation.consistency(jax.random.key(1), process, f, f, x_0, **options)[0]

    flow = maps_to(end, 0.3, 0.5)
    exact = [float(loss(flow, count)) for count in (20, 40, 80)]
    assert exact[0] > 16 * exact[1] > 256 * exact[2]
    for name, f in others.items():
        few, many = float(loss(f, 20)), float(loss(f, 80))
        assert few > 10 * exact[0], name
        assert many > few / 8, name
        assert many > 1e3 * exact[2], name


def test_without_a_teacher_the_flow_of_the_data_has_the_least_loss():
    """Of flows of other widths: in training noise takes the teacher's part, right on average as levels grow many."""
    process, end = processes.edm(), 0.002
    x_0 = 0.3 + 0.5 * jax.random.normal(jax.random.key(0), (20_000, 2, 2, 1))
    ladder = Ladder(count=200, sigma_min=end, sigma_max=80.0)

    def gradient(std):
        """Of the loss by the width of f, its target held: 0 where training stays."""

        @jax.jit
        def loss(width):
            f, held = maps_to(end, 0.3, width), maps_to(end, 0.3, std)
            return distillation.consistency(jax.random.key(1), process, f, held, x_0, ladder=ladder)[0]

        return float(jax.grad(loss)(std))

    narrow, right, wide = (gradient(std) for std in (0.45, 0.5, 0.55))
    assert narrow < 0 < wide
    assert abs(right) < 0.2 * min(-narrow, wide)


def test_no_gradient_reaches_the_target():
    x_0, process = jnp.asarray(X), processes.edm()
    ladder = Ladder(count=10, sigma_min=0.002, sigma_max=80.0)

    @jax.jit
    def loss(a, b):
        f, target = (functools.partial(lambda slope, x, time: slope * x, slope) for slope in (a, b))
        return distillation.consistency(jax.random.key(0), process, f, target, x_0, ladder=ladder)[0]

    of_f, of_target = jax.grad(loss, argnums=(0, 1))(0.5, 0.4)
    assert float(of_f) != 0
    assert float(of_target) == 0
