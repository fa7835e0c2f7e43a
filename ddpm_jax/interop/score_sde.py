"""The DDPM checkpoints of score_sde (Song et al. 2021), in JAX: a training state in Flax's msgpack files.

Its network "ddpm" is Ho et al.'s but for one thing: on the way up it attends once a level, after the last block, where
Ho et al. attend after every block. `nets.UNet` becomes that network with attention that adds nothing (its last layer is
zero) after the other blocks. For CIFAR-10 the file has 35,218,947 parameters, and those blocks 527,360.

A file doesn't say the settings that change no parameter's name or shape. They are our UNet's where `configs/vp` takes
the model "ddpm": swish, images in [-1, 1], no division by sigma. Such a network predicts eps, at times in [0, 999].
A "ddpm" from `configs/subvp` or `configs/ve` loads too, its names and shapes being the same, and would draw noise. The
sub-VP process has the standard deviation 1 - alpha_bar, where ours has its square root, so that at a time its network
knows another amount of noise. The VE one wants images in [0, 1] turned to 2 x - 1, times counted from the most noise,
and its output divided by sigma.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgpack
import numpy as np

from ddpm_jax.interop import ho
from ddpm_jax.nets import UNet
from ddpm_jax.nets.unet import AttentionBlock

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's extension types
_DTYPES = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
_CHUNKED = "__msgpack_chunked_array__"
# No state has more: arrays hold shapes, maps a network's blocks.
_MOST = {"max_array_len": 64, "max_map_len": 4096}

_KINDS = {"Conv", "Dense", "GroupNorm", "NIN", "ResnetBlockDDPM", "AttnBlock", "Downsample", "Upsample"}
# What a network without these was trained with.
_NEEDED = {"Dense_0/": "conditional=False: it isn't told the time", "Downsample_0/": "resamp_with_conv=False"}
_TOPS = {"time1": "Dense_0", "time2": "Dense_1", "conv_in": "Conv_0", "norm_out": "GroupNorm_0", "conv_out": "Conv_1"}
_PARTS = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "emb": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "shortcut": "NIN_0",
    "norm": "GroupNorm_0",
    "q": "NIN_0",
    "k": "NIN_1",
    "v": "NIN_2",
    "out": "NIN_3",
}
_NIN = {"kernel": "W", "bias": "b"}


def load(path: str | Path, module: UNet, channels: int, *, ema: bool = True) -> dict[str, Any]:
    """The weights of a checkpoint file, as `module.apply` takes them for images of so many channels.

    `ema` takes `params_ema`, which the published results are of, rather than the optimizer's target. Give the module
    the widths, blocks and attention that the network was trained with.

    Returns:
        {"params": ...}, in float32.

    Raises:
        FileNotFoundError: for a missing file, naming it.
        ValueError: for a module that isn't Ho et al.'s network; a file that is cut short or something else; a network
            that our UNet can't express (DDPM++, NCSN++, one without a time), naming what it lacks; or tensors that
            don't fit the module one to one, each named.
    """
    ho.check_settings(module)
    tensors = read_tensors(path, ("params_ema",) if ema else ("optimizer", "target"))
    kinds = {part.rsplit("_", 1)[0] for name in tensors for part in name.split("/")[:-1]}
    if kinds - _KINDS:
        raise ValueError(
            f"{path} has layers of kind {', '.join(sorted(kinds - _KINDS))}; only score_sde's model 'ddpm' with "
            "GroupNorm is read, not its DDPM++ or NCSN++"
        )
    for start, setting in _NEEDED.items():
        needed = start != "Downsample_0/" or len(module.multipliers) > 1
        if needed and not any(name.startswith(start) for name in tensors):
            raise ValueError(f"{path} has no {start[:-1]}: that network has {setting}, which our UNet can't express")
    tops, silent = _tops(module)
    return ho.place(module, channels, tensors | _silent_attention(module, silent), _renamer(tops))


def _tops(module: UNet) -> tuple[dict[str, str], dict[str, int]]:
    """Each block's name there, counted by kind as the network calls them; and the width of those it doesn't have."""
    tops, silent, last = dict(_TOPS), {}, len(module.multipliers) - 1
    blocks, attentions = itertools.count(), itertools.count()

    def block(name: str, attends: bool) -> None:
        tops[name] = f"ResnetBlockDDPM_{next(blocks)}"
        if attends:
            tops[f"{name}_attention"] = f"AttnBlock_{next(attentions)}"

    for level in range(last + 1):
        for i in range(module.num_res_blocks):
            block(f"down{level}_block{i}", level in module.attention_levels)
        tops[f"down{level}_resize"] = f"Downsample_{level}/Conv_0"
    block("middle_block0", attends=False)
    tops["middle_attention"] = f"AttnBlock_{next(attentions)}"
    block("middle_block1", attends=False)
    for level in reversed(range(last + 1)):
        for i in range(module.num_res_blocks + 1):
            attends = level in module.attention_levels
            block(f"up{level}_block{i}", attends and i == module.num_res_blocks)
            if attends and i < module.num_res_blocks:
                # No name in a file has a space.
                tops[f"up{level}_block{i}_attention"] = f"none after up{level}_block{i}"
                silent[f"none after up{level}_block{i}"] = module.features * module.multipliers[level]
        tops[f"up{level}_resize"] = f"Upsample_{last - level}/Conv_0"
    return tops, silent


def _renamer(tops: Mapping[str, str]) -> Callable[[list[str]], str]:
    def rename(path: list[str]) -> str:
        parts = [tops[path[0]], *(_PARTS.get(part, part) for part in path[1:])]
        return "/".join([*parts[:-1], _NIN[parts[-1]] if parts[-2].startswith("NIN") else parts[-1]])

    return rename


def _silent_attention(module: UNet, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Attention as it begins training: its last layer is zero, so that it adds nothing, and can learn to."""
    tensors = {}
    for top, width in widths.items():
        block = AttentionBlock(module.num_heads, module.groups)
        fresh = jax.jit(block.init)(jax.random.key(0), jnp.zeros((1, 1, 1, width)))["params"]
        rename = _renamer({"attention": top})
        for path, leaf in jax.tree.leaves_with_path(fresh):
            value = np.asarray(leaf)
            name = rename(["attention", *(entry.key for entry in path)])
            tensors[name] = value[0, 0] if value.ndim == 4 else value
    return tensors


