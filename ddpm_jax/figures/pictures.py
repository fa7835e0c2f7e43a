"""Images to look at: batches in [-1, 1] become uint8 grids and strips, PNG files and GIFs.

NumPy in, NumPy out. Wherever float images in [-1, 1] are taken, uint8 pictures are too, and stay as they are.
"""

import io
import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm_jax import files

PAPER, INK = 255, 40
FONT_SIZE, LINE = 12, 16
"""Height in pixels of the letters, and of a line of them."""


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Round float images [..., H, W, C] in [-1, 1] to uint8: the inverse of k / 127.5 - 1 for every k = 0 .. 255.

    Values outside [-1, 1] are clipped.

    Raises:
        TypeError: for integers other than uint8, whose range nobody knows.
        ValueError: for NaN.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind in "iub":
        raise TypeError(f"images must be float in [-1, 1] or uint8, got {images.dtype}")
    images = images.astype(np.float32)
    if (count := int(np.isnan(images).sum())) > 0:
        raise ValueError(f"images must hold numbers, got NaN in {count} of {images.size} values")
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def grid(images: np.ndarray, *, columns: int | None = None, padding: int = 2, scale: int | None = None) -> np.ndarray:
    """Lay out images [N, H, W, C], C = 1 or 3, row by row as one uint8 picture [h, w, C].

    Args:
        images: float in [-1, 1] or uint8.
        columns: images in a row; None for a picture that is nearly square.
        padding: white pixels around every image.
        scale: each pixel becomes scale x scale; None enlarges small images to at least 32 pixels a side.
    """
    cells = _enlarge(_pictures(images, "images [N, H, W, C]", 4), scale, smallest=32)
    n, height, width, channels = cells.shape
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    across = min(n, columns or math.ceil(math.sqrt(n)))
    shape = (math.ceil(n / across) * (height + padding) + padding, across * (width + padding) + padding, channels)
    canvas = np.full(shape, PAPER, np.uint8)
    for i, cell in enumerate(cells):
        row, column = divmod(i, across)
        _paste(canvas, cell, padding + row * (height + padding), padding + column * (width + padding))
    return canvas


def strip(
    rows: np.ndarray,
    *,
    titles: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    padding: int = 4,
    scale: int | None = None,
) -> np.ndarray:
    """Lay out rows [R, N, H, W, C] of N frames each, C = 1 or 3, as one uint8 picture [h, w, C].

    Args:
        rows: float in [-1, 1] or uint8; say, x_t above and the prediction of x_0 below, at N steps.
        titles: N short texts above the frames, such as "t = 999". Columns widen where a text needs it.
        labels: R short texts to the left of the rows.
        padding: white pixels around every frame.
        scale: each pixel becomes scale x scale; None enlarges small frames to at least 48 pixels a side.
    """
    cells = _enlarge(_pictures(rows, "rows [R, N, H, W, C]", 5), scale, smallest=48)
    for name, texts, wanted in (("titles", titles, cells.shape[1]), ("labels", labels, cells.shape[0])):
        if texts is not None and len(texts) != wanted:
            raise ValueError(f"{name} must have {wanted} entries for rows of shape {rows.shape}, got {len(texts)}")
    return _strip(cells, titles or (), labels or (), padding, _widest(titles or ()))


def side_by_side(
    left: np.ndarray, right: np.ndarray, titles: Sequence[tuple[str, str]] | None = None, *, columns: int | None = None
) -> np.ndarray:
    """Frames uint8 [F, h, w, C] for `save_gif`, each a grid of left and one of right, both [F, N, H, W, C].

    `titles` has a pair for each frame, say ("x_t, t = 999", "prediction of x_0").
    """
    if np.shape(left) != np.shape(right) or np.ndim(left) != 5:
        raise ValueError(
            f"left and right must share one shape [F, N, H, W, C], got {np.shape(left)} and {np.shape(right)}"
        )
    titles = [("", "")] * len(left) if titles is None else titles
    if len(titles) != len(left):
        raise ValueError(f"titles must have {len(left)} entries, one for each frame, got {len(titles)}")
    width = _widest([text for pair in titles for text in pair])  # of the whole film: frames must not differ in size
    pairs = ([grid(a, columns=columns), grid(b, columns=columns)] for a, b in zip(left, right, strict=True))
    return np.stack(
        [_strip(np.stack(pair)[None], text, (), 4, width) for pair, text in zip(pairs, titles, strict=True)]
    )


