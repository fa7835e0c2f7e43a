"""Programs that are timed side by side: each a process of its own, which works only when it is its turn.

A side is `python torch_side.py JOB` or `python jax_side.py JOB`, JOB being JSON. It builds and compiles, then answers
each line of its standard input, "COMMAND ARGUMENT", by one line of JSON. The others sleep meanwhile. Machines drift, so
that only ratios within one round mean anything: `paired` has them.
"""

import contextlib
import dataclasses
import datetime
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ddpm_jax.records import pick

HERE = Path(__file__).resolve().parent
SETTLE = 0.05
"""Seconds between two turns: OpenMP's threads go on spinning for a few milliseconds after their work."""
LEAST = 0.5
"""Seconds that a turn should take: shorter units are repeated."""

# A variant's name: (framework, how). PyTorch's bfloat16 is autocast, ours net.dtype; parameters are float32 in both.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "jax-float32": ("jax", {"dtype": "float32"}),
    "jax-bfloat16": ("jax", {"dtype": "bfloat16"}),
    # The same batch in four parts, whose gradients are averaged (--devices.accumulate 4).
    "jax-in-4-float32": ("jax", {"dtype": "float32", "parts": 4}),
    "jax-in-4-bfloat16": ("jax", {"dtype": "bfloat16", "parts": 4}),
    "torch-eager-float32": ("torch", {"dtype": "float32"}),
    "torch-channels-last-float32": ("torch", {"dtype": "float32", "channels_last": True}),
    "torch-channels-last-bfloat16": ("torch", {"dtype": "bfloat16", "channels_last": True}),
    "torch-compile-float32": ("torch", {"dtype": "float32", "compile": True}),
    "torch-compile-channels-last-float32": ("torch", {"dtype": "float32", "channels_last": True, "compile": True}),
    "torch-compile-channels-last-bfloat16": ("torch", {"dtype": "bfloat16", "channels_last": True, "compile": True}),
}
USUAL = tuple(name for name in VARIANTS if "compile" not in name)
"""Those measured of training unless others are asked for: torch.compile takes minutes."""
WHOLE = tuple(name for name in USUAL if "in-4" not in name)
"""Those of sampling."""


def check(variants: Sequence[str]) -> None:
    """Are the variants known, and is what they need installed?

    Raises:
        ValueError: for a name that isn't one.
        ImportError: for a missing package, with the command that mends it.
    """
    frameworks = {pick(VARIANTS, name, "--variants")[0] for name in variants}
    for package in ("torch", "diffusers") if "torch" in frameworks else ():
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"the benchmarks against PyTorch need {package}: pip install -e '.[bench]'")


def serve(ready: Mapping[str, Any], commands: Mapping[str, Callable[[str], Mapping[str, Any]]]) -> None:
    """A side's life once it is built: `ready` is told, then each line that comes in is answered."""
    print(json.dumps({"ready": ready}), flush=True)
    for line in sys.stdin:
        name, _, argument = line.strip().partition(" ")
        print(json.dumps(commands[name](argument)), flush=True)


def repeated(unit: Callable[[], Any]) -> Callable[[str], dict[str, Any]]:
    """The command "go N": seconds of one unit, from N of them in a row, and what the last one gave back."""

    def go(argument: str) -> dict[str, Any]:
        count = int(argument or 1)
        begun = time.perf_counter()
        for _ in range(count):
            value = unit()
        return {"seconds": (time.perf_counter() - begun) / count, "value": value}

    return go


