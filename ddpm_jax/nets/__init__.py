"""Networks: the only room that imports Flax. The rest of the house takes a `Denoiser`, a plain function."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax import config as config_lib
from ddpm_jax import records
from ddpm_jax.config import Config
from ddpm_jax.diffusion import reverse
from ddpm_jax.nets.adm import ADM
from ddpm_jax.nets.classifier import Classifier
from ddpm_jax.nets.noise_net import NoiseNet
from ddpm_jax.nets.unet import UNet
from ddpm_jax.nets.vdm import VDM
from ddpm_jax.types import Denoiser

Params = Any
DTYPES = {"float32": jnp.dtype("float32"), "bfloat16": jnp.dtype("bfloat16")}


def _unet(net: config_lib.UNet, out_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    del shape
    return UNet(
        features=net.features,
        multipliers=net.multipliers,
        num_res_blocks=net.num_res_blocks,
        attention_levels=net.attention_levels,
        num_heads=net.num_heads,
        dropout=net.dropout,
        num_classes=net.num_classes,
        groups=net.groups,
        scale_shift_norm=net.scale_shift_norm,
        resblock_updown=net.resblock_updown,
        conditional=net.enlarges > 0,
        out_channels=out_channels,
        dtype=records.pick(DTYPES, net.dtype, "--net.dtype"),
        remat=net.remat,
    )


def _noise_net(net: config_lib.NoiseNet, out_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    _refuse_variance("noise_net", out_channels, shape)
    return NoiseNet(
        channels=shape[2],
        image_dim=shape[0],
        init_dim=net.init_dim,
        dim_mults=net.dim_mults,
        attn_resolutions=net.attn_resolutions,
        dtype=records.pick(DTYPES, net.dtype, "--net.dtype"),
    )


def _adm(net: config_lib.ADM, out_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    del shape
    return ADM(
        features=net.features,
        multipliers=net.multipliers,
        num_res_blocks=net.num_res_blocks,
        attention_levels=net.attention_levels,
        num_heads=net.num_heads,
        head_features=net.head_features,
        qkv_by_head=net.qkv_by_head,
        dropout=net.dropout,
        num_classes=net.num_classes,
        null_class=net.num_classes > 0 and net.label_dropout > 0,
        scale_shift_norm=net.scale_shift_norm,
        resblock_updown=net.resblock_updown,
        out_channels=out_channels,
        dtype=records.pick(DTYPES, net.dtype, "--net.dtype"),
        remat=net.remat,
    )


def _vdm(net: config_lib.VDM, out_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    _refuse_variance("vdm", out_channels, shape)
    return VDM(
        features=net.features,
        num_blocks=net.num_blocks,
        attention=net.attention,
        fourier=net.fourier,
        dropout=net.dropout,
        dtype=records.pick(DTYPES, net.dtype, "--net.dtype"),
        remat=net.remat,
    )


def _classifier(net: config_lib.Classifier, out_channels: int, shape: tuple[int, int, int]) -> nn.Module:
    _refuse_variance("classifier", out_channels, shape)
    return Classifier(
        num_classes=net.num_classes,
        features=net.features,
        multipliers=net.multipliers,
        num_res_blocks=net.num_res_blocks,
        attention_levels=net.attention_levels,
        num_heads=net.num_heads,
        dropout=net.dropout,
        groups=net.groups,
        dtype=records.pick(DTYPES, net.dtype, "--net.dtype"),
        remat=net.remat,
    )


def _refuse_variance(kind: str, out_channels: int, shape: tuple[int, int, int]) -> None:
    if out_channels != shape[2]:
        raise ValueError(f"a learned --diffusion.variance needs --net unet or adm: {kind} has no outputs to spare")


NETS = {
    config_lib.UNet: _unet,
    config_lib.NoiseNet: _noise_net,
    config_lib.ADM: _adm,
    config_lib.VDM: _vdm,
    config_lib.Classifier: _classifier,
}


def build(config: Config) -> nn.Module:
    """The network that a config describes, for images of its data.shape, with more outputs if it learns a variance.

    Raises:
        ValueError: for a network that can't learn one, naming the flag.
    """
    channels = config.data.shape[2]
    outputs = 2 * channels if reverse.is_learned(config.diffusion.variance) else channels
    return NETS[type(config.net)](config.net, outputs, config.data.shape)


def init(key: jax.Array, module: nn.Module, shape: tuple[int, int, int]) -> Params:
    """Fresh parameters for images of shape [H, W, C]; the time and the images it is tried on don't matter."""
    images, time = jnp.zeros((1, *shape)), jnp.zeros(1)
    beside = (None, images, time) if getattr(module, "conditional", False) else ()
    return module.init(key, images, time, *beside)["params"]


def _apply(module: nn.Module, params: Params, x_t: jax.Array, time: jax.Array, *told: Any, **options: Any) -> Any:
    """The network's answer; what it is told besides are labels, or a dict of its further arguments."""
    if told and isinstance(told[0], dict):
        return module.apply({"params": params}, x_t, time, **told[0], **options)
    return module.apply({"params": params}, x_t, time, *told, **options)


def denoiser(module: nn.Module, params: Params) -> Denoiser:
    """The network as a function of (x_t, time), or of (x_t, time, labels int [B]) if it takes classes.

    One that enlarges images takes a dict in place of labels: see `sampling.cascade`.

    A classifier's is (x_t, time) -> logits [B, K], and (x_t, time, labels) -> log p(labels | x_t) [B].

    A pytree of the parameters, so that a compiled loop takes them as arguments, and is compiled once for a network.
    """
    return jax.tree_util.Partial(_evaluate(module), params)


@functools.lru_cache(maxsize=8)
def _evaluate(module: nn.Module) -> Callable[..., Any]:
    def evaluate(params: Params, x_t: jax.Array, time: jax.Array, *labels: Any) -> Any:
        return _apply(module, params, x_t, time, *labels)

    return evaluate


def denoiser_in_training(module: nn.Module, params: Params, dropout: jax.Array, *labels: Any) -> Denoiser:
    """The same with dropout from the key `dropout`, and labels, if any, already given."""

    def denoise(x_t: jax.Array, time: jax.Array) -> Any:
        return _apply(module, params, x_t, time, *labels, train=True, rngs={"dropout": dropout})

    return denoise
