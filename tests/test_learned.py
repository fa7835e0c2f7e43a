"""What a run can learn besides its network: the variance of a step back, where to draw t, the noise schedule."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from ddpm_jax.cli import likelihood as program
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import ADM, Diffusion, NoiseNet
from ddpm_jax.diffusion import continuous, reverse, schedules
from ddpm_jax.evaluation import likelihood
from ddpm_jax.figures import plots
from ddpm_jax.sampling import ddpm, sample
from ddpm_jax.training import run
from ddpm_jax.training.draw import draw
from ddpm_jax.training.loop import train

CONFIG = load_preset(str(TINY))
CONTINUOUS = Diffusion(
    schedule="log_snr_linear", num_steps=40, objective="continuous", draw_t="stratified", learn_schedule=True
)
KEY = jax.random.key(0)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_keeps_the_losses_that_it_draws_t_by(tiny_run):
    workdir, state = tiny_run
    assert int(state.history["count"].sum()) == 8 * CONFIG.batch_size
    assert state.history["losses"].shape == (40, 1)
    chex.assert_trees_all_equal(*jax.device_get((run.load(workdir)[1].history, state.history)))


@pytest.fixture(scope="module")
def learned_run(tmp_path_factory):
    """A run with a learned noise schedule, stopped at 4 of its 8 steps and gone on with; and one never stopped."""
    decayed = dataclasses.replace(CONFIG.optimizer, name="adamw", weight_decay=0.1, decay="constant")
    config = dataclasses.replace(CONFIG, diffusion=CONTINUOUS, optimizer=decayed)
    folder = tmp_path_factory.mktemp("learned")
    train(dataclasses.replace(config, steps=4), folder / "stopped")
    return folder, train(config, folder / "stopped"), train(config, folder / "whole")


def test_a_learned_schedule_moves_and_is_resumed_bit_for_bit(learned_run):
    folder, stopped, whole = learned_run
    chex.assert_trees_all_equal(*jax.device_get((stopped, whole)))
    start = continuous.init(schedules.build(CONTINUOUS))
    assert float(whole.noise["start"]) != float(start["start"])
    assert float(jnp.abs(whole.noise["logits"] - start["logits"]).max()) > 0
    assert lines(folder / "whole")[-1]["log_snr_first"] == pytest.approx(float(whole.noise["start"]))


def test_a_network_is_told_the_same_time_when_a_run_is_measured_as_when_it_was_trained(learned_run):
    folder, _, whole = learned_run
    moved = whole.noise | {"start": whole.noise["start"] + 1, "log_span": whole.noise["log_span"] - 0.2}
    trained = run.build(run.load(folder / "whole")[0].config)
    measured = run.as_learned(trained, dataclasses.replace(whole, noise=moved))
    np.testing.assert_array_equal(run.curve(measured, moved).times, run.curve(trained, moved).times)
    assert float(run.curve(measured, moved).times[0]) == pytest.approx(1000 * -1 / 18.3, abs=5)


def test_the_likelihood_program_measures_in_continuous_time(learned_run, capsys):
    workdir = learned_run[0] / "whole"
    program.main([str(workdir), "--num", "8", "--num-t", "2"])
    found = json.loads((workdir / "likelihood.json").read_text())
    assert found["prior"] + found["diffusion"] + found["decoder"] == pytest.approx(found["bits_per_dim"], rel=1e-5)
    assert "continuous time" in capsys.readouterr().out
    for flags in (["--variance", "large"], ["--decoder", "published"], ["--no-clip"]):
        with pytest.raises(ValueError, match=f"{flags[0].replace('no-', '')} has no part in continuous time"):
            program.main([str(workdir), *flags])


def test_weight_decay_leaves_the_schedule_alone(learned_run):
    """Eight steps at no more than 0.01 move a parameter by at most 0.08; decay would pull 13.3 by about 0.1."""
    _, _, whole = learned_run
    assert abs(float(whole.noise["start"]) - 13.3) <= 0.081


def test_a_run_is_sampled_with_the_schedule_that_it_learned(learned_run):
    folder, _, whole = learned_run
    parts, state = run.load(folder / "whole")
    curve = continuous.learned(state.noise, 13.3, -5.0)
    assert float(parts.schedule.log_snr[0]) == pytest.approx(float(curve.log_snr[0]), rel=1e-5)
    assert float(parts.schedule.log_snr[-1]) == pytest.approx(float(curve.log_snr[-1]), rel=1e-5)
    told = np.interp(-np.asarray(parts.schedule.log_snr), -np.asarray(curve.log_snr), np.asarray(curve.times))
    np.testing.assert_allclose(parts.schedule.times, told, atol=0.05)
    images, _ = draw(parts, state.ema, seed=0, num=2, settings=CONFIG.sampling)
    assert np.isfinite(images).all()
    assert int(whole.step) == 8


def exact_variance(schedule, std):
    """log Var(x_{t-1} | x_t) for x_0 ~ N(0, std^2), [T]: the posterior's, and what is unknown of x_0."""
    noise = np.asarray(schedule.sqrt_one_minus_alpha_bars, np.float64) ** 2
    unknown = std**2 * noise / ((1 - noise) * std**2 + noise)
    c = np.asarray(schedule.posterior_mean_coef_x0, np.float64)
    return np.log(np.asarray(schedule.posterior_variance, np.float64) + c**2 * unknown)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_sampler_with_the_exact_variance_draws_the_exact_gaussian_in_five_steps(variance):
    """Every step back is Gaussian with the moments it is told, so that no step is too large; the last adds no noise.

    What is left out there is the variance of x_0 given x_1, 1e-3 here.
    """
    std, schedule = 0.5, schedules.respace(schedules.linear(), [5, 100, 300, 600, 999])
    logs = jnp.asarray(exact_variance(schedule, std), jnp.float32)
    if variance == "learned_range":
        t = jnp.arange(5)
        low, high = reverse.small(schedule, t), reverse.large(schedule, t)
        logs = jnp.where(t > 0, 2 * (logs - low) / jnp.where(t > 0, high - low, 1.0) - 1, 0.0)

    def denoise(x_t, time):
        t = jnp.argmin(jnp.abs(schedule.times[:, None] - time), axis=0)
        alpha = schedule.sqrt_alpha_bars[t][:, None, None, None]
        sigma = schedule.sqrt_one_minus_alpha_bars[t][:, None, None, None]
        x_0 = alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x_t
        return jnp.concatenate([x_0, jnp.broadcast_to(logs[t][:, None, None, None], x_0.shape)], axis=-1)

    options = {"shape": (16, 16, 1), "num": 256, "batch_size": 256, "prediction": "x0", "clip": False}
    images = sample(KEY, denoise, schedule, sampler=ddpm(variance=variance), **options)
    left = np.exp(exact_variance(schedule, std)[0])
    wanted = np.sqrt(std**2 - left)
    assert images.std() == pytest.approx(wanted, abs=4 * wanted / np.sqrt(2 * images.size))
    fixed = sample(KEY, denoise, schedule, sampler=ddpm(variance="small"), **options)
    assert fixed.std() < 0.9 * std


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "hybird"}, "--diffusion.objective: there is no 'hybird', did you mean 'hybrid'"),
        ({"objective": "hybrid"}, "hybrid needs --diffusion.variance learned or learned_range"),
        ({"variance": "learned"}, "simple can't teach a variance of learned: take"),
        ({"variance": "lerned"}, "--diffusion.variance: there is no 'lerned', did you mean 'learned'"),
        ({"variance": "medium:2"}, r"--diffusion.variance medium:F takes F in \[0, 1\], got medium:2"),
        ({"objective": "continuous", "variance": "learned"}, "continuous has no step whose mean or variance"),
        ({"objective": "continuous", "prediction": "mean"}, "continuous has no step whose mean or variance"),
        ({"objective": "continuous", "num_steps": 1}, "--diffusion.num-steps must be at least 2 .*, got 1"),
        ({"objective": "continuous", "correct_draw": False}, "--diffusion.no-correct-draw has nothing to leave out"),
        ({"correct_draw": False}, "--diffusion.no-correct-draw has nothing to leave out with .* uniform"),
        ({"vlb_weight": 0.1}, "--diffusion.vlb-weight 0.1 has no part in --diffusion.objective simple"),
        ({"objective": "hybrid", "variance": "learned", "vlb_weight": float("nan")}, "must be a finite number"),
        ({"time_range": 0.0}, "--diffusion.time-range must be a finite number above 0, got 0.0"),
        (
            {"objective": "continuous", "learn_schedule": True, "time_range": 4000.0},
            "--diffusion.time-range must be 1000 where the schedule is learned, got 4000.0",
        ),
        ({"draw_t": "range", "draw_t_args": (("factor", float("inf")),)}, "range: factor must be a finite number"),
        (
            {"objective": "continuous", "draw_t": "log_normal"},
            "draws t by uniform, stratified, antithetic, got log_nor",
        ),
        ({"learn_schedule": True}, "--diffusion.learn-schedule needs --diffusion.objective continuous"),
        ({"draw_t": "unifrom"}, "--diffusion.draw-t: there is no 'unifrom', did you mean 'uniform'"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run.build(dataclasses.replace(CONFIG, diffusion=Diffusion(**{"num_steps": 40} | changes)))


def test_a_learned_variance_needs_a_network_and_a_run_that_have_one(tiny_run):
    with pytest.raises(ValueError, match="noise_net has no outputs to spare"):
        run.build(dataclasses.replace(CONFIG, net=NoiseNet(init_dim=8, dim_mults=(1, 2))))
    parts, state = run.load(tiny_run[0])
    settings = dataclasses.replace(CONFIG.sampling, variance="learned")
    with pytest.raises(ValueError, match=r"needs a run of that --diffusion\.variance, got one of learned_range"):
        draw(parts, state.ema, seed=0, num=1, settings=settings)


def test_an_adm_without_label_dropout_is_never_told_that_a_class_is_hidden():
    net = ADM(features=32, multipliers=(1.0,), num_res_blocks=1, attention_levels=(), num_heads=1, num_classes=10)
    config = dataclasses.replace(CONFIG, net=net)
    assert not run.without_class(config)
    assert run.without_class(dataclasses.replace(config, net=dataclasses.replace(net, label_dropout=0.1)))
    assert run.num_classes(config) == 10


def test_the_likelihood_program_measures_a_run(tiny_run, capsys):
    workdir, _ = tiny_run
    program.main([str(workdir), "--num", "6", "--batch-size", "4"])
    said = capsys.readouterr().out
    found = json.loads((workdir / "likelihood.json").read_text())
    assert f"{found['bits_per_dim']:.4f} +- " in said
    assert found["num_images"] == 6
    assert found["rate"] + found["distortion"] == pytest.approx(found["bits_per_dim"], rel=1e-5)
    assert (workdir / "likelihood.png").stat().st_size > 5000
    program.main([str(workdir), "--num", "6", "--num-t", "4"])
    assert json.loads((workdir / "likelihood.json").read_text())["how"] == "4 t an image"


def test_the_likelihood_program_refuses_what_it_can_not_measure(tiny_run):
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        program.main([str(tiny_run[0]), "--num", "1"])
    for flags, message in {
        ("--num-t", "-1"): "--num-t must be at least 0, got -1",
        ("--variance", "learned"): "--variance learned needs a run that learned it, got learned_range",
        ("--variance", "larg"): "--variance: there is no 'larg', did you mean 'large'",
        ("--decoder", "gausian"): "--decoder: there is no 'gausian', did you mean 'gaussian'",
        ("--data.shape", "9", "8", "1"): r"--data.shape must be the run's, \(8, 8, 1\), got \(9, 8, 1\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            program.main([str(tiny_run[0]), *flags])


def test_a_likelihood_does_not_depend_on_the_batches():
    schedule = schedules.linear(20)
    images = np.asarray(jax.random.randint(KEY, (7, 2, 2, 1), 0, 256) / 127.5 - 1, np.float32)

    def denoise(x_t, time):
        return x_t * 0.9

    def measured(make, batch_size):
        return likelihood.over(
            make, jax.tree_util.Partial(denoise), lambda rows: (images[rows], None), 7, batch_size=batch_size
        )

    for make in (likelihood.whole(KEY, schedule), likelihood.estimated(KEY, schedule, num_t=2)):
        small, large = measured(make, 3), measured(make, 7)
        assert small.num_images == large.num_images == 7
        assert small.bits_per_dim == pytest.approx(large.bits_per_dim, rel=1e-5)
        assert small.standard_error == pytest.approx(large.standard_error, rel=1e-4)
    whole = measured(likelihood.whole(KEY, schedule), 4)
    assert whole.terms is not None
    assert whole.curve is not None
    assert whole.terms.sum() + whole.parts["prior"] == pytest.approx(whole.bits_per_dim, rel=1e-6)
    assert len(plots.bound(whole.terms, *whole.curve).axes) == 2


def test_labels_reach_the_network_with_their_images():
    schedule = schedules.linear(20)
    images = np.zeros((5, 2, 2, 1), np.float32)

    def denoise(x_t, time, labels):
        return x_t * (1 + labels[:, None, None, None])

    def measured(labels):
        whole, known = likelihood.whole(KEY, schedule), np.asarray(labels)
        read = lambda rows: (images[rows], known[rows])  # noqa: E731
        return likelihood.over(whole, jax.tree_util.Partial(denoise), read, 5, batch_size=2).bits_per_dim

    assert measured([0, 0, 0, 0, 3]) > measured([0, 0, 0, 0, 0])
