"""The settings of Hugging Face's UNet2DModel as those of our UNet, and back."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_jax import config, records

# Settings that our UNet has no other choice for: (the value it needs, the value where the file says nothing).
_FIXED = {
    "act_fn": ("silu", "silu"),
    "add_attention": (True, True),
    "center_input_sample": (False, False),
    "class_embed_type": (None, None),
    "downsample_padding": (0, 1),
    "flip_sin_to_cos": (False, True),
    "freq_shift": (1, 0),
    "mid_block_scale_factor": (1, 1),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "norm_eps": (1e-6, 1e-5),
    "time_embedding_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
}
# Settings that change nothing in the network; "parameters" and what starts with "_" are notes too.
_NOTES = {"sample_size", "num_train_timesteps", "parameters"}
# Which blocks attend. Those of their own name resize by a block, the attending ones as downsample_type says.
_DOWN = {"DownBlock2D": False, "ResnetDownsampleBlock2D": False, "AttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "ResnetUpsampleBlock2D": False, "AttnUpBlock2D": True}
_RESIZING = ("conv", "resnet")
_TIME = {"default": False, "scale_shift": True}
# The last class is "no class", as in our networks. Readers pass over what starts with "_".
NULL_CLASS = "_ddpm_jax_null_class"
# No network has more: the numbers in a file are held against these before anything is sized by them.
_MOST = {"in_channels": 64, "out_channels": 128, "layers_per_block": 64}
_MOST_LEVELS, _MOST_WIDTH, _MOST_CLASSES = 16, 65_536, 1_000_000
# Where the file may say None.
_NONE = ("attention_head_dim", "attn_norm_num_groups", "num_class_embeds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that vary, with UNet2DModel's defaults; 0 stands for None."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    dropout: float = 0.0
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    attention_head_dim: int = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int = 0
    resnet_time_scale_shift: str = "default"
    num_class_embeds: int = 0


def read(plain: Mapping[str, Any], where: Path) -> Settings:
    """The settings of a config.json.

    Raises:
        ValueError: for a setting that our UNet can't express, with the value got and the value wanted.
    """
    if plain.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"{where}: _class_name must be 'UNet2DModel', got {plain['_class_name']!r}")
    for name, (wanted, unsaid) in _FIXED.items():
        got = plain.get(name, unsaid)
        if got != wanted:
            said = "" if name in plain else " (the default)"
            raise ValueError(f"{where}: {name} must be {wanted!r}, got {got!r}{said}")
    free = {name: value for name, value in plain.items() if name not in _NOTES | _FIXED.keys() and name[0] != "_"}
    free = {name: 0 if value is None and name in _NONE else value for name, value in free.items()}
    settings = records.from_dict(free, Settings, str(where))
    _check(settings, where)
    _heads(settings, where)
    _resized_by_blocks(settings, where)
    return settings


def _check(settings: Settings, where: Path) -> None:
    widths, down, up = settings.block_out_channels, settings.down_block_types, settings.up_block_types
    groups = settings.norm_num_groups
    for name, most in _MOST.items():
        if not 1 <= getattr(settings, name) <= most:
            raise ValueError(f"{where}: {name} must be 1 to {most}, got {getattr(settings, name)}")
    if len(widths) > _MOST_LEVELS or max(widths, default=0) > _MOST_WIDTH:
        wanted, got = f"at most {_MOST_LEVELS} widths up to {_MOST_WIDTH}", f"{len(widths)} up to {max(widths)}"
        raise ValueError(f"{where}: block_out_channels must be {wanted}, got {got}")
    if groups < 1 or not widths or any(width <= 0 or width % groups or width % widths[0] for width in widths):
        wanted = f"multiples of norm_num_groups {groups} and of the first"
        raise ValueError(f"{where}: block_out_channels must be {wanted}, got {list(widths)}")
    for field, types, known in (("down_block_types", down, _DOWN), ("up_block_types", up, _UP)):
        if len(types) != len(widths):
            raise ValueError(f"{where}: {field} must have {len(widths)} entries, one a level, got {len(types)}")
        for name in types:
            records.pick(known, name, f"{where}: {field}")
    if [_UP[name] for name in up] != [_DOWN[name] for name in reversed(down)]:
        raise ValueError(f"{where}: up_block_types must attend where down_block_types do, got {list(up)}, {list(down)}")
    scaled = records.pick(_TIME, settings.resnet_time_scale_shift, f"{where}: resnet_time_scale_shift")
    # With scale_shift, the middle's attention has a norm only where the file gives it one.
    if settings.attn_norm_num_groups not in ((groups,) if scaled else (0, groups)):
        got = settings.attn_norm_num_groups or None
        raise ValueError(f"{where}: attn_norm_num_groups must be norm_num_groups {groups}, got {got}")
    classes = settings.num_class_embeds
    if classes != 0 and not 2 <= classes <= _MOST_CLASSES:
        raise ValueError(f"{where}: num_class_embeds must be 2 to {_MOST_CLASSES}, got {classes}")
    if not 0 <= settings.dropout < 1:
        raise ValueError(f"{where}: dropout must lie in [0, 1), got {settings.dropout}")


def _heads(settings: Settings, where: Path) -> int:
    """How many heads attend; our UNet has as many at every width."""
    size, widths = settings.attention_head_dim, settings.block_out_channels
    attending = {width for width, name in zip(widths, settings.down_block_types, strict=True) if _DOWN[name]}
    attending = sorted(attending | {widths[-1]})
    if size == 0:
        return 1
    if size < 0 or any(width % size for width in attending) or len({width // size for width in attending}) > 1:
        wanted = f"split the attending widths {attending} into equally many heads"
        raise ValueError(f"{where}: attention_head_dim must {wanted}, got {size}")
    return attending[0] // size


def _resized_by_blocks(settings: Settings, where: Path) -> bool:
    """Do blocks halve and enlarge, rather than convolutions?"""
    found = set()
    for types, how, field in (
        (settings.down_block_types, settings.downsample_type, "downsample_type"),
        (settings.up_block_types, settings.upsample_type, "upsample_type"),
    ):
        records.pick(dict.fromkeys(_RESIZING), how, f"{where}: {field}")
        # The last of either list keeps its size.
        found |= {how == "resnet" if "Attn" in name else "Resnet" in name for name in types[:-1]}
    if len(found) > 1:
        raise ValueError(
            f"{where}: all levels must be resized alike, got {list(settings.down_block_types)} with downsample_type "
            f"{settings.downsample_type!r}, {list(settings.up_block_types)} with upsample_type "
            f"{settings.upsample_type!r}"
        )
    return found == {True}


def net(settings: Settings, where: Path) -> config.UNet:
    """Our UNet of these settings; where it takes classes, the last one's place becomes that of "no class"."""
    widths = settings.block_out_channels
    return config.UNet(
        features=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        num_res_blocks=settings.layers_per_block,
        attention_levels=tuple(level for level, name in enumerate(settings.down_block_types) if _DOWN[name]),
        num_heads=_heads(settings, where),
        dropout=settings.dropout,
        num_classes=max(settings.num_class_embeds - 1, 0),
        groups=settings.norm_num_groups,
        scale_shift_norm=_TIME[settings.resnet_time_scale_shift],
        resblock_updown=_resized_by_blocks(settings, where),
    )


