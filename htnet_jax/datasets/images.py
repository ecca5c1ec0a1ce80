"""One image file as pixels: upright, and undamaged as far as its decoder tells, or refused."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from htnet_jax import foreign

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF")
# A progressive JPEG of a thousand scans takes a thousand times as long; real ones have about ten.
_MOST_SCANS = 100
# Bits that cameras give; a clip whose values need fewer than its files have was not scaled up.
_DEPTHS = (8, 10, 12, 14, 16)
# What libjpeg, libtiff and libpng say of damaged data. They still give an image, so that nothing
# else tells. Other words, such as those about unknown tags, do not concern the pixels.
_DAMAGE = re.compile(
    r"Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|Invalid SOS|"
    r"TIFF_Error|CRC error"
)


def read_gray(path: Path, depth: int | None = None) -> np.ndarray:
    """An image as `(H, W)` uint8: colour is converted, alpha ignored, 16 bits become 8.

    Args:
        path: The file; what its EXIF data say of the orientation is obeyed.
        depth: Bits of the values in 16-bit images; None: as this image's values need.

    Raises:
        ValueError: No image, too large, truncated, damaged as far as its decoder tells, or brighter
            than its depth; the message leaves out the path.
    """
    import cv2  # here, because reading a built data set needs none

    image = _eight_bits(decode(path), depth)
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def read_colour(path: Path, depth: int | None = None) -> np.ndarray:
    """An image as `(H, W, 3)` uint8 RGB: gray becomes three equal channels, else as `read_gray`."""
    import cv2

    image = _eight_bits(decode(path), depth)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)


def decode(path: Path) -> np.ndarray:
    """An image as its file has it, upright: `(H, W)` or `(H, W, 3)` BGR, uint8 or uint16.

    Raises:
        ValueError: As `read_gray`.
    """
    import cv2

    try:
        data = foreign.read_bytes(path, foreign.MAX_IMAGE)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read ({foreign.reason(error)})") from error
    _check_header(data)
    # These flags, unlike "unchanged", turn the image as its EXIF data say.
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
    with complaints(_DAMAGE) as said:
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
        except cv2.error as error:
            raise ValueError(f"OpenCV refuses it ({error.err})") from error
    if said:
        what = said[0][_DAMAGE.search(said[0]).start() :]
        raise ValueError(f"damaged: the decoder says {what!r}")
    if image is None:
        raise ValueError("no image that OpenCV can read")
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"an image of {image.dtype} values; 8 or 16 bits are expected")
    return image


def depth_of(largest: int) -> int:
    """The bits that values of a 16-bit image need, of those that cameras give: 8, 10, ... 16."""
    return next(depth for depth in _DEPTHS if largest < 1 << depth)


def _eight_bits(image: np.ndarray, depth: int | None) -> np.ndarray:
    if image.dtype == np.uint8:
        if depth not in (None, 8, 16):
            raise ValueError(f"8 bits, but {depth} bits in the folder's other images")
        return image
    needed = depth_of(int(image.max()))
    if depth is not None and needed > depth:
        raise ValueError(f"values of {needed} bits, but {depth} bits in the folder's other images")
    return (image >> ((depth or needed) - 8)).astype(np.uint8)


def _check_header(data: bytes) -> None:
    """Raises a ValueError for what would take too much memory or time, or is no image."""
    from PIL import Image

    try:
        # Of odd metadata, which the pixels do not depend on.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=_FORMATS) as image,
        ):
            width, height = image.size
            is_clear = (
                image.format == "TIFF"
                and image.mode in ("RGBA", "LA", "PA")
                and image.getchannel("A").getextrema()[0] < 255
            )
    except Exception as error:  # the parsers of foreign headers raise anything
        if isinstance(error, Image.DecompressionBombError):
            raise ValueError(f"too large ({error})") from error
        raise ValueError("no image that OpenCV can read") from error
    try:
        foreign.check_size(3 * width * height, foreign.MAX_IMAGE)
    except ValueError as error:
        raise ValueError(f"{width}x{height} pixels take {error}") from error
    if is_clear:
        # The decoder multiplies the colours by it: what is clear becomes black.
        raise ValueError("a TIFF that is transparent in places; save it without an alpha channel")
    if data.startswith(b"\x89PNG"):
        _check_chunks(data)
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MOST_SCANS:
        raise ValueError(f"a JPEG of more than {_MOST_SCANS} scans")


def _check_chunks(data: bytes) -> None:
    """Raises a ValueError for a PNG whose chunks claim more than the file has: memory for 2 GiB."""
    place = 8
    while data[place + 4 : place + 8] != b"IEND":
        place += 12 + int.from_bytes(data[place : place + 4])
        if place + 12 > len(data):
            raise ValueError("no image that OpenCV can read: a PNG without its end")


_LOCK = threading.Lock()


@contextlib.contextmanager
def complaints(about: re.Pattern[str]) -> Iterator[list[str]]:
    """Collects what libraries in C write to standard error: often nothing else tells of damage.

    Args:
        about: Lines in which this is found are collected, once the context ends; others, perhaps
            of other threads, are passed on.
    """
    found: list[str] = []
    with _LOCK, tempfile.TemporaryFile() as file:
        try:
            before = os.dup(2)
        except OSError:
            before = None  # a process without standard error
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            os.close(2) if before is None else os.dup2(before, 2)
            file.seek(0)
            for line in file:
                text = line.decode(errors="backslashreplace").strip()
                if about.search(text):
                    found.append(text)
                elif before is not None:
                    os.write(before, line)
            if before is not None:
                os.close(before)
