"""Strict reading of RGB PNG pictures: what is not whole is an error, never half a picture."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

# The PNG signature, chunk layout and colour types: ISO/IEC 15948, sections 5 and 11.2.2.
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale with alpha", 6: "RGBA"}


def read_rgb_png(path: Path, size: int) -> np.ndarray:
    """Reads a `size` x `size` 8-bit RGB PNG.

    OpenCV fills the missing rest of a truncated file with grey and reports nothing, so the file's
    structure (end mark, checksums, a complete pixel stream) is checked before it is decoded.

    Args:
        path: The file.
        size: Width and height it must have, in pixels.

    Returns:
        `(size, size, 3)` uint8 in RGB order.

    Raises:
        ValueError: The file can't be read, is truncated or damaged, or has another size or colour
            format; the message says what is wrong and leaves out the path.
    """
    import cv2  # here, because reading a data set that is built already must not need it

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    _check(data, size)
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.shape != (size, size, 3) or picture.dtype != np.uint8:
        raise ValueError("damaged: it cannot be decoded")
    return np.ascontiguousarray(picture[..., ::-1])


def _check(data: bytes, size: int) -> None:
    """Raises a `ValueError` unless `data` is a complete size x size 8-bit RGB PNG."""
    if not data:
        raise ValueError("empty file")
    if not data.startswith(_SIGNATURE):
        raise ValueError("not a PNG file")
    pixels = bytearray()
    header = None
    kind = b""
    position = len(_SIGNATURE)
    while kind != b"IEND":
        if position + 8 > len(data):
            raise ValueError("truncated: the file ends before its end mark")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise ValueError("truncated: the file ends before its end mark")
        content = data[position + 8 : end]
        if zlib.crc32(kind + content) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError("damaged: a checksum does not match")
        if kind == b"IHDR" and length == 13:
            header = struct.unpack(">IIBBBBB", content)
        elif kind == b"IDAT":
            pixels += content
        position = end + 4
    if header is None:
        raise ValueError("damaged: it has no header")
    width, height, depth, colour = header[:4]
    if (width, height) != (size, size):
        raise ValueError(f"is {width}x{height} pixels, expected {size}x{size}")
    if (depth, colour) != (8, 2):
        found = _COLOUR_TYPES.get(colour, f"colour type {colour}")
        raise ValueError(f"is {depth}-bit {found}, expected 8-bit RGB")
    stream = zlib.decompressobj()
    try:
        unpacked = stream.decompress(bytes(pixels))
    except zlib.error as error:
        raise ValueError("damaged: its pixels cannot be decompressed") from error
    # A row is a filter byte and three bytes a pixel (interlaced pictures have more rows).
    if not stream.eof or len(unpacked) < size * (1 + 3 * size):
        raise ValueError("truncated: its pixel data are incomplete")
