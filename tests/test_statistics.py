"""Streaming moments against one-shot ones, processes against one, and files of reference statistics."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from together import SETTINGS, free_port

from ddpm_jax.evaluation import estimate, statistics

GATHER = """
import os, sys
import numpy as np
from ddpm_jax.config import Launch
from ddpm_jax.evaluation import statistics
from ddpm_jax.training import processes

_, port, i, out = sys.argv
processes.join(Launch(coordinator=f"localhost:{port}", num_processes=2, process_id=int(i), timeout=60))
statistics.ROWS = 3
x = np.random.default_rng(0).normal(5, 1, size=(41, 7))
mine = statistics.add(statistics.empty(7), x[:11] if i == "0" else x[11:])
whole = statistics.gather(mine)
np.savez(out, mean=whole.mean, scatter=whole.scatter, count=whole.count)
"""


def _close(a, b, rtol=1e-12):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=rtol, atol=rtol * np.abs(b.scatter).max())


def _in_batches(x, sizes):
    found = statistics.empty(x.shape[1])
    for part in np.split(x, np.cumsum(sizes)):
        found = statistics.add(found, part)
    return found


@pytest.mark.parametrize("sizes", [[], [1, 1, 1], [0, 50], [64, 64]])
def test_streaming_equals_one_shot(sizes):
    x = np.random.default_rng(0).normal(3, 2, size=(200, 6))
    found = _in_batches(x, sizes)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(statistics.covariance(found), np.cov(x, rowvar=False), rtol=1e-11, atol=1e-12)


def test_a_large_mean_costs_no_digits():
    """Sums of squares about 0 would leave nothing: 1e8 squared is 1e16 times the variance."""
    x = np.random.default_rng(0).normal(size=(300, 3))
    found = statistics.covariance(_in_batches(x + 1e8, [7, 100, 1]))
    np.testing.assert_allclose(found, np.cov(x, rowvar=False), rtol=0, atol=1e-6)


def test_half_precision_and_whole_numbers_are_summed_in_float64():
    x = np.full((5000, 2), 3, np.uint8)
    x[::2] = 255
    found = statistics.add(statistics.empty(2), x)
    assert found.mean.dtype == np.float64
    np.testing.assert_allclose(found.mean, 129)
    np.testing.assert_allclose(statistics.add(statistics.empty(2), x.astype(np.float16)).scatter, 5000 * 126.0**2)


def test_merging_is_associative_and_order_does_not_matter():
    rng = np.random.default_rng(1)
    a, b, c = (
        statistics.add(statistics.empty(4), rng.normal(m, 1, size=(n, 4))) for m, n in ((0, 5), (9, 1), (-3, 70))
    )
    left = statistics.merge(statistics.merge(a, b), c)
    _close(left, statistics.merge(a, statistics.merge(b, c)))
    _close(left, statistics.merge(statistics.merge(c, a), b))
    assert statistics.merge(statistics.empty(4), a) is a
    assert statistics.merge(a, statistics.empty(4)) is a


def test_gathering_is_merging(monkeypatch):
    """Any number of processes, one of them without images; rows go in pieces that don't divide the features."""
    monkeypatch.setattr(statistics, "ROWS", 3)
    x = np.random.default_rng(2).normal(4, 1, size=(60, 7))
    parts = [statistics.add(statistics.empty(7), part) for part in (x[:1], x[1:1], x[1:50], x[50:])]
    asked = iter(range(99))

    def across(_):
        i = next(asked)
        if i < 2:
            return np.stack([[float(p.count), p.mean][i] for p in parts])
        return np.stack([p.scatter[3 * (i - 2) : 3 * (i - 1)] for p in parts])

    _close(statistics.gather(parts[0], across), statistics.add(statistics.empty(7), x))
    alone = statistics.add(statistics.empty(7), x)
    _close(statistics.gather(alone), alone)
    assert statistics.gather(statistics.empty(3)).count == 0


def test_two_processes_gather_what_one_has(tmp_path):
    """With real processes, to the last digits of float64, which JAX by itself would round away."""
    port = str(free_port())
    env = os.environ | SETTINGS | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    outs = [tmp_path / f"{i}.npz" for i in range(2)]
    commands = [[sys.executable, "-c", GATHER, port, str(i), str(out)] for i, out in enumerate(outs)]
    running = [subprocess.Popen(command, env=env, stdout=-3, stderr=-1, text=True) for command in commands]
    ended = [process.communicate(timeout=200)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    one = statistics.add(statistics.empty(7), np.random.default_rng(0).normal(5, 1, size=(41, 7)))
    for out in outs:
        with np.load(out) as found:
            _close(statistics.Moments(count=int(found["count"]), mean=found["mean"], scatter=found["scatter"]), one)


def test_written_statistics_are_read_back(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 4))
    statistics.write(tmp_path / "real.npz", statistics.add(statistics.empty(4), x), features="pixels")
    found = statistics.read(tmp_path / "real.npz")
    np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), rtol=1e-12)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    assert (found.num_images, found.features) == (30, "pixels")


