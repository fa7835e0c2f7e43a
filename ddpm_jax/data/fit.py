"""Bring a picture of any size and mode to the shape that the network trains on."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MODES = {1: "L", 3: "RGB"}
EIGHT_BIT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def check_channels(shape: tuple[int, int, int]) -> None:
    """Refuse a shape that no picture can be brought to.

    Raises:
        ValueError: if the channels of (H, W, C) are neither 1 (gray) nor 3 (RGB), or a side isn't positive.
    """
    if shape[2] not in MODES or min(shape) < 1:
        raise ValueError(f"--data.shape: pictures have 1 (gray) or 3 (RGB) channels and positive sides, got {shape}")


def fit(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Crop the centre to the shape's proportions and resize it: uint8 [H, W, C], C of 1 or 3.

    The largest centred window is kept, turned upright as its EXIF data says, transparency laid over white.
    A picture smaller than the shape is enlarged.

    Raises:
        ValueError: for a picture of more than 8 bits a channel, which a conversion would clip.
        OSError: if its file is broken.
    """
    height, width, channels = shape
    if image.mode not in EIGHT_BIT:
        raise ValueError(f"a picture must have 8 bits a channel, got Pillow mode {image.mode!r}")
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 for little; twice the target leaves the resampling filter its due.
    ample = 2 * max(height, width)
    image.draft(MODES[channels], (ample, ample))
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(MODES[channels])
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).reshape(shape)


def fit_file(file: Path | bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """`fit` for a JPEG or PNG, as a path or as the file's own bytes."""
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        return fit(image, shape)


def fit_array(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """`fit` for pixels uint8 [H, W], [H, W, 1] or [H, W, 3]; pixels of the right shape pass untouched."""
    if pixels.shape == shape:
        return pixels
    return fit(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels), shape)
