"""What a run is: frozen records that train.py turns into flags and that config.json keeps.

A preset (`configs/NAME.py`) is one `Config`. Library functions never see it: they take the few values they need.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro

from ddpm_jax import files

T = TypeVar("T")


def pick(table: Mapping[str, T], name: str, argument: str) -> T:
    """Look `name` up in a dict of choices.

    Raises:
        ValueError: names the argument, the value got, the nearest good one and all the others.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    raise ValueError(f"{argument}: there is no {name!r}{suggest(name, table)}; choose from {', '.join(table)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """', did you mean ...?' for the nearest of the known names, or nothing where none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, and how they are read."""

    source: str = "digits"
    """digits, mnist5k, fashion_mnist, tfds, folder or array."""
    name: str = ""
    """The data set's name, for source tfds (cifar10, lsun/bedroom, ...)."""
    path: str = ""
    """The folder or file to read, or the TFDS data_dir; empty for the source's usual place."""
    split: str = "train"
    shape: tuple[int, int, int] = (8, 8, 1)
    """Height, width and channels that the network trains on."""
    flip: bool = False
    """Mirror each image left to right with probability one half."""
    stream: bool = False
    """Read images when they are needed (Grain) rather than the whole set into memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The forward process and what the network is asked to predict."""

    schedule: str = "linear"
    num_steps: int = 1000
    schedule_args: tuple[tuple[str, float], ...] = ()
    """Further arguments of the schedule, as NAME VALUE pairs: --diffusion.schedule-args beta_end 0.01"""
    zero_terminal_snr: bool = False
    log_snr_shift: float = 1.0
    """Shift factor s: 2 log s is added to every log-SNR."""
    prediction: str = "eps"
    """eps, x0, v, score, mean or flow."""
    weighting: str = "simple"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet:
    """The U-Net of Ho et al. 2020 and its kin."""

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
    dtype: str = "float32"
    """What the network computes in: float32 or bfloat16. Parameters, norms and softmax stay float32."""
    remat: bool = False
    """Recompute the blocks' activations in the backward pass: less memory, about a third more work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseNet:
    """The network of the "DDPM from scratch" tutorial."""

    init_dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8, 16)
    attn_resolutions: tuple[int, ...] = (16,)
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How parameters move."""

    name: str = "adam"
    """adam or adamw."""
    learning_rate: float = 2e-4
    warmup_steps: int = 5000
    decay: str = "constant"
    """After the warm-up: constant or cosine (to zero at the last step)."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 for no clipping."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights once warm; it starts as (1 + step) / (10 + step)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are drawn, in training's previews and in sample.py."""

    sampler: str = "ddpm"
    """ddpm or ddim."""
    steps: tuple[int, ...] = ()
    """How many steps of the schedule to visit; several numbers for as many sections; empty for all."""
    spacing: str = "even"
    """Which steps: even, ddim or trailing."""
    variance: str = "large"
    """For ddpm: large (beta) or small (the posterior's)."""
    eta: float = 0.0
    """For ddim: 0 is deterministic, 1 as noisy as ddpm with the small variance."""
    clip: bool = True
    """Keep the prediction of x_0 in [-1, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run writes and how often, in steps."""

    log_every: int = 100
    sample_every: int = 5000
    num_samples: int = 64
    """Images in a preview."""
    preview_steps: int = 50
    """DDIM steps for a preview, always from the same noise, so that pictures show training and nothing else."""
    checkpoint_every: int = 1000
    keep_last: int = 3
    keep_every: int = 0
    """Also keep for good each checkpoint whose step is a multiple of this; 0 for none."""
    steps_per_dispatch: int = 1
    """Training steps in one call to the device; more than one helps accelerators and hurts CPUs."""
    on_nonfinite: str = "stop"
    """A loss that isn't finite: stop, or skip the update and count it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    seed: int = 0
    steps: int = 800_000
    batch_size: int = 128
    data: Data = Data()
    diffusion: Diffusion = Diffusion()
    net: tyro.conf.AvoidSubcommands[UNet | NoiseNet] = UNet()
    optimizer: Optimizer = Optimizer()
    sampling: Sampling = Sampling()
    run: Run = Run()


KINDS = {"unet": UNet, "noise_net": NoiseNet}


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists, numbers and strings; a network carries its kind."""
    plain = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        plain[field.name] = to_dict(value) if dataclasses.is_dataclass(value) else _listed(value)
    for kind, cls in KINDS.items():
        if type(config) is cls:
            plain = {"kind": kind, **plain}
    return plain


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, tuple) else value


def from_dict(plain: Mapping[str, Any], cls: type[T] = Config, where: str = "config") -> T:
    """Read what `to_dict` wrote; a field that is missing takes its default.

    Raises:
        ValueError: for a field that doesn't exist (with the nearest that does) or a value of the wrong type.
    """
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where} must be an object, got {plain!r}")
    hints = typing.get_type_hints(cls)
    for name in plain:
        if name not in hints:
            raise ValueError(f"{where}.{name}: there is no such field{suggest(name, hints)}")
    return cls(**{name: _read(value, hints[name], f"{where}.{name}") for name, value in plain.items()})


def _read(value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object, got {value!r}")
        cls = pick(KINDS, value.get("kind", ""), f"{where}.kind")
        return from_dict({k: v for k, v in value.items() if k != "kind"}, cls, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(value, typing.cast(type, hint), where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        inner = typing.get_args(hint)
        inner = [inner[0]] * len(value) if inner[-1] is ... else inner
        if len(inner) != len(value):
            raise ValueError(f"{where} must have {len(inner)} entries, got {value!r}")
        return tuple(_read(v, h, where) for v, h in zip(value, inner, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} must be {hint.__name__}, got {value!r}")
    return value


def write(config: Config, path: Path) -> None:
    """Write config.json whole or not at all."""
    files.write(path, (json.dumps(to_dict(config), indent=1) + "\n").encode())


def read(path: Path) -> Config:
    """Read config.json.

    Raises:
        FileNotFoundError: if there is none, saying what a run's folder holds.
        ValueError: if it isn't what `write` wrote.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no run's folder: it has no {path.name} (train.py writes one)")
    try:
        return from_dict(json.loads(path.read_text()), where=path.name)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def differences(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields in which two configs differ, by dotted name: {"net.features": (32, 64)}."""
    old, new = (to_dict(x) if dataclasses.is_dataclass(x) else x for x in (old, new))
    found = {}
    for name in {**old, **new}:
        a, b, dotted = old.get(name), new.get(name), f"{where}{name}"
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, dotted + ".")
        elif a != b:
            found[dotted] = (a, b)
    return found
