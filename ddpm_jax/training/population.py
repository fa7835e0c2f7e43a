"""Many runs in one compiled program: a population, whose members differ in weighting, schedule and seed.

What members of a kind differ in is arrays to the program (the table of a weighting, the tables of a schedule, a key),
so that one compilation serves them all; predictions and draws of t are code, and make kinds of their own. Members that
share a seed share initial parameters, images, t and noise, step for step (common random numbers), and so does each with
the run that `train.py` would make of its config: a difference between members is what they differ in.

How members lie on the devices is `layout`'s.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax import xla
from ddpm_jax.config import Config
from ddpm_jax.data import pipeline, resident
from ddpm_jax.data.pipeline import Batch
from ddpm_jax.data.readahead import read_ahead
from ddpm_jax.data.record import Source
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.training import run
from ddpm_jax.training.layout import Layout, shape, spread
from ddpm_jax.training.run import Parts
from ddpm_jax.training.state import State

OWN = ("weighting", "weighting_args", "schedule", "schedule_args", "zero_terminal_snr", "log_snr_shift")
"""Fields of Diffusion in which members of one kind may differ."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """What a member has of its own, as arrays; of several members stacked, [M, ...]."""

    key: jax.Array
    """Of its training: of t, noise and dropout."""
    schedule: Schedule
    weights: jax.Array
    """k at each step of the schedule [T]."""


Update = Callable[[State, Batch, Member], tuple[State, dict[str, jax.Array]]]


@dataclasses.dataclass(kw_only=True)
class Chunk:
    """Members that run at the same time, and their states as they stand."""

    rows: tuple[int, ...]
    """Which members of their kind; the last is repeated where the devices want more."""
    given: Member
    batches: Generator[Batch, None, None]
    states: Any = None
    """Stacked [M, ...], on the devices; or on the host, between two turns of a chunk that shares them with others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """Members that one program serves."""

    parts: Parts
    """Of the first of them."""
    members: tuple[int, ...]
    """Their numbers in the population."""
    mesh: Mesh
    """Of one axis, "member"."""
    advance: Update
    chunks: list[Chunk]


def kind_of(config: Config) -> Config:
    """A config without what members of one kind may differ in."""
    settings, plain = config.diffusion, type(config.diffusion)()
    if settings.objective != "continuous":  # else the schedule's curve is code
        settings = dataclasses.replace(settings, **{name: getattr(plain, name) for name in OWN})
    return dataclasses.replace(config, seed=0, diffusion=settings)


def build(
    configs: Sequence[Config], layout: Layout, *, edges: Any = None, devices: Sequence[Any] | None = None
) -> list[Kind]:
    """The kinds of a population and their programs; the states are still to be made, see `start`.

    Args:
        configs: one for each member.
        layout: how they lie on the devices.
        edges: of bins of log-SNR for the metrics, the same for all; none if not given.
        devices: all if not given.

    Raises:
        ValueError: for a config that can't be, as `run.build`.
    """
    devices = list(jax.devices() if devices is None else devices)
    found: dict[Config, list[int]] = {}
    for i, config in enumerate(configs):
        found.setdefault(kind_of(config), []).append(i)
    kinds = []
    for numbers in found.values():
        numbers = sorted(numbers, key=lambda i: configs[i].seed)  # neighbours then share their images
        of_variant: dict[Config, Parts] = {}
        for i in numbers:
            variant = dataclasses.replace(configs[i], seed=0)
            if variant not in of_variant:
                of_variant[variant] = run.build(variant, devices=devices[:1])
        of_each = [of_variant[dataclasses.replace(configs[i], seed=0)] for i in numbers]
        count, each = shape(len(numbers), len(devices), layout.each)
        size, mesh = count * each, Mesh(np.array(devices[:count]), ("member",))
        stacked = _stack([_member(parts, configs[i]) for parts, i in zip(of_each, numbers, strict=True)])
        kinds.append(
            Kind(
                parts=of_each[0],
                members=tuple(numbers),
                mesh=mesh,
                advance=_program(of_each[0], layout.arrangement, mesh, edges),
                chunks=[
                    _chunk(stacked, np.minimum(np.arange(first, first + size), len(numbers) - 1), mesh)
                    for first in range(0, len(numbers), size)
                ],
            )
        )
    return kinds


