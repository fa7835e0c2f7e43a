"""What the process does to worlds that are known exactly: the pictures of docs/, drawn by `cli.explain`.

The worlds are a set of images, of which data are taken to be nothing else; a normal with the covariance of such a set;
and one number that is -1 or +1. What a perfect network would answer is known in each of them.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import log_softmax

from ddpm_jax.diffusion.schedules import Schedule, at, respace
from ddpm_jax.figures import pictures
from ddpm_jax.figures.page import COLOURS, INK, MUTED
from ddpm_jax.types import Denoiser, per_image

_BLUE, _ORANGE, _GREEN = list(COLOURS)[:3]
_NOISED = np.linspace(-3.2, 3.2, 321)


def guesses(schedule: Schedule, images: np.ndarray, x_t: np.ndarray, t: int) -> np.ndarray:
    """q(x_0 | x_t) where data are these images [N, ...] and no others: to x_t [B, ...] the chance of each, [B, N].

    Float64. By Bayes in proportion to N(x_t; alpha x_0, sigma^2 I) (Ho et al. 2020, Eq. 4).
    """
    alpha, sigma = (float(table[t]) for table in (schedule.sqrt_alpha_bars, schedule.sqrt_one_minus_alpha_bars))
    x_0, x = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (images, x_t))
    # The square without x_t^2, which all images share.
    logits = (alpha * x @ x_0.T - 0.5 * alpha**2 * (x_0**2).sum(1)) / sigma**2
    return np.exp(log_softmax(logits, axis=1))


def one_to_many(
    schedule: Schedule, images: np.ndarray, ts: Sequence[int], *, draws: int = 6, seed: int = 0
) -> np.ndarray:
    """The first of the images [N, H, W, C] noised to each t, and images that it may have been, as a picture [h, w, C].

    A row for each t: x_t, the mean of q(x_0 | x_t) over the images, and that many draws from it.
    """
    generator = np.random.default_rng(seed)
    eps = generator.normal(size=images.shape[1:])
    rows = []
    for t in ts:
        x_t = float(schedule.sqrt_alpha_bars[t]) * images[0] + float(schedule.sqrt_one_minus_alpha_bars[t]) * eps
        (chances,) = guesses(schedule, images, x_t[None], t)
        drawn = generator.choice(len(images), draws, p=chances)
        mean = np.tensordot(chances, images, 1)
        rows.append(np.stack([x_t, mean, *images[drawn]]))
    titles = ["x_t", "mean", *(["draws"] + [""] * (draws - 1))[:draws]]
    return pictures.strip(np.stack(rows), titles=titles, labels=[f"t={t}" for t in ts])


def spectrum(images: np.ndarray) -> np.ndarray:
    """The variances of images [N, ...] along their principal axes, float64 [D]; a byte's rounding is the least."""
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    singular = np.linalg.svd(flat - flat.mean(0), compute_uv=False)
    variances = np.zeros(flat.shape[1])
    variances[: len(singular)] = singular**2 / len(flat)
    return np.maximum(variances, (2 / 255) ** 2 / 12)


def least_errors(schedule: Schedule, variances: np.ndarray) -> dict[str, np.ndarray]:
    """The least mean squared error of eps, x0 and v at each t, for normal data with these variances: [T] each.

    Over one axis of variance s^2 the error of x_0 is s^2 sigma^2 / (alpha^2 s^2 + sigma^2), that of the conditional
    mean; eps and v have it times alpha^2 / sigma^2 and 1 / sigma^2.
    """
    alpha2, sigma2 = (np.asarray(a, np.float64)[:, None] for a in (schedule.alpha_bars, _noise(schedule)))
    whole = alpha2 * variances + sigma2
    return {
        "eps": (alpha2 * variances / whole).mean(1),
        "x0": (variances * sigma2 / whole).mean(1),
        "v": (variances / whole).mean(1),
    }


def target_sizes(schedule: Schedule, mean_square: float) -> dict[str, np.ndarray]:
    """The mean square of each prediction's target over t [T], for images whose values have this mean square."""
    alpha2, sigma2 = np.asarray(schedule.alpha_bars, np.float64), _noise(schedule)
    coef_x0, coef_xt = (
        np.asarray(table, np.float64) for table in (schedule.posterior_mean_coef_x0, schedule.posterior_mean_coef_xt)
    )
    of_x0 = coef_x0 + coef_xt * np.sqrt(alpha2)
    return {
        "eps": np.ones_like(alpha2),
        "x0": np.full_like(alpha2, mean_square),
        "v": alpha2 + sigma2 * mean_square,
        "score": 1 / sigma2,
        "mean": of_x0**2 * mean_square + coef_xt**2 * sigma2,
        "flow": np.full_like(alpha2, 1 + mean_square),
    }