def test_published_statistics_are_read(tmp_path):
    """They hold mu and sigma, some in float32 and beside others, and nothing of where they come from."""
    np.savez(tmp_path / "fid.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3, dtype=np.float32), mu_s=np.zeros(7))
    found = statistics.read(str(tmp_path / "fid.npz"))
    assert found.mean.dtype == found.covariance.dtype == np.float64
    assert (found.num_images, found.features) == (None, None)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mean": np.zeros(3)}, "must hold mu and sigma, got mean"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "got arr_0; these are images or features of single ones"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"sigma \[D, D\], got sigma float64 \(4, 4\)"),
        ({"mu": np.zeros((3, 3)), "sigma": np.eye(3)}, r"got mu float64 \(3, 3\)"),
        ({"mu": np.array(0.0), "sigma": np.array(1.0)}, r"got mu float64 \(\)"),
        ({"mu": np.zeros(2), "sigma": np.array([["a", "b"], ["c", "d"]])}, "got sigma <U1"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "mu must be finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0, 1]])}, "symmetric"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "a diagonal of 0 or more"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "num_images": np.zeros(2)}, "num_images must be a whole number"),
        ({"mu": np.zeros(2), "sigma": np.array([None])}, "can't be read"),
    ],
)
def test_other_files_are_refused(arrays, said, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        statistics.read(tmp_path / "bad.npz")


def test_what_is_no_npz_is_refused(tmp_path):
    for data in (b"", b"PK\x03\x04 cut short", b"text"):
        (tmp_path / "bad.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"must be a \.npz file"):
            statistics.read(tmp_path / "bad.npz")
    np.save(tmp_path / "mu.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"must be a \.npz file"):
        statistics.read(tmp_path / "mu.npy")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        statistics.read(tmp_path / "none.npz")


def test_bad_features_are_refused():
    some = statistics.empty(3)
    for bad, said in (
        (np.zeros((2, 4)), "features must have 3 columns as those before, got 4"),
        (np.zeros(3), r"features must hold at least 0 images \[N, \.\.\.\], got shape \(3,\)"),
        (np.full((2, 3), np.nan), "NaN or infinity in 6 of 6"),
        (np.array([["a", "b", "c"]]), "features must hold numbers"),
    ):
        with pytest.raises(ValueError, match=said):
            statistics.add(some, bad)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        statistics.covariance(statistics.add(some, np.zeros((1, 3))))
    with pytest.raises(ValueError, match="the same number of features, got 3 and 2"):
        statistics.merge(some, statistics.empty(2))


def test_errors_of_a_mean_have_their_closed_form():
    """The jackknife of a mean by groups of one is the standard error; the bootstrap's is that without the 1/(n - 1)."""
    x = np.random.default_rng(0).gamma(1.0, size=50)
    plain = estimate.mean(x, "values")
    assert plain.standard_error == pytest.approx(x.std(ddof=1) / np.sqrt(50), rel=1e-12)
    left_out = np.array([np.delete(x, i).mean() for i in range(50)])
    assert estimate.jackknife(left_out) == pytest.approx(plain.standard_error, rel=1e-10)
    value, error = estimate.bootstrap(lambda i: x[i].mean(), [50], draws=2000)
    assert value == x.mean()
    assert error == pytest.approx(x.std() / np.sqrt(50), rel=0.06)
    assert plain.high - plain.value == pytest.approx(2.00958 * plain.standard_error, rel=1e-5), "t of 49 degrees"


def test_draws_are_paired_and_groups_are_equal():
    for a, b in zip(estimate.redrawn([9, 4], 5, seed=1), estimate.redrawn([9, 4], 3, seed=1), strict=False):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_array_equal(np.bincount(estimate.groups(23, 5, seed=0)), [5, 5, 5, 4, 4])


def test_shares_have_wilsons_interval():
    """8 of 10: 0.4902 to 0.9433 (Wilson 1927); and at 0 and 1 the interval has a width."""
    found = estimate.share(0.8, 10, np.sqrt(0.016), "")
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    none, all_ = estimate.share(0.0, 10, 0.0, ""), estimate.share(1.0, 10, 0.0, "")
    assert (none.low, none.high) == (0, pytest.approx(0.2775, abs=1e-4))
    assert (all_.low, all_.high) == (pytest.approx(0.7225, abs=1e-4), 1)
    assert estimate.share(0.8, 10, 0.2, "").low < found.low, "more varies than ten images do"
