"""Snapshots of power averages in a run's folder, and what is made of them; with a network of two parameters."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from jax.sharding import AbstractMesh

import sample
from ddpm_jax import config as config_lib
from ddpm_jax import data, nets
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run
from ddpm_jax.training import checkpoint, loop, population, power_ema, run, snapshots
from ddpm_jax.training.layout import Layout

STEPS = 9
CONFIG = Config(
    steps=STEPS,
    batch_size=8,
    data=Data(source="digits", shape=(8, 8, 1)),
    diffusion=Diffusion(num_steps=20),
    optimizer=Optimizer(learning_rate=0.05, warmup_steps=0, ema_decay=0.9, ema_sigma_rels=(0.05, 0.1, 0.2)),
    run=Run(
        log_every=STEPS, sample_every=STEPS, num_samples=1, preview_steps=1, checkpoint_every=3, ema_snapshot_every=1
    ),
)


class Line:
    """A network of two parameters: slope x_t + shift."""

    def init(self, key, x_t, time):
        del x_t, time
        return {"params": {"slope": jax.random.normal(key), "shift": jnp.zeros(())}}

    def apply(self, variables, x_t, time, **options):
        del time, options
        return variables["params"]["slope"] * x_t + variables["params"]["shift"]


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nets, "build", lambda config: Line())
        yield


def change(config=CONFIG, *, steps=STEPS, kept=None, **settings):
    kept = config.optimizer.ema_sigma_rels if kept is None else kept
    optimizer = dataclasses.replace(config.optimizer, ema_sigma_rels=kept)
    return dataclasses.replace(
        config, steps=steps, optimizer=optimizer, run=dataclasses.replace(config.run, **settings)
    )


def whole(workdir):
    """Steps of the snapshots that are there whole."""
    folder = workdir / "ema"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def read(workdir, step):
    with checkpoint.open_folder(workdir / "ema", read_only=True) as manager:
        return manager.restore(step)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder, its state, and which snapshots were whole when each checkpoint began to be saved."""
    workdir, seen, save = tmp_path_factory.mktemp("runs") / "whole", {}, checkpoint.save

    def looking(manager, state, score):
        seen[int(state.step)] = whole(workdir)
        save(manager, state, score)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", looking)
        state = loop.train(change(checkpoint_every=1, keep_last=STEPS), workdir)
    return workdir, state, seen


def test_every_snapshot_is_whole_before_a_checkpoint_that_a_run_may_go_on_from(finished):
    assert finished[2] == {step: list(range(1, step + 1)) for step in range(1, STEPS + 1)}


def test_a_snapshot_is_the_averages_alone_in_float32(finished):
    workdir, state, _ = finished
    found = read(workdir, STEPS)
    assert set(found) == {"0.05", "0.1", "0.2"}
    chex.assert_trees_all_equal(found, jax.device_get(state.power_ema))
    chex.assert_tree_all_finite(found)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_averages_of_a_run_are_those_of_its_parameters_after_every_step(finished, sigma_rel):
    """Each step's parameters, from its checkpoint, weighed by the integral of the profile over that step."""
    workdir, state, _ = finished
    edges = (np.arange(STEPS + 1) / STEPS) ** (power_ema.gamma_of(sigma_rel) + 1)
    slopes = [float(run.load(workdir, step=step)[1].params["slope"]) for step in range(1, STEPS + 1)]
    np.testing.assert_allclose(state.power_ema[str(sigma_rel)]["slope"], np.diff(edges) @ slopes, rtol=1e-5)


def test_a_length_that_two_others_make_is_the_one_that_training_kept(finished):
    workdir, state, _ = finished
    near, made = snapshots.reconstruct(workdir, state, [0.1, 0.2], of=(0.05, 0.1))
    assert (near.num_snapshots, made.num_snapshots) == (0, STEPS - 1)
    kept, other = (float(state.power_ema[name]["slope"]) for name in ("0.2", "0.1"))
    assert float(near.params["slope"]) == pytest.approx(other, rel=1e-6)
    assert abs(float(made.params["slope"]) - kept) < 0.02 * abs(other - kept)


