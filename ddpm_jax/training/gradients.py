"""How large, how noisy and how much at odds the gradients of different noise levels are.

Let g be the gradient of the objective on one image, its t drawn from one bin of log-SNR, with mean G and covariance S.
Each of m micro-batches of b images gives g_i, with mean G and covariance S / b, and their mean g' has S / (m b). So

    E |g_i|^2 = |G|^2 + tr S / b          E |g'|^2 = |G|^2 + tr S / (m b)

and, solved for the unknowns (McCandlish et al. 2018, "An empirical model of large-batch training", App. A.1),

    |G|^2 = (m |g'|^2 - mean |g_i|^2) / (m - 1)        tr S = b m / (m - 1) (mean |g_i|^2 - |g'|^2)

without bias. The mean gradients of two bins have noises of their own, so that their inner product needs no correction:

    cos(G_a, G_b) = <g'_a, g'_b> / (|G_a| |G_b|)

tr S / |G|^2 is the "simple noise scale": the batch of a bin's images beyond which more of them hardly help.

The objective is what training minimises at a given t: weighted, before the weight of the draw of t and before a learned
uncertainty; without clipping and optimizer. Only the network's parameters count.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import xla
from ddpm_jax.config import Diffusion
from ddpm_jax.data import pipeline
from ddpm_jax.data.pipeline import Batch
from ddpm_jax.data.record import Source
from ddpm_jax.diffusion import bins
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.run import Parts, make_loss, num_classes
from ddpm_jax.training.state import State

MICRO_BATCHES = 4
"""Of each bin. Two would do; the fewer, the noisier the norms."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientStats:
    """Of n bins; NaN throughout for a bin without steps."""

    norm: jax.Array
    """|G| [n]; 0 where the estimate of |G|^2 isn't positive: where noise hides it."""
    noise: jax.Array
    """sqrt(tr S) [n], of a single image's gradient."""
    cosine: jax.Array
    """Between the bins' G, [n, n] in [-1, 1]; NaN where a norm is 0, else 1 on the diagonal."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sums:
    """Over the micro-batches of one bin."""

    gradient: Any
    """Like the network's parameters."""
    squares: jax.Array
    """Of the squared norms of the gradients."""


def empty(params: Any) -> Sums:
    """Before the first micro-batch."""
    return Sums(gradient=jax.tree.map(jnp.zeros_like, params), squares=jnp.zeros(()))


def add(
    sums: Sums,
    key: jax.Array,
    parts: Parts,
    edges: jax.Array,
    number: jax.Array | int,
    trained: Any,
    batch: Batch,
    history: Any = (),
) -> Sums:
    """The sums with one more micro-batch in them. Pure: for a jit, a map or a vmap of your own.

    Args:
        sums: of bin `number`, `empty` at first.
        key: decides t, noise, dropout and hidden labels; another one for each bin and micro-batch.
        parts: its schedule and its weights may be traced. Its draw of t has no part in this.
        edges: those of the bins, from `bins.edges`.
        number: of the bin that t is drawn from; may be traced.
        trained: as in `step.make_step`.
        batch: b images, other ones for each bin and micro-batch.

    Raises:
        ValueError: for the objective continuous, which has no t to draw.
    """
    check(parts.config.diffusion)
    loss_fn = make_loss(dataclasses.replace(parts, draw_t=bins.draw(edges, number)))

    def objective(params: Any) -> jax.Array:
        net = mesh_lib.gathered(parts.mesh, params)
        _, terms = loss_fn(key, {**trained, "net": net}, batch, history)
        return jnp.mean(terms.objective)

    gradient = jax.grad(objective)(trained["net"])
    return Sums(
        gradient=jax.tree.map(jnp.add, sums.gradient, gradient),
        squares=sums.squares + optax.tree.norm(gradient, squared=True),
    )


def finish(sums: Sequence[Sums], filled: jax.Array, *, micro_batches: int, batch_size: int) -> GradientStats:
    """The statistics of n bins, from the sums of each over `micro_batches` of `batch_size` images.

    `filled` bool [n] says which bins have steps.

    Raises:
        ValueError: for fewer than two micro-batches, of which noise can't be told from signal.
    """
    if micro_batches < 2:
        raise ValueError(f"micro_batches must be at least 2, got {micro_batches}")
    more = micro_batches / (micro_batches - 1)

    def inner(*leaves: jax.Array) -> jax.Array:
        means, axes = jnp.stack(leaves) / micro_batches, tuple(range(1, leaves[0].ndim + 1))
        return jnp.tensordot(means, means, axes=(axes, axes), precision=jax.lax.Precision.HIGHEST)

    products = sum(jax.tree.leaves(jax.tree.map(inner, *(one.gradient for one in sums))))
    squares = jnp.stack([one.squares for one in sums]) / micro_batches
    of_mean = jnp.diagonal(jnp.asarray(products))
    signal = jnp.where(filled, more * (of_mean - squares / micro_batches), jnp.nan)
    noise = jnp.where(filled, batch_size * more * (squares - of_mean), jnp.nan)
    seen = jnp.sqrt(jnp.where(signal > 0, signal, jnp.nan))
    cosine = jnp.clip(products / (seen[:, None] * seen[None, :]), -1.0, 1.0)
    itself = jnp.eye(len(sums), dtype=bool) & ~jnp.isnan(cosine)
    return GradientStats(
        norm=jnp.sqrt(jnp.maximum(signal, 0.0)),
        noise=jnp.sqrt(jnp.maximum(noise, 0.0)),
        cosine=jnp.where(itself, 1.0, cosine),
    )


