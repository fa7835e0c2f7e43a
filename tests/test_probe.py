"""The probe: sure where classes are far apart, and 76 % sure of held-out digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ddpm_jax.evaluation.probe import confidence

CORNERS = np.array([[-1, -1], [-1, 1], [1, 1]]).reshape(3, 1, 2, 1)


def _toy(labels):
    """Images [N, 1, 2, 1] near the corner of their class."""
    return CORNERS[labels] + np.random.default_rng(0).normal(0, 0.01, (len(labels), 1, 2, 1))


TRAIN = np.repeat(np.arange(3), 300)


def test_separable_classes_are_all_sure_and_rightly_counted():
    got = confidence(_toy(TRAIN), TRAIN, _toy(np.array([0, 2, 2, 1, 2])))
    assert got.fraction == 1
    assert got.counts == (1, 1, 3)


def test_an_image_between_the_classes_is_not_sure():
    halfway = (CORNERS[:1] + CORNERS[1:2]) / 2
    got = confidence(_toy(TRAIN), TRAIN, np.concatenate([halfway, CORNERS]))
    assert got.fraction == 0.75
    assert sum(got.counts) == 4


def test_a_class_that_nobody_taught_is_counted_as_absent():
    labels = np.where(TRAIN == 1, 4, TRAIN)
    assert confidence(_toy(TRAIN), labels, _toy(np.array([0, 1, 1]))).counts == (1, 0, 0, 0, 2)


def test_held_out_digits():
    """76 % at 0.9 is the reference for good samples; 92 % are classified rightly, so at most 24 are miscounted."""
    digits = load_digits()
    images = digits.images[..., None] / 8 - 1
    got = confidence(images[:1500], digits.target[:1500], images[1500:])
    assert got.fraction == pytest.approx(0.764, abs=0.01)
    assert len(got.counts) == 10
    assert sum(got.counts) == 297
    assert np.abs(got.counts - np.bincount(digits.target[1500:])).sum() / 2 <= 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.0}, r"threshold must lie in \(0, 1\], got 0"),
        ({"train_labels": np.zeros(900, int)}, "train_labels must be ints from 0 up, of two classes"),
        ({"train_labels": TRAIN[1:]}, r"train_labels must have shape \(900,\)"),
        ({"train_labels": TRAIN.astype(float)}, "train_labels must be ints"),
        ({"images": np.zeros((2, 2, 2, 1))}, "images must have the shape"),
        ({"images": np.full((2, 1, 2, 1), np.nan)}, "images must be finite"),
        ({"images": np.zeros((0, 1, 2, 1))}, "images must hold at least one image"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {"train_images": _toy(TRAIN), "train_labels": TRAIN, "images": _toy(TRAIN)} | change
    with pytest.raises(ValueError, match=message):
        confidence(**arguments)
