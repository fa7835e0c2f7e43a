"""What a comparison finds: each member measured alike on held-out images, and its log read back."""

import dataclasses
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ddpm_jax import nets, records
from ddpm_jax.config import Config, Sampling
from ddpm_jax.data import pipeline
from ddpm_jax.data.record import Source
from ddpm_jax.diffusion import bins, schedules, uncertainty
from ddpm_jax.diffusion.weightings import effective
from ddpm_jax.evaluation import by_bin, frechet
from ddpm_jax.evaluation.comparison import Comparison, Variant
from ddpm_jax.evaluation.paired import Metric
from ddpm_jax.figures import pictures
from ddpm_jax.files import Place
from ddpm_jax.training import compare, population, report, run, sweep
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.compare import Trained
from ddpm_jax.training.draw import draw
from ddpm_jax.training.gradients import GradientStats
from ddpm_jax.training.population import Layout
from ddpm_jax.training.run import Parts
from ddpm_jax.training.state import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured."""

    pairs: int
    """Of image and t in each bin."""
    num_samples: int
    """Images from each network; 0 for none."""
    shown: int
    """Of them, kept for the report."""
    sample_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _One:
    """Of one member."""

    bound: by_bin.ByBin
    samples: np.ndarray | None
    """uint8."""
    frechet: float


def measure(
    trained: Trained,
    base: Config,
    variants: Sequence[sweep.Variant],
    seeds: Sequence[int],
    source: Source,
    held_out: Source,
    workdir: Place,
    edges: np.ndarray,
    settings: Settings,
    gradients: Sequence[GradientStats] | None,
) -> Comparison:
    """The record of a comparison, of which title, command and facts are still to be told.

    Every network is measured with the average of its weights, on the same held-out images, t and noise, and draws from
    the same latents. Members are numbered variant by variant, seed by seed; `base` is what the variants vary.
    """
    states = {id(kind): population.states_of(kind) for kind in trained.kinds}
    shape = len(variants), len(seeds)
    reference = _floats(held_out, min(len(held_out), max(settings.num_samples, 2)))
    of_variant, found = [], np.empty(shape, object)
    with tqdm(total=len(variants) * len(seeds), desc="measuring", unit="network") as bar:
        for v, variant in enumerate(variants):
            parts = run.build(variant.config)
            for s, seed in enumerate(seeds):
                number = v * len(seeds) + s
                kind = next(kind for kind in trained.kinds if number in kind.members)
                state = compare.state_of(kind, states[id(kind)], number)
                if s == 0:
                    of_variant.append(_variant(variant, base, parts, state))
                found[v, s] = _measure(parts, state, seed, held_out, reference, edges, settings)
                bar.update()
    steps, loss, eps_error = _curves(workdir, variants, seeds, edges)

    def of(name: str, get: Any, error: Any = None, *, unit: str) -> Metric:
        return Metric(
            name=name,
            unit=unit,
            lower_is_better=True,
            values=_table(found, get),
            standard_error=None if error is None else _table(found, error),
        )

    metrics = [
        of("bits/dim", lambda one: one.bound.bits_per_dim, lambda one: one.bound.standard_error, unit="bits/dim"),
        of("L_simple", lambda one: one.bound.simple, lambda one: one.bound.simple_error, unit=""),
    ]
    share = np.bincount(bins.of_steps(schedules.build(variants[0].config.diffusion), jnp.asarray(edges)), minlength=len(edges) - 1)
    metrics.append(_in_training(eps_error, share / share.sum()))
    if settings.num_samples:
        metrics.append(of("Frechet distance of pixels", lambda one: one.frechet, unit=""))
    shown = min(settings.shown, settings.num_samples)
    stacked = (
        None if gradients is None else jax.tree.map(lambda *x: np.stack(x).reshape(*shape, *x[0].shape), *gradients)
    )
    return Comparison(
        title="",
        command="",
        facts={},
        variants=tuple(of_variant),
        seeds=tuple(seeds),
        edges=edges,
        metrics=tuple(metrics),
        steps=steps,
        loss=loss,
        eps_error=eps_error,
        steps_per_second=np.asarray(trained.steps_per_second).reshape(shape).mean(axis=1),
        bits_by_bin=np.array([[one.bound.bits for one in row] for row in found]),
        grad_norm=None if stacked is None else stacked.norm,
        grad_noise=None if stacked is None else stacked.noise,
        cosine=None if stacked is None else stacked.cosine,
        samples=np.array([[one.samples[:shown] for one in row] for row in found]) if shown else None,
    )


def _in_training(eps_error: np.ndarray, share: np.ndarray) -> Metric:
    """L_simple on training images, over the last tenth of the log; `share` [n] of the steps that each bin has.

    Every member of a seed has met the same images, t and noise there, so that the differences of few seeds tell much.
    """
    last = eps_error[:, :, -max(1, eps_error.shape[2] // 10) :]
    seen = np.isfinite(last)
    mean = np.where(seen, last, 0).sum(axis=2) / np.where(seen.any(axis=2), seen.sum(axis=2), np.nan)
    values = np.nansum(mean * share, axis=2) / np.where(np.isfinite(mean), share, 0).sum(axis=2)
    return Metric(name="L_simple in training", unit="", lower_is_better=True, values=values)


def _table(found: np.ndarray, get: Any) -> np.ndarray:
    return np.array([[get(one) for one in row] for row in found], np.float64)


def _floats(source: Source, num: int) -> np.ndarray:
    return pipeline.to_float(np.asarray(source.images[np.arange(num)]))


def _variant(variant: sweep.Variant, base: Config, parts: Parts, state: State) -> Variant:
    """How the report tells a variant: its flags, and w(lambda) with what its first seed has learned."""
    settings = variant.config.diffusion
    k = parts.weighting
    if settings.learn_uncertainty:
        k = uncertainty.weighting(k, state.uncertainty)
    what = effective(parts.schedule, k, parts.draw_t, history=state.history, correct_draw=settings.correct_draw)
    changed = records.differences(base, variant.config)
    return Variant(
        name=variant.name,
        settings={f"--{name.replace('_', '-')}": _said(new) for name, (_, new) in changed.items()},
        log_snr=np.asarray(what.log_snr),
        w=np.asarray(what.w),
        monotone=what.monotone,
    )


def _said(value: Any) -> str:
    """A field's value as its flag takes it."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _measure(
    parts: Parts,
    state: State,
    seed: int,
    held_out: Source,
    reference: np.ndarray,
    edges: np.ndarray,
    settings: Settings,
) -> _One:
    parts = run.as_learned(parts, state)
    on_devices = mesh_lib.split(parts.mesh)
    classes = run.num_classes(parts.config)

    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        images = pipeline.to_float(np.asarray(held_out.images[rows]))
        return images, np.asarray(held_out.labels[rows]) if classes and held_out.labels is not None else None

    params = mesh_lib.whole(parts.mesh, state.ema)
    bound = by_bin.measure(
        jax.random.key(0),
        parts.schedule,
        nets.denoiser(parts.module, params),
        read,
        len(held_out),
        edges=edges,
        of_each=settings.pairs,
        batch_size=64 * parts.mesh.size,
        prediction=parts.config.diffusion.prediction,
        variance=parts.config.diffusion.variance,
        sharding=on_devices,
    )
    if not settings.num_samples:
        return _One(bound=bound, samples=None, frechet=np.nan)
    how = Sampling(sampler="ddim", steps=(min(settings.sample_steps, parts.schedule.num_steps),))
    drawn, _ = draw(parts, state.ema, seed=seed, num=settings.num_samples, settings=how, batch_size=64)
    finite = bool(np.isfinite(drawn).all())
    return _One(
        bound=bound,
        samples=pictures.to_bytes(np.nan_to_num(drawn, posinf=1, neginf=-1)),
        frechet=frechet.frechet_distance(drawn, reference) if finite else np.nan,
    )


