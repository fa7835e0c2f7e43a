"""The scheduler of a diffusers folder: its settings as a run's, and back."""

import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config as config_lib
from ddpm_jax.cli import convert
from ddpm_jax.config import Config, Diffusion, Optimizer, Sampling
from ddpm_jax.diffusion import schedules
from ddpm_jax.interop import diffusers, folder, schedulers
from ddpm_jax.training import run
from ddpm_jax.training.state import make_optimizer

BETAS = (("beta_start", 0.00085), ("beta_end", 0.012))
# What a DDPMScheduler's file says of the published CIFAR-10 network.
PUBLISHED = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}


def read(plain, diffusion=None):
    return schedulers.read(plain, Path("s.json"), diffusion or Diffusion(), Sampling(variance="large"))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, Diffusion(schedule="linear", variance="large")),
        ({"variance_type": "fixed_small_log"}, Diffusion(variance="small")),
        ({"variance_type": "learned_range"}, Diffusion(variance="learned_range")),
        ({"beta_schedule": "squaredcos_cap_v2"}, Diffusion(schedule="cosine")),
        (
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
            Diffusion(schedule="scaled_linear", schedule_args=BETAS),
        ),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
         Diffusion(prediction="v", zero_terminal_snr=True)),
        ({"prediction_type": "sample"}, Diffusion(prediction="x0")),
        ({"predict_epsilon": False, "tensor_format": "pt"}, Diffusion(prediction="x0")),
    ],
)  # fmt: skip
def test_a_schedulers_settings_are_ours(change, wanted):
    diffusion, sampling = read(PUBLISHED | change)
    assert diffusion == wanted
    assert sampling == Sampling(clip=True, variance="")


def test_a_ddim_scheduler_makes_the_sampler_ddim():
    diffusion, sampling = read(PUBLISHED | {"_class_name": "DDIMScheduler", "set_alpha_to_one": True})
    assert (diffusion, sampling) == (Diffusion(), Sampling(sampler="ddim", eta=0.0))


def test_betas_are_those_of_the_file():
    """Their numbers by their formulas, in float64."""
    diffusion, _ = read(PUBLISHED | {"beta_start": 0.0015, "beta_end": 0.0195})
    np.testing.assert_allclose(schedules.build(diffusion).betas, np.linspace(0.0015, 0.0195, 1000), rtol=2e-7)
    diffusion, _ = read(PUBLISHED | {"beta_schedule": "squaredcos_cap_v2"})
    curve = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(
        schedules.build(diffusion).betas, np.minimum(1 - curve[1:] / curve[:-1], 0.999), rtol=2e-7
    )


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_another_number_of_steps_keeps_the_betas_and_tells_the_network_the_index(schedule):
    """Theirs are linspace(beta_start, beta_end, T) whatever T is, and t itself; both ways."""
    plain = PUBLISHED | {"num_train_timesteps": 250, "beta_start": 0.001, "beta_end": 0.03, "beta_schedule": schedule}
    diffusion, sampling = read(plain)
    ours = schedules.build(diffusion)
    np.testing.assert_allclose(ours.times, np.arange(250.0), rtol=1e-6)
    curve = np.cos((np.arange(251) / 250 + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = {
        "linear": np.linspace(0.001, 0.03, 250),
        "scaled_linear": np.linspace(0.001**0.5, 0.03**0.5, 250) ** 2,
        "squaredcos_cap_v2": np.minimum(1 - curve[1:] / curve[:-1], 0.999),
    }
    np.testing.assert_allclose(ours.betas, betas[schedule], rtol=1e-6)
    back = schedulers.write(diffusion, sampling)
    assert back["num_train_timesteps"] == 250
    assert back["beta_schedule"] == schedule
    if schedule != "squaredcos_cap_v2":
        assert (back["beta_start"], back["beta_end"]) == pytest.approx((0.001, 0.03))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train_timesteps": 1}, "s.json: num_train_timesteps must be 2 to 100000, got 1$"),
        (
            {"beta_schedule": "sigmoid"},
            "s.json: beta_schedule: there is no 'sigmoid'; choose from linear, scaled_linear",
        ),
        ({"variance_type": "learned"}, "s.json: variance_type: there is no 'learned', did you mean 'learned_range'"),
        ({"variance_type": "fixed_large_log"}, "there is no 'fixed_large_log'"),
        ({"prediction_type": "score"}, "s.json: prediction_type: there is no 'score'"),
        ({"thresholding": True}, "s.json: thresholding must be False, got True"),
        ({"clip_sample_range": 2.0}, "s.json: clip_sample_range must be 1.0, got 2.0"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "s.json: _class_name: there is no 'ScoreSdeVeScheduler'"),
        ({"trained_betas": [0.1, 0.2]}, "s.json: trained_betas must be 1000 numbers, got 2"),
        ({"beta_strat": 1e-3}, "beta_strat: there is no such field, did you mean 'beta_start'"),
    ],
)
def test_a_scheduler_that_ours_cant_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read(PUBLISHED | change)


def test_a_schedule_without_a_name_there_goes_as_its_betas_and_comes_back_by_its_own():
    ours = Diffusion(schedule="sigmoid", schedule_args=(("tau", 0.9),), log_snr_shift=0.5)
    plain = json.loads(json.dumps(schedulers.write(ours, Sampling())))
    np.testing.assert_array_equal(np.float32(plain["trained_betas"]), schedules.build(ours).betas)
    assert read(plain, ours)[0] == ours
    with pytest.raises(ValueError, match=r"not --diffusion.schedule linear: at t = \d+ it has .*, that has"):
        read(plain)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (5, 0.05), (10, 0.1), (55, 0.05)])
def test_the_learning_rate_goes_on_from_the_step_that_a_run_is_read_at(name, step, rate):
    """Adam's first step is the rate itself, whatever the gradient; with a count of its own moved on, it would be more.

    Ten steps up to 0.1, then a cosine over ninety: at step 55 it is half way.
    """
    optimizer = make_optimizer(Optimizer(name=name, learning_rate=0.1, warmup_steps=10, decay="cosine"), 100)
    params = {"net": jnp.zeros(2)}
    state = folder._scheduled(optimizer.init(params), jnp.int32(step))
    updates, _ = optimizer.update({"net": jnp.array([0.3, -0.02])}, state, params)
    (moved,) = jax.tree.leaves(updates)
    np.testing.assert_allclose(moved, [-rate, rate], rtol=1e-4)


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (Sampling(), ""),
        (Sampling(sampler="ddim", steps=(50,)), "not part of it: sampler ddim and its steps (50); DDPMPipeline draws"),
        (Sampling(steps=(10, 20)), "not part of it: sampler ddpm and its steps (10 20); DDPMPipeline draws"),
    ],
)
def test_write_says_what_a_scheduler_does_not_keep(sampling, said, tmp_path, monkeypatch, capsys):
    config_lib.write(Config(sampling=sampling), tmp_path / "config.json")
    monkeypatch.setattr(run, "load", lambda workdir, step: (None, types.SimpleNamespace(step=1, params={}, ema={})))
    monkeypatch.setattr(diffusers, "save", lambda *args: None)
    convert.main(["write", str(tmp_path), str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert ("not part of it" in printed) == bool(said)
    assert said in printed
