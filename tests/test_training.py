"""A whole run: what it writes, how it resumes, what it refuses."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from ddpm_jax import config as config_lib
from ddpm_jax import data
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Diffusion, NoiseNet
from ddpm_jax.training import checkpoint, run
from ddpm_jax.training.loop import NonFiniteLossError, train
from ddpm_jax.training.step import make_step

CONFIG = load_preset(str(TINY))
FIXED = Diffusion(num_steps=40)


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def steps_kept(workdir):
    with checkpoint.open_folder(workdir / "checkpoints", read_only=True) as manager:
        return sorted(manager.all_steps())


def with_run(config, **changes):
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))


def same(a, b):
    """Two states are the same, bit for bit."""
    chex.assert_trees_all_equal(*jax.device_get((a, b)))


def test_folder_holds_what_the_readme_promises(tiny_run):
    workdir, state = tiny_run
    assert int(state.step) == 8
    assert config_lib.read(workdir / "config.json") == CONFIG
    names = {path.name for path in (workdir / "samples").iterdir()}
    assert names == {"step_00000004.png", "step_00000008.png", "training.gif", "curves.png"}
    with Image.open(workdir / "samples" / "training.gif") as film:
        assert film.n_frames == 2
    assert list(workdir.glob("events.out.tfevents.*"))


def test_checkpoints_are_the_last_two_and_every_sixth(tiny_run):
    assert steps_kept(tiny_run[0]) == [6, 8]


def test_every_logged_step_has_a_line_with_every_figure(tiny_run):
    lines = records(tiny_run[0])
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    wanted = {"loss", "grad_norm", "learning_rate", "images_per_second", "skipped"}
    for line in lines:
        assert wanted <= set(line)
        assert all(np.isfinite(value) for value in line.values())
        assert any(f"loss_q{i}" in line for i in (1, 2, 3, 4))
    assert lines[0]["learning_rate"] == pytest.approx(0.005)  # the second step of a warm-up of two
    assert lines[0]["loss"] == pytest.approx(1.0, abs=0.2)  # the network starts at 0, the noise has variance 1


def test_a_finished_run_loads_from_its_folder_alone(tiny_run):
    parts, state = run.load(tiny_run[0])
    assert parts.config == CONFIG
    same(state, tiny_run[1])


def test_the_same_command_after_the_end_changes_nothing(tiny_run, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(tiny_run[0], workdir)
    before = records(workdir)
    same(train(CONFIG, workdir), tiny_run[1])
    assert records(workdir) == before


def test_a_run_in_two_parts_ends_as_the_run_in_one(tiny_run, tmp_path):
    """Stopped at step 4, continued to 8; the schedule of the learning rate must be that of 8 from the start."""
    workdir = tmp_path / "halves"
    shutil.copytree(tiny_run[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    (workdir / "metrics.jsonl").write_text((workdir / "metrics.jsonl").read_text() + '{"step": 8, "cut')
    same(train(CONFIG, workdir), tiny_run[1])
    assert [line["step"] for line in records(workdir)] == [2, 4, 6, 8]


def test_four_devices_train_as_one(program, tiny_run, tmp_path):
    """The loss of a batch is that of the whole batch wherever its parts lie; sums differ in their last bits only.

    Two by two: the batch is cut in four, the state in two.
    """
    done = program("train.py", TINY, "--workdir", tmp_path / "four", "--devices.fsdp", "2", devices=4)
    assert done.returncode == 0, done.stderr
    one, four = ([line["loss"] for line in records(folder)] for folder in (tiny_run[0], tmp_path / "four"))
    np.testing.assert_allclose(four, one, rtol=1e-4)
    history = run.load(tmp_path / "four")[1].history  # what t is drawn by: kept of the whole batch, too
    np.testing.assert_array_equal(history["count"], tiny_run[1].history["count"])
    np.testing.assert_allclose(history["losses"], tiny_run[1].history["losses"], rtol=1e-3)


@pytest.mark.slow
def test_steps_per_dispatch_do_not_change_the_run(tiny_run, tmp_path):
    train(with_run(CONFIG, steps_per_dispatch=2), tmp_path / "two")
    one, two = ([line["loss"] for line in records(folder)] for folder in (tiny_run[0], tmp_path / "two"))
    np.testing.assert_allclose(two, one, rtol=1e-4)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("net", [CONFIG.net, NoiseNet(init_dim=8, dim_mults=(1, 2))])
def test_the_step_lowers_for_accelerators_too(net, platform):
    """Nothing in it is for CPUs only. Compiling needs the accelerator's compiler; lowering doesn't."""
    parts = run.build(dataclasses.replace(CONFIG, net=net, diffusion=CONFIG.diffusion if net is CONFIG.net else FIXED))
    options = {"num_steps": 40, "mesh": parts.mesh, "remember": run.make_remember(parts)}
    step = make_step(run.make_loss(parts), parts.optimizer, ema_decay=0.9, **options)
    batch = data.Batch(images=jax.ShapeDtypeStruct((8, 8, 8, 1), np.float32), labels=None)  # pyright: ignore
    lowered = step.trace(parts.abstract(), batch, jax.random.key(0)).lower(lowering_platforms=(platform,))
    assert "stablehlo.convolution" in lowered.as_text()


def diverging():
    """A learning rate at which the second step's loss overflows."""
    return dataclasses.replace(
        CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, learning_rate=1e38, warmup_steps=0, clip_norm=0.0)
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoints(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 2; the newest checkpoint is none"):
        train(diverging(), tmp_path / "a")
    assert steps_kept(tmp_path / "a") == []


def test_skipping_counts_the_steps_it_skipped(tmp_path):
    state = train(with_run(diverging(), on_nonfinite="skip"), tmp_path / "a")
    assert int(state.step) == 8
    assert sum(line["skipped"] for line in records(tmp_path / "a")) == 7


@pytest.mark.slow
def test_noise_net_trains_on_a_folder_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prints").mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 17, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "prints" / f"{i}.png")
    config = dataclasses.replace(
        CONFIG,
        steps=2,
        data=dataclasses.replace(CONFIG.data, source="folder", path=str(tmp_path / "prints"), shape=(8, 8, 3)),
        net=NoiseNet(init_dim=8, dim_mults=(1, 2), attn_resolutions=(4,)),
        diffusion=FIXED,
    )
    state = train(config, tmp_path / "run")
    assert int(state.step) == 2
    assert config_lib.read(tmp_path / "run" / "config.json").net == config.net


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": dataclasses.replace(CONFIG.net, features=16)}, "net.features: 8 -> 16"),
        ({"net": NoiseNet(init_dim=8, dim_mults=(1, 2)), "diffusion": FIXED}, "net.kind: 'unet' -> 'noise_net'"),
        ({"diffusion": dataclasses.replace(CONFIG.diffusion, prediction="v")}, "diffusion.prediction: 'eps' -> 'v'"),
        ({"optimizer": dataclasses.replace(CONFIG.optimizer, name="adamw")}, "optimizer.name: 'adam' -> 'adamw'"),
    ],
)
def test_a_config_that_changes_the_network_is_refused_and_nothing_is_touched(tiny_run, change, message):
    before = {path: path.stat().st_mtime_ns for path in tiny_run[0].rglob("*")}
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(CONFIG, **change), tiny_run[0])
    assert {path: path.stat().st_mtime_ns for path in tiny_run[0].rglob("*")} == before


