"""Guidance: wrappers around a network, denoise -> denoise, which compose.

Each moves the network's answer away from a worse one, or up a classifier's slope:

    classifier_free   eps = eps_null + w (eps_c - eps_null)                               (Ho & Salimans 2022, Eq. 6)
    autoguidance      eps = eps_worse + w (eps - eps_worse)                               (Karras et al. 2024)
    classifier        eps = eps - w sigma grad log p(c | x_t)                  (Dhariwal & Nichol 2021, Alg. 2)

By this convention w = 1 of the first two is no guidance (the first paper's own w is one less), and w = 0 of the third.
At a fixed x_t every prediction is an affine function of eps, so that the first two may be taken of any prediction; the
slope is said in the network's own. What a network says of the variance stays that of the guided (conditional) answer.
A weight is a number or a function of log-SNR (`guidance_weights`).

What is exact: with exact networks the answer is, at each noise level, the score of p_t(x) p_t(c | x)^w. But for w = 0
and 1 these densities are no noised versions of one another, so that a sampler does not end in p_0(x) p_0(c | x)^w. Of a
Gaussian class in a Gaussian population, say, the ODE's end has the deviation s^(1-w) s_c^w, the tilted density the
variance 1 / ((1 - w) / s^2 + w / s_c^2).

The wrappers are pytrees of what they are given: weights, networks and schedules are arguments of a compiled loop, which
is compiled once for all weights.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.parameterization import target_at
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.reverse import split
from ddpm_jax.diffusion.schedules import NoiseLevel, Schedule, at
from ddpm_jax.sampling import guidance_weights
from ddpm_jax.sampling.guidance_weights import Weight
from ddpm_jax.types import Denoiser, per_image


def classifier_free(
    denoise: Denoiser, weight: Weight, null: Any, *, schedule: Schedule | Process | None = None, rescale: float = 0.0
) -> Denoiser:
    """The conditional answer, led away from the unconditional one (Ho & Salimans 2022): both in one evaluation of 2B.

    Args:
        denoise: denoise(x_t, time, conditions) -> [B, ..., C], or 2 C with a variance.
        weight: w in eps_null + w (eps_c - eps_null); 1 is no guidance. Where a function of log-SNR says 1 for the whole
            batch, the network is asked once, of B.
        null: the conditions that mean "none", one value for each of their arrays (here the number of classes).
        schedule: what the network was trained on; for a weight that is a function.
        rescale: phi, 0 to 1, of Lin et al. 2023 (Eq. 15, 16): the guided prediction x becomes
            phi x std_c / std + (1 - phi) x, so that it doesn't grow with w. As in the paper, std is over all dimensions
            of an image, and of what the network predicts: it means something else for each prediction.

    Raises:
        ValueError: for a weight that is a function, without a schedule.
    """
    weight, level_of = _weight(weight, schedule)
    return Partial(_classifier_free, _tree(denoise), weight, level_of, null, jnp.asarray(rescale, float))


def autoguidance(
    denoise: Denoiser, worse: Denoiser, weight: Weight, *, schedule: Schedule | Process | None = None
) -> Denoiser:
    """The answer, led away from that of a worse network (Karras et al. 2024, "Guiding a diffusion model with a bad
    version of itself").

    Args:
        denoise: denoise(x_t, time) or, of conditions too, as `worse`.
        worse: a network of the same prediction: of an earlier checkpoint, say, or of fewer parameters.
        weight: w in eps_worse + w (eps - eps_worse); 1 is no guidance. Where a function of log-SNR says 1 for the whole
            batch, `worse` isn't asked.
        schedule: what the networks were trained on; for a weight that is a function.

    Raises:
        ValueError: for a weight that is a function, without a schedule.
    """
    return Partial(_autoguidance, _tree(denoise), _tree(worse), *_weight(weight, schedule))


def classifier(
    denoise: Denoiser, log_prob: Denoiser, weight: Weight, *, schedule: Schedule | Process, prediction: str = "eps"
) -> Denoiser:
    """The answer, led up the slope of a classifier's log p(c | x_t): eps - w sigma grad.

    That is Dhariwal & Nichol 2021, Algorithm 2, here for any sampler. In ancestral steps it shifts the mean by
    w beta_t / sqrt(alpha_t) grad, where their Algorithm 1 shifts it by w Sigma grad: the same as steps get shorter.

    Args:
        denoise: denoise(x_t, time, conditions); `unconditional` makes one of a network without classes.
        log_prob: log_prob(x_t, time, conditions) -> [B], the classifier's log p(conditions | x_t).
        weight: w; 0 is no guidance. With 1 and an unconditional network it is the score of p(x_t | c). Where a function
            of log-SNR says 0 for the whole batch, the classifier isn't asked.
        schedule: what the network was trained on, for sigma.
        prediction: what the network's output means. Where there is no signal (alpha = 0) predictions other than eps and
            score aren't moved: they would need the slope over alpha.
    """
    weight, level_of = _weight(weight, schedule, always=True)
    return Partial(_by_classifier(prediction), _tree(denoise), _tree(log_prob), weight, level_of)


def unconditional(denoise: Denoiser) -> Denoiser:
    """denoise(x_t, time) as one that takes conditions and leaves them aside."""
    return Partial(_unconditional, _tree(denoise))


def retold(denoise: Denoiser, own: Schedule, schedule: Schedule) -> Denoiser:
    """A network or classifier of the schedule `own`, told the time by another: each noise level by its own time.

    Both keep the variance, so that x_t is the same at equal log-SNR.
    """
    return Partial(_retold, _tree(denoise), own, schedule)


def _classifier_free(
    denoise: Denoiser,
    weight: Any,
    level_of: Partial | None,
    null: Any,
    rescale: jax.Array,
    x_t: jax.Array,
    time: jax.Array,
    conditions: Any,
) -> jax.Array:
    w = _read(weight, level_of, time)

    def guided() -> jax.Array:
        nothing = jax.tree.map(jnp.full_like, conditions, null)
        twice = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), (x_t, time, conditions), (x_t, time, nothing))
        with_, without = jnp.split(denoise(*twice), 2)
        return _away(with_, without, w, x_t, rescale)

    return _unless(weight, w == 1, lambda: denoise(x_t, time, conditions), guided)


def _autoguidance(
    denoise: Denoiser,
    worse: Denoiser,
    weight: Any,
    level_of: Partial | None,
    x_t: jax.Array,
    time: jax.Array,
    *conditions: Any,
) -> jax.Array:
    w, good = _read(weight, level_of, time), denoise(x_t, time, *conditions)
    return _unless(weight, w == 1, lambda: good, lambda: _away(good, worse(x_t, time, *conditions), w, x_t))


@functools.lru_cache
def _by_classifier(prediction: str) -> Callable[..., jax.Array]:
    def answer(
        denoise: Denoiser,
        log_prob: Denoiser,
        weight: Any,
        level_of: Partial,
        x_t: jax.Array,
        time: jax.Array,
        conditions: Any,
    ) -> jax.Array:
        w, output = _read(weight, level_of, time), denoise(x_t, time, conditions)

        def guided() -> jax.Array:
            slope = jax.grad(lambda x: jnp.sum(log_prob(x, time, conditions)))(x_t)
            level = jax.tree.map(lambda value: per_image(value, x_t), level_of(time))
            eps = -per_image(w, x_t) * level.sigma * slope
            # A change of eps at a fixed x_t changes x_0 by -sigma / alpha of it, and the prediction as if x_t were 0.
            none = level.alpha == 0
            x_0 = jnp.where(none, 0.0, -level.sigma * eps / jnp.where(none, 1.0, level.alpha))
            said, v = split(output, x_t.shape[-1])
            return _joined(said + target_at(level, prediction, x_0, eps), v, output.dtype)

        return _unless(weight, w == 0, lambda: output, guided)

    return answer


def _unconditional(denoise: Denoiser, x_t: jax.Array, time: jax.Array, conditions: Any) -> jax.Array:
    del conditions
    return denoise(x_t, time)


def _retold(
    denoise: Denoiser, own: Schedule, schedule: Schedule, x_t: jax.Array, time: jax.Array, *conditions: Any
) -> jax.Array:
    log_snr = jnp.interp(time, schedule.times, schedule.log_snr)
    return denoise(x_t, jnp.interp(-log_snr, -own.log_snr, own.times).astype(time.dtype), *conditions)


def _away(good: jax.Array, worse: jax.Array, w: jax.Array, x_t: jax.Array, rescale: Any = None) -> jax.Array:
    """The good answer, moved away from the worse one; exactly itself where w is 1."""
    (said, v), (other, _) = split(good, x_t.shape[-1]), split(worse, x_t.shape[-1])
    w = per_image(w, x_t)
    moved = said + (w - 1) * (said - other)
    if rescale is not None:
        axes = tuple(range(1, x_t.ndim))
        found, wanted = jnp.var(moved, axes, keepdims=True), jnp.var(said, axes, keepdims=True)
        flat = found == 0
        moved = moved * (1 + rescale * (jnp.sqrt(jnp.where(flat, 1.0, wanted / jnp.where(flat, 1.0, found))) - 1))
    return _joined(jnp.where(w == 1, said, moved), v, good.dtype)


def _joined(said: jax.Array, v: jax.Array | None, dtype: Any) -> jax.Array:
    return (said if v is None else jnp.concatenate([said, v], axis=-1)).astype(dtype)


def _unless(weight: Any, off: jax.Array, plain: Callable[[], jax.Array], guided: Callable[[], jax.Array]) -> jax.Array:
    """`plain` where a changing weight is off for the whole batch: then the rest isn't worked out."""
    return jax.lax.cond(jnp.all(off), plain, guided) if callable(weight) else guided()


def _tree(function: Denoiser) -> Partial:
    return function if isinstance(function, Partial) else Partial(function)


def _weight(weight: Weight, schedule: Schedule | Process | None, *, always: bool = False) -> tuple[Any, Partial | None]:
    """A weight as a pytree, and what turns the network's time into a level where that is needed."""
    if callable(weight) and schedule is None:
        raise ValueError("a weight that changes with the noise needs the network's schedule, got none")
    if schedule is None or not (always or callable(weight)):
        return guidance_weights.tree(weight), None
    return guidance_weights.tree(weight), _level_of(schedule)


def _read(weight: Any, level_of: Partial | None, time: jax.Array) -> jax.Array:
    """The weight of each image, [B]."""
    if callable(weight) and level_of is not None:
        return jnp.asarray(weight(level_of(time).log_snr))
    return jnp.broadcast_to(jnp.asarray(weight, time.dtype), time.shape)


def _level_of(schedule: Schedule | Process) -> Partial:
    """time [B], as a network is told it, -> NoiseLevel."""
    return Partial(_in_table, schedule) if isinstance(schedule, Schedule) else Partial(_on_process(schedule))


def _in_table(schedule: Schedule, time: jax.Array) -> NoiseLevel:
    return at(schedule, jnp.interp(time, schedule.times, jnp.arange(schedule.num_steps, dtype=time.dtype)))


@functools.lru_cache
def _on_process(process: Process) -> Callable[[jax.Array], NoiseLevel]:
    def level(time: jax.Array) -> NoiseLevel:
        def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            middle = (ends[0] + ends[1]) / 2
            above = process.time(jnp, middle) > time
            return jnp.where(above, ends[0], middle), jnp.where(above, middle, ends[1])

        # A process says the time of t, which rises with it: t is found by halving, to the last bit.
        ends = jnp.full_like(time, process.clean), jnp.full_like(time, process.start)
        t = jax.lax.fori_loop(0, 64, halve, ends)[1]
        alpha, sigma = jnp.exp(process.log_alpha(jnp, t)), jnp.exp(process.log_sigma(jnp, t))
        none = jnp.full_like(time, jnp.nan)  # there is no step, so no posterior
        log_snr = process.log_snr(jnp, t)
        return NoiseLevel(alpha=alpha, sigma=sigma, log_snr=log_snr, coef_x0=none, coef_xt=none, variance=none)

    return level
