"""The exponents that benchmarks/growth.py fits, on points that are known."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def growth():
    """The program: it imports its siblings, as Python does when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("growth")
        for name in ("growth", "machine", "sides"):
            sys.modules.pop(name)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_a_power_law_has_its_exponent(growth, power):
    x = [1, 2, 4, 8, 16, 32]
    fit = growth.exponent(x, [3 * n**power for n in x])
    assert fit["exponent"] == pytest.approx(power)
    assert fit["error"] == pytest.approx(0, abs=1e-9)
    assert (fit["from"], fit["to"]) == (8, 32)


def test_a_constant_that_small_points_cost_is_left_out(growth):
    """y = 100 + x is flat below 100, and x above."""
    x = np.logspace(0, 8, 17)
    assert growth.exponent(x, 100 + x)["exponent"] == pytest.approx(1, abs=0.01)
    assert growth.exponent(x[:9], 100 + x[:9])["exponent"] < 0.9


def test_at_least_three_points_are_used(growth):
    fit = growth.exponent([8, 16, 32, 64], [1.0, 4.0, 16.0, 64.0])
    assert (fit["from"], fit["to"]) == (16, 64)


def test_the_error_is_that_of_a_line_by_least_squares(growth):
    """log y = 0, 1, 3 at log x = 0, 1, 2: slope 3/2, residuals 1/6, -1/3, 1/6, so that the error is sqrt(1/6 / 2)."""
    fit = growth.exponent(np.exp([0.0, 1.0, 2.0]), np.exp([0.0, 1.0, 3.0]))
    assert fit["exponent"] == pytest.approx(1.5)
    assert fit["error"] == pytest.approx((1 / 12) ** 0.5)


def test_what_is_not_positive_or_counts_repetitions_has_no_exponent(growth):
    points = [{"x": x, "seconds": x, "memory": x - 1, "times": 5} for x in (1, 2, 4)]
    assert set(growth.fitted(points)) == {"seconds"}
    assert growth.fitted(points[:2]) == {}
