"""Guidance of a run by other runs: a small network, its earlier checkpoint and a classifier, from their folders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

import sample
from ddpm_jax import config as config_lib
from ddpm_jax import data, nets
from ddpm_jax.cli import drawing
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Classifier, Diffusion, Distill, Guidance, Sampling, UNet
from ddpm_jax.diffusion import schedules
from ddpm_jax.training import checkpoint, guided, report, run
from ddpm_jax.training import draw as draw_lib
from ddpm_jax.training.draw import draw
from ddpm_jax.training.loop import train

CONFIG = dataclasses.replace(
    load_preset(str(TINY)),
    net=UNet(features=4, multipliers=(1,), num_res_blocks=1, attention_levels=(), num_classes=10, dropout=0.0),
)
"""It says a variance, too."""
CLASSIFIER = dataclasses.replace(
    CONFIG,
    steps=4,
    diffusion=Diffusion(schedule="cosine", num_steps=50, objective="classifier"),
    net=Classifier(features=4, multipliers=(1,), num_res_blocks=1, attention_levels=(), num_classes=10, groups=4),
)
PLAIN = Sampling(sampler="ddim", steps=(4,))


def by(**guidance):
    return dataclasses.replace(PLAIN, guidance=Guidance(**guidance))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of a classifier, on another schedule than the network."""
    workdir = tmp_path_factory.mktemp("runs") / "classifier"
    train(CLASSIFIER, workdir)
    return workdir


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a run with checkpoints at 6 and 8, its parts and its state; weights drawn, not trained."""
    workdir, parts, rng = tmp_path_factory.mktemp("runs"), run.build(CONFIG), np.random.default_rng(0)
    config_lib.write(CONFIG, workdir / "config.json")
    with checkpoint.open_folder(workdir / "checkpoints", keep_last=2) as manager:
        for step in (6, 8):
            drawn = jax.tree.map(
                lambda leaf: jnp.asarray(rng.normal(0, leaf.size**-0.25, leaf.shape), jnp.float32),
                parts.abstract().params,
            )
            checkpoint.save(manager, dataclasses.replace(parts.start_from(drawn), step=jnp.int32(step)))
    return workdir, *run.load(workdir)


@pytest.fixture(scope="module")
def plainly(tiny):
    _, parts, state = tiny
    return draw(parts, state.ema, seed=0, num=2, settings=PLAIN)[0]


def test_a_classifiers_run_is_a_run_like_any_other_but_for_pictures(classifier):
    parts, state = run.load(classifier)
    assert int(state.step) == 4
    lines = report.read(classifier)
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["loss"] == pytest.approx(np.log(10), abs=0.1)  # its first step's is: all classes are as likely
    assert not list((classifier / "samples").glob("step_*"))
    with pytest.raises(ValueError, match=r"a classifier draws no images: give its folder to another run's sample.py"):
        draw(parts, state.ema, seed=0, num=1, settings=PLAIN)


def test_accuracy_is_the_share_of_the_right_class(classifier):
    """Of a classifier that says 3 to everything: the share of threes."""
    parts, state = run.load(classifier)
    blind = jax.tree.map(jnp.zeros_like, state.ema)
    blind["logits"]["bias"] = jnp.zeros(10).at[3].set(1.0)
    source = data.load(dataclasses.replace(CONFIG.data, split="test"))
    share = np.mean(np.asarray(source.labels[np.arange(297)]) == 3)
    np.testing.assert_allclose(guided.accuracy(parts, blind, source, np.array([0, 49])), [share] * 2, rtol=1e-5)


def test_without_guidance_the_network_is_itself(tiny):
    """The same function of the same arrays: with a label nothing changes bit for bit."""
    _, parts, state = tiny
    own, led = nets.denoiser(parts.module, state.ema), guided.denoiser(parts, state.ema, Guidance())
    assert jax.tree.structure(own) == jax.tree.structure(led)
    assert all(a is b for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(led), strict=True))


def test_a_network_leads_nowhere_from_itself(tiny, plainly):
    workdir, parts, state = tiny
    drawn, _ = draw(parts, state.ema, seed=0, num=2, settings=by(autoguidance=f"{workdir}@8", autoguidance_weight=3.0))
    np.testing.assert_allclose(drawn, plainly, atol=1e-5)


def test_every_kind_of_guidance_is_a_flag_of_sample_py(tiny, classifier, monkeypatch):
    """A step alone is of the run itself."""
    workdir, seen = tiny[0], []
    monkeypatch.setattr(drawing, "images", lambda of, **_: seen.append(of.settings))
    flags = "--sampler ddim --steps 4 --frames 0 --guidance 3 --guidance-rescale 0.5 --guidance-interval 0.01 99 "
    flags += "--guidance-ramp linear --autoguidance 6 --autoguidance-weight 4 --classifier-weight 5"
    sample.main([str(workdir), *flags.split(), "--classifier", str(classifier)])
    settings = by(
        guidance=3.0,
        guidance_rescale=0.5,
        guidance_interval=(0.01, 99.0),
        guidance_ramp="linear",
        autoguidance=f"{workdir}@6",
        autoguidance_weight=4.0,
        classifier=str(classifier),
        classifier_weight=5.0,
    )
    assert seen == [settings]


def test_guided_images_are_drawn_by_class_and_number(tiny, plainly, classifier):
    """By all kinds together: other images, and the second of two is the second of any two."""
    workdir, parts, state = tiny
    settings = by(guidance=3.0, autoguidance=f"{workdir}@6", classifier=str(classifier), classifier_weight=5.0)
    drawn, _ = draw(parts, state.ema, seed=0, num=3, settings=settings, batch_size=2)
    again, _ = draw(parts, state.ema, seed=0, num=2, settings=settings, batch_size=2)
    np.testing.assert_array_equal(drawn[:2], again)
    assert np.abs(again - plainly).max() > 0.01


def test_each_kind_alone_moves_the_answer_its_own_way(tiny, classifier):
    """On one x_t; of two noise levels an interval holds one."""
    workdir, parts, state = tiny
    ends = tuple(np.exp(-0.5 * np.asarray(parts.schedule.log_snr)[[1, 20]]).tolist())
    settings = [
        Guidance(),
        Guidance(guidance=3.0),
        Guidance(autoguidance=f"{workdir}@6"),
        Guidance(classifier=str(classifier), classifier_weight=3.0),
        Guidance(guidance=3.0, guidance_interval=ends),
        Guidance(guidance=3.0, guidance_ramp="linear", guidance_interval=ends),
    ]
    led = [guided.denoiser(parts, state.ema, each) for each in settings]
    x, time = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), parts.schedule.times[jnp.array([10, 30])]
    answers = jax.jit(lambda led, x: [each(x, time, jnp.array([3, 9])) for each in led])(led, x)
    free, auto, classified, within, ramped = (np.asarray(answer - answers[0])[..., 0] for answer in answers[1:])
    assert min(np.abs(each).max() for each in (free, auto, classified)) > 1e-4
    assert min(np.abs(a - b).max() for a, b in ((free, auto), (free, classified), (auto, classified))) > 1e-4
    np.testing.assert_allclose(within, [free[0], 0 * free[1]], atol=1e-5)
    part = np.abs(ramped[0]).sum() / np.abs(free[0]).sum()
    sigma = np.exp(-0.5 * float(parts.schedule.log_snr[10]))
    assert part == pytest.approx(np.log(ends[1] / sigma) / np.log(ends[1] / ends[0]), rel=1e-3)
    assert np.abs(ramped[1]).max() == 0


def test_a_network_without_classes_draws_those_of_its_classifier(classifier):
    config = dataclasses.replace(CONFIG, net=dataclasses.replace(CONFIG.net, num_classes=0))
    parts = run.build(config, to_train=False)
    led = Guidance(classifier=str(classifier))
    np.testing.assert_array_equal(draw_lib.labels_of(parts, np.arange(12), None, led), np.arange(12) % 10)
    assert draw_lib.labels_of(parts, np.arange(12), None, Guidance()) is None
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), parts.abstract().ema)
    denoise = guided.denoiser(parts, params, led)
    said = jax.eval_shape(denoise, jnp.zeros((2, 8, 8, 1)), jnp.zeros(2), jnp.array([3, 9]))
    assert said.shape == (2, 8, 8, 2)
    with pytest.raises(ValueError, match=r"--guidance 2\.0 needs a network with classes"):
        guided.denoiser(parts, None, Guidance(guidance=2.0))


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        ({"guidance": float("nan")}, "--sampling.guidance must be a finite number, got nan"),
        ({"guidance_rescale": 0.5}, r"--sampling.guidance-rescale 0.5 needs --sampling.guidance, got 1 \(none\)"),
        ({"guidance_rescale": 1.5}, r"--sampling.guidance-rescale must lie in \[0, 1\], got 1.5"),
        ({"guidance_interval": (1.0,)}, "--sampling.guidance-interval must be 0 <= LOW < HIGH, got 1.0"),
        ({"guidance_interval": (2.0, 1.0)}, "--sampling.guidance-interval must be 0 <= LOW < HIGH, got 2.0 1.0"),
        (
            {"guidance_interval": (0.0, 1.0), "guidance_ramp": "linear"},
            "0 < LOW < HIGH, finite, for a ramp, got 0.0 1.0",
        ),
        ({"guidance_ramp": "liner"}, "--sampling.guidance-ramp: there is no 'liner', did you mean 'linear'"),
        ({"guidance_interval": (1.0, 2.0)}, "-interval 1.0 2.0 has no part without --sampling.guidance$"),
        ({"guidance_ramp": "linear"}, "--sampling.guidance-ramp linear has no part without --sampling.guidance$"),
        ({"classifier_weight": 3.0}, "--sampling.classifier-weight 3.0 has no part without --sampling.classifier$"),
        ({"autoguidance_weight": 3.0}, "-weight 3.0 has no part without --sampling.autoguidance$"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_run(tiny, guidance, message):
    with pytest.raises(ValueError, match=message):
        draw_lib.way(tiny[1], by(**guidance))


def test_runs_that_do_not_fit_are_refused(tiny, classifier, tmp_path):
    workdir, parts, state = tiny
    wrong = [
        (
            {"classifier": str(workdir)},
            ValueError,
            "--classifier must be the folder of a classifier's run, got one of a unet",
        ),
        ({"classifier": str(tmp_path)}, FileNotFoundError, "is no run's folder"),
        ({"autoguidance": str(classifier)}, ValueError, r"--autoguidance needs a network of .* \(classifier\)"),
        ({"autoguidance": f"{workdir}@5"}, FileNotFoundError, "5"),
        ({"autoguidance": "500"}, ValueError, "must be a run's folder or FOLDER@STEP, got 500: a step of which run"),
    ]
    for guidance, kind, message in wrong:
        with pytest.raises(kind, match=message):
            guided.denoiser(parts, state.ema, Guidance(**guidance))
    hidden = dataclasses.replace(CONFIG.net, label_dropout=0.0)
    never = dataclasses.replace(parts, config=dataclasses.replace(parts.config, net=hidden))
    with pytest.raises(ValueError, match=r"also trained without its class \(--net.label-dropout\), got one of 0"):
        guided.denoiser(never, state.ema, Guidance(guidance=2.0))
    with pytest.raises(ValueError, match="it takes no guidance"):
        sample.main([str(workdir), "--guidance", "2", "--interpolate", "1", "--steps", "4"])


def test_what_is_led_away_from_must_mean_the_same(tiny, monkeypatch):
    """A consistency function says another thing than a denoiser, and a mean is one of its own schedule."""
    _, parts, state = tiny
    other = parts
    monkeypatch.setattr(guided, "_newest", lambda folder: 8)
    monkeypatch.setattr(guided, "_read", lambda folder, step: (other, None))
    distilled = dataclasses.replace(parts.config, distill=Distill(method="consistency_training"))
    other = dataclasses.replace(parts, config=distilled)
    with pytest.raises(ValueError, match="--autoguidance of a consistency function needs another"):
        guided.denoiser(parts, state.ema, Guidance(autoguidance="other"))
    of_mean = dataclasses.replace(parts.config.diffusion, prediction="mean")
    parts = dataclasses.replace(parts, config=dataclasses.replace(parts.config, diffusion=of_mean))
    other = dataclasses.replace(parts, schedule=schedules.cosine(40))
    with pytest.raises(ValueError, match=r"of the mean needs another of the same --diffusion\.schedule"):
        guided.denoiser(parts, state.ema, Guidance(autoguidance="other"))


def test_a_network_that_enlarges_images_takes_no_guidance_in_any_program():
    config = dataclasses.replace(CONFIG, net=dataclasses.replace(CONFIG.net, enlarges=2, label_dropout=0.1))
    parts = run.build(config, to_train=False)
    with pytest.raises(ValueError, match="it takes no guidance"):
        draw_lib.way(parts, by(guidance=2.0))


def test_shapes_and_classes_must_be_the_networks(classifier):
    for change, message in (
        ({"data": dataclasses.replace(CONFIG.data, shape=(16, 16, 1))}, r"must take images of shape \(16, 16, 1\)"),
        ({"net": UNet(features=8, num_classes=3)}, "must have the network's 3 classes, got one of 10"),
    ):
        parts = run.build(dataclasses.replace(CONFIG, **change), to_train=False)
        with pytest.raises(ValueError, match=message):
            guided.denoiser(parts, {}, Guidance(classifier=str(classifier)))
