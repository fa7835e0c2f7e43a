"""A training step, ours and PyTorch's, in turn: python benchmarks/step.py [--cases PRESET:BATCH ...] (needs '.[bench]')

The same network (diffusers' UNet2DModel), batch and work: draw t and noise, q_sample, forward, mean squared error,
backward, clip by the global norm, Adam, average of the parameters, read the loss. Ratios are of times within a round,
ours over PyTorch's: below 1 we are the faster. The share of the peak is three times the forward pass' operations over
what the best matrix product, of either framework in the same run, would have done meanwhile.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cases
import machine
import sides

from ddpm_jax.cli import flags
from ddpm_jax.config import Config

Peaks = dict[str, dict[str, float]]
"""Operations a second by framework and dtype."""
CASES = ("cifar10:8", "cifar10:32", "mnist5k:32", "mnist5k:128")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Which steps are measured, and how."""

    cases: tuple[str, ...] = CASES
    """PRESET:BATCH."""
    variants: tuple[str, ...] = sides.USUAL
    """Of `sides.VARIANTS`; those with compile take minutes and aren't among the usual ones."""
    rounds: int = 9
    """Times that each side has its turn, after two that don't count."""
    threads: int = 0
    """Cores for each side; 0 for all."""
    device: str = "cpu"
    """cpu, or gpu for both sides (TF32 on)."""
    out: Path = Path("benchmarks/results/step.json")


def peaks(running: Sequence[sides.Side], dtype: str) -> Peaks:
    """Of the best matrix product in this dtype, by one side of each framework."""
    found: Peaks = {}
    for framework in ("jax", "torch"):
        side = next((s for s in running if sides.VARIANTS[s.name][0] == framework), None)
        if side is not None:
            found[framework] = {dtype: side.ask(f"gemm {dtype}")["flops"]}
    return found


def most(before: Peaks, after: Peaks) -> Peaks:
    """The greater of what was measured before the rounds and after them."""
    return {kind: {dtype: max(flops, after[kind][dtype]) for dtype, flops in of.items()} for kind, of in before.items()}


def shares(flops: float, seconds: Mapping[str, Sequence[float]], peak: Peaks) -> dict[str, float]:
    """The part of the greater of the two peaks of its dtype that each variant reaches in its median time."""
    dtypes = {name: sides.VARIANTS[name][1]["dtype"] for name in seconds}
    return {
        name: flops / sides.spread(taken)["median"] / max(of[dtypes[name]] for of in peak.values())
        for name, taken in seconds.items()
    }


def model_flops(config: Config) -> float:
    """Of a step: three forward passes of the batch, as XLA counts them before it optimises."""
    import jax

    from ddpm_jax.planning import ahead

    jax.config.update("jax_platforms", "cpu")  # an accelerator is left to the sides
    return 3 * config.batch_size * ahead.model_flops(config)


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both results' entries, those of a name in both likewise; what is no mapping is the other's, unless None."""
    both = {name: merged(one[name], value) for name, value in other.items() if isinstance(one.get(name), Mapping)}
    return {**one, **{name: value for name, value in other.items() if value is not None}, **both}


def measure(case: str, asked: Flags) -> dict[str, Any]:
    """Times, ratios and shares of the peak for one case; the variants of one dtype take turns, then those of the next,
    for all of them at once may want more memory than there is."""
    config = cases.read(case)
    flops = model_flops(config)
    # PyTorch's process keeps freed memory as ours does (`heap`): it gains 2 to 6 % on a CPU.
    job = {"task": "train", "device": asked.device, "hold": True, **cases.job(config, case.partition(":")[0])}
    found: dict[str, Any] = {"flops": flops}
    for dtype in dict.fromkeys(sides.VARIANTS[name][1]["dtype"] for name in asked.variants):
        names = [name for name in asked.variants if sides.VARIANTS[name][1]["dtype"] == dtype]
        with sides.started(names, job, threads=asked.threads or sides.cores()) as (running, failed):
            before = peaks(running, dtype)
            seconds = sides.turns(running, rounds=asked.rounds)
            peak = most(before, peaks(running, dtype))
            shared = {"peak_flops": peak, "share_of_peak": shares(flops, seconds, peak)}
            found = merged(found, {**sides.summary(running, seconds, failed), **shared})
    return found


def main(args: list[str]) -> None:
    asked = flags.parse(Flags, args, prog="step.py", default=Flags())
    sides.check(asked.variants)
    about = machine.describe()
    for case in asked.cases:
        result = measure(case, asked)
        print(f"{case}: median and quartiles; ratio to PyTorch's best of the same dtype")
        print(sides.said(result))
        print("  share of the peak: " + ", ".join(f"{n} {share:.0%}" for n, share in result["share_of_peak"].items()))
        sides.keep(asked.out, about, {case: result}, {**dataclasses.asdict(asked), "out": str(asked.out)})


if __name__ == "__main__":
    flags.run(main)
