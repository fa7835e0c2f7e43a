"""What a comparison varies: from words on a command line to configs.

    simple   min_snr(gamma=5)   FILE.py:tilted(slope=0.3)   simple+uncertainty     weightings
    linear   cosine(s=0.01)                                                        schedules
    uniform  log_normal(mean=-1.2,std=1.2)+uncorrected                             draws of t
    eps  v                                                                         predictions

`+uncertainty` learns u(sigma) on top of a weighting (see `diffusion.uncertainty`); `+uncorrected` leaves the weights of
a draw of t out, so that the draw is itself a weighting. Variants are all combinations; every one has every seed.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

from ddpm_jax import records
from ddpm_jax.config import Config
from ddpm_jax.training import own_weighting

SPEC = re.compile(r"(?P<name>[^()]+?)(\((?P<arguments>[^()]*)\))?(?P<also>(\+\w+)*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that may vary."""

    flag: str
    field: str
    arguments: str | None
    """The field of its arguments, if it takes any."""
    also: dict[str, tuple[str, Any]]
    """What may follow a plus, and the field and value that it stands for."""


AXES = {
    "weightings": Axis(
        flag="--weightings",
        field="weighting",
        arguments="weighting_args",
        also={"uncertainty": ("learn_uncertainty", True)},
    ),
    "predictions": Axis(flag="--predictions", field="prediction", arguments=None, also={}),
    "schedules": Axis(flag="--schedules", field="schedule", arguments="schedule_args", also={}),
    "draws": Axis(
        flag="--draws", field="draw_t", arguments="draw_t_args", also={"uncorrected": ("correct_draw", False)}
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A name for people, and the run that it stands for; its seed is the first."""

    name: str
    config: Config


def variants(config: Config, **asked: Sequence[str]) -> list[Variant]:
    """All combinations of what is asked for along each of AXES; an axis that isn't asked for stays as `config` has it.

    Raises:
        ValueError: for a word that can't be read, or two variants that are the same.
    """
    along = [[_read(AXES[name], word) for word in words] for name, words in asked.items() if words]
    found = []
    for choice in itertools.product(*along):
        changes = {field: value for _, fields in choice for field, value in fields.items()}
        whole = dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, **changes))
        found.append(Variant(name=", ".join(name for name, _ in choice) or "as it is", config=whole))
    seen: dict[Config, str] = {}
    for variant in found:
        if variant.config in seen:
            raise ValueError(f"every variant must be another, got {seen[variant.config]!r} and {variant.name!r}")
        seen[variant.config] = variant.name
    names = [variant.name for variant in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two variants would be called {min(twice)!r}: give their files other names")
    return found


def _read(axis: Axis, word: str) -> tuple[str, dict[str, Any]]:
    """A word's name for people, and the fields of Diffusion that it stands for."""
    match = SPEC.fullmatch(word.strip())
    if match is None:
        raise ValueError(f"{axis.flag} takes NAME or NAME(argument=number,...), got {word!r}")
    name, given, also = match["name"].strip(), match["arguments"], match["also"].split("+")[1:]
    fields: dict[str, Any] = {axis.field: name}
    if axis.field == "weighting":
        fields[axis.field] = own_weighting.absolute(name)
        name = name.rpartition("/")[2] if own_weighting.is_own(name) else name
    arguments = _arguments(axis, word, given) if given is not None else ()
    if axis.arguments is not None:
        fields[axis.arguments] = arguments
    elif given is not None:
        raise ValueError(f"{axis.flag} {name} takes no arguments, got {word!r}")
    fields |= {field: not value for field, value in axis.also.values()}
    for extra in also:
        field, value = records.pick(axis.also, extra, f"{axis.flag} {name}+")
        fields[field] = value
    shown = ",".join(f"{argument}={value:g}" for argument, value in arguments)
    return name + (f"({shown})" if shown else "") + "".join(f"+{extra}" for extra in also), fields


def _arguments(axis: Axis, word: str, given: str) -> tuple[tuple[str, float], ...]:
    found = []
    for piece in filter(None, (part.strip() for part in given.split(","))):
        argument, equals, value = piece.partition("=")
        try:
            found.append((argument.strip(), float(value)))
        except ValueError:
            equals = ""
        if not equals or not argument.strip().isidentifier():
            raise ValueError(f"{axis.flag} {word!r}: arguments are name=number, got {piece!r}")
    return tuple(found)
