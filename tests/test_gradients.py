"""Gradient statistics by noise level: on a linear network whose gradients are known, and in a whole run."""

import dataclasses
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from ddpm_jax import nets
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Config, Diffusion, UNet
from ddpm_jax.data import Batch
from ddpm_jax.diffusion import bins, norms, schedules, timesteps
from ddpm_jax.training import gradients, report
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.loop import train
from ddpm_jax.training.run import Parts
from ddpm_jax.training.state import make_optimizer

MEAN, STD = 0.4, 0.5
KEY = jax.random.key(3)
PRESET = load_preset(str(TINY))
PLAIN = dataclasses.replace(PRESET, diffusion=Diffusion(num_steps=40), net=UNet())
CONFIG = dataclasses.replace(PLAIN, run=dataclasses.replace(PLAIN.run, bins=3, gradients_every=4))
finish = jax.jit(gradients.finish, static_argnames=("micro_batches", "batch_size"))
EMPTY = Batch(images=np.zeros(0), labels=None)
TIMED = {"images_per_second", "input_bound"}


class Line:
    """eps_hat = slope x_t + shift, a network of two parameters."""

    @staticmethod
    def init(key, x_t, time):
        del key, x_t, time
        return {"params": PARAMS}

    @staticmethod
    def apply(variables, x_t, time, **options):
        del time, options
        return variables["params"]["slope"] * x_t + variables["params"]["shift"]


def tilted(log_snr):
    return jnp.exp(0.1 * log_snr)


def parts_of(schedule, **diffusion):
    config = Config(diffusion=Diffusion(**diffusion))
    return Parts(
        config=config,
        schedule=schedule,
        module=Line(),
        optimizer=make_optimizer(config.optimizer, 1),
        mesh=mesh_lib.make_mesh(),
        draw_t=timesteps.uniform(),
        weighting=tilted,
        norm=norms.l2,
    )


def measured(schedule, num, params, *, size=256, micro_batches=500):
    """The statistics, and the bin of each t. Micro-batches are drawn inside the compiled function."""
    parts, trained = parts_of(schedule), {"net": params, "noise": ()}
    edges = jax.jit(bins.edges, static_argnums=1)(schedule, num)

    @jax.jit
    def add_to(sums, key, number, batch):
        del batch
        key_images, key = jax.random.split(key)
        images = MEAN + STD * jax.random.normal(key_images, (size, 1, 1, 1))
        return gradients.add(sums, key, parts, edges, number, trained, Batch(images=images, labels=None))

    where = np.asarray(jax.jit(bins.of_steps)(schedule, edges))
    filled = jnp.asarray(np.isin(np.arange(num), where))
    options = {"batch_size": size, "micro_batches": micro_batches, "end": finish}
    return jax.device_get(gradients.by_bin(KEY, add_to, params, filled, lambda number, i: EMPTY, **options)), where


def known(schedule, where, num, slope, shift):
    """Mean and trace of the covariance of an image's gradient in each bin, from moments of Gaussians in float64.

    With x = x_t and y = slope x + shift - eps an image's gradient is 2 k y (x, 1). x and y are Gaussian, so
    Var(x y) = Vx Vy + C^2 + mx^2 Vy + my^2 Vx + 2 mx my C. Within a bin t is uniform.
    """
    log_snr = np.asarray(schedule.log_snr, np.float64)
    signal, noise = (1 / (1 + np.exp(-sign * log_snr)) for sign in (1, -1))
    a, s, k = np.sqrt(signal), np.sqrt(noise), np.exp(0.1 * log_snr)
    mx, vx = a * MEAN, signal * STD**2 + noise
    my, vy, c = slope * mx + shift, slope**2 * vx - 2 * slope * s + 1, slope * vx - s
    mean = 2 * k[:, None] * np.stack([c + mx * my, my], axis=1)
    trace = (2 * k) ** 2 * (vx * vy + c**2 + mx**2 * vy + my**2 * vx + 2 * mx * my * c + vy)
    inside = [where == number for number in range(num)]
    means = np.array([mean[b].mean(axis=0) for b in inside])
    return means, np.array([trace[b].mean() + mean[b].var(axis=0).sum() for b in inside])


PARAMS = {"slope": jnp.float32(0.7), "shift": jnp.float32(-0.15)}


def test_norm_noise_and_cosine_are_those_of_gaussian_moments():
    """500 micro-batches of 256 images a bin: the noise's standard error is 3 %, those of the others below.

    At little noise 0.7 x_t is far too much for eps, at much noise too little: the ends pull against each other.
    """
    found, where = measured(schedules.linear(), 4, PARAMS)
    mean, trace = known(schedules.linear(), where, 4, 0.7, -0.15)
    norm = np.linalg.norm(mean, axis=1)
    np.testing.assert_allclose(found.norm, norm, rtol=0.06)
    np.testing.assert_allclose(found.noise, np.sqrt(trace), rtol=0.09)
    np.testing.assert_allclose(found.cosine, mean @ mean.T / np.outer(norm, norm), atol=0.06)
    assert found.cosine[0, 3] < -0.9
    np.testing.assert_array_equal(np.diagonal(found.cosine), 1.0)


