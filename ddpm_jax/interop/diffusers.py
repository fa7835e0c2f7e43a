"""Published DDPM checkpoints: the U-Net of Ho et al. under the names of Hugging Face's UNet2DModel; in, and out.

Reads google/ddpm-cifar10-32, google/ddpm-celebahq-256 and their kin, and writes folders that DDPMPipeline opens.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors.numpy

from ddpm_jax import config as config_lib
from ddpm_jax import files, nets
from ddpm_jax.config import Config
from ddpm_jax.diffusion import reverse
from ddpm_jax.interop import schedulers, unet2d, weights
from ddpm_jax.interop.whole import check_params, new_folder, refuse_used
from ddpm_jax.nets import UNet
from ddpm_jax.torch_files import torch_file

_TOPS = {
    "time1": "time_embedding.linear_1",
    "time2": "time_embedding.linear_2",
    "classes": "class_embedding",
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
    "embedding": "weight",
    "emb": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "out": "to_out.0",
}
_LARGEST = 65_536
# What the attention's layers were called when the published checkpoints were written.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _renamer(net: config_lib.UNet) -> Callable[[list[str]], str]:
    """Their name for each parameter; they count the way up from the deepest level."""
    last, blocks = len(net.multipliers) - 1, net.num_res_blocks
    tops = dict(_TOPS)
    for level in range(last + 1):
        for ours, theirs, count in (
            ("down", f"down_blocks.{level}", blocks),
            ("up", f"up_blocks.{last - level}", blocks + 1),
        ):
            tops[f"{ours}{level}_resize"] = f"{theirs}.{ours}samplers.0" + ("" if net.resblock_updown else ".conv")
            for i in range(count):
                tops[f"{ours}{level}_block{i}"] = f"{theirs}.resnets.{i}"
                tops[f"{ours}{level}_block{i}_attention"] = f"{theirs}.attentions.{i}"
    return weights.renamer(tops, _PARTS)


def _newer(name: str) -> str:
    """A tensor's name with the attention's layers called as they are now."""
    return re.sub(rf"(attentions\.\d+\.)({'|'.join(_OLD)})(?=\.)", lambda found: found[1] + _OLD[found[2]], name)


def _find(folder_or_prefix: str | Path) -> tuple[Path, Path]:
    """The settings' file and the weights' file, which need not exist."""
    folder = Path(folder_or_prefix)
    if not folder.is_dir():
        return Path(f"{folder}.json"), Path(f"{folder}.safetensors")
    index = folder / "model_index.json"
    if index.is_file():
        parts = {name for name, value in weights.read_json(index).items() if isinstance(value, list) and any(value)}
        if not parts <= {"unet", "scheduler"}:
            raise ValueError(f"{index} must list a unet and a scheduler alone, got {', '.join(sorted(parts))}")
    if (folder / "unet" / "config.json").is_file() and not (folder / "config.json").is_file():
        folder = folder / "unet"
    kept, older = folder / "diffusion_pytorch_model.safetensors", folder / "diffusion_pytorch_model.bin"
    return folder / "config.json", older if older.is_file() and not kept.exists() else kept


def weights_file(folder_or_prefix: str | Path) -> Path:
    """The file that `load` reads the weights from."""
    return _find(folder_or_prefix)[1]


def load(folder_or_prefix: str | Path) -> tuple[UNet, dict[str, Any]]:
    """The network of a UNet2DModel, and its weights as `module.apply` takes them.

    Reads config.json and diffusion_pytorch_model.safetensors (or .bin) where a folder is given, in it or in its unet/;
    else PREFIX.json and PREFIX.safetensors. Where the network takes classes, the last of them is our "no class".

    Raises:
        FileNotFoundError: for a missing file, naming it.
        ValueError: for a setting that our UNet can't express, with the value got and the value wanted, or tensors that
            don't fit the settings one to one.
    """
    described, kept = _find(folder_or_prefix)
    settings = unet2d.read(weights.read_json(described), described)
    tensors = torch_file.read_tensors(kept) if kept.suffix == ".bin" else weights.read_tensors(kept)
    # A name in both fashions stays as it is, and is then refused as one too many.
    tensors = {name if _newer(name) in tensors else _newer(name): tensor for name, tensor in tensors.items()}
    # A block has ten tensors. Settings of many more than the file has would take long to lay out, for nothing.
    blocks = 2 * len(settings.block_out_channels) * settings.layers_per_block
    if 5 * blocks > len(tensors):
        wanted = f"at least {10 * blocks} tensors in {kept}, for block_out_channels and layers_per_block"
        raise ValueError(f"{described}: there must be {wanted}, got {len(tensors)}")
    net = unet2d.net(settings, described)
    module = nets.NETS[config_lib.UNet](net, settings.out_channels, (1, 1, settings.in_channels))
    return module, weights.fill(module, settings.in_channels, len(net.multipliers) - 1, tensors, _renamer(net))


def has_null_class(folder_or_prefix: str | Path) -> bool:
    """Do the settings say that the last class is "no class"? Those that `save` writes do."""
    return weights.read_json(_find(folder_or_prefix)[0]).get(unet2d.NULL_CLASS) is True


def add_null_class(config: Config, params: Any) -> tuple[Config, Any]:
    """A network read with its last class for "no class", as one with all its classes and a new "no class".

    That is the mean of the others, [4 features]: nothing has been trained for it.

    Raises:
        ValueError: for a network without classes.
    """
    if not isinstance(config.net, config_lib.UNet) or not config.net.num_classes:
        raise ValueError("the network must be a unet with classes, got one without")
    net = dataclasses.replace(config.net, num_classes=config.net.num_classes + 1)
    rows = params["classes"]["embedding"]
    rows = jnp.concatenate([rows, rows.mean(axis=0, keepdims=True)])
    return dataclasses.replace(config, net=net), {**params, "classes": {**params["classes"], "embedding": rows}}


def scheduler_file(folder_or_prefix: str | Path) -> Path | None:
    """The scheduler's settings beside the network, or in the scheduler/ of a pipeline; None if there are none."""
    folder = Path(folder_or_prefix)
    places = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    return next((path for path in places if path.is_file()), None)


