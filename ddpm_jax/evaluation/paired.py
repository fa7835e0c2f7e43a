"""One metric of several variants over the same seeds: paired differences, their intervals, and plain words for them.

Members of one seed share their chance (common random numbers), so what counts is the difference within each seed: the
interval is that of a paired t test. No normal distribution of the members themselves is assumed, only of differences.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Metric:
    """One figure for every member."""

    name: str
    unit: str
    """Empty if it has none."""
    lower_is_better: bool
    values: np.ndarray
    """[V, S]; NaN or infinite for a member that diverged."""
    standard_error: np.ndarray | None = None
    """Of each member's own measurement [V, S]."""

    @property
    def title(self) -> str:
        """The name, and the unit where it says more."""
        return self.name if self.unit in ("", self.name) else f"{self.name}, {self.unit}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paired:
    """What b has over a, seed by seed. Only pairs of which both are finite are counted, but for `wins`."""

    difference: float
    """Mean of b - a; NaN without a pair."""
    half_width: float
    """Of its 95 % interval by Student's t; NaN for fewer than two pairs."""
    p_value: float
    """Two-sided, of the paired t test."""
    wins: int
    """Seeds in which b is better; who diverges is worse than who doesn't."""
    seeds: int
    pairs: int
    lost_a: int
    """Seeds in which a diverged."""
    lost_b: int
    deviation: float
    """Of the differences b - a."""
    unpaired_deviation: float
    """What it would be if a and b had nothing in common: sqrt(var a + var b)."""
    lower_is_better: bool

    @property
    def ratio(self) -> float:
        """Paired over unpaired deviation: the smaller, the more common random numbers spare."""
        return self.deviation / self.unpaired_deviation if self.unpaired_deviation > 0 else math.nan


def paired(a: np.ndarray, b: np.ndarray, *, lower_is_better: bool = True) -> Paired:
    """Compare b with a, both [S], entry by entry.

    Raises:
        ValueError: for other shapes.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(f"a and b must share one shape [S], got {a.shape} and {b.shape}")
    here_a, here_b = np.isfinite(a), np.isfinite(b)
    both = here_a & here_b
    gain = np.where(both, (a - b) if lower_is_better else (b - a), 0)
    d, n = (b - a)[both], int(both.sum())
    mean = float(d.mean()) if n else math.nan
    deviation = unpaired = half = p = math.nan
    if n > 1:
        deviation, unpaired = float(d.std(ddof=1)), math.hypot(a[both].std(ddof=1), b[both].std(ddof=1))
        error = deviation / math.sqrt(n)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
        p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    return Paired(
        difference=mean,
        half_width=half,
        p_value=p,
        wins=int(((gain > 0) | (here_b & ~here_a)).sum()),
        seeds=len(a),
        pairs=n,
        lost_a=int((~here_a).sum()),
        lost_b=int((~here_b).sum()),
        deviation=deviation,
        unpaired_deviation=unpaired,
        lower_is_better=lower_is_better,
    )


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values of one family of comparisons, adjusted for their number (Holm 1979). NaN stays, and isn't counted."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def outcome(paired: Paired) -> str:
    """ "better" or "worse" if the interval leaves out 0, "none" if it doesn't, "unknown" for fewer than two pairs.

    "diverged" if a member did: the interval then speaks of the seeds that are left.
    """
    if paired.lost_a or paired.lost_b:
        return "diverged"
    if math.isnan(paired.half_width):
        return "unknown"
    if abs(paired.difference) <= paired.half_width:
        return "none"
    return "better" if (paired.difference < 0) == paired.lower_is_better else "worse"


def plus_minus(value: float, half: float, digits: int | None = None) -> str:
    """ "0.021 ± 0.006", to so many decimal places, or as many as `half` has a use for.

    Never so few that the two look equal, or in another order, where `half` decides on a difference.
    """
    if not math.isfinite(half) or half == 0:
        return f"{value:.4g}" + (" ± 0" if half == 0 else "")
    digits = decimals([half]) if digits is None else digits
    for more in range(4):
        if (abs(round(value, digits + more)) > round(half, digits + more)) == (abs(value) > half):
            digits += more
            break
    if digits > 7:
        return f"{value:.3g} ± {half:.1g}"
    return f"{round(value, digits) + 0.0:.{max(0, digits)}f} ± {round(half, digits):.{max(0, digits)}f}"


def decimals(halves: Iterable[float]) -> int:
    """Decimal places that the smallest of these errors has a use for: two figures up to 35, one above.

    That is the rule of the Particle Data Group. Negative for tens and so on; 0 if no error is finite and above 0.
    """
    places = []
    for half in halves:
        if 0 < half < math.inf:
            power = math.floor(math.log10(half))
            places.append(1 - power if half / 10.0**power < 3.55 else -power)  # 0.010 is about as exact as 0.006
    return max(places, default=0)


def verdict(metric: Metric, a_name: str, b_name: str, paired: Paired) -> str:
    """What `paired(a, b)` says, in words; ± is half of the 95 % interval."""
    unit = metric.unit or f"in {metric.name}"
    if not (paired.lost_a or paired.lost_b):
        return _finite(paired, a_name, b_name, unit, "the only seed")
    told = f"{b_name} diverged in {paired.lost_b} of {count(paired.seeds, 'seed')}, {a_name} in {paired.lost_a}"
    if not paired.pairs:
        return f"{told}: no seed is left to compare"
    left = "the one seed left" if paired.pairs == 1 else f"the {paired.pairs} seeds left"
    return f"{told}; over {left}: {_finite(paired, a_name, b_name, unit, left)}"


def _finite(paired: Paired, a: str, b: str, unit: str, one: str) -> str:
    d, wins = paired.difference, f"{paired.wins} of {count(paired.seeds, 'seed')}"
    better = (d < 0) == paired.lower_is_better
    if math.isnan(paired.half_width):
        if d == 0:
            return f"{b} equals {a} in {one}"
        return f"{b} {'better' if better else 'worse'} than {a} by {abs(d):.4g} {unit} in {one}: it may be chance"
    if abs(d) <= paired.half_width:
        return f"no difference seen between {b} and {a}: {plus_minus(d, paired.half_width)} {unit}, {wins} better"
    by = f"by {plus_minus(abs(d), paired.half_width)} {unit}"
    return f"{b} better than {a} {by}, {wins}" if better else f"{b} worse than {a} {by}, {wins} better"


def count(number: int, what: str) -> str:
    """ "1 seed", "2 seeds"."""
    return f"{number} {what}" + "s" * (number != 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One variant against the baseline in one metric."""

    name: str
    paired: Paired
    holm: float
    """The p-value, adjusted for the number of variants that were held against the baseline."""
    verdict: str


def differences(metric: Metric, names: Sequence[str]) -> tuple[Difference, ...]:
    """Every variant but the first against the first; names [V] in the order of the metric's values [V, S]."""
    baseline, *others = metric.values
    found = [paired(baseline, values, lower_is_better=metric.lower_is_better) for values in others]
    adjusted = holm([each.p_value for each in found])
    return tuple(
        Difference(name=name, paired=each, holm=float(p), verdict=verdict(metric, names[0], name, each))
        for name, each, p in zip(names[1:], found, adjusted, strict=True)
    )