def filled(parts: Parts, edges: jax.Array) -> jax.Array:
    """Which bins have steps, bool [n]."""
    steps = bins.of_steps(parts.schedule, edges)
    return bins.sums(steps, jnp.zeros(steps.shape), edges.size - 1)[1] > 0


def by_bin(
    key: jax.Array,
    add_to: Callable[[Sums, jax.Array, int, Batch], Sums],
    params: Any,
    filled: jax.Array,
    batch_of: Callable[[int, int], Batch],
    *,
    batch_size: int,
    micro_batches: int = MICRO_BATCHES,
    start: Callable[[Any], Sums] = empty,
    end: Callable[..., GradientStats] = finish,
) -> GradientStats:
    """Statistics of every bin, one micro-batch after the other.

    Pure if the functions are. Traced as a whole it lays all n m gradients out, which few bins of small networks bear;
    otherwise compile add_to (and start and end), and call this as it stands: a loop over gradients inside one program
    is several times slower on CPUs.

    Args:
        key: decides all randomness but the images'.
        add_to: add_to(sums, key, bin, batch) -> `add` with parts and trained parameters in it.
        params: the network's, for their shapes.
        filled: which bins have steps, bool [n].
        batch_of: batch_of(bin, micro-batch) -> `batch_size` images, other ones each time.
    """
    num = filled.shape[0]
    keys, found = jax.random.split(key, (num, micro_batches)), []
    for number in range(num):
        sums = start(params)
        for i in range(micro_batches):
            sums = add_to(sums, keys[number, i], number, batch_of(number, i))
        found.append(sums)
    return end(found, filled, micro_batches=micro_batches, batch_size=batch_size)


def key_of(seed: int) -> jax.Array:
    """The key of a run's statistics, which its parameters and its steps have no part in."""
    return jax.random.fold_in(jax.random.key(seed), 2)


def images_seed(*numbers: int) -> int:
    """The seed that decides a micro-batch's images, from a run's seed and what tells the micro-batch from others."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def statistics(
    parts: Parts, source: Source, together: Callable[..., None] = lambda *_: None
) -> Callable[[State], GradientStats]:
    """A run's own statistics, of config.run.bins bins: state -> GradientStats, compiled when it is first called.

    A micro-batch is a batch of the run, or one of the parts it is taken in, and lies on the devices as it does. Images
    and randomness follow from seed and step, by streams of their own: the run goes on as it would have without.

    Args:
        together: together(function, *arguments) is called before the first use of a jitted function.
    """
    config, mesh = parts.config, parts.mesh
    check(config.diffusion)
    edges = bins.edges(parts.schedule, config.run.bins)
    size, rows_on = config.batch_size // config.devices.accumulate, mesh_lib.split(mesh)
    which = {"batch_size": size, "flip": config.data.flip, "rows": mesh_lib.rows(mesh, size)}
    source = source if num_classes(config) else dataclasses.replace(source, labels=None)
    everywhere: Any = mesh_lib.replicated(mesh)
    of_sums = Sums(gradient=parts.shardings().params, squares=everywhere)
    start = jax.jit(empty, out_shardings=of_sums)
    end = jax.jit(finish, static_argnames=("micro_batches", "batch_size"), out_shardings=everywhere)
    there = jax.jit(lambda: filled(parts, edges), out_shardings=everywhere)()
    compiled: list[bool] = []

    @functools.partial(xla.jit, donate_argnums=0, out_shardings=of_sums)
    def one_more(sums: Sums, key: jax.Array, number: jax.Array, trained: Any, batch: Batch, history: Any) -> Sums:
        return add(sums, key, parts, edges, number, trained, batch, history)

    def taken(state: State) -> GradientStats:
        step = int(state.step)

        def batch_of(number: int, i: int) -> Batch:
            raw = pipeline.read_at(source, 0, seed=images_seed(config.seed, step, number, i), **which)
            return mesh_lib.place(dataclasses.replace(raw, images=pipeline.to_float(np.asarray(raw.images))), rows_on)

        def add_to(sums: Sums, key: jax.Array, number: int, batch: Batch) -> Sums:
            given = sums, key, jnp.int32(number), state.trained(), batch, state.history
            if not compiled:
                together(one_more, *given)
                compiled.append(True)
            return one_more(*given)

        key = jax.random.fold_in(key_of(config.seed), step)
        return by_bin(key, add_to, state.params, there, batch_of, batch_size=size, start=start, end=end)

    return taken


def check(settings: Diffusion) -> None:
    """Refuse an objective that can't be held to one bin.

    Raises:
        ValueError: naming the flag.
    """
    if settings.objective == "continuous":
        raise ValueError(
            "gradients by bin (--run.gradients-every) draw t from the steps of one bin, which --diffusion.objective "
            "continuous doesn't have"
        )