def write(net: config.UNet, shape: tuple[int, int, int], out_channels: int) -> dict[str, Any]:
    """What `read` and `net` give back, for images of shape [H, W, C].

    Raises:
        ValueError: for what a UNet2DModel can't be, naming the flag and the value got.
    """
    widths = [net.features * multiplier for multiplier in net.multipliers]
    if any(width % net.groups for width in widths):
        raise ValueError(f"--net.groups must divide every width {widths} for diffusers, got {net.groups}")
    attends = [level in net.attention_levels for level in range(len(widths))]
    attending = sorted({width for width, yes in zip(widths, attends, strict=True) if yes} | {widths[-1]})
    if net.num_heads > 1 and len(attending) > 1:
        wanted = f"1 for diffusers, where widths {attending} attend: it fixes the width of a head, not their number"
        raise ValueError(f"--net.num-heads must be {wanted}, got {net.num_heads}")
    plain = "Resnet{}sampleBlock2D" if net.resblock_updown else "{}Block2D"
    settings = Settings(
        in_channels=shape[2],
        out_channels=out_channels,
        down_block_types=tuple("AttnDownBlock2D" if yes else plain.format("Down") for yes in attends),
        up_block_types=tuple("AttnUpBlock2D" if yes else plain.format("Up") for yes in reversed(attends)),
        block_out_channels=tuple(widths),
        layers_per_block=net.num_res_blocks,
        dropout=net.dropout,
        downsample_type=_RESIZING[net.resblock_updown],
        upsample_type=_RESIZING[net.resblock_updown],
        attention_head_dim=attending[0] // net.num_heads if net.num_heads > 1 else 0,
        norm_num_groups=net.groups,
        attn_norm_num_groups=net.groups if net.scale_shift_norm else 0,
        resnet_time_scale_shift="scale_shift" if net.scale_shift_norm else "default",
        num_class_embeds=net.num_classes + 1 if net.num_classes else 0,
    )
    free = records.to_dict(settings)
    free |= {name: None for name in _NONE if free[name] == 0}
    fixed = {name: wanted for name, (wanted, _) in _FIXED.items()}
    height, width = shape[:2]
    sample_size = height if height == width else [height, width]
    notes = {NULL_CLASS: True} if net.num_classes else {}
    named = {"_class_name": "UNet2DModel", **notes, "sample_size": sample_size}
    return {**named, **fixed, **free, "num_train_timesteps": None}
