"""DDPM and DDIM against another library's schedulers, step by step in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded

from ddpm_jax.sampling import ancestral, ddim, ddpm


@pytest.fixture(autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def their_noise(monkeypatch):
    """What the recording's k-th call drew, in place of our own."""
    table = jnp.asarray(recorded.ARRAYS["noise"])
    monkeypatch.setattr(ancestral, "noise", lambda state: table[state.count])


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("ddpm_small", ddpm(variance="small")),
        ("ddpm_large", ddpm(variance="large")),
        ("ddim_leading", ddim()),
        ("ddim_trailing", ddim()),
        ("ddim_linspace", ddim()),  # its steps don't meet: each goes to a level that the next doesn't start from
        ("ddim_eta0.5", ddim(eta=0.5)),
        ("ddim_eta1", ddim(eta=1.0)),
        ("ddim_trailing_eta1", ddim(eta=1.0)),
        ("ddim_scaled_linear", ddim()),
        ("ddim_cosine", ddim()),
    ],
)
def test_every_step_is_the_recorded_one(name, sampler, their_noise):
    ours, theirs = recorded.step_by_step(name, sampler)
    assert len(ours) == recorded.CASES[name]["steps"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_clipped_steps_are_those_that_derive_eps_again(their_noise):
    half = lambda x_0: jnp.clip(x_0, -0.5, 0.5)  # noqa: E731
    ours, theirs = recorded.step_by_step("ddim_clip_rederived", ddim(), half)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
