"""What a network that draws in few steps is taught: progressive distillation and consistency.

Progressive distillation (Salimans & Ho 2022). In x / sigma a DDIM step is a straight line of slope x_0 over
r = alpha / sigma. Two steps of a teacher, which says a at the first level and b at the second, therefore arrive where
one does that says

    x_0 = w a + (1 - w) b,        w = (r_2 - r_1) / (r_3 - r_1)                             (ibid., App. G, Alg. 2)

and that is what the student is taught to say. It is taught as any network is: only the target isn't the image.

Consistency (Song et al. 2023). A function f(x, s) takes x, noised to s = sigma / alpha, to where the probability-flow
ODE ends, at sigma_min. It is the only one that is x itself at sigma_min (`sampling.precondition` builds that in) and
gives the same along every path of the ODE. So it is taught to say at one level what it says itself at the next lower
one, a step of a teacher (distillation) or less of the same noise (training) away.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.levels import Level, Levels
from ddpm_jax.diffusion.loss import LossTerms
from ddpm_jax.diffusion.norms import Norm, l2
from ddpm_jax.diffusion.parameterization import target_at, x0_and_eps_at
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.weightings import Weighting, in_space, simple
from ddpm_jax.types import Denoiser, per_image

Scalar = jax.Array | float
RHO = 7.0
"""Of the levels of consistency, as Karras et al. 2022 space them."""


def step(x: jax.Array, x_0: jax.Array, here: Level, there: Level) -> jax.Array:
    """DDIM without noise from one level to another, each shaped to broadcast against x (Song et al. 2020, Eq. 13)."""
    return there.alpha * x_0 + there.sigma * (x - here.alpha * x_0) / here.sigma


def share(here: Level, between: Level, there: Level) -> jax.Array:
    """w: what the answer at the first of three levels visited in turn counts for in the target of one step.

    0 where the last is the image itself: there nothing is left of the first answer.
    """
    first, second = here.gain / 2, between.gain / 2
    some = jnp.expm1(first) / jnp.expm1(first + second)
    none_yet = jnp.exp(-second)  # no signal at the first level: r_1 is 0, where its log-SNR only stops at a limit
    return jnp.where(there.sigma == 0, 0.0, jnp.where(here.alpha == 0, none_yet, some))


def two_steps(
    x: jax.Array, answer: Callable[[jax.Array, Level], jax.Array], here: Level, between: Level, there: Level
) -> jax.Array:
    """The x_0 by which one DDIM step from `here` to `there` arrives where two of the teacher arrive.

    Args:
        x: at `here` [B, ...].
        answer: answer(x, level) -> the teacher's x_0.
        here: with `between` and `there` three levels visited in turn, [B] each.
    """
    first = answer(x, here)
    shaped = tuple(shape(level, x) for level in (here, between, there))
    second = answer(step(x, first, *shaped[:2]), between)
    part = share(*shaped)
    return part * first + (1 - part) * second


def shape(level: Level, x: jax.Array) -> Level:
    """A level of each image [B], to broadcast against x [B, ...]."""
    return jax.tree.map(lambda values: per_image(values, x), level)


def answers(denoise: Denoiser, prediction: str, *, clip: bool = True) -> Callable[[jax.Array, Level], jax.Array]:
    """A network as answer(x, level) -> x_0, each image at a level of its own; clipped to [-1, 1] as in sampling."""

    def answer(x: jax.Array, level: Level) -> jax.Array:
        own = shape(level, x)
        output = denoise(own.scale * x, level.time)
        x_0, _ = x0_and_eps_at(own.own, output, own.scale * x, source=prediction, preserving=False)
        return jnp.clip(x_0, -1, 1) if clip else x_0

    return answer


def progressive(
    key: jax.Array,
    levels: Levels,
    denoise: Denoiser,
    teacher: Denoiser,
    x_0: jax.Array,
    *,
    prediction: str = "v",
    weighting: Weighting = simple,
    norm: Norm = l2,
    clip: bool = True,
) -> tuple[jax.Array, LossTerms]:
    """One halving: a student is taught to take in one DDIM step what its teacher takes two for (ibid., Algorithm 2).

    Args:
        key: decides where on the way each image is noised to, and its noise.
        levels: those that the teacher visits, 2 S + 1 with the image; the student visits every other one. From
            `levels.visit`, not padded.
        denoise: denoise(x_t, time) -> output, the student's.
        teacher: likewise.
        x_0: [B, ...].
        prediction: what both outputs mean.
        weighting: as in `loss.loss`. `truncated` is the paper's max(SNR, 1) on x_0, `snr_plus_one` its SNR + 1.
        norm: what the error of the prediction counts for.
        clip: keep the teacher's x_0 in [-1, 1], as in sampling.

    Returns:
        The mean over the batch, and its terms, in which t is the place on the process.
    """
    key_place, key_eps = jax.random.split(key)
    steps = (levels.visited.t.shape[0] - 1) // 2
    place = 2 * jax.random.randint(key_place, x_0.shape[:1], 0, steps)
    here, between, there = (levels.read(place + k) for k in range(3))
    at = shape(here, x_0)
    x = at.alpha * x_0 + at.sigma * jax.random.normal(key_eps, x_0.shape, x_0.dtype)
    wanted = jax.lax.stop_gradient(two_steps(x, answers(teacher, prediction, clip=clip), here, between, there))
    said = target_at(at.own, prediction, wanted, (x - at.alpha * wanted) / at.sigma)
    error = denoise(x, here.time) - said
    options = {"posterior_mean_coef_x0": here.own.coef_x0}
    value = in_space(weighting, prediction, here.log_snr, **options) * norm(error)
    mse = l2(error)
    eps_error = in_space(simple, prediction, here.log_snr, **options) * mse
    terms = {"mse": mse, "eps_error": eps_error, "log_snr": here.log_snr, "t": here.t}
    return jnp.mean(value), LossTerms(loss=value, objective=value, **terms)


def square_root(k: Scalar, total: int, first: int, last: int) -> jax.Array:
    """N(k), from first to last + 1 levels over `total` steps of training (Song et al. 2023, App. C)."""
    part = jnp.asarray(k) / max(total, 1)
    return jnp.ceil(jnp.sqrt(part * ((last + 1) ** 2 - first**2) + first**2) - 1).astype(int) + 1


def doubling(k: Scalar, total: int, first: int, last: int) -> jax.Array:
    """N(k), which doubles from first + 1 to last + 1 at even intervals (Song & Dhariwal 2023, Eq. 9)."""
    every = max(math.floor(total / (math.log2(last // first) + 1)), 1)
    doublings = jnp.minimum(jnp.asarray(k) // every, math.ceil(math.log2(last / first)))
    return jnp.minimum(first * 2**doublings, last).astype(int) + 1


GROWTHS: dict[str, Callable[[Scalar, int, int, int], jax.Array]] = {"square_root": square_root, "doubling": doubling}
"""How the number of levels grows: (step, steps in all, first, last) -> N. With first = last it stays."""


def decay(count: jax.Array, first: int, mu: float) -> jax.Array:
    """mu(k) of the target network at N(k) levels: mu^(first / N) (Song et al. 2023, App. C)."""
    return jnp.exp(first * math.log(mu) / count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladder:
    """Levels sigma_min = s_0 < ... < s_(N-1) = sigma_max of s = sigma / alpha, and how they are drawn."""

    count: Scalar
    """N >= 2; may be traced."""
    sigma_min: float
    sigma_max: float
    mean: float = -1.1
    std: float = 2.0
    """Of ln s, which is drawn from a normal cut to the ladder (Song & Dhariwal 2023, Eq. 10)."""

    def level(self, n: jax.Array) -> jax.Array:
        """s_n, s^(1 / rho) evenly spaced (Karras et al. 2022, Eq. 5)."""
        low, high = self.sigma_min ** (1 / RHO), self.sigma_max ** (1 / RHO)
        return (low + n / (self.count - 1) * (high - low)) ** RHO

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """n, int in 0 .. N - 2: the step of the ladder from n to n + 1 in which ln s falls."""
        ends = (jnp.log(jnp.asarray([self.sigma_min, self.sigma_max])) - self.mean) / self.std
        below = jax.scipy.stats.norm.cdf(ends)
        drawn = jax.scipy.stats.norm.ppf(jax.random.uniform(key, shape, minval=below[0], maxval=below[1]))
        s = jnp.exp(self.mean + self.std * drawn)
        low, high = self.sigma_min ** (1 / RHO), self.sigma_max ** (1 / RHO)
        n = jnp.floor((s ** (1 / RHO) - low) / (high - low) * (self.count - 1)).astype(int)
        return jnp.clip(n, 0, self.count - 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """A level of each image, to broadcast against x."""

    s: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    t: jax.Array
    """Place on the process [B]."""
    time: jax.Array
    """What a network is told [B]."""


def rung(process: Process, s: jax.Array, x: jax.Array) -> Rung:
    """The level of `process` at s = sigma / alpha [B]."""
    t = jnp.clip(process.t_of(jnp, -2 * jnp.log(s)), process.end, process.start).astype(x.dtype)
    alpha = jnp.exp(process.log_alpha(jnp, t)).astype(x.dtype)
    shaped = {"s": s, "alpha": alpha, "sigma": alpha * s}
    time = process.time(jnp, t).astype(x.dtype)
    return Rung(**{name: per_image(value, x) for name, value in shaped.items()}, t=t, time=time)


def heun(x: jax.Array, teacher: Denoiser, here: Rung, there: Rung) -> jax.Array:
    """A step of Heun's of the probability-flow ODE in s, where d(x / alpha) / ds = eps (Karras et al. 2022, Alg. 1).

    `teacher` says x_0.
    """

    def eps(x: jax.Array, at: Rung) -> jax.Array:
        return (x - at.alpha * teacher(x, at.time)) / at.sigma

    start, span = x / here.alpha, there.s - here.s
    first = eps(x, here)
    second = eps(there.alpha * (start + span * first), there)
    return there.alpha * (start + span * (first + second) / 2)


def consistency(
    key: jax.Array,
    process: Process,
    f: Denoiser,
    target: Denoiser,
    x_0: jax.Array,
    *,
    ladder: Ladder,
    teacher: Denoiser | None = None,
    norm: Norm = l2,
) -> tuple[jax.Array, LossTerms]:
    """f at a level of the ladder against the target at the next lower one (Song et al. 2023, Alg. 2 and 3).

    Each pair counts 1 / (s' - s) (Song & Dhariwal 2023, Table 1).

    Args:
        key: decides level and noise.
        process: what the networks were trained along.
        f: f(x, time) -> what the path through x ends at, at sigma_min.
        target: the same by the target network; no gradient reaches it.
        x_0: [B, ...].
        ladder: its ends within the process's.
        teacher: teacher(x, time) -> x_0: the lower x is a Heun step of its from the upper (distillation). Without one
            it is x_0 with less of the same noise (training).
        norm: what the difference counts for.

    Returns:
        The mean over the batch, and its terms, in which errors are of f.
    """
    key_n, key_eps = jax.random.split(key)
    n = ladder.draw(key_n, x_0.shape[:1])
    here, there = (rung(process, ladder.level(n + more).astype(x_0.dtype), x_0) for more in (1, 0))
    eps = jax.random.normal(key_eps, x_0.shape, x_0.dtype)
    x = here.alpha * x_0 + here.sigma * eps
    lower = there.alpha * x_0 + there.sigma * eps if teacher is None else heun(x, teacher, here, there)
    error = f(x, here.time) - jax.lax.stop_gradient(target(lower, there.time))
    span = jnp.reshape(here.s - there.s, n.shape)
    value, mse = norm(error) / span, l2(error)
    log_snr = -2 * jnp.log(jnp.reshape(here.s, n.shape))
    terms = {"mse": mse, "eps_error": jnp.exp(log_snr) * mse, "log_snr": log_snr, "t": here.t}
    return jnp.mean(value), LossTerms(loss=value, objective=value, **terms)
