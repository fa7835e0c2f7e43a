"""What keeps a prediction of x_0 in range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.levels import visit
from ddpm_jax.diffusion.parameterization import PREDICTIONS, convert
from ddpm_jax.sampling import ask, thresholds


def test_the_dynamic_threshold_divides_each_image_by_its_own_quantile_if_that_is_above_one():
    small = np.linspace(-0.9, 0.9, 101)
    large = np.linspace(-3.0, 3.0, 101)
    got = thresholds.dynamic(0.9)(jnp.asarray(np.stack([small, large])))
    edge = np.quantile(np.abs(large), 0.9)
    np.testing.assert_allclose(got, [small, np.clip(large, -edge, edge) / edge], rtol=1e-6, atol=1e-7)
    assert thresholds.dynamic(0.9) is thresholds.dynamic(0.9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [True, thresholds.dynamic(0.5)])
def test_clipping_is_of_x_0_whatever_is_predicted_and_eps_follows(prediction, clip):
    """x = alpha x_0 + sigma eps holds again after it, and all predictions are clipped alike."""
    schedule = schedules.linear()
    x_0, eps = 2 * jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    level = visit(schedule, [400, -1]).read(0)
    x = level.alpha * x_0 + level.sigma * eps
    said = convert(schedule, x_0, x, jnp.full(3, 400), source="x0", target=prediction)
    answer = ask(lambda x_t, time: said, prediction=prediction, clip=clip)(x, level)
    wanted = jnp.clip(x_0, -1, 1) if clip is True else clip(x_0)
    np.testing.assert_allclose(answer.x_0, wanted, atol=2e-4)
    np.testing.assert_allclose(level.alpha * answer.x_0 + level.sigma * answer.eps, x, atol=1e-5)


@pytest.mark.parametrize("quantile", [0.0, 1.5])
def test_quantiles_that_are_none_are_refused(quantile):
    with pytest.raises(ValueError, match=rf"quantile must lie in \(0, 1\], got {quantile}"):
        thresholds.dynamic(quantile)
