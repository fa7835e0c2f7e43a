"""Pictures of the process itself: python -m ddpm_jax.cli.explain PRESET [--out DIR] [--exact]

No network and no training: real images walked to noise, and back by the exact posterior q(x_{t-1} | x_t, x_0), which is
what a network learns to do without knowing x_0; the curves of every schedule; and what weightings make of
them. With --exact also what the best network would say, in worlds where that is known.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ddpm_jax.cli import flags
from ddpm_jax.config import Config

if TYPE_CHECKING:  # JAX is loaded once the flags are read
    from ddpm_jax.diffusion.schedules import Schedule

MOST_IMAGES, MOST_VALUES = 2000, 2**22
"""Of a set that --exact takes for all there is."""
PATHS, FRAMES = 12, 51


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Draw the forward process, the exact way back, the schedules and what weightings make of them."""

    out: flags.Place
    """Where the pictures go."""
    images: int = 3
    """How many images of the data set to walk with."""
    frames: int = 8
    exact: bool = False
    """Draw, too, what is known of small worlds: what predictions ask for, what x_t leaves open, a step back, score."""
    config: Annotated[Config, tyro.conf.arg(name="")]


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("python -m ddpm_jax.cli.explain PRESET [--out DIR] [--images N] [--frames N] [--exact] ...")
        sys.exit(0)
    preset, *rest = args
    default = Flags(out=Path("explained") / Path(preset).stem, config=flags.load_preset(preset))
    asked = flags.parse(Flags, rest, prog=f"explain {preset}", default=default)
    if asked.images < 1 or asked.frames < 2:
        raise ValueError(f"--images must be at least 1 and --frames 2, got {asked.images} and {asked.frames}")
    flags.begin()
    _draw(asked)


def _draw(asked: Flags) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ddpm_jax import data, sampling
    from ddpm_jax.diffusion import schedules
    from ddpm_jax.diffusion.forward import q_sample
    from ddpm_jax.figures import pictures, plots, weightings
    from ddpm_jax.training import own_weighting

    config, schedule = asked.config, schedules.build(asked.config.diffusion)
    settings = config.diffusion
    k = own_weighting.build(settings.weighting, settings.weighting_args, schedule)
    key_eps, key_back = jax.random.split(jax.random.key(config.seed))
    batch = data.batch_at(data.load(config.data), seed=config.seed, step=0, batch_size=asked.images)
    x_0 = jnp.asarray(batch.images)

    # Frame f stands after round(f T / (F-1)) steps; x_t has been noised t + 1 times, so the image itself is "t = -1".
    done = sampling.frame_steps(schedule.num_steps, asked.frames)
    eps = jax.random.normal(key_eps, x_0.shape)
    noised = [x_0 if n == 0 else q_sample(schedule, x_0, jnp.full(len(x_0), n - 1), eps) for n in done]
    there = np.stack(noised, axis=1)
    pictures.save_png(asked.out / "forward.png", pictures.strip(there, titles=_titles(done)))

    path = sampling.walk_back(key_back, schedule, x_0, frames=asked.frames)
    back = np.swapaxes(np.asarray(path.x_t), 0, 1)
    pictures.save_png(asked.out / "reverse_known_x0.png", pictures.strip(back, titles=_titles(done[::-1])))

    named = {name: make(settings.num_steps) for name, make in schedules.SCHEDULES.items() if name != "warmup"}
    named.pop("scaled_linear")  # quadratic by another name
    plots.save(plots.schedules(named), asked.out / "schedules.png")
    plots.save(plots.schedules({settings.schedule: schedule}), asked.out / "schedule.png")

    beside = {name: named[name] for name in ("linear", "cosine")} | {settings.schedule: schedule}
    plots.save(weightings.effective_weights(beside), asked.out / "weightings.png")
    given = ", ".join(f"{name}={value:g}" for name, value in settings.weighting_args)
    title = settings.weighting.rpartition("/")[2] + (f"({given})" if given else "")
    plots.save(weightings.factors(schedule, k, title), asked.out / "factors.png")
    print(
        "wrote forward.png, reverse_known_x0.png, schedules.png, schedule.png, weightings.png and factors.png into "
        f"{asked.out}"
    )
    if asked.exact:
        _draw_exact(asked, schedule)


def _draw_exact(asked: Flags, schedule: "Schedule") -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ddpm_jax import data, sampling
    from ddpm_jax.diffusion.forward import q_step
    from ddpm_jax.figures import explained, pictures, plots

    config, last = asked.config, schedule.num_steps - 1
    most = max(asked.images, min(MOST_IMAGES, MOST_VALUES // math.prod(config.data.shape)))
    images = data.batch_at(data.load(config.data), seed=config.seed, step=0, batch_size=most).images
    images = np.asarray(images)
    plots.save(explained.predictions(schedule, images), asked.out / "predictions.png")
    places = [round(part * last) for part in (0.1, 0.3, 0.5, 0.7, 1.0)]
    pictures.save_png(asked.out / "one_to_many.png", explained.one_to_many(schedule, images, places))

    middle = round(0.3 * last)
    steps = [max(1, middle // parts) for parts in (1000, 6, 2)]
    plots.save(explained.step_back(schedule, middle, steps), asked.out / "step_back.png")
    plots.save(explained.score(schedule, [round(part * last) for part in (0.05, 0.2, 0.4)]), asked.out / "score.png")

    key_x, key_eps, key_back = jax.random.split(jax.random.key(config.seed), 3)
    x_0 = jax.random.rademacher(key_x, (PATHS, 1), jnp.float32)

    def on(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        eps = jax.random.normal(jax.random.fold_in(key_eps, t), x.shape)
        x = q_step(schedule, x, jnp.full(len(x), t), eps)
        return x, x

    _, there = jax.lax.scan(on, x_0, jnp.arange(schedule.num_steps))
    done = sampling.frame_steps(schedule.num_steps, FRAMES)
    walks = {"forward": np.concatenate([x_0[None], there])[done][::-1, :, 0]}
    for title, sampler in (("reverse SDE", sampling.build("euler_maruyama")), ("reverse, no noise", sampling.ddim())):
        _, path = sampling.sample_path(
            key_back,
            explained.two_points(schedule),
            schedule,
            shape=(1,),
            num=PATHS,
            batch_size=PATHS,
            sampler=sampler,
            clip=False,
            frames=FRAMES,
        )
        walks[title] = np.asarray(path.x_t)[..., 0]
    plots.save(explained.paths(walks, last - done), asked.out / "paths.png")
    print(f"and predictions.png, one_to_many.png, step_back.png, score.png and paths.png into {asked.out}")


def _titles(done: Iterable[int]) -> list[str]:
    return ["x_0" if n == 0 else f"t={n - 1}" for n in done]


if __name__ == "__main__":
    flags.run(main)
