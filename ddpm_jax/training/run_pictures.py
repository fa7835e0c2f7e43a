"""Pictures of a run's folder as a page takes them: as many as there is room for, and no larger."""

import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ddpm_jax import files
from ddpm_jax.figures.page import Frame

MOST_FRAMES, FILM_BYTES = 30, 1_600_000
"""Of a film on the page."""
SIDES = (640, 480, 320, 160)
"""Pixels that the longer side of a picture may have, the largest first that a film has room for."""
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow calls a broken file, and a missing one."""


def step(name: str) -> str:
    """The digits of a preview's name, "" for another file's."""
    found = re.fullmatch(r"step_(\d+)\.png", name)
    return found.group(1) if found else ""


def film(paths: Sequence[files.Place]) -> tuple[Frame, ...]:
    """Previews in order of step, evenly thinned and made smaller until they fit; what is no picture is left out."""
    newest, side = None, SIDES[0]
    for side in SIDES:
        newest = next(filter(None, (_frame(path, side, "") for path in reversed(paths))), None)
        if newest is None:
            return ()
        if len(newest.png) * min(len(paths), MOST_FRAMES // 2) <= FILM_BYTES:
            break
    if newest is None:
        return ()
    most = max(2, min(MOST_FRAMES, FILM_BYTES // len(newest.png)))
    chosen = [paths[i] for i in _even(len(paths), most)]
    return tuple(filter(None, (_frame(path, side, f"step {int(step(path.name)):,}") for path in chosen)))


def still(path: files.Place, *, side: int = SIDES[0]) -> tuple[Frame, ...]:
    """A single picture, called after its file; none if it isn't there or is no picture."""
    frame = _frame(path, side, path.name)
    return () if frame is None else (frame,)


def _bytes(path: files.Place) -> bytes:
    with files.local(path) as here:
        return here.read_bytes()


def _frame(path: files.Place, side: int, label: str) -> Frame | None:
    try:
        png = _bytes(path)
        with Image.open(io.BytesIO(png)) as opened:
            if opened.format == "PNG" and max(opened.size) <= side:
                opened.verify()
                return Frame(label=label, png=png, width=opened.width, height=opened.height)
            return _encoded(opened, side, label)
    except BROKEN:
        return None


def _encoded(image: Image.Image, side: int, label: str) -> Frame:
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.BOX)
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    return Frame(label=label, png=encoded.getvalue(), width=image.width, height=image.height)


def gif(path: files.Place) -> tuple[Frame, ...]:
    """The frames of a GIF, evenly thinned; none if it isn't there or is no picture."""
    try:
        with Image.open(io.BytesIO(_bytes(path))) as opened:
            total, found = getattr(opened, "n_frames", 1), []
            for i in _even(total, MOST_FRAMES):
                opened.seek(i)
                found.append(_encoded(_plain(opened), SIDES[0], f"frame {i + 1} of {total}"))
    except (*BROKEN, EOFError):
        return ()
    room = max(2, FILM_BYTES // max(len(frame.png) for frame in found))
    return tuple(found[i] for i in _even(len(found), room))


def _even(number: int, most: int) -> list[int]:
    """At most so many of 0 .. number - 1, the first and the last among them."""
    return np.unique(np.rint(np.linspace(0, number - 1, min(most, number))).astype(int)).tolist()


def _plain(image: Image.Image) -> Image.Image:
    """Without a palette; gray where it is gray."""
    colour = image.convert("RGB")
    pixels = np.asarray(colour)
    return colour.convert("L") if (pixels == pixels[..., :1]).all() else colour
