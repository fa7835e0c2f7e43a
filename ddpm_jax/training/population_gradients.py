"""The gradients by noise level of every member of a population."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.data import pipeline
from ddpm_jax.data.pipeline import Batch
from ddpm_jax.data.record import Source
from ddpm_jax.training import gradients, population, run
from ddpm_jax.training.gradients import GradientStats, Sums
from ddpm_jax.training.layout import Layout
from ddpm_jax.training.population import Chunk, Kind


def statistics(
    kinds: Sequence[Kind], configs: Sequence[Config], source: Source, layout: Layout, *, edges: np.ndarray
) -> list[GradientStats] | None:
    """Each member's gradients by noise level (see `gradients`), at its parameters as they are; None where a member's
    objective has no t to draw.

    Members of one seed see the same images, t and noise in each bin.
    """
    if any(config.diffusion.objective == "continuous" for config in configs):
        return None
    found: dict[int, GradientStats] = {}
    for kind in kinds:
        size = min(kind.parts.config.batch_size, 32)
        of_edges = jnp.asarray(edges)

        def one_more(
            sums: Sums, key: Any, number: Any, states: Any, batch: Any, member: Any, kind: Kind = kind
        ) -> Sums:
            parts = population.as_parts(kind.parts, member)
            return gradients.add(sums, key, parts, of_edges, number, states.trained(), batch, states.history)

        add = population.spread(layout.arrangement, kind.mesh, one_more, donate=True)
        for chunk in kind.chunks:
            if not layout.resident:
                population.to_devices(chunk)
            of_rows = [configs[kind.members[row]] for row in chunk.rows]
            stats = _of_chunk(kind, chunk, of_rows, source, size, add, of_edges)
            for place, row in enumerate(chunk.rows):
                found[kind.members[row]] = jax.tree.map(lambda x: np.asarray(x[place]), stats)
            if not layout.resident:
                population.to_host(chunk)
    return [found[i] for i in range(len(configs))]


def _of_chunk(
    kind: Kind,
    chunk: Chunk,
    configs: Sequence[Config],
    source: Source,
    size: int,
    add: Callable[..., Sums],
    edges: jax.Array,
) -> GradientStats:
    where, count = chunk.given.key.sharding, len(chunk.rows)
    source = source if run.num_classes(kind.parts.config) else dataclasses.replace(source, labels=None)
    filled = jax.vmap(lambda member: gradients.filled(population.as_parts(kind.parts, member), edges))(chunk.given)
    keys = jnp.stack([gradients.key_of(config.seed) for config in configs])

    def start(states: Any) -> Sums:
        zeros = Sums(gradient=jax.tree.map(jnp.zeros_like, states.params), squares=jnp.zeros(count))
        return jax.device_put(zeros, where)

    def batch_of(number: int, i: int) -> Any:
        def of(config: Config) -> Batch:
            seed = gradients.images_seed(config.seed, number, i)
            return pipeline.batch_at(source, seed=seed, step=0, batch_size=size, flip=config.data.flip)

        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *map(of, configs)), where)

    def add_to(sums: Sums, key: jax.Array, number: int, batch: Any) -> Sums:
        own = jax.device_put(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, jax.random.bits(key)), where)
        numbers = jax.device_put(jnp.full(count, number, jnp.int32), where)
        return add(sums, own, numbers, chunk.states, batch, chunk.given)

    @functools.partial(jax.jit, static_argnames=("micro_batches", "batch_size"))
    def end(sums: Sequence[Sums], filled: jax.Array, **counts: int) -> GradientStats:
        return jax.vmap(functools.partial(gradients.finish, **counts))(sums, filled)

    return gradients.by_bin(
        jax.random.key(0),
        add_to,
        chunk.states,
        filled[0],
        batch_of,
        batch_size=size,
        start=start,
        end=lambda sums, _, **counts: end(sums, filled, **counts),
    )
