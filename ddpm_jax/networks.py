"""What a network is: one frozen record for each kind. `nets.build` makes the module that a record describes."""

import dataclasses
from typing import ClassVar


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet:
    """The U-Net of Ho et al. 2020 and its kin."""

    kind: ClassVar[str] = "unet"
    features: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Width of each level, in units of `features`; each level after the first halves height and width."""
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (1,)
    """Levels that attend, counted from 0 at full resolution."""
    num_heads: int = 1
    dropout: float = 0.1
    num_classes: int = 0
    """Classes to condition on; 0 for none. Class number num_classes means "no class"."""
    label_dropout: float = 0.1
    """How often training hides the class, so that one network learns both."""
    groups: int = 32
    """Groups of each norm. Narrow networks want fewer: 32 groups of a 32-wide layer would hide the time from it."""
    scale_shift_norm: bool = False
    resblock_updown: bool = False
    enlarges: int = 0
    """The factor by which it makes small images large, in a cascade (Ho et al. 2022): it is shown the image shrunk by
    it, and noised at random while it trains; 0 for a network that sees no other image."""
    dtype: str = "float32"
    """What the network computes in: float32 or bfloat16. Parameters, norms and softmax stay float32."""
    remat: str = "none"
    """What the backward pass works out anew, to need less memory: none, attention, products (all but the results of
    convolutions and products) or full (whole blocks, a third more work)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseNet:
    """The network of the "DDPM from scratch" tutorial."""

    kind: ClassVar[str] = "noise_net"
    init_dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8, 16)
    attn_resolutions: tuple[int, ...] = (16,)
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ADM:
    """The U-Net of improved-diffusion (Nichol & Dhariwal 2021) and guided-diffusion (Dhariwal & Nichol 2021)."""

    kind: ClassVar[str] = "adm"
    features: int = 128
    multipliers: tuple[float, ...] = (1.0, 2.0, 2.0, 2.0)
    """Width of each level, in units of `features`; each level after the first halves height and width."""
    num_res_blocks: int = 3
    attention_levels: tuple[int, ...] = (1, 2)
    num_heads: int = 4
    head_features: int = 0
    """Channels of each head, which then decides how many there are; 0 for num_heads of them."""
    qkv_by_head: bool = True
    """The projection's channels stand by head, then by q, k, v; off, by q, k, v, then by head (ADM's 64x64 network)."""
    dropout: float = 0.0
    num_classes: int = 0
    """Classes to condition on; 0 for none."""
    label_dropout: float = 0.0
    """How often training hides the class. 0 keeps no class for "no class", as the published networks don't."""
    scale_shift_norm: bool = True
    """The embedding scales and shifts the second norm of a block, rather than being added before it."""
    resblock_updown: bool = False
    """Blocks halve and enlarge, rather than convolutions."""
    dtype: str = "float32"
    remat: str = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDM:
    """The network of variational diffusion models (Kingma et al. 2021): one resolution, many blocks."""

    kind: ClassVar[str] = "vdm"
    features: int = 128
    num_blocks: int = 32
    """Blocks on the way down; there is one more on the way up."""
    attention: bool = False
    """Attend after every block, rather than in the middle only."""
    fourier: tuple[int, ...] = (6, 7)
    """The input is seen through sine and cosine of 2 pi 2^n x, too, for each n of these."""
    dropout: float = 0.1
    dtype: str = "float32"
    remat: str = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """A classifier of noised images, for guidance: the way down of `UNet` (Dhariwal & Nichol 2021)."""

    kind: ClassVar[str] = "classifier"
    features: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Width of each level, in units of `features`; each level after the first halves height and width."""
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (1,)
    num_heads: int = 1
    dropout: float = 0.1
    num_classes: int = 0
    """The classes that it tells apart: those of the data."""
    groups: int = 32
    dtype: str = "float32"
    remat: str = "none"


def enlarges(net: object) -> int:
    """The factor by which a network of this record enlarges images; 0 for one that draws them from noise alone."""
    return getattr(net, "enlarges", 0)