def describe(folder_or_prefix: str | Path, config: Config) -> Config:
    """`config` with what the files say put in: the network, the images' shape, the schedule and what is predicted.

    A variance that is learned makes the simple objective the hybrid one, a fixed one the hybrid simple. What changes no
    weight, and is none of theirs, stays: net.dtype, net.remat, net.label_dropout, the weighting, ...
    Without a scheduler's file the schedule stays, too.

    Raises:
        ValueError: for settings that ours can't express, or a network whose outputs aren't those of the variance.
    """
    described, _ = _find(folder_or_prefix)
    plain = weights.read_json(described)
    settings = unet2d.read(plain, described)
    net = unet2d.net(settings, described)
    if isinstance(config.net, config_lib.UNet):
        ours = config.net
        net = dataclasses.replace(net, dtype=ours.dtype, remat=ours.remat, label_dropout=ours.label_dropout)
    diffusion, sampling = config.diffusion, config.sampling
    if (file := scheduler_file(folder_or_prefix)) is not None:
        diffusion, sampling = schedulers.read(weights.read_json(file), file, diffusion, sampling)
        diffusion = dataclasses.replace(diffusion, objective=_objective(diffusion))
    wanted = settings.in_channels * (2 if reverse.is_learned(diffusion.variance) else 1)
    if settings.out_channels != wanted:
        raise ValueError(
            f"{described}: out_channels must be {wanted} for {settings.in_channels} channels and --diffusion.variance "
            f"{diffusion.variance}, got {settings.out_channels}"
        )
    height, width = _size(plain.get("sample_size"), described) or config.data.shape[:2]
    data = dataclasses.replace(config.data, shape=(height, width, settings.in_channels))
    return dataclasses.replace(config, net=net, diffusion=diffusion, sampling=sampling, data=data)


def _objective(diffusion: config_lib.Diffusion) -> str:
    """How to train on: only with the bound does a variance learn, and only such a variance takes the hybrid."""
    learned = reverse.is_learned(diffusion.variance)
    others = {("simple", True): "hybrid", ("hybrid", False): "simple"}
    return others.get((diffusion.objective, learned), diffusion.objective)


def _size(found: Any, where: Path) -> tuple[int, int] | None:
    if found is None:
        return None
    sides = found if isinstance(found, list) else [found, found]
    if len(sides) != 2 or any(type(side) is not int or not 1 <= side <= _LARGEST for side in sides):
        wanted = f"a number of pixels up to {_LARGEST}, or height and width"
        raise ValueError(f"{where}: sample_size must be {wanted}, got {str(found)[:80]}")
    return sides[0], sides[1]


def save(folder: Path, config: Config, params: Any) -> None:
    """Write a network as a folder that diffusers.DDPMPipeline.from_pretrained opens: whole or not at all.

    In it: model_index.json, unet/config.json, unet/diffusion_pytorch_model.safetensors and
    scheduler/scheduler_config.json. UNet2DModel has no default class: it wants labels, num_classes for "no class", and
    config.json says so to `has_null_class`. The sampler and its steps are no part of it.

    Raises:
        ValueError: before anything is written, for a folder in use, parameters of another network, or what diffusers
            can't express, naming the flag and the value got.
    """
    refuse_used(folder)
    if not isinstance(config.net, config_lib.UNet):
        raise ValueError(f"--net must be unet for diffusers, got {config.net.kind}")
    shape = config.data.shape
    outputs = shape[2] * (2 if reverse.is_learned(config.diffusion.variance) else 1)
    described = {
        "model_index.json": {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
        "unet/config.json": unet2d.write(config.net, shape, outputs),
        "scheduler/scheduler_config.json": schedulers.write(config.diffusion, config.sampling),
    }
    module = nets.build(config)
    check_params(params, jax.eval_shape(lambda key: nets.init(key, module, shape), jax.random.key(0)))
    tensors = weights.collect({"params": params}, _renamer(config.net), dense=_is_dense)
    with new_folder(folder) as beside:
        for name, plain in described.items():
            files.write(beside / name, (json.dumps(plain, indent=2) + "\n").encode())
        # PyTorch's readers want to be told that it is theirs.
        safetensors.numpy.save_file(
            tensors, beside / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"}
        )


def _is_dense(name: str) -> bool:
    return re.search(r"attentions\.\d+\.to_(q|k|v|out\.0)\.weight$", name) is not None
