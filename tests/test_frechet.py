"""The Frechet distance against closed forms."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from ddpm_jax.evaluation import frechet


def _rng():
    return np.random.default_rng(0)


def test_moments_are_numpys_mean_and_unbiased_covariance():
    x = _rng().normal(size=(20, 2, 3))
    mean, covariance = frechet.moments(x.astype(np.float32))
    assert covariance.dtype == np.float64
    np.testing.assert_allclose(mean, x.reshape(20, 6).mean(0), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(x.reshape(20, 6), rowvar=False), rtol=1e-5, atol=1e-6)


def test_one_dimension_is_the_difference_of_means_and_of_deviations():
    distance = frechet.frechet(np.array([1.0]), np.array([[4.0]]), np.array([-2.0]), np.array([[0.25]]))
    assert distance == pytest.approx((1 + 2) ** 2 + (2 - 0.5) ** 2, rel=1e-12)


@pytest.mark.parametrize("rotated", [False, True])
def test_covariances_that_commute(rotated):
    """With shared eigenvectors it is |mu_1 - mu_2|^2 + sum (s_1 - s_2)^2, whatever the axes."""
    rng, d = _rng(), 6
    basis = ortho_group.rvs(d, random_state=1) if rotated else np.eye(d)
    s1, s2, shift = rng.uniform(0.1, 3, d), rng.uniform(0.1, 3, d), rng.normal(size=d)
    cov1, cov2 = ((basis * s**2) @ basis.T for s in (s1, s2))
    expected = (shift**2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet.frechet(np.zeros(d), cov1, shift, cov2) == pytest.approx(expected, rel=1e-10)


def test_two_by_two_covariances_that_do_not_commute():
    """tr (S1 S2)^{1/2} = sqrt(tr S1 S2 + 2 sqrt(det S1 S2)) in two dimensions."""
    s1, s2 = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    cross = np.sqrt(np.trace(s1 @ s2) + 2 * np.sqrt(np.linalg.det(s1 @ s2)))
    expected = np.trace(s1) + np.trace(s2) - 2 * cross
    assert frechet.frechet(np.zeros(2), s1, np.zeros(2), s2) == pytest.approx(expected, rel=1e-12)


def test_singular_covariances():
    """Of rank one along u and v: tr (S1 S2)^{1/2} = |u . v|; orthogonal ones share nothing."""
    u, v = np.array([3.0, 0.0, 4.0]), np.array([1.0, 2.0, 0.0])
    s1, s2, zero = np.outer(u, u), np.outer(v, v), np.zeros(3)
    assert frechet.frechet(zero, s1, zero, s2) == pytest.approx(25 + 5 - 2 * 3, rel=1e-7)
    e1, e2 = np.diag([1.0, 0, 0]), np.diag([0, 1.0, 0])
    assert frechet.frechet(zero, e1, zero, e2) == pytest.approx(2, rel=1e-12)
    assert frechet.frechet(zero, np.zeros((3, 3)), zero, s2) == pytest.approx(5, rel=1e-12)


@pytest.mark.parametrize("n", [10, 500])
def test_identical_sets_are_at_distance_zero(n):
    """Also with fewer samples than features, where covariances are singular."""
    x = _rng().normal(size=(n, 8, 8, 1))
    assert frechet.frechet_distance(x, x) < 1e-10


@pytest.mark.parametrize("n", [2, 7, 30])
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_few_samples_of_many_features_are_measured_as_their_covariances_are(n, rank):
    """Products of samples in place of covariances of features: also where both sets lie in few directions."""
    rng = _rng()
    x, y = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, 40)), rng.normal(size=(n + 3, rank)) + 1
    y = y @ rng.normal(size=(rank, 40))
    expected = frechet.frechet(*frechet.moments(x), *frechet.moments(y))
    assert frechet.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_features_that_are_always_0_change_nothing():
    """They make the number of features exceed that of samples, which takes another way to the same distance."""
    rng = _rng()
    x, y = rng.normal(size=(50, 6)), rng.normal(0.2, 2, size=(60, 6))
    wide = [np.pad(each, [(0, 0), (0, 100)]) for each in (x, y)]
    assert frechet.frechet_distance(*wide) == pytest.approx(frechet.frechet_distance(x, y), rel=1e-10)


def test_large_images_need_no_covariance():
    """196,608 features: a covariance of theirs would take 309 GB. A shift adds its square."""
    x = _rng().normal(size=(4, 256, 256, 3)).astype(np.float32)
    assert frechet.frechet_distance(x, x + np.float32(0.5)) == pytest.approx(0.25 * 256 * 256 * 3, rel=1e-5)
    assert frechet.with_floor(x, x, x).distance < 1e-6


def test_symmetric():
    rng = _rng()
    x, y = rng.normal(size=(30, 5)), rng.normal(1, 2, size=(40, 5))
    assert frechet.frechet_distance(x, y) == pytest.approx(frechet.frechet_distance(y, x), rel=1e-10)


def test_a_shift_of_every_sample_adds_its_square():
    x, shift = _rng().normal(size=(30, 5)), np.arange(5)
    assert frechet.frechet_distance(x, x + shift) == pytest.approx(30, rel=1e-10)


def test_floor_and_distance_are_measured_at_equal_n():
    rng = _rng()
    samples, train, held_out = (rng.normal(size=(n, 2, 2)) for n in (50, 90, 40))
    got = frechet.with_floor(samples, train, held_out, seed=3)
    real = frechet.subset(train, 40, 3)
    assert got.num_images == 40
    assert got.floor == pytest.approx(frechet.frechet_distance(held_out, real), rel=1e-12)
    assert got.distance == pytest.approx(frechet.frechet_distance(frechet.subset(samples, 40, 3), real), rel=1e-12)
    assert got.distance != pytest.approx(frechet.frechet_distance(samples, train), rel=1e-3), "all of them, unequal n"


def test_floor_is_the_distance_when_the_samples_are_real():
    """Equal n takes the bias out of the comparison: two draws of the training law differ by chance only."""
    rng = _rng()
    train, held_out, samples = (rng.normal(size=(n, 64)) for n in (1500, 300, 1500))
    got = frechet.with_floor(samples, train, held_out)
    assert got.distance == pytest.approx(got.floor, rel=0.1)
    assert got.floor > 2 * frechet.frechet_distance(samples, train), "most of it is the bias of a small n"


def test_subset_draws_different_samples_each_once():
    x = np.arange(100)
    drawn = frechet.subset(x, 30, seed=0)
    assert len(set(drawn)) == 30
    np.testing.assert_array_equal(drawn, frechet.subset(x, 30, seed=0))
    assert set(drawn) != set(frechet.subset(x, 30, seed=1))
    np.testing.assert_array_equal(frechet.subset(x, 100, seed=1), x)


def test_errors_name_the_argument():
    x = np.zeros((4, 3))
    with pytest.raises(ValueError, match=r"y must hold samples of the shape of x's, \(3,\), got \(2,\)"):
        frechet.frechet_distance(x, np.zeros((4, 2)))
    with pytest.raises(ValueError, match="y must hold at least 2 samples"):
        frechet.frechet_distance(x, np.zeros((1, 3)))
    with pytest.raises(ValueError, match="y must be finite, got NaN or infinity in 12 of 12"):
        frechet.frechet_distance(x, np.full((4, 3), np.nan))
    with pytest.raises(ValueError, match="x must be finite, got NaN or infinity in 1 of 20"):
        frechet.frechet_distance(np.where(np.arange(20) == 3, np.nan, 0.0).reshape(2, 10), np.zeros((2, 10)))
    with pytest.raises(ValueError, match="held_out must hold samples of the shape of train's"):
        frechet.with_floor(x, x, np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"cov2 must have shape \(2, 2\)"):
        frechet.frechet(np.zeros(2), np.eye(2), np.zeros(2), np.eye(3))


@pytest.mark.parametrize(("n", "m", "d"), [(30, 50, 5), (12, 40, 20), (8, 9, 20)])
def test_the_error_is_that_of_derivatives_by_each_images_weight(n, m, d):
    """By finite differences: with more images than features, with fewer, and with the set's covariance singular."""
    rng = _rng()
    x, y = rng.normal(size=(n, d)) * np.linspace(1, 2, d), rng.normal(0.5, 1.5, size=(m, d))
    of_y = (y - y.mean(0)) / np.sqrt(m - 1)

    def distance(weights):
        weights = weights / weights.sum()
        mean = weights @ x
        of_x = (x - mean) * np.sqrt(weights * n / (n - 1))[:, None]
        cross = np.linalg.svd(of_x @ of_y.T, compute_uv=False).sum()
        return ((mean - y.mean(0)) ** 2).sum() + (of_x**2).sum() + (of_y**2).sum() - 2 * cross

    steps = 1e-4 * np.eye(n)
    slopes = np.array([(distance(1 + step) - distance(1 - step)) / 2e-4 for step in steps])
    found = frechet.frechet_estimate_to(x, *frechet.moments(y))
    assert found.value == pytest.approx(distance(np.ones(n)), rel=1e-6)
    assert found.value == pytest.approx(frechet.frechet_distance(x, y), rel=1e-6)
    assert found.standard_error == pytest.approx(np.sqrt((slopes**2).sum() * n / (n - 1)), rel=1e-4)


