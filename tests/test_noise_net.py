"""NoiseNet's own choices; that its numbers are the tutorial's is in test_interop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nets import noise_net
from ddpm_jax.nets.noise_net import NoiseNet

SETTINGS = {"channels": 1, "image_dim": 16, "init_dim": 16, "dim_mults": (1, 2, 4), "attn_resolutions": (8,)}
SMALL = NoiseNet(channels=2, image_dim=8, init_dim=8, dim_mults=(1, 2), attn_resolutions=(4,))
TINY = NoiseNet(channels=2, image_dim=8, init_dim=8, dim_mults=(2,), attn_resolutions=(8,))
T = jnp.array([3.0, 700.0])
X = jax.random.normal(jax.random.key(7), (2, 8, 4, 2))


def plan(module, shape):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))["params"]


def drawn(module):
    """Weights of any kind, drawn here, as compiling an init takes long."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: 1 / np.sqrt(np.prod(leaf.shape[:-1]) + 1) * rng.standard_normal(leaf.shape, np.float32),
        {"params": plan(module, X.shape[1:])},
    )


@pytest.fixture(scope="module")
def weights():
    return drawn(SMALL)


@pytest.fixture(scope="module")
def small():
    """SMALL compiled once: (variables, x_t, t) -> output."""
    return jax.jit(SMALL.apply)


def test_the_tutorials_network_has_its_number_of_parameters():
    leaves = jax.tree.leaves(plan(NoiseNet(**SETTINGS), (16, 16, 1)))
    assert sum(leaf.size for leaf in leaves) == 626_369


@pytest.mark.parametrize(
    ("resolutions", "levels"), [((16,), {1}), ((8,), {2}), ((16, 8), {1, 2}), ((24,), {0}), ((32,), set())]
)
def test_the_first_level_attends_where_init_dim_is_listed_the_others_by_resolution(resolutions, levels):
    """Levels 1 and 2 of images of 32 stand at 16 and 8, but level 0 goes by init_dim = 24, as the tutorial has it."""
    names = plan(
        NoiseNet(**{**SETTINGS, "image_dim": 32, "init_dim": 24, "attn_resolutions": resolutions}), (16, 16, 1)
    )
    found = {int(name[4]) for name in names if name.startswith("down") and name.endswith("attention")}
    assert found == levels == {int(name[2]) for name in names if name.startswith("up") and name.endswith("attention")}


def test_space_to_depth_counts_channel_then_row_then_column():
    """Pixels of channel c are 100 c + 10 row + column."""
    row, column, channel = np.meshgrid(range(4), range(2), range(2), indexing="ij")
    x = jnp.asarray(100.0 * channel + 10 * row + column)[None]
    assert noise_net._space_to_depth(x)[0].tolist() == [
        [[0, 1, 10, 11, 100, 101, 110, 111]],
        [[20, 21, 30, 31, 120, 121, 130, 131]],
    ]


def test_weights_begin_uniform_within_one_over_root_fan_in():
    """Fan-in of the 7x7 convolution is 49 * 2, of the first dense layer 8; a uniform's deviation is bound / sqrt(3)."""
    fan_ins = {"conv_in": 98, "time1": 8, "time2": 32}

    @jax.jit  # compiles no more than the three
    def begin(key):
        return {name: SMALL.init(key, X, T)["params"][name] for name in fan_ins}

    weights = begin(jax.random.key(0))
    for name, fan_in in fan_ins.items():
        kernel, bias = (np.asarray(weights[name][part]) for part in ("kernel", "bias"))
        assert max(np.abs(kernel).max(), np.abs(bias).max()) <= fan_in**-0.5
        assert abs(kernel.std() / (3 * fan_in) ** -0.5 - 1) < 0.15
        assert bias.std() > 0.3 * fan_in**-0.5


def test_training_is_the_same_program():
    weights = drawn(TINY)
    calm, busy = (
        jax.make_jaxpr(lambda w, train=train: TINY.apply(w, X, T, train=train))(weights) for train in (False, True)
    )
    assert calm.out_avals[0].shape == X.shape
    assert str(calm) == str(busy)


def test_bfloat16_computes_near_float32_and_keeps_float32_outside(weights, small):
    half = NoiseNet(2, 8, 8, (1, 2), (4,), dtype=jnp.dtype("bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(plan(half, (8, 8, 2)))} == {jnp.dtype("float32")}
    got, wanted = jax.jit(half.apply)(weights, X, T), small(weights, X, T)
    assert got.dtype == jnp.float32
    assert 1e-5 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


def test_every_weight_has_a_gradient():
    grads = jax.jit(jax.grad(lambda w: (TINY.apply(w, X, T) ** 2).sum()))(drawn(TINY))["params"]
    assert all(np.any(grad) for grad in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("module", "x_t", "t", "error", "message"),
    [
        (SMALL, X[:, :, :3], T, ValueError, r"H and W divisible by 2, got shape \(2, 8, 3, 2\)"),
        (SMALL, X[..., :1], T, ValueError, r"the network's 2 channels, got shape \(2, 8, 4, 1\)"),
        (NoiseNet(2, 8, 6, (1, 2), (4,)), X, T, ValueError, "init_dim and dim_mults: 6 channels .* 4 groups"),
        (SMALL, X, T[:1], TypeError, r"t must be Float\[Array, 'B'\].*, got f32\[1\]"),
        (SMALL, X.astype(int), T, TypeError, r"x_t must be Float\[Array, 'B H W C'\].*, got i32\[2,8,4,2\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(module, x_t, t, error, message):
    with pytest.raises(error, match=message) as caught:
        jax.eval_shape(module.init, jax.random.key(0), x_t, t)
    assert "\n" not in str(caught.value).split("\n-----")[0]  # JAX may add a note on its own traceback