def start(
    kinds: Sequence[Kind], configs: Sequence[Config], source: Source, *, step: int = 0, resident: bool = True
) -> None:
    """Give every chunk its batches from `step` on; and its members' states before the first, if it has none."""
    for kind in kinds:
        make, made = jax.jit(kind.parts.make, compiler_options=xla.quickly()), {}
        for chunk in kind.chunks:
            of_each = [configs[kind.members[row]] for row in chunk.rows]
            chunk.batches = _batches(source, of_each, step, chunk.given.key.sharding)
            if chunk.states is None:
                for seed in {config.seed for config in of_each} - set(made):
                    made[seed] = jax.device_get(make(jax.random.key(seed)))
                chunk.states = jax.tree.map(lambda *x: np.stack(x), *(made[config.seed] for config in of_each))
            (to_devices if resident else to_host)(chunk)


def stop(kinds: Sequence[Kind]) -> None:
    """End the threads that read ahead."""
    for kind in kinds:
        for chunk in kind.chunks:
            chunk.batches.close()


def advance(kind: Kind, chunk: Chunk) -> dict[str, jax.Array]:
    """One step of a chunk's members; the metrics of each, [M, ...]."""
    chunk.states, metrics = kind.advance(chunk.states, next(chunk.batches), chunk.given)
    return metrics


def to_host(chunk: Chunk) -> None:
    """Make room on the devices for another chunk."""
    chunk.states = jax.tree.map(np.asarray, chunk.states)


def to_devices(chunk: Chunk) -> None:
    """Undo `to_host`."""
    chunk.states = jax.device_put(chunk.states, _of(chunk))


def states_of(kind: Kind) -> State:
    """The states of all members of a kind, in the order of `kind.members`, on the host: [M, ...]."""
    of_chunk = [jax.tree.map(np.asarray, chunk.states) for chunk in kind.chunks]
    count = len(kind.members)
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *of_chunk)


def set_states(kind: Kind, states: State) -> None:
    """Undo `states_of`, for other chunks perhaps; they stay on the host until `start`."""
    for chunk in kind.chunks:
        chunk.states = jax.tree.map(lambda x: x[list(chunk.rows)], states)


def abstract(kind: Kind) -> State:
    """What `states_of` will give, for a checkpoint to be read into: shapes and types."""
    one = jax.eval_shape(kind.parts.make, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(kind.members), *x.shape), x.dtype), one)


def _of(chunk: Chunk) -> Any:
    """Where the chunk's arrays lie."""
    return chunk.given.key.sharding


def _member(parts: Parts, config: Config) -> Member:
    assert parts.weights is not None  # they are built to train
    return Member(key=run.training_key(config), schedule=parts.schedule, weights=parts.weights)


def as_parts(parts: Parts, member: Member) -> Parts:
    """The parts of a kind as one member has them, in a program that is being traced."""
    if parts.config.diffusion.objective == "continuous":
        return parts
    return dataclasses.replace(parts, schedule=member.schedule, weights=member.weights)


def _program(parts: Parts, arrangement: str, mesh: Mesh, edges: Any) -> Update:
    def update(state: State, raw: Batch, member: Member) -> tuple[State, dict[str, jax.Array]]:
        batch = dataclasses.replace(raw, images=resident.to_float(jnp.asarray(raw.images)))
        return run.make_train_update(as_parts(parts, member), edges)(state, batch, member.key)

    return spread(arrangement, mesh, update, donate=True)


def _chunk(stacked: Member, rows: np.ndarray, mesh: Mesh) -> Chunk:
    given = jax.device_put(jax.tree.map(lambda x: x[rows], stacked), NamedSharding(mesh, PartitionSpec("member")))
    return Chunk(rows=tuple(map(int, rows)), given=given, batches=_none())


def _stack(records: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *records)


def _batches(source: Source, configs: Sequence[Config], step: int, sharding: Any) -> Generator[Batch, None, None]:
    """The members' batches of `step`, `step` + 1, ..., uint8 [M, B, ...]."""
    if not run.num_classes(configs[0]):
        source = dataclasses.replace(source, labels=None)

    def at(step: int) -> Batch:
        read = {
            config.seed: pipeline.read_at(
                source, step, seed=config.seed, batch_size=config.batch_size, flip=config.data.flip
            )
            for config in {config.seed: config for config in configs}.values()
        }
        return jax.tree.map(lambda *x: np.stack(x), *(read[config.seed] for config in configs))

    with contextlib.closing(iter(read_ahead(at, start=step, threads=configs[0].data.threads))) as made:
        for batch in made:
            yield jax.device_put(batch, sharding)


def _none() -> Generator[Batch, None, None]:
    yield from ()
