"""The checkpoints of Ho et al. 2020's own code: TensorFlow's, with the names that its variable scopes give.

That network is `nets.UNet`, operation by operation: 32 groups a norm and epsilon 1e-6 (the defaults of
tf.contrib.layers), sines before cosines, "SAME" padding (after the last row and column where a convolution halves),
each pixel doubled where one enlarges, attention scaled by channels^-1/2. Kernels lie as ours do, [H, W, in, out].
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.interop import tensor_bundle, weights
from ddpm_jax.nets import UNet

AVERAGE = "/ExponentialMovingAverage"
# What the optimizers of that code keep beside each variable, and by itself.
_SLOTS = ("/Adam", "/Adam_1", "/RMSProp", "/RMSProp_1")
_COUNTERS = {"global_step", "beta1_power", "beta2_power"}
# The settings that those networks have no other choice for. Their checkpoints don't say them.
_SETTINGS = {"groups": 32, "num_heads": 1, "num_classes": 0, "scale_shift_norm": False, "resblock_updown": False}

_TOPS = {
    "time1": "temb/dense0",
    "time2": "temb/dense1",
    "conv_in": "conv_in",
    "middle_block0": "mid/block_1",
    "middle_attention": "mid/attn_1",
    "middle_block1": "mid/block_2",
    "norm_out": "norm_out",
    "conv_out": "conv_out",
}
_PARTS = {"kernel": "W", "bias": "b", "emb": "temb_proj", "shortcut": "nin_shortcut", "out": "proj_out"}
_NORM = {"scale": "gamma", "bias": "beta"}


def check_settings(module: UNet) -> None:
    """Refuse a network that isn't Ho et al.'s; some of what differs would not show in the parameters' shapes.

    Raises:
        ValueError: naming the setting, the value got and the value wanted.
    """
    if not isinstance(module, UNet):
        raise ValueError(f"the network must be a UNet, got {type(module).__name__}")
    for name, wanted in _SETTINGS.items():
        if getattr(module, name) != wanted:
            raise ValueError(f"{name} must be {wanted}, as in Ho et al.'s network, got {getattr(module, name)}")


def place(
    module: UNet, channels: int, tensors: Mapping[str, np.ndarray], rename: Callable[[list[str]], str]
) -> dict[str, Any]:
    """`weights.fill` for kernels that lie as ours do: [H, W, in, out], and [in, out] for dense layers and 1x1.

    Raises:
        ValueError: as `fill` does.
    """
    turned = dict(tensors)

    # `fill` names every parameter before it looks at a tensor. What has no place stays as it is, for the error to show.
    def turn(path: list[str]) -> str:
        name = rename(path)
        if name in tensors:
            turned[name] = _turned(tensors[name])
        return name

    return weights.fill(module, channels, len(module.multipliers) - 1, turned, turn)


def _turned(tensor: np.ndarray) -> np.ndarray:
    """Our layout to PyTorch's, which `fill` takes: HWIO -> OIHW, [in, out] -> [out, in]."""
    return tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T


def _tops(module: UNet) -> dict[str, str]:
    """The scope of each block."""
    tops = dict(_TOPS)
    for level in range(len(module.multipliers)):
        for way, count in (("down", module.num_res_blocks), ("up", module.num_res_blocks + 1)):
            tops[f"{way}{level}_resize"] = f"{way}_{level}/{way}sample/conv"
            for i in range(count):
                tops[f"{way}{level}_block{i}"] = f"{way}_{level}/block_{i}"
                tops[f"{way}{level}_block{i}_attention"] = f"{way}_{level}/attn_{i}"
    return tops


def _renamer(tops: Mapping[str, str]) -> Callable[[list[str]], str]:
    def rename(path: list[str]) -> str:
        parts = _PARTS | _NORM if path[-2].startswith("norm") else _PARTS
        return "/".join(["model", tops[path[0]], *(parts.get(part, part) for part in path[1:])])

    return rename


def _wanted(names: set[str], ema: bool) -> Callable[[str], bool]:
    """Which tensors to read: one of each weight's two copies, and whatever has no business there, to be refused."""

    def wanted(name: str) -> bool:
        if name in _COUNTERS or any(name.endswith(slot) and name.removesuffix(slot) in names for slot in _SLOTS):
            return False
        if name.endswith(AVERAGE):
            return ema or name.removesuffix(AVERAGE) not in names
        return not ema or f"{name}{AVERAGE}" not in names

    return wanted


def load(prefix: str | Path, module: UNet, channels: int, *, ema: bool = True) -> dict[str, Any]:
    """The weights of PREFIX.index and PREFIX.data-*, as `module.apply` takes them for images of so many channels.

    `ema` takes the moving averages, which Ho et al. sampled with, rather than the weights themselves. What the
    optimizer keeps is passed over. The checkpoint doesn't say the network's settings: give the module the widths,
    blocks and attention that it was trained with (the defaults of UNet are the CIFAR-10 network's).

    Returns:
        {"params": ...}, in float32.

    Raises:
        FileNotFoundError: if there is no PREFIX.index.
        ValueError: for a module that isn't Ho et al.'s network, files that aren't whole, a checkpoint without moving
            averages where they are asked for, or tensors that don't fit the module one to one, each named.
    """
    check_settings(module)
    names = set(tensor_bundle.names(prefix))
    if ema and not any(name.endswith(AVERAGE) for name in names):
        raise ValueError(f"{prefix}.index names no moving average (*{AVERAGE}); ema=False reads the weights themselves")
    tensors = tensor_bundle.read_tensors(prefix, _wanted(names, ema))
    rename = _renamer(_tops(module))
    return place(module, channels, tensors, (lambda path: rename(path) + AVERAGE) if ema else rename)
