"""What a comparison finds: each member measured alike on held-out images, and its log read back."""

import dataclasses
import functools
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
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
from ddpm_jax.diffusion.weightings import WEIGHTINGS, effective
from ddpm_jax.evaluation import by_bin, frechet
from ddpm_jax.evaluation.comparison import Comparison, Variant
from ddpm_jax.evaluation.paired import Metric
from ddpm_jax.figures import pictures
from ddpm_jax.files import Place
from ddpm_jax.training import compare, population, report, run, sweep
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.draw import draw
from ddpm_jax.training.gradients import GradientStats
from ddpm_jax.training.population import Kind
from ddpm_jax.training.run import Parts
from ddpm_jax.training.state import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured."""

    pairs: int
    """Of image and t in each bin, and at t = 0."""
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
    kinds: Sequence[Kind],
    base: Config,
    variants: Sequence[sweep.Variant],
    seeds: Sequence[int],
    held_out: Source,
    workdir: Place,
    edges: np.ndarray,
    settings: Settings,
) -> Comparison:
    """The record of a comparison, of which title, command, facts and gradients are still to be told.

    Every network is measured with the average of its weights; those of a seed on the same held-out images, t and noise,
    and drawing from the same latents. Members are numbered variant by variant, seed by seed; `base` is what variants
    vary.
    """
    states = {id(kind): population.states_of(kind) for kind in kinds}
    shape = len(variants), len(seeds)
    rows = np.random.default_rng(0).permutation(len(held_out))[: max(settings.num_samples, 2)]
    reference = _floats(held_out, np.sort(rows))
    of_variant, found = [], np.empty(shape, object)
    with tqdm(total=len(variants) * len(seeds), desc="measuring", unit="network") as bar:
        for v, variant in enumerate(variants):
            parts = run.build(variant.config)
            for s, seed in enumerate(seeds):
                number = v * len(seeds) + s
                kind = next(kind for kind in kinds if number in kind.members)
                state = compare.state_of(kind, states[id(kind)], number)
                if s == 0:
                    of_variant.append(_variant(variant, base, parts, state))
                found[v, s] = _measure(parts, state, seed, held_out, reference, edges, settings)
                bar.update()
    lines = report.read(workdir)
    loss, skipped, speed = np.moveaxis(_logged(lines, variants, seeds, ["loss", "skipped", "steps_per_second"]), -1, 0)
    eps_error = _logged(lines, variants, seeds, bins.names("eps_error", edges))

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
    if len({_drawn(variant.config) for variant in variants}) == 1:
        metrics.append(_in_training(eps_error, _shares(variants[0].config, edges)))
    if settings.num_samples:
        metrics.append(of("Frechet distance of pixels", lambda one: one.frechet, unit=""))
    shown = min(settings.shown, settings.num_samples)
    return Comparison(
        title="",
        command="",
        facts={},
        variants=tuple(of_variant),
        seeds=tuple(seeds),
        edges=edges,
        metrics=tuple(metrics),
        steps=np.array([line["step"] for line in lines], int),
        loss=loss,
        eps_error=eps_error,
        steps_per_second=np.median(speed, axis=(1, 2)) if lines else np.full(len(variants), np.nan),
        skipped=np.nansum(skipped, axis=2).astype(int),
        bits_by_bin=np.array([[one.bound.bits for one in row] for row in found]),
        samples=np.array([[one.samples[:shown] for one in row] for row in found]) if shown else None,
    )


def with_gradients(found: Comparison, gradients: Sequence[GradientStats] | None) -> Comparison:
    """The record with the gradients of its members, in their order, if there are any."""
    if gradients is None:
        return found
    shape = len(found.variants), len(found.seeds)
    stacked = jax.tree.map(lambda *x: np.stack(x).reshape(*shape, *x[0].shape), *gradients)
    return dataclasses.replace(found, grad_norm=stacked.norm, grad_noise=stacked.noise, cosine=stacked.cosine)


def _drawn(config: Config) -> tuple[Any, ...]:
    """What decides which noise levels a run meets."""
    own = config.diffusion
    names = ("schedule", "schedule_args", "zero_terminal_snr", "log_snr_shift", "draw_t", "draw_t_args", "correct_draw")
    return tuple(getattr(own, name) for name in names)


def _shares(config: Config, edges: np.ndarray) -> np.ndarray:
    """The share of the steps that lies in each bin [n]."""
    where = np.asarray(bins.of_steps(schedules.build(config.diffusion), jnp.asarray(edges)))
    return np.bincount(where, minlength=len(edges) - 1) / len(where)


def _in_training(eps_error: np.ndarray, share: np.ndarray) -> Metric:
    """L_simple on training images, over the last tenth of the log; `share` [n] of the steps that each bin has.

    Every member of a seed has met the same images, t and noise there, so that the differences of few seeds tell much.
    Bins that one of them has not been seen in count for none.
    """
    last = eps_error[:, :, -max(1, eps_error.shape[2] // 10) :]
    seen = np.isfinite(last)
    count = seen.sum(axis=2)
    mean = np.where(seen, last, 0).sum(axis=2) / np.maximum(count, 1)
    common = np.where((count > 0).all(axis=0), share, 0.0)
    total = common.sum(axis=-1)
    values = np.where(total > 0, (mean * common).sum(axis=-1) / np.where(total > 0, total, 1), np.nan)
    return Metric(name="L_simple in training", unit="", lower_is_better=True, values=values)


def _table(found: np.ndarray, get: Any) -> np.ndarray:
    return np.array([[get(one) for one in row] for row in found], np.float64)


def _floats(source: Source, rows: np.ndarray) -> np.ndarray:
    return pipeline.to_float(np.asarray(source.images[rows]))


def _variant(variant: sweep.Variant, base: Config, parts: Parts, state: State) -> Variant:
    """How the report tells a variant: its flags, and w(lambda) with what its first seed has learned."""
    settings = variant.config.diffusion
    parts = run.as_learned(parts, state)
    k = parts.weighting
    if settings.objective == "vlb":  # these two leave the weighting alone
        k = functools.partial(WEIGHTINGS["vlb"], fraction=0.0 if settings.variance == "small" else 1.0)
    elif settings.objective == "continuous":
        k = WEIGHTINGS["elbo"]
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

    params = jax.device_put(state.ema, mesh_lib.replicated(parts.mesh))
    bound = by_bin.measure(
        jax.random.key(seed),  # every seed has noise and images of its own, so that its interval counts them in
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
    drawn, _ = draw(parts, params, seed=seed, num=settings.num_samples, settings=how, batch_size=64)
    finite = bool(np.isfinite(drawn).all())
    return _One(
        bound=bound,
        samples=pictures.to_bytes(np.nan_to_num(drawn, posinf=1, neginf=-1)),
        frechet=frechet.frechet_distance(drawn, reference) if finite else np.nan,
    )


def _logged(
    lines: Sequence[report.Values], variants: Sequence[sweep.Variant], seeds: Sequence[int], names: Sequence[str]
) -> np.ndarray:
    """Figures of each member in each line of the log [V, S, K, names]; NaN where it has none."""
    found = np.full((len(variants), len(seeds), len(lines), len(names)), np.nan)
    for v, variant in enumerate(variants):
        for s, seed in enumerate(seeds):
            member = compare.name_of(variant.name, seed)
            for k, line in enumerate(lines):
                found[v, s, k] = [line.get(compare.key_of(member, name), np.nan) for name in names]
    return found


def facts(config: Config, preset: str, kinds: Sequence[Kind], settings: Settings, held_out: str) -> dict[str, str]:
    """What ran, for people."""
    devices, data = jax.devices(), config.data
    packages = ("jax", "flax", "optax", "orbax-checkpoint")
    params = sum(x.size for x in jax.tree.leaves(kinds[0].parts.abstract().params))
    return {
        "preset": preset,
        "steps": f"{config.steps:,}",
        "batch size": str(config.batch_size),
        "data": " ".join(filter(None, (data.source, data.name, data.split, "x".join(map(str, data.shape))))),
        "parameters": f"{params:,}",
        "measured on": f"{held_out}: {settings.pairs} pairs of image and t in each bin and at t = 0",
        "samples": f"{settings.num_samples} by {settings.sample_steps} steps of DDIM",
        "programs": "; ".join(f"{len(kind.members)} members on {kind.mesh.size} devices" for kind in kinds),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in packages),
        "commit": _commit(),
        "machine": f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
    }


def _commit() -> str:
    """Of the checkout that this code lies in, if it does in one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"
