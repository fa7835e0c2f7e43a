"""How long presets' training steps take to compile: python benchmarks/compile.py [--presets NAME ...]

Each is traced, lowered and compiled twice, in fresh processes: with an empty compilation cache and with what the first
left in it. With --torch PRESET:BATCH also torch.compile's time for the same network, which takes minutes (its first
step less a later one; needs '.[bench]').
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import cases
import machine
import sides

from ddpm_jax.cli import flags

PRESETS = ("digits", "mnist5k", "cifar10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is compiled."""

    presets: tuple[str, ...] = PRESETS
    """NAME or NAME:BATCH."""
    variants: tuple[str, ...] = ("jax-float32",)
    """Of `sides.VARIANTS`, ours only."""
    torch: tuple[str, ...] = ()
    """PRESET:BATCH for torch.compile."""
    threads: int = 0
    """Cores; 0 for all."""
    device: str = "cpu"
    out: Path = Path("benchmarks/results/compile.json")


def job_of(case: str, task: str, asked: Flags) -> dict[str, Any]:
    """What a side is told."""
    return {"task": task, "device": asked.device, **cases.job(cases.read(case), case.partition(":")[0])}


def ours(case: str, variant: str, asked: Flags) -> dict[str, Any]:
    """Seconds of each stage with an empty cache ("cold") and a full one ("warm"), and the program's size.

    "init" is of drawing parameters, "whole" from the start of the process until both programs are there. The cache
    holds both, instructions and text are those of the step after it was optimised.
    """
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "warm"):
            begun = time.perf_counter()
            side = sides.start(
                variant,
                job_of(case, "compile", asked),
                threads=asked.threads or sides.cores(),
                env={"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"},
            )
            whole = time.perf_counter() - begun
            side.end()
            found[state] = {**side.ready["seconds"], "whole": whole}
            sizes = {name: side.ready[name] for name in ("instructions", "text_bytes")}
        files = [file.stat().st_size for file in Path(cache).rglob("*") if file.is_file()]
    return {"seconds": found, **sizes, "cache_bytes": sum(files)}


def theirs(case: str, asked: Flags) -> dict[str, Any]:
    """Seconds that torch.compile adds to the first step; or why there are none."""
    with tempfile.TemporaryDirectory() as cache:
        try:
            side = sides.start(
                "torch-compile-float32",
                job_of(case, "train", asked),
                threads=asked.threads or sides.cores(),
                env={"TORCHINDUCTOR_CACHE_DIR": cache},
            )
        except sides.SideError as error:
            return {"failed": str(error)}
        later = side.ask("go 1")["seconds"]
        side.end()
    return {"seconds": {"cold": {"compile": side.ready["first_seconds"] - later}}}


def main(args: list[str]) -> None:
    asked = flags.parse(Flags, args, prog="compile.py", default=Flags())
    sides.check(asked.variants + (("torch-compile-float32",) if asked.torch else ()))
    if wrong := [name for name in asked.variants if sides.VARIANTS[name][0] != "jax"]:
        raise ValueError(f"--variants must be jax-float32 or jax-bfloat16, got {wrong[0]}; see --torch")
    about, arguments = machine.describe(), {**dataclasses.asdict(asked), "out": str(asked.out)}
    for case in asked.presets:
        for variant in asked.variants:
            result = ours(case, variant, asked)
            cached = result["cache_bytes"] / 1e6
            print(f"{case}, {variant}: {result['instructions']} instructions, {cached:.1f} MB in the cache")
            for state, seconds in result["seconds"].items():
                print(f"  {state}: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
            sides.keep(asked.out, about, {f"{case}, {variant}": result}, arguments)
    for case in asked.torch:
        result = theirs(case, asked)
        print(f"{case}, torch.compile: {result}")
        sides.keep(asked.out, about, {f"{case}, torch-compile-float32": result}, arguments)


if __name__ == "__main__":
    flags.run(main)
