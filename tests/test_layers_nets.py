"""Layers against the same sums written out in float64 NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nets import layers, remat

SIZES = [(3, 1), (5, 1), (7, 1), (1, 1), (3, 2), (5, 2)]
# One image at a time, two of four, one in all: what the kernel's gradient may have to do with a batch.
CHUNKS = [(3, 1, 3, 1), (3, 1, 4, 2 * 6 * 4 * 5), (5, 1, 5, 1), (7, 1, 1, 2**17)]


def padding(size: int, stride: int) -> tuple[int, int]:
    return (size // 2, size // 2) if stride == 1 else (0, size - stride)


def explicit(x, kernel, grad, stride):
    """Output, gradient for x and gradient for kernel of a convolution, tap by tap."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    size, (before, after) = kernel.shape[0], padding(kernel.shape[0], stride)
    padded = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    H, W = x.shape[1] // stride, x.shape[2] // stride
    y, x_grad, kernel_grad = np.zeros((x.shape[0], H, W, kernel.shape[3])), np.zeros_like(padded), np.zeros_like(kernel)
    grad = y if grad is None else np.asarray(grad, np.float64)
    for u in range(size):
        for v in range(size):
            seen = (slice(None), slice(u, u + H * stride, stride), slice(v, v + W * stride, stride))
            y += padded[seen] @ kernel[u, v]
            x_grad[seen] += grad @ kernel[u, v].T
            kernel_grad[u, v] = np.einsum("bhwc,bhwd->cd", padded[seen], grad)
    return y, x_grad[:, before : before + x.shape[1], before : before + x.shape[2]], kernel_grad


def drawn(size: int, stride: int = 1, batch: int = 3, dtype=jnp.float32):
    """x [batch, 6, 4, 5], kernel [size, size, 5, 2] and a gradient for their convolution."""
    keys = jax.random.split(jax.random.key(size), 3)
    shapes = (batch, 6, 4, 5), (size, size, 5, 2), (batch, 6 // stride, 4 // stride, 2)
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


@pytest.fixture(params=["xla", "products"])
def both_gradients(request, monkeypatch):
    """The test runs with either way to work out a kernel's gradient."""
    monkeypatch.setenv("DDPM_JAX_KERNEL_GRADIENT", request.param)


def with_gradients(x, kernel, grad, stride):
    y, back = jax.vjp(lambda x, kernel: layers.convolve(x, kernel, stride=stride), x, kernel)
    return y, *back(grad)


@pytest.mark.usefixtures("both_gradients")
@pytest.mark.parametrize(("size", "stride", "batch", "chunk"), [(*size, 3, 2**17) for size in SIZES] + CHUNKS)
def test_convolution_and_both_gradients_are_the_sums_written_out(size, stride, batch, chunk, monkeypatch):
    monkeypatch.setattr(layers, "_CHUNK", chunk)
    given = drawn(size, stride, batch)
    found = jax.jit(lambda *args: with_gradients(*args, stride))(*given)
    for got, wanted in zip(found, explicit(*given, stride), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.usefixtures("both_gradients")
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (7, 1), (1, 1), (3, 2)])
def test_convolution_in_bfloat16_is_right_to_its_eight_bits(size, stride, monkeypatch):
    """Rounding of the result is 2^-9 of it; chunks of one image add up in float32, so that they cost no more."""
    monkeypatch.setattr(layers, "_CHUNK", 1)
    given = drawn(size, stride, batch=7, dtype=jnp.bfloat16)
    for got, wanted in zip(
        jax.jit(lambda *a: with_gradients(*a, stride))(*given), explicit(*given, stride), strict=True
    ):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=0, atol=2**-8 * np.abs(wanted).max())


