"""A weighting in the user's own file: found, held to what a weighting is, and needed for training alone."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config as config_lib
from ddpm_jax.cli import flags
from ddpm_jax.config import Config, Diffusion, NoiseNet
from ddpm_jax.diffusion import schedules
from ddpm_jax.training import own_weighting, run
from ddpm_jax.training.loop import train

SCHEDULE = schedules.linear(100)
LOG_SNR = jnp.array([[-9.0, -1.0], [0.5, 9.0]])
FILE = """
import dataclasses

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass
class Kind:
    slope: "float" = 0.5


def tilted(lam, *, slope=Kind().slope, bias=0.0):
    return jnp.exp(-slope * lam + bias)


def by_steps(log_snr, schedule):
    return jnp.full_like(log_snr, schedule.num_steps)


def wants(log_snr, *, gamma):
    return gamma + 0 * log_snr


def by_numpy(log_snr):
    return np.asarray(log_snr)


def branching(log_snr):
    return log_snr if log_snr[0] > 0 else 2 * log_snr


def a_number(log_snr):
    return 1.0


def signed(log_snr):
    return log_snr


def normed(log_snr):
    return jnp.exp(log_snr) / jnp.exp(log_snr).mean()


table = {}
"""


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The folder that a user is in, with my_file.py."""
    (tmp_path / "my_file.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(name, *arguments):
    return own_weighting.build(own_weighting.absolute(name), arguments, SCHEDULE)


@pytest.mark.parametrize(
    "place", ["my_file", "my_file.py", "./my_file", "{there}/my_file.py", "../{there.name}/my_file"]
)
def test_a_file_is_found_by_its_path_with_or_without_its_suffix(there, place):
    name = place.format(there=there) + ":tilted"
    assert own_weighting.absolute(name) == f"{there}/my_file.py:tilted"
    assert own_weighting.absolute(own_weighting.absolute(name)) == f"{there}/my_file.py:tilted"
    np.testing.assert_allclose(build(name)(LOG_SNR), np.exp(-0.5 * np.float64(LOG_SNR)), rtol=1e-6)


def test_its_parameters_are_given_by_name_and_its_schedule_by_the_run(there):
    k = build("my_file:tilted", ("slope", 0.25), ("bias", 1.0))
    np.testing.assert_allclose(k(LOG_SNR), np.exp(1 - 0.25 * np.float64(LOG_SNR)), rtol=1e-6)
    np.testing.assert_array_equal(build("my_file:by_steps")(LOG_SNR), np.full((2, 2), 100))
    np.testing.assert_array_equal(build("my_file:wants", ("gamma", 3.0))(LOG_SNR), np.full((2, 2), 3))


def test_a_dotted_module_keeps_its_name():
    assert own_weighting.absolute("jax.numpy:exp") == "jax.numpy:exp"
    np.testing.assert_allclose(build("jax.numpy:exp")(LOG_SNR), np.exp(np.float64(LOG_SNR)), rtol=1e-6)


def test_names_of_published_weightings_stay_as_they_are(there):
    assert own_weighting.absolute("min_snr") == "min_snr"
    np.testing.assert_array_equal(build("simple")(LOG_SNR), np.ones((2, 2)))


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        (
            "my_flie:tilted",
            (),
            FileNotFoundError,
            "no file .*/my_flie.py and no module my_flie, did you mean 'my_file.py'",
        ),
        ("away/my_file:tilted", (), FileNotFoundError, "there is no file .*/away/my_file.py$"),
        ("jax.nunpy:exp", (), FileNotFoundError, "and no module jax.nunpy"),
        ("my_file:titled", (), ValueError, "/my_file.py has no function titled, did you mean 'tilted'"),
        ("my_file:table", (), ValueError, "/my_file.py has no function table"),
        ("my_file:Kind", (), ValueError, "/my_file.py has no function Kind"),
        ("my_file:", (), ValueError, "must be a published weighting, FILE:FUNCTION or MODULE:FUNCTION, got 'my_file:'"),
        ("my_file.py", (), ValueError, "say which of its functions, my_file.py:FUNCTION"),
        ("my_file:tilted", (("slop", 1.0),), ValueError, "takes slope, bias, got slop, did you mean 'slope'"),
        ("my_file:tilted", (("lam", 1.0),), ValueError, "takes slope, bias, got lam"),
        ("my_file:tilted", (("slope", float("nan")),), ValueError, "slope must be a finite number, got nan"),
        (
            "my_file:wants",
            (),
            ValueError,
            "raised TypeError: wants.. missing 1 required keyword-only argument: 'gamma'",
        ),
        ("my_file:by_numpy", (), ValueError, "called with log-SNR by JAX, it raised TracerArrayConversionError"),
        ("my_file:branching", (), ValueError, "it raised TracerBoolConversionError"),
        ("my_file:a_number", (), ValueError, r"it must return the shape of log-SNR, \(100,\), got "),
        ("my_file:signed", (), ValueError, "it makes a factor of -.* at t = .* which must be a number >= 0"),
        ("my_file:normed", (), ValueError, "must not depend on which others it is called with"),
    ],
)
def test_what_is_no_weighting_is_refused(there, name, arguments, error, message):
    with pytest.raises(error, match=message) as told:
        build(name, *arguments)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\n1 / 0\n", r"/bad.py, line 3 raised ZeroDivisionError while it was imported: division by zero"),
        ("def k(:\n", r"/bad.py raised SyntaxError while it was imported: invalid syntax \(bad.py, line 1\)"),
        ("import not_there_at_all\n", "/bad.py, line 1 raised ModuleNotFoundError .* 'not_there_at_all'"),
        ("open('not_there')\n", "/bad.py, line 1 raised FileNotFoundError .* 'not_there'"),
        ("raise SystemExit('a\\nb')\n", "/bad.py, line 1 raised SystemExit while it was imported: a b"),
    ],
)
def test_what_a_file_raises_comes_in_one_line_that_names_it(there, text, message):
    (there / "bad.py").write_text(text)
    with pytest.raises(ValueError, match=message) as told:
        build("bad:k")
    assert "\n" not in str(told.value)


