"""Variants trained side by side on the same seeds: the record and its files.

Members of one seed have met the same data, the same t and the same noise (common random numbers). What a seed does to
one it does to all, so the differences within a seed vary less than the members do: see `paired`.
"""

import csv
import dataclasses
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddpm_jax import files
from ddpm_jax.evaluation.paired import Metric, differences

RESULTS, SAMPLES = "results.json", "samples.npz"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """What is compared. The first of a comparison is the baseline."""

    name: str
    settings: dict[str, str]
    """The flags in which it differs from the preset."""
    log_snr: np.ndarray
    """[T], falling."""
    w: np.ndarray
    """The weight per nat of log-SNR [T]."""
    monotone: bool
    """Does w never rise with log-SNR?"""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """V variants x S seeds, n bins of log-SNR, K logged steps. NaN where nothing was measured.

    Raises:
        ValueError: for an array of another shape, edges that don't rise, or names or seeds given twice.
    """

    title: str
    command: str
    facts: dict[str, str]
    """What ran: preset, steps, batch size, data, versions, device, layout, commit."""
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    edges: np.ndarray
    """Of the bins, in log-SNR, rising [n + 1]."""
    metrics: tuple[Metric, ...]
    steps: np.ndarray
    """Logged ones, integers [K]."""
    loss: np.ndarray
    """As trained on, each variant on its own scale [V, S, K]."""
    eps_error: np.ndarray
    """Mean squared error of eps by bin [V, S, K, n]."""
    steps_per_second: np.ndarray
    """[V]."""
    bits_by_bin: np.ndarray | None = None
    """bits/dim [V, S, n]."""
    grad_norm: np.ndarray | None = None
    """Of the mean gradient of each bin's loss [V, S, n]."""
    grad_noise: np.ndarray | None = None
    """How far one draw's gradient strays from that mean, root mean square [V, S, n]."""
    cosine: np.ndarray | None = None
    """Between the mean gradients of two bins [V, S, n, n]."""
    samples: np.ndarray | None = None
    """uint8 [V, S, N, H, W, C], C = 1 or 3; from equal latents at equal (s, N)."""
    skipped: np.ndarray | None = None
    """Steps that a member skipped as its loss or gradient wasn't finite, whole numbers [V, S]."""

    @property
    def centres(self) -> np.ndarray:
        """Of the bins [n]."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    def __post_init__(self):
        names = [variant.name for variant in self.variants]
        for what, values in (("variants", names), ("seeds", self.seeds), ("metrics", [m.name for m in self.metrics])):
            if (not values and what != "metrics") or len({*values}) < len(values):
                raise ValueError(f"{what} must be at least one and differ, got {', '.join(map(str, values)) or 'none'}")
        if np.ndim(self.edges) != 1 or len(self.edges) < 2 or not (np.diff(self.edges) > 0).all():
            raise ValueError(f"edges must be two or more and rise, got {np.asarray(self.edges).tolist()}")
        v, s, k, n = len(self.variants), len(self.seeds), len(self.steps), len(self.edges) - 1
        wanted = {"loss": (v, s, k), "eps_error": (v, s, k, n), "steps_per_second": (v,), "cosine": (v, s, n, n)}
        wanted["skipped"] = v, s
        wanted |= dict.fromkeys(("bits_by_bin", "grad_norm", "grad_noise"), (v, s, n))
        given = {name: (getattr(self, name), shape) for name, shape in wanted.items()}
        for metric in self.metrics:
            given[f"values of {metric.name}"] = metric.values, (v, s)
            given[f"standard_error of {metric.name}"] = metric.standard_error, (v, s)
        given |= {f"w of {variant.name}": (variant.w, np.shape(variant.log_snr)) for variant in self.variants}
        if self.samples is not None:
            shape = np.shape(self.samples)
            if len(shape) != 6 or shape[-1] not in (1, 3) or np.asarray(self.samples).dtype != np.uint8:
                wanted = f"uint8 [{v}, {s}, N, H, W, 1 or 3]"
                raise ValueError(f"samples must be {wanted}, got {np.asarray(self.samples).dtype} {shape}")
            given["samples"] = self.samples, (v, s, *shape[2:])
        for name, (array, shape) in given.items():
            if array is not None and np.shape(array) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {np.shape(array)}")


def write(comparison: Comparison, folder: str | os.PathLike) -> None:
    """Write results.json, samples.npz if there are samples, and tables as results.csv, differences.csv and bins.csv.

    Floats are kept to float32 and written as the shortest decimal that reads back the same.
    """
    folder = files.place(folder)
    if comparison.samples is not None:
        packed = io.BytesIO()
        np.savez_compressed(packed, samples=comparison.samples)
        files.write(folder / SAMPLES, packed.getvalue())
    for name, rows in _TABLES.items():
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(rows(comparison))
        files.write(folder / name, table.getvalue().encode())
    plain = {**_plain(comparison), "samples": None if comparison.samples is None else SAMPLES}
    text = json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False)
    # A list of numbers takes one line. No string holds a bare line break, so nothing but space is lost.
    text = re.sub(r"\[[^][{}]*\]", lambda found: re.sub(r"\n *", " ", found.group()), text)
    files.write(folder / RESULTS, f"{text}\n".encode())  # last: who finds it finds the rest


def read(folder: str | os.PathLike) -> Comparison:
    """Read what `write` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if results.json or samples.npz holds something else.
    """
    path = files.place(folder) / RESULTS
    try:
        plain = {"skipped": None, **json.loads(path.read_bytes())}  # older files don't tell
        parts = {
            "variants": tuple(_record(Variant, each) for each in plain["variants"]),
            "metrics": tuple(_record(Metric, each) for each in plain["metrics"]),
            "samples": _samples(path, plain["samples"]),
        }
        return _record(Comparison, {**plain, **parts})
    except (AttributeError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.parent} holds no record of a comparison: {type(error).__name__}: {error}") from error


def _plain(value: Any) -> Any:
    """Records as dicts, arrays as lists of the shortest decimals, NaN as None and infinity as a string."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind in "iu":
        return value.tolist()
    plain = _short(value).astype(object)
    plain[np.isnan(value)] = None
    plain[np.isinf(value)] = np.where(value[np.isinf(value)] > 0, "inf", "-inf")
    return plain.tolist()


