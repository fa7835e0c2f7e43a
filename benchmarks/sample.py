"""50 DDIM steps, ours and diffusers', in turn: python benchmarks/sample.py [--cases PRESET:BATCH ...] (needs [bench])

From noise to images in host memory: ours by what sample.py runs, the whole loop one dispatch; diffusers' by the loop of
its DDIMPipeline, a call of the network and of DDIMScheduler.step for each step. Ratios are of times within a round,
ours over PyTorch's: below 1 we are the faster.
"""

import dataclasses
from pathlib import Path
from typing import Any

import cases
import machine
import sides

from ddpm_jax.cli import flags

CASES = ("mnist5k:1", "mnist5k:16", "mnist5k:64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Which images are drawn, and how."""

    cases: tuple[str, ...] = CASES
    """PRESET:BATCH; cifar10:1 and cifar10:8 take minutes."""
    variants: tuple[str, ...] = sides.WHOLE
    """Of `sides.VARIANTS`."""
    steps: int = 50
    rounds: int = 9
    """Times that each side has its turn, after two that don't count."""
    threads: int = 0
    """Cores for each side; 0 for all."""
    device: str = "cpu"
    """cpu, or gpu for both sides (TF32 on)."""
    out: Path = Path("benchmarks/results/sample.json")


def measure(case: str, asked: Flags) -> dict[str, Any]:
    """Times and ratios for one case; "evaluation_seconds" are those of one step of the loop."""
    plain = cases.job(cases.read(case), case.partition(":")[0])
    job = {"task": "sample", "device": asked.device, "steps": asked.steps, **plain}
    with sides.started(asked.variants, job, threads=asked.threads or sides.cores()) as (running, failed):
        seconds = sides.turns(running, rounds=asked.rounds)
        found = sides.summary(running, seconds, failed)
    each = {name: of["median"] / asked.steps for name, of in found["seconds"].items()}
    return {**found, "steps": asked.steps, "evaluation_seconds": each}


def main(args: list[str]) -> None:
    asked = flags.parse(Flags, args, prog="sample.py", default=Flags())
    sides.check(asked.variants)
    about = machine.describe()
    for case in asked.cases:
        result = measure(case, asked)
        print(f"{case}: ms a network evaluation, median and quartiles; ratio to PyTorch's best of the same dtype")
        print(sides.said(result, scale=1e3 / asked.steps))
        sides.keep(asked.out, about, {case: result}, {**dataclasses.asdict(asked), "out": str(asked.out)})


if __name__ == "__main__":
    flags.run(main)
