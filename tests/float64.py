"""The bound and the objectives in float64 NumPy, from the papers' formulas: what the library is held against.

Everything here is for each dimension by itself: arrays are [B, ...] and t is int [B], one index for each image.
"""

import dataclasses

import numpy as np
from scipy.special import log_ndtr, logsumexp

LOG_2 = np.log(2.0)


def linear_betas(num_steps=1000):
    return np.linspace(1e-4, 0.02, num_steps)


def cosine_betas(num_steps=1000):
    """Nichol & Dhariwal 2021, Eq. 17."""
    curve = np.cos((np.linspace(0, 1, num_steps + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - curve[1:] / curve[:-1], 0.999)


def log_snr_betas(num_steps, start, end):
    """Kingma et al. 2021: log-SNR in equal steps from start to end."""
    alpha_bars = 1 / (1 + np.exp(-np.linspace(start, end, num_steps)))
    return 1 - alpha_bars / np.append(1.0, alpha_bars[:-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """Ho et al. 2020, Eq. 2, 4, 6, 7; [T] each."""

    beta: np.ndarray
    alpha_bar: np.ndarray
    signal: np.ndarray
    noise: np.ndarray
    beta_tilde: np.ndarray
    of_x_0: np.ndarray
    of_x_t: np.ndarray


def tables(betas):
    alpha_bar = np.cumprod(1 - betas)
    before = np.append(1.0, alpha_bar[:-1])
    return Tables(
        beta=betas,
        alpha_bar=alpha_bar,
        signal=np.sqrt(alpha_bar),
        noise=np.sqrt(1 - alpha_bar),
        beta_tilde=betas * (1 - before) / (1 - alpha_bar),
        of_x_0=np.sqrt(before) * betas / (1 - alpha_bar),
        of_x_t=np.sqrt(1 - betas) * (1 - before) / (1 - alpha_bar),
    )


def like(values, x):
    """[B] so that it broadcasts against [B, ...]."""
    return np.reshape(values, (-1,) + (1,) * (np.ndim(x) - 1))


def images_mean(values):
    return np.reshape(values, (len(values), -1)).mean(axis=1)


def q_sample(table, x_0, eps, t):
    return like(table.signal[t], x_0) * x_0 + like(table.noise[t], x_0) * eps


def say(table, prediction, x_0, eps, t):
    """What a network that predicts `prediction` should answer."""
    a, s = like(table.signal[t], x_0), like(table.noise[t], x_0)
    return {
        "eps": eps,
        "x0": x_0 + 0 * eps,
        "v": a * eps - s * x_0,
        "score": -eps / s,
        "mean": like(table.of_x_0[t], x_0) * x_0 + like(table.of_x_t[t], x_0) * (a * x_0 + s * eps),
        "flow": eps - x_0,
    }[prediction]


def hear(table, prediction, output, x_t, t):
    """The x_0 that an answer stands for, each solved for by hand from x_t = a x_0 + s eps."""
    a, s = like(table.signal[t], x_t), like(table.noise[t], x_t)
    if prediction == "x0":
        return output
    if prediction == "v":
        return a * x_t - s * output
    if prediction == "flow":
        return (x_t - s * output) / (a + s)
    if prediction == "mean":
        return (output - like(table.of_x_t[t], x_t) * x_t) / like(table.of_x_0[t], x_t)
    eps = output if prediction == "eps" else -s * output
    return (x_t - s * eps) / a


def log_variance(table, name, t, v):
    """Of the step back; at t = 0 the published code takes the posterior's of t = 1 for both ends."""
    first = t == 0
    small = np.log(table.beta_tilde[np.where(first, 1, t)])
    large = np.where(first, small, np.log(table.beta[t]))
    small, large = like(small, v), like(large, v)
    if name == "learned":
        return v
    part = {"small": 0.0, "large": 1.0, "learned_range": (v + 1) / 2}
    part = part[name] if name in part else float(name.split(":")[1])
    return part * large + (1 - part) * small + 0 * v


def kl(mean, log_var, mean_p, log_var_p):
    """KL(N(mean, exp(log_var)) || N(mean_p, exp(log_var_p)))."""
    ratio = np.exp(log_var - log_var_p)
    return 0.5 * (ratio - 1 - (log_var - log_var_p) + (mean - mean_p) ** 2 / np.exp(log_var_p))


def log_mass(low, high):
    """log of the standard normal's mass between low < high, in the tail that keeps its digits."""
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    with np.errstate(divide="ignore"):
        return log_ndtr(high) + np.log(-np.expm1(log_ndtr(low) - log_ndtr(high)))


def tanh_log_mass(low, high):
    """Ho et al.'s code: a tanh in place of the normal's integral, nothing below 1e-12."""
    low, high = (0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) for x in (low, high))
    return np.log(np.maximum(high - low, 1e-12))


def decoder_nll(x_0, mean, log_var, bits=8, log_mass=log_mass):
    """Ho et al. 2020, Eq. 13, in nats."""
    half, std = 1 / (2**bits - 1), np.exp(0.5 * log_var)
    low = np.where(x_0 < -1 + half, -np.inf, (x_0 - half - mean) / std)
    high = np.where(x_0 > 1 - half, np.inf, (x_0 + half - mean) / std)
    return -log_mass(low, high)


def categorical_nll(x_0, z, log_snr, bits=8):
    """Kingma et al. 2021: a softmax over the 2^bits values, in nats."""
    values = np.linspace(-1, 1, 2**bits)
    energy = -0.5 * np.exp(log_snr) * (np.asarray(z)[..., None] - values) ** 2
    place = np.rint((np.asarray(x_0) + 1) / 2 * (2**bits - 1)).astype(int)
    return logsumexp(energy, axis=-1) - np.take_along_axis(energy, place[..., None], axis=-1)[..., 0]


def prior_bits(table, x_0):
    """L_T [B]."""
    end = table.alpha_bar[-1]
    return images_mean(0.5 * (end * np.square(x_0) - end - np.log1p(-end))) / LOG_2


def step_nats(table, x_0, x_t, t, output, v, prediction, variance, bits=8):
    """L_t for each dimension, L_0 at t = 0."""
    t_1 = np.where(t == 0, 1, t)  # any step that has a posterior: its KL is then thrown away
    back, held = like(table.of_x_0[t], x_t), like(table.of_x_t[t], x_t) * x_t
    mean_p, log_var_p = back * hear(table, prediction, output, x_t, t) + held, log_variance(table, variance, t, v)
    apart = kl(back * x_0 + held, like(np.log(table.beta_tilde[t_1]), x_t), mean_p, log_var_p)
    return np.where(like(t == 0, x_t), decoder_nll(x_0, mean_p, log_var_p, bits), apart)


def vlb(table, x_0, x_t, t, output, v, prediction, variance, bits=8):
    """T L_t in bits, for each dimension: its mean is the objective."""
    return len(table.beta) * step_nats(table, x_0, x_t, t, output, v, prediction, variance, bits) / LOG_2


def simple(table, eps, x_t, t, output, prediction):
    """||eps - eps_hat||^2 for each dimension (Ho et al. 2020, Eq. 14), whatever was predicted."""
    a, s = like(table.signal[t], x_t), like(table.noise[t], x_t)
    if prediction in ("eps", "score"):  # not by way of x_0, which would cancel
        return (eps - (output if prediction == "eps" else -s * output)) ** 2
    return (eps - (x_t - a * hear(table, prediction, output, x_t, t)) / s) ** 2


def slope(function, x, step):
    """d function / d x for a function of each entry by itself, by central differences."""
    return (function(x + step) - function(x - step)) / (2 * step)


def gauss_hermite(nodes):
    """Nodes and weights of E f(x), x ~ N(0, 1); exact for polynomials up to degree 2 nodes - 1."""
    x, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return x, weight / np.sqrt(2 * np.pi)


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """x_0 ~ N(mean, std^2), where everything is known."""

    mean: float = 0.1
    std: float = 0.6

    def best(self, a, s, x_t):
        """E[x_0 | x_t] and E[eps | x_t], neither from the other."""
        rest = (x_t - a * self.mean) / (a**2 * self.std**2 + s**2)
        return self.mean + a * self.std**2 * rest, s * rest

    def spread(self, table):
        """Var[x_{t-1} | x_t] for t = 0 .. T-1, by Bayes' rule over both steps."""
        of_x_0 = self.std**2 * table.noise**2 / (table.alpha_bar * self.std**2 + table.noise**2)
        return table.beta_tilde + table.of_x_0**2 * of_x_0

    def information(self, log_snr):
        """I(x_0; x_t) in bits."""
        return 0.5 * np.log2(1 + self.std**2 * np.exp(log_snr))

    def prior_gap(self, table):
        """KL(q(x_T) || N(0, 1)) in bits: what L_T costs above I(x_0; x_T)."""
        end = table.alpha_bar[-1]
        return kl(end**0.5 * self.mean, np.log1p(end * (self.std**2 - 1)), 0.0, 0.0) / LOG_2

    def rate(self, table, log_variances):
        """The exact rate in bits for step variances exp(log_variances) [T] and the best mean.

        The information at t = 0, the end's gap, and KL(q(x_{t-1} | x_t) || p(x_{t-1} | x_t)), normals both.
        """
        first = np.log(table.alpha_bar[0]) - np.log(table.noise[0] ** 2)
        steps = kl(0.0, np.log(self.spread(table)[1:]), 0.0, log_variances[1:]).sum() / LOG_2
        return self.information(first) + self.prior_gap(table) + steps