def _short(values: Any) -> np.ndarray:
    """float64 of which repr is the shortest decimal that float32 reads back the same."""
    return np.asarray(values, np.float32).astype(str).astype(np.float64)


def _record(cls: type, plain: dict[str, Any]) -> Any:
    """The record of which `plain` has exactly the fields; lists become arrays, but for `seeds`."""
    names = {field.name for field in dataclasses.fields(cls)}
    if names != plain.keys():
        raise ValueError(f"a {cls.__name__} has the fields {', '.join(sorted(names))}; got {', '.join(sorted(plain))}")
    kinds = {"seeds": tuple, **dict.fromkeys(("steps", "skipped"), lambda whole: np.asarray(whole, np.int64))}
    return cls(
        **{
            name: kinds.get(name, lambda x: np.array(x, np.float32))(value) if isinstance(value, list) else value
            for name, value in plain.items()
        }
    )


def _samples(path: files.Place, name: str | None) -> np.ndarray | None:
    if name is None:
        return None
    with np.load(io.BytesIO(path.with_name(SAMPLES).read_bytes()), allow_pickle=False) as packed:
        return packed["samples"]


def _members(comparison: Comparison) -> Iterator[list]:
    """A line for each variant, seed and metric."""
    yield ["variant", "seed", "metric", "unit", "value", "standard_error"]
    for metric in comparison.metrics:
        errors = metric.standard_error
        for i, variant in enumerate(comparison.variants):
            for j, seed in enumerate(comparison.seeds):
                error = "" if errors is None else _short(errors[i, j])
                yield [variant.name, seed, metric.name, metric.unit, _short(metric.values[i, j]), error]


def _pairs(comparison: Comparison) -> Iterator[list]:
    """A line for each metric and variant but the first, against the first."""
    taken = ("difference", "half_width", "p_value", "wins", "seeds", "pairs", "deviation", "unpaired_deviation")
    yield ["metric", "unit", "baseline", "variant", *taken, "p_value_holm", "verdict"]
    baseline, *others = [variant.name for variant in comparison.variants]
    for metric in comparison.metrics:
        for name, found in zip(others, differences(metric, [baseline, *others]), strict=True):
            numbers = [f"{getattr(found.paired, field):.7g}" for field in taken]
            yield [metric.name, metric.unit, baseline, name, *numbers, f"{found.holm:.7g}", found.verdict]


def _bins(comparison: Comparison) -> Iterator[list]:
    """A line for each variant, seed, bin and quantity that was measured by bin."""
    yield ["variant", "seed", "log_snr_from", "log_snr_to", "quantity", "value"]
    measured = {name: getattr(comparison, name) for name in ("bits_by_bin", "grad_norm", "grad_noise")}
    measured = {"last eps_error": comparison.eps_error[:, :, -1], **measured}
    for name, values in measured.items():
        if values is None:
            continue
        for i, j, k in np.ndindex(np.shape(values)):
            edges = _short(comparison.edges[k : k + 2])
            yield [comparison.variants[i].name, comparison.seeds[j], *edges, name, _short(values[i, j, k])]


_TABLES = {"results.csv": _members, "differences.csv": _pairs, "bins.csv": _bins}
