"""Linear inverse problems: draw x_0 given y = A x_0 + noise, with a network that was trained without any A.

    dps       x_s - scale grad ||y - A x_0(x_t)|| after each step          (Chung et al. 2023, Algorithm 1)
    pigdm     score + grad log N(y; A x_0(x_t), r^2 A A^T + noise^2)        (Song et al. 2023, Eq. 5 to 7)

x_0(x_t) is the network's prediction, through which both take a gradient. Both are functions around a step, as in
`sampling.editing`; what is measured of each image stands in `conditions` under "y", what A needs of it under "own".

Of x_0 given x_t, pigdm takes the covariance to be r^2 I, r^2 = sigma^2 / (alpha^2 + sigma^2): exact for N(m, I), and
then the answer is the posterior itself; for any other data it is an approximation. dps takes it to be nothing, and
leaves the size of the step to be found.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.levels import Level, Levels
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.sampling import thresholds
from ddpm_jax.sampling.editing import stepwise, told
from ddpm_jax.sampling.loop import sample
from ddpm_jax.sampling.sampler import Answer, Info, Model, State, Step
from ddpm_jax.sampling.thresholds import Threshold
from ddpm_jax.types import Denoiser

Around = Callable[[Step, Any], Step]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """A linear A on images x [B, H, W, C]. `own` is what it needs to know of each image, () for nothing."""

    apply: Callable[[jax.Array, Any], jax.Array]
    """apply(x, own) -> A x, [B, ...]."""
    solve: Callable[[jax.Array, Any, jax.Array, float], jax.Array]
    """solve(y, own, r2, n2) -> (r2 A A^T + n2)^-1 y, where that has an inverse; 0 along what A never answers with."""
    check: Callable[[tuple[int, ...]], None] = lambda shape: None
    """Raises ValueError for a shape of images (H, W, C) that it can't measure."""


def _over(y: jax.Array, size: Any) -> jax.Array:
    """y / size, 0 where size is 0."""
    none = size == 0
    return jnp.where(none, 0.0, y / jnp.where(none, 1.0, size))


mask = Measurement(apply=lambda x, own: own * x, solve=lambda y, own, r2, n2: own * _over(y, r2 + n2))
"""The pixels where own [B, H, W, 1 or C], bool, is true; the others as 0."""


def _colours(shape: tuple[int, ...]) -> None:
    if shape[-1] != 3:
        raise ValueError(f"colours are found for images of 3 channels, got {shape[-1]}")


gray = Measurement(
    apply=lambda x, own: jnp.mean(x, axis=-1, keepdims=True),
    solve=lambda y, own, r2, n2: _over(y, r2 / 3 + n2),
    check=_colours,
)
"""The mean of the three channels, [B, H, W, 1]."""


