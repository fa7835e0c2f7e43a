"""The U-Net: published sizes, what it does at initialisation, its options, its refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nets import UNet

SMALL = UNet(features=8, multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,), dropout=0.5, num_classes=3)
TINY = UNet(features=4, multipliers=(1,), num_res_blocks=1, attention_levels=(), dropout=0.5)
T = jnp.array([3.0, 700.0])
X = jax.random.normal(jax.random.key(7), (2, 8, 4, 3))


def count(module, shape) -> int:
    plan = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))
    return sum(leaf.size for leaf in jax.tree.leaves(plan))


def drawn(module):
    """Weights of which none is zero, so that every block has a say; drawn here, as compiling an init takes long."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = leaf.size**-0.5 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return (path[-1].key == "scale") + scale * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree.map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), X, T))


@pytest.fixture(scope="module")
def weights():
    return drawn(SMALL)


@pytest.fixture(scope="module")
def small():
    """SMALL compiled once: (variables, x_t, t, labels) -> output."""
    return jax.jit(SMALL.apply)


@pytest.fixture(scope="module")
def training():
    """SMALL with dropout, compiled once: (variables, key) -> output."""
    return jax.jit(lambda weights, key: SMALL.apply(weights, X, T, train=True, rngs={"dropout": key}))


@pytest.mark.parametrize(
    ("module", "shape", "wanted"),
    [
        (UNet(), (32, 32, 3), 35_746_307),
        (UNet(out_channels=6), (32, 32, 3), 35_749_766),
        (UNet(multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4,), dropout=0.0), (256, 256, 3), 113_673_219),
    ],
)
def test_published_networks_have_their_published_number_of_parameters(module, shape, wanted):
    """35.7M for CIFAR-10 and 114M for 256 x 256 (Ho et al. 2020, Appendix B); learned variances add three channels."""
    assert count(module, shape) == wanted


def test_the_output_is_exactly_zero_at_initialisation():
    output, variables = jax.jit(TINY.init_with_output)(jax.random.key(5, impl="rbg"), X, T)
    assert not np.any(output)
    assert np.any(variables["params"]["middle_block0"]["conv1"]["kernel"])


def test_every_weight_has_a_gradient(weights):
    """A parameter that nothing reads would have none; a shift of all keys is what softmax can't see."""
    grads = jax.jit(jax.grad(lambda w: (SMALL.apply(w, X, T, jnp.array([0, 1])) ** 2).sum()))(weights)["params"]
    for path, grad in jax.tree.leaves_with_path(grads):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.any(grad) or name.endswith("k/bias"), name


def test_dropout_is_off_unless_training(weights, small, training):
    calm = small(weights, X, T)
    first, second = (training(weights, jax.random.key(i, impl="rbg")) for i in (1, 2))
    assert np.array_equal(calm, small(weights, X, T))
    assert np.array_equal(first, training(weights, jax.random.key(1, impl="rbg")))
    assert min(np.abs(first - second).mean(), np.abs(first - calm).mean()) > 1e-3


def test_no_labels_means_the_null_class(weights, small):
    np.testing.assert_allclose(small(weights, X, T), small(weights, X, T, jnp.array([3, 3])), atol=1e-6)


def test_a_label_changes_its_own_image_only(weights, small):
    null, mixed = (small(weights, X, T, jnp.array(labels)) for labels in ([3, 3], [3, 1]))
    np.testing.assert_allclose(mixed[0], null[0], atol=1e-6)
    assert np.abs(mixed[1] - null[1]).max() > 1e-2


@pytest.mark.parametrize("features", [4, 8, 24, 64])
def test_no_width_is_blind_to_time(features):
    """A norm with one channel in each group would take the time embedding away again."""
    module = dataclasses.replace(TINY, features=features)
    weights, run = drawn(module), jax.jit(module.apply)
    assert np.abs(run(weights, X, T) - run(weights, X, T + 100))[0].max() > 1e-2


def test_bfloat16_computes_near_float32_and_keeps_float32_outside(weights, small):
    """Eight bits through a dozen layers: within 5 % of the output's size, and not float32 in disguise."""
    half = dataclasses.replace(SMALL, dtype=jnp.dtype("bfloat16"))
    plan = jax.eval_shape(half.init, jax.random.key(0), X, T)
    assert {leaf.dtype for leaf in jax.tree.leaves(plan)} == {jnp.dtype("float32")}
    got, wanted = jax.jit(half.apply)(weights, X, T), small(weights, X, T)
    assert got.dtype == jnp.float32
    assert 1e-5 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


