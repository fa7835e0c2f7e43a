"""The Inception score where it is known."""

import numpy as np
import pytest

from ddpm_jax.evaluation.inception_score import inception_score


@pytest.mark.parametrize("scale", [50.0, 1e5])
def test_certain_and_of_all_classes_is_their_number(scale):
    found = inception_score(scale * np.tile(np.eye(7), (4, 1)), splits=1)
    assert found.value == pytest.approx(7, rel=1e-6)
    assert found.standard_error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("splits", [1, 5])
def test_uncertain_is_one(splits):
    """Every image the same distribution, whichever: nothing is told by looking."""
    for row in (np.zeros(9), np.arange(9.0), np.array([1000.0, 0, 0])):
        found = inception_score(np.tile(row, (20, 1)), splits=splits)
        assert found.value == pytest.approx(1, abs=1e-10)
        assert found.low <= found.value <= found.high


def test_two_images_by_hand():
    """p = (3/4, 1/4) and (1/4, 3/4): KL to (1/2, 1/2) is ln 2 - H(1/4), for both."""
    logits = np.log([[3.0, 1], [1, 3]]) + np.array([[5.0], [-300]])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert inception_score(logits, splits=1).value == pytest.approx(np.exp(np.log(2) - entropy), rel=1e-12)


def test_samples_class_by_class_are_shuffled_before_they_are_split():
    logits = 50 * np.repeat(np.eye(4), 250, axis=0)
    found = inception_score(logits)
    assert found.value == pytest.approx(4, rel=0.03), "unshuffled it would be 1 or 2"
    assert found.how == "10 splits of 100 images"


def test_the_interval_covers_the_mean():
    """100 draws of random logits, by splits and by the spread of images."""
    rng = np.random.default_rng(0)
    for splits in (1, 10):
        found = [inception_score(2 * rng.normal(size=(300, 6)), splits=splits) for _ in range(100)]
        mean = np.mean([one.value for one in found])
        assert sum(one.low <= mean <= one.high for one in found) >= 89
        errors = [one.standard_error for one in found]
        assert np.mean(errors) == pytest.approx(np.std([one.value for one in found]), rel=0.25)


def test_degenerate_sets():
    one = inception_score(np.array([[1.0, 2.0]]), splits=1)
    assert (one.value, one.standard_error, one.low) == (pytest.approx(1), None, None)
    with pytest.raises(ValueError, match=r"splits must lie in 1 \.\. 3, the number of images, got 10"):
        inception_score(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="logits must hold at least 1 images"):
        inception_score(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="logits must be finite, got NaN or infinity in 1 of 8"):
        inception_score(np.where(np.arange(8).reshape(2, 4) == 3, np.nan, 0))
    with pytest.raises(ValueError, match=r"logits must hold at least 1 images \[N, \.\.\.\], got shape \(4,\)"):
        inception_score(np.zeros(4))
