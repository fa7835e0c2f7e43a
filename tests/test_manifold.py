"""Precision, recall, density and coverage of sets that are laid out by hand."""

import numpy as np
import pytest

from ddpm_jax.evaluation import estimate
from ddpm_jax.evaluation import manifold as module
from ddpm_jax.evaluation.manifold import manifold

FIGURES = ("precision", "recall", "density", "coverage")


def _values(found):
    return [getattr(found, name).value for name in FIGURES]


def _brute(real, fake, k, k_density):
    """From the papers' definitions, image by image."""

    def apart(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1)

    radius = np.sort(apart(real, real), 1)
    own, dense = radius[:, k], radius[:, k_density]
    of_fake = np.sort(apart(fake, fake), 1)[:, k]
    cross = apart(real, fake)
    precision = np.mean([(cross[:, j] <= own).any() for j in range(len(fake))])
    recall = np.mean([(cross[i] <= of_fake).any() for i in range(len(real))])
    density = np.mean([(cross[:, j] <= dense).sum() for j in range(len(fake))]) / k_density
    coverage = np.mean([cross[i].min() <= dense[i] for i in range(len(real))])
    return [precision, recall, density, coverage]


@pytest.mark.parametrize(("k", "k_density"), [(3, 5), (1, 2), (4, 1)])
def test_as_the_papers_define_them(k, k_density, monkeypatch):
    """In blocks that don't divide the sets."""
    monkeypatch.setattr(module, "HELD", 7 * 60)
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(60, 4)), rng.normal(0.7, 0.8, size=(60, 4))
    assert _values(manifold(real, fake, k=k, k_density=k_density)) == pytest.approx(_brute(real, fake, k, k_density))


def test_far_apart_nothing_is_shared():
    real = np.random.default_rng(0).normal(size=(50, 3))
    found = manifold(real, real + 1000)
    assert _values(found) == [0, 0, 0, 0]
    assert found.precision.low == found.recall.low == 0
    assert 0 < found.precision.high < 0.15, "50 samples can't exclude one in twenty"


def test_the_same_set_shares_everything():
    """Each image lies in its own ball and in those of whom it is among the 5 nearest: (5 + 1)/5, on average."""
    real = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    found = manifold(real, real.copy())
    assert _values(found) == [1, 1, pytest.approx(1.2), 1]
    assert found.precision.high == 1
    assert found.precision.low < 1


def test_half_of_the_modes_halve_recall_and_coverage():
    """Two far modes of real images, samples of one: all look real, half of the real ones are missed."""
    rng = np.random.default_rng(0)
    one = rng.uniform(size=(40, 2))
    found = manifold(np.concatenate([one, one + 100]), np.concatenate([one, one]))
    assert [found.precision.value, found.recall.value, found.coverage.value] == [1, 0.5, 0.5]
    swapped = manifold(np.concatenate([one, one]), np.concatenate([one, one + 100]))
    assert [swapped.precision.value, swapped.recall.value, swapped.coverage.value] == [0.5, 1, 1]


def test_one_outlier_is_precision_s_trouble_not_density_s():
    """Its ball takes in samples that are like no other image (Naeem et al. 2020, Fig. 3)."""
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(99, 2)), [[100.0, 0]]])
    found = manifold(real, rng.normal([40, 0], 0.1, size=(100, 2)))
    assert found.precision.value == 1
    assert found.density.value == pytest.approx(0.2)
    assert found.coverage.value == 0.01


def test_coverage_of_one_law_is_what_chance_gives():
    """1 - 2^-k nearly: of the k + 1 or more images nearest to a real one it takes that none of k is a sample."""
    rng = np.random.default_rng(0)
    found = manifold(rng.normal(size=(1000, 3)), rng.normal(size=(1000, 3)))
    assert found.coverage.value == pytest.approx(1 - 2**-5, abs=0.02)
    assert found.density.value == pytest.approx(1, abs=0.1)


def test_identical_images_have_balls_of_no_size():
    same = np.full((20, 4), 0.1, np.float32)
    assert _values(manifold(same, same)) == [1, 1, 4, 1]
    assert _values(manifold(same, same + 1)) == [0, 0, 0, 0]


def test_errors_are_those_of_leaving_groups_out():
    """Group by group, by the definitions."""
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(50, 3)), rng.normal(0.7, 0.8, size=(50, 3))
    group = estimate.groups(50, 20, seed=4)
    left_out = [_brute(real[group != g], fake[group != g], 3, 5) for g in range(20)]
    found = manifold(real, fake, seed=4)
    for name, without in zip(FIGURES, np.transpose(left_out), strict=True):
        assert getattr(found, name).standard_error == pytest.approx(estimate.jackknife(without), rel=1e-9)


def test_intervals_cover_the_mean():
    """30 draws of shifted Gaussians: of 120 intervals nearly all hold the mean over the draws, and none is empty."""
    rng = np.random.default_rng(0)
    found = [manifold(rng.normal(size=(120, 4)), rng.normal(0.8, 1, size=(120, 4))) for _ in range(30)]
    for name in FIGURES:
        estimates = [getattr(one, name) for one in found]
        mean = np.mean([one.value for one in estimates])
        assert sum(one.low <= mean <= one.high for one in estimates) >= 26
        spread = np.std([one.value for one in estimates])
        assert 0.8 * spread < np.mean([one.standard_error for one in estimates]) < 2.5 * spread


def test_few_images_have_no_error():
    found = manifold(np.arange(6.0)[:, None], np.arange(6.0)[:, None])
    assert found.precision.value == 1
    assert found.precision.standard_error is None
    assert found.precision.low is None


def test_errors_name_the_argument():
    x = np.zeros((9, 3))
    with pytest.raises(ValueError, match="equally many, as the figures depend on it, got 9 and 8: draw a subset"):
        manifold(x, x[:8])
    with pytest.raises(ValueError, match="reference must hold at least 6 images"):
        manifold(x[:5], x[:5])
    with pytest.raises(ValueError, match="samples must hold images of the shape"):
        manifold(x, np.zeros((9, 2)))
    with pytest.raises(ValueError, match="samples must be finite"):
        manifold(x, x * np.nan)
    with pytest.raises(ValueError, match="k and k_density must be at least 1, got 0 and 5"):
        manifold(x, x, k=0)
