"""A run's parts, built from its config; and its folder, read back."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ddpm_jax import config as config_lib
from ddpm_jax import nets
from ddpm_jax.config import Config
from ddpm_jax.data.pipeline import Batch
from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.loss import LossTerms, loss
from ddpm_jax.diffusion.parameterization import PREDICTIONS
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.weightings import WEIGHTINGS
from ddpm_jax.training import checkpoint
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.state import State, fresh, make_optimizer
from ddpm_jax.training.step import LossFn

ON_NONFINITE = {"stop": True, "skip": False}
"""Does a loss that isn't finite end the run?"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a config describes, ready to use."""

    config: Config
    schedule: Schedule
    module: Any
    optimizer: optax.GradientTransformation
    mesh: Mesh

    def _make(self, key: jax.Array) -> State:
        return fresh(nets.init(key, self.module, self.config.data.shape), self.optimizer)

    def init(self) -> State:
        """The state before the first step, on every device of the mesh."""
        # Drawing parameters is short work and long code: on CPU, compiling it well takes far longer than running it.
        quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        make = jax.jit(self._make, out_shardings=mesh_lib.replicated(self.mesh), compiler_options=quick)
        return make(jax.random.key(self.config.seed))

    def abstract(self) -> State:
        """Shapes, dtypes and places of the state's arrays, for a checkpoint to be read into."""
        everywhere = mesh_lib.replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            jax.eval_shape(self._make, jax.random.key(0)),
        )


def build(config: Config) -> Parts:
    """Turn a config into its parts.

    Raises:
        ValueError: for a value that can't be, naming its flag, the value got and those that can.
    """
    config_lib.pick(dict.fromkeys(PREDICTIONS), config.diffusion.prediction, "--diffusion.prediction")
    config_lib.pick(WEIGHTINGS, config.diffusion.weighting, "--diffusion.weighting")
    config_lib.pick(ON_NONFINITE, config.run.on_nonfinite, "--run.on-nonfinite")
    parts = Parts(
        config=config,
        schedule=schedules.build(config.diffusion),
        module=nets.build(config),
        optimizer=make_optimizer(config.optimizer, config.steps),
        mesh=mesh_lib.make_mesh(),
    )
    parts.abstract()  # a network that can't be is found out here
    return parts


def num_classes(config: Config) -> int:
    """Classes that the network is conditioned on; 0 for none."""
    return config.net.num_classes if isinstance(config.net, config_lib.UNet) else 0


def make_loss(parts: Parts) -> LossFn:
    """loss_fn(key, params, batch): Algorithm 1 of Ho et al. 2020 with the config's prediction and weighting.

    A batch has labels only if the network takes classes.
    """
    settings, net = parts.config.diffusion, parts.config.net

    def loss_fn(key: jax.Array, params: Any, batch: Batch) -> tuple[jax.Array, LossTerms]:
        key_loss, key_dropout, key_labels = jax.random.split(key, 3)
        labels = []
        if batch.labels is not None and isinstance(net, config_lib.UNet):
            hidden = jax.random.bernoulli(key_labels, net.label_dropout, batch.labels.shape)
            labels = [jnp.where(hidden, net.num_classes, batch.labels)]
        return loss(
            key_loss,
            parts.schedule,
            nets.denoiser_in_training(parts.module, params, key_dropout, *labels),
            jnp.asarray(batch.images),
            prediction=settings.prediction,
            weighting=WEIGHTINGS[settings.weighting],
        )

    return loss_fn


def load(workdir: Path, *, step: int | None = None) -> tuple[Parts, State]:
    """A run's parts and its newest state, or that of `step`, from its folder alone.

    Raises:
        FileNotFoundError: if the folder is no run's, or has no such checkpoint.
    """
    parts = build(config_lib.read(workdir / "config.json"))
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(f"{workdir} has no checkpoints yet: let train.py reach its first")
    with checkpoint.open_folder(workdir / "checkpoints", read_only=True) as manager:
        return parts, checkpoint.restore(manager, parts.abstract(), step=step)
