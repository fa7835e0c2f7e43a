"""The network of variational diffusion models: its size by hand, its start, and its sums in float64."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from ddpm_jax import config as config_lib
from ddpm_jax import nets
from ddpm_jax.config import Config, Data, Diffusion
from ddpm_jax.nets.vdm import VDM, fourier_features

T = jnp.array([3.0, 700.0])
X = jax.random.normal(jax.random.key(7), (2, 5, 4, 2))
TINY = VDM(features=8, num_blocks=1, attention=True, groups=4, dropout=0.5)
# Compiling is nearly all that these tests do.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def plan(module, x=X):
    return jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(len(x)))


def drawn(module):
    """Weights of which none is zero, so that every block has a say."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 0.3 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return (path[-1].key == "scale") + scale * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree.map_with_path(draw, plan(module))


class Float64:
    """TINY's forward pass written out: sums over taps, in float64."""

    def __init__(self, params):
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(self, x, p):
        groups = x.reshape(x.shape[0], -1, 4, x.shape[-1] // 4)
        mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
        return ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]

    def conv(self, x, p):
        H, W, reach = *x.shape[1:3], p["kernel"].shape[0] // 2
        padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
        taps = np.ndindex(p["kernel"].shape[:2])
        return sum(padded[:, i : i + H, j : j + W] @ p["kernel"][i, j] for i, j in taps) + p["bias"]

    def block(self, x, condition, name):
        p = self.params[name]
        h = self.conv(swish(self.norm(x, p["norm1"])), p["conv1"])
        h = h + (condition @ p["condition"]["kernel"])[:, None, None]
        h = self.conv(swish(self.norm(h, p["norm2"])), p["conv2"])
        return h + (self.conv(x, p["shortcut"]) if "shortcut" in p else x)

    def attend(self, x, name):
        p = self.params[name]
        h = self.norm(x, p["norm"])
        q, k, v = (self.conv(h, p[part]).reshape(len(x), -1, x.shape[-1]) for part in "qkv")
        weights = softmax(q @ k.swapaxes(1, 2) / np.sqrt(x.shape[-1]), axis=-1)
        return x + self.conv((weights @ v).reshape(x.shape), p["out"])

    def __call__(self, x_t, t):
        x_t, t = np.asarray(x_t, np.float64), np.asarray(t, np.float64)
        condition = t[:, None] * 10_000.0 ** (-np.arange(4) / 3)
        condition = np.concatenate([np.sin(condition), np.cos(condition)], -1)
        for name in ("time1", "time2"):
            condition = swish(condition @ self.params[name]["kernel"] + self.params[name]["bias"])
        turns = np.stack([64 * x_t[..., 0], 128 * x_t[..., 0], 64 * x_t[..., 1], 128 * x_t[..., 1]], -1)
        x = np.concatenate([x_t, np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)], -1)
        first = self.conv(x, self.params["conv_in"])
        second = self.attend(self.block(first, condition, "down_block0"), "down_block0_attention")
        x = self.attend(self.block(second, condition, "middle_block0"), "middle_attention")
        x = self.block(x, condition, "middle_block1")
        for i, skip in enumerate([second, first]):
            x = self.block(np.concatenate([x, skip], -1), condition, f"up_block{i}")
            x = self.attend(x, f"up_block{i}_attention")
        return x_t + self.conv(swish(self.norm(x, self.params["norm_out"])), self.params["conv_out"])


def swish(x):
    return x * expit(x)


@pytest.fixture(scope="module")
def tiny():
    """TINY compiled once: (variables, x_t, t) -> output."""
    return quick(TINY.apply)


def test_output_agrees_with_the_sums_in_float64(tiny):
    variables = drawn(TINY)
    got, wanted = tiny(variables, X, T), Float64(variables["params"])(X, T)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    assert np.abs(wanted - X).max() > 0.5