def test_a_longer_run_goes_on_and_says_what_changed(tiny_run, tmp_path, capsys):
    workdir = tmp_path / "longer"
    shutil.copytree(tiny_run[0], workdir)
    assert int(train(dataclasses.replace(CONFIG, steps=10), workdir).step) == 10
    assert "steps: 8 -> 10" in capsys.readouterr().out
    assert config_lib.read(workdir / "config.json").steps == 10


def test_a_dispatch_that_would_miss_every_interval_is_refused(tiny_run, tmp_path):
    """From a checkpoint at 8, steps of 4 never meet the end at 12 + 2: nothing would ever be saved."""
    workdir = tmp_path / "odd"
    shutil.copytree(tiny_run[0], workdir)
    config = with_run(dataclasses.replace(CONFIG, steps=15), steps_per_dispatch=5, log_every=5, sample_every=5)
    with pytest.raises(ValueError, match="must divide the 7 steps from the checkpoint at 8 to --steps 15, got 5"):
        train(with_run(config, checkpoint_every=5), workdir)


def test_the_film_of_training_takes_pictures_of_one_size(tiny_run, tmp_path):
    workdir = tmp_path / "sizes"
    shutil.copytree(tiny_run[0], workdir)
    train(with_run(dataclasses.replace(CONFIG, steps=12), num_samples=9), workdir)
    with (
        Image.open(workdir / "samples" / "training.gif") as film,
        Image.open(workdir / "samples" / "step_00000012.png") as newest,
    ):
        assert film.size == newest.size


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(ValueError, match="other things in it"):
        train(CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_run(CONFIG, steps_per_dispatch=3), "--steps must be a multiple of --run.steps-per-dispatch 3, got 8"),
        (with_run(CONFIG, steps_per_dispatch=0), "--run.steps-per-dispatch must be at least 1, got 0"),
        (with_run(CONFIG, keep_last=0), "--run.keep-last must be at least 1, got 0"),
        (with_run(CONFIG, keep_every=-1), "--run.keep-every must be 0 or more, got -1"),
        (dataclasses.replace(CONFIG, seed=-1), "--seed must lie in"),
        (
            dataclasses.replace(CONFIG, sampling=dataclasses.replace(CONFIG.sampling, variance="smal")),
            "there is no 'smal', did you mean 'small'",
        ),
        (dataclasses.replace(CONFIG, sampling=dataclasses.replace(CONFIG.sampling, steps=(5000,))), "5000"),
        (with_run(CONFIG, log_every=0), "--run.log-every must be at least 1, got 0"),
        (with_run(CONFIG, on_nonfinite="stp"), "there is no 'stp', did you mean 'stop'"),
        (dataclasses.replace(CONFIG, steps=0), "--steps must be at least 1, got 0"),
        (dataclasses.replace(CONFIG, batch_size=0), "--batch-size must be divisible by the 1 devices, got 0"),
        (
            dataclasses.replace(CONFIG, net=dataclasses.replace(CONFIG.net, num_classes=7)),
            "--net.num-classes must be the 10 classes of digits, or 0, got 7",
        ),
        (
            dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, shape=(16, 16, 1))),
            r"--data.shape: digits has images of shape \(8, 8, 1\), got \(16, 16, 1\)",
        ),
        (
            dataclasses.replace(CONFIG, diffusion=dataclasses.replace(CONFIG.diffusion, prediction="epsilon")),
            "there is no 'epsilon', did you mean 'eps'",
        ),
        (
            dataclasses.replace(CONFIG, net=dataclasses.replace(CONFIG.net, dtype="float16")),
            "--net.dtype: there is no 'float16', did you mean 'bfloat16'",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_anything_is_written(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