def test_one_dimensional_error_has_its_closed_form():
    """(m1 - m2)^2 with known spread: far apart its error is 2 |m1 - m2| that of the difference of means."""
    x, y = _rng().normal(size=(2, 400, 1))
    found = frechet.frechet_estimate(x, y + 1000)
    expected = 2 * 1000 * np.sqrt((x.var() + y.var()) / 400)
    assert found.standard_error == pytest.approx(expected, rel=0.01)


def test_interval_covers_what_so_many_images_give_on_average():
    """60 draws of 8-d Gaussians: 95 % where they differ; where they don't, more, as the error is too large there."""
    rng = _rng()
    for shift, least, ratio in ((0.0, 56, (1.0, 2.0)), (0.6, 52, (0.75, 1.35))):
        found = [frechet.frechet_estimate(rng.normal(size=(150, 8)), rng.normal(shift, 1, (150, 8))) for _ in range(60)]
        values = np.array([one.value for one in found])
        assert sum(one.low <= values.mean() <= one.high for one in found) >= least
        assert ratio[0] < np.mean([one.standard_error for one in found]) / values.std(ddof=1) < ratio[1]


def test_estimate_to_a_reference_takes_it_as_it_is():
    """The same distance as to the set that the reference is of, and the part of the error that is x's."""
    rng = _rng()
    x, y = rng.normal(size=(80, 6)), rng.normal(0.3, 1.2, size=(70, 6))
    one, other = (frechet.frechet_estimate_to(a, *frechet.moments(b)) for a, b in ((x, y), (y, x)))
    both = frechet.frechet_estimate(x, y)
    assert one.value == pytest.approx(both.value, rel=1e-9)
    assert both.value == pytest.approx(frechet.frechet_distance(x, y), rel=1e-9)
    assert np.hypot(one.standard_error, other.standard_error) == pytest.approx(both.standard_error, rel=1e-9)
    assert frechet.frechet_estimate_to(x[:4], *frechet.moments(y)).value > both.value, "fewer images than features"


def test_estimates_of_degenerate_sets():
    same = np.full((5, 3), 0.25)
    found = frechet.frechet_estimate(same, same + 2)
    assert (found.value, found.standard_error) == (pytest.approx(12), 0)
    assert frechet.frechet_estimate(same, same).value == 0
    with pytest.raises(ValueError, match="x must hold at least 2 samples"):
        frechet.frechet_estimate(same[:1], same)
    with pytest.raises(ValueError, match="y must be finite"):
        frechet.frechet_estimate(same, same * np.nan)
    with pytest.raises(ValueError, match="covariance must be finite"):
        frechet.frechet_estimate_to(same, np.zeros(3), np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match=r"covariance must have shape \(3, 3\) as x has 3 features, got \(2, 2\)"):
        frechet.frechet_estimate_to(same, np.zeros(3), np.eye(2))
