"""What a noise level counts for: k(log_snr), the factor on ||eps - eps_hat||^2. The algebra; `weighting_zoo` has the k.

Every weighting is stated for the error of eps, whatever a network predicts; `in_space` says the same objective as a
factor on the error of another prediction. It follows from how an error in one shows in the other at a fixed x_t:

    eps_hat - eps = -(alpha / sigma) (x0_hat - x_0) = alpha (v_hat - v) = -sigma (score_hat - score)
                  = alpha / (alpha + sigma) (flow_hat - flow) = -(alpha / sigma) / coef_x0 (mean_hat - mean)

What an objective is after schedule and draw of t have been taken in is a function of log-SNR alone (Kingma & Gao 2023):

    E_t[k(lambda_t) ||eps - eps_hat||^2] = integral of w(lambda) ||eps - eps_hat||^2 d lambda,   w = k p

with p the density of the drawn lambda_t. `effective` goes from k to w, `from_effective` from w to k; their paper's loss
is half of this. w = 1 is the ELBO; a w that never rises with lambda is the ELBO of data with Gaussian noise added to
it, averaged over how much.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timesteps import Draw, History
from ddpm_jax.diffusion.weighting_zoo import WEIGHTINGS, Weighting, falls, simple, speed, speeds
from ddpm_jax.records import match_arguments, pick

__all__ = ["WEIGHTINGS", "Effective", "Weighting", "bind", "build", "effective", "from_effective", "in_space", "simple"]


def _flow(log_snr: jax.Array) -> jax.Array:
    """(alpha / (alpha + sigma))^2."""
    return jax.nn.sigmoid(log_snr / 2) ** 2


# Squared size of the eps error that a unit error of each prediction makes.
_FACTORS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "eps": jnp.ones_like,
    "x0": jnp.exp,
    "v": jax.nn.sigmoid,
    "score": lambda log_snr: jax.nn.sigmoid(-log_snr),
    "mean": jnp.exp,
    "flow": _flow,
}


def in_space(
    k: Weighting, prediction: str, log_snr: jax.Array, *, posterior_mean_coef_x0: jax.Array | None = None
) -> jax.Array:
    """The factor on ||prediction - prediction_hat||^2 that makes the same objective as k on the error of eps.

    log_snr has any shape and the result the same. The posterior mean depends on the step as well as on the noise level,
    so for "mean" the schedule's posterior_mean_coef_x0 at the same steps is needed.

    Raises:
        ValueError: for an unknown prediction, or "mean" without its coefficient.
    """
    factor = pick(_FACTORS, prediction, "prediction")(log_snr)
    if prediction == "mean":
        if posterior_mean_coef_x0 is None:
            raise ValueError("prediction 'mean' needs posterior_mean_coef_x0 at the steps of log_snr, got None")
        factor = factor / posterior_mean_coef_x0**2
    return k(log_snr) * factor


def from_effective(w: Weighting, schedule: Schedule) -> Weighting:
    """The k that has the effective weight w(log_snr) under this schedule and a uniform t, or one that is corrected."""
    return lambda log_snr: w(log_snr) * speed(schedule, log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effective:
    """An objective as a function of log-SNR, at the steps of a schedule: float32 [T] each."""

    log_snr: jax.Array
    """Falling."""
    w: jax.Array
    """The weight per nat of log-SNR."""
    density: jax.Array
    """Of the drawn log-SNR, per nat."""
    spans: jax.Array
    """The nats that each step stands for: sum(w * spans * f) = E_t[k f] and sum(density * spans) = 1."""
    monotone: bool
    """Does w never rise with log-SNR? Then the objective is the ELBO with Gaussian noise as data augmentation."""


def effective(
    schedule: Schedule,
    k: Weighting,
    draw_t: Draw | None = None,
    *,
    history: History | None = None,
    correct_draw: bool = True,
) -> Effective:
    """w(lambda) of Kingma & Gao 2023: what k counts for with the schedule and the draw of t taken in.

    Args:
        schedule: each step stands for the log-SNR half-way to its neighbours, see `weighting_zoo.speeds`.
        k: the factor on the error of eps; a function of the zoo gets the schedule if it takes one.
        draw_t: how t is drawn; uniform if not given. Corrected, it changes the density and not w.
        history: what draw_t has learned; what it starts with if not given.
        correct_draw: as in `loss.loss`. Off, the draw is itself a weighting.

    Returns:
        w and its verdict. The verdict looks at the steps between the first and the last, and passes over what rounding
        (1e-5) and uneven steps make of w: twice the square of the difference of neighbouring falls over their sum.
    """
    steps = schedule.num_steps
    even = chances = jnp.full(steps, 1 / steps)
    if draw_t is not None and draw_t.probabilities is not None:
        known = draw_t.init(steps) if history is None else history
        chances = draw_t.probabilities(schedule, known)
        chances = chances / jnp.sum(chances)
    spans = speeds(schedule) / steps
    counted = even if correct_draw else chances
    w = bind(k, schedule)(schedule.log_snr) * (counted / spans)
    return Effective(
        log_snr=schedule.log_snr,
        w=w,
        density=chances / spans,
        spans=spans,
        monotone=_never_falls_back(w[1:-1], falls(schedule)),
    )


def _never_falls_back(w: jax.Array, fall: jax.Array) -> bool:
    """Does w [T - 2], from little noise to much, stay at its largest so far? `fall` [T - 1] lies between the steps."""
    before, after = np.asarray(fall[:-1], np.float64), np.asarray(fall[1:], np.float64)
    # Where log-SNR goes like c log(T - t), as at the end of most schedules, w is wrong by 4/3 of this square.
    slack = 1e-5 + 2 * ((after - before) / (after + before)) ** 2
    reached = np.maximum.accumulate(np.asarray(w, np.float64))
    return bool((w >= (1 - slack) * reached).all())


def bind(k: Weighting, schedule: Schedule) -> Weighting:
    """k as a function of log-SNR alone: with its schedule, if it takes one and has none yet."""
    wanted = inspect.signature(k).parameters.get("schedule")
    lacks = wanted is not None and (wanted.default is None or wanted.default is wanted.empty)
    return functools.partial(k, schedule=schedule) if lacks else k


def build(name: str, arguments: Sequence[tuple[str, float]], schedule: Schedule) -> Weighting:
    """The weighting of the zoo that a config describes, as a function of log-SNR alone.

    Raises:
        ValueError: for an unknown name, and as `with_arguments` does.
    """
    return with_arguments(pick(WEIGHTINGS, name, "--diffusion.weighting"), name, arguments, schedule)


def with_arguments(k: Weighting, name: str, arguments: Sequence[tuple[str, float]], schedule: Schedule) -> Weighting:
    """k, called `name` on the command line, as a function of log-SNR alone; log-SNR is its first parameter.

    Raises:
        ValueError: for arguments that it doesn't take (with the nearest good one) or lacks, values that make it
            negative, infinite, NaN or 0 throughout at the steps of the schedule, or a k that JAX can't trace or that
            doesn't keep the shape of log-SNR.
    """
    where = f"--diffusion.weighting-args: {name}"
    first = next(iter(inspect.signature(k).parameters), "")
    given = match_arguments(k, arguments, where, but=(first, "schedule"))
    for argument, value in given.items():
        if not np.isfinite(value):
            raise ValueError(f"{where}: {argument} must be a finite number, got {value}")
    bound = bind(functools.partial(k, **given), schedule)
    try:
        shape = getattr(jax.eval_shape(bound, schedule.log_snr), "shape", None)
    except Exception as error:  # whatever a function of the user's raises
        said = " ".join(str(error).split("\n\n")[0].split())
        raise ValueError(f"{where}: called with log-SNR by JAX, it raised {type(error).__name__}: {said}") from error
    if shape != schedule.log_snr.shape:
        raise ValueError(f"{where}: it must return the shape of log-SNR, {schedule.log_snr.shape}, got {shape}")
    factors = np.asarray(bound(schedule.log_snr))
    wrong = ~(np.isfinite(factors) & (factors >= 0))
    if wrong.any() or not factors.any():
        t = int(np.argmax(wrong))
        at = f"at t = {t} (log-SNR {float(schedule.log_snr[t]):.3g})" if wrong.any() else "at every t"
        shown = " ".join(f"{argument} {value:g}" for argument, value in given.items())
        raise ValueError(f"{where}: {shown or 'it'} makes a factor of {factors[t]:g} {at}, which must be a number >= 0")
    return bound
