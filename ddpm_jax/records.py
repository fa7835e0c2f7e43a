"""Frozen records as plain data and back, and what is said about a name that doesn't exist.

A field that may hold records of several classes tells them apart by their class attribute `kind`.
"""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def pick(table: Mapping[str, T], name: str, argument: str) -> T:
    """Look `name` up in a dict of choices.

    Raises:
        ValueError: names the argument, the value got, the nearest good one and all the others.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    raise ValueError(f"{argument}: there is no {name!r}{suggest(name, table)}; choose from {', '.join(table)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """', did you mean ...?' for the nearest of the known names, or nothing where none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def match_arguments(
    function: Callable, arguments: Iterable[tuple[str, Any]], where: str, *, but: Iterable[str] = ()
) -> dict[str, Any]:
    """NAME VALUE pairs as keyword arguments of a function; those named in `but` aren't for the user to give.

    Raises:
        ValueError: for a name that the function doesn't take, with the nearest that it does, and all of them; for one
            that is given twice, or a word in place of a number.
    """
    arguments = list(arguments)
    known = [name for name in inspect.signature(function).parameters if name not in but]
    for name, _ in arguments:
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise ValueError(f"{where} {takes}, got {name}{suggest(name, known)}")
    for name, value in arguments:
        if [other for other, _ in arguments].count(name) > 1:
            raise ValueError(f"{where} takes {name} once, got it twice")
        wants_word = inspect.signature(function).parameters[name].annotation is str
        if wants_word != isinstance(value, str):
            raise ValueError(f"{where} {name} must be a {'word' if wants_word else 'number'}, got {value}")
    return dict(arguments)


def to_dict(record: Any) -> dict[str, Any]:
    """The record as plain dicts, lists, numbers and strings; one of several kinds carries its `kind`."""
    plain = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        plain[field.name] = to_dict(value) if dataclasses.is_dataclass(value) else _listed(value)
    kind = getattr(record, "kind", None)
    return plain if kind is None else {"kind": kind, **plain}


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, tuple) else value


def from_dict(plain: Mapping[str, Any], cls: type[T], where: str) -> T:
    """Read what `to_dict` wrote; a field that is missing takes its default.

    Raises:
        ValueError: for a field that doesn't exist (with the nearest that does) or a value of the wrong type.
    """
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where} must be an object, got {plain!r}")
    hints = typing.get_type_hints(cls)
    for name in plain:
        if name not in hints:
            raise ValueError(f"{where}.{name}: there is no such field{suggest(name, hints)}")
    return cls(**{name: _read(value, hints[name], f"{where}.{name}") for name, value in plain.items()})


def _read(value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType) and not any(map(dataclasses.is_dataclass, typing.get_args(hint))):
        if value is None and type(None) in typing.get_args(hint):
            return None
        return _read(value, str if isinstance(value, str) and str in typing.get_args(hint) else float, where)
    if isinstance(hint, types.UnionType):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object, got {value!r}")
        kinds = {cls.kind: cls for cls in typing.get_args(hint)}
        cls = pick(kinds, value.get("kind", ""), f"{where}.kind")
        return from_dict({k: v for k, v in value.items() if k != "kind"}, cls, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(value, typing.cast(type, hint), where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        inner = typing.get_args(hint)
        inner = [inner[0]] * len(value) if inner[-1] is ... else inner
        if len(inner) != len(value):
            raise ValueError(f"{where} must have {len(inner)} entries, got {value!r}")
        return tuple(_read(v, h, where) for v, h in zip(value, inner, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} must be {hint.__name__}, got {value!r}")
    return value


def differences(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields in which two configs differ, by dotted name: {"net.features": (32, 64)}."""
    old, new = (to_dict(x) if dataclasses.is_dataclass(x) else x for x in (old, new))
    found = {}
    for name in {**old, **new}:
        a, b, dotted = old.get(name), new.get(name), f"{where}{name}"
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, dotted + ".")
        elif a != b:
            found[dotted] = (a, b)
    return found
