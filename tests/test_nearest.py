"""Nearest training images: planted copies are found, and copying is told from learning."""

import numpy as np
import pytest
from scipy import stats

from ddpm_jax.evaluation import nearest as module
from ddpm_jax.evaluation.nearest import copying, nearest, squared_distances


@pytest.mark.parametrize("sizes", [[300], [1, 150, 0, 149], [299, 1]])
def test_chunks_and_blocks_change_nothing(sizes, monkeypatch):
    """Every distance by itself, sorted."""
    monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr(module, "COLUMNS", 64)
    rng = np.random.default_rng(0)
    samples, train = rng.normal(size=(20, 3, 4)), rng.normal(size=(300, 3, 4))
    found = nearest(samples, np.split(train, np.cumsum(sizes)[:-1]), count=5)
    apart = np.sqrt(((samples[:, None] - train) ** 2).sum((2, 3)))
    np.testing.assert_array_equal(found.indices, np.argsort(apart, 1)[:, :5])
    np.testing.assert_allclose(found.distances, np.sort(apart, 1)[:, :5], rtol=1e-12)


def test_planted_copies_are_found_in_bytes():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, size=(100, 8, 8, 3), dtype=np.uint8)
    samples = train[[70, 3, 99]].copy()
    samples[1, 0, 0, 0] ^= 1
    found = nearest(samples, (train[i : i + 32] for i in range(0, 100, 32)))
    np.testing.assert_array_equal(found.indices[:, 0], [70, 3, 99])
    np.testing.assert_array_equal(found.distances[:, 0], [0, 1, 0])


def test_a_small_distance_keeps_its_digits():
    """Features of length 1e4 and a millionth apart: inner products alone would leave nothing of it."""
    train = np.random.default_rng(0).normal(1e3, 1, size=(10, 100))
    found = nearest(train[4:5] + 1e-7, [train])
    assert found.indices[0, 0] == 4
    assert found.distances[0, 0] == pytest.approx(1e-6, rel=1e-3)


def test_of_equally_near_ones_the_first_that_came():
    found = nearest(np.zeros((1, 2)), [np.ones((3, 2)), np.ones((2, 2))], count=4)
    np.testing.assert_array_equal(found.indices, [[0, 1, 2, 3]])


def test_squared_distances_of_integers_are_exact_and_of_copies_zero():
    x = np.random.default_rng(0).integers(0, 256, size=(30, 50)).astype(np.uint8)
    wide = x.astype(np.int64)
    np.testing.assert_array_equal(squared_distances(x, x), ((wide[:, None] - wide) ** 2).sum(-1))
    features = np.random.default_rng(1).normal(7, 1, size=(40, 333)).astype(np.float32)
    assert (np.diag(squared_distances(features, features)) == 0).all()


def test_z_is_mann_and_whitneys():
    """Also with ties: against SciPy's p-value, without its continuity correction."""
    rng = np.random.default_rng(0)
    for x, y in ((rng.normal(5, 1, 60), rng.normal(5.2, 1, 40)), (rng.integers(0, 4, 60), rng.integers(0, 5, 40))):
        found = copying(x, y)
        other = stats.mannwhitneyu(x, y, use_continuity=False, method="asymptotic")
        assert found.farther.value == pytest.approx(other.statistic / (60 * 40), rel=1e-12)
        assert 2 * stats.norm.sf(abs(found.z)) == pytest.approx(other.pvalue, rel=1e-9)
        assert np.sign(found.z) == np.sign(found.farther.value - 0.5)


def test_new_samples_are_as_far_as_held_out_images():
    """60 comparisons of a law with itself: z is standard normal, 5 % are near, intervals cover both."""
    rng = np.random.default_rng(0)
    found = [copying(rng.gamma(2.0, size=150), rng.gamma(2.0, size=300)) for _ in range(60)]
    z = np.array([one.z for one in found])
    assert abs(z.mean()) < 0.4
    assert z.std() == pytest.approx(1, abs=0.25)
    assert np.mean([one.near.value for one in found]) == pytest.approx(0.05, abs=0.015)
    assert sum(one.farther.low <= 0.5 <= one.farther.high for one in found) >= 53
    assert sum(one.near.low <= 0.05 <= one.near.high for one in found) >= 53


def test_copies_show():
    """A model that gives back training images, one that does so for one sample in ten, and one that fits nothing."""
    rng = np.random.default_rng(0)
    train, held_out, fresh = (rng.normal(size=(n, 6)) for n in (400, 200, 300))

    def of(samples):
        return copying(*(nearest(each, [train]).distances[:, 0] for each in (samples, held_out)))

    copied, some, new, bad = of(train[:300]), of(np.concatenate([train[:30], fresh[30:]])), of(fresh), of(fresh + 5)
    assert copied.near.value == 1
    assert copied.z < -10
    assert copied.farther.value == 0
    assert some.near.low > 0.05
    assert abs(new.z) < 3
    assert new.near.low < 0.05 < new.near.high
    assert bad.z > 10
    assert bad.near.value == 0


def test_distances_that_are_all_equal_say_nothing():
    found = copying(np.zeros(5), np.zeros(7))
    assert (found.near.value, found.farther.value, found.z) == (0, 0.5, 0)


def test_errors_name_the_argument():
    x = np.zeros((4, 3))
    with pytest.raises(ValueError, match=r"chunks must hold images of the shape of samples's, \(3,\), got \(2,\)"):
        nearest(x, [np.zeros((4, 2))])
    with pytest.raises(ValueError, match="at least count = 3 training images, got 2"):
        nearest(x, [x[:1], x[:1]], count=3)
    with pytest.raises(ValueError, match="at least count = 1 training images, got 0"):
        nearest(x, [])
    with pytest.raises(ValueError, match="samples must hold at least 1 images"):
        nearest(x[:0], [x])
    with pytest.raises(ValueError, match="chunks must be finite"):
        nearest(x, [x * np.nan])
    with pytest.raises(ValueError, match="samples must be finite"):
        nearest(x * np.nan, [x])
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        nearest(x, [x], count=0)
    with pytest.raises(ValueError, match="held_out must hold at least 2 distances"):
        copying(np.zeros(3), np.zeros(1))
    with pytest.raises(ValueError, match="samples must hold distances, finite and at least 0"):
        copying(np.array([np.nan, 1]), np.zeros(3))
    with pytest.raises(ValueError, match=r"percentile must lie in \(0, 100\), got 0"):
        copying(np.zeros(3), np.zeros(3), percentile=0)