@functools.lru_cache
def average_pool(factor: int) -> Measurement:
    """Means of squares of factor x factor pixels, [B, H / factor, W / factor, C].

    Raises:
        ValueError: for a factor below 2; when asked about images, for sides that it doesn't divide.
    """
    if factor < 2:
        raise ValueError(f"factor must be at least 2, got {factor}")

    def check(shape: tuple[int, ...]) -> None:
        if shape[0] % factor or shape[1] % factor:
            raise ValueError(f"factor must divide the sides of the images, {shape[0]}x{shape[1]}, got {factor}")

    def apply(x: jax.Array, own: Any) -> jax.Array:
        b, h, w, c = x.shape
        return jnp.mean(x.reshape(b, h // factor, factor, w // factor, factor, c), axis=(2, 4))

    return Measurement(apply=apply, solve=lambda y, own, r2, n2: _over(y, r2 / factor**2 + n2), check=check)


@functools.lru_cache
def blur(deviation: float) -> Measurement:
    """A Gaussian of that deviation in pixels, mirrored at the edges: the cosine transform's own axes (ortho DCT-II).

    Frequencies that are left with less than a thousandth are taken for lost.

    Raises:
        ValueError: for a deviation that isn't positive.
    """
    if not deviation > 0:
        raise ValueError(f"deviation must be positive, got {deviation}")

    def axis(size: int) -> tuple[np.ndarray, np.ndarray]:
        n = np.arange(size)
        basis = np.sqrt(2 / size) * np.cos(np.pi * n[:, None] * (2 * n + 1) / (2 * size))
        basis[0] /= np.sqrt(2)
        return basis, np.exp(-0.5 * (np.pi * n / size * deviation) ** 2)

    def filtered(x: jax.Array, of_frequency: Callable[[jax.Array], jax.Array]) -> jax.Array:
        (rows, down), (columns, across) = axis(x.shape[1]), axis(x.shape[2])
        kept = (down[:, None] * across)[..., None]
        left, right = jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype)
        factors = of_frequency(jnp.asarray(np.where(kept < 1e-3, 0.0, kept), x.dtype))
        seen = jnp.einsum("ih,jw,bhwc->bijc", left, right, x)
        return jnp.einsum("ih,jw,bijc->bhwc", left, right, factors * seen)

    def solve(y: jax.Array, own: Any, r2: jax.Array, n2: float) -> jax.Array:
        return filtered(y, lambda kept: _over(jnp.where(kept > 0, 1.0, 0.0), r2 * kept**2 + n2))

    return Measurement(apply=lambda x, own: filtered(x, lambda kept: kept), solve=solve)


def _solve_matrix(y: jax.Array, own: jax.Array, r2: jax.Array, n2: float) -> jax.Array:
    covariance = r2 * own @ jnp.swapaxes(own, -1, -2) + n2 * jnp.eye(own.shape[-2], dtype=own.dtype)
    return jnp.linalg.solve(covariance, y[..., None])[..., 0]


matrix = Measurement(apply=lambda x, own: jnp.einsum("bmd,bd->bm", own, x.reshape(x.shape[0], -1)), solve=_solve_matrix)
"""Any A of full row rank: own [B, M, H W C] on the flattened image, y [B, M]."""


@functools.lru_cache
def dps(measurement: Measurement, *, scale: float = 1.0) -> Around:
    """Diffusion posterior sampling (Chung et al. 2023, Algorithm 1), after a step of any sampler.

    Each step then moves x by -scale grad ||y - A x_0(x)||, the norm itself: the paper's zeta' is half of `scale`. What
    is drawn depends on the number of steps, of which the paper takes 1,000.

    Raises:
        ValueError: for a scale below 0.
    """
    if not scale >= 0:
        raise ValueError(f"scale must be 0 or more, got {scale}")

    def around(step: Step, conditions: Any) -> Step:
        def pulled(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
            here = levels.read(ij[0])

            def misfit(x: jax.Array) -> jax.Array:
                off = conditions["y"] - measurement.apply(model(x, here).x_0, conditions["own"])
                squares = jnp.sum(jnp.reshape(off, (off.shape[0], -1)) ** 2, axis=1)
                return jnp.sum(jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0))

            pull = jax.grad(misfit)(state.x)
            new, info = step(state, model, levels, ij)
            return dataclasses.replace(new, x=new.x - scale * pull), info

        return pulled

    return jax.tree_util.Partial(around)


@functools.lru_cache
def pigdm(
    measurement: Measurement, *, noise: float = 0.0, weight: float = 1.0, clip: bool | Threshold = False
) -> Around:
    """Pseudo-inverse guided diffusion (Song et al. 2023), of the answer itself: for any sampler.

    x_0 moves by weight sigma^2 / alpha times the gradient of log N(y; A x_0(x), r^2 A A^T + noise^2), and eps with it.

    Args:
        noise: deviation of the noise in y.
        weight: of the gradient; 1 is Bayes' rule. (The paper's own steps weigh it by r^2 and the size of a step.)
        clip: keep the moved x_0 within [-1, 1], or a function from `thresholds`.

    Raises:
        ValueError: for a noise or a weight below 0.
    """
    if not (noise >= 0 and weight >= 0):
        raise ValueError(f"noise and weight must be 0 or more, got {noise} and {weight}")
    threshold = thresholds.static if clip is True else clip

    def around(step: Step, conditions: Any) -> Step:
        y, own = conditions["y"], conditions["own"]

        def guided(model: Model) -> Model:
            def ask(x: jax.Array, level: Level) -> Answer:
                def measured(x: jax.Array) -> tuple[jax.Array, Answer]:
                    said = model(x, level)
                    return measurement.apply(said.x_0, own), said

                seen, back, said = jax.vjp(measured, x, has_aux=True)
                r2 = level.sigma**2 / (level.alpha**2 + level.sigma**2)
                (gradient,) = back(measurement.solve(y - seen, own, r2, noise**2).astype(seen.dtype))
                x_0 = said.x_0 + weight * _over(level.sigma**2 * gradient, level.alpha)
                x_0 = threshold(x_0) if threshold else x_0
                eps = jnp.where(level.sigma == 0, said.eps, _over(x - level.alpha * x_0, level.sigma))
                return Answer(x_0=x_0, eps=eps, v=said.v)

            return ask

        return lambda state, model, levels, ij: step(state, guided(model), levels, ij)

    return jax.tree_util.Partial(around)


def restore(
    key: jax.Array,
    denoise: Denoiser,
    schedule: Schedule | Process,
    y: jax.Array | np.ndarray,
    measurement: Measurement,
    around: Around,
    *,
    shape: tuple[int, ...],
    own: Any = (),
    conditions: Any = None,
    **options: Any,
) -> np.ndarray:
    """Draw images [N, *shape] given what was measured of each, y [N, ...].

    Args:
        measurement: what was measured; `around` is `dps` or `pigdm` of the same.
        own: what the measurement needs to know of each image, arrays [N, ...]: a mask, a matrix.
        conditions: what the network is told, [N, ...]; `options` as in `sampling.sample`.

    Raises:
        ValueError: for a shape that can't be measured so, or a y that isn't of such a measurement.
    """
    stepwise(options.get("sampler"))
    measurement.check(shape)
    like = jax.ShapeDtypeStruct((len(y), *shape), jnp.float32)
    wanted = jax.eval_shape(measurement.apply, like, jax.tree.map(jnp.asarray, own)).shape
    if np.shape(y) != wanted:
        raise ValueError(f"y must be the measurement of images {shape}, of shape {wanted}, got {np.shape(y)}")
    told_of = {"y": y, "own": own, "told": conditions}
    return sample(key, told(denoise), schedule, shape=shape, num=len(y), conditions=told_of, around=around, **options)
