"""What every source of images answers with."""

import dataclasses
from typing import Protocol

import numpy as np


class Column(Protocol):
    """One value an image, read by an array of indices: a NumPy array or map, or something that reads on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A set of images and, where they are known, their classes."""

    images: Column
    """uint8 [N, H, W, C]."""
    labels: Column | None = None
    """int32 [N] in 0 .. num_classes - 1, or None."""
    num_classes: int = 0
    """0 for a set without labels."""

    def __len__(self) -> int:
        return len(self.images)