def in_training(module):
    return lambda weights: (
        module.apply(weights, X, T, train=True, rngs={"dropout": jax.random.key(3, impl="rbg")}) ** 2
    ).sum()


def test_remat_changes_neither_loss_nor_gradients():
    """With dropout on: what is recomputed must drop the same units again."""
    weights, values = drawn(TINY), []
    for how in ("none", "full"):
        loss = in_training(dataclasses.replace(TINY, remat=how))
        values.append(jax.jit(jax.value_and_grad(loss))(weights))
    for plain, again in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-4, atol=1e-4)


def test_each_remat_keeps_less_for_the_backward_pass_than_the_one_before(weights):
    def kept(how):
        loss = in_training(dataclasses.replace(SMALL, remat=how))
        _, pull_back = jax.eval_shape(lambda weights: jax.vjp(loss, weights), weights)
        return sum(leaf.size for leaf in jax.tree.leaves(pull_back))

    everything, but_attention, products, inputs = map(kept, ("none", "attention", "products", "full"))
    assert everything > but_attention > products > inputs


def test_an_unknown_remat_is_refused():
    with pytest.raises(ValueError, match=r"--net.remat: there is no 'ful', did you mean 'full'"):
        drawn(dataclasses.replace(TINY, remat="ful"))


@pytest.mark.parametrize("change", [{"scale_shift_norm": True}, {"resblock_updown": True}, {"num_heads": 2}])
def test_options_change_the_output(change, weights, small):
    """Where an option leaves the weights' shapes alone, the same weights must give another output."""
    module = dataclasses.replace(SMALL, **change)
    own = drawn(module)
    same_shapes = jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, weights)
    assert same_shapes == ("num_heads" in change)
    y = jax.jit(module.apply)(weights if same_shapes else own, X, T)
    assert y.shape == X.shape
    assert np.isfinite(y).all()
    assert np.abs(y - small(weights, X, T)).max() > 1e-3


def test_forward_mode_agrees_with_reverse_mode():
    """<u, J v> = <J^T u, v>, with v in the images and in the weights; exact likelihoods need the left side."""
    weights = drawn(TINY)
    u, directions = jnp.sin(X), (jax.tree.map(jnp.cos, weights), jnp.cos(X))

    @jax.jit
    def both(weights):
        def function(weights, x):
            return TINY.apply(weights, x, T)

        _, y_dot = jax.jvp(function, (weights, X), directions)
        _, back = jax.vjp(function, weights, X)
        pairs = zip(jax.tree.leaves(back(u)), jax.tree.leaves(directions), strict=True)
        return jnp.vdot(u, y_dot), sum(jnp.vdot(a, b) for a, b in pairs)

    forward, reverse = both(weights)
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "args", "error", "message"),
    [
        ({}, (jnp.zeros((2, 8, 5, 3)), T), ValueError, r"H and W divisible by 2, got shape \(2, 8, 5, 3\)"),
        ({"features": 9}, (X, T), ValueError, "features must be even and at least 4, got 9"),
        ({"features": 2}, (X, T), ValueError, "features must be even and at least 4, got 2"),
        ({"num_heads": 3}, (X, T), ValueError, "num_heads must divide the 16 channels it attends over, got 3"),
        ({"attention_levels": (0, 2)}, (X, T), ValueError, r"attention_levels must lie in 0 .. 1, got \(0, 2\)"),
        ({"num_classes": 0}, (X, T, jnp.array([0, 1])), ValueError, "labels were given, .* num_classes=0"),
        ({}, (X, T[:1]), TypeError, r"t must be Float\[Array, 'B'\].* where B=2.*, got f32\[1\]"),
        ({}, (X, T[:, None]), TypeError, r"t must be Float\[Array, 'B'\].*, got f32\[2,1\]"),
        ({}, (X.astype(int), T), TypeError, r"x_t must be Float\[Array, 'B H W C'\].*, got i32\[2,8,4,3\]"),
        ({}, (X[0], T), TypeError, r"x_t must be Float\[Array, 'B H W C'\].*, got f32\[8,4,3\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, args, error, message):
    module = dataclasses.replace(SMALL, **change)
    with pytest.raises(error, match=message) as caught:
        jax.eval_shape(module.init, jax.random.key(0), *args)
    assert "\n" not in str(caught.value).split("\n-----")[0]  # JAX may add a note on its own traceback
