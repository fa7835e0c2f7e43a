"""The U-Net of improved-diffusion and guided-diffusion: published sizes, its two channel orders, its refusals.

That its numbers are PyTorch's is in test_openai.py.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config as config_lib
from ddpm_jax import nets
from ddpm_jax.config import Config, Data, Diffusion
from ddpm_jax.nets import layers
from ddpm_jax.nets.adm import ADM

T = jnp.array([3.0, 700.0])
X = jax.random.normal(jax.random.key(7), (2, 4, 4, 3))
TINY = ADM(features=8, multipliers=(1,), num_res_blocks=1, attention_levels=(), num_heads=2, groups=4, dropout=0.5)
WITH_NULL = dataclasses.replace(TINY, num_classes=3, null_class=True)
# Compiling is nearly all that these tests do.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

LSUN = {"multipliers": (1, 1, 2, 2, 4, 4), "num_res_blocks": 2}
ADM64 = {"features": 192, "multipliers": (1, 2, 3, 4), "attention_levels": (1, 2, 3), "head_features": 64}
LARGE = {"features": 256, "num_res_blocks": 2, "resblock_updown": True}
ADM256 = LARGE | {"multipliers": (1, 1, 2, 2, 4, 4), "attention_levels": (3, 4, 5), "head_features": 64}
PUBLISHED = [
    ({}, 52_546_438),
    ({"multipliers": (1, 2, 3, 4), "attention_levels": (2, 3)}, 121_063_942),
    ({"features": 192, "multipliers": (1, 2, 3, 4), "attention_levels": (2, 3), "num_classes": 1000}, 273_049_350),
    (LSUN | {"attention_levels": (4,), "num_heads": 1, "scale_shift_norm": False}, 113_676_678),
    (ADM64 | {"resblock_updown": True, "num_classes": 1000, "qkv_by_head": False}, 295_904_454),
    (LARGE | {"multipliers": (1, 1, 2, 3, 4), "attention_levels": (2, 3, 4), "num_classes": 1000}, 421_529_606),
    (ADM256 | {"num_classes": 1000}, 553_838_086),
    (ADM256, 552_814_086),
    (
        ADM256 | {"multipliers": (0.5, 1, 1, 2, 2, 4, 4), "attention_levels": (4, 5, 6), "num_classes": 1000},
        558_997_638,
    ),
]
NAMES = ["cifar10", "imagenet64", "imagenet64_270m", "lsun256", "adm64", "adm128", "adm256", "adm256_plain", "adm512"]


def plan(module, x=X):
    return jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(len(x)))


def drawn(module):
    """Weights of which none is zero, so that every block has a say."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 0.3 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return (path[-1].key == "scale") + scale * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree.map_with_path(draw, plan(module))


@pytest.fixture(scope="module")
def run():
    """(module, variables, *args) -> output, compiled once for a module."""
    compiled = {}

    def call(module, *args):
        return compiled.setdefault(module, quick(module.apply))(*args)

    return call


@pytest.mark.parametrize(("fields", "wanted"), PUBLISHED, ids=NAMES)
def test_published_networks_have_their_published_number_of_parameters(fields, wanted):
    """Counted in the published PyTorch modules with six outputs: three for the variance."""
    smallest = jnp.zeros((1, 64, 64, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(plan(ADM(**fields), smallest))) == wanted


def test_it_starts_as_the_published_modules_do(run):
    """PyTorch's initialisation, uniform within 1 / sqrt(fan-in); the last convolution of each branch is zero."""

    @quick
    def some(key):
        params = TINY.init(key, X, T)["params"]
        last = [params["middle_block0"]["conv2"], params["middle_attention"]["out"], params["conv_out"]]
        return params["conv_in"], params["time2"], last

    conv, dense, last = some(jax.random.key(5, impl="rbg"))
    for layer, fan_in in ((conv, 27), (dense, 32)):
        assert 0.9 < np.abs(layer["kernel"]).max() * fan_in**0.5 <= 1
        assert 0.5 < np.abs(layer["bias"]).max() * fan_in**0.5 <= 1
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(last))
    weights = drawn(TINY)
    weights["params"]["conv_out"] = last[-1]
    output = run(TINY, weights, X, T)
    assert output.shape == (2, 4, 4, 6)
    assert not np.any(output)


def test_a_halving_convolution_sees_the_zeros_before_the_first_pixel():
    """PyTorch's padding=1: the first window of a row of six is (0, x0, x1), the last (x3, x4, x5)."""
    x = jnp.arange(1.0, 7.0).reshape(1, 6, 1, 1) * jnp.ones((1, 6, 6, 1))
    kernel = jnp.zeros((3, 3, 1, 1)).at[:, 1, 0, 0].set(jnp.array([1.0, 10.0, 100.0]))
    rows = layers.convolve(x, kernel, stride=2, pad_before=1)[0, :, 0, 0]
    np.testing.assert_array_equal(rows, [210, 432, 654])
    np.testing.assert_array_equal(layers.convolve(x, kernel, stride=2)[0, :, 0, 0], [321, 543, 65])


