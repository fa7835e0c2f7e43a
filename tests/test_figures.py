"""Pictures: exact bytes, exact geometry, whole files."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import files
from ddpm_jax.figures import pictures


def _noise(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_to_bytes_inverts_the_scaling_for_all_256_values(dtype):
    k = np.arange(256)
    x = (k / 127.5 - 1).astype(dtype)
    np.testing.assert_array_equal(pictures.to_bytes(x), k)


def test_to_bytes_rounds_to_the_nearest_and_clips():
    x = np.array([-np.inf, -3.0, -1.0, 10.4 / 127.5 - 1, 10.6 / 127.5 - 1, 1.0, 1.5, np.inf])
    np.testing.assert_array_equal(pictures.to_bytes(x), [0, 0, 0, 10, 11, 255, 255, 255])


def test_to_bytes_reads_jax_arrays_and_bfloat16():
    np.testing.assert_array_equal(pictures.to_bytes(jnp.array([-1, 1], jnp.bfloat16)), [0, 255])


def test_to_bytes_leaves_bytes_as_they_are():
    k = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pictures.to_bytes(k), k)


def test_to_bytes_refuses_nan_and_unknown_integers():
    with pytest.raises(ValueError, match="NaN in 1 of 3 values"):
        pictures.to_bytes(np.array([0, np.nan, 1]))
    with pytest.raises(TypeError, match="got int64"):
        pictures.to_bytes(np.array([0, 255]))


def test_grid_pixel_by_pixel():
    images = np.array([10, 20, 30], np.uint8).reshape(3, 1, 1, 1)
    w = 255
    expected = [
        [w, w, w, w, w],
        [w, 10, w, 20, w],
        [w, w, w, w, w],
        [w, 30, w, w, w],
        [w, w, w, w, w],
    ]
    np.testing.assert_array_equal(pictures.grid(images, padding=1, scale=1)[..., 0], expected)


def test_grid_scale_repeats_pixels_in_both_directions():
    images = np.array([[1, 2], [3, 4]], np.uint8).reshape(1, 2, 2, 1)
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    np.testing.assert_array_equal(pictures.grid(images, padding=0, scale=2)[..., 0], expected)


@pytest.mark.parametrize(
    ("shape", "columns", "expected"),
    [
        ((64, 8, 8, 1), None, (8 * 34 + 2, 8 * 34 + 2, 1)),  # 8 pixels become 32
        ((5, 28, 28, 1), None, (2 * 58 + 2, 3 * 58 + 2, 1)),  # 28 become 56
        ((6, 40, 36, 3), 2, (3 * 42 + 2, 2 * 38 + 2, 3)),
        ((2, 32, 32, 3), 10, (36, 2 * 34 + 2, 3)),  # no empty columns
    ],
)
def test_grid_size(shape, columns, expected):
    assert pictures.grid(_noise(*shape), columns=columns).shape == expected


def test_grid_keeps_the_colours():
    image = np.array([250, 3, 90], np.uint8)
    picture = pictures.grid(image.reshape(1, 1, 1, 3), padding=1, scale=1)
    np.testing.assert_array_equal(picture[1, 1], image)


@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (4, 8, 8, 2), (8, 8, 1)])
def test_grid_refuses_what_is_no_batch_of_images(shape):
    with pytest.raises(ValueError, match=r"images \[N, H, W, C\]"):
        pictures.grid(np.zeros(shape))


def test_strip_without_texts_is_a_grid_of_rows():
    rows = _noise(2, 3, 4, 4, 3)
    expected = pictures.grid(rows.reshape(6, 4, 4, 3), columns=3, padding=4, scale=2)
    np.testing.assert_array_equal(pictures.strip(rows, padding=4, scale=2), expected)


def test_strip_texts_stand_above_and_left_of_unchanged_frames():
    rows = _noise(2, 3, 64, 64, 1)
    bare, full = pictures.strip(rows), pictures.strip(rows, titles=["t = 9", "t = 4", "t = 0"], labels=["x_t", "x_0"])
    top, left = full.shape[0] - bare.shape[0], full.shape[1] - bare.shape[1]
    assert top == pictures.LINE
    assert left > 0
    np.testing.assert_array_equal(full[top + 4 :, left + 4 :], bare[4:, 4:])
    assert full[:top].min() < 100, "titles in dark ink"
    assert full[top:, :left].min() < 100, "labels in dark ink"


def test_strip_widens_columns_for_long_titles():
    rows = _noise(1, 2, 8, 8, 1)
    assert pictures.strip(rows, titles=["a long title indeed", ""]).shape[1] > pictures.strip(rows).shape[1]


def test_strip_refuses_a_wrong_number_of_titles():
    with pytest.raises(ValueError, match="titles must have 3 entries"):
        pictures.strip(_noise(2, 3, 8, 8, 1), titles=["t = 0"])


def test_side_by_side_is_the_two_grids_in_frames_of_one_size():
    left, right = _noise(2, 4, 8, 8, 1), -_noise(2, 4, 8, 8, 1)
    film = pictures.side_by_side(left, right, [("t = 9", ""), ("a title that is longer than the grid", "")])
    a, b = pictures.grid(left[1]), pictures.grid(right[1])
    bottom = film[1, pictures.LINE + 4 :][: a.shape[0]]
    np.testing.assert_array_equal(bottom[:, 4 : 4 + a.shape[1]], a)
    second = 4 + (film.shape[2] - 4) // 2
    np.testing.assert_array_equal(bottom[:, second : second + b.shape[1]], b)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3)])
def test_png_comes_back_exactly(tmp_path, shape):
    picture = pictures.to_bytes(_noise(*shape))
    pictures.save_png(tmp_path / "new" / "folder" / "a.PNG", picture)
    with Image.open(tmp_path / "new" / "folder" / "a.PNG") as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(shape), picture)


def test_gif_has_its_frames_durations_and_loops_for_ever(tmp_path):
    frames = pictures.to_bytes(_noise(7, 12, 10, 1))
    pictures.save_gif(tmp_path / "a.gif", frames, seconds=0.5, hold_last=2)
    durations = []
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 7
        assert gif.info["loop"] == 0
        for i, frame in enumerate(frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
            np.testing.assert_array_equal(np.asarray(gif.convert("L")), frame[..., 0])
    assert set(durations[:-1]) <= {70, 80}
    assert sum(durations) == 2500


def test_gif_shows_colours_as_they_are(tmp_path):
    """Sixteen colours a frame fit a palette: each comes back but for the rounding of the palette's search."""
    frames = pictures.to_bytes(_noise(3, 4, 4, 3).repeat(8, axis=1).repeat(8, axis=2))
    pictures.save_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as gif:
        for i, frame in enumerate(frames):
            gif.seek(i)
            error = np.abs(np.asarray(gif.convert("RGB")).astype(int) - frame)
            assert error.max() <= 8


def test_gif_refuses_more_frames_than_browsers_show(tmp_path):
    with pytest.raises(ValueError, match=r"seconds must be at least 0\.02 a frame"):
        pictures.save_gif(tmp_path / "a.gif", np.zeros((100, 2, 2, 1), np.uint8), seconds=1)


def test_a_wrong_suffix_is_refused(tmp_path):
    picture = np.zeros((2, 2, 1), np.uint8)
    with pytest.raises(ValueError, match=r"must end in \.png"):
        pictures.save_png(tmp_path / "a.jpg", picture)
    with pytest.raises(ValueError, match=r"must end in \.gif"):
        pictures.save_gif(tmp_path / "a.png", picture[None])


def test_encoding_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.png"
    pictures.save_png(path, np.zeros((2, 2, 1), np.uint8))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="uint8"):
        pictures.save_png(path, np.zeros((2, 2, 1), np.float32))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writing_that_fails_leaves_no_temporary_file(tmp_path):
    (tmp_path / "a.png").mkdir()  # a folder in the way: the last move fails
    with pytest.raises(OSError, match=r"a\.png"):
        files.write(tmp_path / "a.png", b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
