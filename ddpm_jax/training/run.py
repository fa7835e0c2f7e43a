"""A run's parts, built from its config; and its folder, read back."""

import dataclasses
import functools
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ddpm_jax import config as config_lib
from ddpm_jax import files, nets, networks, records, xla
from ddpm_jax.config import Config, Devices
from ddpm_jax.data.pipeline import Batch
from ddpm_jax.diffusion import bins, continuous, norms, schedules, timesteps, uncertainty
from ddpm_jax.diffusion.continuous import Curve
from ddpm_jax.diffusion.loss import LossTerms, classification, loss
from ddpm_jax.diffusion.norms import Norm
from ddpm_jax.diffusion.parameterization import PREDICTIONS
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timesteps import Draw
from ddpm_jax.diffusion.weighting_zoo import read
from ddpm_jax.diffusion.weightings import Weighting
from ddpm_jax.sampling import cascade
from ddpm_jax.training import checkpoint, distill_loss, objective, own_weighting, power_ema
from ddpm_jax.training import mesh as mesh_lib
from ddpm_jax.training.state import State, fresh, make_optimizer
from ddpm_jax.training.step import LossFn, Remember, TrainStep, make_step, make_update

ON_NONFINITE = {"stop": True, "skip": False}
"""Does a loss that isn't finite end the run?"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a config describes, ready to use."""

    config: Config
    """As given, but for the whole path of a weighting of the user's own."""
    schedule: Schedule
    module: Any
    optimizer: optax.GradientTransformation
    mesh: Mesh
    draw_t: Draw
    weighting: Weighting
    norm: Norm
    weights: jax.Array | None = None
    """The weighting at each step of the schedule [T], which training reads; the weighting itself if not there."""

    def _fresh(self, params: Any) -> State:
        return fresh(
            params,
            self.optimizer,
            noise=continuous.init(self.schedule) if self.config.diffusion.learn_schedule else (),
            history=distill_loss.start(self.config.distill, params) or self.draw_t.init(self.schedule.num_steps),
            uncertainty=uncertainty.init() if self.config.diffusion.learn_uncertainty else (),
            sigma_rels=self.config.optimizer.ema_sigma_rels,
        )

    def make(self, key: jax.Array) -> State:
        """The state before the first step from the key of its parameters; to be compiled."""
        return self._fresh(nets.init(key, self.module, self.config.data.shape))

    @functools.cached_property
    def _making(self) -> Any:
        """`make`, traced once for all that asks for its shapes or calls it."""
        return jax.jit(self.make)

    def init(self) -> State:
        """The state before the first step, on the devices of the mesh."""
        make: Any = jax.jit(self._making, out_shardings=self.shardings(), compiler_options=xla.quickly())
        state = make(jax.random.key(self.config.seed))
        make.clear_cache()  # of a large network it holds 150 MB of code that has run for good
        return state

    def start_from(self, params: Any) -> State:
        """The state before the first step, with these parameters in place of fresh ones."""
        state = self._fresh(params)
        return jax.device_put(state, mesh_lib.of_state(self.mesh, state))

    def abstract(self) -> State:
        """Shapes, dtypes and places of the state's arrays, for a checkpoint to be read into."""
        shapes = self._making.eval_shape(jax.random.key(0))
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            mesh_lib.of_state(self.mesh, shapes),
        )

    def shardings(self) -> State:
        """Where each array of the state lies."""
        return jax.tree.map(lambda x: x.sharding, self.abstract())


def training_key(config: Config) -> jax.Array:
    """The key of a run's steps; its parameters are drawn from key(seed) itself."""
    return jax.random.key(config.seed + 1)


