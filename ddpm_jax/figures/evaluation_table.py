"""What evaluations of a run found: a table with intervals and floors, curves over training, nearest neighbours."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ddpm_jax.evaluation.paired import count
from ddpm_jax.figures import page, run_curves
from ddpm_jax.figures.page import Cell
from ddpm_jax.figures.run_curves import is_number
from ddpm_jax.figures.run_record import Line, RunRecord

MOST_ROWS = 72


def blocks(run: RunRecord) -> Iterator[Markup]:
    """Nothing for a run that wasn't evaluated."""
    if run.evaluations:
        yield from _table(run.evaluations)
    figures = over_training(run)
    if any(len(lines) > 1 for lines in figures.values()):
        drawn = run_curves.measured(figures, run.resumes)
        if drawn is not None:
            more = f" Of {len(figures)} figures the first." if len(figures) > run_curves.MOST_PANELS else ""
            caption = f"Bars are 95 % intervals; dashed, what real images get (the floor).{more}"
            yield page.plot("Figures over training", drawn, caption)
    if run.nearest is not None:
        yield page.film(
            "Nearest neighbours",
            [run.nearest],
            "Samples beside the training images nearest to them: equal pairs would be images learned by heart.",
        )


def newest(run: RunRecord) -> dict[str, str]:
    """The newest value of each figure, for a list of facts: the first three."""
    found = {name: lines[-1] for name, lines in over_training(run).items() if lines}
    return {name: f"{_value(line)} at step {line['step']:,}" for name, line in [*found.items()][:3]}


def over_training(run: RunRecord) -> dict[str, list[Line]]:
    """Figure -> its lines in order of step: those of metrics.jsonl and of evaluations of the same name, of which the
    latter win where both have the step.
    """
    found: dict[str, dict[int, Line]] = {}
    for line in run.lines:
        taken = line.get("evaluation")
        for name, figure in taken.items() if isinstance(taken, Mapping) else ():
            if isinstance(figure, Mapping):
                found.setdefault(str(name), {})[line["step"]] = {**figure, "step": line["step"]}
    for each in run.evaluations:
        for figure in _figures(each):
            found.setdefault(figure["name"], {})[each["step"]] = {**figure, "step": each["step"]}
    return {name: [by_step[step] for step in sorted(by_step)] for name, by_step in found.items()}


def _table(evaluations: Sequence[Line]) -> Iterator[Markup]:
    rows = [(each, figure) for each in reversed(evaluations) for figure in _figures(each)]
    best = _best(rows)
    floors = {str(figure["floor"].get("what")) for _, figure in rows if isinstance(figure.get("floor"), Mapping)}
    of_one = f" The floor: what {floors.pop()} get at as many." if len(floors) == 1 else ""
    table = [
        [
            figure["name"],
            f"{each['step']:,}",
            Cell(text=_number(figure.get("value")), note=_interval(figure), best=id(figure) in best),
            _floor(figure.get("floor"), named=not of_one),
            _count(figure.get("num_images", each.get("num_images"))),
            Cell(text=str(figure.get("how") or ""), note=_direction(figure)),
        ]
        for each, figure in rows
    ]
    more = f" The newest {MOST_ROWS} of {len(table)}." if len(table) > MOST_ROWS else ""
    if table:
        yield page.table(
            f"Each value with its 95 % interval.{of_one}{more}",
            ["figure", "step", "value", "floor", "images", "how"],
            table[:MOST_ROWS],
            words=True,
            wraps=True,
        )
    settings = {_conditions(each): None for each in reversed(evaluations)}
    yield page.text(*[*settings][:4])


def _figures(each: Line) -> list[dict[str, Any]]:
    given = each.get("figures")
    return (
        [f for f in given if isinstance(f, dict) and isinstance(f.get("name"), str)] if isinstance(given, list) else []
    )


def _best(rows: Sequence[tuple[Line, Line]]) -> set[int]:
    """The best of the figures of a name that were taken alike, where there are two to choose from."""
    alike: dict[tuple[str, str], list[Line]] = {}
    for each, figure in rows:
        if is_number(figure.get("value")) and math.isfinite(figure["value"]) and figure.get("better"):
            alike.setdefault((figure["name"], _conditions(each)), []).append(figure)
    choose = {"lower": min, "higher": max}
    return {
        id(choose[figures[0]["better"]](figures, key=lambda figure: figure["value"]))
        for figures in alike.values()
        if len(figures) > 1 and figures[0]["better"] in choose
    }


def _conditions(each: Line) -> str:
    """What two evaluations must share to be comparable, in words."""
    given, reference = each.get("features"), _mapping(each, "reference")
    features = [kind for kind in (given if isinstance(given, list) else [given]) if isinstance(kind, Mapping)]
    told = [
        count(each["num_images"], "image") if isinstance(each.get("num_images"), int) else "",
        "quick" if each.get("quick") else "",
        f"{each['weights']} weights" if each.get("weights") else "",
        f"seed {each['seed']}" if is_number(each.get("seed")) else "",
        *(f"features {kind['name']} ({kind.get('preprocessing', '')})" for kind in features if kind.get("name")),
        f"against {reference['what']}, {reference.get('num_images', '?')} images" if reference.get("what") else "",
        _sampling(_mapping(each, "sampling")),
    ]
    return "Measured on " + ", ".join(filter(None, told)) + "."


def _mapping(each: Line, name: str) -> Line:
    found = each.get(name)
    return found if isinstance(found, Mapping) else {}


def _sampling(given: Line) -> str:
    if not given:
        return ""
    steps = " ".join(map(str, given["steps"])) if isinstance(given.get("steps"), list) else ""
    return f"drawn by {given.get('sampler', '?')}" + (f" in {steps} steps" if steps else "")


def _value(line: Line) -> str:
    interval = _interval(line)
    return _number(line.get("value")) + (f" ({interval})" if interval else "")


def _number(value: Any) -> str:
    return f"{value:.4g}".replace("-", page.MINUS) if is_number(value) else "unknown"


def _count(value: Any) -> str:
    return f"{value:,}" if is_number(value) else ""


def _interval(line: Line) -> str:
    ends = [line.get("low"), line.get("high")]
    return " to ".join(map(_number, ends)) if all(is_number(end) for end in ends) else ""


def _floor(given: Any, *, named: bool) -> Cell:
    if not isinstance(given, Mapping):
        return Cell(text="\u2013")
    what = str(given.get("what") or "") if named else ""
    return Cell(text=_number(given.get("value")), note=", ".join(filter(None, (_interval(given), what))))


def _direction(figure: Line) -> str:
    return f"{figure['better']} is better" if figure.get("better") else ""
