"""What the backward pass keeps, and what it works out anew (Chen et al. 2016)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from ddpm_jax.records import pick


def _products(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("conv_general_dilated", "dot_general")


REMAT: dict[str, tuple[bool, Callable[..., bool] | None]] = {
    "none": (False, None),
    "attention": (False, None),
    "products": (True, _products),
    "full": (True, None),
}
"""What the backward pass works out anew, by name: (blocks too?, what of them is kept all the same)."""


def rematted(block: type[nn.Module], how: str, *, attends: bool = False, static_argnums: tuple[int, ...] = ()) -> Any:
    """`block`, or the same with activations that the backward pass works out anew (Chen et al. 2016).

    none keeps everything; attention forgets what is inside the attention blocks, [N, N] scores above all; products
    keeps the results of convolutions and products and forgets norms and nonlinearities; full keeps each block's input.

    Raises:
        ValueError: for another name.
    """
    blocks, policy = pick(REMAT, how, "--net.remat")
    if not (blocks or (attends and how == "attention")):
        return block
    return nn.remat(block, static_argnums=static_argnums, policy=policy)
