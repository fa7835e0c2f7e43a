"""The record of a comparison comes back as it was written; differences are read from pairs, and put in plain words."""

import csv
import dataclasses
import json
import math

import made_up
import numpy as np
import pytest

from ddpm_jax.evaluation import comparison
from ddpm_jax.evaluation.paired import Metric, differences, holm, outcome, paired, plus_minus, verdict

A, B = [3.0, 3.2, 2.9, 3.1, 3.0], [2.9, 3.0, 2.9, 2.9, 2.8]
"""B - A is -0.1, -0.2, 0, -0.2, -0.2: mean -0.14, deviation sqrt(0.032 / 4), and t(0.975, 4) = 2.776445."""

BITS = Metric(name="bits/dim", unit="bits/dim", lower_is_better=True, values=np.array([A, B]))


def same(a, b):
    """Equal, NaN with NaN, through records and tuples of records."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(
            same(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a)
        )
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return type(a) is type(b) and a == b


def written(folder):
    """A small comparison with every kind of number, and what was written of it."""
    given = made_up.comparison(2, 3)
    given.eps_error[0, 1, 3:] = np.nan
    given.metrics[0].values[1] = [np.inf, -np.inf, 1e-30]
    given.steps_per_second[1] = np.nan
    given.skipped[1, 2] = 37
    comparison.write(given, folder)
    return given


def test_a_comparison_is_read_as_it_was_written(tmp_path):
    given = written(tmp_path)
    assert same(comparison.read(tmp_path), given)
    fields = ("samples", "cosine", "grad_norm", "grad_noise", "bits_by_bin", "skipped")
    bare = dataclasses.replace(given, **dict.fromkeys(fields))
    comparison.write(bare, tmp_path)
    assert same(comparison.read(tmp_path), bare)
    assert not same(bare, given)


def test_a_file_that_tells_of_no_skipped_steps_is_read(tmp_path):
    given = written(tmp_path)
    path = tmp_path / "results.json"
    plain = json.loads(path.read_text())
    assert plain.pop("skipped") == [[0, 0, 0], [0, 0, 37]]
    path.write_text(json.dumps(plain))
    assert same(comparison.read(tmp_path), dataclasses.replace(given, skipped=None))


def test_results_are_json_that_any_reader_takes(tmp_path):
    given = written(tmp_path)
    text = (tmp_path / "results.json").read_text()
    plain = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} isn't JSON"))
    assert plain["metrics"][0]["values"][1] == ["inf", "-inf", 1e-30]
    assert plain["eps_error"][0][1][3] == [None] * 8
    assert "[ 0, 1, 2 ]" in text  # a list of numbers takes a line
    assert len(text) < 14 * sum(array.size for array in (given.eps_error, given.loss, given.cosine)) + 20000


def test_tables_have_a_line_for_every_member_pair_and_bin(tmp_path):
    given = written(tmp_path)
    names = ("results", "differences", "bins")
    rows = {name: [*csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines())] for name in names}
    assert len(rows["results"]) == 2 * 3 * 3
    assert len(rows["differences"]) == 3
    assert len(rows["bins"]) == 4 * 2 * 3 * 8
    of_fd = [row for row in rows["results"] if row["metric"] == "FD-pixels" and row["variant"] == "min_snr(gamma=5)"]
    assert [row["seed"] for row in of_fd] == ["0", "1", "2"]
    np.testing.assert_array_equal(np.float32([row["value"] for row in of_fd]), given.metrics[1].values[1])
    assert rows["differences"][0]["verdict"].startswith("min_snr(gamma=5) diverged in 2 of 3 seeds, simple in 0;")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda plain: plain.pop("loss"), "a Comparison has the fields"),
        (lambda plain: plain.update(edges=[1, 0]), "edges must be two or more and rise"),
        (lambda plain: plain.update(seeds=[0, 0, 1]), "seeds must be at least one and differ, got 0, 0, 1"),
        (lambda plain: plain.update(steps_per_second=[1]), r"steps_per_second must have shape \(2,\), got \(1,\)"),
        (lambda plain: plain.update(skipped=[1]), r"skipped must have shape \(2, 3\), got \(1,\)"),
        (lambda plain: plain.update(variants=3), "TypeError"),
        (lambda plain: plain.update(metrics=[3]), "AttributeError"),
    ],
)
def test_a_record_of_something_else_is_refused(tmp_path, spoil, said):
    written(tmp_path)
    path = tmp_path / "results.json"
    plain = json.loads(path.read_text())
    spoil(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=rf"holds no record of a comparison: .*{said}"):
        comparison.read(tmp_path)


def test_a_folder_without_results_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        comparison.read(tmp_path)


def test_the_interval_is_that_of_a_paired_t_test():
    found = paired(np.array(A), np.array(B))
    deviation = math.sqrt(0.032 / 4)
    assert found.difference == pytest.approx(-0.14)
    assert found.deviation == pytest.approx(deviation)
    assert found.half_width == pytest.approx(2.776445 * deviation / math.sqrt(5), rel=1e-6)
    assert found.p_value == pytest.approx(0.0249, rel=2e-3)  # t = 3.5, tabled
    assert (found.wins, found.pairs, found.seeds) == (4, 5, 5)


def test_pairs_spare_what_members_of_a_seed_have_in_common():
    found = paired(np.array(A), np.array(B))
    unpaired = math.sqrt(np.var(A, ddof=1) + np.var(B, ddof=1))
    assert found.unpaired_deviation == pytest.approx(unpaired)
    assert found.ratio == pytest.approx(found.deviation / unpaired)
    assert found.ratio < 1
    rng = np.random.default_rng(0)
    apart = paired(*rng.normal(size=(2, 20000)))
    assert apart.ratio == pytest.approx(1, abs=0.02)


def test_higher_is_better_turns_the_winner_and_not_the_difference():
    found = paired(np.array(A), np.array(B), lower_is_better=False)
    assert found.difference == pytest.approx(-0.14)
    assert found.wins == 0
    assert outcome(found) == "worse"


def test_one_seed_has_no_interval_and_its_verdict_says_so():
    found = paired(np.array([3.0]), np.array([2.5]))
    assert (found.difference, found.wins, outcome(found)) == (-0.5, 1, "unknown")
    assert math.isnan(found.half_width)
    assert math.isnan(found.p_value)
    assert math.isnan(found.ratio)
    assert verdict(BITS, "a", "b", found) == "b better than a by 0.5 bits/dim in the only seed: it may be chance"


def test_a_member_that_diverged_is_told_and_not_averaged():
    found = paired(np.array([3.0, 3.1, np.inf, 3.0]), np.array([2.9, np.nan, np.nan, 2.8]))
    assert (found.lost_a, found.lost_b, found.pairs, found.wins, outcome(found)) == (1, 2, 2, 2, "diverged")
    assert found.difference == pytest.approx(-0.15)
    told = verdict(BITS, "a", "b", found)
    assert told.startswith("b diverged in 2 of 4 seeds, a in 1; over the 2 seeds left: no difference seen")
    alone = paired(np.array([3.0]), np.array([np.nan]))
    assert verdict(BITS, "a", "b", alone) == "b diverged in 1 of 1 seed, a in 0: no seed is left to compare"
    none = paired(np.array([3.0, 3.1]), np.array([np.nan, np.inf]))
    assert math.isnan(none.difference)
    assert verdict(BITS, "a", "b", none) == "b diverged in 2 of 2 seeds, a in 0: no seed is left to compare"


def test_verdicts_are_plain_words():
    plain = paired(np.array(A), np.array(B))
    assert verdict(BITS, "simple", "elbo", plain) == "elbo better than simple by 0.14 ± 0.11 bits/dim, 4 of 5 seeds"
    back = paired(np.array(B), np.array(A))
    assert verdict(BITS, "elbo", "simple", back) == (
        "simple worse than elbo by 0.14 ± 0.11 bits/dim, 0 of 5 seeds better"
    )
    small = paired(np.array(A[:3]), np.array([3.01, 3.19, 2.89]))
    assert verdict(BITS, "simple", "p2", small) == (
        "no difference seen between p2 and simple: -0.003 ± 0.029 bits/dim, 2 of 3 seeds better"
    )
    recall = Metric(name="recall", unit="", lower_is_better=False, values=BITS.values)
    assert "by 0.14 ± 0.11 in recall" in verdict(recall, "a", "b", back)
    equal = paired(np.array(A), np.array(A))
    assert verdict(BITS, "a", "b", equal) == "no difference seen between b and a: 0 ± 0 bits/dim, 0 of 5 seeds better"
    assert equal.p_value == 1


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (0.02112, 0.00613, "0.021 ± 0.006"),
        (-0.003, 0.01, "-0.003 ± 0.010"),
        (-0.0001, 0.02, "0.000 ± 0.020"),
        (0.0061, 0.0059, "0.0061 ± 0.0059"),  # "0.006 ± 0.006" would hide which is larger
        (12345, 678, "12300 ± 700"),
        (1.5e-10, 2e-10, "1.5e-10 ± 2e-10"),
        (0.5, math.nan, "0.5"),
    ],
)
def test_digits_are_those_that_the_interval_has_a_use_for(value, half, text):
    assert plus_minus(value, half) == text


def test_holm_adjusts_the_smallest_most_and_keeps_the_order():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, math.nan, 0.6, 0.7]), [0.03, math.nan, 1, 1])
    assert holm([]).shape == (0,)


def test_every_variant_is_held_against_the_first():
    metric = made_up.comparison().metrics[0]
    found = differences(metric, made_up.NAMES)
    assert [each.name for each in found] == list(made_up.NAMES[1:])
    for each, values in zip(found, metric.values[1:], strict=True):
        assert each.paired == paired(metric.values[0], values)
        assert each.holm >= each.paired.p_value
        assert each.name in each.verdict