def pin(threads: int) -> None:
    """Keep this process on so many cores; JAX takes its number of threads from them. Before JAX or torch starts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SideError(OSError):
    """A side that ended before its time; the text is the last line that it said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """A process that waits for its turn."""

    name: str
    process: subprocess.Popen
    errors: IO[bytes]
    """What it writes to its standard error."""
    ready: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What it said when it was built."""

    def ask(self, command: str) -> dict[str, Any]:
        """One line in, one line out.

        Raises:
            SideError: if it ends before it answers.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: answer says why
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line of JSON; other lines are what a library prints."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        status = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"status {status}")
        raise SideError(f"{self.name}: {last}")

    def end(self) -> None:
        """Let it go, and wait until it is gone."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()
        self.errors.close()


def start(name: str, job: Mapping[str, Any], *, threads: int, env: Mapping[str, str] | None = None) -> Side:
    """A side by its variant's name; returns once it is built and compiled.

    Raises:
        SideError: if it ends before that.
    """
    framework, how = pick(VARIANTS, name, "--variants")
    job = {**job, **how, "threads": threads}
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return launch(name, [str(HERE / f"{framework}_side.py"), json.dumps(job)], {**own, **(env or {})})


def launch(name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> Side:
    """A side by the Python program that it is, and its arguments; returns once it is ready.

    Raises:
        SideError: if it ends before that.
    """
    errors = tempfile.TemporaryFile()  # noqa: SIM115  the side's own, closed with it
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, **(env or {})},
    )
    side = Side(name=name, process=process, errors=errors)
    try:
        return dataclasses.replace(side, ready=side.answer()["ready"])
    except SideError:
        side.end()
        raise


@contextlib.contextmanager
def started(
    names: Sequence[str], job: Mapping[str, Any], *, threads: int
) -> Iterator[tuple[list[Side], dict[str, str]]]:
    """The sides that could be started, and why the others couldn't, by name; all are let go in the end.

    Raises:
        ValueError: where their networks differ in size.
    """
    running: list[Side] = []
    failed: dict[str, str] = {}
    try:
        for name in names:
            try:
                running.append(start(name, job, threads=threads))
            except SideError as error:
                failed[name] = str(error)
                print(f"  {error}", file=sys.stderr)
        params = {side.name: side.ready["params"] for side in running}
        if len(set(params.values())) > 1:
            raise ValueError(f"the networks must have equally many parameters, got {params}")
        yield running, failed
    finally:
        for side in running:
            side.end()


def turns(sides: Sequence[Side], *, rounds: int, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of a unit for each side, one of each round; the sides work one after the other, none at once.

    The first `warm` rounds aren't kept; they say how often a short unit is repeated in a turn.
    """
    count = dict.fromkeys((side.name for side in sides), 1)
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(-warm, rounds):
        for side in sides:
            time.sleep(SETTLE)
            took = side.ask(f"go {count[side.name]}")["seconds"]
            if turn < 0:
                count[side.name] = max(1, math.ceil(LEAST / took))
            else:
                seconds[side.name].append(took)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and number of some values."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": statistics.median(values), "low": low, "high": high, "count": len(values)}


def paired(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """The spread of the ratios within each round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def best(seconds: Mapping[str, Sequence[float]], dtype: str) -> str | None:
    """PyTorch's variant of this dtype with the least median time, if there is one."""
    of_torch = [n for n in seconds if VARIANTS[n][0] == "torch" and VARIANTS[n][1]["dtype"] == dtype]
    return min(of_torch, key=lambda name: statistics.median(seconds[name]), default=None)


def compared(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The ratios of every JAX variant over every one of PyTorch, and over PyTorch's best of the same dtype."""
    ratios: dict[str, Any] = {}
    for name in seconds:
        framework, how = VARIANTS[name]
        if framework != "jax":
            continue
        over = {other: paired(seconds[name], seconds[other]) for other in seconds if VARIANTS[other][0] == "torch"}
        fastest = best(seconds, how["dtype"])
        ratios[name] = {"over": over} | ({"best": {"of": fastest, **over[fastest]}} if fastest else {})
    return ratios


def summary(
    running: Sequence[Side], seconds: Mapping[str, Sequence[float]], failed: Mapping[str, str]
) -> dict[str, Any]:
    """What results of all kinds hold: seconds of a unit, round by round and their spread, and the ratios."""
    return {
        "params": running[0].ready["params"] if running else None,
        "seconds": {name: spread(taken) for name, taken in seconds.items()},
        "rounds": {name: list(taken) for name, taken in seconds.items()},
        "ratios": compared(seconds),
        "first_seconds": {side.name: side.ready["first_seconds"] for side in running},
        "failed": dict(failed),
    }


def said(result: Mapping[str, Any], *, unit: str = "ms", scale: float = 1e3) -> str:
    """Times and ratios as lines for a terminal."""
    lines = []
    for name, found in result["seconds"].items():
        times = " ".join(f"{scale * found[key]:9.1f}" for key in ("median", "low", "high"))
        line = f"  {name:38}{times} {unit}"
        if ratio := result["ratios"].get(name, {}).get("best"):
            line += f"   {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) of {ratio['of']}"
        lines.append(line)
    return "\n".join(lines)


def keep(out: Path, machine: Mapping[str, Any], results: Mapping[str, Any], arguments: Any) -> None:
    """Write results by case into a JSON file, each with its date, machine and arguments; other cases stay."""
    there = json.loads(out.read_text()) if out.exists() else {}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    about = {"date": date, "machine": machine, "arguments": arguments}
    there |= {case: {**about, **result} for case, result in results.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(there, indent=1) + "\n")
    part.replace(out)
