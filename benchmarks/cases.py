"""What is measured: a preset's network and training at a batch size, as either framework takes it."""

import dataclasses
from typing import Any

from ddpm_jax import config as config_lib
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Config
from ddpm_jax.interop import unet2d


def read(case: str) -> Config:
    """The config of PRESET:BATCH, or of PRESET with its own batch size.

    Raises:
        ValueError: for a preset that isn't there or has no U-Net, or a batch size that is none.
    """
    name, _, batch = case.partition(":")
    config = load_preset(name)
    if batch and not (batch.isdecimal() and int(batch) > 0):
        raise ValueError(f"--cases must be PRESET:BATCH, got {case!r}")
    if not isinstance(config.net, config_lib.UNet):
        raise ValueError(f"--cases: {name} is no U-Net that diffusers has, too")
    return dataclasses.replace(config, batch_size=int(batch or config.batch_size))


def torch_net(config: Config) -> dict[str, Any]:
    """What diffusers' UNet2DModel takes, for the same network."""
    assert isinstance(config.net, config_lib.UNet)  # `read` has seen to it
    written = unet2d.write(config.net, config.data.shape, config.data.shape[2])
    return {name: value for name, value in written.items() if name[0] != "_"}


def job(config: Config, preset: str) -> dict[str, Any]:
    """All that a side needs to know, as JSON takes it."""
    optimizer = config.optimizer
    return {
        "preset": preset,
        "batch": config.batch_size,
        "shape": list(config.data.shape),
        "net": torch_net(config),
        "num_steps": config.diffusion.num_steps,
        "rate": optimizer.learning_rate,
        "betas": [optimizer.b1, optimizer.b2],
        "clip_norm": optimizer.clip_norm,
        "ema_decay": optimizer.ema_decay,
    }
