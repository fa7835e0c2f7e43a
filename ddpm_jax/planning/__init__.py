"""Know before you rent: the very programs of a run, compiled for machines that aren't there, and what they need."""

from ddpm_jax.planning.ahead import Plan, bytes_on_device, check, compile_sampler, compile_step, model_flops, plan, save
from ddpm_jax.planning.collectives import Collective
from ddpm_jax.planning.targets import CHIPS, Target, find, prepare

__all__ = [
    "CHIPS",
    "Collective",
    "Plan",
    "Target",
    "bytes_on_device",
    "check",
    "compile_sampler",
    "compile_step",
    "find",
    "model_flops",
    "plan",
    "prepare",
    "save",
]
