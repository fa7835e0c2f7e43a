"""The classical Runge-Kutta method and exponential ones: their order, and the conditions for it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import solvers

from ddpm_jax.sampling import ddim
from ddpm_jax.sampling.runge_kutta import TABLEAUS, exponential, rk4


@pytest.fixture(autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    ("sampler", "published"),
    [(rk4(), 4), (rk4(straight=True), 4)] + [(exponential(order=order), order) for order in (2, 3, 4)],
    ids=["rk4", "rk4 straight", "exponential 2", "exponential 3", "exponential 4"],
)
def test_the_order_of_convergence_is_the_published_one(sampler, published):
    for name, bend in {"vp": 1.0, "ve": 0.0, "flow": 0.0}.items():
        assert solvers.order(sampler, name, bend=bend) == pytest.approx(published, abs=0.15), name


def phi(k, z):
    """Its integral, by Gauss and Legendre's rule with 60 nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    r = (nodes + 1) / 2
    return float(weights @ (np.exp((1 - r) * z) * r ** (k - 1) / math.factorial(k - 1)) / 2)


def values(weights, z):
    return np.array([0.0 if weight is None else float(weight(jnp.asarray(z))) for weight in weights])


def missing(tableau, j, z):
    """What Hochbruck & Ostermann 2005 call psi_j, and psi_{j,i} of each later stage; j >= 2 leaves out the first."""
    nodes = np.array(tableau.nodes)
    end = phi(j, z) - values(tableau.end, z) @ nodes ** (j - 1) / math.factorial(j - 1)
    inner = [
        phi(j, c * z) * c**j - values(row, z) @ nodes[: len(row)] ** (j - 1) / math.factorial(j - 1)
        for c, row in zip(nodes, tableau.stages, strict=True)
    ]
    return end, np.array(inner)


@pytest.mark.parametrize("order", TABLEAUS)
def test_the_conditions_for_the_stiff_order_hold(order):
    """Ibid., Table 1: psi_2 = 0 for order 2; psi_3 = 0, in the weak form at 0, and sum_i b_i J psi_{2,i} = 0 for 3.

    J commutes with nothing: b and psi are taken at different z. psi_1 = psi_{1,i} = 0 by construction.
    """
    tableau = TABLEAUS[order]
    assert len(tableau.nodes) == order - 1
    for z in (-0.01, -1.0, -30.0):
        assert missing(tableau, 2, z)[0] == pytest.approx(0, abs=1e-12)
        for w in (-0.02, -2.0, -10.0):
            of_stages = values(tableau.end, z) @ missing(tableau, 2, w)[1]
            assert (abs(of_stages) < 1e-12) == (order > 2)
    assert (abs(missing(tableau, 3, 0.0)[0]) < 1e-12) == (order > 2)
    if order == 4:
        assert missing(tableau, 3, -5.0)[0] == pytest.approx(0, abs=1e-12)


def test_settings_are_bound_once_and_bad_ones_refused():
    assert exponential(order=1) is ddim()
    assert exponential(order=4.0) is exponential(order=4)  # pyright: ignore[reportArgumentType]
    assert rk4(straight=False) is rk4()
    with pytest.raises(ValueError, match="order must be a whole number from 1 to 4, got 5"):
        exponential(order=5)
