"""A weighting of the user's own: a function in the user's own file, called FILE:FUNCTION or MODULE:FUNCTION.

    def tilted(log_snr, *, slope=0.5):
        return jnp.exp(-slope * log_snr)

FILE is a path, with or without .py; MODULE is a dotted name that Python can import. The function is pure: it gets
log-SNR of any shape first and returns one factor for each, on the error of eps. Its other parameters are numbers, given
as --diffusion.weighting-args; one called `schedule` gets the run's schedule.

The file's code runs when a run is built to train, and never to sample. A config keeps its name with the whole path, so
that a run goes on from any folder, and none of its code.
"""

import functools
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from ddpm_jax import records
from ddpm_jax.diffusion import weightings
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.weightings import Weighting

FLAG = "--diffusion.weighting"


def is_own(name: str) -> bool:
    """Is this FILE:FUNCTION or MODULE:FUNCTION, and not the name of a published weighting?"""
    return ":" in name


def absolute(name: str) -> str:
    """The name as a config keeps it: with the whole path of its file, if it is in one. Other names stay as they are.

    Raises:
        ValueError: for a file without a function, or a function without a file.
    """
    if not is_own(name):
        if name.endswith(".py"):
            raise ValueError(f"{FLAG} {name}: say which of its functions, {name}:FUNCTION")
        return name
    place, function = _parts(name)
    file = _file(place)
    return name if file is None else f"{file}:{function}"


def build(name: str, arguments: Sequence[tuple[str, float]], schedule: Schedule) -> Weighting:
    """The weighting that a config describes, published or the user's own, as a function of log-SNR alone.

    Raises:
        FileNotFoundError: if there is no such file or module, with the nearest file.
        ValueError: for a function that isn't in it (with the nearest that is), what the file raised, or a function that
            is no weighting, see `weightings.with_arguments`; for others as `weightings.build` does.
    """
    if not is_own(name):
        return weightings.build(name, arguments, schedule)
    k = _load(name)
    try:
        inspect.signature(k)
    except (TypeError, ValueError):
        raise ValueError(f"{FLAG} {name} is no function whose parameters can be read") from None
    bound = weightings.with_arguments(k, name, arguments, schedule)
    few = schedule.log_snr[: (schedule.num_steps + 1) // 2]
    if not np.allclose(bound(few), bound(schedule.log_snr)[: few.size], rtol=1e-3, atol=0):
        raise ValueError(f"{FLAG} {name}: its factor of a log-SNR must not depend on which others it is called with")
    return bound


def late(name: str, arguments: Sequence[tuple[str, float]], schedule: Schedule) -> Weighting:
    """`build`, put off until the weighting is first called."""

    @functools.cache
    def built() -> Weighting:
        with jax.ensure_compile_time_eval():  # it may first be called in a function that is being traced
            return build(name, arguments, schedule)

    return lambda log_snr: built()(log_snr)


def _parts(name: str) -> tuple[str, str]:
    place, _, function = name.rpartition(":")
    if not place or not function.isidentifier():
        raise ValueError(f"{FLAG} must be a published weighting, FILE:FUNCTION or MODULE:FUNCTION, got {name!r}")
    return place, function


def _file(place: str) -> Path | None:
    """The file that is meant, there or not; None for a module."""
    path = Path(os.path.abspath(os.path.expanduser(place if place.endswith(".py") else f"{place}.py")))
    is_path = place.endswith(".py") or "/" in place or os.sep in place
    return path if is_path or path.is_file() else None


def _load(name: str) -> Any:
    place, function = _parts(name)
    file = _file(place)
    try:
        module = importlib.import_module(place) if file is None else _run(file)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        if (file is None or not file.is_file()) and _is_missing(error, place):
            wanted = file or Path(f"{place}.py").absolute()
            near = records.suggest(wanted.name, [path.name for path in wanted.parent.glob("*.py")])
            also = "" if file else f" and no module {place}"
            raise FileNotFoundError(f"{FLAG} {name}: there is no file {wanted}{also}{near}") from None
        raise ValueError(f"{FLAG} {name}: {_told(error, file)}") from error
    found = getattr(module, function, None)
    if not _is_function(found):
        known = [key for key, value in vars(module).items() if not key.startswith("_") and _is_function(value)]
        raise ValueError(f"{FLAG} {name}: {file or place} has no function {function}{records.suggest(function, known)}")
    return found


def _is_missing(error: BaseException, place: str) -> bool:
    """Is it the named file or module itself that isn't there, rather than one that it asks for?"""
    if isinstance(error, ModuleNotFoundError):
        return error.name is not None and (place == error.name or place.startswith(f"{error.name}."))
    return isinstance(error, FileNotFoundError)


def _is_function(value: Any) -> bool:
    return callable(value) and not inspect.isclass(value)


def _run(file: Path) -> ModuleType:
    """Run a file as a module, anew each time."""
    name = f"weighting_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and their like look their module up
    spec.loader.exec_module(module)
    return module


def _told(error: BaseException, file: Path | None) -> str:
    """What a file raised while it was imported, and in which of its lines."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    at = f", line {lines[-1]}" if lines else ""
    said = " ".join(str(error).split())
    return f"{file or 'it'}{at} raised {type(error).__name__} while it was imported: {said}"
