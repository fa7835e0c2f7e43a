"""The uncertainty of each noise level that is learned with the network (Karras et al. 2024)."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import nets
from ddpm_jax.config import Config, Diffusion, Optimizer, Run, Sampling
from ddpm_jax.diffusion import schedules, timesteps, uncertainty, weightings
from ddpm_jax.diffusion.loss import loss
from ddpm_jax.training import checkpoint, objective, run
from ddpm_jax.training.draw import draw
from ddpm_jax.training.loop import train
from ddpm_jax.training.state import fresh, make_optimizer

KEY = jax.random.key(0)
SCHEDULE = schedules.from_log_snr(lambda u: 9 - 18 * u, 100)
IMAGES = jax.random.normal(jax.random.key(1), (64, 4, 4, 1))
SOME = {"weights": 0.1 * jax.random.normal(jax.random.key(2), (uncertainty.FEATURES,))}


def k(log_snr):
    """From 1 down to 3e-5, all within the schedule."""
    return jax.nn.sigmoid(2 - log_snr) ** 1.5


def of_line(line, **options):
    """The terms of a network of two parameters."""
    options = {"weighting": k, "draw_t": timesteps.in_range(end=0.5)} | options
    return loss(KEY, SCHEDULE, lambda x_t, _: line["slope"] * x_t + line["offset"], IMAGES, **options)[1]


LINE = {"slope": jnp.float32(0.3), "offset": jnp.float32(-0.1)}


def test_u_is_linear_in_fourier_features_of_a_quarter_of_ln_sigma():
    log_snr = np.array([[9.2, 0.0], [-3.7, -40.0]])
    c = np.log(np.exp(-log_snr / 2)) / 4
    waves = np.cos(2 * np.pi * (np.float64(uncertainty._FREQUENCIES) * c[..., None] + uncertainty._PHASES))
    found = uncertainty.log_variance(SOME, jnp.asarray(log_snr, jnp.float32))
    np.testing.assert_allclose(found, np.sqrt(2) * waves @ np.float64(SOME["weights"]), atol=2e-5)


def test_u_is_finite_where_signal_or_noise_is_gone():
    ends = uncertainty.log_variance(SOME, jnp.array([jnp.inf, -jnp.inf]))
    np.testing.assert_array_equal(ends, uncertainty.log_variance(SOME, jnp.array([40.0, -40.0])))
    assert np.isfinite(ends).all()


def test_the_features_are_the_same_numbers_for_ever():
    """Checkpoints hold their weights only."""
    np.testing.assert_allclose(uncertainty._FREQUENCIES[[0, 1, 127]], [1.6680473, 0.7373477, 1.77777], rtol=1e-6)
    np.testing.assert_allclose(uncertainty._PHASES[[0, 1, 127]], [0.25531343, 0.87560225, 0.02355835], rtol=1e-6)


def test_it_begins_as_the_weighting_itself():
    begun = functools.partial(uncertainty.log_variance, uncertainty.init())
    chex.assert_trees_all_equal(of_line(LINE, uncertainty=begun), of_line(LINE))
    gradients = [jax.grad(lambda line, u=u: of_line(line, uncertainty=u).loss.mean())(LINE) for u in (begun, None)]
    chex.assert_trees_all_equal(*gradients)


@pytest.mark.parametrize("correct_draw", [True, False])
def test_an_image_counts_for_its_value_over_exp_u_and_u_itself(correct_draw):
    u = functools.partial(uncertainty.log_variance, SOME)
    plain, terms = (of_line(LINE, uncertainty=how, correct_draw=correct_draw) for how in (None, u))
    size = np.float64(u(SCHEDULE.log_snr[plain.t]))
    importance = np.float64(plain.loss / plain.objective)
    assert (np.ptp(importance) > 0.1) == correct_draw
    np.testing.assert_allclose(terms.loss, importance * (np.exp(-size) * plain.objective + size), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal(*(dataclasses.replace(x, loss=None) for x in (terms, plain)))


def test_the_gradient_of_each_image_is_divided_by_exp_u():
    u = functools.partial(uncertainty.log_variance, SOME)
    plain, scaled = (jax.jacrev(lambda line, how=how: of_line(line, uncertainty=how).loss)(LINE) for how in (None, u))
    factor = np.exp(-np.float64(u(SCHEDULE.log_snr[of_line(LINE).t])))
    assert np.ptp(factor) > 0.1
    for name in LINE:
        np.testing.assert_allclose(scaled[name], factor * plain[name], rtol=1e-4)


@pytest.fixture(scope="module")
def learned():
    """Parameters learned where E[value | lambda] is k(lambda): the network says 0, and the noise has variance 1."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1500))

    def of(parameters, key):
        u = functools.partial(uncertainty.log_variance, parameters)
        return loss(key, SCHEDULE, lambda x_t, _: 0 * x_t, IMAGES, weighting=k, uncertainty=u)[0]

    def step(carry, key):
        parameters, state = carry
        updates, state = optimizer.update(jax.grad(of)(parameters, key), state)
        return (optax.apply_updates(parameters, updates), state), None

    start = uncertainty.init()
    (parameters, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(KEY, 1500))
    return parameters


