"""Machines that a program can be compiled for without having one: TPU slices, H100s, and this machine's CPU cut up."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from ddpm_jax.records import suggest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What the maker publishes of one chip."""

    platform: str
    flops: float
    """bfloat16 operations a second, dense."""
    memory: float
    """Bytes of its own memory."""
    bandwidth: float
    """Bytes a second from that memory."""
    link: float
    """Bytes a second that it can send to its neighbours, over all links together, one way."""
    network: float
    """Its share of what a slice, or a host of GPUs, sends to another; bytes a second."""


def _tpu(tera: float, gibibytes: float, bandwidth: float, link: float, network: float = math.nan) -> Chip:
    rates = {"bandwidth": bandwidth * 1e9, "link": link * 1e9, "network": network * 1e9}
    return Chip(platform="tpu", flops=tera * 1e12, memory=gibibytes * 2**30, **rates)


CHIPS = {
    # Jouppi et al. 2020, "A domain-specific supercomputer for training deep neural networks", Tables 3 and 4.
    "v2": _tpu(46, 16, 700, 248),
    "v3": _tpu(123, 32, 900, 328),
    # Cloud TPU's system architecture pages. Ahead of time JAX takes a v4 chip for two devices of half the memory.
    "v4": _tpu(275, 32, 1200, 300),
    "v5e": _tpu(197, 16, 819, 200, 3.1),
    "v5p": _tpu(459, 95, 2765, 600, 6.25),
    "v6e": _tpu(918, 32, 1638, 400, 12.5),
    "tpu7x": _tpu(2307, 192, 7380, 600),
    # NVIDIA's data sheets: the SXM module, NVLink one way, and a DGX's network card for each GPU.
    "h100": Chip(platform="cuda", flops=989e12, memory=84942979072, bandwidth=3352e9, link=450e9, network=50e9),
    # Whatever this machine has: nothing is known of it.
    "cpu": Chip(platform="cpu", flops=math.nan, memory=math.nan, bandwidth=math.nan, link=math.nan, network=math.nan),
}

# What XLA has to know of a GPU that it doesn't see, as its own text format has it.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_block_limit: 65536 registers_per_core_limit: 65536 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 device_memory_size: 84942979072 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Devices to compile for."""

    name: str
    chip: Chip
    devices: list[Any]
    per_chip: int
    """Devices to a chip: two on some TPUs, which share what the chip has."""
    islands: int = 1
    """Slices, or hosts of GPUs, joined by a slower network than the links within."""

    @property
    def memory(self) -> float:
        """Bytes that a device has."""
        return self.chip.memory / self.per_chip

    @property
    def flops(self) -> float:
        """Operations a second that a device does at most."""
        return self.chip.flops / self.per_chip

    @property
    def link(self) -> float:
        """Bytes a second that a device sends at most."""
        return self.chip.link / self.per_chip

    @property
    def bandwidth(self) -> float:
        """Bytes a second between a device and its memory."""
        return self.chip.bandwidth / self.per_chip

    @property
    def network(self) -> float:
        """A device's share of what its island sends to another, bytes a second."""
        return self.chip.network / self.per_chip

    @property
    def hosts(self) -> int:
        """Processes, each of which reads its share of the images."""
        return len({device.process_index for device in self.devices})


def prepare(names: list[str]) -> None:
    """Ready JAX to compile for these targets; to be called before anything else of JAX is used.

    The process stays on this machine's CPU, of which it gets as many devices as the largest target cpu:N asks for.

    Raises:
        ValueError: for a name that isn't one.
        ImportError: if a compiler isn't installed, saying which `pip install` mends it.
    """
    parsed = [_parse(name) for name in names]
    platforms = {CHIPS[kind].platform for kind, _, _ in parsed}
    if "tpu" in platforms and importlib.util.find_spec("libtpu") is None:
        raise ImportError("to plan for TPUs their compiler must be there: pip install 'ddpm_jax[tpu]'")
    if "cuda" in platforms and not _has_cuda():
        raise ImportError("to plan for GPUs their compiler must be there: pip install 'ddpm_jax[cuda]'")
    # What libtpu would otherwise ask of a machine that it takes itself to be on.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    jax.config.update("jax_platforms", "cpu")
    # A program for CPUs that is read from the cache can't be saved whole again; those for TPUs are never found there.
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_num_cpu_devices", max([1, *(sides[0] for kind, sides, _ in parsed if kind == "cpu")]))


def _has_cuda() -> bool:
    try:
        return importlib.util.find_spec("jax_plugins.xla_cuda13") is not None
    except ModuleNotFoundError:  # no plugin at all
        return False


def find(name: str, *, chips: int = 0) -> Target:
    """The devices of a target: v5e:4x4, 2*v5e:16x16 (two slices), v5p:4x4x4, h100:8, h100:4x8 (four hosts), cpu:8.

    Args:
        name: as above.
        chips: take only so many of them, the first; 0 for all.

    Raises:
        ValueError: for a name that isn't one, or more chips than there are.
    """
    kind, sides, slices = _parse(name)
    chip = CHIPS[kind]
    devices, islands = {"tpu": _tpus, "cuda": _gpus, "cpu": _cpus}[chip.platform](kind, sides, slices)
    per_chip = 1 + max(getattr(device, "core_on_chip", 0) for device in devices) if chip.platform == "tpu" else 1
    if not 0 <= chips * per_chip <= len(devices):
        raise ValueError(f"--chips must lie in 0 .. {len(devices) // per_chip} for {name}, got {chips}")
    if chips and islands > 1:
        raise ValueError(f"--chips takes part of one slice or host, got {chips} of {name}")
    if chips:
        name, devices = f"{chips} of {name}", devices[: chips * per_chip]
    return Target(name=name, chip=chip, devices=devices, per_chip=per_chip, islands=islands)


def _parse(name: str) -> tuple[str, tuple[int, ...], int]:
    """Kind, sides and how many of it."""
    found = re.fullmatch(r"(?:(\d+)\*)?([a-z]\w*):(\d+(?:x\d+)*)", name)
    kind = found[2] if found else name.split(":")[0].split("*")[-1]
    sides = tuple(map(int, found[3].split("x"))) if found else ()
    count = int(found[1] or 1) if found else 0
    most = {"tpu": 3, "cuda": 2, "cpu": 1}[CHIPS[kind].platform] if kind in CHIPS else 0
    if not 1 <= len(sides) <= most or min(count, *sides) < 1 or (count > 1 and most < 3):
        raise ValueError(
            f"--target must be KIND:SHAPE like v5e:4x4, 2*v6e:8x8, h100:8, h100:4x8 or cpu:8, with KIND one of "
            f"{', '.join(CHIPS)}{suggest(kind, CHIPS)}; got {name!r}"
        )
    return kind, sides, count


def _tpus(kind: str, sides: tuple[int, ...], slices: int) -> tuple[list[Any], int]:
    several = {"num_slices": slices} if slices > 1 else {}
    shape = "x".join(map(str, sides))
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **several)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError(f"--target: there is no TPU slice {kind}:{shape} ({said[:160]})") from None
    return list(found.devices), slices


def _gpus(kind: str, sides: tuple[int, ...], slices: int) -> tuple[list[Any], int]:
    del kind, slices
    hosts, each = sides if len(sides) == 2 else (1, *sides)
    found = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", target_config=_H100, topology=f"1x{hosts}x{each}"
    )
    return list(found.devices), hosts


def _cpus(kind: str, sides: tuple[int, ...], slices: int) -> tuple[list[Any], int]:
    del kind, slices
    return jax.devices("cpu")[: sides[0]], 1
