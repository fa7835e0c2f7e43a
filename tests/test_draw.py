"""From a run's settings to its way of drawing; and what is refused, by the names of the flags."""

import dataclasses

import numpy as np
import pytest
from conftest import TINY

from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Sampling
from ddpm_jax.diffusion import processes, spacings
from ddpm_jax.sampling import SAMPLERS, ddim, ddpm, samplers
from ddpm_jax.training import run
from ddpm_jax.training.draw import draw, way

CONFIG = load_preset(str(TINY))


def parts_of(**diffusion):
    changed = dataclasses.replace(CONFIG.diffusion, **diffusion)
    return run.build(dataclasses.replace(CONFIG, diffusion=changed), to_train=False)


@pytest.fixture(scope="module")
def parts():
    return parts_of(objective="simple", variance="small")


def test_the_ways_of_old_settings_are_what_they_were(parts):
    assert way(parts, Sampling()).sampler is ddpm(variance="small")
    assert way(parts, Sampling(variance="large")).sampler is ddpm()
    assert way(parts, Sampling(sampler="ddim")).sampler is ddim()
    assert way(parts, Sampling(sampler="ddim", eta=0.5)).sampler is ddim(eta=0.5)
    last = CONFIG.diffusion.num_steps - 1
    np.testing.assert_array_equal(way(parts, Sampling()).times, np.arange(last, -2, -1))


def test_every_sampler_has_a_way_of_its_own_settings(parts):
    for name in SAMPLERS:
        assert way(parts, Sampling(sampler=name, steps=(5,), spacing="trailing")).num_steps in (2, 5), name


def test_an_eta_of_0_takes_the_noise_from_samplers_that_have_any(parts):
    assert way(parts, Sampling(sampler="euler_ancestral")).sampler is ddim(eta=1.0)
    assert way(parts, Sampling(sampler="euler_ancestral", eta=0.0)).sampler is ddim()


def test_methods_in_sigma_step_by_their_own_spacing_unless_told_otherwise(parts):
    trained = processes.of_schedule(parts.schedule)
    own = {
        "heun": spacings.edm,
        "pndm": spacings.edm,
        "dpm_solver": spacings.log_snr,
        "dpm_solver_pp_2m": spacings.even,
    }
    for name, spacing in own.items():
        times = way(parts, Sampling(sampler=name, steps=(4,))).times
        np.testing.assert_array_equal(times, spacing(trained, (4,)))
    np.testing.assert_array_equal(
        way(parts, Sampling(sampler="heun", steps=(4,), spacing="even")).times, spacings.even(trained, (4,))
    )


@pytest.mark.parametrize("name", processes.PROCESSES)
def test_along_another_process_it_stays_within_what_the_network_knows(parts, name):
    """flow begins without any signal, which no network of this schedule has ever seen."""
    chosen = way(parts, Sampling(sampler="ddim", process=name, steps=(4,), spacing="karras"))
    log_snr = chosen.along.log_snr(np, chosen.times[:-1])
    table = np.asarray(parts.schedule.log_snr)
    assert table[-1] - 1e-4 <= log_snr.min()
    assert log_snr.max() <= table[0] + 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "heun", "eta": 0.7}, "--eta 0.7 has no part in --sampler heun"),
        ({"sampler": "huen"}, "--sampler: there is no 'huen', did you mean 'heun'"),
        ({"sampler": "lms", "sampler_args": (("ordr", 3.0),)}, "--sampler-args: lms takes order, got ordr, did you"),
        ({"sampler": "lms", "sampler_args": (("order", 9.0),)}, "--sampler lms: order must be"),
        ({"sampler": "lms", "sampler_args": (("order", "x"),)}, "--sampler-args: lms order must be a number, got x"),
        ({"sampler_args": (("variance", 1.0),)}, "--sampler-args: ddpm variance must be a word, got 1.0"),
        ({"sampler": "lms", "sampler_args": (("order", 2.0), ("order", 3.0))}, "takes order once, got it twice"),
        ({"spacing": "karras", "spacing_args": (("rho", -1.0),)}, "--spacing karras: rho must be positive, got -1.0"),
        ({"process": "flow"}, "--process flow has no steps of its own: say how many with --steps"),
        ({"process": "flw", "steps": (4,)}, "--process: there is no 'flw', did you mean 'flow'"),
        ({"dynamic_threshold": 2.0}, r"--dynamic-threshold must lie in \[0, 1\], got 2.0"),
        ({"dynamic_threshold": 0.9, "clip": False}, "--dynamic-threshold 0.9 needs --clip"),
    ],
)
def test_settings_that_can_not_be_are_refused_by_their_flags(parts, settings, message):
    with pytest.raises(ValueError, match=message):
        way(parts, Sampling(**settings), under="--")


def test_a_sampler_that_divides_by_alpha_does_not_begin_without_signal():
    parts = parts_of(objective="simple", variance="small", zero_terminal_snr=True, prediction="v")
    with pytest.raises(ValueError, match="divides by alpha, which is 0 at the first level"):
        way(parts, Sampling(sampler="heun", spacing="even"))
    assert way(parts, Sampling(sampler="heun", sampler_args=(("straight", 1.0),))).num_steps == parts.schedule.num_steps


def test_what_a_sampler_takes_can_be_asked():
    assert samplers.settings_of("ddim") == ["eta"]
    assert samplers.settings_of("ddpm") == ["variance"]


def test_a_part_of_many_images_is_that_part(parts):
    params = parts.init().ema
    settings = Sampling(sampler="ddpm", steps=(3,))
    whole, _ = draw(parts, params, seed=3, num=5, settings=settings, batch_size=5)
    part, _ = draw(parts, params, seed=3, num=2, settings=settings, batch_size=5, numbers=np.array([4, 1]))
    np.testing.assert_allclose(part, whole[[4, 1]], atol=1e-6)
