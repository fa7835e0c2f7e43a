"""Drawing in batches: the devices draw one while the one before is looked at; and drawing in bfloat16."""

import dataclasses
import io
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from ddpm_jax.cli import drawing
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Sampling
from ddpm_jax.diffusion import schedules
from ddpm_jax.sampling import loop, sample, sample_batch
from ddpm_jax.training import draw, run

KEY = jax.random.key(0)
SHORT = schedules.linear(20)
OPTIONS: dict[str, Any] = {"shape": (2, 2, 1), "num": 7, "batch_size": 3}


def slope(x_t, time):
    return 0.2 * x_t


@pytest.fixture
def happened(monkeypatch):
    """What the host did with batches, in order."""
    found = []
    begin, read = loop._begin, loop.to_host

    def noted_begin(*args, **options):
        found.append("start")
        return begin(*args, **options)

    def noted_read(tree):
        found.extend(["read"] if isinstance(tree, jax.Array) else [])  # the image, and not its path
        return read(tree)

    monkeypatch.setattr(loop, "_begin", noted_begin)
    monkeypatch.setattr(loop, "to_host", noted_read)
    return found


def test_a_batch_is_under_way_while_the_one_before_is_looked_at(happened):
    for images, _ in loop.sample_parts(KEY, slope, SHORT, **OPTIONS):
        happened.append(f"look at {len(images)}")
    assert happened == ["start", "start", "read", "look at 3", "start", "read", "look at 3", "read", "look at 1"]


def test_the_images_are_those_of_one_batch_and_of_one_loop():
    whole = sample(KEY, slope, SHORT, shape=(2, 2, 1), num=7, batch_size=7)
    parts = [images for images, _ in loop.sample_parts(KEY, slope, SHORT, **OPTIONS)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    levels = loop.way(SHORT, None, sampler=loop.ddpm())
    one, _ = sample_batch(KEY, jnp.arange(7), jax.tree_util.Partial(slope), levels, shape=(2, 2, 1))
    np.testing.assert_array_equal(one, whole)


def test_to_hear_of_steps_changes_no_image(monkeypatch):
    heard = []
    plain = sample(KEY, slope, SHORT, **OPTIONS)
    monkeypatch.setattr(loop, "REPORTS", 7)  # every third step, and the last
    np.testing.assert_array_equal(sample(KEY, slope, SHORT, **OPTIONS, on_step=heard.append), plain)
    assert heard == 3 * [3, 6, 9, 12, 15, 18, 20]


def test_the_loop_has_no_call_to_the_host_so_that_it_can_be_kept():
    """JAX leaves programs with callbacks out of its cache of compiled ones."""
    levels = loop.way(SHORT, None, sampler=loop.ddpm())
    carry = loop.begin(KEY, jnp.arange(3), levels, shape=(2, 2, 1), sampler=loop.ddpm(), x_T=None, frames=0)
    how = {"sampler": loop.ddpm(), "prediction": "eps", "clip": True, "conditions": None, "around": None}
    compiled: Any = loop._go_on
    lowered = compiled.lower(carry, 0, 20, jax.tree_util.Partial(slope), levels, **how)
    assert "callback" not in lowered.as_text()
    assert lowered.args_info[0][0][0].x.donated  # what it starts from, it works in


def test_an_npz_that_is_written_in_pieces_is_the_usual_one():
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 1), np.uint8)
    for labels in (None, np.arange(5)):
        packed = io.BytesIO()
        with drawing._npz(packed, 5, (2, 3, 1), labels) as pack:
            pack(images[:3].tobytes())
            pack(images[3:].tobytes())
        found = np.load(io.BytesIO(packed.getvalue()))
        assert set(found) == ({"images"} if labels is None else {"images", "labels"})
        np.testing.assert_array_equal(found["images"], images)
        if labels is not None:
            np.testing.assert_array_equal(found["labels"], labels)


@pytest.fixture(scope="module")
def tiny():
    config = load_preset(str(TINY))
    diffusion = dataclasses.replace(config.diffusion, objective="simple", variance="small")
    parts = run.build(dataclasses.replace(config, diffusion=diffusion), to_train=False)
    # The last convolution begins as zero: a network that says something is wanted.
    params = jax.tree.map(lambda x: x + 0.02, parts.init().ema)
    return parts, params


def test_batches_are_let_go_once_they_are_shown_or_written(tmp_path, tiny, monkeypatch):
    parts, params = tiny
    made, left, to_bytes = [], [], drawing.pictures.to_bytes

    def noted(drawn):
        left.append(sum(batch() is not None for batch in made))
        found = to_bytes(drawn)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(drawing.pictures, "to_bytes", noted)
    monkeypatch.setattr(drawing, "MOST_IN_GRID", 3)
    settings = dataclasses.replace(parts.config.sampling, sampler="ddim", steps=(2,))
    of = drawing.Drawing(parts=parts, params=params, settings=settings, seed=0, label=None, out=tmp_path / "grid.png")
    drawing.images(of, num=10, batch_size=2, singles=None, npz=tmp_path / "all.npz")
    assert len(left) == 6  # five batches, and the grid
    assert max(left) == 1  # the one before, which a name still stands for
    assert np.load(tmp_path / "all.npz")["images"].shape == (10, 8, 8, 1)


def test_in_bfloat16_kernels_are_rounded_once_and_x_t_stays_float32(tiny):
    own, params = tiny
    parts, rounded = draw.in_dtype(own, params, "bfloat16")
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(rounded), strict=True):
        assert after.dtype == (jnp.bfloat16 if before.ndim > 1 else jnp.float32)
    assert parts.config.net.dtype == "bfloat16"
    images = {}
    for dtype in ("", "float32", "bfloat16"):
        settings = Sampling(sampler="ddim", steps=(4,), dtype=dtype)
        images[dtype], _ = draw.draw(own, params, seed=0, num=2, settings=settings)
        assert images[dtype].dtype == np.float32
    np.testing.assert_array_equal(images[""], images["float32"])
    difference = np.abs(images["bfloat16"] - images["float32"])
    assert 0 < difference.mean() < 2**-5  # bfloat16 rounds to one part in 2^9


def test_a_dtype_that_there_isnt_is_refused_by_its_flag(tiny):
    with pytest.raises(ValueError, match="--dtype: there is no 'bfloat61', did you mean 'bfloat16'"):
        draw.way(tiny[0], Sampling(dtype="bfloat61"), under="--")
