"""What the page of a run is made of: plain data, read from the run's folder by who can read files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.figures.page import Frame

Line = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Process:
    """The noise levels that a run trains on, and what each counts for."""

    alpha_bars: np.ndarray
    """[T]."""
    log_snr: np.ndarray
    """[T], falling."""
    w: np.ndarray | None = None
    """w(lambda) [T] of Kingma & Gao 2023, if the run's loss is one of noise levels."""
    monotone: bool = False
    """Does w never rise with log-SNR?"""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunRecord:
    """A run as its folder tells it; whatever isn't there has no part in the page."""

    name: str
    written: str
    """When this was read, for people."""
    config: Config
    starts: tuple[Line, ...] = ()
    """The lines of environment.jsonl, one for each time that the run was started."""
    lines: tuple[Line, ...] = ()
    """Those of metrics.jsonl, each with a step, in order."""
    evaluations: tuple[Line, ...] = ()
    """Of evaluation/*.json, in order of step."""
    process: Process | None = None
    samples: tuple[Frame, ...] = ()
    """Pictures of one fixed noise, over training."""
    denoising: tuple[Frame, ...] = ()
    """One picture coming out of the noise: a film, or a single strip."""
    drawn: Frame | None = None
    """What sample.py drew."""
    nearest: Frame | None = None
    likelihood: Line | None = None
    """likelihood.json."""
    bound: Frame | None = None
    """Its picture: the bound by t."""
    checkpoints: tuple[int, ...] = ()
    """Steps that are kept."""
    checkpoint_bytes: int = 0

    @property
    def resumes(self) -> list[int]:
        """The steps, other than 0, at which the run was started."""
        steps = [start.get("step") for start in self.starts]
        return sorted({int(step) for step in steps if isinstance(step, (int, float)) and step > 0})
