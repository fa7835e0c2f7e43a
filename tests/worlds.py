"""Data whose best denoiser, flow, density and moments are known in closed form, in float64.

Pixels are independent draws of a mixture of normals in one dimension. There the probability-flow ODE keeps every
quantile where it is: x at one level and x at another have the same cumulative probability.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr, logsumexp


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """x_0 ~ sum_k weights[k] N(means[k], stds[k]^2)."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    def mean(self):
        return float(np.dot(self.weights, self.means))

    def std(self):
        second = np.dot(self.weights, np.square(self.means) + np.square(self.stds))
        return float(np.sqrt(second - self.mean() ** 2))

    def x_0_given(self, x, alpha, sigma):
        """E[x_0 | x_t = x]; alpha and sigma broadcast against x."""
        x, alpha, sigma = (jnp.asarray(a)[..., None] for a in (x, alpha, sigma))
        weights, means, stds = (jnp.asarray(a, x.dtype) for a in (self.weights, self.means, self.stds))
        variance = alpha**2 * stds**2 + sigma**2
        logits = jnp.log(weights) - 0.5 * jnp.log(variance) - 0.5 * (x - alpha * means) ** 2 / variance
        each = means + alpha * stds**2 / variance * (x - alpha * means)
        return jnp.sum(jax.nn.softmax(logits, axis=-1) * each, axis=-1)

    def log_density(self, x, alpha=1.0, sigma=0.0):
        """log p_t(x) of each pixel, NumPy."""
        x = np.asarray(x, np.float64)[..., None]
        variance = np.square(alpha * np.asarray(self.stds)) + sigma**2
        logs = -0.5 * (x - alpha * np.asarray(self.means)) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
        return logsumexp(logs + np.log(self.weights), axis=-1)

    def _log_tails(self, x, alpha, sigma):
        """log of the probability below and above x."""
        z = (x - alpha * np.asarray(self.means)) / np.sqrt(np.square(alpha * np.asarray(self.stds)) + sigma**2)
        logs = np.log(self.weights)
        return logsumexp(logs + log_ndtr(z)), logsumexp(logs + log_ndtr(-z))

    def flow(self, x, start, end):
        """Where the probability-flow ODE takes x from (alpha, sigma) = start to end, NumPy, to 1e-13."""

        def one(value):
            below, above = self._log_tails(value, *start)
            side, wanted = (0, below) if below < above else (1, above)
            sign = 1 if side == 0 else -1
            return brentq(lambda y: sign * (self._log_tails(y, *end)[side] - wanted), -500, 500, xtol=1e-14, rtol=1e-14)

        return np.vectorize(one)(np.asarray(x, np.float64))


GAUSSIAN = World(weights=(1.0,), means=(0.3,), stds=(0.5,))
MIXTURE = World(weights=(0.4, 0.6), means=(-0.5, 0.6), stds=(0.3, 0.2))


def denoiser(world, process, prediction="eps"):
    """denoise(x, time) for a network of `process` (continuous) that knows the world, exact in x's dtype."""
    times = {"edm": lambda time: jnp.exp(4 * time)}.get(process.name, lambda time: time / 1000)

    def denoise(x, time):
        t = times(time.astype(x.dtype)).reshape(-1, *[1] * (x.ndim - 1))
        alpha, sigma = jnp.exp(process.log_alpha(jnp, t)), jnp.exp(process.log_sigma(jnp, t))
        x_0 = world.x_0_given(x, alpha, sigma)
        eps = (x - alpha * x_0) / sigma
        said = {"x0": x_0, "eps": eps, "v": alpha * eps - sigma * x_0, "score": -eps / sigma, "flow": eps - x_0}
        return said[prediction]

    return denoise


def levels_of(process, t):
    """(alpha, sigma) at t, floats."""
    return float(np.exp(process.log_alpha(np, t))), float(np.exp(process.log_sigma(np, t)))
