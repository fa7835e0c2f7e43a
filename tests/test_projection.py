"""Principal components of the reference against sets whose directions are known."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from ddpm_jax.evaluation import frechet, projection


def _rotated(n, scales, seed=0):
    """Samples with the given deviations along known directions, the columns of the second result."""
    basis = ortho_group.rvs(len(scales), random_state=1)
    return (np.random.default_rng(seed).normal(size=(n, len(scales))) * scales) @ basis.T + 3, basis


@pytest.mark.parametrize("n", [500, 8])
def test_directions_are_those_of_numpys_covariance(n):
    """Also with fewer images than features, which go another way."""
    x, _ = _rotated(n, np.arange(12, 0, -1))
    found = projection.from_features(x, dims=4)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    np.testing.assert_allclose(found.variances, values[::-1][:4], rtol=1e-10)
    np.testing.assert_allclose(np.abs(found.basis.T @ vectors[:, ::-1][:, :4]), np.eye(4), atol=1e-8)
    assert found.explained == pytest.approx(values[::-1][:4].sum() / values.sum(), rel=1e-10)


def test_features_and_their_moments_give_the_same():
    x, _ = _rotated(40, np.arange(6, 0, -1))
    one, two = projection.from_features(x, 3), projection.from_moments(*frechet.moments(x), 3)
    np.testing.assert_allclose(one.basis, two.basis, atol=1e-10)


def test_large_directions_are_found():
    x, basis = _rotated(4000, np.array([10.0, 0.1, 5.0, 0.2]))
    found = projection.from_features(x, 2)
    np.testing.assert_allclose(np.abs(found.basis.T @ basis[:, [0, 2]]), np.eye(2), atol=0.03)
    assert found.explained > 0.999


def test_the_projected_reference_is_centred_and_uncorrelated():
    x, _ = _rotated(100, np.arange(9, 0, -1))
    found = projection.from_features(x, 5)
    mean, covariance = frechet.moments(projection.project(found, x))
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    np.testing.assert_allclose(covariance, np.diag(found.variances), atol=1e-10)


def test_all_directions_keep_the_distance():
    x, _ = _rotated(50, np.arange(4, 0, -1))
    y = _rotated(60, np.arange(4, 0, -1), seed=2)[0] * 1.1
    found = projection.from_features(x)
    assert found.basis.shape == (4, 4)
    before, after = (
        frechet.frechet_distance(x, y),
        frechet.frechet_distance(*(projection.project(found, s) for s in (x, y))),
    )
    assert after == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize(
    ("n", "d", "wanted"), [(200, 100, 64), (200, 10, 10), (20, 100, 19), (2, 100, 1), (11, 10, 10)]
)
def test_no_more_directions_than_images_or_features_have(n, d, wanted):
    x = np.random.default_rng(0).normal(1e3, 1, size=(n, d)).astype(np.float32)
    found = projection.from_features(x)
    assert found.basis.shape == (d, wanted)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(wanted), atol=1e-10)


def test_features_that_do_not_vary_are_left_out():
    x = np.zeros((50, 8), np.float32)
    x[:, 2], x[:, 5] = np.random.default_rng(0).normal(size=(2, 50))
    assert projection.from_features(x + np.float32(7)).basis.shape == (8, 2)


def test_errors_name_the_argument():
    x = np.random.default_rng(0).normal(size=(9, 3))
    for same in (np.ones((9, 3)), np.full((2, 30), 0.1)):
        with pytest.raises(ValueError, match="are all the same"):
            projection.from_features(same)
    with pytest.raises(ValueError, match="features must hold at least 2 images"):
        projection.from_features(x[:1])
    with pytest.raises(ValueError, match="features must be finite"):
        projection.from_features(x * np.nan)
    with pytest.raises(ValueError, match=r"must be \[D\] and \[D, D\], got \(3,\) and \(2, 2\)"):
        projection.from_moments(np.zeros(3), np.eye(2))
    with pytest.raises(ValueError, match="dims must be at least 1, got 0"):
        projection.from_features(x, 0)
    with pytest.raises(ValueError, match="features must have 3 columns, got 2"):
        projection.project(projection.from_features(x), x[:, :2])
