"""Strict reading of RGB PNG images: an incomplete file is an error, never half an image."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np

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
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    if not data:
        raise ValueError("empty file")
    if not data.startswith(_SIGNATURE):
        raise ValueError("not a PNG file")
    if _END not in data:
        raise ValueError("truncated: the file ends before its end mark")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()  # the checksums
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:  # verifying used it up
            pixels = np.array(image)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"truncated or damaged ({error})") from error
    # Pillow converts other formats and tells nothing of it; the header does.
    width, height, depth, colour = struct.unpack_from(">IIBB", data, len(_SIGNATURE) + 8)
    if (width, height) != (size, size):
        raise ValueError(f"is {width}x{height} pixels, expected {size}x{size}")
    if (depth, colour) != (8, 2):
        found = _COLOUR_TYPES.get(colour, f"colour type {colour}")
        raise ValueError(f"is {depth}-bit {found}, expected 8-bit RGB")
    return pixels
