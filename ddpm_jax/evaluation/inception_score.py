"""The Inception score: images that a classifier is sure of, and that it takes for many classes.

    IS = exp(E KL(p(y|x) || p(y))),   p(y) = E p(y|x)     (Salimans et al. 2016)

It lies between 1 and the number of classes and never looks at a real image. Fewer images in a split give less, by
about (K - 1)/2n of its logarithm, and another classifier gives another figure.
"""

import numpy as np
from scipy.special import log_softmax, logsumexp

from ddpm_jax.evaluation import estimate, statistics
from ddpm_jax.evaluation.estimate import Estimate


def inception_score(logits: np.ndarray, *, splits: int = 10, seed: int = 0) -> Estimate:
    """The mean over equal splits of the images, as published with 10 splits of 5,000, and its error over these.

    Images are shuffled first: samples that come class by class would put one class into each split. A remainder that
    doesn't fill the splits is left out. One split's error is that of its mean KL, at first order.

    Args:
        logits: the classifier's [N, K].

    Raises:
        ValueError: for fewer images than splits, or logits that aren't finite.
    """
    logits = statistics.rows(logits, "logits")
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits must lie in 1 .. {len(logits)}, the number of images, got {splits}")
    size = len(logits) // splits
    order = np.random.default_rng(seed).permutation(len(logits))[: size * splits]
    kls = [_kl(logits[part].astype(np.float64)) for part in np.split(order, splits)]
    scores = np.exp([kl.mean() for kl in kls])
    if splits > 1:
        error, how = scores.std(ddof=1) / np.sqrt(splits), f"{splits} splits of {size:,} images"
    else:
        # log IS is the mean of these, p(y) held; what moves p(y) changes nothing at first order.
        error = scores[0] * kls[0].std(ddof=1) / np.sqrt(size) if size > 1 else None
        how = f"spread of {size:,} images"
    return estimate.interval(scores.mean(), error, how, degrees=splits - 1 or np.inf, lowest=1.0)


def _kl(logits: np.ndarray) -> np.ndarray:
    """KL(p(y|x) || p(y)) of each image [n], in nats."""
    log_p = log_softmax(logits, axis=1)
    log_mean = logsumexp(log_p, axis=0) - np.log(len(log_p))
    return (np.exp(log_p) * (log_p - log_mean)).sum(1)
