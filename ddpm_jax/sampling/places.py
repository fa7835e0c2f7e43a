"""Arrays between the memory of the processes and the devices of all of them."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding


def spread(tree: Any, sharding: Sharding) -> Any:
    """Arrays that every process has whole, in parts on the devices of all of them."""

    def placed(leaf: Any) -> jax.Array:
        rows = np.asarray(leaf)
        return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

    return jax.tree.map(placed, tree)


def to_host(tree: Any) -> Any:
    """Arrays in the memory of every process, whole; every process must ask."""

    def gathered(x: jax.Array) -> np.ndarray:
        return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(gathered, tree)
