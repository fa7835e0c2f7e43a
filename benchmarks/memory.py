"""Peak memory of a training step, ours and PyTorch's: python benchmarks/memory.py [--cases PRESET:BATCH ...]

Each side is a fresh process. Counted is what it takes at the peak of some steps beyond what its imports took: network,
gradients, optimizer, average, activations, and what it keeps of building and compiling; what it has between the steps
stands beside it. Pages of program files, of which XLA's compiler has many, count as code. What the allocator holds and
nobody uses is given back before the steps, where the system can (glibc). On an accelerator it is the allocator's own
count. Beside ours stands what the compiler planned: arguments, results and temporaries.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cases
import machine
import sides

from ddpm_jax.cli import flags

CASES = ("cifar10:8", "cifar10:32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Whose memory is measured."""

    cases: tuple[str, ...] = CASES
    """PRESET:BATCH."""
    variants: tuple[str, ...] = sides.USUAL
    """Of `sides.VARIANTS`."""
    steps: int = 5
    """Over which the peak is taken."""
    threads: int = 0
    """Cores for each side; 0 for all."""
    device: str = "cpu"
    """cpu or gpu."""
    out: Path = Path("benchmarks/results/memory.json")


def taken(ready: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes beyond the imports': at the peaks of steps and of building, and between the two ("kept").

    Those of program files are in none of them, but in "code". On an accelerator it is the allocator's count.
    """
    if device := after.get("device"):
        return {"steps": device["peak"], "kept": None, "building": None, "code": None}
    imports, built, steps = ready["resident"], ready["built"], after["resident"]
    return {
        "steps": steps["peak"] - steps["files"] - imports["own"],
        "kept": before["own"] - imports["own"],
        "building": built["peak"] - built["files"] - imports["own"],
        "code": steps["files"] - imports["files"],
    }


def measure(case: str, asked: Flags) -> dict[str, Any]:
    """Bytes of each variant, one after the other, and ratios of ours to PyTorch's least."""
    config = cases.read(case)
    job = {"task": "train", "device": asked.device, **cases.job(config, case.partition(":")[0])}
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for name in asked.variants:
        with sides.started([name], job, threads=asked.threads or sides.cores()) as (running, why):
            failed |= why
            for side in running:
                before = side.ask("forget")
                side.ask(f"go {asked.steps}")
                found[name] = taken(side.ready, before, side.ask("memory"))
                found[name] |= {key: side.ready[key] for key in ("params", "planned") if key in side.ready}
    return {"bytes": found, "ratios": ratios({name: of["steps"] for name, of in found.items()}), "failed": failed}


def ratios(peaks: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Each JAX variant's peak over the least of PyTorch's of the same dtype."""
    least = {name: [float(peak)] for name, peak in peaks.items()}
    found = {}
    for name in peaks:
        framework, how = sides.VARIANTS[name]
        if framework == "jax" and (of := sides.best(least, how["dtype"])):
            found[name] = {"of": of, "ratio": peaks[name] / peaks[of]}
    return found


def main(args: list[str]) -> None:
    asked = flags.parse(Flags, args, prog="memory.py", default=Flags())
    sides.check(asked.variants)
    about = machine.describe()
    for case in asked.cases:
        result = measure(case, asked)
        print(f"{case}, MiB: peak of the steps, between them, peak of building, code, as the compiler planned")
        for name, of in result["bytes"].items():
            sizes = of["steps"], of["kept"], of["building"], of["code"], of.get("planned", {}).get("all")
            shown = " ".join(f"{size / 2**20:8.0f}" if size is not None else " " * 8 for size in sizes)
            ratio = result["ratios"].get(name)
            print(f"  {name:38}{shown}" + (f"   {ratio['ratio']:.2f} of {ratio['of']}" if ratio else ""))
        sides.keep(asked.out, about, {case: result}, {**dataclasses.asdict(asked), "out": str(asked.out)})


if __name__ == "__main__":
    flags.run(main)