def build(config: Config, *, devices: list[Any] | None = None, to_train: bool = True) -> Parts:
    """Turn a config into its parts, on all devices of all processes or on those given.

    Unless it is to train, the weighting is looked up when it is first called: the user's file may be gone by then.

    Raises:
        ValueError: for a value that can't be, naming its flag, the value got and those that can.
        FileNotFoundError: for a weighting whose file isn't there.
    """
    records.pick(dict.fromkeys(PREDICTIONS), config.diffusion.prediction, "--diffusion.prediction")
    whole = own_weighting.absolute(config.diffusion.weighting)
    config = dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, weighting=whole))
    objective.check(config.diffusion)
    distill_loss.check(config)
    objective.check_network(config)
    records.pick(ON_NONFINITE, config.run.on_nonfinite, "--run.on-nonfinite")
    power_ema.check(config.optimizer.ema_sigma_rels, "--optimizer.ema-sigma-rels")
    schedule = schedules.build(config.diffusion)
    weighting = own_weighting.build if to_train else own_weighting.late
    weighting = weighting(config.diffusion.weighting, config.diffusion.weighting_args, schedule)
    parts = Parts(
        config=config,
        schedule=schedule,
        module=nets.build(config),
        optimizer=make_optimizer(config.optimizer, config.steps),
        mesh=mesh_lib.make_mesh(config.devices.fsdp, devices),
        draw_t=timesteps.build(config.diffusion.draw_t, config.diffusion.draw_t_args),
        weighting=weighting,
        norm=norms.build(config.diffusion.norm, config.diffusion.norm_args),
        # One table for a run and for its like in a comparison: worked out within two programs it may round apart.
        weights=weighting(schedule.log_snr) if to_train else None,
    )
    if to_train and config.diffusion.learn_uncertainty:
        objective.check_uncertainty(parts.weighting, schedule)
    parts.abstract()  # a network that can't be is found out here
    return parts


def num_classes(config: Config) -> int:
    """Classes that the network is conditioned on, or tells apart; 0 for none."""
    return getattr(config.net, "num_classes", 0)


def without_class(config: Config) -> bool:
    """Can the network be asked for an image of no class in particular?"""
    return isinstance(config.net, config_lib.UNet) or getattr(config.net, "label_dropout", 0.0) > 0


def make_loss(parts: Parts) -> LossFn:
    """loss_fn(key, trained, batch, history): Algorithm 1 of Ho et al. 2020 with the config's objective.

    A batch has labels only if the network takes classes.
    """
    settings, net = parts.config.diffusion, parts.config.net
    table = None if parts.weights is None else functools.partial(read, parts.schedule, parts.weights)
    of_all = parts.config, parts.module, parts.schedule, parts.mesh
    distilled = distill_loss.make(*of_all, weighting=table or parts.weighting, norm=parts.norm)

    def loss_fn(key: jax.Array, trained: Any, batch: Batch, history: Any) -> tuple[jax.Array, LossTerms]:
        key_loss, key_dropout, key_labels = jax.random.split(key, 3)
        labels: list[Any] = []
        if batch.labels is not None:
            hidden = jax.random.bernoulli(key_labels, getattr(net, "label_dropout", 0.0), batch.labels.shape)
            labels = [jnp.where(hidden, num_classes(parts.config), batch.labels)]
        images = jnp.asarray(batch.images)
        if factor := networks.enlarges(net):
            key_low = jax.random.fold_in(key_labels, 1)
            labels = [cascade.in_training(key_low, parts.schedule, images, factor, *labels)]
        if distilled is not None:
            return distilled(key_loss, key_dropout, trained["net"], images, labels, history)
        denoise = nets.denoiser_in_training(parts.module, trained["net"], key_dropout, *labels)
        if settings.objective == "continuous":
            return continuous.loss(
                key_loss,
                curve(parts, trained["noise"]),
                denoise,
                images,
                logits=trained["noise"]["logits"] if settings.learn_schedule else None,
                num_steps=parts.schedule.num_steps,
                prediction=settings.prediction,
                quantiles=continuous.QUANTILES[settings.draw_t],
            )
        if settings.objective == "classifier":
            draw = {"draw_t": parts.draw_t, "history": history, "correct_draw": settings.correct_draw}
            return classification(key_loss, parts.schedule, denoise, images, **draw)
        u = functools.partial(uncertainty.log_variance, trained["uncertainty"]) if settings.learn_uncertainty else None
        return loss(
            key_loss,
            parts.schedule,
            denoise,
            images,
            prediction=settings.prediction,
            weighting=table or parts.weighting,
            norm=parts.norm,
            offset_noise=settings.offset_noise,
            objective=settings.objective,
            variance=settings.variance,
            vlb_weight=settings.vlb_weight,
            draw_t=parts.draw_t,
            history=history,
            correct_draw=settings.correct_draw,
            uncertainty=u,
        )

    return loss_fn


