"""Our side: the step that train.py takes and the loop that sample.py runs. Started by `sides.start`."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import machine
import sides

from ddpm_jax import heap

Job = dict[str, Any]


def config_of(job: Job) -> Any:
    """The config of a job."""
    import cases

    config = cases.read(f"{job['preset']}:{job['batch']}")
    devices = dataclasses.replace(config.devices, accumulate=job.get("parts", 1))
    return dataclasses.replace(config, net=dataclasses.replace(config.net, dtype=job["dtype"]), devices=devices)


def training(job: Job) -> tuple[Callable[[], float], dict[str, Any]]:
    """A whole training step, as a function that gives back the loss; and facts of it."""
    import jax
    import numpy as np

    from ddpm_jax.data import Batch
    from ddpm_jax.training import mesh
    from ddpm_jax.training.run import build, make_train_step, training_key

    config = config_of(job)
    parts = build(config, devices=jax.devices()[:1])
    images = np.random.default_rng(0).uniform(-1, 1, (config.batch_size, *config.data.shape)).astype(np.float32)
    batch = mesh.place(Batch(images=images, labels=None), mesh.split(parts.mesh))
    state, key = parts.init(), training_key(config)
    traced: Any = make_train_step(parts)
    begun = time.perf_counter()
    step = traced.lower(state, batch, key).compile()
    took = time.perf_counter() - begun
    box = [state]

    def once() -> float:
        box[0], metrics = step(box[0], batch, key)
        loss = float(metrics["loss"])
        jax.block_until_ready(box[0])
        return loss

    once()
    params = sum(x.size for x in jax.tree.leaves(box[0].params))
    return once, {"params": params, "first_seconds": took, "planned": planned(step)}


def planned(program: Any) -> dict[str, int]:
    """Bytes that the compiler sets aside for a program."""
    found = program.memory_analysis()
    names = ("temp", "argument", "output", "alias")
    sizes = {name: int(getattr(found, f"{name}_size_in_bytes")) for name in names}
    return sizes | {"all": sizes["temp"] + sizes["argument"] + sizes["output"] - sizes["alias"]}


def gemm(dtype: str) -> dict[str, float]:
    """The command "gemm DTYPE"; bfloat16 is added up in float32."""
    import jax
    import jax.numpy as jnp

    def product(n: int) -> Callable[[], None]:
        a, b = (jax.random.normal(jax.random.key(i), (n, n)).astype(dtype) for i in range(2))
        dot = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
        return lambda: jax.block_until_ready(dot(a, b))

    return {"flops": machine.peak(product)}


def memory(_: str) -> dict[str, Any]:
    """The command "memory": bytes now and at the peak, of the process or of the accelerator."""
    import jax

    found: dict[str, Any] = {"resident": machine.resident()}
    if stats := jax.devices()[0].memory_stats():
        found["device"] = {"peak": stats["peak_bytes_in_use"]}
    return found


def sampling(job: Job) -> tuple[Callable[[], float], dict[str, Any]]:
    """What sample.py runs, from noise to images in host memory."""
    import jax

    from ddpm_jax.config import Sampling
    from ddpm_jax.training import draw
    from ddpm_jax.training.run import build

    config = config_of(job)
    parts = build(config, devices=jax.devices()[:1], to_train=False)
    params = parts.init().ema
    settings = Sampling(sampler="ddim", steps=(job["steps"],))

    def once() -> float:
        images, _ = draw.draw(
            parts, params, seed=0, num=config.batch_size, batch_size=config.batch_size, settings=settings
        )
        return float(images.mean())

    begun = time.perf_counter()
    once()
    took = time.perf_counter() - begun
    return once, {"params": sum(x.size for x in jax.tree.leaves(params)), "first_seconds": took}


def compiling(job: Job) -> tuple[Callable[[], float], dict[str, Any]]:
    """How long each stage on the way to a program takes, and how large it gets."""
    import jax

    from ddpm_jax.training.run import abstract_arguments, build, make_train_step

    parts = build(config_of(job), devices=jax.devices()[:1])
    step: Any = make_train_step(parts)
    times = [time.perf_counter()]
    traced = step.trace(*abstract_arguments(parts))
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    program = lowered.compile()
    times.append(time.perf_counter())
    parts.init()
    times.append(time.perf_counter())
    stages = ("trace", "lower", "compile", "init")
    text = program.as_text()
    facts = {
        "seconds": {name: times[i + 1] - times[i] for i, name in enumerate(stages)},
        "instructions": sum(" = " in line for line in text.splitlines()),
        "text_bytes": len(text),
    }
    return lambda: 0.0, facts


TASKS = {"train": training, "sample": sampling, "compile": compiling}


def main() -> None:
    job = json.loads(sys.argv[1])
    sides.pin(job["threads"])
    import jax

    if job["device"] == "gpu":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")
    else:
        jax.config.update("jax_platforms", "cpu")
    if job["task"] == "train":
        heap.keep()  # as train.py does
    jax.devices()
    # All that is imported is there before memory is counted.
    from ddpm_jax.training import draw, run  # noqa: F401

    begun = machine.resident()
    machine.forget_peak()
    unit, facts = TASKS[job["task"]](job)
    commands = {"go": sides.repeated(unit), "gemm": gemm, "memory": memory, "forget": machine.forget}
    sides.serve({**facts, "resident": begun, "built": machine.resident()}, commands)


if __name__ == "__main__":
    main()
