"""NoiseNet's weights, under the names of the tutorial's PyTorch module."""

import dataclasses
from pathlib import Path
from typing import Any

from ddpm_jax import records
from ddpm_jax.interop import weights
from ddpm_jax.nets import NoiseNet

_TOPS = {
    "time1": "time_embedding.1",
    "time2": "time_embedding.3",
    "conv_in": "input_conv",
    "middle_block0": "mid.conv1",
    "middle_attention": "mid.attn",
    "middle_block1": "mid.conv2",
    "block_out": "output_res",
    "conv_out": "output_conv",
}
_PARTS = {
    "kernel": "weight",
    "scale": "weight",
    "time": "time_fc",
    "shortcut": "conv_res",
    "qkv": "to_qkv",
    "out": "to_out",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    """What PREFIX.json holds: NoiseNet's fields, and how many parameters there are (0 where that isn't said)."""

    channels: int = 1
    image_dim: int = 32
    init_dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8, 16)
    attn_resolutions: tuple[int, ...] = (16,)
    parameters: int = 0


def _check(settings: _Settings, where: Path) -> None:
    """Refuse numbers that no network has, before anything is sized by them."""
    for name, most in (("channels", 64), ("image_dim", 65_536), ("init_dim", 65_536)):
        if not 1 <= getattr(settings, name) <= most:
            raise ValueError(f"{where}.{name} must be 1 to {most}, got {getattr(settings, name)}")
    mults = settings.dim_mults
    if not 1 <= len(mults) <= 16 or not all(1 <= mult <= 1024 for mult in mults):
        raise ValueError(f"{where}.dim_mults must be 1 to 16 numbers from 1 to 1024, got {str(mults)[:80]}")


def _tops(last: int) -> dict[str, str]:
    """The document's name for each block of levels 0 .. last; it counts the way up from the deepest level."""
    tops = dict(_TOPS)
    for level in range(last + 1):
        for ours, theirs in (("down", f"downs.{level}"), ("up", f"ups.{last - level}")):
            tops[f"{ours}{level}_block0"] = f"{theirs}.block1"
            tops[f"{ours}{level}_block1"] = f"{theirs}.block2"
            tops[f"{ours}{level}_attention"] = f"{theirs}.attn"
        # A convolution that also halves or enlarges is the second of a pair.
        tops[f"down{level}_resize"] = f"downs.{level}.ds" + (".model.1" if level < last else "")
        tops[f"up{level}_resize"] = f"ups.{last - level}.us" + (".model.1" if level > 0 else "")
    return tops


def load(prefix: str | Path) -> tuple[NoiseNet, dict[str, Any]]:
    """The network that PREFIX.json describes, and the weights of PREFIX.safetensors as `module.apply` takes them.

    Raises:
        FileNotFoundError: for a missing file, naming it.
        ValueError: for settings that aren't NoiseNet's, or tensors that don't fit them one to one.
    """
    described = Path(f"{prefix}.json")
    settings = records.from_dict(weights.read_json(described), _Settings, str(described))
    _check(settings, described)
    fields = dataclasses.asdict(settings)
    stated = fields.pop("parameters")
    tensors = weights.read_tensors(Path(f"{prefix}.safetensors"))
    found = sum(tensor.size for tensor in tensors.values())
    if stated and found != stated:
        raise ValueError(f"{described}.parameters is {stated}, but {prefix}.safetensors holds {found}")
    module = NoiseNet(**fields)
    last = len(settings.dim_mults) - 1
    rename = weights.renamer(_tops(last), _PARTS)
    return module, weights.fill(module, settings.channels, last, tensors, rename)
