"""Editing: a part of an image is kept and the rest drawn, or it is noised and drawn again, or walked back to noise.

    inpaint   known pixels are put back, as noisy as the rest, after every step  (Song et al. 2021, App. I.2)
    repaint   the same, and going up again a few steps, many times              (Lugmayr et al. 2022, Algorithm 1)
    sdedit    noised part of the way, then drawn from there                     (Meng et al. 2022, Algorithm 1)
    invert    the deterministic sampler from the image up to the noise          (Song et al. 2020, Sec. 4.3)

What is done about every step is a function around(step, conditions) -> step, which `sampling.sample` takes. It finds
what it knows of each image in `conditions`, a dict; what the network is to be told stands there under "told".
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.levels import Levels, every_place, visit
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.sampling.ancestral import ddim, ddpm
from ddpm_jax.sampling.loop import first_noise, sample
from ddpm_jax.sampling.sampler import Info, Model, Sampler, State, Step, moved, noise
from ddpm_jax.types import Denoiser

APART = 2**20
"""The number of a draw that no sampler makes in its own step."""


def stepwise(sampler: Sampler | None) -> None:
    """Refuse a sampler that finds its own way: between its ends nothing can be done about an image.

    Raises:
        ValueError: saying so.
    """
    if sampler is not None and sampler.whole:
        raise ValueError("this edits an image at every step: it needs a sampler that takes steps, ddpm or ddim say")


def told(denoise: Denoiser) -> Denoiser:
    """The network under conditions that are a dict: it gets conditions["told"] only, and nothing where that is None."""
    network = denoise if isinstance(denoise, jax.tree_util.Partial) else jax.tree_util.Partial(denoise)
    return jax.tree_util.Partial(_tell, network)


def _tell(denoise: Denoiser, x: jax.Array, time: jax.Array, conditions: dict[str, Any]) -> jax.Array:
    more = () if conditions["told"] is None else (conditions["told"],)
    return denoise(x, time, *more)


def _replacing(step: Step, conditions: dict[str, Any]) -> Step:
    def replaced(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        new, info = step(state, model, levels, ij)
        there = levels.read(ij[1])
        known = there.alpha * conditions["x_0"] + there.sigma * noise(new, APART)
        return dataclasses.replace(new, x=jnp.where(conditions["known"], known.astype(new.x.dtype), new.x)), info

    return replaced


replacing = jax.tree_util.Partial(_replacing)
"""After every step: known pixels as q(x_t | x_0) has them, with fresh noise; at the end, as they are."""


def inpaint(
    key: jax.Array,
    denoise: Denoiser,
    schedule: Schedule | Process,
    x_0: jax.Array | np.ndarray,
    known: jax.Array | np.ndarray,
    *,
    conditions: Any = None,
    **options: Any,
) -> np.ndarray:
    """Draw the unknown pixels of x_0 [N, H, W, C] by replacement (Song et al. 2021, App. I.2).

    Known pixels come back exactly. What is drawn beside them is biased even for a perfect network: a step doesn't see
    them but through x_t. `repaint` is nearer to the truth, for more steps.

    Args:
        key: as `sampling.sample` takes it; so are `options`, and `conditions`, which the network gets.
        x_0: in [-1, 1]; what it holds where it isn't known doesn't matter, if it is finite.
        known: bool [N, H, W, 1 or C].

    Raises:
        ValueError: for a mask that doesn't fit the images.
    """
    x_0, known = np.asarray(x_0), np.asarray(known, bool)
    fits = known.ndim == x_0.ndim and known.shape[:-1] == x_0.shape[:-1] and known.shape[-1] in (1, x_0.shape[-1])
    if not fits:
        raise ValueError(f"known must have the images' shape {x_0.shape}, or one channel of it, got {known.shape}")
    stepwise(options.get("sampler"))
    return sample(
        key,
        told(denoise),
        schedule,
        shape=x_0.shape[1:],
        num=len(x_0),
        conditions={"x_0": x_0, "known": known, "told": conditions},
        around=replacing,
        **options,
    )


def repaint(
    key: jax.Array,
    denoise: Denoiser,
    schedule: Schedule | Process,
    x_0: jax.Array | np.ndarray,
    known: jax.Array | np.ndarray,
    *,
    times: Sequence[float] | np.ndarray | None = None,
    sampler: Sampler | None = None,
    jump: int = 10,
    resamples: int = 10,
    **options: Any,
) -> np.ndarray:
    """`inpaint` with resampling (Lugmayr et al. 2022, Algorithm 1): see `there_and_back` for jump and resamples.

    Raises:
        ValueError: as `inpaint`, `there_and_back` and `resampling`.
    """
    if times is None and not isinstance(schedule, Schedule):
        raise ValueError("times must be given for a process: it has no steps of its own")
    way = there_and_back(every_place(schedule) if times is None else times, jump=jump, resamples=resamples)
    sampler = resampling(ddpm() if sampler is None else sampler)
    return inpaint(key, denoise, schedule, x_0, known, times=way, sampler=sampler, **options)


def there_and_back(times: Sequence[float] | np.ndarray, *, jump: int = 10, resamples: int = 10) -> np.ndarray:
    """A way that goes up again: after every `jump` levels, by as many, until it has come down `resamples` times.

    Lugmayr et al. 2022, App. B and Fig. 9, but that what they noise step by step is noised in one, which is the same
    in distribution: 250 levels, a jump of 10 and 10 resamples are 2,410 evaluations of the network for their 4,570
    steps. No jump begins within `jump` levels of the noise.

    Args:
        times: places [S + 1], falling, the image last.
        jump: levels in a jump, 1 or more.
        resamples: how often each stretch is walked; 1 changes nothing.

    Raises:
        ValueError: for times that don't fall, a count below 1, or a jump for which there is no room.
    """
    places = np.asarray(times, np.float64)
    if places.ndim != 1 or places.size < 2 or not (np.diff(places) < 0).all():
        raise ValueError("times must fall from the noise to the image, at least two of them")
    if jump < 1 or resamples < 1:
        raise ValueError(f"jump and resamples must be at least 1, got {jump} and {resamples}")
    levels = places.size - 1
    if resamples > 1 and jump >= levels:
        raise ValueError(f"jump must be below the number of steps, {levels}, for there to be one; got {jump}")
    left = dict.fromkeys(range(0, levels - jump, jump), resamples - 1)
    above, way = levels - 1, [levels - 1]  # counted from the least noisy level, 0; -1 is the image
    while above >= 0:
        above -= 1
        way.append(above)
        if left.get(above, 0):
            left[above] -= 1
            above += jump
            way.append(above)
    return places[levels - 1 - np.array(way)]


@functools.lru_cache
def resampling(sampler: Sampler) -> Sampler:
    """The sampler on ways that go up in between: there it asks nothing and adds noise, q(x_s | x_t) of any process.

    Raises:
        ValueError: for a multistep sampler, whose earlier steps would be on the other side of the turn.
    """
    if sampler.multistep or sampler.whole:
        raise ValueError("resampling turns round on the way, which a multistep sampler can't: take ddpm or ddim")

    def step(state: State, model: Model, levels: Levels, ij: tuple[jax.Array, jax.Array]) -> tuple[State, Info]:
        here, there = levels.read(ij[0]), levels.read(ij[1])

        def up() -> tuple[State, Info]:
            ratio = there.alpha / here.alpha
            added = there.sigma * jnp.sqrt(-jnp.expm1(jnp.minimum(here.gain, 0.0)))
            return moved(state, ratio * state.x + added * noise(state, APART + 1)), Info(x_0=state.x)

        return jax.lax.cond(here.gain < 0, up, lambda: sampler.step(state, model, levels, ij))

    return dataclasses.replace(sampler, step=step, only_down=False)


def sdedit(
    key: jax.Array,
    denoise: Denoiser,
    schedule: Schedule | Process,
    x_0: jax.Array | np.ndarray,
    *,
    times: Sequence[float] | np.ndarray,
    along: Process | None = None,
    indices: np.ndarray | None = None,
    **options: Any,
) -> np.ndarray:
    """Noise the images x_0 [N, H, W, C] to the first of `times`, and draw from there (Meng et al. 2022, Algorithm 1).

    From the noisiest level on it is plain sampling, of the very images that `sample` draws, as far as that level keeps
    nothing of x_0; from the least noisy, x_0 comes back but for what the network makes of so little noise.

    Args:
        times: falling, the image last, as a part of a spacing (`interpolate.from_place`). A single one, the image, is
            no way at all: then x_0 is returned.
        options: as `sampling.sample` takes them.

    Raises:
        ValueError: as `sampling.sample`.
    """
    x_0 = jnp.asarray(x_0)
    if len(times) == 1:
        return np.asarray(x_0)
    here = visit(schedule, times, along=along).read(0)
    numbers = np.arange(len(x_0)) if indices is None else np.asarray(indices)
    eps = first_noise(key, numbers, x_0.shape[1:], here.alpha.dtype)
    return sample(
        key,
        denoise,
        schedule,
        shape=x_0.shape[1:],
        num=len(x_0),
        times=times,
        along=along,
        indices=numbers,
        x_T=here.alpha * x_0 + here.sigma * eps,
        **options,
    )


def invert(
    denoise: Denoiser,
    schedule: Schedule | Process,
    x_0: jax.Array | np.ndarray,
    *,
    times: Sequence[float] | np.ndarray,
    sampler: Sampler | None = None,
    **options: Any,
) -> np.ndarray:
    """The latents [N, H, W, C] from which the deterministic sampler draws x_0: its walk, upwards (Song et al. 2020).

    `sample(..., x_T=latents, times=times, sampler=ddim())` brings x_0 back, but for the solver's error; under another
    class it draws what that class makes of them.

    Args:
        times: falling, as for `sample`; they are walked from the end. Where they end at the image, the network is asked
            about it as about the least noisy level.
        sampler: a deterministic one; ddim().
        options: as `sampling.sample` takes them. Where the noisiest level holds next to no signal, a trained network
            needs `clip`, both ways: its errors there count 1 / alpha.

    Raises:
        ValueError: as `sampling.sample`.
    """
    return sample(
        jax.random.key(0),  # of which nothing is drawn
        denoise,
        schedule,
        shape=np.shape(x_0)[1:],
        num=len(x_0),
        times=np.asarray(times)[::-1],
        sampler=ddim() if sampler is None else sampler,
        x_T=jnp.asarray(x_0),
        **options,
    )
