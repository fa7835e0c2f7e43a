"""How members of a population are best laid out on this machine: python benchmarks/population.py [--out FILE.json]

Steps of the `digits` network, a member's each, under every arrangement, in turn within one run; and the step that
train.py takes alone, on all cores. Ratios to that step are what counts.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ddpm_jax import data
from ddpm_jax.cli import flags
from ddpm_jax.config import Config
from ddpm_jax.training import population, run
from ddpm_jax.training.population import Layout

ALONE = "a run alone"
CASES = {
    "one to a device": (0, Layout(arrangement="unroll", each=1)),
    "two to a device, unroll": (0, Layout(arrangement="unroll", each=2)),
    "two on one device, unroll": (1, Layout(arrangement="unroll", each=2)),
    "two on one device, vmap": (1, Layout(arrangement="vmap", each=2)),
    "two on one device, map": (1, Layout(arrangement="map", each=2)),
}
"""Devices (0 for all) and layout; as many members as are on the devices at a time."""
Case = tuple[Callable[[], None], int]
"""One step of its members, and how many they are."""
SLOW = "two on one device, map"


def alone(config: Config) -> Case:
    """A step of a run by itself, as train.py takes it."""
    parts = run.build(config, devices=jax.devices()[:1])
    step, state, key = run.make_train_step(parts), parts.init(), run.training_key(config)
    batch = data.batch_at(data.load(config.data), seed=0, step=0, batch_size=config.batch_size)
    batch, box = jax.device_put(dataclasses.replace(batch, labels=None)), [state]

    def once() -> None:
        box[0], _ = step(box[0], batch, key)
        jax.block_until_ready(box[0])

    return once, 1


def together(config: Config, devices: list, layout: Layout) -> Case:
    """A step of as many members as are on the devices at a time."""
    members = layout.each * len(devices)
    configs = [dataclasses.replace(config, seed=seed) for seed in range(members)]
    (kind,) = population.build(configs, layout, devices=devices)
    population.start([kind], configs, data.load(config.data))

    def once() -> None:
        population.advance(kind, kind.chunks[0])
        jax.block_until_ready(kind.chunks[0].states)

    return once, members


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    config, devices = flags.load_preset("digits"), jax.devices()
    cases = {ALONE: alone(config)}
    for name, (count, layout) in CASES.items():
        cases[name] = together(config, devices[:count] if count else devices, layout)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for name, (once, _) in cases.items():
        begin = time.perf_counter()
        once()
        print(f"{name}: compiled in {time.perf_counter() - begin:.0f} s", flush=True)
    for turn in range(asked.rounds):
        for name, (once, members) in cases.items():
            if name == SLOW and turn > 1:
                continue  # seconds each: two tell enough
            begin = time.perf_counter()
            once()
            seconds[name].append((time.perf_counter() - begin) / members)
    base = np.median(seconds[ALONE])
    result = {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[1],
        "milliseconds": {name: round(1e3 * float(np.median(found)), 1) for name, found in seconds.items()},
        "ratio_to_a_run_alone": {name: round(float(np.median(found) / base), 2) for name, found in seconds.items()},
        "quartiles": {
            name: [round(1e3 * float(q), 1) for q in np.quantile(found, [0.25, 0.75])]
            for name, found in seconds.items()
        },
    }
    print(json.dumps(result, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    main()
