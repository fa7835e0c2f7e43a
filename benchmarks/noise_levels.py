"""What figures by noise level cost a run: python benchmarks/noise_levels.py [--rounds N] [--passes N] [--out FILE]

Steps of the digits preset with and without bins of log-SNR (--run.bins), in turn, one of each a round, which of them
first by turns, too: a machine that is busy with other things slows both. And passes of gradient statistics
(--run.gradients-every), from whose length in steps follows how often they may be taken.
"""

import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np

from ddpm_jax.cli import flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Time `rounds` pairs of steps and `passes` of the statistics."""

    rounds: int = 300
    bins: int = 12
    passes: int = 5
    share: float = 0.03
    """Of a run's time that statistics may take."""
    out: Path = Path("benchmarks/results/noise_levels.json")


def measure(asked: Flags) -> dict:
    """Seconds a step and a pass, after one of each that isn't counted."""
    import jax

    from ddpm_jax import data
    from ddpm_jax.training import gradients, run

    preset = flags.load_preset("digits")
    source = data.load(preset.data)
    sides = {}
    for bins in (0, asked.bins):
        parts = run.build(dataclasses.replace(preset, run=dataclasses.replace(preset.run, bins=bins)))
        sides[bins] = parts, run.make_train_step(parts), parts.init()
    key, seconds = jax.random.key(1), {bins: [] for bins in sides}

    def pairs(first: int, count: int) -> None:
        for turn in range(first, first + count):
            batch = data.batch_at(source, seed=0, step=turn, batch_size=preset.batch_size)
            batch = dataclasses.replace(batch, images=jax.device_put(batch.images), labels=None)
            for bins in sorted(sides, reverse=turn % 2 == 1):
                parts, step, state = sides[bins]
                begin = time.perf_counter()
                state, metrics = step(state, batch, key)
                jax.block_until_ready((state, metrics))
                seconds[bins].append(time.perf_counter() - begin)
                sides[bins] = parts, step, state

    taken, passes, each = gradients.statistics(sides[asked.bins][0], source), [], asked.rounds // asked.passes
    pairs(0, 1)
    for turn in range(asked.passes + 1):
        begin = time.perf_counter()
        jax.block_until_ready(taken(sides[asked.bins][2]))
        passes.append(time.perf_counter() - begin)
        pairs(1 + turn * each, each if turn < asked.passes else 0)
    plain, binned = (np.array(seconds[bins][1:]) for bins in (0, asked.bins))
    leaves = [jax.tree.leaves(state.params) for _, _, state in sides.values()]
    same = all(np.array_equal(*pair) for pair in zip(*leaves, strict=True))
    # Each stretch of steps beside the pass that follows it: the machine may be busier at one time than at another.
    in_steps = np.array(passes[1:]) / np.median(plain.reshape(asked.passes, each), axis=1)
    steps = float(np.median(in_steps))
    return {
        "device": jax.devices()[0].device_kind,
        "load": os.getloadavg()[0],
        "bins": asked.bins,
        "rounds": len(plain),
        "step_seconds": float(np.median(plain)),
        "step_seconds_with_bins": float(np.median(binned)),
        "ratio": float(np.median(binned / plain)),
        "ratio_quartiles": [float(q) for q in np.quantile(binned / plain, [0.25, 0.75])],
        "ratio_standard_error": _error_of_median(binned / plain),
        "same_parameters": same,
        "micro_batches": gradients.MICRO_BATCHES,
        "pass_in_steps": steps,
        "passes_in_steps": [float(one) for one in in_steps],
        "first_pass_seconds": passes[0],
        "gradients_every_for_share": {str(asked.share): int(np.ceil(steps / asked.share))},
    }


def _error_of_median(values: np.ndarray) -> float:
    """By the bootstrap."""
    again = np.random.default_rng(0).choice(values, (1000, len(values)))
    return float(np.median(again, axis=1).std())


def main(args: list[str]) -> None:
    asked = flags.parse(Flags, args, prog="noise_levels.py", default=Flags())
    found = measure(asked)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    flags.run(main)
