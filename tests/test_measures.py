"""Figures of sets whose answer is known, and what is dealt against what."""

import numpy as np
import pytest

from ddpm_jax.evaluation import measures, statistics
from ddpm_jax.evaluation.extracting import Extracted

RNG = np.random.default_rng(0)
TRAIN = RNG.normal(size=(600, 6)).astype(np.float32)
HELD_OUT = RNG.normal(size=(200, 6)).astype(np.float32)
SAMPLES = RNG.normal(size=(500, 6)).astype(np.float32)


def of(features, logits=None):
    return Extracted(features, logits)


def figures(samples, train=TRAIN, held_out=HELD_OUT):
    held_out = None if held_out is None else of(held_out)
    return {each.name: each for each in measures.against_images(of(samples), of(train), held_out, name="x")}


def test_samples_of_the_same_law_are_at_the_floor():
    for name, figure in figures(SAMPLES).items():
        if figure.floor is None:
            continue
        spread = np.hypot(figure.estimate.standard_error or 0, figure.floor.standard_error or 0)
        assert abs(figure.estimate.value - figure.floor.value) < 4 * spread + 1e-9, name


def test_another_law_is_as_far_as_its_mean_says():
    """Means 3 apart in each of 6 dimensions: 54, and what 200 images add by chance; nothing is shared."""
    found = figures(SAMPLES + 3)
    assert found["FD-x (PCA-6)"].estimate.value == pytest.approx(54, rel=0.05)
    assert found["FD-x, as many as there are"].estimate.value == pytest.approx(54, rel=0.03)
    assert found["FD-x"].floor.value < 1
    assert found["precision-x"].estimate.value < 0.05
    assert found["farther-x"].estimate.value > 0.95


def test_training_images_themselves_are_told_for_copies():
    found = figures(TRAIN[:300])
    assert found["copies-x"].estimate.value == 1
    assert found["farther-x"].estimate.value == 0


def test_there_are_equally_many_on_both_sides_and_as_many_pairs_as_there_is_room_for():
    found = figures(SAMPLES)
    assert found["FD-x"].num_images == 200
    assert found["FD-x"].estimate.how.startswith("2 sets;")
    assert found["FD-x, as many as there are"].num_images == 500
    alone = figures(SAMPLES, held_out=None)
    assert alone["FD-x"].num_images == 500
    assert alone["FD-x"].floor is None
    assert "copies-x" not in alone


def test_the_mean_of_several_pairs_is_surer_than_one():
    one = figures(SAMPLES[:200])["FD-x"].estimate.standard_error
    two = figures(SAMPLES)["FD-x"].estimate.standard_error
    assert 0.5 < two / one < 0.95  # 1/sqrt(2)


def test_the_order_of_the_training_images_is_nothing():
    """Two clusters, the training images of one before those of the other: samples of both are at the floor."""
    both = TRAIN + 10 * (np.arange(600) >= 300)[:, None]
    mixed = SAMPLES[:300] + 10 * (np.arange(300) % 2)[:, None]
    found = figures(mixed, both, held_out=HELD_OUT[:100] + 10 * (np.arange(100) % 2)[:, None])
    assert found["FD-x, as many as there are"].estimate.value < 2 * found["FD-x"].estimate.value + 2


def test_shares_stay_between_0_and_1():
    """All of the samples lie on training images: precision is 1, and so is the most that it can be."""
    found = figures(np.tile(TRAIN[:200], (2, 1)))
    for name in ("precision-x", "recall-x", "coverage-x"):
        assert 0 <= found[name].estimate.low <= found[name].estimate.value <= found[name].estimate.high <= 1, name


def test_the_score_is_of_the_logits():
    logits = 50 * np.eye(4)[np.arange(600) % 4].astype(np.float32)
    found = measures.against_images(of(SAMPLES[:400], logits[:400]), of(TRAIN, logits), None, name="x")
    [score] = [each for each in found if each.name == "IS-x"]
    assert score.estimate.value == pytest.approx(4, rel=1e-6)


def test_statistics_from_a_file_give_the_distance_of_the_images_behind_them(tmp_path):
    statistics.write(tmp_path / "s.npz", statistics.add(statistics.empty(6), TRAIN), features="x")
    stored = statistics.read(tmp_path / "s.npz")
    found = {each.name: each for each in measures.against_statistics(of(SAMPLES), stored, name="x")}
    whole = measures.frechet_estimate(SAMPLES, TRAIN).value
    for name in ("FD-x", "FD-x (PCA-6)"):
        assert found[name].estimate.value == pytest.approx(whole, rel=1e-5)
        assert found[name].floor is None


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (SAMPLES[:1], "at least 2 samples, got 1"),
        (SAMPLES[:, :3], "samples must have 6 features, got 3"),
        (SAMPLES * np.nan, "features of samples must be finite"),
    ],
)
def test_what_can_not_be_compared_is_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        figures(samples)


def test_statistics_of_other_features_are_refused():
    stored = statistics.Reference(mean=np.zeros(6), covariance=np.eye(6), num_images=9, features="others")
    with pytest.raises(ValueError, match="statistics of others, got --features of x"):
        measures.against_statistics(of(SAMPLES), stored, name="x")
    unnamed = statistics.Reference(mean=np.zeros(5), covariance=np.eye(5), num_images=None, features=None)
    with pytest.raises(ValueError, match="statistics of 5 features, x has 6"):
        measures.against_statistics(of(SAMPLES), unnamed, name="x")


def test_a_handful_of_equal_images_is_measured_as_far_as_it_goes():
    """Three images, all one: no neighbours to count, and a distance that is a number."""
    found = figures(np.ones((3, 6), np.float32))
    assert np.isfinite(found["FD-x"].estimate.value)
    assert "precision-x" not in found