def read_tensors(path: str | Path, where: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of a Flax state under the keys `where`, by their names joined with slashes.

    A norm's scale [1, 1, 1, C], as Flax wrote it until 2021, becomes [C].

    Raises:
        FileNotFoundError: for a missing file, naming it.
        ValueError: if the file is cut short or something else, or an array isn't numbers; naming file and fault.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, which should hold a training state")
    try:
        state = _unpack(path.read_bytes(), ext_hook=_known, object_pairs_hook=_once)
        for key in where:
            if not isinstance(state, dict) or key not in state:
                raise ValueError(f"it holds no {'.'.join(where)}")
            state = state[key]
        tensors = dict(_arrays(state, ()))
        if not tensors:
            raise ValueError(f"its {'.'.join(where)} is empty")
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        fault = str(error) or type(error).__name__  # some of msgpack's say nothing
        raise ValueError(f"{path} is no whole training state of Flax's: {fault}") from None
    return {name: _norm_as_vector(name, tensor) for name, tensor in tensors.items()}


def _unpack(data: bytes, **hooks: Any) -> Any:
    return msgpack.unpackb(data, **_MOST, **hooks)


def _known(code: int, data: bytes) -> msgpack.ExtType:
    if code not in (_ARRAY, _COMPLEX, _SCALAR):
        raise ValueError(f"it has data of extension type {code}, Flax writes 1 to 3 alone")
    return msgpack.ExtType(code, data)


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    if not all(isinstance(key, str) for key, _ in pairs):
        raise ValueError("it has a name that isn't text")
    plain = dict(pairs)
    if len(plain) != len(pairs):
        raise ValueError(f"it names something twice among {', '.join([key for key, _ in pairs][:8])}")
    return plain


def _arrays(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    name = "/".join(path)
    if not isinstance(value, dict) or _CHUNKED in value:
        yield name, _array(value, name)
        return
    if len(path) > 3:
        raise ValueError(f"{name} holds more levels of names than a network has")
    for key, inner in value.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z]\w*", key):
            raise ValueError(f"{key!r} in {name!r} is no name of a layer or a parameter")
        yield from _arrays(inner, (*path, key))


def _array(value: Any, name: str) -> np.ndarray:
    """One array, from an extension's bytes or from the chunks that Flax cuts one of more than 1 GiB into."""
    if isinstance(value, dict):
        shape, chunks = _listed(value.get("shape")), _listed(value.get("chunks"))
        if not shape or not chunks or not _is_shape(shape) or any(isinstance(chunk, dict) for chunk in chunks):
            raise ValueError(f"{name} isn't a shape and the chunks of an array")
        joined = np.concatenate([_array(chunk, name).reshape(-1) for chunk in chunks])
        if math.prod(shape) != joined.size:
            raise ValueError(f"{name} of shape {shape} has {joined.size} numbers in its chunks")
        return joined.reshape(shape)
    if not isinstance(value, msgpack.ExtType) or value.code != _ARRAY:
        raise ValueError(f"{name} must be an array, got {type(value).__name__}")
    content = _unpack(value.data)
    if not isinstance(content, list) or len(content) != 3:
        raise ValueError(f"{name} isn't a shape, a dtype and bytes")
    shape, dtype, data = content
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{name} is of dtype {dtype!r}, which isn't among {', '.join(sorted(_DTYPES))}")
    if not _is_shape(shape) or not isinstance(data, bytes) or not data:
        raise ValueError(f"{name} isn't a shape of whole numbers, a dtype and bytes")
    kept = np.dtype(dtype).newbyteorder("<")
    if math.prod(shape) * kept.itemsize != len(data):
        raise ValueError(f"{name} must have the size of {dtype} {shape}, got {len(data)} bytes")
    return np.frombuffer(data, kept).reshape(shape)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) <= 32 and all(type(side) is int and side >= 0 for side in shape)


def _listed(plain: Any) -> list[Any] | None:
    """Flax writes a list as a map from "0", "1", ..."""
    if not isinstance(plain, dict) or plain.keys() != {str(i) for i in range(len(plain))}:
        return None
    return [plain[str(i)] for i in range(len(plain))]


def _norm_as_vector(name: str, tensor: np.ndarray) -> np.ndarray:
    flat = "GroupNorm_" in name and tensor.ndim == 4 and tensor.shape[:3] == (1, 1, 1)
    return tensor.reshape(-1) if flat else tensor