def test_a_run_is_weighted_by_it_and_has_no_part_for_it_in_the_bound(there):
    settings = Diffusion(weighting="my_file:tilted", weighting_args=(("slope", 1.0),), num_steps=10)
    config = Config(diffusion=settings, net=NoiseNet(init_dim=8, dim_mults=(1, 2)))
    parts = run.build(config)
    assert parts.config.diffusion.weighting == f"{there}/my_file.py:tilted"
    assert dataclasses.replace(parts.config, diffusion=settings) == config
    np.testing.assert_allclose(parts.weighting(LOG_SNR), np.exp(-np.float64(LOG_SNR)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"--diffusion.weighting .*:tilted has no part in --diffusion.objective vlb"):
        run.build(dataclasses.replace(config, diffusion=dataclasses.replace(settings, objective="vlb")))


def test_a_command_line_and_a_preset_may_say_it(there):
    args = ["--diffusion.weighting", "my_file:tilted", "--diffusion.weighting-args", "slope", "2"]
    said = flags.training(["digits", *args]).config.diffusion
    assert (said.weighting, said.weighting_args) == ("my_file:tilted", (("slope", 2.0),))
    (there / "preset.py").write_text(
        "from ddpm_jax.config import Config, Diffusion\n"
        "config = Config(diffusion=Diffusion(weighting='my_file:tilted', weighting_args=(('slope', 2.0),)))\n"
    )
    assert flags.load_preset("preset.py").diffusion == dataclasses.replace(
        Diffusion(), weighting="my_file:tilted", weighting_args=(("slope", 2.0),)
    )


def test_it_may_be_first_called_while_a_step_is_traced(there):
    late = own_weighting.late("my_file:tilted", (("slope", 1.0),), SCHEDULE)
    np.testing.assert_allclose(jax.jit(late)(LOG_SNR), np.exp(-np.float64(LOG_SNR)), rtol=1e-6)


def test_a_run_keeps_the_whole_path_goes_on_from_anywhere_and_samples_without_the_file(
    tiny_run, there, tmp_path_factory, monkeypatch
):
    folder = there / "run"
    shutil.copytree(tiny_run[0], folder)
    config = config_lib.read(folder / "config.json")
    own = dataclasses.replace(config.diffusion, weighting="my_file:tilted", weighting_args=(("slope", 0.1),))
    train(dataclasses.replace(config, diffusion=own), folder)
    kept = json.loads((folder / "config.json").read_text())["diffusion"]
    assert (kept["weighting"], kept["weighting_args"]) == (f"{there}/my_file.py:tilted", [["slope", 0.1]])

    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    restored = config_lib.read(folder / "config.json")
    train(restored, folder)
    assert not Path("my_file.py").exists()

    (there / "my_file.py").unlink()
    parts, state = run.load(folder)
    assert parts.config.diffusion == restored.diffusion
    assert int(state.step) == config.steps
    with pytest.raises(FileNotFoundError, match=f"--diffusion.weighting .*: there is no file {there}/my_file.py"):
        train(restored, folder)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        parts.weighting(LOG_SNR)
