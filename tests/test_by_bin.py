"""The bound and the error of eps by noise level, of networks whose answers are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.diffusion import bins, bound, schedules
from ddpm_jax.evaluation import by_bin

KEY = jax.random.key(4)
SCHEDULE = schedules.cosine(60)
EDGES = np.asarray(bins.edges(SCHEDULE, 5))
RNG = np.random.default_rng(0)
IMAGES = (np.rint(RNG.uniform(0, 255, (40, 4, 4, 1))) / 127.5 - 1).astype(np.float32)
GUESS = jax.tree_util.Partial(lambda slope, x_t, time: slope * x_t, jnp.float32(0.7))


def read(rows):
    return IMAGES[rows], None


def measured(schedule=SCHEDULE, **options: Any):
    return by_bin.measure(KEY, schedule, GUESS, read, len(IMAGES), edges=EDGES, **({"of_each": 400} | options))


def test_the_shares_add_up_to_the_bound_over_all_steps():
    found = measured()
    whole = bound.bits_per_dim(jax.random.key(5), SCHEDULE, GUESS, jnp.asarray(IMAGES))
    assert abs(found.bits_per_dim - float(whole.total.mean())) < 3 * found.standard_error
    assert found.standard_error < 0.01 * found.bits_per_dim
    terms, bin_of = np.asarray(whole.terms).mean(axis=0), np.asarray(bins.of_steps(SCHEDULE, jnp.asarray(EDGES)))
    np.testing.assert_allclose(found.bits, [terms[bin_of == i].sum() for i in range(5)], rtol=0.05)
    np.testing.assert_allclose(found.bits.sum() + float(whole.prior.mean()), found.bits_per_dim, rtol=1e-6)


def test_the_error_of_eps_is_that_of_the_known_answer():
    """slope x_t - eps = slope alpha x_0 + (slope sigma - 1) eps."""
    found = measured()
    alpha, sigma = (np.float64(table) for table in (SCHEDULE.sqrt_alpha_bars, SCHEDULE.sqrt_one_minus_alpha_bars))
    error = 0.49 * alpha**2 * (IMAGES.astype(np.float64) ** 2).mean() + (0.7 * sigma - 1) ** 2
    bin_of = np.asarray(bins.of_steps(SCHEDULE, jnp.asarray(EDGES)))
    np.testing.assert_allclose(found.eps_error, [error[bin_of == i].mean() for i in range(5)], rtol=0.05)
    assert abs(found.simple - error.mean()) < 3 * found.simple_error


def test_the_standard_error_is_the_deviation_over_keys():
    keys = jax.random.split(KEY, 40)
    found = [by_bin.measure(key, SCHEDULE, GUESS, read, 40, edges=EDGES, of_each=40) for key in keys]
    deviation = np.std([one.bits_per_dim for one in found], ddof=1)
    assert 0.6 < np.mean([one.standard_error for one in found]) / deviation < 1.7


@pytest.mark.parametrize("of_each", [16, 64])
def test_few_t_of_many_find_the_bound(of_each):
    """One bin of 1000 steps: t = 0 and the steps after it, a good part of the bound, are neither missed nor doubled."""
    schedule = schedules.cosine(1000)
    whole = bound.bits_per_dim(jax.random.key(5), schedule, GUESS, jnp.asarray(IMAGES))
    total, own_error = float(whole.total.mean()), float(whole.total.std() / np.sqrt(len(IMAGES)))
    edges, found = np.asarray(bins.edges(schedule, 1)), []
    for key in jax.random.split(KEY, 8):
        found.append(by_bin.measure(key, schedule, GUESS, read, 40, edges=edges, of_each=of_each))
        assert abs(found[-1].bits_per_dim - total) < 4 * np.hypot(found[-1].standard_error, own_error)
    assert np.mean([one.standard_error for one in found]) < 3 / np.sqrt(of_each)
    assert np.std([one.bits_per_dim for one in found]) < 5 / np.sqrt(of_each)
    assert float(whole.distortion.mean()) > 2  # what a missed t = 0 would take off


def test_t_0_alone_in_its_bin_is_all_of_it():
    """With the image known, and the posterior's variance, no step but the last costs anything."""
    schedule, grey = schedules.cosine(50), np.full((1, 2, 2, 1), 1 / 255, np.float32)
    known = jax.tree_util.Partial(lambda level, x_t, time: jnp.full_like(x_t, level), jnp.float32(1 / 255))
    told = {"prediction": "x0", "variance": "small"}
    edges = np.array([-12, (schedule.log_snr[0] + schedule.log_snr[1]) / 2, 12])
    one = by_bin.measure(KEY, schedule, known, lambda rows: (grey[0 * rows], None), 1, edges=edges, of_each=2, **told)
    bits = float(bound.bits_per_dim(KEY, schedule, known, jnp.asarray(grey), **told).distortion[0])
    assert bits > 0.5
    np.testing.assert_allclose(one.bits, [0, bits], rtol=1e-5, atol=1e-4)


def test_every_bin_sees_all_kinds_of_a_sorted_set_and_none_twice():
    """A batch is a bin's pairs here, or those of t = 0: rows come from anywhere, and don't rise with t."""
    seen: dict[int, list[np.ndarray]] = {4: [], 5: []}
    for seed, batches in seen.items():
        for _ in range(2):

            def rows_kept(rows: np.ndarray, kept: list[np.ndarray] = batches):
                kept.append(rows)
                return IMAGES[rows], None

            key = jax.random.key(seed)
            by_bin.measure(key, SCHEDULE, GUESS, rows_kept, 40, edges=EDGES, of_each=20, batch_size=20)
    drawn = np.array(seen[4][:6])
    assert all(len({*rows}) == 20 for rows in drawn)
    assert (abs((drawn < 20).mean(axis=1) - 0.5) < 0.4).all()
    assert max(abs(np.corrcoef(np.arange(20), rows)[0, 1]) for rows in drawn) < 0.7
    assert np.bincount(drawn.ravel(), minlength=40).tolist() == [3] * 40
    np.testing.assert_array_equal(seen[4][7:13], drawn)  # the same for the next network
    assert (seen[5][0] != drawn[0]).any()


def test_a_network_that_is_lost_has_no_bound():
    lost = jax.tree_util.Partial(GUESS.func, jnp.float32(np.nan))
    found = by_bin.measure(KEY, SCHEDULE, lost, read, len(IMAGES), edges=EDGES, of_each=20)
    assert np.isnan([found.bits_per_dim, found.simple, *found.bits]).all()


@pytest.mark.parametrize("batch_size", [7, 64])
def test_batches_and_devices_change_nothing(batch_size):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    on_devices = NamedSharding(mesh, PartitionSpec("data"))
    one, other = measured(of_each=20), measured(of_each=20, batch_size=batch_size, sharding=on_devices)
    np.testing.assert_allclose(one.bits, other.bits, rtol=1e-5)
    np.testing.assert_allclose(one.eps_error, other.eps_error, rtol=1e-5)


def test_a_bin_without_steps_has_no_share_and_no_error():
    found = measured(schedules.cosine(3), of_each=8)
    empty = np.isnan(found.eps_error)
    assert 0 < empty.sum() < 5
    np.testing.assert_array_equal(found.bits[empty], 0)
    assert np.isfinite([found.bits_per_dim, found.simple, found.standard_error]).all()


def test_one_pair_has_no_standard_error():
    with pytest.raises(ValueError, match="of_each must be at least 2 for a standard error, got 1"):
        measured(of_each=1)
