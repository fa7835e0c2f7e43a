"""What a run cost, and what was run: its command, where and by what, each of its starts, its settings."""

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from ddpm_jax import records
from ddpm_jax.config import Config
from ddpm_jax.evaluation.paired import count
from ddpm_jax.figures import page
from ddpm_jax.figures.page import Setting
from ddpm_jax.figures.run_curves import is_number, series
from ddpm_jax.figures.run_record import Line, RunRecord

MOST_STARTS = 12
"""Rows of the table of starts."""


def step_of(run: RunRecord) -> int:
    """How far the run has come, as far as its log and its starts say."""
    steps = [line["step"] for line in run.lines if "evaluation" not in line]
    steps += [start["until"] for start in run.starts if is_number(start.get("until"))]
    return int(max([*steps, *run.checkpoints], default=0))


def cost(run: RunRecord) -> Iterator[Markup]:
    images = step_of(run) * run.config.batch_size
    found = {"images seen": f"{images:,} in {step_of(run):,} steps of {run.config.batch_size:,}"}
    timed = [(float(start["seconds"]), _devices(start)) for start in run.starts if is_number(start.get("seconds"))]
    if seconds := sum(each for each, _ in timed):
        found["time"] = f"{duration(seconds)}, all starts together, compiling, pictures and checkpoints counted"
        found["device-hours"] = f"{sum(each * devices for each, devices in timed) / 3600:.3g}"
    if (alone := _seconds_of_steps(run)) > 0:
        found["time of the steps alone"] = duration(alone)
    _, speeds = series(run.lines, "images_per_second")
    if len(speeds := speeds[np.isfinite(speeds)]):
        found["images per second"] = f"{np.median(speeds):,.4g} (median of {count(len(speeds), 'line')} of the log)"
    if parameters := of_starts(run, "parameters"):
        found["parameters"] = f"{parameters:,}"
    if run.checkpoint_bytes:
        kept = count(len(run.checkpoints), "checkpoint") if run.checkpoints else "all there is"
        found["checkpoints"] = f"{size(run.checkpoint_bytes)} in {kept}"
    yield page.facts(found)


def _seconds_of_steps(run: RunRecord) -> float:
    """What the log's speeds come to, first line to last."""
    steps, speeds = series(run.lines, "images_per_second")
    if not len(steps):
        return 0.0
    spans = np.diff(steps, prepend=0.0)
    good = np.isfinite(speeds) & (speeds > 0) & (spans > 0)
    return float((spans[good] * run.config.batch_size / speeds[good]).sum())


def _devices(start: Line) -> int:
    number = _mapping(start, "devices").get("count")
    return number if isinstance(number, int) else 1


def of_starts(run: RunRecord, name: str) -> Any:
    """What the newest start that has it says."""
    return next((start[name] for start in reversed(run.starts) if start.get(name)), None)


def facts(run: RunRecord) -> Iterator[Markup]:
    if command := of_starts(run, "command"):
        yield page.command(str(command))
    found = {"seed": str(run.config.seed)}
    if run.starts:
        found |= _environment(run.starts[-1])
    else:
        found["versions, devices, commit"] = "not recorded: this run has no environment.jsonl"
    yield page.facts(found)
    if run.starts:
        yield _starts(run)
    yield page.settings(*settings_of(run.config))


def _environment(start: Line) -> dict[str, str]:
    machine, packages = _mapping(start, "machine"), _mapping(start, "packages")
    cpus = f"{machine.get('cpus')} CPUs" if machine.get("cpus") else ""
    memory = f"{size(machine['memory'])} of memory" if is_number(machine.get("memory")) else ""
    found = {
        "devices": hardware(start),
        "machine": ", ".join(filter(None, (str(machine.get("system", "")), cpus, memory))),
        "Python": str(start.get("python", "")),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "git commit": str(start.get("commit") or "the working folder was no checkout"),
    }
    return {name: told for name, told in found.items() if told}


def hardware(start: Line) -> str:
    """ "8 × TPU v4 in 2 processes"."""
    devices = _mapping(start, "devices")
    if not devices:
        return ""
    several = start.get("processes", 1)
    told = f"{devices.get('count', '?')} \u00d7 {devices.get('kind', '?')}"
    return told + (f" in {several} processes" if is_number(several) and several > 1 else "")


def _mapping(start: Line, name: str) -> Mapping[str, Any]:
    found = start.get(name)
    return found if isinstance(found, Mapping) else {}


def _starts(run: RunRecord) -> Markup:
    """A row for each time that the run was started; what differs from the time before is said."""
    rows = []
    for i, start in enumerate(run.starts):
        changed = ("; ".join(_changes(run.starts[i - 1], start)) or "nothing") if i else ""
        rows.append(
            [
                _moment(start.get("time")),
                *(f"{start[key]:,}" if is_number(start.get(key)) else "" for key in ("step", "until")),
                duration(start["seconds"]) if is_number(start.get("seconds")) else "",
                page.Cell(text=changed),
            ]
        )
    shown = rows[-MOST_STARTS:]
    caption = "Every start of the run." if len(shown) == len(rows) else f"The last {len(shown)} of {len(rows)} starts."
    return page.table(
        caption, ["started", "at step", "to step", "took", "changed since"], shown, words=True, wraps=True
    )


def _changes(before: Line, start: Line) -> Iterator[str]:
    for name in ("command", "python", "commit"):
        if before.get(name) != start.get(name):
            yield name if name == "command" else f"{name} {before.get(name)} \u2192 {start.get(name)}"
    if hardware(before) != hardware(start):
        yield f"{hardware(before)} \u2192 {hardware(start)}"
    for group in ("packages", "changed"):
        old, new = _mapping(before, group), _mapping(start, group)
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                yield f"{name} {old.get(name, 'as usual')} \u2192 {new.get(name, 'as usual')}"


def settings_of(config: Config) -> tuple[str, dict[str, Sequence[Setting]]]:
    """The config in groups, and a line above it."""
    usual = Config(net=type(config.net)())
    plain, defaults = _flat(records.to_dict(config)), _flat(records.to_dict(usual))
    groups: dict[str, list[Setting]] = {}
    for name, value in plain.items():
        group, _, field = name.rpartition(".") if name.count(".") < 2 else name.partition(".")
        default = defaults.get(name)
        row = Setting(name=field, value=_said(value), usual=None if value == default else _said(default))
        groups.setdefault(group or "run as a whole", []).append(row)
    changed = sum(row.usual is not None for rows in groups.values() for row in rows)
    return f"config.json: {changed} of {len(plain)} settings changed from their defaults", {**groups}


def _flat(plain: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= _flat(value, f"{where}{name}.") if isinstance(value, Mapping) else {where + name: value}
    return found


def _said(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_said, value)) or "()"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value) or '""'


def _moment(told: Any) -> str:
    try:
        return f"{datetime.datetime.fromisoformat(str(told)):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return "unknown"


def duration(seconds: float) -> str:
    """ "41 s", "3 min 20 s", "5 h 12 min", "6 d 3 h"."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    for unit, each, less, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= each:
            rest = whole % each // part
            return f"{whole // each} {unit}" + (f" {rest} {less}" if rest else "")
    return f"{seconds:.3g} s"


def size(number: float) -> str:
    """Bytes for people: "46.1 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