def test_time_is_embedded_cosines_first():
    """Frequencies 1, 10^-1, 10^-2, 10^-3: four of them stop one short of 1/10,000."""
    got = layers.embed_time_cosines_first(jnp.array([0.0, 500.0]), 8)
    angles = 500 * 10.0 ** -np.arange(4)
    np.testing.assert_allclose(got[0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(got[1], [*np.cos(angles), *np.sin(angles)], atol=5e-5)


def test_the_two_orders_of_the_projection_are_one_permutation_apart(run):
    """By head and then q, k, v: channel (head, part, d); the new order: (part, head, d)."""
    new_order = dataclasses.replace(TINY, qkv_by_head=False)
    weights = drawn(TINY)

    def permute(path, leaf):
        if path[-2].key != "qkv":
            return leaf
        return leaf.reshape(*leaf.shape[:-1], 2, 3, 4).swapaxes(-3, -2).reshape(leaf.shape)

    permuted = jax.tree.map_with_path(permute, weights)
    wanted = run(TINY, weights, X, T)
    np.testing.assert_allclose(run(new_order, permuted, X, T), wanted, atol=1e-5)
    assert np.abs(run(new_order, weights, X, T) - wanted).max() > 1e-2


def test_head_features_say_how_many_heads():
    """Two heads of eight channels and heads of four channels are one program."""
    by_width = dataclasses.replace(TINY, num_heads=7, head_features=4)
    programs = [str(jax.make_jaxpr(module.apply)(drawn(TINY), X, T)) for module in (by_width, TINY)]
    assert programs[0] == programs[1]


def test_a_label_changes_its_own_image_only(run):
    weights = drawn(WITH_NULL)
    one, other = (run(WITH_NULL, weights, X, T, jnp.array(labels)) for labels in ([2, 2], [2, 1]))
    np.testing.assert_allclose(other[0], one[0], atol=1e-6)
    assert np.abs(other[1] - one[1]).max() > 1e-2


def test_no_labels_means_the_null_class_where_there_is_one(run):
    weights = drawn(WITH_NULL)
    assert weights["params"]["classes"]["embedding"].shape == (4, 32)
    null = run(WITH_NULL, weights, X, T, jnp.array([3, 3]))
    np.testing.assert_allclose(run(WITH_NULL, weights, X, T), null, atol=1e-6)


def test_dropout_is_off_unless_training():
    weights = drawn(TINY)

    @quick
    def training(key):
        return TINY.apply(weights, X, T, train=True, rngs={"dropout": key})

    first, second = (training(jax.random.key(i, impl="rbg")) for i in (1, 2))
    assert np.array_equal(first, training(jax.random.key(1, impl="rbg")))
    assert np.abs(first - second).mean() > 1e-3


def test_bfloat16_computes_near_float32_and_keeps_float32_outside(run):
    weights, half = drawn(TINY), dataclasses.replace(TINY, dtype=jnp.dtype("bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(plan(half))} == {jnp.dtype("float32")}
    got, wanted = run(half, weights, X, T), run(TINY, weights, X, T)
    assert got.dtype == jnp.float32
    assert 1e-5 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


def test_remat_changes_neither_weights_nor_output(run):
    """Every block and every attention is recomputed: five and one."""
    weights, again = drawn(TINY), dataclasses.replace(TINY, remat="full")
    assert jax.tree.map(jnp.shape, plan(again)) == jax.tree.map(jnp.shape, plan(TINY))
    assert len(re.findall(r"= (?:remat2?|checkpoint)\[", str(jax.make_jaxpr(again.apply)(weights, X, T)))) == 6
    np.testing.assert_allclose(run(again, weights, X, T), run(TINY, weights, X, T), atol=1e-5)


@pytest.mark.parametrize(
    ("variance", "label_dropout", "outputs", "null"),
    [("learned_range", 0.0, 6, False), ("large", 0.1, 3, True)],
)
def test_a_config_says_how_many_outputs_and_whether_there_is_a_null_class(variance, label_dropout, outputs, null):
    net = config_lib.ADM(num_classes=10, label_dropout=label_dropout, multipliers=(0.5, 1.0), dtype="bfloat16")
    config = Config(net=net, data=Data(shape=(8, 8, 3)), diffusion=Diffusion(variance=variance))
    module = nets.build(config)
    assert isinstance(module, ADM)
    assert (module.out_channels, module.null_class, module.multipliers) == (outputs, null, (0.5, 1.0))
    assert module.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        ({"multipliers": (1, 1)}, (jnp.zeros((2, 8, 5, 3)), T), r"H and W divisible by 2, got shape \(2, 8, 5, 3\)"),
        ({"features": 9}, (X, T), "features must be even and at least 2, got 9"),
        ({"num_heads": 3}, (X, T), "num_heads must divide the 8 channels it attends over, got 3"),
        ({"num_heads": 0}, (X, T), "num_heads must divide the 8 channels it attends over, got 0"),
        ({"head_features": 3}, (X, T), "head_features must divide the 8 channels it attends over, got 3"),
        ({"groups": 32}, (X, T), r"multipliers\[0\]: 8 channels can't be normalised in 32 groups"),
        ({"multipliers": (0.25,)}, (X, T), r"multipliers\[0\]: 2 channels can't be normalised in 4 groups"),
        ({"attention_levels": (0, 2)}, (X, T), r"attention_levels must lie in 0 .. 0, got \(0, 2\)"),
        ({}, (X, T, jnp.array([0, 1])), "labels were given, .* num_classes=0"),
        ({"num_classes": 3}, (X, T), "labels must be given: .* 3 classes and without a null class"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, args, message):
    module = dataclasses.replace(TINY, **change)
    with pytest.raises(ValueError, match=message) as caught:
        jax.eval_shape(module.apply, {"params": {}}, *args)
    assert "\n" not in str(caught.value).split("\n-----")[0]
