"""Sampling and measuring on several hosts: two real processes of two devices each, beside one of one device."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from together import together

from ddpm_jax.diffusion import continuous, schedules
from ddpm_jax.evaluation import likelihood as measure

MEET_ONCE = """
import sys
import sample
from ddpm_jax.cli import evaluate, flags, likelihood

workdir, out, *launch = sys.argv[1:]
sample.main([workdir, "--num", "8", "--frames", "0", "--out", out + ".png", "--npz", out + ".npz", *launch])
likelihood.main([workdir, "--num", "6", "--num-t", "3"])
few = ["--num-t", "3", "--num-reference", "40"]
evaluate.main([workdir, "--num", "8", "--features", "pixels", *few])
sys.argv = ["sample.py", workdir, "--label", "10"]
flags.run(sample.main)
"""


def figures(workdir, name):
    return json.loads((workdir / name).read_text())


def images(file):
    with np.load(file) as packed:
        return packed["images"].astype(int)


def test_two_processes_draw_and_measure_what_one_does(tiny_run, tmp_path, monkeypatch, capsys):
    """Image i depends on (seed, i) only, wherever it is drawn. Other shares of a batch sum in another order, to 1e-7 of
    a value in float32: that can turn one of 255 levels, and a figure's sixth digit.
    """
    for name in ("one", "two"):
        shutil.copytree(tiny_run[0], tmp_path / name)
    both = together(lambda i: ["-c", MEET_ONCE, tmp_path / "two", tmp_path / f"of_process_{i}"])
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / "one"), str(tmp_path / "of_one")])
    with pytest.raises(SystemExit):
        exec(MEET_ONCE, {})
    alone = capsys.readouterr().out.splitlines()

    # The first writes and prints as one process does; the other is silent, but for what was wrong.
    wrong = "sample.py: label must be a class of the network (0 .. 9), got 10"
    assert [ended.status for ended in both] == [2, 2], both
    assert len(both[0].out) == len(alone) > 8
    assert both[0].err.splitlines()[-1] == wrong
    assert both[1].out == []
    assert both[1].err.splitlines() == [wrong]
    assert {path.name for path in tmp_path.glob("of_process_*")} == {"of_process_0.png", "of_process_0.npz"}

    drawn, expected = images(tmp_path / "of_process_0.npz"), images(tmp_path / "of_one.npz")
    assert np.abs(drawn - expected).max() <= 1
    assert np.abs(expected[0] - expected[1]).max() > 50
    found, expected = (figures(tmp_path / name, "likelihood.json") for name in ("two", "one"))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key
    [two], [one] = (list((tmp_path / name / "evaluation").glob("*.json")) for name in ("two", "one"))
    assert two.name == one.name
    for mine, theirs in zip(*(json.loads(file.read_text())["figures"] for file in (two, one)), strict=True):
        assert mine["name"] == theirs["name"]
        for key in ("value", "low", "high"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), mine["name"]


def test_a_bound_in_continuous_time_does_not_depend_on_the_batches():
    """Nor on the devices, whose number a batch is rounded up to: each image has its own noise and its own levels."""
    key = jax.random.key(0)
    images = np.asarray(jax.random.randint(key, (7, 2, 2, 1), 0, 256) / 127.5 - 1, np.float32)
    known = np.arange(7) / 10
    per_batch = measure.in_continuous_time(key, continuous.of_schedule(schedules.linear(20)), num_t=3)

    def denoise(x_t, time, labels):
        return x_t * (0.9 - labels[:, None, None, None])

    def measured(batch_size, labels=known):
        read = lambda rows: (images[rows], labels[rows])  # noqa: E731
        return measure.over(per_batch, jax.tree_util.Partial(denoise), read, 7, batch_size=batch_size)

    small, large = measured(3), measured(8)
    assert small.bits_per_dim == pytest.approx(large.bits_per_dim, rel=1e-5)
    assert small.standard_error == pytest.approx(large.standard_error, rel=1e-4)
    assert measured(3, np.zeros(7)).bits_per_dim != pytest.approx(small.bits_per_dim, rel=1e-3)


def test_a_bound_in_continuous_time_takes_one_level_from_each_equal_part():
    """With a log-SNR that falls evenly the parts are equal stretches of it: each draw's time tells its part."""
    curve, told = continuous.of_schedule(schedules.from_log_snr(lambda t: 5 - 10 * t, 101)), []

    def denoise(x_t, time):
        jax.debug.callback(lambda t: told.append(float(t)), time[0])
        return x_t

    per_batch = measure.in_continuous_time(jax.random.key(0), curve, num_t=5)
    read = lambda rows: (np.zeros((len(rows), 2, 2, 1)), None)  # noqa: E731
    measure.over(per_batch, jax.tree_util.Partial(denoise), read, 2, batch_size=2)
    jax.effects_barrier()
    ends = np.asarray(curve.times)[[0, -1]]
    parts = np.floor(5 * (np.array(told) - ends[0]) / (ends[1] - ends[0]))
    assert sorted(parts) == [part for part in range(5) for _ in range(2)]
