"""Which gradient of convolution kernels suits this CPU? python benchmarks/kernel_gradient.py [PRESET[:BATCH] ...]

Times a preset's training step with XLA's own and with the products of nets/layers.py, which the environment variable
DDPM_JAX_KERNEL_GRADIENT=products turns on, in turn, in one process; prints the median of each and the median of the
ratios. Only the ratio means anything: machines differ, and one drifts.
"""

import dataclasses
import os
import statistics
import sys
import time

import jax
import numpy as np

from ddpm_jax.cli.flags import load_preset
from ddpm_jax.data import Batch
from ddpm_jax.training import mesh
from ddpm_jax.training.run import build, make_loss
from ddpm_jax.training.step import make_step


def compiled(parts):
    """The preset's step, compiled, and what it takes."""
    config = parts.config
    shape = (config.batch_size, *config.data.shape)
    batch = mesh.place(
        Batch(images=np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32), labels=None),
        mesh.split(parts.mesh),
    )
    step = make_step(
        make_loss(parts), parts.optimizer, ema_decay=0.99, num_steps=parts.schedule.num_steps, mesh=parts.mesh
    )
    state, key = parts.init(), jax.random.key(0)
    return step.lower(state, batch, key).compile(), state, batch, key


def main(presets: list[str]) -> None:
    for name in presets:
        name, _, batch_size = name.partition(":")
        config = load_preset(name)
        config = dataclasses.replace(config, batch_size=int(batch_size or config.batch_size))
        ready, times = {}, {"xla": [], "products": []}
        for which in times:
            os.environ["DDPM_JAX_KERNEL_GRADIENT"] = which
            ready[which] = compiled(build(config))
        states = {which: made[1] for which, made in ready.items()}
        for _ in range(12):
            for which, (step, _, batch, key) in ready.items():
                start = time.perf_counter()
                states[which], metrics = step(states[which], batch, key)
                jax.block_until_ready(metrics)
                times[which].append(time.perf_counter() - start)
        middle = {which: f"{1000 * statistics.median(values[2:]):.0f} ms" for which, values in times.items()}
        pairs = zip(times["xla"][2:], times["products"][2:], strict=True)
        print(f"{name:14} {middle}   xla / products {statistics.median(x / p for x, p in pairs):.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["digits", "mnist5k"])