def predictions(schedule: Schedule, images: np.ndarray) -> Figure:
    """What networks are asked for, in four panels: x_t on its arc, with v as its speed (Salimans & Ho 2022, App. D);
    the sizes of the targets; how much of each even the best affine network must leave; and what an error comes to.

    The images [N, ...] say how large data are, and what a neighbouring pixel tells.
    """
    figure = Figure(figsize=(8.8, 6.8), layout="constrained")
    arc, size, left, factor = figure.subplots(2, 2).flat
    _draw_arc(arc)
    t = np.arange(schedule.num_steps)
    sizes = target_sizes(schedule, float(np.mean(np.square(images, dtype=np.float64))))
    for i, (name, values) in enumerate(sizes.items()):
        size.plot(t, np.sqrt(values), color=[INK, *COLOURS][i], lw=1.6, label=name)
    _dress(size, "root mean square of the target", "t", log=True)
    size.legend(frameon=False, ncols=2)

    variances = spectrum(images)
    spread = np.asarray(schedule.alpha_bars) + _noise(schedule) * variances.mean()
    whole = {"eps": 1.0, "x0": variances.mean(), "v": spread}
    for i, (name, error) in enumerate(least_errors(schedule, variances).items()):
        left.plot(t, error / whole[name], color=[INK, *COLOURS][i], lw=1.6, label=name)
    _dress(left, "share of the target's variance that must stay unknown", "t")
    left.legend(frameon=False)

    alpha, sigma = (np.asarray(a) for a in (schedule.sqrt_alpha_bars, schedule.sqrt_one_minus_alpha_bars))
    factors = {"eps": sigma / np.maximum(alpha, 1e-20), "x0": np.ones_like(alpha), "v": sigma}
    for i, (name, of_x0) in enumerate(factors.items()):
        factor.plot(t, of_x0, color=[INK, *COLOURS][i], lw=1.6, label=name)
    _dress(factor, "what an error of 1 comes to in x_0", "t", log=True)
    factor.set_ylim(1e-2, 1e2)
    return figure