def make_remember(parts: Parts) -> Remember:
    """remember(history, terms): what the draw of t, or distillation, keeps of a batch."""
    if parts.config.distill.method:
        return distill_loss.remember
    return lambda history, terms: parts.draw_t.update(history, parts.schedule, terms.t, terms.objective)


def make_train_step(parts: Parts) -> TrainStep:
    """The compiled step of a run, of as many steps to a dispatch and parts to a batch as its config says."""
    return make_step(
        make_loss(parts),
        parts.optimizer,
        **_of_step(parts),
        steps_per_dispatch=parts.config.run.steps_per_dispatch,
        shardings=parts.shardings(),
    )


def make_train_update(parts: Parts, edges: jax.Array | None = None) -> TrainStep:
    """The step of a run before it is compiled, one to a dispatch: for a jit, a map or a shard_map of your own.

    `parts.schedule` and `parts.weights` may be traced. `edges` of bins of log-SNR, if
    given, are in place of the run's own.
    """
    distill_loss.refuse(parts.config)
    settings = _of_step(parts)
    if edges is not None:
        settings["edges"] = edges
    return make_update(make_loss(parts), parts.optimizer, **settings)


def _of_step(parts: Parts) -> dict[str, Any]:
    return {
        "ema_decay": parts.config.optimizer.ema_decay,
        "num_steps": parts.schedule.num_steps,
        "mesh": parts.mesh,
        "accumulate": parts.config.devices.accumulate,
        "remember": make_remember(parts),
        "edges": bins.edges(parts.schedule, parts.config.run.bins) if parts.config.run.bins else None,
    }


def abstract_arguments(parts: Parts) -> tuple[State, Batch, jax.Array]:
    """The shapes of what a step takes: state, a batch (or several, [k, B, ...], to a dispatch) and key."""
    config, several = parts.config, parts.config.run.steps_per_dispatch
    rows = (config.batch_size,) if several == 1 else (several, config.batch_size)
    images: Any = jax.ShapeDtypeStruct((*rows, *config.data.shape), jnp.float32)
    labels: Any = jax.ShapeDtypeStruct(rows, jnp.int32) if num_classes(config) else None
    key = jax.eval_shape(lambda: jax.random.key(0))
    return parts.abstract(), Batch(images=images, labels=labels), key


def _told(parts: Parts) -> tuple[jax.Array, jax.Array]:
    """The first and last log-SNR before any was learned, by which a network is told the time."""
    before = schedules.build(parts.config.diffusion)  # not parts.schedule, which may be the learned one already
    return before.log_snr[0], before.log_snr[-1]


def curve(parts: Parts, noise: Any) -> Curve:
    """Log-SNR in continuous time: as learned, `noise` being its parameters, or the schedule's."""
    if not parts.config.diffusion.learn_schedule:
        return continuous.of_schedule(parts.schedule)
    return continuous.learned(noise, *_told(parts))


def as_learned(parts: Parts, state: State) -> Parts:
    """The parts to sample with: where the noise schedule is learned, with it as it is in `state`."""
    if not parts.config.diffusion.learn_schedule:
        return parts
    schedule = continuous.as_schedule(state.noise, *_told(parts), parts.schedule.num_steps)
    return dataclasses.replace(parts, schedule=schedule)


def load(workdir: str | os.PathLike, *, step: int | Literal["best"] | None = None) -> tuple[Parts, State]:
    """A run's parts, to sample with, and its newest state, or that of `step`, from its folder alone.

    Raises:
        FileNotFoundError: if the folder is no run's, or has no such checkpoint.
    """
    workdir = files.place(workdir)
    config = config_lib.read(workdir / "config.json")
    # It may be read on other devices than it was trained on: for drawing, each has the network whole.
    parts = build(dataclasses.replace(config, devices=Devices()), to_train=False)
    if not files.is_dir(workdir / "checkpoints"):
        raise FileNotFoundError(f"{workdir} has no checkpoints yet: let train.py reach its first")
    with checkpoint.open_folder(workdir / "checkpoints", read_only=True) as manager:
        state = checkpoint.restore(manager, parts.abstract(), step=step)
    return as_learned(parts, state), state
