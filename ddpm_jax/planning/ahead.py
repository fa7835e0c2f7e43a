"""The training step and the sampler, compiled ahead of time for a target, and what they need of each device there.

Times are the compiler's own estimates for arithmetic and memory, and published speeds of the links for exchanges. No
program is run.
"""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax import files, nets, networks, xla
from ddpm_jax.config import Config
from ddpm_jax.planning import collectives
from ddpm_jax.planning.collectives import Collective
from ddpm_jax.planning.targets import Target
from ddpm_jax.sampling import loop
from ddpm_jax.training import distill_loss, guided
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training import program as program_lib
from ddpm_jax.training.draw import way
from ddpm_jax.training.run import Parts, abstract_arguments, build, make_train_step, num_classes

QUICK = -1.0
"""XLA's effort for a TPU: -1 compiles quickly, 0 as on the TPU itself, which takes many times as long on a laptop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a compiled program needs; bytes, operations and times are those of one device."""

    target: str
    devices: int
    mesh: dict[str, int]
    batch_size: int
    params: int
    """Bytes of parameters that the optimizer moves."""
    ema: int
    opt_state: int
    peak: float
    """Bytes, the most at any time; nan where the compiler refused."""
    memory: float
    """Bytes that a device has."""
    fits: bool
    refusal: str = ""
    """What the compiler said, if it refused."""
    flops: float = math.nan
    """As the compiler counts them, what is recomputed included."""
    model_flops: float = math.nan
    """Three times the forward pass of its share of the batch, whatever is recomputed."""
    bytes_accessed: float = math.nan
    """Between the device and its memory."""
    compute_seconds: float = math.nan
    """The compiler's estimate, where it makes one."""
    link_seconds: float = math.nan
    """What the exchanges take at the published speed of links and network, if nothing else went on meanwhile."""
    compile_seconds: float = math.nan
    exchanges: list[Collective] = dataclasses.field(default_factory=list)

    @property
    def activations(self) -> float:
        """Bytes of the peak that are no state: activations, gathered parameters and gradients."""
        return self.peak - self.params - self.ema - self.opt_state

    @property
    def seconds(self) -> float:
        """An estimate of a step: nothing overlaps."""
        return self.compute_seconds + self.link_seconds

    def utilisation(self, target: Target) -> float:
        """The share of the target's published peak that the model's own operations would reach (MFU)."""
        return self.model_flops / (self.seconds * target.flops)

    def takes(self, target: Target) -> dict[str, float]:
        """What `seconds` are spent on, in seconds: arithmetic at the target's published peak, the wait for memory that
        is left of the compiler's estimate, and exchanges."""
        arithmetic = self.flops / target.flops
        waits = max(0.0, self.compute_seconds - arithmetic)
        return {"arithmetic": arithmetic, "memory": waits, "exchanges": self.link_seconds}

    def limit(self, target: Target) -> str:
        """Which of what `takes` names takes longest; "unknown" where the compiler made no estimate."""
        takes = self.takes(target)
        return max(takes, key=takes.__getitem__) if math.isfinite(self.seconds + self.flops) else "unknown"

    def foreign(self) -> list[str]:
        """Kinds of exchange that move activations: none are meant to be there."""
        return sorted({each.kind for each in self.exchanges} & {"collective-permute", "all-to-all"})


def compile_step(parts: Parts, target: Target, *, effort: float = QUICK) -> Any:
    """The training step of `training.loop.train` for what `check` gave back, compiled for the target.

    Raises:
        jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED where the compiler finds that it doesn't fit.
    """
    step: Any = make_train_step(parts)
    return _compile(step.trace(*abstract_arguments(parts)), target, effort)