def test_exp_u_learns_the_mean_loss_of_each_noise_level(learned):
    """Minimizing exp(-u) v + u over u gives exp(u) = E[v], here k."""
    wanted = k(SCHEDULE.log_snr)
    assert wanted.max() > 1e4 * wanted.min()
    ratio = np.exp(uncertainty.log_variance(learned, SCHEDULE.log_snr)) / wanted
    np.testing.assert_allclose(ratio, 1, atol=0.06)
    assert np.abs(ratio - 1).mean() < 0.02


def test_the_weighting_left_over_is_flat_where_every_level_errs_alike(learned):
    found = weightings.effective(SCHEDULE, uncertainty.weighting(k, learned))
    flat = weightings.effective(SCHEDULE, weightings.simple)
    np.testing.assert_allclose(found.w, flat.w, rtol=0.07)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("hybrid", {"variance": "learned"}), ("vlb", {}), ("continuous", {"draw_t": "stratified"})],
)
def test_other_objectives_have_no_uncertainty(name, changes):
    with pytest.raises(ValueError, match=f"--diffusion.learn-uncertainty needs .* simple, got {name}"):
        objective.check(Diffusion(objective=name, learn_uncertainty=True, **changes))


def test_the_loss_takes_an_uncertainty_for_the_simple_objective_only():
    with pytest.raises(ValueError, match="uncertainty needs the objective simple, got vlb"):
        of_line(LINE, objective="vlb", uncertainty=jnp.zeros_like)


def test_a_weighting_of_zero_has_no_logarithm_to_learn():
    with pytest.raises(ValueError, match=r"--diffusion\.learn-uncertainty needs a weighting above 0 .* of 0 at t = 49"):
        objective.check_uncertainty(lambda log_snr: jnp.where(log_snr > 0, 1.0, 0.0), SCHEDULE)


def test_weight_decay_leaves_the_uncertainty_alone():
    optimizer = make_optimizer(Optimizer(name="adamw", learning_rate=0.1, weight_decay=0.5, warmup_steps=0), 10)
    trained = fresh({"kernel": jnp.ones(1)}, optimizer, uncertainty={"weights": jnp.ones(1)}).trained()
    moved, _ = optimizer.update(jax.tree.map(jnp.zeros_like, trained), optimizer.init(trained), trained)
    np.testing.assert_allclose(moved["net"]["kernel"], [-0.05], rtol=1e-6)
    np.testing.assert_array_equal(moved["uncertainty"]["weights"], [0])


def test_a_state_without_one_is_kept_as_it_was_before_there_were_any(tmp_path):
    """A checkpoint written with the fields and the optimizer's tree of then is read into a state of now."""
    params, optimizer = {"kernel": jnp.arange(3.0)}, make_optimizer(Optimizer(), 10)
    before = {"step": jnp.int32(4), "params": params, "ema": params}
    before["opt_state"] = optimizer.init({"net": params, "noise": ()})
    like = fresh(jax.tree.map(jnp.zeros_like, params), optimizer)
    assert checkpoint._filled(like).keys() == before.keys()
    chex.assert_trees_all_equal_structs(checkpoint._filled(like), before)
    with checkpoint.open_folder(tmp_path) as manager:
        manager.save(4, args=checkpoint.ocp.args.StandardSave(before))
        manager.wait_until_finished()
        found = checkpoint.restore(manager, like)
    assert found.uncertainty == ()
    chex.assert_trees_all_equal(checkpoint._filled(found), before)


class Slope:
    """A network of one parameter, as a Flax module is called."""

    def init(self, *_):
        return {"params": {"slope": jnp.float32(0.5)}}

    def apply(self, variables, x_t, *_, **__):
        return variables["params"]["slope"] * x_t


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that learns it, stopped at 2 of its 4 steps and gone on with; and one never stopped."""
    config = Config(
        steps=4,
        batch_size=8,
        diffusion=Diffusion(num_steps=40, weighting="min_snr", learn_uncertainty=True),
        optimizer=Optimizer(learning_rate=1e-2, warmup_steps=0),
        run=Run(log_every=1, checkpoint_every=2, num_samples=1, preview_steps=1),
    )
    folder = tmp_path_factory.mktemp("uncertain")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nets, "build", lambda _: Slope())
        train(dataclasses.replace(config, steps=2), folder / "stopped")
        yield config, folder, train(config, folder / "stopped"), train(config, folder / "whole")


def test_a_run_learns_it_and_is_resumed_bit_for_bit(runs):
    config, folder, stopped, whole = runs
    chex.assert_trees_all_equal(*jax.device_get((stopped, whole)))
    assert np.abs(whole.uncertainty["weights"]).min() > 0
    with pytest.raises(ValueError, match=r"diffusion\.learn_uncertainty: True -> False"):
        train(dataclasses.replace(config, diffusion=Diffusion(num_steps=40)), folder / "whole")


def test_a_run_that_learned_it_is_read_and_sampled_from_its_folder(runs):
    _, folder, _, whole = runs
    parts, state = run.load(folder / "whole")
    chex.assert_trees_all_equal(*jax.device_get((state, whole)))
    images, _ = draw(parts, state.ema, seed=0, num=1, settings=Sampling(steps=(2,)))
    assert np.isfinite(images).all()
