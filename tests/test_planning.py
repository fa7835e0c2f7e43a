"""Plans for machines that aren't there, and steps compiled beforehand."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest
from conftest import TINY

from ddpm_jax import planning
from ddpm_jax.cli import plan as plan_cli
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Devices
from ddpm_jax.planning import Collective, Plan, Target, ahead
from ddpm_jax.training import checkpoint
from ddpm_jax.training.loop import train

CONFIG = load_preset(str(TINY))
HERE = Target(name="cpu:1", chip=planning.CHIPS["cpu"], devices=jax.devices(), per_chip=1)


def a_plan(**changes) -> Plan:
    usual = {
        "target": "v5e:2x2",
        "devices": 4,
        "mesh": {"data": 4, "fsdp": 1},
        "batch_size": 8,
        "params": 10,
        "ema": 10,
    }
    usual |= {"opt_state": 20, "peak": 100.0, "memory": 1e3, "fits": True, "compute_seconds": 0.2, "link_seconds": 0.05}
    return Plan(**(usual | changes))


def test_the_cifar10_network_has_the_operations_that_others_counted():
    """6.06 G multiply-adds an image (Ho et al.'s network, as papers on its pruning count it), less 5 of 9 of the three
    convolutions of enlarged images, of 256 channels; XLA leaves out those with the zeros around an image, a few per
    cent."""
    spared = 5 * (8**2 + 16**2 + 32**2) * 256**2
    assert planning.model_flops(load_preset("cifar10")) == pytest.approx(2 * (6.06e9 - spared), rel=0.05)


def test_figures_follow_from_each_other():
    plan = a_plan(model_flops=1e12)
    chip = dataclasses.replace(planning.CHIPS["v5e"], flops=8e12)
    assert plan.activations == 60
    assert plan.seconds == pytest.approx(0.25)
    assert plan.utilisation(Target(name="", chip=chip, devices=[], per_chip=1)) == pytest.approx(0.5)
    assert plan.utilisation(Target(name="", chip=chip, devices=[], per_chip=2)) == pytest.approx(1.0)


def test_what_a_step_waits_for_adds_up_to_its_time():
    """8 TFLOP at 80 TFLOP/s are half of the compiler's 0.2 s, so memory holds the other half up; exchanges take 0.05 s
    more. With 2 TFLOP memory takes most, with links ten times as slow the exchanges do."""
    target = Target(name="", chip=dataclasses.replace(planning.CHIPS["v5e"], flops=80e12), devices=[], per_chip=1)
    takes = a_plan(flops=8e12).takes(target)
    assert takes == pytest.approx({"arithmetic": 0.1, "memory": 0.1, "exchanges": 0.05})
    assert sum(takes.values()) == pytest.approx(a_plan().seconds)
    limits = [plan.limit(target) for plan in (a_plan(flops=9e12), a_plan(flops=2e12))]
    limits += [a_plan(flops=9e12, link_seconds=0.5).limit(target), a_plan().limit(target)]
    assert limits == ["arithmetic", "memory", "exchanges", "unknown"]


def test_exchanges_of_activations_are_told_apart():
    moved = [Collective(kind=kind, group=4, count=1, size=8) for kind in ("all-gather", "all-to-all")]
    assert a_plan(exchanges=moved).foreign() == ["all-to-all"]
    assert a_plan(exchanges=moved[:1]).foreign() == []


@pytest.mark.slow
def test_a_step_planned_and_saved_trains_as_one_compiled_on_the_spot(program, tiny_run, tmp_path):
    """Four devices, the state cut in two: planned in one process, run in another, refused for any other run."""
    half, step = ["--devices.fsdp", "2"], tmp_path / "step.bin"
    done = program(
        "-m", "ddpm_jax.cli.plan", TINY, "--target", "cpu:4", *half, "--save", step, "--out", tmp_path / "plan.json"
    )
    assert done.returncode == 0, done.stderr
    assert "all-gather among 2" in done.stdout
    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    assert plan["mesh"] == {"data": 2, "fsdp": 2}
    assert plan["batch_size"] == 8
    assert plan["params"] < 4 * sum(leaf.size for leaf in jax.tree.leaves(tiny_run[1].params)) < 2 * plan["params"]
    assert not {"collective-permute", "all-to-all"} & {each["kind"] for each in plan["exchanges"]}

    trained = program("train.py", TINY, "--workdir", tmp_path / "run", *half, "--program", step, devices=4)
    assert trained.returncode == 0, trained.stderr
    here, there = (
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tmp_path / "run", tiny_run[0])
    )
    np.testing.assert_allclose(here, there, rtol=1e-4)
    assert checkpoint.newest(tmp_path / "run" / "checkpoints") == 8

    other = program(
        "train.py", TINY, "--workdir", tmp_path / "other", "--program", step, "--batch-size", "16", devices=4
    )
    assert other.returncode == 2
    assert all(said in other.stderr for said in ("was made for", "batch_size 8, here 16", "devices.fsdp 2, here 1"))
    assert not (tmp_path / "other").exists()


def test_what_is_no_compiled_step_is_refused(tmp_path):
    (tmp_path / "step.bin").write_bytes(b"dear diary")
    with pytest.raises(ValueError, match=r"--program: .* is no compiled step"):
        train(CONFIG, tmp_path / "run", program=tmp_path / "step.bin")
    with pytest.raises(FileNotFoundError, match="--program: there is no file"):
        train(CONFIG, tmp_path / "run", program=tmp_path / "none")
    assert not (tmp_path / "run").exists()


def test_a_sweep_has_every_combination_once():
    sweep = plan_cli.Sweep(batch_size=(8, 16), fsdp=(1, 2), remat=("none", "full"), dtype=("float32", "bfloat16"))
    configs = list(plan_cli._combinations(plan_cli.Flags(config=CONFIG, sweep=sweep)))
    seen = {(c.batch_size, c.devices.fsdp, c.net.remat, c.net.dtype) for c in configs}
    assert len(configs) == len(seen) == 16
    assert list(plan_cli._combinations(plan_cli.Flags(config=CONFIG))) == [CONFIG]


def test_the_table_marks_the_fastest_that_fits():
    """Per image: 16 in 0.4 s beats 8 in 0.25 s; 64 in 0.4 s would beat both, and does not fit."""
    plans = [
        a_plan(),
        a_plan(batch_size=16, compute_seconds=0.35),
        a_plan(batch_size=64, compute_seconds=0.35, peak=2e3, fits=False),
    ]
    lines = plan_cli._table([(CONFIG, HERE, plan) for plan in plans])[1:]
    assert [line.endswith("<- fastest that fits") for line in lines] == [False, True, False]
    assert lines[2].endswith("does not fit")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:2x2", r"did you mean 'v5e'|did you mean 'v5p'"),
        ("v5e", "must be KIND:SHAPE"),
        ("v5e:2by2", "must be KIND:SHAPE"),
        ("cpu:0", "must be KIND:SHAPE"),
        ("0*v5e:2x2", "must be KIND:SHAPE"),
        ("3*cpu:4", "must be KIND:SHAPE"),
        ("h100:2x2x2", "must be KIND:SHAPE"),
    ],
)
def test_a_target_that_does_not_exist_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        planning.find(name)


def test_only_as_many_chips_as_there_are_can_be_taken():
    assert len(planning.find("cpu:1", chips=1).devices) == 1
    for chips in (-1, 2):
        with pytest.raises(ValueError, match=rf"--chips must lie in 0 .. 1 for cpu:1, got {chips}"):
            planning.find("cpu:1", chips=chips)


def test_a_loop_counts_as_often_as_it_is_taken():
    """5 passes of 10 ms, of which 2 ms (2 GB at 1 TB/s) are the optimizer's, once: 5 x 8 + 2."""
    chip = dataclasses.replace(planning.CHIPS["v5e"], bandwidth=1e12)
    target = Target(name="", chip=chip, devices=[], per_chip=1)
    cost = {"flops": 3.0, "bytes accessed": 6e9, "optimal_seconds": 0.010}
    found = ahead._all_trips(cost, 5, 2e9, target)
    assert found == pytest.approx({"flops": 15.0, "bytes accessed": 5 * 4e9 + 2e9, "optimal_seconds": 0.042})
    assert ahead._all_trips(cost, 1, 2e9, target) == cost


def test_what_crosses_to_another_slice_takes_the_network_too():
    """800 MB among 8 chips in two slices of four, links of 100 GB/s and a network of 10 GB/s a chip."""
    chip = dataclasses.replace(planning.CHIPS["v5e"], link=100e9, network=10e9)
    whole = Collective(kind="all-reduce", group=8, count=1, size=800_000_000)
    one, two = (Target(name="", chip=chip, devices=[None] * 8, per_chip=1, islands=n) for n in (1, 2))
    links = 2 * 7 / 8 * 0.8e9 / 100e9
    assert ahead._seconds(whole, one, 4) == pytest.approx(links)
    assert ahead._seconds(whole, two, 4) == pytest.approx(links + 2 * (0.8e9 / 4) / 2 / 10e9)
    within = dataclasses.replace(whole, group=4)
    assert ahead._seconds(within, two, 4) == ahead._seconds(within, one, 4)


def test_what_the_compiler_refuses_is_said_with_its_figure():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 32.00G of 15.75G hbm."
    assert ahead._needed(said) == 32 * 2**30
    plan = a_plan(peak=ahead._needed(said), memory=16 * 2**30, fits=False, refusal=said)
    words = " ".join(plan_cli._lines("big", CONFIG, HERE, plan, "", False))
    assert "does not fit: it takes 32.0 GiB of 16.0 GiB a device" in words
    assert json.loads(json.dumps(plan_cli._plain(CONFIG, HERE, plan), allow_nan=False))["flops"] is None


def test_a_batch_that_the_target_does_not_divide_is_refused_before_it_is_compiled():
    with pytest.raises(ValueError, match=r"--devices\.fsdp must divide the 1 devices, got 2"):
        planning.plan(dataclasses.replace(CONFIG, devices=Devices(fsdp=2)), HERE)
    with pytest.raises(ValueError, match="times 3 parts, got 8; try 6 or 9"):
        planning.plan(dataclasses.replace(CONFIG, devices=Devices(accumulate=3)), HERE)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs pip install 'ddpm_jax[tpu]'")
@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 8])
def test_on_a_tpu_weights_move_and_activations_never(program, tmp_path, fsdp):
    done = program(
        "-m", "ddpm_jax.cli.plan", TINY, "--target", "v6e:2x4", "--net.features", "64", "--devices.fsdp", fsdp, "--out",
        tmp_path / "plan.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    kinds = {each["kind"] for each in plan["exchanges"]}
    assert kinds <= ({"all-reduce"} if fsdp == 1 else {"all-reduce", "all-gather", "reduce-scatter"})
    assert ("all-gather" in kinds) == (fsdp > 1)
    assert plan["fits"]