@pytest.mark.parametrize("step", [6, STEPS])
def test_a_length_that_was_kept_is_its_snapshot_at_that_step(finished, step):
    workdir = finished[0]
    state = run.load(workdir, step=step)[1]
    [made] = snapshots.reconstruct(workdir, state, [0.1])
    chex.assert_trees_all_close(made.params, read(workdir, step)["0.1"], rtol=1e-6)
    assert made.num_snapshots == 0
    chex.assert_trees_all_equal_shapes_and_dtypes(made.params, state.ema)


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
import test_ema_snapshots as test
from ddpm_jax.training import checkpoint, loop

save = checkpoint.save_tree
def save_and_die(manager, step, tree, *score):
    save(manager, step, tree, *score)
    if manager.directory.name == "ema" and step == 8:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_tree, test.nets.build = save_and_die, lambda config: test.Line()
loop.train(test.CONFIG, sys.argv[1])
"""


def test_a_run_that_was_killed_while_it_took_one_has_the_same_snapshots(finished, tmp_path):
    """Killed in the midst of step 8's, it goes on from the checkpoint of step 6; of 7 there is one already."""
    workdir = tmp_path / "killed"
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", KILLED, workdir], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert whole(workdir)[:7] == [1, 2, 3, 4, 5, 6, 7]
    loop.train(CONFIG, workdir)
    assert whole(workdir) == list(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        chex.assert_trees_all_equal(read(workdir, step), read(finished[0], step))


def test_a_run_that_goes_on_otherwise_takes_its_later_snapshots_again(finished, tmp_path):
    """At another learning rate from step 6, and every third step: nothing is left of what came after 6 before."""
    workdir = tmp_path / "otherwise"
    shutil.copytree(finished[0], workdir)
    for step in range(7, STEPS + 1):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    config = change(ema_snapshot_every=3)
    state = loop.train(
        dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.5)), workdir
    )
    assert whole(workdir) == [1, 2, 3, 4, 5, 6, 9]
    assert not (workdir / "ema" / checkpoint.TRASH).exists()
    chex.assert_trees_all_equal(read(workdir, 9), jax.device_get(state.power_ema))
    assert abs(state.power_ema["0.05"]["slope"] - finished[1].power_ema["0.05"]["slope"]) > 1e-3


def test_steps_per_dispatch_do_not_change_the_snapshots(finished, tmp_path):
    several = {"steps_per_dispatch": 3, "ema_snapshot_every": 3}
    loop.train(change(**several), tmp_path / "three")
    assert whole(tmp_path / "three") == [3, 6, 9]
    for step in (3, 9):
        chex.assert_trees_all_close(read(tmp_path / "three", step), read(finished[0], step), rtol=1e-4)


def test_members_of_a_population_keep_averages_of_their_own():
    """After one step the average is the parameters; after two (1/2)^(gamma + 1) of it is left."""
    configs = [dataclasses.replace(CONFIG, seed=seed) for seed in (0, 1)]
    [kind] = kinds = population.build(configs, Layout(arrangement="vmap", each=2))
    population.start(kinds, configs, data.load(CONFIG.data))
    states = []
    for _ in range(2):
        population.advance(kind, kind.chunks[0])
        states.append(population.states_of(kind))
    population.stop(kinds)
    first, second = (state.params["slope"] for state in states)
    assert len({*map(float, first), *map(float, second)}) == 4
    left = 0.5 ** (power_ema.gamma_of(0.1) + 1)
    np.testing.assert_allclose(states[0].power_ema["0.1"]["slope"], first, rtol=1e-5)
    np.testing.assert_allclose(states[1].power_ema["0.1"]["slope"], left * first + (1 - left) * second, rtol=1e-5)


