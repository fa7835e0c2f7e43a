"""Published weights of improved-diffusion and guided-diffusion, under the names of OpenAI's UNetModel.

A checkpoint holds tensors and no settings: the network comes from a preset, such as iddpm_cifar10 or adm64. What fits
is a network for which both agree on every name and shape. What leaves no trace in either must be right in the preset
and the flags:

    the number of heads, and the order of the projection's channels (net.qkv_by_head)
    the schedule and its T (diffusion.schedule, num_steps)
    what the network is told of the time: a run with rescale_timesteps False was told t itself, so that one of 4000
        steps needs --diffusion.time-range 4000
    for training on, dropout; and of a run with rescale_learned_sigmas False the bound's weight, 1 / T: with T = 4000
        --diffusion.vlb-weight 0.00025

The presets' docstrings give the flags of each published network.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.interop import weights
from ddpm_jax.nets import ADM
from ddpm_jax.torch_files import torch_file

READERS: dict[str, Callable[[Path], weights.Tensors]] = {
    ".pt": torch_file.read_tensors,
    ".pth": torch_file.read_tensors,
    ".bin": torch_file.read_tensors,
    ".safetensors": weights.read_tensors,
}
_TOPS = {
    "time1": "time_embed.0",
    "time2": "time_embed.2",
    "classes": "label_emb",
    "conv_in": "input_blocks.0.0",
    "middle_block0": "middle_block.0",
    "middle_attention": "middle_block.1",
    "middle_block1": "middle_block.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "emb": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "out": "proj_out",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# Convolutions over a sequence of positions: [out, in, 1].
_SEQUENCES = ("qkv.weight", "proj_out.weight")


def _tops(module: ADM) -> dict[str, str]:
    """Their name for each block of ours: they number all that happens on the way down, and on the way up."""
    tops, last, place = dict(_TOPS), len(module.multipliers) - 1, 1
    convolution = "" if module.resblock_updown else ".op"
    for level in range(last + 1):
        for i in range(module.num_res_blocks):
            tops[f"down{level}_block{i}"] = f"input_blocks.{place}.0"
            tops[f"down{level}_block{i}_attention"] = f"input_blocks.{place}.1"
            place += 1
        if level < last:
            tops[f"down{level}_resize"] = f"input_blocks.{place}.0{convolution}"
            place += 1
    convolution, place = "" if module.resblock_updown else ".conv", 0
    for level in reversed(range(last + 1)):
        for i in range(module.num_res_blocks + 1):
            tops[f"up{level}_block{i}"] = f"output_blocks.{place}.0"
            tops[f"up{level}_block{i}_attention"] = f"output_blocks.{place}.1"
            place += 1
        # What enlarges stands in the last block's list, after its attention.
        after = 2 if level in module.attention_levels else 1
        tops[f"up{level}_resize"] = f"output_blocks.{place - 1}.{after}{convolution}"
    return tops


def names(module: ADM) -> Callable[[list[str]], str]:
    """Their name for the path of each of our parameters: ["conv_in", "kernel"] -> "input_blocks.0.0.weight".

    No two parameters share one, so that it serves for reading (`weights.fill`) and for writing (`collect`).
    """
    return weights.renamer(_tops(module), _BLOCK | _LEAVES)


def load(path: Path, module: ADM, channels: int) -> dict[str, Any]:
    """The weights of a .pt (.pth, .bin) or .safetensors file for a network that sees images of so many channels.

    Returns:
        {"params": ...} as module.apply takes it, in float32.

    Raises:
        FileNotFoundError: for a missing file, naming it.
        ValueError: for another kind of file, one that isn't whole, or tensors that don't fit the network one to one.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path} must end in {' or '.join(READERS)}, got {path.suffix or 'no ending'!r}")
    tensors = READERS[path.suffix](path)
    return weights.fill(module, channels, len(module.multipliers) - 1, tensors, names(module))


def collect(variables: dict[str, Any], module: ADM) -> weights.Tensors:
    """The tensors of {"params": ...} under their names and in their layout: what `load` reads back bit for bit."""
    tensors = weights.collect(variables, names(module), dense=lambda name: name.endswith(_SEQUENCES))
    return {name: np.ascontiguousarray(_shaped(name, tensor)) for name, tensor in tensors.items()}


def _shaped(name: str, tensor: np.ndarray) -> np.ndarray:
    return tensor[..., None] if name.endswith(_SEQUENCES) else tensor