def _curves(
    workdir: Place, variants: Sequence[sweep.Variant], seeds: Sequence[int], edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logged steps [K], loss [V, S, K] and error of eps by bin [V, S, K, n]; NaN where the log has none."""
    lines = report.read(workdir)
    names = bins.names("eps_error", edges)
    loss = np.full((len(variants), len(seeds), len(lines)), np.nan)
    error = np.full((*loss.shape, len(names)), np.nan)
    for v, variant in enumerate(variants):
        for s, seed in enumerate(seeds):
            member = compare.name_of(variant.name, seed)
            for k, line in enumerate(lines):
                loss[v, s, k] = line.get(compare.key_of(member, "loss"), np.nan)
                error[v, s, k] = [line.get(compare.key_of(member, name), np.nan) for name in names]
    return np.array([line["step"] for line in lines], int), loss, error


def facts(config: Config, preset: str, layout: Layout, trained: Trained, seconds: float) -> dict[str, str]:
    """What ran, for people."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint")
    devices = jax.devices()
    member_steps = sum(len(kind.members) for kind in trained.kinds) * trained.step
    each = f"{layout.each} to a device at a time" if layout.each else "all at a time"
    how = f"{each}, {layout.arrangement}" if layout.each != 1 else each
    return {
        "preset": preset,
        "steps": f"{config.steps:,}",
        "batch size": str(config.batch_size),
        "data": f"{config.data.source} {config.data.name} {config.data.split} {config.data.shape}".replace("  ", " "),
        "parameters": f"{sum(x.size for x in jax.tree.leaves(trained.kinds[0].parts.abstract().params)):,}",
        "programs": str(len(trained.kinds)),
        "members": how,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "time": f"{seconds / 60:.1f} minutes for {member_steps:,} steps of members",
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in packages),
        "machine": f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
    }
