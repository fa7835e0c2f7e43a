"""Configs through JSON and back, and what is said about a config that is wrong."""

import dataclasses
import functools
import json
import runpy
from pathlib import Path

import pytest

from ddpm_jax import config as config_lib
from ddpm_jax import records
from ddpm_jax.config import Config, Data, Diffusion, NoiseNet, Sampling, UNet
from ddpm_jax.records import pick, suggest, to_dict

from_dict = functools.partial(records.from_dict, cls=Config, where="config")
PRESETS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
CONFIGS = {
    "default": Config(),
    "noise_net": Config(net=NoiseNet(dim_mults=(1, 2))),
    "tuples": Config(
        diffusion=Diffusion(schedule_args=(("beta_end", 0.01), ("beta_start", 1e-5))),
        sampling=Sampling(steps=(10, 15)),
        net=UNet(attention_levels=()),
    ),
} | {path.stem: runpy.run_path(str(path))["config"] for path in PRESETS if path.stem != "__init__"}


def test_there_are_presets():
    assert len(CONFIGS) > 3


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_comes_back_from_json_as_it_went(name, tmp_path):
    config = CONFIGS[name]
    assert isinstance(config, Config)
    plain = to_dict(config)
    assert json.loads(json.dumps(plain)) == plain  # lists, not tuples: a dict from JSON compares equal
    back = from_dict(json.loads(json.dumps(plain)))
    assert back == config
    assert hash(back) == hash(config)
    config_lib.write(config, tmp_path / "run" / "config.json")
    assert config_lib.read(tmp_path / "run" / "config.json") == config
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]


def test_missing_fields_take_their_defaults():
    assert from_dict({}) == Config()
    assert from_dict({"data": {"source": "mnist5k"}}) == Config(data=Data(source="mnist5k"))
    assert from_dict({"net": {"kind": "noise_net"}}) == Config(net=NoiseNet())
    assert from_dict({"optimizer": {"learning_rate": 1}}).optimizer.learning_rate == 1.0


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"sede": 1}, "config.sede: there is no such field, did you mean 'seed'?"),
        ({"optimizer": {"learning_rat": 1.0}}, "config.optimizer.learning_rat: .* did you mean 'learning_rate'?"),
        ({"net": {"kind": "unet", "widht": 1}}, "config.net.widht: there is no such field"),
        ({"net": {"kind": "unte"}}, "config.net.kind: there is no 'unte', did you mean 'unet'?"),
        ({"net": {"features": 3}}, "config.net.kind: there is no ''; choose from unet, noise_net, adm, vdm"),
        ({"net": {"kind": 5}}, "config.net.kind: there is no 5; choose from"),
        ({"net": {"kind": []}}, r"config.net.kind: there is no \[\]; choose from"),
        ({"net": "unet"}, "config.net must be an object, got 'unet'"),
        ({"net": None}, "config.net must be an object, got None"),
        ({"data": 3}, "config.data must be an object, got 3"),
        ({"steps": "10"}, "config.steps must be int, got '10'"),
        ({"steps": 10.0}, "config.steps must be int, got 10.0"),
        ({"steps": True}, "config.steps must be int, got True"),
        ({"optimizer": {"b1": "0.9"}}, "config.optimizer.b1 must be float, got '0.9'"),
        ({"data": {"flip": 1}}, "config.data.flip must be bool, got 1"),
        ({"data": {"shape": [8, 8]}}, r"config.data.shape must have 3 entries, got \[8, 8\]"),
        ({"data": {"shape": [8, 8, 1.5]}}, "config.data.shape must be int, got 1.5"),
        ({"sampling": {"steps": 10}}, "config.sampling.steps must be a list, got 10"),
        ({"diffusion": {"schedule_args": [["s", "x"]]}}, "config.diffusion.schedule_args must be float, got 'x'"),
        ([], r"config must be an object, got \[\]"),
    ],
)
def test_wrong_fields_and_types_are_refused_by_dotted_name(plain, message):
    with pytest.raises(ValueError, match=message):
        from_dict(plain)


def test_reading_what_is_no_config_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run's folder: it has no config.json \(train.py writes one\)"):
        config_lib.read(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        config_lib.read(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"data": {"sorce": "digits"}}')
    with pytest.raises(ValueError, match=r"config.json.data.sorce: .* did you mean 'source'\?"):
        config_lib.read(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("3")
    with pytest.raises(ValueError, match=r"config.json must be an object, got 3"):
        config_lib.read(tmp_path / "config.json")


def test_differences_are_named_with_dots():
    old = Config()
    new = dataclasses.replace(old, seed=3, net=UNet(features=64), data=Data(shape=(8, 8, 3)))
    expected = {"seed": (0, 3), "net.features": (128, 64), "data.shape": ([8, 8, 1], [8, 8, 3])}
    assert records.differences(old, new) == expected
    assert records.differences(old, old) == {}
    # What was read back from JSON is no different.
    assert records.differences(json.loads(json.dumps(to_dict(old))), new) == expected


def test_another_network_differs_in_its_kind():
    found = records.differences(Config(), Config(net=NoiseNet()))
    assert found["net.kind"] == ("unet", "noise_net")
    assert found["net.features"] == (128, None)
    assert all(name.startswith("net.") for name in found)


def test_pick_suggests_the_nearest_name_and_lists_all():
    table = {"linear": 1, "cosine": 2}
    assert pick(table, "cosine", "schedule") == 2
    with pytest.raises(
        ValueError, match=r"^schedule: there is no 'cosin', did you mean 'cosine'.; choose from linear, cosine$"
    ):
        pick(table, "cosin", "schedule")
    with pytest.raises(ValueError, match=r"^schedule: there is no 'xyz'; choose from linear, cosine$"):
        pick(table, "xyz", "schedule")
    with pytest.raises(ValueError, match="there is no None"):
        pick(table, None, "schedule")
    assert suggest("liner", table) == ", did you mean 'linear'?"
    assert suggest("zzz", table) == ""


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1
