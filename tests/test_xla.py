"""How programs are compiled: options for CPUs, none elsewhere, and never inside another jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import xla
from ddpm_jax.nets import layers


@pytest.fixture
def anew():
    """What a release of XLA knows is asked again, before and after."""
    xla._known.cache_clear()
    yield
    xla._known.cache_clear()


def test_cpus_alone_have_options(monkeypatch):
    assert xla.options("tpu") is xla.options("cuda") is None
    assert xla.options("cpu") == xla.options()
    monkeypatch.setenv("DDPM_JAX_CPU_CONVOLUTIONS", "xla")
    assert xla.options("cpu") is None


@pytest.mark.usefixtures("anew")
def test_options_that_this_release_does_not_know_are_left_out(monkeypatch):
    known = {"xla_cpu_enable_fast_math": False}
    monkeypatch.setitem(xla.CONVOLUTIONS, "eigen", {"xla_cpu_no_such_option": True} | known)
    assert xla.options("cpu") == known
    monkeypatch.setitem(xla.CONVOLUTIONS, "eigen", {"xla_cpu_no_such_option": True})
    assert xla.options("cpu") is None


def test_an_unknown_choice_is_refused_with_those_there_are(monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CPU_CONVOLUTIONS", "eigne")
    with pytest.raises(ValueError, match=r"DDPM_JAX_CPU_CONVOLUTIONS.*'eigne'.*did you mean 'eigen'.*eigen, xla"):
        xla.options("cpu")


def test_a_convolution_leaves_the_library_that_is_slow_at_it():
    """The program says so itself: XLA's own choice fuses it into a call of YNNPACK."""
    if xla.options("cpu") is None:
        pytest.skip("this release of XLA doesn't know the options")
    x, kernel = jnp.ones((4, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
    given = jax.jit(layers.convolve).lower(x, kernel)
    assert "ynn" in given.compile().as_text()
    assert "ynn" not in given.compile(compiler_options=xla.options()).as_text()


def test_the_choice_changes_a_convolution_by_rounding_alone(monkeypatch):
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 9, 8, 5), (3, 3, 5, 7)]))
    found = []
    for name in xla.CONVOLUTIONS:
        monkeypatch.setenv("DDPM_JAX_CPU_CONVOLUTIONS", name)
        found.append(xla.jit(layers.convolve)(x, kernel))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


def test_within_a_jit_a_gradient_or_a_scan_it_is_the_function_itself():
    double = xla.jit(lambda x, by: by * x, static_argnames="by")
    assert double(3.0, by=2) == 6
    assert jax.jit(lambda x: double(x, by=2))(3.0) == 6
    assert jax.grad(lambda x: double(x, by=2))(3.0) == 2
    assert jax.lax.scan(lambda x, _: (double(x, by=2), None), 1.0, length=3)[0] == 8
    assert double.lower(3.0, by=2).compile()(3.0) == 6
