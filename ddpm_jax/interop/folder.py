"""Weights from elsewhere as an ordinary run's folder, which sample.py and train.py take as one of their own."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax import config as config_lib
from ddpm_jax.config import Config
from ddpm_jax.interop.whole import check_params, new_folder, refuse_used
from ddpm_jax.training import checkpoint, mesh, run


def write(workdir: Path, config: Config, params: Any, *, step: int = 0) -> None:
    """Make the folder of a run that is at `step` with these parameters, averaged ones too, and a fresh optimizer.

    The learning rate goes on from `step`; Adam's own count begins at 0 with its moments, whose bias it corrects.
    Whole or not at all: what fails or is killed leaves nothing at `workdir`.

    Args:
        params: as the config's network takes them; kept in float32.

    Raises:
        ValueError: before anything is written, for a folder that has something in it, a config that can't be, a
            negative step or parameters of another network, each named with its shape.
    """
    refuse_used(workdir)
    if step < 0:
        raise ValueError(f"--step must be 0 or more, got {step}")
    parts = run.build(config)
    check_params(params, parts.abstract().params)
    state = parts.start_from(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params))
    count = jax.device_put(jnp.int32(step), mesh.replicated(parts.mesh))
    state = dataclasses.replace(state, step=count, opt_state=_scheduled(state.opt_state, count))
    with new_folder(workdir) as beside:
        config_lib.write(config, beside / "config.json")
        with checkpoint.open_folder(beside / "checkpoints") as manager:
            checkpoint.save(manager, state)


def _scheduled(opt_state: Any, count: jax.Array) -> Any:
    """The optimizer's state with its place in the learning rate's schedule set."""

    def places(path: Any, value: Any) -> bool:
        del value
        return getattr(path[-1], "tuple_name", "") == optax.ScaleByScheduleState.__name__

    return optax.tree_utils.tree_set(opt_state, places, count=count)
