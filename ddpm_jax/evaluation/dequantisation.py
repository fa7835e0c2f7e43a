"""From bytes to densities: bits per dimension of whole numbers under a density of real ones.

A draw x of q(x | x_0) from around a byte x_0 bounds its probability from below (Theis et al. 2016; Ho et al. 2019):

    log P(x_0) >= E_q[log p(x) + log P(x_0 | x) - log q(x | x_0)]

    none         x = x_0, nothing corrected: a density, not a probability
    uniform      x evenly within the byte's bin, of width w = 2 / (2^bits - 1): log w for each dimension
    noise        x as the process itself noises x_0 at its least noisy level, where a flow's density is known, and
                 P(x_0 | x) of Kingma et al. 2021. It alone has no mismatch: the others take x_0 to lie on that level
    variational  x within the bin at u ~ q(u | x_0), a network's: `fit`

A dequantisation is a function (key, x_0 [H, W, C], level, bits) -> x like x_0, and log P(x_0 | x) - log q(x | x_0).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import xla
from ddpm_jax.diffusion.decoder import categorical_nll
from ddpm_jax.diffusion.levels import Level, Levels
from ddpm_jax.nets.dequantiser import Dequantiser
from ddpm_jax.sampling.loop import ask
from ddpm_jax.types import Denoiser

Dequantisation = Callable[[jax.Array, jax.Array, Level, int], tuple[jax.Array, jax.Array]]


def _width(bits: int) -> float:
    return 2 / (2**bits - 1)


def none(key: jax.Array, x_0: jax.Array, level: Level, bits: int) -> tuple[jax.Array, jax.Array]:
    del key, level, bits
    return x_0, jnp.zeros((), x_0.dtype)


def uniform(key: jax.Array, x_0: jax.Array, level: Level, bits: int) -> tuple[jax.Array, jax.Array]:
    del level
    u = jax.random.uniform(key, x_0.shape, x_0.dtype)
    return x_0 + _width(bits) * (u - 0.5), jnp.asarray(x_0.size * np.log(_width(bits)), x_0.dtype)


def noise(key: jax.Array, x_0: jax.Array, level: Level, bits: int) -> tuple[jax.Array, jax.Array]:
    eps = jax.random.normal(key, x_0.shape, x_0.dtype)
    x = level.alpha * x_0 + level.sigma * eps
    log_q = -0.5 * eps**2 - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(level.sigma)
    nll = categorical_nll(x_0[None], x[None] / level.alpha, level.log_snr, bits=bits)
    return x, -jnp.sum(nll) - jnp.sum(log_q)


DEQUANTISATIONS: dict[str, Dequantisation] = {"none": none, "uniform": uniform, "noise": noise}
"""Those that need no network."""


def variational(params: Any, module: Dequantiser | None = None) -> Dequantisation:
    """That of `fit`'s parameters."""
    module = Dequantiser() if module is None else module

    def draw(key: jax.Array, x_0: jax.Array, level: Level, bits: int) -> tuple[jax.Array, jax.Array]:
        del level
        said: Any = module.apply({"params": params}, x_0[None])
        mean, log_scale = said[0][0], said[1][0]
        e = jax.random.logistic(key, x_0.shape, x_0.dtype)
        logit = mean + jnp.exp(log_scale) * e
        # q(u) = logistic(e) / (scale u (1 - u)), all by log sigmoids.
        log_q = _log_logistic(e) - log_scale - _log_logistic(logit)
        x = x_0 + _width(bits) * (jax.nn.sigmoid(logit) - 0.5)
        return x, x_0.size * np.log(_width(bits)) - jnp.sum(log_q)

    return draw


def _log_logistic(e: jax.Array) -> jax.Array:
    """log density of the logistic distribution: sigmoid(e) (1 - sigmoid(e))."""
    return jax.nn.log_sigmoid(e) + jax.nn.log_sigmoid(-e)


def fit(
    key: jax.Array,
    denoise: Denoiser,
    levels: Levels,
    images: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]],
    num: int,
    *,
    prediction: str = "eps",
    bits: int = 8,
    steps: int = 500,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    on_step: Callable[[], Any] = lambda: None,
) -> Any:
    """Train q(u | x_0) to raise the bound, with the network that is measured as it is.

    x is a function of the network's parameters and of noise, so that the bound's gradient needs no ODE, only that of
    log p at x: the score at the least noisy level, -eps / sigma, which the network says in one evaluation.

    Args:
        levels: those of the density, `flow_likelihood.ends`.
        images: images(rows int [B]) -> images [B, H, W, C] to train on, in [-1, 1], and labels or None.
        num: how many there are.
        on_step: called after each step.

    Returns:
        parameters for `variational`.
    """
    module, adam = Dequantiser(), optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @xla.jit
    def step(params: Any, state: Any, key: jax.Array, denoise: Denoiser, levels: Levels, x_0: jax.Array, labels: Any):
        level = levels.read(-1)
        model = ask(denoise, prediction=prediction, clip=False, conditions=labels)

        def loss(params: Any) -> jax.Array:
            draw = variational(params, module)
            x, log_q = jax.vmap(lambda key, x_0: draw(key, x_0, level, bits))(jax.random.split(key, len(x_0)), x_0)
            score = jax.lax.stop_gradient(-model(x, level).eps / level.sigma)
            return -(jnp.sum(score * x) + jnp.sum(log_q)) / x_0.size

        updates, state = adam.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    key_init, key_rows, key = jax.random.split(key, 3)
    rows = np.asarray(jax.random.randint(key_rows, (steps, batch_size), 0, num))
    params = module.init(key_init, jnp.asarray(images(rows[0, :1])[0]))["params"]
    state = adam.init(params)
    for i in range(steps):
        x_0, labels = images(rows[i])
        params, state = step(params, state, jax.random.fold_in(key, i), denoise, levels, jnp.asarray(x_0), labels)
        on_step()
    return params
