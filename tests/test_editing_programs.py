"""sample.py --edit: a picture for every task, and one line for what went wrong."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_programs import call, picture  # noqa: F401

from ddpm_jax.cli import edit_tasks, editing
from ddpm_jax.cli.drawing import Drawing
from ddpm_jax.cli.edit_flags import Editing
from ddpm_jax.cli.edit_tasks import mask_of
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Data, Sampling
from ddpm_jax.sampling import cascade
from ddpm_jax.sampling.loop import first_noise
from ddpm_jax.training import guided, run


def simple(x, time, told=None):
    """In place of a network, which would take its time to compile."""
    seen = 0.2 * told["low"] if isinstance(told, dict) else 0.0
    return 0.5 * x - seen + 0.1 * jnp.roll(x, 1, axis=1)


@pytest.fixture(autouse=True)
def network(monkeypatch, request):
    if "tiny_run" not in request.fixturenames:
        monkeypatch.setattr(guided, "denoiser", lambda *_: jax.tree_util.Partial(simple))


def untrained(out, *, data=None, **net):
    """What sample.py hands on."""
    config = load_preset(str(ROOT / "tests" / "presets" / "smallest.py"))
    config = dataclasses.replace(config, net=dataclasses.replace(config.net, **net), data=data or config.data)
    parts = run.build(config, devices=jax.devices()[:1], to_train=False)
    return Drawing(parts=parts, params={}, settings=Sampling(steps=(4,)), seed=0, label=None, out=out)


def columns_of(file, count):
    """The pictures in a strip of one row of `count` frames, 48 pixels each."""
    strip = picture(file)
    across = (strip.shape[1] - 4) // count
    return [strip[20:68, 4 + i * across : 52 + i * across] for i in range(count)]


def test_inpainting_shows_the_image_what_is_known_of_it_and_results_that_keep_that(call, tiny_run, tmp_path, capsys):  # noqa: F811
    status = call(
        "sample.py", tiny_run[0], "--edit", "inpaint", "--image", 3, "--mask", "right", "--versions", 2,
        "--jump", 2, "--resamples", 2, "--steps", 5, "--out", tmp_path / "a.png",
    )  # fmt: skip
    assert status == 0, capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a_inpaint.png"]
    image, known, first, second = columns_of(tmp_path / "a_inpaint.png", 4)
    for shown in (known, first, second):
        np.testing.assert_array_equal(shown[:, :24], image[:, :24])
    assert (known[:, 24:] == 128).all()
    assert (first != second).any()


@pytest.mark.parametrize(
    ("asked", "titles"),
    [
        (Editing(edit="superresolve", versions=1), 3),
        (Editing(edit="deblur", method="dps", versions=1, noise=0.1), 3),
        (Editing(edit="sdedit", strength=0.0, versions=1), 2),
        (Editing(edit="invert"), 3),
        (Editing(edit="interpolate", image=("0", "1")), 11),
    ],
)
def test_every_task_makes_its_picture_of_a_real_image(asked, titles, tmp_path):
    of = untrained(tmp_path / "x.png")
    editing.edit(of, asked)
    shown = columns_of(tmp_path / f"x_{asked.edit}.png", titles)
    assert shown[0].std() > 20
    if asked.edit == "sdedit":
        np.testing.assert_array_equal(shown[1], shown[0])


def test_an_image_of_ones_own_is_brought_to_the_networks_shape(tmp_path):
    Image.fromarray(np.full((30, 50, 3), (255, 0, 0), np.uint8)).save(tmp_path / "red.png")
    of = untrained(tmp_path / "x.png")
    images, labels = editing.read(of.parts, Editing(image=(str(tmp_path / "red.png"), "1")))
    assert images.shape == (2, 8, 8, 1)
    assert labels is None
    np.testing.assert_allclose(images[0], 2 * 76 / 255 - 1, atol=1e-6)  # the gray of red


def test_colours_are_found_for_three_channels_only(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "set.npy", rng.integers(0, 256, (4, 8, 8, 3), np.uint8))
    colours = Data(source="array", path=str(tmp_path / "set.npy"), shape=(8, 8, 3))
    of = untrained(tmp_path / "x.png", data=colours)
    editing.edit(of, Editing(edit="colourise", versions=1, image=("2",)))
    image, measured, result = columns_of(tmp_path / "x_colourise.png", 3)
    assert (measured[..., 0] == measured[..., 2]).all()
    np.testing.assert_allclose(measured[..., 0], image.mean(axis=-1), atol=1)
    assert (result[..., 0] != result[..., 2]).any()
    with pytest.raises(ValueError, match="--edit colourise needs a network of 3 channels, got one of 1"):
        editing.edit(untrained(tmp_path / "x.png"), Editing(edit="colourise"))


def test_a_cascade_enlarges_real_images_and_those_of_another_run(tmp_path, monkeypatch):
    of = untrained(tmp_path / "x.png", enlarges=2)
    editing.edit(of, Editing(edit="superresolve", versions=2))
    image, small, *_ = columns_of(tmp_path / "x_superresolve.png", 4)
    assert (small.reshape(4, 12, 4, 12) == small.reshape(4, 12, 4, 12)[:, :1, :, :1]).all()
    assert abs(small.mean() - image.mean()) < 2
    base = untrained(tmp_path / "base.png", data=Data(source="digits", shape=(4, 4, 1), shrink=2))
    monkeypatch.setattr(run, "load", lambda folder: (base.parts, SimpleNamespace(ema={})))
    editing.edit(of, Editing(edit="cascade", base=tmp_path, versions=3))
    assert picture(tmp_path / "x_cascade.png").shape[0] == 4 + 16 + 2 * 52
    monkeypatch.setattr(run, "load", lambda folder: (of.parts, SimpleNamespace(ema={})))
    with pytest.raises(ValueError, match=r"--base must draw images of shape \(4, 4, 1\), .* got one of \(8, 8, 1\)"):
        editing.edit(of, Editing(edit="cascade", base=tmp_path))
    with pytest.raises(ValueError, match="--edit must be superresolve or cascade for a network that enlarges"):
        editing.edit(of, Editing(edit="inpaint"))


def test_drawn_small_images_are_noised_by_other_noise_than_they_were_drawn_from(tmp_path, monkeypatch):
    of, noised, shown = untrained(tmp_path / "x.png", enlarges=2), [], cascade.shown
    base = untrained(tmp_path / "base.png", data=Data(source="digits", shape=(4, 4, 1), shrink=2))
    monkeypatch.setattr(run, "load", lambda folder: (base.parts, SimpleNamespace(ema={})))
    monkeypatch.setattr(edit_tasks, "draw", lambda *_, num, **__: (np.zeros((num, 4, 4, 1), np.float32), None))
    monkeypatch.setattr(cascade, "shown", lambda *given: (noised.append(given[3]), shown(*given))[1])
    editing.edit(of, Editing(edit="cascade", base=tmp_path, versions=3))
    drawn_from = first_noise(jax.random.key(of.seed), np.arange(3), (4, 4, 1), jnp.float32)
    assert not any(np.array_equal(a, b) for a in noised[0] for b in drawn_from)


@pytest.mark.parametrize(("strength", "times"), [(0.5, [9, 4, -1]), (1.0, [19, 14, 9, 4, -1]), (0.0, [-1])])
@pytest.mark.parametrize("sampler", ["ode", "ddim"])
def test_strength_is_a_part_of_the_way_of_a_sampler_that_finds_its_own_steps_too(
    strength, times, sampler, tmp_path, monkeypatch
):
    of, walked = untrained(tmp_path / "x.png"), []
    of = dataclasses.replace(of, settings=Sampling(sampler=sampler, steps=(4,), spacing="trailing"))
    monkeypatch.setattr(edit_tasks.editing, "sdedit", lambda *given, times, **_: (walked.extend(times), given[3])[1])
    editing.edit(of, Editing(edit="sdedit", strength=strength, versions=1))
    assert walked == times


@pytest.mark.parametrize("name", ["left", "right", "top", "bottom", "box", "surround"])
def test_masks_leave_half_of_a_side_or_its_quarter_unknown(name):
    known = mask_of(name, (8, 8, 1))
    assert known.shape == (8, 8, 1)
    assert (~known).mean() == {"box": 0.25, "surround": 0.75}.get(name, 0.5)
    corner, middle = known[0, 0, 0], known[4, 4, 0]
    assert (corner, middle) == {
        "left": (False, True), "right": (True, False), "top": (False, True), "bottom": (True, False),
        "box": (True, False), "surround": (False, True),
    }[name]  # fmt: skip


def test_a_mask_of_ones_own_is_white_where_to_paint(tmp_path):
    Image.fromarray(np.pad(np.full((16, 8), 255, np.uint8), ((0, 0), (0, 8)))).save(tmp_path / "m.png")
    np.testing.assert_array_equal(
        mask_of(str(tmp_path / "m.png"), (8, 8, 1))[..., 0], np.tile([False] * 4 + [True] * 4, (8, 1))
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"edit": "inpant"}, "--edit: there is no 'inpant', did you mean 'inpaint'?"),
        ({"edit": "inpaint", "mask": "botom"}, "--mask: there is no 'botom', did you mean 'bottom'?"),
        ({"edit": "inpaint", "mask": "no.png"}, "--mask: there is no file 'no.png'"),
        ({"edit": "inpaint", "method": "replac"}, "--method: there is no 'replac', did you mean 'replace'?"),
        ({"edit": "deblur", "method": "replace"}, "--method: there is no 'replace'"),
        ({"edit": "inpaint", "image": ("1500",)}, "--image must lie in 0 .. 1499 of the run's data, got 1500"),
        ({"edit": "inpaint", "image": ("no.png",)}, "--image: there is no file 'no.png'"),
        ({"edit": "inpaint", "versions": 0}, "--versions must be at least 1, got 0"),
        ({"edit": "inpaint", "image": ("\N{SUPERSCRIPT TWO}",)}, "--image: there is no file"),
        ({"edit": "inpaint", "noise": 0.1}, "--noise 0.1 has no part in --edit inpaint"),
        (
            {"edit": "deblur", "method": "pigdm", "scale": 2.0},
            "--scale 2.0 has no part in --edit deblur --method pigdm",
        ),
        ({"edit": "invert", "strength": 0.2}, "--strength 0.2 has no part in --edit invert"),
        ({"edit": "superresolve", "factor": 3}, "factor must divide the sides of the images, 8x8, got 3"),
        ({"edit": "deblur", "noise": -1.0}, "--noise must be 0 or more, got -1.0"),
        ({"edit": "sdedit", "strength": 2.0}, "--strength must lie in [0, 1], got 2.0"),
        ({"edit": "invert", "to_label": 3}, "--to-label must be one of the network's 0 classes, from 0, got 3"),
        ({"edit": "interpolate"}, "--edit interpolate takes pairs of images, got 1 with --image"),
        ({"edit": "cascade"}, "--edit cascade needs a run of --net.enlarges"),
    ],
)
def test_a_mistake_is_answered_with_the_way_out(asked, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        editing.edit(untrained(tmp_path / "x.png"), Editing(**asked))
    assert message in str(raised.value)