def test_the_averages_lie_on_the_devices_as_the_ordinary_one(monkeypatch):
    monkeypatch.undo()
    parts = run.build(dataclasses.replace(load_preset("digits"), optimizer=CONFIG.optimizer))
    mesh = AbstractMesh((2, 2), ("data", "fsdp"))
    places = dataclasses.replace(parts, mesh=mesh).shardings()
    for name in ("0.05", "0.1", "0.2"):
        assert jax.tree.leaves(places.power_ema[name]) == jax.tree.leaves(places.ema)


def test_sample_draws_with_a_length_asked_for_afterwards(finished, tmp_path, capsys, monkeypatch):
    drawn = {}
    for flags in ((), ("--ema-sigma-rel", "0.15"), ("--ema-sigma-rel", "0.15", "--checkpoint", "6")):
        file = tmp_path / f"{len(drawn)}.npz"
        options = ["--num", "1", "--frames", "0", "--steps", "4", "--out", str(tmp_path / "out.png")]
        sample.main([str(finished[0]), *options, "--npz", str(file), *flags])
        drawn[flags] = np.load(file)["images"].tobytes()
    assert len(set(drawn.values())) == 3
    said = capsys.readouterr().out
    assert "average of sigma_rel 0.15 from 8 snapshots before step 9; it misses" in said
    assert "from 5 snapshots before step 6" in said


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """A run that kept no power averages."""
    workdir = tmp_path_factory.mktemp("runs") / "without"
    loop.train(change(steps=3, kept=(), ema_snapshot_every=0), workdir)
    return workdir


def test_what_cannot_be_made_is_refused_in_one_line(finished, without, tmp_path):
    shutil.copytree(finished[0], tmp_path / "young", ignore=lambda folder, names: {"ema"} & set(names))
    for arguments, error, message in (
        ((finished[0], "--ema-sigma-rel", "0.1", "--raw"), ValueError, "--raw is no average, --ema-sigma-rel 0.1 is"),
        ((finished[0], "--ema-sigma-rel", "0.4"), ValueError, "--ema-sigma-rel must lie in 1e-06 .. 0.288675, got 0.4"),
        ((without, "--ema-sigma-rel", "0.1"), ValueError, "without kept no power averages: train with --opt"),
        ((tmp_path / "young", "--ema-sigma-rel", "0.15"), FileNotFoundError, "ema has no snapshots before step 9"),
    ):
        with pytest.raises(error) as caught:
            sample.main([*map(str, arguments), "--num", "1"])
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"of must be among the run's averages 0\.05, 0\.1, 0\.2, got 0\.3"):
        snapshots.reconstruct(finished[0], finished[1], [0.1], of=(0.1, 0.3))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (change(ema_snapshot_every=0), "go together, got 0 and 0.05, 0.1, 0.2"),
        (change(kept=()), "--run.ema-snapshot-every and --optimizer.ema-sigma-rels go together, got 1 and none"),
        (change(kept=(0.1, 0.5)), "--optimizer.ema-sigma-rels must lie in 1e-06 .. 0.288675, got 0.5"),
        (change(ema_snapshot_every=-1), "--run.ema-snapshot-every must be 0 or more, got -1"),
        (
            change(steps_per_dispatch=3),
            "--run.ema-snapshot-every must be a multiple of --run.steps-per-dispatch 3, got",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(config, message, tmp_path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        loop.train(config, tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_begin_to_keep_averages_half_way(without):
    with pytest.raises(ValueError, match=r"optimizer\.ema_sigma_rels: \[\] -> \[0\.05, 0\.1, 0\.2\]"):
        loop.train(change(steps=6), without)


def test_a_folder_of_an_older_version_is_read(without, tmp_path):
    """Neither its config.json nor its checkpoints know of power averages."""
    shutil.copytree(without, tmp_path / "older")
    path = tmp_path / "older" / "config.json"
    plain = json.loads(path.read_text())
    del plain["optimizer"]["ema_sigma_rels"], plain["run"]["ema_snapshot_every"]
    path.write_text(json.dumps(plain))
    assert config_lib.read(path) == config_lib.read(without / "config.json")
    assert run.load(tmp_path / "older")[1].power_ema == ()