def compile_sampler(parts: Parts, target: Target, *, effort: float = QUICK) -> Any:
    """The whole sampling loop of config.sampling for a batch of config.batch_size images, compiled for the target.

    Raises:
        as `compile_step`.
    """
    config = parts.config
    chosen = way(parts, config.sampling)
    if chosen.sampler.whole:
        raise ValueError(f"--sampling.sampler {config.sampling.sampler} takes as many steps as it needs: none to plan")
    if guided.acts(config.sampling.guidance) or networks.enlarges(config.net):
        raise ValueError("--sampler plans networks that are neither guided nor shown small images")
    levels = chosen.levels(parts)
    rows, whole = mesh_lib.split(parts.mesh), mesh_lib.replicated(parts.mesh)

    def draw(params: Any, key: jax.Array, indices: jax.Array, labels: jax.Array | None) -> jax.Array:
        denoise, prediction = distill_loss.as_sampled(config, parts.schedule, nets.denoiser(parts.module, params))
        return loop.sample_batch(
            key,
            indices,
            denoise,
            levels,
            shape=config.data.shape,
            sampler=chosen.sampler,
            prediction=prediction,
            clip=chosen.clip,
            conditions=labels,
        )[0]

    numbers = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    state, _, key = abstract_arguments(parts)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params)
    labels = numbers if num_classes(config) else None
    placed = {"in_shardings": (whole, whole, rows, rows), "out_shardings": rows}
    drawing = jax.jit(draw, compiler_options=xla.options(target.chip.platform), **placed)
    return _compile(drawing.trace(params, key, numbers, labels), target, effort)


def _compile(traced: Any, target: Target, effort: float) -> Any:
    platform = target.chip.platform
    # A GPU that isn't there can't be asked which of several kernels is the faster.
    options = {"tpu": {"exec_time_optimization_effort": effort}, "cuda": {"xla_gpu_autotune_level": 0}, "cpu": {}}
    return traced.lower(lowering_platforms=(platform,)).compile(compiler_options=options[platform])


def model_flops(config: Config) -> float:
    """Operations of one evaluation of the network for one image, as XLA counts them before it optimises.

    An enlarged image's convolution counts as it is worked out here, 4 products a pixel for the papers' 9.
    """
    module, B = nets.build(config), 1
    params = jax.eval_shape(lambda key: nets.init(key, module, config.data.shape), jax.random.key(0))
    x_t, time_ = jnp.zeros((B, *config.data.shape)), jnp.zeros(B)
    labels = [jnp.zeros(B, jnp.int32)] if num_classes(config) else []
    lowered = jax.jit(nets.denoiser(module, params).func).lower(params, x_t, time_, *labels)
    return float(analysis(lowered)["flops"])


def plan(config: Config, target: Target, *, draws: bool = False, effort: float = QUICK) -> tuple[Plan, Any]:
    """Compile the step, or with `draws` the sampler, for a target; what it needs, and the program (None if refused).

    Raises:
        ValueError: for a config that can't be, or doesn't spread over the target's devices.
    """
    parts = check(config, target)
    begun = time.perf_counter()
    try:
        program = (compile_sampler if draws else compile_step)(parts, target, effort=effort)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        known: dict[str, Any] = _known(parts, target, config) | _state_bytes(parts, draws)
        return Plan(**known, peak=_needed(str(error)), fits=False, refusal=_first_line(str(error))), None
    took = time.perf_counter() - begun
    chosen = way(parts, config.sampling)
    on_cpu = target.chip.platform == "cpu"
    trips = chosen.num_steps if draws else 1 if on_cpu else config.devices.accumulate  # on CPU the parts are laid out
    found = collectives.read(program.as_text(), len(target.devices), trips=trips)
    state, peak = _state_bytes(parts, draws), _peak(program.memory_analysis())
    # Outside the loop stands the optimizer, which reads and writes the state.
    outside = 0 if draws else 2 * sum(state.values())
    cost = _all_trips(analysis(program), trips, outside, target)
    share = config.batch_size / len(target.devices)
    # XLA counts an operation that it can't estimate, such as the hardware's own random bits, as -1 s.
    estimated = not on_cpu and cost["optimal_seconds"] > 0
    return Plan(
        **_known(parts, target, config),
        **state,
        peak=peak,
        fits=not peak > target.memory,
        flops=cost["flops"],
        model_flops=model_flops(config) * share * (trips * chosen.sampler.evaluations if draws else 3),
        bytes_accessed=cost["bytes accessed"],
        compute_seconds=cost["optimal_seconds"] if estimated else math.nan,
        link_seconds=sum(_seconds(each, target, config.devices.fsdp) for each in found),
        compile_seconds=took,
        exchanges=found,
    ), program


