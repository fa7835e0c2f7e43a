"""One training step, compiled once for a mesh of devices (Ho et al. 2020, Algorithm 1)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ddpm_jax import xla
from ddpm_jax.data.pipeline import Batch
from ddpm_jax.diffusion import bins
from ddpm_jax.diffusion.loss import LossTerms
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training import power_ema
from ddpm_jax.training.state import State, average

Metrics = dict[str, jax.Array]
LossFn = Callable[[jax.Array, Any, Batch, Any], tuple[jax.Array, LossTerms]]
Remember = Callable[[Any, LossTerms], Any]
TrainStep = Callable[[State, Batch, jax.Array], tuple[State, Metrics]]


def _by_quarter(terms: LossTerms, num_steps: int) -> Metrics:
    """Sum of the prediction's squared error and number of images, for each quarter of t: where the loss comes from."""
    quarter = terms.t * 4 // num_steps
    inside = quarter[None, :] == jnp.arange(4)[:, None]
    return {"quarter_sum": jnp.sum(jnp.where(inside, terms.mse, 0.0), axis=1), "quarter_count": jnp.sum(inside, axis=1)}


def _by_bin(terms: LossTerms, edges: jax.Array | None) -> Metrics:
    """Sum of the error of eps and number of images, for each bin of log-SNR, if there are any."""
    if edges is None:
        return {}
    total, count = bins.sums(bins.of_log_snr(terms.log_snr, edges), terms.eps_error, edges.size - 1)
    return {"bin_sum": total, "bin_count": count}


def _forget(history: Any, terms: LossTerms) -> Any:
    del terms
    return history


def make_update(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    num_steps: int,
    mesh: Mesh,
    accumulate: int = 1,
    remember: Remember = _forget,
    edges: jax.Array | None = None,
) -> TrainStep:
    """(state, batch, key) -> (state, metrics), not yet compiled; the arguments are those of `make_step`."""

    def step(state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        def of_trained(trained: Any, key: jax.Array, part: Batch) -> tuple[jax.Array, LossTerms]:
            return loss_fn(key, mesh_lib.gathered(mesh, trained), part, state.history)

        of_part = functools.partial(jax.value_and_grad(of_trained, has_aux=True), state.trained())
        key = jax.random.fold_in(key, state.step)
        (loss, terms), gradient = _in_parts(of_part, key, batch, accumulate, mesh)
        norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trained())
        trained: Any = optax.apply_updates(state.trained(), updates)
        moved = State(
            step=state.step,
            params=trained["net"],
            ema=average(state.ema, trained["net"], state.step, ema_decay),
            opt_state=opt_state,
            noise=trained["noise"],
            history=remember(state.history, terms),
            uncertainty=trained.get("uncertainty", ()),
            power_ema=state.power_ema,
        )
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state)
        metrics = {"loss": loss, "grad_norm": norm, "nonfinite": ~good}
        metrics |= _by_quarter(terms, num_steps) | _by_bin(terms, edges)
        count = state.step + 1
        # After the choice: these weigh by the count of steps, of which one that isn't finite is one, too.
        powers = power_ema.average(state.power_ema, kept.params, count)
        return dataclasses.replace(kept, step=count, power_ema=powers), metrics

    return step


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    num_steps: int,
    mesh: Mesh,
    steps_per_dispatch: int = 1,
    accumulate: int = 1,
    remember: Remember = _forget,
    edges: jax.Array | None = None,
    shardings: State | None = None,
) -> TrainStep:
    """The function (state, batch, key) -> (state, metrics), compiled when it is first called.

    Args:
        loss_fn: loss_fn(key, trained, batch, history) -> the mean over the batch, and its terms; trained is
            {"net": parameters, "noise": those of a learned noise schedule} and, if it is learned, "uncertainty".
        optimizer: with clipping in it, if any.
        ema_decay: of the averaged parameters, once warm.
        num_steps: T, to sort the loss by quarter of t.
        mesh: where it runs. The state is given away (donated): use the one that comes back.
        steps_per_dispatch: k > 1 takes k batches at once, arrays [k, B, ...], and returns metrics [k]. It spares an
            accelerator the wait for its host; on CPU a step inside the scan is several times slower.
        accumulate: a batch is taken in so many parts, each with noise of its own, whose gradients are averaged.
        remember: remember(history, terms) -> the history after a batch, for draws of t that look back.
        edges: those of bins of log-SNR (`bins.edges`) by which the metrics sort the error of eps; None for no bins.
        shardings: where the state's arrays lie (`mesh.of_state`); everywhere if not given.

    A step whose loss or gradient isn't finite changes nothing but the count of steps, and says so in
    metrics["nonfinite"]: the state that comes back is always good. To averages that weigh by the count of steps
    (`State.power_ema`) it is a step to where the parameters were.
    """
    step = make_update(
        loss_fn,
        optimizer,
        ema_decay=ema_decay,
        num_steps=num_steps,
        mesh=mesh,
        accumulate=accumulate,
        remember=remember,
        edges=edges,
    )

    def several(state: State, batches: Batch, key: jax.Array) -> tuple[State, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, batch, key), state, batches)

    everywhere = mesh_lib.replicated(mesh)
    of_state: Any = everywhere if shardings is None else shardings
    of_batch = mesh_lib.split(mesh, axis=0 if steps_per_dispatch == 1 else 1)
    return jax.jit(
        step if steps_per_dispatch == 1 else several,
        in_shardings=(of_state, of_batch, everywhere),
        out_shardings=(of_state, everywhere),
        donate_argnums=0,
        compiler_options=xla.options(mesh.devices.flat[0].platform),
    )


def _in_parts(of_part: Callable, key: jax.Array, batch: Batch, count: int, mesh: Mesh) -> Any:
    """((loss, terms), gradient) of a batch taken in `count` parts: means of the parts', and the terms of all images."""
    if count == 1:
        return of_part(key, batch)
    # Part p takes every count-th image, so that each stays spread over the devices as the batch is.
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), batch)

    # XLA's CPU backend runs the body of a loop many times slower than the same code laid out.
    laid_out = mesh.devices.flat[0].platform == "cpu"

    def add(total: Any, part: Any) -> tuple[Any, LossTerms]:
        if laid_out and mesh.size == 1:
            part = part[0], _after(total, part[1])
        (loss, terms), gradient = of_part(jax.random.fold_in(key, part[0]), part[1])
        return jax.tree.map(jnp.add, total, (loss, gradient)), terms

    shapes = jax.eval_shape(lambda: of_part(key, jax.tree.map(lambda x: x[0], parts)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0][0], shapes[1]))
    total, terms = jax.lax.scan(add, zeros, (jnp.arange(count), parts), unroll=count if laid_out else 1)
    loss, gradient = jax.tree.map(lambda x: x / count, total)
    return (loss, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), terms)), gradient


def _after(total: Any, part: Batch) -> Batch:
    """`part`, not to be begun before all of `total` is there: laid out, parts would else be in memory all at once.

    XLA for CPUs drops optimisation barriers before it orders the program; but it may not leave out 0 * x, which is NaN
    where x isn't finite. Where it isn't, the whole step is refused anyhow.
    """
    done = jnp.stack([jnp.ravel(x)[0] for x in jax.tree.leaves(total)]).sum()
    return dataclasses.replace(part, images=part.images + (0 * done).astype(part.images.dtype))
