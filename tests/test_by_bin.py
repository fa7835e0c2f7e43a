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
