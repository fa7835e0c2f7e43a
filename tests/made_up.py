"""A comparison as one might come out, without any training: for tests of its record and of its page."""

import numpy as np

from ddpm_jax.evaluation.comparison import Comparison, Variant
from ddpm_jax.evaluation.paired import Metric

NAMES = ("simple", "min_snr(gamma=5)", "p2(k=1,gamma=1)", "soft_min_snr(gamma=5)", "sigmoid(bias=-1)", "elbo")
STEPS = 120
_SHAPES = (
    lambda x: np.exp(-((x / 4) ** 2)),
    lambda x: np.minimum(np.exp(x), 5) * np.exp(-((x / 4) ** 2)),
    lambda x: np.exp(-((x / 4) ** 2)) / (1 + np.exp(x)),
    lambda x: 5 * np.exp(x) / (5 + np.exp(x)) * np.exp(-((x / 4) ** 2)),
    lambda x: 1 / (1 + np.exp(x + 1)),
    np.ones_like,
)


def comparison(variants: int = 6, seeds: int = 3, *, bins: int = 8, names: tuple[str, ...] = NAMES) -> Comparison:
    """Members of a seed share most of their chance, as with common random numbers."""
    rng = np.random.default_rng(0)
    shape, edges = (variants, seeds), np.linspace(-8, 8, bins + 1).astype(np.float32)
    centres, steps = (edges[1:] + edges[:-1]) / 2, 50 * np.arange(1, STEPS + 1)

    def chance(scale, *axes):
        """Mostly the seed's, a little the member's own."""
        return scale * (rng.normal(size=(1, seeds, *axes)) + 0.3 * rng.normal(size=(*shape, *axes)))

    effect = 0.03 * np.array([0, -0.8, 0.1, -0.5, 0.9, -1.4])[:variants, None]
    decay = (1 + (steps / 300) ** -0.7)[:, None] / (1 + np.exp(centres / 3))
    skill = 1 + effect[..., None, None] * np.tanh(centres / 4) * np.linspace(0, 3, STEPS)[:, None]
    eps_error = decay * skill * np.exp(chance(0.04, STEPS, bins))
    apart = np.abs(np.subtract.outer(np.arange(bins), np.arange(bins)))
    cosine = np.clip(np.exp(-apart / 2) - 0.12 * (apart > 3) + chance(0.02, bins, bins) * (apart > 0), -1, 1)
    log_snr = np.linspace(9, -10, 200)
    metrics = (
        Metric(
            name="bits/dim",
            unit="bits/dim",
            lower_is_better=True,
            values=(2.9 + effect + chance(0.02)).astype(np.float32),
            standard_error=np.full(shape, 0.004, np.float32),
        ),
        Metric(
            name="FD-pixels", unit="", lower_is_better=True, values=(41 - 90 * effect + chance(2)).astype(np.float32)
        ),
        Metric(
            name="recall", unit="%", lower_is_better=False, values=(61 + 40 * effect + chance(1)).astype(np.float32)
        ),
    )
    return Comparison(
        title="Six weightings on digits",
        command="python -m ddpm_jax.cli.compare digits --weightings 'min_snr(gamma=5)' elbo --seeds 3",
        facts={"preset": "digits", "steps": "6000", "device": "2 CPU cores", "layout": "one member after another"},
        variants=tuple(
            Variant(
                name=name,
                settings={"--loss.weighting": name.partition("(")[0]} if i else {},
                log_snr=log_snr.astype(np.float32),
                w=form(log_snr).astype(np.float32),
                monotone=i > 3,
            )
            for i, (name, form) in enumerate(zip(names[:variants], _SHAPES, strict=False))
        ),
        seeds=tuple(range(seeds)),
        edges=edges,
        metrics=metrics,
        steps=steps,
        loss=(eps_error.mean(-1) * (1 + np.arange(variants)[:, None, None])).astype(np.float32),
        eps_error=eps_error.astype(np.float32),
        steps_per_second=np.linspace(31, 28, variants).astype(np.float32),
        bits_by_bin=(0.4 * np.exp(-((centres / 5 - 0.6) ** 2)) * (1 + effect[..., None] + chance(0.01, bins))).astype(
            np.float32
        ),
        grad_norm=np.exp(-centres / 6 + effect[..., None] + chance(0.1, bins)).astype(np.float32),
        grad_noise=np.exp(1 - centres / 8 + chance(0.1, bins)).astype(np.float32),
        cosine=((cosine + cosine.swapaxes(-1, -2)) / 2).astype(np.float32),
        samples=rng.integers(0, 256, (*shape, 8, 8, 8, 1)).astype(np.uint8),
        skipped=np.zeros(shape, np.int64),
    )
