"""Images are read whole, upright and undamaged, or refused."""

import os
import re
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from htnet_jax import foreign
from htnet_jax.datasets import images, png
from htnet_jax.datasets.recording import open_frames
from htnet_jax.errors import UserError

GRADIENT = np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)


@pytest.mark.parametrize("suffix", images.SUFFIXES)
def test_gray_images_of_all_kinds(tmp_path, suffix):
    path = tmp_path / f"img1{suffix}"
    assert cv2.imwrite(str(path), GRADIENT)
    image = images.read_gray(path)
    assert image.dtype == np.uint8
    assert image.shape == (24, 32)
    error = np.abs(image.astype(int) - GRADIENT).max()
    assert error <= (4 if suffix in (".jpg", ".jpeg") else 0)


# Blue, green, red, and what the luma of ITU-R BT.601 gives.
BGR = (40, 120, 200)
LUMA = 0.114 * 40 + 0.587 * 120 + 0.299 * 200


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg"])
def test_colour_becomes_luma(tmp_path, suffix):
    path = tmp_path / f"img1{suffix}"
    assert cv2.imwrite(str(path), np.full((24, 32, 3), BGR, np.uint8))
    assert np.abs(images.read_gray(path) - LUMA).max() < (3 if suffix == ".jpg" else 1)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg"])
def test_colour_is_read_as_red_green_blue(tmp_path, suffix):
    path = tmp_path / f"img1{suffix}"
    assert cv2.imwrite(str(path), np.full((24, 32, 3), BGR, np.uint8))
    image = images.read_colour(path)
    assert image.shape == (24, 32, 3)
    assert image.dtype == np.uint8
    assert np.abs(image - np.array(BGR[::-1], int)).max() < (4 if suffix == ".jpg" else 1)
    # Gray files have it in all three.
    assert cv2.imwrite(str(path), GRADIENT)
    image = images.read_colour(path)
    for channel in range(3):
        np.testing.assert_array_equal(image[..., channel], images.read_gray(path))


def test_colour_with_alpha_or_sixteen_bits(tmp_path):
    path = tmp_path / "img1.png"
    assert cv2.imwrite(str(path), np.full((4, 4, 4), (*BGR, 0), np.uint8))
    np.testing.assert_array_equal(images.read_colour(path)[0, 0], BGR[::-1])
    assert cv2.imwrite(str(path), np.full((4, 4, 3), BGR, np.uint16) * 257)
    np.testing.assert_array_equal(images.read_colour(path)[0, 0], BGR[::-1])
    path.write_text("this is a text")
    with pytest.raises(ValueError, match="no image that OpenCV can read"):
        images.read_colour(path)


@pytest.mark.parametrize("alpha", [0, 255])
def test_alpha_is_ignored(tmp_path, alpha):
    path = tmp_path / "img1.png"
    assert cv2.imwrite(str(path), np.full((24, 32, 4), (*BGR, alpha), np.uint8))
    assert np.abs(images.read_gray(path) - LUMA).max() < 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_become_eight(tmp_path, suffix):
    path = tmp_path / f"img1{suffix}"
    assert cv2.imwrite(str(path), GRADIENT.astype(np.uint16) * 256 + 255)
    np.testing.assert_array_equal(images.read_gray(path), GRADIENT)
    assert cv2.imwrite(str(path), np.full((24, 32, 3), BGR, np.uint16) * 257)
    image = images.read_gray(path)
    assert image.dtype == np.uint8
    assert image.shape == (24, 32)
    assert np.abs(image - LUMA).max() < 1