def save_png(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write a picture, uint8 [H, W], [H, W, 1] or [H, W, 3], whole or not at all."""
    files.suffix(path, [".png"])
    encoded = io.BytesIO()
    _image(array, "array").save(encoded, format="PNG")
    files.write(path, encoded.getvalue())


def save_gif(path: str | os.PathLike, frames: np.ndarray, *, seconds: float = 4.0, hold_last: float = 1.0) -> None:
    """Write frames uint8 [F, H, W, C] as a GIF that loops for ever, whole or not at all.

    Args:
        seconds: how long the F frames take together.
        hold_last: how much longer the last frame stays, in seconds.
    """
    files.suffix(path, [".gif"])
    if len(frames) == 0:
        raise ValueError("frames must hold at least one frame, got none")
    if seconds < 0.02 * len(frames):
        # Browsers slow anything faster down to 0.1 s a frame.
        raise ValueError(f"seconds must be at least 0.02 a frame, got {seconds} for {len(frames)} frames")
    # GIF counts hundredths of a second: round the moments, not the durations, so that the sum is right.
    durations = np.diff(np.rint(np.linspace(0, 100 * seconds, len(frames) + 1))).astype(int) * 10
    durations[-1] += 10 * round(100 * hold_last)
    first, *rest = [_palette(_image(frame, "frames")) for frame in frames]
    encoded = io.BytesIO()
    first.save(
        encoded, format="GIF", save_all=True, append_images=rest, duration=durations.tolist(), loop=0, optimize=False
    )
    files.write(path, encoded.getvalue())


def _pictures(images: np.ndarray, wanted: str, ndim: int) -> np.ndarray:
    """Bytes of the wanted number of axes, none of them empty, with 1 or 3 channels."""
    if np.ndim(images) != ndim or np.shape(images)[-1] not in (1, 3) or np.size(images) == 0:
        raise ValueError(f"{wanted} must hold at least one image of 1 or 3 channels, got shape {np.shape(images)}")
    return to_bytes(images)


def _enlarge(cells: np.ndarray, scale: int | None, smallest: int) -> np.ndarray:
    """Repeat pixels of [..., H, W, C], without smoothing: the pixels are what one wants to see."""
    factor = math.ceil(smallest / min(cells.shape[-3:-1])) if scale is None else scale
    if factor < 1:
        raise ValueError(f"scale must be at least 1, got {factor}")
    return cells.repeat(factor, axis=-3).repeat(factor, axis=-2)


def _strip(cells: np.ndarray, titles: Sequence[str], labels: Sequence[str], padding: int, width: int) -> np.ndarray:
    """Cells [R, N, H, W, C] under their titles, in columns of at least the given width.

    Texts start where their frame does: centred, they would jump about in a GIF.
    """
    r, n, height, cell_width, channels = cells.shape
    across, down = max(cell_width, width) + padding, height + padding
    top = padding + (LINE if titles else 0)
    left = padding + (_widest(labels) + padding if labels else 0)
    canvas = np.full((top + r * down, left + n * across, channels), PAPER, np.uint8)
    for column, title in enumerate(titles):
        _paste(canvas, _text(title), padding // 2, left + column * across)
    for row, label in enumerate(labels):
        _paste(canvas, _text(label), top + row * down + (height - LINE) // 2, padding)
    for row, column in np.ndindex(r, n):
        _paste(canvas, cells[row, column], top + row * down, left + column * across)
    return canvas


def _paste(canvas: np.ndarray, picture: np.ndarray, top: int, left: int) -> None:
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture


def _text(words: str) -> np.ndarray:
    """A line of text, uint8 [LINE, w, 1]."""
    canvas = Image.new("L", (_widest([words]), LINE), PAPER)
    ImageDraw.Draw(canvas).text((0, 0), words, fill=INK, font=ImageFont.load_default(FONT_SIZE))
    return np.asarray(canvas)[..., None]


def _widest(texts: Sequence[str]) -> int:
    """Pixels that the longest of the texts takes."""
    font = ImageFont.load_default(FONT_SIZE)
    return math.ceil(max((font.getlength(text) for text in texts), default=0))


def _image(array: np.ndarray, argument: str) -> Image.Image:
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(f"{argument}: a picture is uint8 [H, W, 1 or 3], got {array.dtype} {array.shape}")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _palette(frame: Image.Image) -> Image.Image:
    """Gray stays exact; colours get the 256 that suit this frame best, dithered."""
    if frame.mode == "L":
        return frame
    return frame.quantize(palette=frame.quantize(), dither=Image.Dither.FLOYDSTEINBERG)
