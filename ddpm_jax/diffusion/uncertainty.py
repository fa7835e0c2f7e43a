"""Learned uncertainty: the weighting that evens out the noise levels (Karras et al. 2024, "EDM2", Eq. 21).

The loss of an image, `value`, becomes that of a Gaussian whose log-variance u is learned for each log-SNR lambda
(Kendall et al. 2018, "Multi-task learning using uncertainty to weigh losses", for tasks in place of noise levels):

    exp(-u(lambda)) value + u(lambda),    least where exp(u(lambda)) = E[value | lambda]

There every noise level counts for 1, however small its error is: k exp(-u) = 1 / E[||eps - eps_hat||^2 | lambda],
whatever weighting k it began with. How much of training a level then gets is up to the draw of t alone.

u is linear in random Fourier features of the noise level: c = ln(sigma) / 4 with sigma^2 = 1 / SNR, hence -lambda / 8.
It is of use in training only, and sampling leaves it out.

Gradients are divided by the errors, too, and grow as these fall: a hundredfold within 500 steps on digits, with u's own
a small part of them. A largest norm of 1 (Optimizer.clip_norm) then shortens every step. Adam, to which the size of
gradients means nothing, learns u all the same; EDM2 itself trains without clipping.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.schedules import LOG_SNR_LIMIT
from ddpm_jax.diffusion.weightings import Weighting

FEATURES = 128

# Checkpoints keep the weights alone, so these must be the same numbers for ever. NumPy froze this generator's stream;
# those of Generator and of jax.random may change from version to version.
_FIXED = np.random.RandomState(2024)
_FREQUENCIES = _FIXED.standard_normal(FEATURES).astype(np.float32)
_PHASES = _FIXED.random_sample(FEATURES).astype(np.float32)


def init() -> dict[str, jax.Array]:
    """Parameters of u: weights, float32 [FEATURES]. All 0, so that u = 0 and training begins with the weighting."""
    return {"weights": jnp.zeros(FEATURES)}


def log_variance(parameters: Mapping[str, jax.Array], log_snr: jax.Array) -> jax.Array:
    """u at log_snr [...], float32 of the same shape: at its best the logarithm of the mean loss at that log-SNR.

    The features are sqrt(2) cos(2 pi (f c + phase)) with f ~ N(0, 1) and phase ~ U(0, 1), of mean square 1. A log-SNR
    beyond the range of a schedule's table, infinity included, is taken for the end of that range.
    """
    c = -jnp.clip(log_snr, -LOG_SNR_LIMIT, LOG_SNR_LIMIT) / 8
    features = jnp.sqrt(2.0) * jnp.cos(2 * jnp.pi * (_FREQUENCIES * c[..., None] + _PHASES))
    return jnp.sum(features * parameters["weights"], axis=-1)  # no matrix product, which a TPU rounds to bfloat16


def weighting(k: Weighting, parameters: Mapping[str, jax.Array]) -> Weighting:
    """k(log_snr) exp(-u(log_snr)): what a noise level counts for by now, for `weightings.effective` to draw.

    k is a function of log-SNR alone, such as `weightings.bind` makes.
    """
    return lambda log_snr: k(log_snr) * jnp.exp(-log_variance(parameters, log_snr))