def check(config: Config, target: Target) -> Parts:
    """The run's parts on the target's devices; what can't be planned is refused before anything compiles.

    Raises:
        ValueError: for a config that can't be, or one that doesn't spread over the target's devices.
    """
    parts = build(config, devices=target.devices)
    mesh_lib.check_batch(config.batch_size, parts.mesh, parts=config.devices.accumulate)
    way(parts, config.sampling)
    return parts


def _all_trips(cost: dict[str, float], trips: int, outside: float, target: Target) -> dict[str, float]:
    """A program's cost with its loop taken `trips` times: XLA counts a loop's body once.

    `outside` is how many bytes are read and written outside the loop.
    """
    once = {"flops": 0.0, "bytes accessed": outside, "optimal_seconds": outside / target.bandwidth}
    if trips == 1:
        return {name: float(cost.get(name, math.nan)) for name in once}
    return {name: trips * (cost.get(name, math.nan) - alone) + alone for name, alone in once.items()}


def _seconds(each: Collective, target: Target, fsdp: int) -> float:
    """What exchanges take: over the links of each island, and of what crosses, an island's part over the network."""
    island = len(target.devices) // target.islands
    crosses = target.islands > 1 and (each.group > fsdp or fsdp > island)
    over = 2 * each.size / island * (1 - 1 / target.islands) / target.network if crosses else 0.0
    return each.sent() / target.link + over


def _known(parts: Parts, target: Target, config: Config) -> dict[str, Any]:
    mesh = {name: int(size) for name, size in parts.mesh.shape.items()}
    numbers = {"devices": len(target.devices), "batch_size": config.batch_size, "memory": target.memory}
    return {"target": target.name, "mesh": mesh, **numbers}


def bytes_on_device(tree: Any) -> int:
    """Of arrays, or of shapes that say where they will lie: what one device holds of them."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _state_bytes(parts: Parts, draws: bool) -> dict[str, Any]:
    """What the parts of the state take on a device."""
    state = parts.abstract()
    if draws:  # the network alone, whole on every device
        whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state.params))
        return {"params": whole, "ema": 0, "opt_state": 0}
    return {
        "params": bytes_on_device(state.trained()),
        "ema": bytes_on_device((state.ema, state.power_ema)),
        "opt_state": bytes_on_device(state.opt_state),
    }


def _peak(memory: Any) -> float:
    """Bytes; where the compiler names no peak, all that it sets aside."""
    if stated := getattr(memory, "peak_memory_in_bytes", 0):
        return float(stated)
    aside = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return float(aside - memory.alias_size_in_bytes)


def analysis(program: Any) -> dict[str, float]:
    """XLA's count of a lowered or compiled program's work, as JAX's releases differ; empty where there is none, as of a
    GPU that isn't there."""
    found = program.cost_analysis()
    return (found[0] if isinstance(found, list) else found) or {}


def _needed(said: str) -> float:
    """Bytes that the compiler would have needed, from what it says: "Used 32.00G of 15.75G hbm"."""
    if found := re.search(r"[Uu]sed ([\d.]+)([KMGT])i?B? of", said):
        return float(found[1]) * 2.0 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found[2]]
    return math.nan


def _first_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[0][:200] if lines else "no reason given"


def save(program: Any, config: Config, target: Target, path: files.Place) -> None:
    """Write a step that `compile_step` made, for `train` to load on the target itself."""
    program_lib.save(program, build(config, devices=target.devices), path)
