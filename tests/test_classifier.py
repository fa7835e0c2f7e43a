"""The classifier of noised images: what it answers, what it is taught, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from ddpm_jax import config as config_lib
from ddpm_jax import nets
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Run, UNet
from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.loss import classification
from ddpm_jax.diffusion.timesteps import Draw
from ddpm_jax.nets.classifier import Classifier
from ddpm_jax.training import run

SMALL = Classifier(
    num_classes=3, features=8, multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,), num_heads=2, dropout=0.5
)
X = jax.random.normal(jax.random.key(7), (3, 8, 4, 2))
T = jnp.array([3.0, 400.0, 700.0])
LABELS = jnp.array([2, 0, 1])
PRESET = load_preset(str(ROOT / "configs" / "digits_classifier.py"))


@pytest.fixture(scope="module")
def params():
    """Weights of which none is zero, so that every block has a say; drawn here, as compiling an init takes long."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = leaf.size**-0.5 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return (path[-1].key == "scale") + scale * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree.map_with_path(draw, jax.eval_shape(SMALL.init, jax.random.key(0), X, T)["params"])


@pytest.fixture(scope="module")
def answers(params):
    """logits, log p(labels | x_t), and the slope of the latter's sum, as functions of (x, t, labels)."""
    classify = nets.denoiser(SMALL, params)

    def all_three(x, t, labels):
        slope = jax.grad(lambda x: classify(x, t, labels).sum())
        return classify(x, t), classify(x, t, labels), slope(x)

    return jax.jit(all_three)


def test_it_answers_logits_or_the_log_probability_of_labels(answers):
    logits, log_p, _ = answers(X, T, LABELS)
    assert logits.shape == (3, 3)
    exact = np.float64(logits) - np.log(np.exp(np.float64(logits)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(log_p, exact[np.arange(3), np.asarray(LABELS)], rtol=1e-5)


def test_time_and_every_part_of_the_image_have_a_say_and_other_images_none(answers):
    logits, _, slope = answers(X, T, LABELS)
    assert np.abs(answers(X, T[::-1], LABELS)[0] - logits)[[0, 2]].min() > 1e-5
    assert (np.abs(slope) > 0).all()
    other, _, other_slope = answers(X.at[1].add(1.0), T, LABELS)
    np.testing.assert_allclose(other[0], logits[0], rtol=1e-5)
    np.testing.assert_allclose(other_slope[0], slope[0], rtol=1e-4, atol=1e-7)
    assert np.abs(other[1] - logits[1]).max() > 1e-3


def test_the_presets_network_is_as_large_as_its_docstring_says():
    params = run.build(PRESET).abstract().params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 153_226


def test_the_loss_is_the_cross_entropy_of_what_is_shown():
    """A classifier that knows p(c | x_t) of two points at -1 and 1: its mean loss at a t is the entropy left there."""
    schedule, n = schedules.linear(), 100_000
    labels = jnp.arange(n) % 2
    x_0 = (2.0 * labels - 1).reshape(n, 1)

    def log_prob(x_t, time):
        t = time.astype(int)
        alpha, sigma = schedule.sqrt_alpha_bars[t], schedule.sqrt_one_minus_alpha_bars[t]
        return jax.nn.log_sigmoid((2 * labels - 1) * 2 * alpha * x_t[:, 0] / sigma**2)

    here = Draw(quantiles=lambda key, size: jnp.full(size, 0.4005))
    value, terms = classification(jax.random.key(0), schedule, log_prob, x_0, draw_t=here)
    assert (terms.t == 400).all()
    alpha, sigma = float(schedule.sqrt_alpha_bars[400]), float(schedule.sqrt_one_minus_alpha_bars[400])
    x = np.linspace(-8, 8, 20001)
    seen = np.exp(-((x - alpha) ** 2) / (2 * sigma**2)) / np.sqrt(2 * np.pi) / sigma
    entropy = (seen * np.log1p(np.exp(-2 * alpha * x / sigma**2))).sum() * (x[1] - x[0])
    spread = float(np.std(terms.loss)) / np.sqrt(n)
    assert float(value) == pytest.approx(entropy, abs=4 * spread)
    assert 0.2 < entropy < 0.6
    assert 4 * spread < 0.01
    blind, terms = classification(jax.random.key(0), schedule, lambda x, time: jnp.full(len(x), -np.log(10)), x_0[:8])
    assert float(blind) == pytest.approx(np.log(10))
    np.testing.assert_allclose(terms.log_snr, schedule.log_snr[terms.t])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": UNet(features=8)}, "objective classifier goes with --net classifier, got classifier with unet"),
        ({"diffusion": config_lib.Diffusion()}, "goes with --net classifier, got simple with classifier"),
        ({"run": Run(bins=5)}, "--run.bins 5 sorts the error of eps, of which a classifier has none"),
        (
            {"diffusion": config_lib.Diffusion(objective="classifier", prediction="v")},
            "objective classifier predicts no image, got .'v', 'large'.",
        ),
        (
            {"diffusion": config_lib.Diffusion(objective="classifier", weighting="min_snr")},
            "weighting min_snr has no part in --diffusion.objective classifier",
        ),
        ({"net": dataclasses.replace(PRESET.net, num_classes=0)}, "--net.num-classes of at least 2, got 0"),
        ({"net": dataclasses.replace(PRESET.net, num_heads=5)}, "num_heads must divide the 64 channels"),
        ({"net": dataclasses.replace(PRESET.net, attention_levels=(2,))}, r"attention_levels must lie in 0 \.\. 1"),
        ({"net": dataclasses.replace(PRESET.net, features=5)}, "features must be even and at least 4, got 5"),
        ({"net": dataclasses.replace(PRESET.net, multipliers=(1,) * 5)}, "divisible by 16"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        run.build(dataclasses.replace(PRESET, **change))
