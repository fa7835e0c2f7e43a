"""Published weights at the command line: a run's folder of them, and a folder for others of a run."""

import json
import runpy
import shutil
import sys
import types
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy
from conftest import ROOT
from test_diffusers_export import parameters
from test_torch_file import zipped

from ddpm_jax import config as config_lib
from ddpm_jax.cli import convert, flags
from ddpm_jax.config import Config, Data, Diffusion, Sampling
from ddpm_jax.figures import plots
from ddpm_jax.interop import diffusers, folder, ho, openai, score_sde
from ddpm_jax.nets import UNet
from ddpm_jax.training import checkpoint, run
from ddpm_jax.training.loop import train

GOLDEN = Path(__file__).parent / "golden"
SCHEDULER = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "variance_type": "fixed_large"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
# The network of golden/ho_tiny and score_sde_tiny, and as flags.
SMALL = UNet(features=4, multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,))
TINY = [
    "--net.features", "4", "--net.multipliers", "1", "2", "--net.num-res-blocks", "1", "--net.attention-levels", "1",
]  # fmt: skip


DATA, DIFFUSION = Data(source="folder", shape=(8, 8, 3)), Diffusion(schedule="cosine", variance="small")
NET = config_lib.UNet(
    features=8, multipliers=(1,), num_res_blocks=1, attention_levels=(), dropout=0.0, num_classes=3, groups=2
)


def publish(target, name="diffusers_options", **scheduler):
    """A golden network as the Hub has it: config.json, the weights and the scheduler's settings."""
    target.mkdir()
    shutil.copy(GOLDEN / f"{name}.json", target / "config.json")
    shutil.copy(GOLDEN / f"{name}.safetensors", target / WEIGHTS)
    (target / "scheduler_config.json").write_text(json.dumps(SCHEDULER | scheduler))
    return target


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The smallest network, as others would publish it."""
    config = Config(data=DATA, net=NET, diffusion=DIFFUSION, sampling=Sampling(clip=False))
    folder = tmp_path_factory.mktemp("published") / "source"
    diffusers.save(folder, config, parameters(config))
    return folder


@pytest.fixture(scope="module")
def read(source):
    """A run's folder, read from it."""
    workdir = source.with_name("run")
    convert.main(["read", str(source), str(workdir), "--step", "5", "--batch-size", "4", "--seed", "3"])
    return workdir


@pytest.fixture
def own(read, tmp_path):
    return Path(shutil.copytree(read, tmp_path / "run"))


def equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_read_makes_a_run_of_published_weights(read, source):
    _, variables = diffusers.load(source)
    parts, state = run.load(read)
    assert int(state.step) == 5
    assert [int(count) for _, count in optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")] == [0, 5]
    assert equal(state.params, variables["params"])
    assert equal(state.ema, variables["params"])
    config = parts.config
    assert (config.batch_size, config.seed) == (4, 3)
    assert (config.data, config.net, config.diffusion) == (DATA, NET, DIFFUSION)
    assert not config.sampling.clip
    assert {path.name for path in read.iterdir()} == {"config.json", "checkpoints"}
    assert {path.name for path in read.parent.iterdir()} == {"source", "run"}


@pytest.fixture
def written(monkeypatch):
    """What would have been written as a run: (config, params) of each."""
    taken = []
    monkeypatch.setattr(folder, "write", lambda workdir, config, params, *, step: taken.append((config, params)))
    return taken


def test_read_says_what_was_read_and_what_comes_next(tmp_path, capsys, written):
    source, workdir = publish(tmp_path / "source", "diffusers_unet2d"), tmp_path / "run"
    convert.main(["read", str(source), str(workdir), "--preset", "cifar10", "--net.features", "64"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("the source's own settings hold: data.shape: [32, 32, 3] -> [16, 16, 3]; ")
    assert "net.features: 64 -> 32" in said[0]
    assert said[1].startswith(f"{workdir}: 702,499 parameters from {source / WEIGHTS}, as published")
    assert said[2] == "kept by it:   objective simple, draw-t uniform, time-range 1000: flags of read"
    assert said[3:] == [f"draw images:  python sample.py {workdir}", f"train on:     python train.py {workdir}"]
    config = written[0][0]
    assert (config.net.features, config.data.name, config.steps) == (32, "cifar10", 800_000)


def test_without_a_preset_nothing_gives_way_unless_a_flag_does(tmp_path, capsys, written):
    source = publish(tmp_path / "source", "diffusers_unet2d")
    convert.main(["read", str(source), str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "hold" not in said
    assert said.endswith(f"train.py {tmp_path / 'run'} --data.path FOLDER\n")
    convert.main(["read", str(source), str(tmp_path / "run"), "--net.num-heads", "2"])
    assert capsys.readouterr().out.startswith("the source's own settings hold: net.num_heads: 2 -> 1\n")


def test_a_run_that_was_read_is_sampled(own, monkeypatch):
    args = ["--num", "2", "--frames", "0", "--sampler", "ddim", "--steps", "2", "--npz", str(own / "two.npz")]
    monkeypatch.setattr(sys, "argv", ["sample.py", str(own), *args])
    runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")
    with np.load(own / "two.npz") as packed:
        assert packed["images"].shape == (2, 8, 8, 3)
        np.testing.assert_array_equal(packed["labels"], [0, 1])


def test_training_goes_on_from_a_run_that_was_read(own, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda *args: None)  # curves of two steps
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    np.savez(own.parent / "images.npz", images=images, labels=np.arange(8) % 3)
    asked = flags.training(
        [str(own), "--steps", "7", "--data.source", "array", "--data.path", str(own.parent / "images.npz"),
         "--run.num-samples", "1", "--run.preview-steps", "1", "--optimizer.warmup-steps", "0"]
    )  # fmt: skip
    assert asked.workdir == own
    assert (asked.config.batch_size, asked.config.seed) == (4, 3)
    _, before = run.load(own)
    after = train(asked.config, asked.workdir)
    assert int(after.step) == 7
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before.params, after.params)
    assert 0 < max(jax.tree.leaves(moved)) < 0.01
    assert sorted(int(path.name) for path in (own / "checkpoints").iterdir() if path.name.isdigit()) == [5, 7]


def test_write_gives_back_what_was_read(read, source, tmp_path, capsys):
    convert.main(["write", str(read), str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert f"the averaged weights of {read} at step 5" in said
    assert "call its unet with class_labels, 3 for no class" in said
    for file in source.rglob("*.*"):
        assert (tmp_path / "out" / file.relative_to(source)).read_bytes() == file.read_bytes()
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint 3: found \[5\]"):
        convert.main(["write", str(read), str(tmp_path / "none"), "--checkpoint", "3"])
    with pytest.raises(ValueError, match="out has something in it already"):
        convert.main(["write", str(read), str(tmp_path / "out")])


def test_write_takes_averaged_weights_unless_raw_ones_are_asked_for(read, tmp_path, monkeypatch):
    taken = []
    state = types.SimpleNamespace(step=1, params="raw", ema="averaged")
    monkeypatch.setattr(run, "load", lambda workdir, step: (None, state))
    monkeypatch.setattr(diffusers, "save", lambda folder, config, params: taken.append(params))
    convert.main(["write", str(read), str(tmp_path / "a")])
    convert.main(["write", str(read), str(tmp_path / "b"), "--raw"])
    assert taken == ["averaged", "raw"]


OTHERS = {
    "ho_tiny": ((), "averaged", lambda path: ho.load(path, SMALL, 3)),
    "ho_tiny.index": (("--raw",), "raw", lambda path: ho.load(path.with_suffix(""), SMALL, 3, ema=False)),
    "score_sde_tiny.msgpack": ((), "averaged", lambda path: score_sde.load(path, SMALL, 3)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_formats_are_told_by_their_files(name, written, capsys):
    more, which, load = OTHERS[name]
    convert.main(["read", str(GOLDEN / name), "run", *more, *TINY])
    said = capsys.readouterr().out.splitlines()[0]
    assert which in said
    assert ("read as a VP network; files of the subvp and ve configs look the same" in said) == ("sde" in name)
    ((config, params),) = written
    assert config.data.name == "cifar10"
    assert equal(params, load(GOLDEN / name)["params"])


def test_an_openai_file_takes_the_network_of_its_preset(written, monkeypatch, tmp_path, capsys):
    (tmp_path / "ema_1.pt").write_bytes(b"PK")
    monkeypatch.setattr(
        openai, "load", lambda path, module, channels: {"params": {path.name: np.zeros(module.features)}}
    )
    convert.main(["read", str(tmp_path / "ema_1.pt"), "run", "--preset", "iddpm_cifar10", "--net.features", "64"])
    assert written[0][1]["ema_1.pt"].shape == (64,)
    assert "openai's ema_*.pt are" in capsys.readouterr().out


def spoil(change):
    """Changes the weights of a published folder in place."""

    def edit(source):
        tensors = safetensors.numpy.load_file(source / WEIGHTS)
        change(tensors)
        safetensors.numpy.save_file(tensors, source / WEIGHTS)

    return edit


def cut_short(source):
    (source / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:1000])


def another_class(source):
    plain = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(plain | {"_class_name": "VQModel"}))


def hostile(source):
    (source / WEIGHTS).unlink()
    mark = str(source.parent / "run")
    zipped(
        source / "diffusion_pytorch_model.bin",
        b"cos\nmkdir\n(X" + len(mark).to_bytes(4, "little") + mark.encode() + b"tR",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hostile, "diffusion_pytorch_model.bin"),
        (cut_short, "is no whole safetensors file"),
        (another_class, "_class_name must be 'UNet2DModel', got 'VQModel'"),
        (
            spoil(lambda tensors: tensors.pop("conv_in.bias")),
            r"conv_in.bias is missing, for a parameter of shape \[8\]",
        ),
        (spoil(lambda tensors: tensors.update(alien=np.zeros(2))), r"alien \[2\] has no place in it"),
        (
            spoil(lambda tensors: tensors.update({"conv_in.bias": np.zeros(7)})),
            r"conv_in.bias becomes \[7\], but the parameter is \[8\]",
        ),
        (lambda source: (source / WEIGHTS).unlink(), f"there is no .*{WEIGHTS}"),
        (lambda source: (source / "scheduler_config.json").write_text("{"), "scheduler_config.json is not JSON"),
    ],
)
def test_a_source_that_is_wrong_leaves_no_folder(change, message, tmp_path):
    source = publish(tmp_path / "source", variance_type="learned_range")
    change(source)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert.main(["read", str(source), str(tmp_path / "run")])
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_write_that_fails_or_a_folder_in_use_leaves_all_as_it_was(source, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("no space left on device")

    workdir = tmp_path / "run"
    monkeypatch.setattr(checkpoint, "save", fail)
    with pytest.raises(OSError, match="no space"):
        convert.main(["read", str(source), str(workdir)])
    assert list(tmp_path.iterdir()) == []
    workdir.mkdir()
    (workdir / "mine").write_text("x")
    with pytest.raises(ValueError, match="run has something in it already; give a new or an empty folder"):
        convert.main(["read", str(source), str(workdir)])
    assert [path.name for path in workdir.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["reed", "a", "b"], "the first argument: there is no 'reed', did you mean 'read'"),
        (["read", "a"], "read must be followed by SOURCE WORKDIR, got a$"),
        (["write", "--raw", "a"], "write must be followed by WORKDIR FOLDER, got --raw a$"),
        (["read", "{s}", "{w}", "--sede", "1"], "--seed"),
        (["read", "{s}", "{w}", "--format", "difusers"], "--format: there is no 'difusers', did you mean 'diffusers'"),
        (["read", "{s}", "{w}", "--preset", "cifar11"], "there is no preset 'cifar11', did you mean 'cifar10'"),
        (["read", "{s}", "{w}", "--raw"], "--raw needs a source with two sets of weights"),
        (["read", "{s}", "{w}", "--step", "-1"], "--step must be 0 or more, got -1"),
        (["read", "{s}/config.json", "{w}"], "looks like none of the formats that are read; say --format"),
        (["read", str(GOLDEN / "torch_zip.pt"), "{w}"], "adm for .* got unet: adm256, adm64, iddpm_cifar10, iddpm"),
        (["read", str(GOLDEN / "torch_zip.pt"), "{w}", "--null-class"], "--null-class is for diffusers networks"),
        (["write", "{s}x", "{w}"], "is no run's folder"),
    ],
)
def test_a_mistake_is_answered_with_what_is_wrong(args, message, tmp_path):
    source, workdir = publish(tmp_path / "source", variance_type="learned_range"), tmp_path / "run"
    args = [arg.format(s=source, w=workdir) for arg in args]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert.main(args)
    assert not workdir.exists()
