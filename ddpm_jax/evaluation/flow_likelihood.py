"""Bits per dimension by the probability-flow ODE: what `likelihood.over` measures batch by batch."""

from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.bound import LOG_2
from ddpm_jax.diffusion.levels import Levels
from ddpm_jax.evaluation.dequantisation import Dequantisation, uniform
from ddpm_jax.evaluation.likelihood import PerBatch
from ddpm_jax.sampling import black_box, flow_likelihood


def by_flow(
    key: jax.Array,
    levels: Levels,
    *,
    dequantise: Dequantisation = uniform,
    draws: int = 1,
    bits: int = 8,
    **options: Any,
) -> PerBatch:
    """-log2 of (a bound on) each image's probability, in bits per dimension (Song et al. 2021, Sec. 4.3).

    Image i's draws and probes depend on i only.

    Args:
        levels: `flow_likelihood.ends(schedule)`.
        dequantise: from DEQUANTISATIONS, or `variational`.
        draws: of the dequantisation; log P is that of their mean probability, which is tighter for more (Burda et al.
            2016). Hutchinson's noise would be taken for probability there: with several, want the exact trace.
        bits: the data's depth.
        options: of `flow_likelihood.log_density`.

    Returns:
        besides the total: density, -log2 p(x) of the dequantised image; probe_error, the standard error that the random
        probes give the total, of one draw, if there are two or more; and the steps of the solver.

    Raises:
        ValueError: for fewer than one draw, and as `log_density`.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    settings = {name: options[name] for name in ("solver", "rtol", "atol", "max_steps") if name in options}
    black_box.check(**{"solver": "tsit5", "rtol": 1e-5, "atol": 1e-5, "max_steps": 10_000} | settings)

    def per_batch(denoise: Any, indices: jax.Array, images: jax.Array, *labels: jax.Array) -> dict[str, jax.Array]:
        in_bits = LOG_2 * images[0].size
        level = levels.read(-1)

        def once(draw: jax.Array) -> dict[str, jax.Array]:
            key_draw, key_probes = jax.random.split(jax.random.fold_in(key, draw))
            keys = jax.vmap(lambda i: jax.random.fold_in(key_draw, i))(indices)
            x, correction = jax.vmap(lambda key, x_0: dequantise(key, x_0, level, bits))(keys, images)
            found = flow_likelihood.log_density(
                key_probes, denoise, levels, x, indices=indices, conditions=labels[0] if labels else None, **options
            )
            several = {}
            if len(found.by_probe) > 1:
                deviation = jnp.std(found.by_probe, axis=0, ddof=1)
                several["probe_error"] = deviation / len(found.by_probe) ** 0.5 / in_bits
            steps = jnp.full(len(x), found.steps, x.dtype)
            return {"log_P": found.log_p + correction, "density": -found.log_p / in_bits, "steps": steps, **several}

        found = jax.lax.map(once, jnp.arange(draws))
        log_p = jax.nn.logsumexp(found.pop("log_P"), axis=0) - jnp.log(draws)
        return {"total": -log_p / in_bits, **{name: jnp.mean(part, axis=0) for name, part in found.items()}}

    return per_batch
