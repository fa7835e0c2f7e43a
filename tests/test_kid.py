"""The kernel distance against cases that can be worked out by hand."""

import numpy as np
import pytest

from ddpm_jax.evaluation import kid


def test_by_hand_of_two_and_two_images():
    """D = 1: k(0, 1) = k(0, 2) = 1 within the sets; across, 1, 1, 1 and (1 * 2 + 1)^3 = 27: 1 + 1 - 2 * 30/4 = -13."""
    found = kid.kid(np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]]))
    assert found.value == pytest.approx(-13, rel=1e-12)
    assert found.standard_error is None, "two images tell no error"


def test_features_are_divided_by_their_number():
    """k = (x.y / D + 1)^3: of ones and twos in 4 dimensions 8, 125 within and 27 across."""
    found = kid.kid(np.ones((5, 4)), np.full((3, 4), 2.0))
    assert found.value == pytest.approx(8 + 125 - 2 * 27, rel=1e-12)


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(23, 3)).astype(np.float32), rng.normal(1, 1, size=(31, 3)).astype(np.float32)
    whole = kid.kid(x, y)
    monkeypatch.setattr(kid, "ROWS", 4)
    monkeypatch.setattr(kid, "COLUMNS", 7)
    found = kid.kid(x, y)
    assert found.value == pytest.approx(whole.value, rel=1e-10)
    assert found.standard_error == pytest.approx(whole.standard_error, rel=1e-10)


def test_expectation_of_gaussians_in_one_dimension():
    """E (xy + 1)^3 = 1 + 3 E[x]E[y] + 3 E[x^2]E[y^2] + E[x^3]E[y^3]; so MMD^2 = 3 (m1 - m2)^2 + 3 (...)^2 + (...)^2.

    Of N(0, 1) and N(0.5, 1): the first three moments differ by 0.5, 0.25 and 1.625.
    """
    rng = np.random.default_rng(0)
    found = kid.kid(rng.normal(size=(3000, 1)), rng.normal(0.5, 1, size=(3000, 1)))
    assert abs(found.value - (3 * 0.5**2 + 3 * 0.25**2 + 1.625**2)) < 3 * found.standard_error
    assert found.standard_error < 0.6


def test_unbiased_at_zero_within_its_error_and_covered():
    """60 pairs of sets of one law: the mean is 0, the errors are as large as the spread, and intervals cover 0."""
    rng = np.random.default_rng(0)
    found = [kid.kid(*rng.normal(size=(2, 80, 8))) for _ in range(60)]
    values, errors = np.array([(one.value, one.standard_error) for one in found]).T
    assert abs(values.mean()) < 3 * values.std(ddof=1) / np.sqrt(60)
    assert values.min() < 0 < values.max()
    assert 0.8 < np.sqrt((errors**2).mean()) / values.std(ddof=1) < 1.2
    assert sum(one.low <= 0 <= one.high for one in found) >= 54


def test_error_of_coins_by_hand():
    """x = 1 or -1, equally often, in both sets: nothing is left but pairs, whose (xy + 1)^3 - 4 has variance 16.

    It stands for N (N - 1)/2 pairs twice and N^2 once, with weight 2: 16 (2 + 2 + 4) / N^2, nearly.
    """
    coins = np.tile([[1.0], [-1.0]], (500, 1))
    assert kid.kid(coins, coins).standard_error == pytest.approx(np.sqrt(128) / 1000, rel=0.01)


def test_error_is_the_spread_where_laws_differ():
    """The mean over 1-d laws is known, 1-in-20 misses allowed for."""
    rng = np.random.default_rng(1)
    found = [kid.kid(rng.normal(size=(60, 1)), rng.normal(1, 1, size=(90, 1))) for _ in range(80)]
    values, errors = np.array([(one.value, one.standard_error) for one in found]).T
    expected = 3 * 1 + 3 * (2 - 1) ** 2 + (1 + 3) ** 2
    assert abs(values.mean() - expected) < 3 * values.std(ddof=1) / np.sqrt(80)
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.25)


def test_subsets_do_not_overlap_and_agree_with_the_whole():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 4)), rng.normal(0.3, 1, size=(650, 4))
    whole, found = kid.kid(x, y), kid.kid_of_subsets(x, y, size=60)
    assert found.how == "10 subsets of 60"
    assert abs(found.value - whole.value) < 3 * found.standard_error
    assert found.standard_error < 3 * whole.standard_error, "ten of them together know what all of them do"
    # Each image in one subset: with an additive part alone (a far mean) the subsets' mean is that of all images used.
    one, two = kid.kid_of_subsets(x[:4] + 100, y[:4], size=2, seed=1), kid.kid_of_subsets(x[:4] + 100, y[:4], size=2)
    assert one.value == pytest.approx(two.value, rel=0.05)


def test_identical_images_are_no_trouble():
    same = np.ones((10, 3))
    found = kid.kid(same, same)
    assert (found.value, found.standard_error, found.low, found.high) == (0, 0, 0, 0)


def test_errors_name_the_argument():
    x = np.zeros((4, 3))
    with pytest.raises(ValueError, match=r"y must hold images of the shape of x's, \(3,\), got \(2,\)"):
        kid.kid(x, np.zeros((4, 2)))
    with pytest.raises(ValueError, match="x must hold at least 2 images"):
        kid.kid(x[:1], x)
    with pytest.raises(ValueError, match="y must be finite, got NaN or infinity in 12 of 12"):
        kid.kid(x, np.full((4, 3), np.inf))
    with pytest.raises(ValueError, match="y must hold at least 2 images"):
        kid.kid(x, np.zeros((0, 3)))
    with pytest.raises(ValueError, match="at least 2 subsets of sets of 4 and 4 images, got 1000"):
        kid.kid_of_subsets(x, x)
