"""Images whose pixels are normal together, with a covariance: everything about them is linear algebra in float64."""

import jax.numpy as jnp
import numpy as np

SHAPE = (2, 2, 1)
MEAN = np.array([0.2, -0.1, 0.3, 0.0])
_ROOT = np.array([[0.6, 0.0, 0.0, 0.0], [0.4, 0.4, 0.0, 0.0], [-0.3, 0.3, 0.4, 0.0], [0.5, -0.2, 0.1, 0.3]])
COVARIANCE = _ROOT @ _ROOT.T
KNOWN = np.array([True, False, True, False])


def denoiser(process, mean=MEAN, covariance=COVARIANCE):
    """denoise(x, time) -> E[x_0 | x] for a network of `process` (continuous, told 1000 t) that predicts x0."""

    def denoise(x, time):
        t = time[:, None] / 1000
        alpha, sigma = jnp.exp(process.log_alpha(jnp, t)), jnp.exp(process.log_sigma(jnp, t))
        values, axes = (jnp.asarray(a, x.dtype) for a in np.linalg.eigh(covariance))
        seen = (x.reshape(len(x), -1) - alpha * jnp.asarray(mean, x.dtype)) @ axes
        x_0 = jnp.asarray(mean, x.dtype) + (alpha * values / (alpha**2 * values + sigma**2) * seen) @ axes.T
        return x_0.reshape(x.shape).astype(x.dtype)

    return denoise


def given(A, y, noise=0.0, mean=MEAN, covariance=COVARIANCE):
    """Mean [D] and covariance [D, D] of x_0 given y = A x_0 + noise z."""
    gain = covariance @ A.T @ np.linalg.inv(A @ covariance @ A.T + noise**2 * np.eye(len(A)))
    return mean + gain @ (y - A @ mean), covariance - gain @ A @ covariance


def levels_of(process, times):
    """(alpha, sigma) at each of `times`, the image itself where they are 0: float64 [S + 1] each."""
    t = np.asarray(times, np.float64)
    with np.errstate(divide="ignore"):
        alpha, sigma = np.exp(process.log_alpha(np, t)), np.exp(process.log_sigma(np, np.maximum(t, 1e-30)))
    return np.where(t > 0, alpha, 1.0), np.where(t > 0, sigma, 0.0)


def walk(process, times, denoised, step):
    """Mean and covariance of x at the end of a walk from N(0, I) whose steps are affine.

    step(x_0, here, there) -> (matrix, offset, covariance of the noise), where x_0(alpha, sigma) = denoised is the
    affine prediction (matrix, offset) at a level.
    """
    alphas, sigmas = levels_of(process, times)
    mean, covariance = np.zeros(4), np.eye(4)
    for i in range(len(alphas) - 1):
        here, there = (alphas[i], sigmas[i]), (alphas[i + 1], sigmas[i + 1])
        matrix, offset, added = step(denoised(*here), here, there)
        mean, covariance = matrix @ mean + offset, matrix @ covariance @ matrix.T + added
    return mean, covariance


def prediction(alpha, sigma, mean=MEAN, covariance=COVARIANCE):
    """E[x_0 | x_t] = matrix x_t + offset."""
    gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(4))
    return gain, mean - alpha * gain @ mean


def ancestral(x_0, here, there):
    """The step of Ho et al. 2020, Eq. 6 and 7, with the small variance; up, q(x_s | x_t)."""
    (a_t, s_t), (a_s, s_s) = here, there
    if a_s < a_t:
        ratio = a_s / a_t
        return ratio * np.eye(4), np.zeros(4), (s_s**2 - ratio**2 * s_t**2) * np.eye(4)
    ratio = a_t / a_s
    new = s_t**2 - ratio**2 * s_s**2
    of_x_0, of_x_t = a_s * new / s_t**2, ratio * s_s**2 / s_t**2
    return of_x_0 * x_0[0] + of_x_t * np.eye(4), of_x_0 * x_0[1], new * s_s**2 / s_t**2 * np.eye(4)


def ddim(x_0, here, there):
    """Song et al. 2020, Eq. 12 without noise."""
    (a_t, s_t), (a_s, s_s) = here, there
    towards = s_s / s_t
    return towards * np.eye(4) + (a_s - towards * a_t) * x_0[0], (a_s - towards * a_t) * x_0[1], np.zeros((4, 4))


def replaced(step, image, known=KNOWN):
    """The step, and known pixels put back with fresh noise."""

    def both(x_0, here, there):
        matrix, offset, added = step(x_0, here, there)
        if there[0] < here[0]:  # going up nothing is put back: it would change nothing in distribution
            return matrix, offset, added
        rest = np.diag(1.0 - known)
        offset = rest @ offset + there[0] * known * image
        return rest @ matrix, offset, rest @ added @ rest + there[1] ** 2 * np.diag(1.0 * known)

    return both
