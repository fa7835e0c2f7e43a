"""Published DDPM checkpoints: the U-Net of Ho et al. under the names of Hugging Face's UNet2DModel.

Reads google/ddpm-cifar10-32, google/ddpm-celebahq-256 and their kin.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_jax import config as config_lib
from ddpm_jax.interop import weights
from ddpm_jax.nets import UNet

# Settings that our UNet has no other choice for: (the value it needs, the value where the file says nothing).
_FIXED = {
    "act_fn": ("silu", "silu"),
    "add_attention": (True, True),
    "attention_head_dim": (None, 8),
    "attn_norm_num_groups": (None, None),
    "center_input_sample": (False, False),
    "class_embed_type": (None, None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "conv"),
    "flip_sin_to_cos": (False, True),
    "freq_shift": (1, 0),
    "mid_block_scale_factor": (1, 1),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "norm_eps": (1e-6, 1e-5),
    "norm_num_groups": (32, 32),
    "num_class_embeds": (None, None),
    "resnet_time_scale_shift": ("default", "default"),
    "time_embedding_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "upsample_type": ("conv", "conv"),
}
# Settings that change nothing in the network; "parameters" and what starts with "_" are notes too.
_NOTES = {"sample_size", "num_train_timesteps", "parameters"}
_DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "AttnUpBlock2D": True}

_TOPS = {
    "time1": "time_embedding.linear_1",
    "time2": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "middle_block0": "mid_block.resnets.0",
    "middle_attention": "mid_block.attentions.0",
    "middle_block1": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
_PARTS = {
    "kernel": "weight",
    "scale": "weight",
    "emb": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "out": "to_out.0",
}
# What the attention's layers were called when the published checkpoints were written.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    """The settings that vary, with UNet2DModel's defaults."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    dropout: float = 0.0


def _read_settings(plain: Mapping[str, Any], where: Path) -> _Settings:
    for name, (wanted, unsaid) in _FIXED.items():
        got = plain.get(name, unsaid)
        if got != wanted:
            said = "" if name in plain else " (the default)"
            raise ValueError(f"{where}: {name} must be {wanted!r}, got {got!r}{said}")
    free = {name: value for name, value in plain.items() if name not in _NOTES | _FIXED.keys() and name[0] != "_"}
    settings = config_lib.from_dict(free, _Settings, str(where))
    _check(settings, where)
    return settings


def _check(settings: _Settings, where: Path) -> None:
    widths, down, up = settings.block_out_channels, settings.down_block_types, settings.up_block_types
    if not widths or any(width <= 0 or width % 32 or width % widths[0] for width in widths):
        raise ValueError(f"{where}: block_out_channels must be multiples of 32 and of the first, got {list(widths)}")
    for field, types, known in (("down_block_types", down, _DOWN), ("up_block_types", up, _UP)):
        if len(types) != len(widths):
            raise ValueError(f"{where}: {field} must have {len(widths)} entries, one a level, got {list(types)}")
        for name in types:
            config_lib.pick(known, name, f"{where}: {field}")
    if [_UP[name] for name in up] != [_DOWN[name] for name in reversed(down)]:
        raise ValueError(f"{where}: up_block_types must attend where down_block_types do, got {list(up)}, {list(down)}")


def _module(settings: _Settings) -> UNet:
    widths = settings.block_out_channels
    return UNet(
        features=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        num_res_blocks=settings.layers_per_block,
        attention_levels=tuple(level for level, name in enumerate(settings.down_block_types) if _DOWN[name]),
        dropout=settings.dropout,
        out_channels=settings.out_channels,
    )


def _tops(last: int, blocks: int) -> dict[str, str]:
    """Their name for each block of levels 0 .. last; they count the way up from the deepest level."""
    tops = dict(_TOPS)
    for level in range(last + 1):
        for ours, theirs, count in (
            ("down", f"down_blocks.{level}", blocks),
            ("up", f"up_blocks.{last - level}", blocks + 1),
        ):
            tops[f"{ours}{level}_resize"] = f"{theirs}.{ours}samplers.0.conv"
            for i in range(count):
                tops[f"{ours}{level}_block{i}"] = f"{theirs}.resnets.{i}"
                tops[f"{ours}{level}_block{i}_attention"] = f"{theirs}.attentions.{i}"
    return tops


def _newer(name: str) -> str:
    """A tensor's name with the attention's layers called as they are now."""
    return re.sub(rf"(?<=attentions\.\d\.)({'|'.join(_OLD)})(?=\.)", lambda found: _OLD[found[1]], name)


def load(folder_or_prefix: str | Path) -> tuple[UNet, dict[str, Any]]:
    """The network of a UNet2DModel, and its weights as `module.apply` takes them.

    Reads config.json and diffusion_pytorch_model.safetensors where a folder is given, else PREFIX.json and
    PREFIX.safetensors.

    Raises:
        FileNotFoundError: for a missing file, naming it.
        ValueError: for a setting that our UNet can't express, with the value got and the value wanted, or tensors that
            don't fit the settings one to one.
    """
    folder = Path(folder_or_prefix)
    described, kept = Path(f"{folder}.json"), Path(f"{folder}.safetensors")
    if folder.is_dir():
        described, kept = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    settings = _read_settings(weights.read_json(described), described)
    tensors = weights.read_tensors(kept)
    # A name in both fashions stays as it is, and is then refused as one too many.
    tensors = {name if _newer(name) in tensors else _newer(name): tensor for name, tensor in tensors.items()}
    module = _module(settings)
    last = len(module.multipliers) - 1
    rename = weights.renamer(_tops(last, settings.layers_per_block), _PARTS)
    return module, weights.fill(module, settings.in_channels, last, tensors, rename)
