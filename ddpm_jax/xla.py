"""How XLA is to compile the programs here: as it likes on TPUs and GPUs, told which convolutions to take on CPUs.

On CPUs XLA (jaxlib 0.10) hands convolutions, products and sums to the library YNNPACK. Its convolutions of fewer than
about 100 channels, and its gradients of kernels, run at a third to a half of the speed of those that XLA took before
(Eigen's); its products and sums are the faster ones. `benchmarks/step.py` measures both. With the options for that goes
one that spares copies of arrays, a twentieth of what the U-Net of CIFAR-10 keeps for its backward pass.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

from ddpm_jax.records import pick

_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "eigen": {
        _LIBRARY: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
        "xla_cpu_copy_insertion_use_region_analysis": True,
    },
    "xla": {},
}
"""Which convolutions CPUs take: "xla" is XLA's own choice. DDPM_JAX_CPU_CONVOLUTIONS in the environment says which."""


def options(platform: str | None = None) -> dict[str, Any] | None:
    """What to give `jax.jit` as compiler_options, for a platform or for that of the default devices.

    A program of your own that holds a network of ours wants them too: `jax.jit(f, compiler_options=xla.options())`.

    Raises:
        ValueError: for a DDPM_JAX_CPU_CONVOLUTIONS that isn't one.
    """
    if (platform or jax.default_backend()) != "cpu":
        return None
    chosen = os.environ.get("DDPM_JAX_CPU_CONVOLUTIONS", "eigen")
    wanted = pick(CONVOLUTIONS, chosen, "DDPM_JAX_CPU_CONVOLUTIONS")
    return {option: value for option, value in wanted.items() if _known(option, value)} or None


@functools.cache
def _known(option: str, value: Any) -> bool:
    """Does this release of XLA have the option? They are experimental, and may go as they came."""
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def quickly() -> dict[str, Any] | None:
    """How to compile what draws parameters: short work and long code, which on CPU takes far longer to compile well
    than to run."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None


def jit(function: Callable[..., Any], **how: Any) -> Any:
    """`jax.jit` with `options`, chosen when it is first called: to ask for the platform is to start JAX on it.

    Inside a jit of the caller's own it is `function` itself, since options are those of the outermost jit.
    """

    @functools.cache
    def made() -> Any:
        return jax.jit(function, compiler_options=options(), **how)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((args, kwargs))):
            return function(*args, **kwargs)
        return made()(*args, **kwargs)

    like_jit: Any = call
    like_jit.lower = lambda *args, **kwargs: made().lower(*args, **kwargs)
    return like_jit