def _png(width, height, depth, colour, rows):
    """A PNG that OpenCV can't write."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(rows)
    parts = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("depth", [8, 16])
def test_gray_with_alpha(tmp_path, depth):
    pixel = (b"\xc8" * (depth // 8)) + bytes(depth // 8)
    path = tmp_path / "img1.png"
    path.write_bytes(_png(4, 4, depth, 4, (b"\0" + pixel * 4) * 4))
    np.testing.assert_array_equal(images.read_gray(path), np.full((4, 4), 200, np.uint8))


def test_unreadable_images(tmp_path):
    text, empty, folder = (tmp_path / f"{name}1.jpg" for name in ("text", "empty", "folder"))
    text.write_text("this is a text")
    empty.write_bytes(b"")
    folder.mkdir()
    for path in (text, empty):
        with pytest.raises(ValueError, match="no image that OpenCV can read"):
            images.read_gray(path)
    for path in (folder, tmp_path / "missing1.jpg"):
        with pytest.raises(ValueError, match="cannot be read"):
            images.read_gray(path)
    floats = tmp_path / "floats1.tif"
    assert cv2.imwrite(str(floats), np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match="float32"):
        images.read_gray(floats)


def test_a_damaged_header_that_claims_a_huge_image(tmp_path):
    path = tmp_path / "img1.png"
    path.write_bytes(_png(200_000, 200_000, 8, 0, b"\0"))
    with pytest.raises(ValueError, match="too large"):
        images.read_gray(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_images_are_refused_and_not_half_read(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    data = cv2.imencode(suffix, noise)[1].tobytes()
    path = tmp_path / f"img1{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"no image that OpenCV can read|damaged: the"):
        images.read_gray(path)


# What damage does.

RANDOM = np.random.default_rng(0)
SMOOTH = cv2.GaussianBlur(RANDOM.integers(0, 256, (240, 320, 3), np.uint8), (0, 0), 4)
SMOOTH = cv2.normalize(SMOOTH, None, 0, 255, cv2.NORM_MINMAX)
KINDS = {
    "baseline": (".jpg", SMOOTH, []),
    "gray": (".jpg", SMOOTH[..., 0], [cv2.IMWRITE_JPEG_QUALITY, 75]),
    "progressive": (".jpg", SMOOTH, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    "restarts": (".jpg", SMOOTH, [cv2.IMWRITE_JPEG_RST_INTERVAL, 8]),
    "png": (".png", SMOOTH, []),
    "lzw": (".tif", SMOOTH, [cv2.IMWRITE_TIFF_COMPRESSION, 5]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images_are_refused(tmp_path, kind, capfd):
    suffix, image, options = KINDS[kind]
    data = cv2.imencode(suffix, image, options)[1].tobytes()
    path = tmp_path / f"1{suffix}"
    path.write_bytes(data)
    np.testing.assert_array_equal(
        images.decode(path), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    )
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(40):
        place = random.integers(len(data) // 4, len(data) - 302)
        path.write_bytes(data[:place] + random.bytes(300) + data[place + 300 :])
        try:
            images.decode(path)
        except ValueError:
            refused += 1
    assert refused >= 38
    # In the terminal nothing is left of the decoders' own words.
    assert "Corrupt" not in capfd.readouterr().err


def test_damage_is_named_and_other_words_of_decoders_are_passed_on(tmp_path, capfd):
    data = bytearray(cv2.imencode(".jpg", SMOOTH)[1])
    half = len(data) // 2
    data[half : half + 300] = np.random.default_rng(0).bytes(300)
    (tmp_path / "7.jpg").write_bytes(data)
    with pytest.raises(UserError, match=r"7\.jpg: damaged: the decoder says 'Corrupt JPEG data"):
        open_frames(tmp_path).read_gray(7)
    with images.complaints(re.compile("bad")) as said:
        os.write(2, b"something bad\nsomething else\n")
    assert said == ["something bad"]
    assert capfd.readouterr().err == "something else\n"


SMALL = SMOOTH[:24, :32]
GOOD = {
    suffix: cv2.imencode(suffix, SMALL, options)[1].tobytes()
    for suffix, options in ((".jpg", []), (".png", []), (".bmp", []), (".tif", []))
}


@settings(
    max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    suffix=st.sampled_from(sorted(GOOD)),
    places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    head=st.booleans(),
    cut=st.integers(0, 10**6),
)
def test_mutated_bytes_give_an_image_or_a_message(tmp_path, suffix, places, head, cut):
    data = bytearray(GOOD[suffix])
    for place, value in places:
        data[place % (64 if head else len(data))] = value
    path = tmp_path / f"1{suffix}"
    path.write_bytes(data[: cut % len(data)] if cut % 3 == 0 else data)
    for read in (images.read_gray, images.read_colour, lambda path: png.read_rgb_png(path, 24)):
        try:
            image = read(path)
        except ValueError as error:
            assert str(path) not in str(error)
        else:
            assert image.dtype == np.uint8


def test_nothing_but_regular_files_of_a_size_is_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "1.jpg")
    for path in (tmp_path / "1.jpg", tmp_path / ("x" * 300 + "1.jpg"), tmp_path):
        for read in (images.read_gray, lambda path: png.read_rgb_png(path, 24)):
            with pytest.raises(ValueError, match="cannot be read"):
                read(path)
    path = tmp_path / "2.png"
    assert cv2.imwrite(str(path), np.zeros((300, 300, 3), np.uint8))
    monkeypatch.setenv(foreign.LIMIT_VARIABLE, "100000")
    with pytest.raises(ValueError, match=r"300x300 pixels take 270,000 bytes, more than the 100,"):
        images.read_gray(path)
    # The header alone is looked at.
    path.write_bytes(_png(12_000, 12_000, 8, 2, b""))
    start = time.process_time()
    monkeypatch.delenv(foreign.LIMIT_VARIABLE)
    with pytest.raises(ValueError, match="12000x12000 pixels take"):
        images.read_gray(path)
    assert time.process_time() - start < 1


def test_a_png_that_claims_a_huge_chunk_is_refused_soon(tmp_path):
    data = cv2.imencode(".png", SMALL)[1].tobytes()
    place = data.index(b"IDAT") - 4
    for size in (b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"):
        (tmp_path / "1.png").write_bytes(data[:place] + size + data[place + 4 :])
        start = time.process_time()
        with pytest.raises(ValueError, match="no image that OpenCV can read"):
            images.read_gray(tmp_path / "1.png")
        assert time.process_time() - start < 0.5


def test_a_jpeg_of_endless_scans_is_refused(tmp_path):
    data = cv2.imencode(".jpg", SMALL, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    start = data.rindex(b"\xff\xda")
    (tmp_path / "1.jpg").write_bytes(data[:start] + data[start:-2] * 1000 + data[-2:])
    with pytest.raises(ValueError, match="more than 100 scans"):
        images.read_gray(tmp_path / "1.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_orientation_in_exif_data_is_obeyed(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    image = Image.fromarray(np.ascontiguousarray(SMOOTH[:40, :60]))
    for number in (1, 2):  # onset and apex
        image.save(tmp_path / f"{number}.{kind.lower()}", exif=exif)
    with Image.open(tmp_path / f"1.{kind.lower()}") as stored:
        upright = np.array(ImageOps.exif_transpose(stored))
    source = open_frames(tmp_path)
    assert upright.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    for number in (1, 2):
        np.testing.assert_array_equal(source.read(number), upright)
        assert source.read_gray(number).shape == upright.shape[:2]


# Bit depth.


def _clip(folder, depth, suffix=".png", frames=5):
    """Frames of 16 bits that hold values of `depth` bits, the last one brightest."""
    folder.mkdir()
    values = np.random.default_rng(depth).integers(0, 256, (frames, 24, 32), np.uint16)
    values[:, 0, 0] = [10 * (frame + 1) for frame in range(frames - 1)] + [255]
    for number, frame in enumerate(values, 1):
        stored = (np.minimum(frame, frame[0, 0]) << (depth - 8)) | ((1 << (depth - 8)) - 1)
        assert cv2.imwrite(str(folder / f"{number}{suffix}"), stored)
    return np.minimum(values, values[:, :1, :1])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_the_bits_of_a_clip_are_those_of_all_its_frames(tmp_path, depth, suffix):
    wanted = _clip(tmp_path / "clip", depth, suffix)
    source = open_frames(tmp_path / "clip")
    assert source.depth == depth
    for number, image in source:
        np.testing.assert_array_equal(image[..., 0], wanted[number - 1])
        np.testing.assert_array_equal(source.read_gray(number), wanted[number - 1])


def test_images_of_another_depth_are_refused(tmp_path):
    _clip(tmp_path / "clip", 12)
    assert cv2.imwrite(str(tmp_path / "clip" / "3.png"), GRADIENT)
    with pytest.raises(UserError, match=r"3\.png: 8 bits, but 12 bits in the folder's other"):
        open_frames(tmp_path / "clip").read_gray(3)
    assert cv2.imwrite(str(tmp_path / "clip" / "1.png"), GRADIENT)
    os.utime(tmp_path / "clip", ns=(1, 1))
    with pytest.raises(UserError, match=r"2\.png: values of 10 bits, but 8 bits in the folder's"):
        open_frames(tmp_path / "clip").read_gray(2)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparent_tiff_is_refused_as_it_would_turn_black(tmp_path, mode):
    gray = np.full((9, 8), 120, np.uint8)
    for alpha, name in ((255, "solid.tif"), (0, "clear.tif"), (128, "half.tif")):
        image = Image.fromarray(gray).convert(mode)
        image.putalpha(alpha)
        image.save(tmp_path / name)
    assert (images.read_gray(tmp_path / "solid.tif") == 120).all()
    for name in ("clear.tif", "half.tif"):
        with pytest.raises(ValueError, match="save it without an alpha channel"):
            images.read_gray(tmp_path / name)
