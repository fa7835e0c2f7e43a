"""What a noise level counts for: k(log_snr), the factor on ||eps - eps_hat||^2.

Every weighting is stated for the error of eps, whatever a network predicts; `in_space` says the same objective as a
factor on the error of another prediction. It follows from how an error in one shows in the other at a fixed x_t:

    eps_hat - eps = -(alpha / sigma) (x0_hat - x_0) = alpha (v_hat - v) = -sigma (score_hat - score)
                  = alpha / (alpha + sigma) (flow_hat - flow) = -(alpha / sigma) / coef_x0 (mean_hat - mean)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.records import pick

Weighting = Callable[[jax.Array], jax.Array]


def simple(log_snr: jax.Array) -> jax.Array:
    """1 everywhere: L_simple (Ho et al. 2020, Eq. 14)."""
    return jnp.ones_like(log_snr)


def _flow(log_snr: jax.Array) -> jax.Array:
    """(alpha / (alpha + sigma))^2."""
    return jax.nn.sigmoid(log_snr / 2) ** 2


# Squared size of the eps error that a unit error of each prediction makes.
_FACTORS: dict[str, Weighting] = {
    "eps": jnp.ones_like,
    "x0": jnp.exp,
    "v": jax.nn.sigmoid,
    "score": lambda log_snr: jax.nn.sigmoid(-log_snr),
    "mean": jnp.exp,
    "flow": _flow,
}


def in_space(
    k: Weighting, prediction: str, log_snr: jax.Array, *, posterior_mean_coef_x0: jax.Array | None = None
) -> jax.Array:
    """The factor on ||prediction - prediction_hat||^2 that makes the same objective as k on the error of eps.

    log_snr has any shape and the result the same. The posterior mean depends on the step as well as on the noise level,
    so for "mean" the schedule's posterior_mean_coef_x0 at the same steps is needed.

    Raises:
        ValueError: for an unknown prediction, or "mean" without its coefficient.
    """
    factor = pick(_FACTORS, prediction, "prediction")(log_snr)
    if prediction == "mean":
        if posterior_mean_coef_x0 is None:
            raise ValueError("prediction 'mean' needs posterior_mean_coef_x0 at the steps of log_snr, got None")
        factor = factor / posterior_mean_coef_x0**2
    return k(log_snr) * factor


WEIGHTINGS: dict[str, Weighting] = {"simple": simple}
