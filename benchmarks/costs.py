"""What presets' training steps cost, counted rather than timed: python benchmarks/costs.py [NAME ...] [--out FILE]

Records the figures of all presets, or of those named, in tests/golden/costs.json, to which tests/test_costs.py holds
the code: `cifar10` and what is compiled in every run of the tests, the other presets with -m slow. Run it again where a
change of them is meant.

    lowered     each preset's step with its own network and batch, before a compiler sees it, for TPU and for CPU:
                operations, bytes and transcendentals as XLA counts them (the body of a loop once), the program's
                statements, those of a few kinds, and the length of its text
    compiled    two small presets' steps as XLA compiles them for CPUs, for one device and for two: its own count of
                the work, instructions, bytes of intermediate results, and what the devices send each other

Nothing is run, and no large step is compiled: all of it takes three minutes of one core, most of it to trace the code.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from ddpm_jax import files, planning, records
from ddpm_jax.cli import flags
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Config
from ddpm_jax.planning import ahead, collectives
from ddpm_jax.training.run import abstract_arguments, build, make_train_step

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "tests" / "golden" / "costs.json"
PRESETS = {path.stem: path for path in [*sorted((ROOT / "configs").glob("*.py")), ROOT / "tests/presets/tiny.py"]}
# case: (preset, devices, devices that share a copy of the state)
COMPILED = {
    "digits": ("digits", 1, 1),
    "tiny on 2 devices": ("tiny", 2, 1),
    "tiny cut over 2 devices": ("tiny", 2, 2),
}
KINDS = ("convolution", "dot_general", "while", "case", "transpose", "sharding_constraint", "custom_call")
"""Statements of a lowered step that are counted by themselves: the work, and what comes with it unasked."""
TOLERANCE = {"lowered": 0.1, "compiled": 0.25}
"""How far a figure may move. What XLA makes of a step depends on the processor and its number of cores, too."""
OTHER_JAX = 0.6
"""How far it may rise under another release of JAX than the recorded one: a doubling is still found."""
FEW = 3
"""Under another release, so many statements of a kind may come in addition."""

Figures = dict[str, dict[str, float]]
"""Platform or device: figure: value."""


def lowered(config: Config, platforms: Sequence[str] = ("tpu", "cpu")) -> Figures:
    """The step of one device, lowered for each platform, on whatever machine this is."""
    traced = _trace(config, 1, 1)
    return {platform: _of_lowered(traced.lower(lowering_platforms=(platform,))) for platform in platforms}


def _trace(config: Config, devices: int, fsdp: int) -> Any:
    """The step of `training.loop.train`, one step to a dispatch."""
    run = dataclasses.replace(config.run, steps_per_dispatch=1)
    spread = dataclasses.replace(config.devices, fsdp=fsdp)
    parts = build(dataclasses.replace(config, run=run, devices=spread), devices=jax.devices("cpu")[:devices])
    step: Any = make_train_step(parts)
    return step.trace(*abstract_arguments(parts))


def _of_lowered(program: Any) -> dict[str, float]:
    text = program.as_text()
    kinds = collections.Counter(re.findall(r'^\s+%[\w:]+ = "?(?:\w+\.)?(\w+)', text, re.MULTILINE))
    return _cost(program) | {
        "statements": kinds.total(),
        **{kind: kinds[kind] for kind in KINDS},
        "letters": len(text),
    }


def compiled(config: Config, devices: int, fsdp: int) -> Figures:
    """The step as XLA compiles it for so many CPU devices of this process; the machine's code is left unoptimised."""
    program = _trace(config, devices, fsdp).lower().compile(compiler_options={"xla_backend_optimization_level": 0})
    text = program.as_text()
    found = _cost(program) | {
        "instructions": len(re.findall(r"^\s+(?:ROOT )?%?[\w.\-]+ = ", text, re.MULTILINE)),
        "temporary bytes": program.memory_analysis().temp_size_in_bytes,
    }
    for each in collectives.read(text, devices):
        found |= {each.kind: each.count, f"{each.kind} bytes": each.size}
    return {"cpu": found}


def _cost(program: Any) -> dict[str, float]:
    found = ahead.analysis(program)
    names = {"operations": "flops", "bytes": "bytes accessed", "transcendentals": "transcendentals"}
    return {name: round(found.get(theirs, 0.0)) for name, theirs in names.items()}


def differences(kind: str, case: str, recorded: Figures, found: Figures, *, version: str) -> Iterator[str]:
    """A line for every figure of a case that moved further than it may.

    Args:
        kind: lowered or compiled.
        case: its name.
        recorded: its figures in tests/golden/costs.json.
        found: its figures now.
        version: of JAX, with which they were recorded. If it is of another release than the installed one, a figure may
            fall, and rise by `OTHER_JAX` or by `FEW`.
    """
    same_jax = same_release(version)
    allowed = TOLERANCE[kind] if same_jax else OTHER_JAX
    name = COMPILED[case][0] if kind == "compiled" else case
    for where in recorded | found:
        before, now = recorded.get(where, {}), found.get(where, {})
        for figure in before | now:
            old, new = before.get(figure, 0), now.get(figure, 0)
            slack = allowed * old if same_jax else max(allowed * old, FEW)
            if new > old + slack or (same_jax and new < old - slack):
                moved = f"{(new - old) / old:+.0%}" if old else "none before"
                yield (
                    f"{case}, {kind} for {where}: {figure} {new:,}, recorded {old:,} with jax {version} ({moved};"
                    f" {allowed:.0%} is allowed). If it is meant to be so: python benchmarks/costs.py {name}"
                )


def same_release(recorded: str) -> bool:
    """Is the installed JAX of the release that was recorded, but for patches?"""
    return recorded.split(".")[:2] == jax.__version__.split(".")[:2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Record what presets cost."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Presets, or tiny; all if not given."""
    kinds: tuple[Literal["lowered", "compiled"], ...] = ("lowered", "compiled")
    out: Path = RECORDED
    """Figures of other presets stay in it as they are."""


def main(args: list[str]) -> None:
    asked = flags.parse(Flags, args, prog="costs.py", default=Flags())
    planning.prepare(["cpu:2"])
    configs = {name: load_preset(str(records.pick(PRESETS, name, "NAME"))) for name in asked.names or PRESETS}
    stored: dict[str, Any] = {"jax": jax.__version__}
    if asked.out.exists():
        stored = json.loads(asked.out.read_text())
    if asked.names and not same_release(stored["jax"]):
        raise ValueError(f"{asked.out} was recorded with jax {stored['jax']}, here is {jax.__version__}: record all")
    stored |= {"jax": jax.__version__}
    for kind in asked.kinds:
        cases = stored.setdefault(kind, {})
        for case, figures in measure(kind, configs):
            cases[case] = figures
            print(f"{case}, {kind}: {json.dumps(figures)}", flush=True)
        stored[kind] = dict(sorted(cases.items()))
    files.write(asked.out, (json.dumps(stored, indent=1) + "\n").encode())


def measure(kind: str, configs: Mapping[str, Config]) -> Iterator[tuple[str, Figures]]:
    """The cases of one kind that these presets, by name, are in, with their figures."""
    if kind == "lowered":
        yield from ((name, lowered(config)) for name, config in configs.items())
    else:
        for case, (name, devices, fsdp) in COMPILED.items():
            if name in configs:
                yield case, compiled(configs[name], devices, fsdp)


if __name__ == "__main__":
    flags.run(main)
