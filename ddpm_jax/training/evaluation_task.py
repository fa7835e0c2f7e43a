"""What an evaluation of a run's images measures, and against what. Imports nothing that is slow: --help shows it."""

import dataclasses
from typing import Any

from ddpm_jax.config import Config, Data, Sampling

QUICK, QUICK_STEPS = 2_000, 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What to measure, and against what."""

    features: tuple[str, ...] = ()
    """efficientnet[:RESOLUTION], inception:FILE.pth, pixels, MODULE:FUNCTION; of images of at most 1,024 numbers both
    efficientnet and pixels if not given, else efficientnet."""
    num: int = 0
    """Images to draw; 0 for as many as there are of training images, 10,000 at most."""
    seed: int = 1
    sampling: Sampling = Sampling()
    quick: bool = False
    raw: bool = False
    data: Data = Data()
    """What training saw."""
    held_out: str | None = None
    """The split that it didn't; empty for none, None for test if there is one."""
    reference: str = ""
    """A file of statistics (mu, sigma), in place of both."""
    num_reference: int = 50_000
    """Images of each split, at most."""
    num_t: int = 16
    """t an image, for the bound in bits per dimension of held-out images; 0 for none."""
    batch_size: int = 128


def whole(config: Config) -> Task:
    """As many images as training saw, drawn as the run's config says."""
    return Task(data=config.data, sampling=config.sampling)


def quickly(config: Config, **settings: Any) -> Task:
    """A measurement that is cheap enough for training: 2,000 images of 20 steps, or of as few as a network is for."""
    drawn = config.sampling
    if not config.distill.method:
        steps = min(QUICK_STEPS, config.diffusion.num_steps)
        plain = Sampling(sampler="dpm_solver_pp_2m", steps=(steps,), spacing="trailing")
        drawn = dataclasses.replace(plain, guidance=config.sampling.guidance)
    few: dict[str, Any] = {"num": QUICK, "num_reference": QUICK, "num_t": 8, "batch_size": min(128, config.batch_size)}
    return Task(**(few | {"quick": True, "sampling": drawn, "data": config.data} | settings))
