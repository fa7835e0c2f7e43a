"""How parameters move: learning rate, clipping, averaging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.config import Optimizer
from ddpm_jax.training.state import average, fresh, learning_rate, make_optimizer


def test_learning_rate_warms_up_linearly_and_then_stays():
    rate = learning_rate(Optimizer(learning_rate=2e-4, warmup_steps=5000), 800_000)
    np.testing.assert_allclose([rate(t) for t in (0, 1, 2500, 5000, 799_999)], [0, 4e-8, 1e-4, 2e-4, 2e-4], atol=1e-10)


def test_cosine_decay_is_half_way_in_the_middle_and_zero_at_the_end():
    rate = learning_rate(Optimizer(learning_rate=1.0, warmup_steps=100, decay="cosine"), 1100)
    np.testing.assert_allclose([rate(t) for t in (100, 350, 600, 1100)], [1, (1 + 0.5**0.5) / 2, 0.5, 0], atol=1e-6)


def test_no_warm_up_starts_at_the_full_rate():
    assert learning_rate(Optimizer(learning_rate=0.5, warmup_steps=0), 10)(0) == 0.5


def first_move(settings, gradient):
    optimizer = make_optimizer(settings, 10)
    params = {"w": jnp.ones(3)}
    updates, _ = optimizer.update({"w": jnp.asarray(gradient)}, optimizer.init(params), params)
    return np.asarray(updates["w"])


def test_adam_moves_each_parameter_by_the_rate_first():
    moved = first_move(Optimizer(learning_rate=0.1, warmup_steps=0, clip_norm=0), [1.0, -2.0, 1e-3])
    np.testing.assert_allclose(moved, [-0.1, 0.1, -0.1], rtol=1e-4)


def test_adamw_shrinks_parameters_by_rate_times_decay():
    settings = Optimizer(name="adamw", learning_rate=0.1, weight_decay=0.5, warmup_steps=0)
    np.testing.assert_allclose(first_move(settings, [0.0, 0.0, 0.0]), [-0.05] * 3, rtol=1e-6)


def test_biases_and_the_noise_schedule_do_not_decay():
    optimizer = make_optimizer(Optimizer(name="adamw", learning_rate=0.1, weight_decay=0.5, warmup_steps=0), 10)
    trained = {"net": {"conv": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}, "noise": {"start": jnp.ones(1)}}
    moved, _ = optimizer.update(jax.tree.map(jnp.zeros_like, trained), optimizer.init(trained), trained)
    np.testing.assert_allclose(moved["net"]["conv"]["kernel"], [-0.05], rtol=1e-6)
    np.testing.assert_array_equal(moved["net"]["conv"]["bias"], [0])
    np.testing.assert_array_equal(moved["noise"]["start"], [0])


def test_gradient_is_clipped_by_its_global_norm():
    """With an eps far above the gradient Adam is linear in it: the first move is rate * gradient / eps."""
    settings = Optimizer(learning_rate=1.0, eps=1e6, warmup_steps=0, clip_norm=1.0)
    np.testing.assert_allclose(first_move(settings, [3.0, 0.0, 4.0]) * 1e6, [-0.6, 0, -0.8], rtol=1e-4)
    free = Optimizer(learning_rate=1.0, eps=1e6, warmup_steps=0, clip_norm=0)
    np.testing.assert_allclose(first_move(free, [3.0, 0.0, 4.0]) * 1e6, [-3, 0, -4], rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Optimizer(name="adm"), "--optimizer.name: there is no 'adm', did you mean 'adam'"),
        (Optimizer(decay="cosin"), "--optimizer.decay: there is no 'cosin', did you mean 'cosine'"),
        (Optimizer(weight_decay=0.1), "weight-decay 0.1 needs --optimizer.name adamw"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(settings, 10)


def test_average_follows_a_young_run_and_smooths_an_old_one():
    """After n equal pulls with decays d_i the distance left is their product, computed here in float64."""
    ema, decays = jnp.zeros(()), []
    for step in range(200):
        ema = average(ema, jnp.ones(()), jnp.asarray(step), 0.95)
        decays.append(min(0.95, (1 + step) / (10 + step)))
        np.testing.assert_allclose(1 - ema, np.prod(decays), rtol=1e-4, atol=1e-6)
    assert decays[0] == 0.1
    assert decays[-1] == 0.95


def test_average_starts_at_the_parameters_in_memory_of_its_own():
    params = {"w": jnp.arange(3.0)}
    state = fresh(params, make_optimizer(Optimizer(), 10))
    np.testing.assert_array_equal(state.ema["w"], params["w"])
    assert state.ema["w"].unsafe_buffer_pointer() != state.params["w"].unsafe_buffer_pointer()
    assert state.step == 0
    assert state.step.dtype == jnp.int32
    assert isinstance(state, type(jax.tree.map(lambda x: x, state)))
