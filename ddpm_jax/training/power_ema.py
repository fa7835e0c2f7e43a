"""Averages of parameters by powers of the step, and from a few of them any other (Karras et al. 2024, Sec. 3, App. C).

The average of exponent gamma at step t weighs the parameters of step s by s^gamma (Sec. 3.1):

    average(t) = int_0^t p(s) theta(s) ds,    p(s) = (gamma + 1) / t  (s / t)^gamma  on [0, t], 0 after it
               = beta average(t - 1) + (1 - beta) theta(t),    beta = (1 - 1/t)^(gamma + 1)

which is exact where theta is constant within a step. Its length is told as sigma_rel, the deviation of the profile p
over t, whatever t is:

    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2)

A mixture of averages, of several exponents and steps, is the average by the same mixture of their profiles: one whose
profile is nearest to a wanted one stands for the average of that length (Sec. 3.2).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHORTEST = 1e-6
LONGEST = 12**-0.5
"""sigma_rel of gamma = 0, where all steps count alike."""


def sigma_rel_of(gamma: float) -> float:
    """The relative length of the average with exponent gamma >= 0."""
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def gamma_of(sigma_rel: float, argument: str = "sigma_rel") -> float:
    """The exponent, 0 or more, of the average of this relative length: the largest root of a cubic (App. C).

    Raises:
        ValueError: for a length out of `SHORTEST` .. `LONGEST`, naming `argument`.
    """
    if not SHORTEST <= sigma_rel <= LONGEST:
        raise ValueError(f"{argument} must lie in {SHORTEST:g} .. {LONGEST:.6g}, got {sigma_rel}")
    # (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2
    inverse = sigma_rel**-2
    return max(float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()), 0.0)


def check(sigma_rels: Sequence[float], argument: str) -> None:
    """Refuse lengths that can't be, or one given twice.

    Raises:
        ValueError: naming `argument`.
    """
    for sigma_rel in sigma_rels:
        gamma_of(sigma_rel, argument)
    if len(set(sigma_rels)) < len(sigma_rels):
        raise ValueError(f"{argument} must all be different, got {', '.join(map(str, sigma_rels))}")


def start(params: Any, sigma_rels: Sequence[float]) -> Any:
    """The averages before the first step, by their sigma_rel as text: the parameters. () if none is asked for."""
    return {str(sigma_rel): jax.tree.map(jnp.copy, params) for sigma_rel in sigma_rels} or ()


def newest_share(step: jax.Array, gamma: float) -> jax.Array:
    """1 - beta: what the parameters of `step` = 1, 2, ... count for in the average at that step; 1 at the first."""
    # In float32 1 - beta itself would lose its digits as beta nears 1.
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / step))


def average(averages: Any, params: Any, step: jax.Array) -> Any:
    """Take the parameters of `step` = 1, 2, ... into every average of `start`; inside a jit.

    In float32 an average follows no change of less than about 1e-7 / (1 - beta) of a parameter's size: with
    sigma_rel 0.05 that is 5e-4 at step 100,000.
    """

    def towards(name: str, old: Any) -> Any:
        share = newest_share(step, gamma_of(float(name)))
        # Not beta old + share new: the two factors, each rounded, don't add up to 1, and the average would shrink.
        return jax.tree.map(lambda a, p: a + share.astype(a.dtype) * (p - a), old, params)

    return {name: towards(name, old) for name, old in averages.items()} if averages else averages


def profile(at: np.ndarray, step: float, gamma: float) -> np.ndarray:
    """p at times `at` > 0 for the average at `step`; its integral is 1."""
    return np.where(at <= step, (gamma + 1) / step * (np.minimum(at, step) / step) ** gamma, 0.0)


def inner(step_a: Any, gamma_a: Any, step_b: Any, gamma_b: Any) -> np.ndarray:
    """int p_a p_b of two profiles, in float64; arrays broadcast (App. C).

    With m the earlier and n the later of the two steps, and gamma_n the exponent of the later, it is
    (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (m / n)^gamma_n / n.
    """
    step_a, gamma_a, step_b, gamma_b = (np.asarray(x, np.float64) for x in (step_a, gamma_a, step_b, gamma_b))
    earlier, later = np.minimum(step_a, step_b), np.maximum(step_a, step_b)
    of_later = np.where(step_a < step_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (earlier / later) ** of_later / later


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """The mixture of profiles that is nearest to a wanted one."""

    weights: np.ndarray
    """Of each profile [N], in float64; they add up to 1."""
    misfit: float
    """Norm of what the mixture misses of the wanted profile, over the norm of that: 0 is exact. Of 1e-8 it is
    rounding."""


def fit(steps: Sequence[float], gammas: Sequence[float], step: float, gamma: float) -> Fit:
    """Weights of the averages at `steps` with exponents `gammas` [N] that make the one at `step` with `gamma`.

    Least squares between profiles, in float64 (App. C), among mixtures whose weights add up to 1, so that a parameter
    that doesn't move comes out as it is. The paper leaves the sum free: its networks don't feel the scale of weights.
    """
    all_steps, all_gammas = np.asarray(steps, np.float64), np.asarray(gammas, np.float64)
    gram = inner(all_steps[:, None], all_gammas[:, None], all_steps, all_gammas)
    wanted, size = inner(all_steps, all_gammas, step, gamma), float(inner(step, gamma, step, gamma))
    scale = 1 / np.sqrt(np.diag(gram))  # a profile's norm goes as 1 / sqrt(step): to 1
    sides = scale[:, None] * np.stack([wanted, np.ones(len(scale))], axis=1)
    free, along = (scale[:, None] * np.linalg.lstsq(gram * scale * scale[:, None], sides, rcond=None)[0]).T
    weights = free + along * (1 - free.sum()) / along.sum()
    missed = weights @ gram @ weights - 2 * weights @ wanted + size
    return Fit(weights=weights, misfit=float(np.sqrt(max(missed, 0.0) / size)))


def mixtures(parts: Iterable[tuple[Iterable[float], Any]]) -> list[Any]:
    """Sums of weight * tree, one for each of the weights that come with a tree, added up in float64 on the host."""
    totals: list[Any] = []
    for weights, tree in parts:
        whole = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
        terms = [jax.tree.map(lambda leaf: weight * leaf, whole) for weight in weights]
        totals = [jax.tree.map(np.add, *pair) for pair in zip(totals, terms, strict=True)] if totals else terms
    return totals
