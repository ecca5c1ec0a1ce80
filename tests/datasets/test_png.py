"""Strict PNG reading: whole images only."""

import struct
import zlib

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from htnet_jax.datasets import png

IMAGE = np.random.default_rng(0).integers(0, 256, (28, 28, 3)).astype(np.uint8)


def _encode(image):
    done, data = cv2.imencode(".png", image)
    assert done
    return data.tobytes()


def _chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def _png(header, pixels):
    return (b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels)) + _chunk(
        b"IEND", b""
    )


HEADER = struct.pack(">IIBBBBB", 28, 28, 8, 2, 0, 0, 0)
# 28 rows, each a filter byte 0 and 28 pixels (1, 2, 3).
ROWS = (b"\0" + bytes([1, 2, 3]) * 28) * 28


def test_reads_rgb_order(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(_png(HEADER, zlib.compress(ROWS)))
    image = png.read_rgb_png(path, 28)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.tile(np.uint8([1, 2, 3]), (28, 28, 1)))


def test_reads_every_pixel(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(_encode(IMAGE[..., ::-1]))
    np.testing.assert_array_equal(png.read_rgb_png(path, 28), IMAGE)


@hypothesis.given(st.data())
@hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None
)
def test_every_truncation_and_every_flipped_byte_is_found(tmp_path, data):
    whole = _encode(IMAGE)
    path = tmp_path / "a.png"
    position = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:position])
    with pytest.raises(ValueError, match=r"truncated|empty|not a PNG"):
        png.read_rgb_png(path, 28)
    flipped = bytearray(whole)
    flipped[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"truncated|damaged|not a PNG"):
        png.read_rgb_png(path, 28)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"GIF89a" + bytes(100), "not a PNG"),
        (_encode(IMAGE[:20]), "28x20 pixels, expected 28x28"),
        (_encode(IMAGE[..., 0]), "8-bit grayscale, expected 8-bit RGB"),
        (_encode(IMAGE.astype(np.uint16)), "16-bit RGB"),
        (_encode(np.dstack([IMAGE, IMAGE[..., :1]])), "RGBA"),
        (_png(HEADER, zlib.compress(ROWS)[:-8]), "truncated or damaged"),
        (_png(HEADER, b"no zlib stream"), "truncated or damaged"),
        (_png(HEADER, zlib.compress(ROWS[:-100])), "truncated or damaged"),
        (_png(b"short", zlib.compress(ROWS)), "truncated or damaged"),
    ],
)
def test_refuses(tmp_path, data, message):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        png.read_rgb_png(path, 28)


def test_refuses_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        png.read_rgb_png(tmp_path / "none.png", 28)