def step_back(schedule: Schedule, t: int, steps: Sequence[int], *, x_t: float = 0.1) -> Figure:
    """q(x_s | x_t) for s = t - steps, a panel each, where x_0 is -1 or +1: its halves, the whole, and its normal."""
    figure = Figure(figsize=(3.1 * len(steps), 3.0), layout="constrained")
    for axes, step in zip(figure.subplots(1, len(steps), squeeze=False)[0], steps, strict=True):
        chances, means, variance = back_from(schedule, x_t, t, t - step)
        deviation = np.sqrt(variance + chances @ means**2 - (chances @ means) ** 2)
        x = chances @ means + deviation * np.linspace(-3.5, 3.5, 301)
        halves = chances * np.exp(-0.5 * (x[:, None] - means) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
        normal = np.exp(-0.5 * ((x - chances @ means) / deviation) ** 2) / np.sqrt(2 * np.pi) / deviation
        for half, colour, sign in zip(halves.T, (_ORANGE, _GREEN), "\N{MINUS SIGN}+", strict=True):
            axes.fill_between(x, half, color=colour, alpha=0.35, lw=0, label=f"if x_0 = {sign}1")
        axes.plot(x, halves.sum(1), color=INK, lw=1.8, label="not knowing x_0")
        axes.plot(x, normal, color=_BLUE, lw=1.4, ls=(0, (4, 2)), label="its mean and variance")
        _dress(axes, f"from t = {t} to {t - step}", "x")
        axes.set_yticks([])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def back_from(schedule: Schedule, x_t: float, t: int, s: int) -> tuple[np.ndarray, np.ndarray, float]:
    """q(x_s | x_t), s < t, where x_0 is -1 or +1: chances [2] and means [2] of its two normals, and their variance."""
    points = np.array([-1.0, 1.0])
    (chances,) = guesses(schedule, points[:, None], np.array([[x_t]]), t)
    way = respace(schedule, [s, t])
    means = float(way.posterior_mean_coef_x0[1]) * points + float(way.posterior_mean_coef_xt[1]) * x_t
    return chances, means, float(way.posterior_variance[1])


def two_points(schedule: Schedule) -> Denoiser:
    """The best answer for eps where each number of x_0 is -1 or +1, each as likely: E[x_0 | x_t] is a tanh of x_t."""

    def denoise(x_t: jax.Array, time: jax.Array) -> jax.Array:
        level = at(schedule, jnp.interp(time, schedule.times, jnp.arange(schedule.num_steps, dtype=time.dtype)))
        alpha, sigma = per_image(level.alpha, x_t), per_image(level.sigma, x_t)
        return (x_t - alpha * jnp.tanh(alpha * x_t / sigma**2)) / sigma

    return denoise


def score(schedule: Schedule, ts: Sequence[int], *, draws: int = 200_000, seed: int = 0) -> Figure:
    """Noise and score of the two points: at each t the density of x_t, -sigma times its score, and the mean of eps.

    The means are taken over so many drawn pairs of x_0 and eps, sorted by the x_t that they make.
    """
    generator = np.random.default_rng(seed)
    x_0, eps = generator.choice([-1.0, 1.0], draws), generator.normal(size=draws)
    figure = Figure(figsize=(3.1 * len(ts), 3.3), layout="constrained")
    for axes, t in zip(figure.subplots(1, len(ts), squeeze=False)[0], ts, strict=True):
        alpha, sigma = float(schedule.sqrt_alpha_bars[t]), float(schedule.sqrt_one_minus_alpha_bars[t])
        halves = [np.exp(-0.5 * ((_NOISED - sign * alpha) / sigma) ** 2) / sigma for sign in (-1, 1)]
        density = np.sum(halves, axis=0)
        axes.fill_between(_NOISED, density / density.max() * 1.5, color=MUTED, alpha=0.25, lw=0, label="q(x_t)")
        answer = (_NOISED - alpha * np.tanh(alpha * _NOISED / sigma**2)) / sigma
        axes.plot(_NOISED, answer, color=_BLUE, lw=1.6, label="\N{MINUS SIGN}sigma grad log q(x_t)")
        x_t = alpha * x_0 + sigma * eps
        parts = np.array_split(np.argsort(x_t), 40)
        axes.plot(
            [x_t[part].mean() for part in parts], [eps[part].mean() for part in parts],
            "o", color=_ORANGE, ms=4, label="mean of the eps that led there",
        )  # fmt: skip
        _dress(axes, f"t = {t}", "x_t")
        axes.set_ylim(-3, 3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def paths(walks: Mapping[str, np.ndarray], ts: Sequence[float] | np.ndarray) -> Figure:
    """Numbers on their way: for each title walks [F, N] over the F moments ts, a panel each; a colour for each end."""
    figure = Figure(figsize=(2.3 * len(walks), 2.3), layout="constrained")
    panels = figure.subplots(1, len(walks), sharey=True, squeeze=False)[0]
    for axes, (title, walk) in zip(panels, walks.items(), strict=True):
        image = walk[int(np.argmin(ts))]
        for one, high in zip(np.asarray(walk).T, image > 0, strict=True):
            axes.plot(ts, one, color=_GREEN if high else _ORANGE, lw=0.9)
        _dress(axes, title, "t")
    return figure


def _noise(schedule: Schedule) -> np.ndarray:
    """sigma^2 [T], from the table that keeps it."""
    return np.asarray(schedule.sqrt_one_minus_alpha_bars, np.float64) ** 2


def _draw_arc(axes: Axes) -> None:
    """x_t for a few angles, alpha along x_0 and sigma along eps, each with its v."""
    whole = np.linspace(0, np.pi / 2, 91)
    axes.plot(np.cos(whole), np.sin(whole), color=MUTED, lw=1.2)
    for angle in np.radians([0, 22.5, 45, 67.5, 90]):
        x, y = float(np.cos(angle)), float(np.sin(angle))
        axes.plot(x, y, "o", color=INK, ms=5)
        arrow = {"arrowstyle": "->", "color": _ORANGE, "lw": 1.6}
        axes.annotate("", (x - 0.33 * y, y + 0.33 * x), (x, y), arrowprops=arrow)
    axes.annotate("x_t", (np.cos(np.pi / 4), np.sin(np.pi / 4)), (6, 6), textcoords="offset points")
    axes.annotate("v", (0.46, 0.96), (2, 8), textcoords="offset points", color=_ORANGE)
    axes.annotate("x_0", (1, 0), (8, -3), textcoords="offset points")
    axes.annotate("eps", (0, 1), (-8, 10), textcoords="offset points")
    axes.set_aspect("equal")
    axes.set_xlim(-0.45, 1.25)
    axes.set_ylim(-0.1, 1.4)
    _dress(axes, "x_t turns from x_0 to eps", "alpha")
    axes.set_ylabel("sigma")


def _dress(axes: Axes, title: str, xlabel: str, *, log: bool = False) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(xlabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    if log:
        axes.set_yscale("log", nonpositive="mask")