@pytest.mark.usefixtures("both_gradients")
@pytest.mark.parametrize(("size", "stride"), SIZES)
def test_convolution_has_forward_mode(size, stride):
    """It is bilinear: its derivative along (x', k') is conv(x', k) + conv(x, k')."""
    (x, kernel, _), (x_dot, kernel_dot, _) = drawn(size, stride), drawn(size + 100)[:1] + drawn(size)[1:]
    _, got = jax.jvp(lambda x, kernel: layers.convolve(x, kernel, stride=stride), (x, kernel), (x_dot, kernel_dot))
    wanted = explicit(x_dot, kernel, None, stride)[0] + explicit(x, kernel_dot, None, stride)[0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.usefixtures("both_gradients")
@pytest.mark.parametrize("size", [3, 5])
def test_the_kernel_gradient_can_itself_be_differentiated(size):
    """Being bilinear again, its derivative along x' is the same gradient with x' in place of x."""
    x, kernel, grad = drawn(size)
    x_dot = jnp.flip(x, 0)
    _, got = jax.jvp(lambda x: with_gradients(x, kernel, grad, 1)[2], (x,), (x_dot,))
    np.testing.assert_allclose(got, explicit(x_dot, kernel, grad, 1)[2], rtol=0, atol=1e-4)
    weights = jnp.cos(kernel)
    back = jax.grad(lambda x: jnp.vdot(weights, with_gradients(x, kernel, grad, 1)[2]))(x)
    np.testing.assert_allclose(back, explicit(x, weights, grad, 1)[1], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("both_gradients")
def test_gradients_for_each_image_come_from_vmap():
    x, kernel, grad = drawn(3)

    def alone(x, grad):
        return with_gradients(x[None], kernel, grad[None], 1)[2]

    got = jax.jit(jax.vmap(alone))(x, grad)
    wanted = [explicit(x[i : i + 1], kernel, grad[i : i + 1], 1)[2] for i in range(3)]
    np.testing.assert_allclose(got, np.stack(wanted), rtol=0, atol=1e-5)


def test_attention_is_softmax_written_out():
    q, k, v = (np.asarray(jax.random.normal(jax.random.key(i), (2, 5, 3, 4)), np.float64) for i in range(3))
    wanted = np.zeros_like(v)
    for b, n, h in np.ndindex(2, 5, 3):
        weights = np.exp([q[b, n, h] @ k[b, m, h] / 2 for m in range(5)])
        wanted[b, n, h] = weights @ v[b, :, h] / weights.sum()
    got = layers.attend(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_attention_survives_scores_that_overflow_exp():
    """Scores of 10,000 and 0: the first value is taken whole."""
    q = jnp.full((1, 2, 1, 1), 100.0)
    k, v = jnp.array([100.0, 0.0]).reshape(1, 2, 1, 1), jnp.array([3.0, 5.0]).reshape(1, 2, 1, 1)
    assert layers.attend(q, k, v).ravel().tolist() == [3.0, 3.0]


def test_time_embedding_is_sines_then_cosines_from_1_to_1_in_10_000():
    """Three frequencies over half - 1 = 2 gaps: 1, 1/100, 1/10,000."""
    angles = np.outer([0.0, 1.0, 999.0], [1.0, 1e-2, 1e-4])
    wanted = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(layers.embed_time(jnp.array([0.0, 1.0, 999.0]), 6), wanted, atol=1e-4)


def test_group_norm_of_bfloat16_keeps_float32_statistics():
    """1024 and 1032 are neighbours in bfloat16 and their squares are one number; their norm is still -1 and 1."""
    x = jnp.tile(jnp.array([1024.0, 1032.0], jnp.bfloat16), 32).reshape(1, 4, 4, 4)
    norm = layers.group_norm(2, epsilon=1e-6, dtype=jnp.dtype("bfloat16"), name="norm")
    variables = norm.init(jax.random.key(0), x)
    y = norm.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    assert set(np.unique(np.asarray(y, np.float32))) == {-1.0, 1.0}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_group_norm_and_its_first_and_second_derivatives_are_linens():
    """In float64, of channels whose means are a hundred times their deviations."""
    rng, double = np.random.default_rng(1), jnp.dtype("float64")
    x, v, w = rng.normal(size=(3, 2, 3, 5, 12))
    x = x + 100 * rng.normal(size=12)
    params = {"scale": rng.normal(size=12), "bias": np.arange(12.0)}
    ours = layers.group_norm(4, epsilon=1e-6, dtype=double, name="norm")
    linens = nn.GroupNorm(4, epsilon=1e-6, dtype=double, use_fast_variance=False)

    def told(norm):
        def along(x, params):
            return jax.jvp(lambda x: norm.apply({"params": params}, x), (x,), (v,))[1]

        return norm.apply({"params": params}, x), jax.grad(lambda *at: (w * along(*at)).sum(), (0, 1))(x, params)

    with jax.enable_x64(True):
        found, wanted = told(ours), told(linens)
    assert found[0].dtype == double
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), found, wanted)


def test_enlarge_doubles_each_pixel():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    wanted = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert layers.enlarge(x)[0, :, :, 0].tolist() == wanted


FORMS_OF_ENLARGED = [layers.convolve_enlarged, layers._in_phases, layers._spread_out]


def enlarged(x, kernel, grad):
    """Output and both gradients of the convolution of x with every pixel doubled, tap by tap."""
    doubled = np.asarray(x, np.float64).repeat(2, 1).repeat(2, 2)
    y, x_grad, kernel_grad = explicit(doubled, kernel, grad, 1)
    return y, x_grad.reshape(x.shape[0], x.shape[1], 2, x.shape[2], 2, -1).sum((2, 4)), kernel_grad


def drawn_enlarged(dtype=jnp.float32, rows=5, columns=4):
    keys = jax.random.split(jax.random.key(rows), 3)
    shapes = (3, rows, columns, 5), (3, 3, 5, 2), (3, 2 * rows, 2 * columns, 2)
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def enlarged_with_gradients(form, x, kernel, grad):
    y, back = jax.vjp(form, x, kernel)
    return y, *back(grad)


@pytest.mark.parametrize("form", FORMS_OF_ENLARGED)
@pytest.mark.parametrize(("rows", "columns"), [(5, 4), (1, 1), (1, 6)])
def test_convolution_of_an_enlarged_image_is_the_sums_written_out(form, rows, columns):
    given = drawn_enlarged(rows=rows, columns=columns)
    found = jax.jit(functools.partial(enlarged_with_gradients, form))(*given)
    for got, wanted in zip(found, enlarged(*given), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("form", FORMS_OF_ENLARGED)
def test_convolution_of_an_enlarged_image_in_bfloat16_is_right_to_its_eight_bits(form):
    """Weights come in float32, as layers keep them, and are rounded once they are added up: two roundings in all."""
    x, kernel, grad = drawn_enlarged(jnp.bfloat16)
    found = enlarged_with_gradients(form, x, kernel.astype(jnp.float32), grad)
    assert [a.dtype for a in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for got, wanted in zip(found, enlarged(x, kernel, grad), strict=True):
        np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=0, atol=2**-7 * np.abs(wanted).max())


def test_the_gradients_of_an_enlarging_convolution_can_be_differentiated():
    """It is bilinear, as its gradients are: a derivative along x' is the same with x' in place of x."""
    x, kernel, grad = drawn_enlarged()
    x_dot = jnp.flip(x, 0)
    got = jax.jvp(lambda x: enlarged_with_gradients(layers.convolve_enlarged, x, kernel, grad)[::2], (x,), (x_dot,))[1]
    for a, b in zip(got, enlarged(x_dot, kernel, grad)[::2], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_an_enlarged_image_is_convolved_with_a_kernel_of_nine_taps_alone():
    x, kernel, _ = drawn(5)
    with pytest.raises(ValueError, match=r"^kernel must be \[3, 3, C, D\], got shape \(5, 5, 5, 2\)$"):
        layers.convolve_enlarged(x, kernel)


@pytest.mark.usefixtures("both_gradients")
@pytest.mark.parametrize("convolution", [layers.convolve, layers.convolve_enlarged])
def test_remat_changes_no_gradient_and_by_products_works_fewer_convolutions_out_anew(convolution):
    x, kernel, _ = drawn(3)
    square = jnp.concatenate([kernel] * 3, axis=3)[..., :5]

    def gradients(policy):
        @functools.partial(jax.checkpoint, policy=policy)
        def block(x, kernel):
            return jnp.sin(convolution(jnp.sin(x), kernel))

        lowered = jax.jit(jax.grad(lambda *given: jnp.sin(block(*given)).sum(), (0, 1))).lower(x, square)
        return lowered.as_text().count("stablehlo.convolution"), lowered.compile()(x, square)

    (_, wanted), (few, kept), (many, anew) = map(
        gradients, [jax.checkpoint_policies.everything_saveable, remat._products, None]
    )
    assert few < many
    for got in (kept, anew):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, wanted)


def test_a_width_that_groups_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"^init_dim: 6 channels can't be normalised in 4 groups; use a multiple$"):
        layers.check_channels(6, 4, "init_dim")


def test_an_unknown_way_to_the_kernel_gradient_is_refused_with_those_there_are(monkeypatch):
    monkeypatch.setenv("DDPM_JAX_KERNEL_GRADIENT", "product")
    x, kernel, _ = drawn(3)
    with pytest.raises(ValueError, match="DDPM_JAX_KERNEL_GRADIENT: there is no 'product', did you mean 'products'"):
        layers.convolve(x, kernel)
