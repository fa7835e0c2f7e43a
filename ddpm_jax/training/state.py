"""What training carries from step to step, and how parameters move."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.config import Optimizer
from ddpm_jax.records import pick
from ddpm_jax.training import power_ema


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """All that a checkpoint keeps; data order and randomness follow from `step` and the seed."""

    step: jax.Array
    """How many steps have been taken, int32."""
    params: Any
    ema: Any
    """Averaged parameters, the ones to sample from."""
    opt_state: Any
    noise: Any = ()
    """Parameters of the noise schedule, if it is learned; see `diffusion.continuous`."""
    history: Any = ()
    """What the draw of t has seen, if it looks; see `diffusion.timesteps`."""
    uncertainty: Any = ()
    """Parameters of the uncertainty, if it is learned; see `diffusion.uncertainty`."""
    power_ema: Any = ()
    """Further averages of the parameters, by their sigma_rel as text, if any are kept; see `training.power_ema`."""

    def trained(self) -> dict[str, Any]:
        """All that the optimizer moves: the network and, if they are learned, noise schedule and uncertainty."""
        # Without parameters no key either: the optimizer's state in older checkpoints has none.
        learned = {"uncertainty": self.uncertainty} if jax.tree.leaves(self.uncertainty) else {}
        return {"net": self.params, "noise": self.noise, **learned}


def _adam(rate: optax.Schedule, settings: Optimizer) -> optax.GradientTransformation:
    if settings.weight_decay:
        raise ValueError(f"--optimizer.weight-decay {settings.weight_decay} needs --optimizer.name adamw, got adam")
    return optax.adam(rate, b1=settings.b1, b2=settings.b2, eps=settings.eps)


def _decays(trained: Any) -> Any:
    """Where weight decay belongs: neither in biases, nor in the noise schedule or the uncertainty.

    Their zero means nothing: a decayed uncertainty would fall short of the loss's size.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        names = [getattr(entry, "key", None) for entry in path]
        return names[0] not in ("noise", "uncertainty") and names[-1] != "bias"

    return jax.tree_util.tree_map_with_path(decays, trained)


def _adamw(rate: optax.Schedule, settings: Optimizer) -> optax.GradientTransformation:
    decay = {"weight_decay": settings.weight_decay, "mask": _decays}
    return optax.adamw(rate, b1=settings.b1, b2=settings.b2, eps=settings.eps, **decay)


OPTIMIZERS: dict[str, Callable[[optax.Schedule, Optimizer], optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
}


def _constant(peak: float, steps: int) -> optax.Schedule:
    del steps
    return optax.constant_schedule(peak)


def _cosine(peak: float, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, max(steps, 1))


def _linear(peak: float, steps: int) -> optax.Schedule:
    return optax.linear_schedule(peak, 0.0, max(steps, 1))


DECAYS: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
}


def learning_rate(settings: Optimizer, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then the decay, over `steps` steps in all."""
    after = pick(DECAYS, settings.decay, "--optimizer.decay")(settings.learning_rate, steps - settings.warmup_steps)
    if settings.warmup_steps == 0:
        return after
    up = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup_steps)
    return optax.join_schedules([up, after], [settings.warmup_steps])


def make_optimizer(settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then Adam or AdamW at the scheduled rate.

    Raises:
        ValueError: for an unknown name, or weight decay that the optimizer wouldn't apply.
    """
    optimizer = pick(OPTIMIZERS, settings.name, "--optimizer.name")(learning_rate(settings, steps), settings)
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm > 0 else optax.identity()
    return optax.chain(clip, optimizer)


def fresh(
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    noise: Any = (),
    history: Any = (),
    uncertainty: Any = (),
    sigma_rels: Sequence[float] = (),
) -> State:
    """The state before the first step; the averages start at the parameters.

    `sigma_rels` are the lengths of further averages, see `training.power_ema`.
    """
    # A copy: the step gives both away (donation), and one buffer can't be given twice.
    ema = jax.tree.map(jnp.copy, params)
    further = {"noise": noise, "history": history, "uncertainty": uncertainty}
    further["power_ema"] = power_ema.start(params, sigma_rels)
    state = State(step=jnp.zeros((), jnp.int32), params=params, ema=ema, opt_state=(), **further)
    return dataclasses.replace(state, opt_state=optimizer.init(state.trained()))


def average(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """Move the average towards the parameters, faster while it is young.

    The decay is min(decay, (1 + step) / (10 + step)): the average of a short run isn't the noise it started from.
    """
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, ema, rate)
