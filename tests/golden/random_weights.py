"""Weights for a network that nobody trained, the same wherever they are drawn: the raw bits of PCG64, by name."""

import math
import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of a PyTorch state dict, float32. What a ReLU lets through keeps about its size from layer to layer."""
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    u = ((bits >> np.uint64(40)).astype(np.float32) / 2**23 - 1).reshape(shape)  # -1 .. 1
    if len(shape) > 1:
        return u * np.float32(math.sqrt(6 / math.prod(shape[1:])))
    return 1 + u / 2 if name.endswith(("bn.weight", "running_var")) else u / 4
