"""Strict reading of RGB PNG images: an incomplete file is an error, never half an image."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np

from htnet_jax import foreign

# Signature, end chunk, and the colour types of the header: ISO/IEC 15948, sections 5.2 and 11.2.
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_COLOUR_TYPES = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale with alpha", 6: "RGBA"}


def read_rgb_png(path: Path, size: int) -> np.ndarray:
    """Reads a `size` x `size` 8-bit RGB PNG; checksums and the end mark are verified.

    Returns:
        `(size, size, 3)` uint8 in RGB order.

    Raises:
        ValueError: The file can't be read, is truncated or damaged, or has another size or colour
            format; the message says what is wrong and leaves out the path.
    """
    from PIL import Image

    try:
        data = foreign.read_bytes(path, foreign.MAX_IMAGE)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read ({foreign.reason(error)})") from error
    if not data:
        raise ValueError("empty file")
    if not data.startswith(_SIGNATURE):
        raise ValueError("not a PNG file")
    if _END not in data:
        raise ValueError("truncated: the file ends before its end mark")
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise ValueError("truncated or damaged: it has no header")
    # Before memory is taken for the pixels. Pillow would convert other formats and say nothing.
    width, height, depth, colour = struct.unpack_from(">IIBB", data, len(_SIGNATURE) + 8)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()  # the checksums
        if (width, height) != (size, size):
            raise _Other(f"is {width}x{height} pixels, expected {size}x{size}")
        if (depth, colour) != (8, 2):
            found = _COLOUR_TYPES.get(colour, f"colour type {colour}")
            raise _Other(f"is {depth}-bit {found}, expected 8-bit RGB")
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:  # verifying used it up
            return np.array(image)
    except _Other:
        raise
    except Exception as error:  # the parsers of foreign data raise anything
        raise ValueError(f"truncated or damaged ({foreign.reason(error)})") from error


class _Other(ValueError):
    """A good image, but not one that is expected."""
