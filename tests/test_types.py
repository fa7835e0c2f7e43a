"""`checked` at the library's doors: one line that says what was wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.types import Images, PerImage, Pictures, RandomKey, Steps, checked, per_image


@checked
def scale(x: Images, by: PerImage) -> Images:
    """Scaled images."""
    return x * per_image(by, x)


@checked
def broken(x: Pictures) -> Pictures:
    return x[0]


@checked
def at(t: Steps, name: str = "eps") -> Steps:
    return t


@functools.partial(jax.jit, static_argnames="name")
@checked
def jitted(key: RandomKey, x: Images, *, name: str) -> Images:
    return x


IMAGES = jnp.zeros((3, 4, 4, 1))


def test_good_calls_pass_and_keep_name_and_docstring():
    assert scale(IMAGES, jnp.ones(3)).shape == IMAGES.shape
    assert (scale.__name__, scale.__doc__) == ("scale", "Scaled images.")
    assert jitted(jax.random.key(0), IMAGES, name="a").shape == IMAGES.shape
    assert at(jnp.arange(3)).dtype == jnp.int32
    assert at(jnp.zeros(3)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: scale(IMAGES, jnp.ones(2)), ["scale: by must be Float[Array, 'B']", "B=3", "got f32[2]"]),
        (
            lambda: scale(x=jnp.zeros((3, 2), int), by=jnp.ones(3)),
            ["scale: x must be Float[Array, 'B *D']", "i32[3,2]"],
        ),
        (lambda: scale(np.zeros((3, 2)), jnp.ones(3)), ["scale: x must be", "f64[3,2](numpy)"]),
        (lambda: scale([1.0], jnp.ones(3)), ["scale: x must be", "got [1.0]"]),
        (lambda: broken(IMAGES), ["broken: the result must be Float[Array, 'B H W C']", "got f32[4,4,1]"]),
        (lambda: at(jnp.zeros((3, 1))), ["at: t must be", "got f32[3,1]"]),
        (lambda: at(jnp.arange(3), name=None), ["at: name must be str", "got None"]),
        (lambda: jitted(jax.random.key(0), jnp.zeros(3, bool), name="a"), ["jitted: x must be", "got bool[3]"]),
        (lambda: jitted(jnp.zeros(2), IMAGES, name="a"), ["jitted: key must be Key[Array, '']", "got f32[2]"]),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(call, parts):
    with pytest.raises(TypeError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_errors_of_the_function_itself_pass_untouched():
    @checked
    def fails(x: Images) -> Images:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fails(IMAGES)


def test_the_check_runs_while_tracing_only():
    traces = []

    @jax.jit
    @checked
    def double(x: Images) -> Images:
        traces.append(x.shape)
        return 2 * x

    for _ in range(3):
        double(IMAGES)
    assert traces == [IMAGES.shape]


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 4, 4, 1)])
def test_per_image_lines_values_up_with_the_batch_axis(shape):
    got = per_image(jnp.arange(3.0), jnp.ones(shape)) * jnp.ones(shape)
    np.testing.assert_array_equal(got, np.broadcast_to(np.arange(3).reshape(3, *[1] * (len(shape) - 1)), shape))
