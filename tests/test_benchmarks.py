"""What benchmarks work out from times, without PyTorch: the comparison itself needs '.[bench]' and an idle machine."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
PROGRAMS = ("sides", "machine", "cases", "step", "memory", "draw")


@pytest.fixture(scope="module", autouse=True)
def bench():
    """The programs by name: they import each other as siblings, as Python does when one of them is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield {name: importlib.import_module(name) for name in PROGRAMS}
        for name in PROGRAMS:
            sys.modules.pop(name)


@dataclasses.dataclass(frozen=True)
class Made:
    """A side whose unit takes as long as it is told to, on a machine that slows down by each turn."""

    name: str
    seconds: float
    log: list

    def ask(self, command):
        self.log.append((self.name, command))
        return {"seconds": self.seconds * (1 + len(self.log) // 2)}


def test_spread_of_one_to_five(bench):
    assert bench["sides"].spread([5, 1, 4, 2, 3]) == {"median": 3, "low": 2, "high": 4, "count": 5}
    assert bench["sides"].spread([7.0]) == {"median": 7, "low": 7, "high": 7, "count": 1}


def test_ratios_within_a_round_know_nothing_of_the_machines_drift(bench):
    """Ratios 2, 1/2, 2, 2, 1 on a machine up to ten times as slow; the medians' own ratio is 1."""
    drift = np.array([1.0, 8.0, 4.0, 2.0, 10.0])
    found = bench["sides"].paired(drift * [2, 0.5, 2, 2, 1], drift)
    assert found == {"median": 2, "low": 1, "high": 2, "count": 5}
    assert bench["sides"].paired(1.5 * drift, 2 * drift) == {"median": 0.75, "low": 0.75, "high": 0.75, "count": 5}


def test_the_best_of_pytorch_is_the_fastest_of_the_same_dtype(bench):
    seconds = {
        "jax-float32": [2.0],
        "jax-bfloat16": [3.0],
        "torch-eager-float32": [4.0],
        "torch-channels-last-float32": [1.0],
        "torch-channels-last-bfloat16": [0.5],
    }
    found = bench["sides"].compared(seconds)
    assert found.keys() == {"jax-float32", "jax-bfloat16"}
    assert found["jax-float32"]["best"]["of"] == "torch-channels-last-float32"
    assert found["jax-float32"]["best"]["median"] == 2.0
    assert found["jax-float32"]["over"]["torch-eager-float32"]["median"] == 0.5
    assert found["jax-bfloat16"]["best"]["median"] == 6.0
    assert "best" not in bench["sides"].compared({"jax-float32": [2.0]})["jax-float32"]


def test_sides_work_in_turn_and_short_units_are_repeated(bench, monkeypatch):
    monkeypatch.setattr(bench["sides"].time, "sleep", lambda _: None)
    log = []
    made = [Made("long", 1.0, log), Made("short", 0.05, log)]
    seconds = bench["sides"].turns(made, rounds=3, warm=1)
    assert [name for name, _ in log] == ["long", "short"] * 4
    assert log[0][1] == log[1][1] == "go 1"
    assert log[2:4] == [("long", "go 1"), ("short", "go 5")]  # 0.5 s: five of 0.1, which it took at the first turn
    assert {name: len(found) for name, found in seconds.items()} == {"long": 3, "short": 3}


def test_a_side_that_breaks_says_its_last_line(bench, monkeypatch, tmp_path):
    (tmp_path / "torch_side.py").write_text("import sys\nprint('a note')\nsys.exit('no such device')")
    monkeypatch.setattr(bench["sides"], "HERE", tmp_path)
    with pytest.raises(bench["sides"].SideError, match="torch-eager-float32: no such device"):
        bench["sides"].start("torch-eager-float32", {}, threads=1)


def test_a_side_answers_until_it_is_let_go(bench, monkeypatch, tmp_path):
    """It is told the job with its variant's own settings, and networks of different size aren't compared."""
    program = f"""
import json, sys
sys.path.insert(0, {str(FOLDER)!r})
import sides
job = json.loads(sys.argv[1])
print("what a library prints")
sides.serve({{"params": job["threads"] + len(job["dtype"])}}, {{"twice": lambda n: {{"value": 2 * int(n)}}}})
"""
    for name in ("torch_side.py", "jax_side.py"):
        (tmp_path / name).write_text(program)
    monkeypatch.setattr(bench["sides"], "HERE", tmp_path)
    with bench["sides"].started(["jax-float32", "torch-eager-float32"], {}, threads=3) as (running, failed):
        assert [side.ready for side in running] == [{"params": 10}] * 2
        assert not failed
        assert running[1].ask("twice 21") == {"value": 42}
    assert [side.process.returncode for side in running] == [0, 0]
    with (
        pytest.raises(ValueError, match="equally many parameters"),
        bench["sides"].started(["jax-float32", "jax-bfloat16"], {}, threads=3),
    ):
        pass


def test_missing_packages_and_names_are_said_in_one_line(bench, monkeypatch):
    monkeypatch.setattr(bench["sides"].importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(ImportError, match=r"need torch: pip install -e '\.\[bench\]'$"):
        bench["sides"].check(["jax-float32", "torch-eager-float32"])
    bench["sides"].check(["jax-float32"])
    with pytest.raises(ValueError, match=r"--variants.*'jax-float3'.*jax-float32"):
        bench["sides"].check(["jax-float3"])


def test_a_result_replaces_its_own_case_alone(bench, tmp_path):
    out, keep = tmp_path / "new" / "step.json", bench["sides"].keep
    keep(out, {"cpu": "old"}, {"a:1": {"x": 1}, "b:1": {"x": 2}}, {"rounds": 5})
    keep(out, {"cpu": "new"}, {"b:1": {"x": 3}}, {"rounds": 9})
    there = json.loads(out.read_text())
    assert there["a:1"]["x"] == 1
    assert there["a:1"]["machine"] == {"cpu": "old"}
    assert (there["b:1"]["x"], there["b:1"]["machine"], there["b:1"]["arguments"]) == (3, {"cpu": "new"}, {"rounds": 9})
    assert there["b:1"]["date"].count("-") == 2
    assert list(out.parent.iterdir()) == [out]


def test_the_network_of_ho_et_al_is_googles_ddpm_cifar10_32(bench):
    """The settings that are published with the weights of google/ddpm-cifar10-32."""
    job = bench["cases"].job(bench["cases"].read("cifar10:8"), "cifar10")
    published = {
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "in_channels": 3,
        "out_channels": 3,
        "sample_size": 32,
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    }
    told = json.loads(json.dumps(job))
    assert {name: told["net"][name] for name in published} == published
    assert told["net"]["dropout"] == 0.1  # of training (Ho et al. 2020, Appendix B), not in the published file
    assert not [name for name in told["net"] if name.startswith("_")]  # UNet2DModel takes none of these
    numbers = {"batch": 8, "shape": [32, 32, 3], "rate": 2e-4, "clip_norm": 1.0, "ema_decay": 0.9999}
    assert {name: told[name] for name in numbers} == numbers


@pytest.mark.parametrize(("case", "said"), [("cifar10:0", "PRESET:BATCH"), ("cifar1", "cifar10"), ("adm64", "U-Net")])
def test_cases_that_cannot_be_are_refused(bench, case, said):
    with pytest.raises(ValueError, match=said):
        bench["cases"].read(case)


def test_the_machine_is_described_as_far_as_it_says(bench, monkeypatch):
    files = {
        "/proc/cpuinfo": "model name\t: Some CPU \nflags\t\t: fpu avx2 avx512_bf16\n",
        "/proc/meminfo": "MemTotal:  25165824 kB\n",
    }
    monkeypatch.setattr(bench["machine"], "_read", lambda path: files.get(path, ""))
    found = json.loads(json.dumps(bench["machine"].describe()))
    assert (found["cpu"], found["flags"], found["memory_gib"]) == ("Some CPU", ["avx2", "avx512_bf16"], 24)
    assert found["versions"]["jax"] == importlib.import_module("jax").__version__
    files.clear()
    assert "memory_gib" not in bench["machine"].describe()


def test_the_peak_is_that_of_the_best_product(bench, monkeypatch):
    """A machine of 3 GFLOP/s in products of 200 by 200, of 1 GFLOP/s in others, every other time half as fast."""
    now, calls = [0.0], []
    monkeypatch.setattr(bench["machine"].time, "perf_counter", lambda: now[0])

    def product(n):
        def multiply():
            calls.append(n)
            now[0] += 2 * n**3 / (3e9 if n == 200 else 1e9) * (1 + len(calls) % 2)

        return multiply

    assert bench["machine"].peak(product, sizes=(100, 200, 300), tries=2) == pytest.approx(3e9)
    assert calls == [100] * 3 + [200] * 3 + [300] * 3


def test_shares_are_of_the_greater_peak(bench):
    peak = bench["step"].most(
        {"jax": {"float32": 1e9, "bfloat16": 8e9}, "torch": {"float32": 2e9, "bfloat16": 5e9}},
        {"jax": {"float32": 3e9, "bfloat16": 7e9}, "torch": {"float32": 4e9, "bfloat16": 4e9}},
    )
    assert peak == {"jax": {"float32": 3e9, "bfloat16": 8e9}, "torch": {"float32": 4e9, "bfloat16": 5e9}}
    found = bench["step"].shares(6e9, {"jax-float32": [3.0, 2.0, 9.0], "torch-channels-last-bfloat16": [1.0]}, peak)
    assert found == {"jax-float32": 0.5, "torch-channels-last-bfloat16": 0.75}


def test_the_turns_of_two_dtypes_are_one_result(bench):
    one = {"params": 5, "failed": {}, "peak_flops": {"jax": {"float32": 1.0}, "torch": {"float32": 2.0}}}
    two = {"params": None, "failed": {"x": "why"}, "peak_flops": {"jax": {"bfloat16": 3.0}}}
    peaks = {"jax": {"float32": 1.0, "bfloat16": 3.0}, "torch": {"float32": 2.0}}
    assert bench["step"].merged(one, two) == {"params": 5, "failed": {"x": "why"}, "peak_flops": peaks}


def test_memory_is_counted_without_imports_and_compared_with_the_least(bench):
    ready = {"resident": {"own": 100, "files": 200}, "built": {"peak": 900, "files": 250}}
    after = {"resident": {"peak": 700, "files": 260}}
    before = {"own": 180, "files": 255}
    assert bench["memory"].taken(ready, before, after) == {"steps": 340, "kept": 80, "building": 550, "code": 60}
    assert bench["memory"].taken(ready, before, after | {"device": {"peak": 5}})["steps"] == 5
    found = bench["memory"].ratios(
        {"jax-float32": 30, "torch-eager-float32": 40, "torch-channels-last-float32": 20, "jax-bfloat16": 7}
    )
    assert found == {"jax-float32": {"of": "torch-channels-last-float32", "ratio": 1.5}}


def test_a_peak_is_forgotten_when_its_memory_is_free(bench):
    machine = bench["machine"]
    if not machine.resident() or not machine.forget_peak():
        pytest.skip("this system doesn't count that")
    before = machine.resident()["peak"]
    block = np.ones(2**26, np.uint8)
    assert machine.resident()["peak"] >= before + block.size // 2
    del block
    machine.forget_peak()
    assert machine.resident()["peak"] < before + 2**25


def test_the_picture_and_the_table_show_the_median_and_its_quartiles(bench):
    seconds = {"jax-float32": [2.0, 2.0, 4.0, 4.0, 8.0], "torch-eager-float32": [2.0] * 5}
    result = {
        "seconds": {name: bench["sides"].spread(of) for name, of in seconds.items()},
        "ratios": bench["sides"].compared(seconds),
        "share_of_peak": {"jax-float32": 0.5},
    }
    memory = {"bytes": {"jax-float32": {"steps": 2**20}}, "ratios": {"jax-float32": {"of": "x", "ratio": 0.5}}}
    assert bench["draw"].bars({"a:1": result}) == {"jax-float32": {"a:1": (2.0, 1.0, 2.0)}}
    assert bench["draw"].bars({"a:1": memory}) == {"jax-float32": {"a:1": (0.5, 0.5, 0.5)}}
    lines = bench["draw"].table("step", {"a:1": result})
    assert lines[2] == "| a:1 | jax-float32 | 4000.0 | 2.00 (1.00 to 2.00) | torch-eager-float32 | 50% |"
    assert "| 1.0 | 0.50 | x |" in bench["draw"].table("memory", {"a:1": memory})[2]
    figure = bench["draw"].figure({"step": {"a:1": result}, "memory": {"a:1": memory}})
    assert [text.get_text() for text in figure.axes[0].texts] == ["2.00"]