def test_two_micro_batches_are_an_inner_product_and_a_distance():
    """For m = 2 the unbiased |G|^2 is <g_1, g_2>, and tr S = b |g_1 - g_2|^2 / 2."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(3, 2, 7)) + rng.normal(size=(3, 1, 7))
    g[2, 1] = -g[2, 0]  # no common direction: a norm that noise hides
    sums = [
        gradients.Sums(
            gradient={"a": jnp.float32(one.sum(axis=0)[:6].reshape(2, 3)), "b": jnp.float32(one.sum(axis=0)[6])},
            squares=jnp.float32(np.square(one).sum()),
        )
        for one in g
    ]
    found = finish(sums, jnp.array([True, True, True]), micro_batches=2, batch_size=5)
    inner = (g[:, 0] * g[:, 1]).sum(axis=1)
    assert (inner[:2] > 0).all()
    np.testing.assert_allclose(found.norm, [*np.sqrt(inner[:2]), 0.0], rtol=1e-5)
    np.testing.assert_allclose(found.noise, np.sqrt(5 / 2 * np.square(g[:, 0] - g[:, 1]).sum(axis=1)), rtol=1e-5)
    mean = g[:2].mean(axis=1)
    wanted = mean[0] @ mean[1] / np.sqrt(inner[0] * inner[1])
    np.testing.assert_allclose(found.cosine[0, 1], np.clip(wanted, -1, 1), rtol=1e-5)
    assert np.isnan(found.cosine[2]).all()
    assert np.isnan(found.cosine[:, 2]).all()
    with pytest.raises(ValueError, match="micro_batches must be at least 2, got 1"):
        finish(sums, jnp.array([True, True, True]), micro_batches=1, batch_size=5)


def test_a_bin_without_steps_is_nan_and_spares_the_others():
    found, where = measured(schedules.linear(num_steps=4), 12, PARAMS, micro_batches=2)
    there = np.isin(np.arange(12), where)
    assert 1 < there.sum() < 5
    for values in (found.norm, found.noise):
        np.testing.assert_array_equal(~np.isnan(values), there)
    assert np.isnan(found.cosine[~there]).all()
    assert np.isnan(found.cosine[:, ~there]).all()


def test_schedules_may_be_mapped_over_and_the_run_s_own_draw_has_no_part():
    """Two schedules, traced: each gets the sums that it gets by itself, with a draw of t, corrected or not, or none."""
    both = [schedules.linear(50), schedules.cosine(50)]
    batch = Batch(images=np.ones((8, 1, 1, 1), np.float32), labels=None)

    def sums_of(schedule, draw_t, correct):
        parts = dataclasses.replace(parts_of(schedule, correct_draw=correct), draw_t=draw_t)
        trained, start = {"net": PARAMS, "noise": ()}, gradients.empty(PARAMS)
        return gradients.add(start, KEY, parts, bins.edges(schedule, 3), 1, trained, batch)

    @jax.jit
    def of_all(stacked):
        early = timesteps.in_range(end=0.5, factor=9.0)
        mapped = jax.vmap(lambda schedule: sums_of(schedule, timesteps.uniform(), True))(stacked)
        return mapped, sums_of(both[0], early, True), sums_of(both[1], early, False)

    mapped, *alone = of_all(jax.tree.map(lambda *tables: np.stack(tables), *both))
    for i, sums in enumerate(alone):
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], mapped), sums, rtol=1e-5)


def test_continuous_time_is_refused():
    with pytest.raises(ValueError, match=r"--run.gradients-every.* continuous doesn't have"):
        gradients.check(Diffusion(objective="continuous"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the line, a network that compiles in a moment, with statistics and without: folder and last state."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nets, "build", lambda config: Line())
        yield [(folder / name, train(config, folder / name)) for name, config in (("with", CONFIG), ("without", PLAIN))]


def test_statistics_change_no_bit_of_a_run(runs):
    (workdir, state), (plain, without) = runs
    chex.assert_trees_all_equal(*jax.device_get((state, without)))
    for line, other in zip(report.read(workdir), report.read(plain), strict=True):
        told = set(other) - TIMED
        assert {name: line[name] for name in told} == {name: other[name] for name in told}
        assert not any("log_snr" in name for name in other)


def test_the_log_has_errors_by_bin_and_gradients_at_their_steps(runs):
    workdir, _ = runs[0]
    lines = report.read(workdir)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    for line in lines:
        middles, errors = bins.read("eps_error", line)
        assert 0 < len(middles) <= 3
        assert ((errors > 0) & (errors < 2)).all()  # of 0.7 x_t - 0.15
        assert ("grad_cosine" in line) == (line["step"] in (4, 8))
    edges = bins.edges(schedules.linear(40), 3)
    np.testing.assert_allclose(lines[1]["log_snr_edges"], edges, rtol=1e-6)
    for name in ("grad_norm", "grad_noise"):
        middles, values = bins.read(name, lines[1])
        np.testing.assert_allclose(middles, (edges[1:] + edges[:-1]) / 2, atol=0.006)
        assert (values >= 0).all()
    assert np.shape(lines[1]["grad_cosine"]) == (3, 3)
    assert (workdir / "samples" / "bins.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_with_statistics_goes_on_to_the_same_bits_and_lines(runs, tmp_path):
    workdir, state = runs[0]
    shutil.copytree(workdir, tmp_path / "halves")
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "8")
    chex.assert_trees_all_equal(*jax.device_get((train(CONFIG, tmp_path / "halves"), state)))
    once, twice = (
        [{name: line[name] for name in line if name not in TIMED} for line in report.read(folder)]
        for folder in (workdir, tmp_path / "halves")
    )
    assert twice == once


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bins": 0}, "--run.gradients-every needs --run.bins, .* got 0"),
        ({"bins": 101}, r"--run.bins must lie in 0 \.\. 100, got 101"),
        ({"gradients_every": -1}, "--run.gradients-every must be at least 1, got -1"),
        (
            {"gradients_every": 3, "steps_per_dispatch": 2},
            "--run.gradients-every must be a multiple of --run.steps-per-dispatch 2, got 3",
        ),
    ],
)
def test_statistics_that_cannot_be_are_refused_before_anything_is_written(changes, message, tmp_path):
    config = dataclasses.replace(CONFIG, run=dataclasses.replace(CONFIG.run, **changes))
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