@pytest.mark.parametrize(("blocks", "attention", "wanted"), [(32, False, 30_577_667), (2, True, 3_817_987)])
def test_the_number_of_parameters_is_the_sum_by_hand(blocks, attention, wanted):
    """F = 128 features, three channels and two Fourier features; the published code has 512 more, for an input of
    conditions that it keeps at zero."""
    F, C, N = 128, 3, blocks
    time = (F + 1) * 4 * F + (4 * F + 1) * 4 * F
    conv_in = 9 * C * (1 + 2 * 2) * F + F
    block = 2 * F + (9 * F * F + F) + 4 * F * F + 2 * F + (9 * F * F + F)
    up = 4 * F + (18 * F * F + F) + 4 * F * F + 2 * F + (9 * F * F + F) + (2 * F * F + F)
    attend = 2 * F + 4 * (F * F + F)
    attentions = 1 + (2 * N + 1) * attention
    out = 2 * F + 9 * F * C + C
    assert time + conv_in + (N + 2) * block + (N + 1) * up + attentions * attend + out == wanted
    module = VDM(num_blocks=blocks, attention=attention)
    assert sum(leaf.size for leaf in jax.tree.leaves(plan(module, jnp.zeros((1, 4, 4, 3))))) == wanted


def test_the_noise_is_taken_to_be_the_image_itself_at_initialisation(tiny):
    """eps_hat = x_t, which at the noisy end is right: what the last convolution adds starts at zero."""

    @quick
    def some(key):
        params = TINY.init(key, X, T)["params"]
        block = params["up_block0"]
        zero = [block["condition"], block["conv2"], params["middle_attention"]["out"], params["conv_out"]]
        return block["conv1"]["kernel"], zero

    kernel, zero = some(jax.random.key(5, impl="rbg"))
    np.testing.assert_allclose(np.std(kernel), (9 * 16) ** -0.5, rtol=0.05)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zero))
    variables = drawn(TINY)
    variables["params"]["conv_out"] = zero[-1]
    np.testing.assert_array_equal(tiny(variables, X, T), X)


def test_fourier_features_see_the_last_bit_of_a_pixel():
    """Neighbouring values of 256 are 1/127.5 apart: the highest frequency turns once in 1/128, the next in 1/64."""
    x = jnp.array([0.0, 1 / 512, 1 / 256, 3.0 + 1 / 512]).reshape(1, 1, 4, 1)
    got = quick(lambda x: fourier_features(x, (6, 7)))(x)[0, 0]
    half = np.sqrt(0.5)
    np.testing.assert_allclose(got[0], [0, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(got[1], [half, 1, half, 0], atol=1e-6)
    np.testing.assert_allclose(got[2], [1, 0, 0, -1], atol=1e-6)
    np.testing.assert_allclose(got[3], got[1], atol=1e-6)
    slope = quick(jax.grad(lambda x: fourier_features(x, (7,))[..., 0].sum()))(jnp.zeros((1, 1, 1, 1)))
    np.testing.assert_allclose(slope, 2 * np.pi * 128, rtol=1e-6)


def test_dropout_is_off_unless_training():
    module = dataclasses.replace(TINY, attention=False)
    weights = drawn(module)

    @quick
    def training(key):
        return module.apply(weights, X, T, train=True, rngs={"dropout": key})

    first, second = (training(jax.random.key(i, impl="rbg")) for i in (1, 2))
    assert np.array_equal(first, training(jax.random.key(1, impl="rbg")))
    assert np.abs(first - second).mean() > 1e-3


def test_remat_recomputes_every_block_and_changes_no_parameter():
    again = dataclasses.replace(TINY, remat="full")
    weights = drawn(again)
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, plan(TINY))
    assert len(re.findall(r"= (?:remat2?|checkpoint)\[", str(jax.make_jaxpr(again.apply)(weights, X, T)))) == 9


def test_a_config_builds_it_and_cannot_ask_it_for_a_variance():
    net = config_lib.VDM(features=64, num_blocks=2, attention=True, fourier=(5,), dropout=0.2, dtype="bfloat16")
    config = Config(net=net, data=Data(shape=(8, 8, 3)))
    wanted = VDM(features=64, num_blocks=2, attention=True, fourier=(5,), dropout=0.2, dtype=jnp.dtype("bfloat16"))
    assert nets.build(config) == wanted
    with pytest.raises(ValueError, match="vdm has no outputs to spare"):
        nets.build(dataclasses.replace(config, diffusion=Diffusion(variance="learned")))


@pytest.mark.parametrize(
    ("change", "labels", "message"),
    [
        ({}, [jnp.array([0, 1])], "labels were given, but VDM has no classes"),
        ({"features": 6}, [], "features: 6 channels can't be normalised in 4 groups"),
        ({"features": 5}, [], "features must be even and at least 4, got 5"),
        ({"num_blocks": 0}, [], "num_blocks must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, labels, message):
    module = dataclasses.replace(TINY, **change)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), X, T, *labels)
