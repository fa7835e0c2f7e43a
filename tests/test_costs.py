"""What presets' training steps cost, counted and not timed, stays what it was recorded to be (golden/costs.json)."""

import dataclasses
import functools
import json
import re

import jax
import pytest
from conftest import TINY

from benchmarks import costs
from ddpm_jax.cli.flags import load_preset

RECORDED = json.loads(costs.RECORDED.read_text())
QUICK = ("cifar10", "tiny")
"""The others are left out unless asked for: together they take two minutes."""


def differences(kind, case, found):
    return list(costs.differences(kind, case, RECORDED[kind][case], found, version=RECORDED["jax"]))


@functools.cache
def lowered(name):
    return costs.lowered(load_preset(str(costs.PRESETS[name])))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in costs.PRESETS]
)
def test_a_step_is_lowered_to_as_much_as_was_recorded(name):
    moved = differences("lowered", name, lowered(name))
    assert not moved, "\n".join(moved)


def test_small_steps_compile_to_as_much_as_was_recorded(program, tmp_path):
    out = tmp_path / "costs.json"
    done = program("benchmarks/costs.py", "digits", "tiny", "--kinds", "compiled", "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["compiled"]
    assert set(found) == set(costs.COMPILED)
    moved = [line for case, figures in found.items() for line in differences("compiled", case, figures)]
    assert not moved, "\n".join(moved)


def test_every_preset_is_recorded():
    assert set(RECORDED["lowered"]) == set(costs.PRESETS)
    assert set(RECORDED["compiled"]) == set(costs.COMPILED)


def test_a_step_that_works_more_is_found():
    """Blocks are worked out anew in the backward pass: a forward pass more, a third of the work."""
    tiny, before = load_preset(str(TINY)), {"tpu": lowered("tiny")["tpu"]}
    anew = costs.lowered(dataclasses.replace(tiny, net=dataclasses.replace(tiny.net, remat="full")), ["tpu"])
    old, new = before["tpu"]["operations"], anew["tpu"]["operations"]
    assert 1.2 < new / old < 1.4
    lines = list(costs.differences("lowered", "tiny", before, anew, version=jax.__version__))
    assert [line for line in lines if "operations" in line] == [
        f"tiny, lowered for tpu: operations {new:,}, recorded {old:,} with jax {jax.__version__} ({new / old - 1:+.0%};"
        " 10% is allowed). If it is meant to be so: python benchmarks/costs.py tiny"
    ]


CASE = {"cpu": {"operations": 1000, "while": 1}}
OTHER = "0.1.0"


@pytest.mark.parametrize(
    ("found", "version", "moved"),
    [
        ({"operations": 1090, "while": 1}, jax.__version__, []),
        ({"operations": 2000, "while": 1}, jax.__version__, ["operations +100% 10%"]),
        ({"operations": 890, "while": 1}, jax.__version__, ["operations -11% 10%"]),
        ({"operations": 1000, "while": 2}, jax.__version__, ["while +100% 10%"]),
        ({"operations": 1000}, jax.__version__, ["while -100% 10%"]),
        ({"operations": 1000, "while": 1, "all-reduce": 1}, jax.__version__, ["all-reduce none before 10%"]),
        ({"operations": 1590, "while": 4}, OTHER, []),
        ({"operations": 500, "while": 0}, OTHER, []),
        ({"operations": 2000, "while": 5}, OTHER, ["operations +100% 60%", "while +400% 60%"]),
    ],
)
def test_a_figure_may_move_so_far_and_no_further(found, version, moved):
    lines = list(costs.differences("lowered", "digits", CASE, {"cpu": found}, version=version))
    read = r"digits, lowered for cpu: (\S+) .* \((.*); (\d+%) is allowed\)\. .*: python benchmarks/costs\.py digits"
    assert [" ".join(re.fullmatch(read, line).groups()) for line in lines] == moved
