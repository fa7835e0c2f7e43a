"""Networks as folders of Hugging Face's diffusers, and its schedulers' settings as ours."""

import copy
import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from ddpm_jax import nets
from ddpm_jax.cli import convert
from ddpm_jax.config import VDM, Config, Data, Diffusion, NoiseNet, Sampling, UNet
from ddpm_jax.interop import diffusers, folder

GOLDEN = Path(__file__).parent / "golden"
SMALL = {
    "features": 8,
    "multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (1,),
    "groups": 4,
    "dropout": 0.0,
}
SQUARE = Data(source="folder", shape=(8, 8, 3))
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
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


@functools.cache
def parameters(config):
    """Random numbers where the network has parameters; nothing is compiled for them."""
    module, rng = nets.build(config), np.random.default_rng(0)
    plan = jax.eval_shape(lambda key: nets.init(key, module, config.data.shape), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), plan)


def equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_in_and_out_and_in_again_is_bit_equal(tmp_path):
    config = diffusers.describe(GOLDEN / "diffusers_unet2d", Config())
    module, variables = diffusers.load(GOLDEN / "diffusers_unet2d")
    diffusers.save(tmp_path / "out", config, variables["params"])
    again, same = diffusers.load(tmp_path / "out")
    assert again == module
    assert equal(same, variables)
    theirs = safetensors.numpy.load_file(GOLDEN / "diffusers_unet2d.safetensors")
    ours = safetensors.numpy.load_file(tmp_path / "out" / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    stated = json.loads((GOLDEN / "diffusers_unet2d.json").read_text())
    written = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert written == {"_class_name": "UNet2DModel"} | {
        name: value for name, value in stated.items() if name not in ("parameters", "_use_default_values")
    }


@pytest.mark.parametrize(
    "config",
    [
        Config(data=SQUARE, net=UNet(**SMALL)),
        Config(
            data=Data(source="folder", shape=(8, 16, 1)),
            net=UNet(**SMALL | {"multipliers": (1, 2, 3), "attention_levels": ()}, resblock_updown=True),
            diffusion=Diffusion(schedule="scaled_linear", schedule_args=BETAS, variance="small", prediction="x0"),
        ),
        Config(
            data=SQUARE,
            net=UNet(**SMALL, num_heads=2, num_classes=3, scale_shift_norm=True),
            diffusion=Diffusion(
                schedule="cosine", variance="learned_range", prediction="v", zero_terminal_snr=True, objective="hybrid"
            ),
            sampling=Sampling(clip=False),
        ),
        Config(
            data=SQUARE,
            net=UNet(**SMALL | {"multipliers": (1, 1), "attention_levels": (0,)}, num_heads=4, resblock_updown=True),
        ),
    ],
)
def test_every_network_that_goes_out_comes_back(config, tmp_path):
    params = parameters(config)
    diffusers.save(tmp_path / "out", config, params)
    module, variables = diffusers.load(tmp_path / "out")
    assert module == nets.build(config)
    assert equal(variables["params"], params)
    elsewhere = Config(data=Data(source="folder"))
    assert diffusers.describe(tmp_path / "out", elsewhere) == config


def test_the_files_are_those_that_a_pipeline_is_opened_by(tmp_path):
    config = Config(data=SQUARE, net=UNet(**SMALL))
    diffusers.save(tmp_path / "out", config, parameters(config))
    assert {str(path.relative_to(tmp_path / "out")) for path in tmp_path.rglob("*") if path.is_file()} == {
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", str(WEIGHTS)
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "model_index.json").read_text()) == {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    with safetensors.safe_open(tmp_path / "out" / WEIGHTS, "np") as file:
        assert file.metadata() == {"format": "pt"}


def changed(**parts):
    """A config that could go, but for these fields of its parts."""
    config = Config(data=SQUARE, net=UNet(**SMALL))
    return dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **fields) for part, fields in parts.items()}
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(data=SQUARE, net=NoiseNet()), "--net must be unet for diffusers, got noise_net"),
        (Config(data=SQUARE, net=VDM()), "--net must be unet for diffusers, got vdm"),
        (changed(net={"groups": 16}), r"--net.groups must divide every width \[8, 16\] for diffusers, got 16"),
        (
            changed(net={"num_heads": 2, "attention_levels": (0,)}),
            r"--net.num-heads must be 1 for diffusers, where widths \[8, 16\] attend: .*, got 2",
        ),
        (
            changed(diffusion={"num_steps": 250}),
            r"--diffusion.time-range must be the 250 steps for diffusers, .*, got 1000",
        ),
        (changed(diffusion={"prediction": "flow"}), "--diffusion.prediction, for diffusers: there is no 'flow'"),
        (
            changed(diffusion={"variance": "medium:0.5"}),
            "--diffusion.variance, for diffusers: there is no 'medium:0.5'",
        ),
        (changed(diffusion={"variance": "learned"}), "--diffusion.variance, for diffusers: there is no 'learned'"),
        (changed(sampling={"variance": "medium:1"}), "--diffusion.variance, for diffusers: there is no 'medium:1'"),
        (
            changed(diffusion={"schedule": "jsd"}),
            "--diffusion.schedule, for diffusers, must leave a signal .*, got jsd",
        ),
        (changed(diffusion={"learn_schedule": True}), "--diffusion.learn-schedule must be off for diffusers"),
    ],
)
def test_what_diffusers_lacks_is_refused_before_anything_is_written(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        diffusers.save(tmp_path / "out", config, {})
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_network_are_refused(tmp_path):
    params = copy.deepcopy(parameters(changed()))
    params["conv_in"]["bias"] = params["conv_in"]["bias"][:3]
    params["alien"] = params.pop("time1")
    with pytest.raises(ValueError, match="the parameters don't fit the network: ") as caught:
        diffusers.save(tmp_path / "out", changed(), params)
    assert str(caught.value).split(": ", 1)[1].split("; ") == [
        "alien.bias [32] has no place in it",
        "alien.kernel [8, 32] has no place in it",
        "conv_in.bias must be [8], got [3]",
        "time1.bias [32] is missing",
        "time1.kernel [8, 32] is missing",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone_and_an_empty_one_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    diffusers.save(tmp_path / "out", changed(), parameters(changed()))
    before = (tmp_path / "out" / WEIGHTS).read_bytes()
    with pytest.raises(ValueError, match="has something in it already; give a new or an empty folder"):
        diffusers.save(tmp_path / "out", changed(), parameters(changed()))
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == before


def test_a_disk_that_fails_half_way_leaves_no_folder(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        diffusers.save(tmp_path / "out", changed(), parameters(changed()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variance", "asked", "wanted"),
    [("fixed_small", "hybrid", "simple"), ("fixed_small", "vlb", "vlb"), ("fixed_small", "simple", "simple")],
)
def test_the_objective_follows_the_variance(variance, asked, wanted, tmp_path):
    diffusers.save(tmp_path / "out", changed(), parameters(changed()))
    file = tmp_path / "out" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(PUBLISHED | {"variance_type": variance}))
    found = diffusers.describe(tmp_path / "out", Config(diffusion=Diffusion(variance="learned", objective=asked)))
    assert (found.diffusion.variance, found.diffusion.objective) == ("small", wanted)


def test_outputs_that_arent_the_variances_are_refused(tmp_path):
    diffusers.save(tmp_path / "out", changed(), parameters(changed()))
    file = tmp_path / "out" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(PUBLISHED | {"variance_type": "learned_range"}))
    with pytest.raises(ValueError, match=r"out_channels must be 6 for 3 channels and .*variance learned_range, got 3"):
        diffusers.describe(tmp_path / "out", Config())


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A network of four classes as we write it, `said(*flags)` of reading it, and what reading it gives."""
    config = changed(net={"num_classes": 3})
    diffusers.save(tmp_path / "out", config, parameters(config))
    taken = []
    monkeypatch.setattr(folder, "write", lambda workdir, config, params, *, step: taken.append((config, params)))

    def read(*args):
        convert.main(["read", str(tmp_path / "out"), str(tmp_path / "run"), *args])
        return taken.pop()

    return read


def forget(tmp_path):
    """Leaves the settings as others write them."""
    file = tmp_path / "out" / "unet" / "config.json"
    plain = json.loads(file.read_text())
    assert plain.pop("_ddpm_jax_null_class") is True
    file.write_text(json.dumps(plain))


def test_our_own_networks_come_back_with_their_no_class(published, capsys):
    config, params = published()
    assert (config.net.num_classes, config.net.label_dropout) == (3, 0.1)
    assert equal(params, parameters(changed(net={"num_classes": 3})))
    assert "its classes are 0 to 2; its last, 3, is read as no class" in capsys.readouterr().out


def test_a_publishers_classes_are_all_kept_and_no_class_is_their_mean(published, capsys, tmp_path):
    forget(tmp_path)
    config, params = published()
    assert (config.net.num_classes, config.net.label_dropout) == (4, 0.0)
    theirs, ours = parameters(changed(net={"num_classes": 3})), params["classes"]["embedding"]
    np.testing.assert_array_equal(ours[:4], theirs["classes"]["embedding"])
    np.testing.assert_allclose(ours[4], theirs["classes"]["embedding"].mean(axis=0), rtol=1e-5, atol=1e-6)
    assert equal({**params, "classes": 0}, {**theirs, "classes": 0})
    said = capsys.readouterr().out
    assert "its classes are 0 to 3; 4, no class, is added, the mean of them, and not trained: " in said
    assert published("--net.label-dropout", "0.2")[0].net.label_dropout == 0.2


def test_a_publishers_last_class_is_no_class_where_a_flag_says_so(published, tmp_path):
    forget(tmp_path)
    config, params = published("--null-class")
    assert (config.net.num_classes, config.net.label_dropout) == (3, 0.1)
    assert equal(params, parameters(changed(net={"num_classes": 3})))


def test_the_flag_of_no_class_needs_classes(tmp_path):
    diffusers.save(tmp_path / "out", changed(), parameters(changed()))
    with pytest.raises(ValueError, match=r"--null-class needs a network with classes, .*out has none"):
        convert.main(["read", str(tmp_path / "out"), str(tmp_path / "run"), "--null-class"])


def test_flags_of_sampling_stand_and_a_presets_give_way(published, capsys, tmp_path):
    config, _ = published("--sampling.no-clip", "--sampling.steps", "50", "--sampling.variance", "small")
    assert config.sampling == Sampling(clip=False, steps=(50,), variance="small")
    assert "hold" not in capsys.readouterr().out
    file = tmp_path / "out" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(PUBLISHED | {"_class_name": "DDIMScheduler"}))
    config, _ = published("--preset", "cifar10")
    assert config.sampling == Sampling(sampler="ddim", eta=0.0)
    assert "sampling.sampler: 'ddpm' -> 'ddim'" in capsys.readouterr().out
    file.unlink()
    published("--diffusion.schedule", "cosine")
    assert "it has no scheduler_config.json: read as cosine, 1000 steps, eps" in capsys.readouterr().out
