import struct
import zlib

import cv2
import numpy as np
import pytest

from htnet_jax.datasets import tree


def test_pictures_that_lead_out_of_their_folder_are_refused(tmp_path):
    root, folder = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    folder.mkdir()
    (folder / "img1.jpg").write_text("")
    (root / "img2.jpg").write_text("")
    (root / "img3.jpg").symlink_to("img2.jpg")
    assert list(tree.frames(root)) == [2, 3]
    clip = root / "clip"
    clip.mkdir()
    (clip / "img1.jpg").symlink_to(folder / "img1.jpg")
    with pytest.raises(ValueError, match=r"img1\.jpg is a link that leads out"):
        tree.frames(clip)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *[("img1.jpg", 1), ("reg_img46.jpg", 46), ("006_05562.jpg", 5562), ("00000.bmp", 0)],
        *[("reg_image559740.bmp", 559740), ("image034208.jpg", 34208), ("175.JPG", 175)],
        *[("Frame_000001823.jpg", 1823), ("reg_00007.bmp", 7), ("S01-07-001.jpg", 1)],
        *[("image12345678.bmp", 12345678), ("img46 - Copy.jpg", 46), ("a.b.3.png", 3)],
        *[("frame.jpg", None), (".jpg", None), ("img-5.jpg", 5), ("jpg", None), ("mp4.jpg", 4)],
    ],
)
def test_the_number_in_a_frame_s_name(name, number):
    assert tree.frame_number(name) == number


def test_frames_are_in_order_of_their_numbers(tmp_path):
    for number in (9, 10, 100, 99, 1, 11):
        (tmp_path / f"img{number}.jpg").write_text("")
    assert list(tree.frames(tmp_path)) == [1, 9, 10, 11, 99, 100]
    assert tree.frames(tmp_path)[100] == tmp_path / "img100.jpg"


def test_only_pictures_with_a_number_are_frames(tmp_path):
    for name in (
        *("img1.jpg", "._img1.jpg", ".DS_Store", "Thumbs.db", "notes2.txt", "film3.mp4"),
        *("cover.jpg", "img4.JPEG", "img5.Tiff", "img6.bmp", "img7.png", "img8.jpg.part"),
    ):
        (tmp_path / name).write_text("")
    assert list(tree.frames(tmp_path)) == [1, 4, 5, 6, 7]


@pytest.mark.parametrize("twin", ["img046.jpg", "img46.png", "img46 - Copy.jpg", "reg_img46.jpg"])
def test_two_pictures_with_one_number(tmp_path, twin):
    for name in ("img46.jpg", twin):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="have the same number") as caught:
        tree.frames(tmp_path)
    assert "img46.jpg" in str(caught.value)
    assert twin in str(caught.value)


def test_frames_that_come_and_go_are_noticed(tmp_path):
    (tmp_path / "img1.jpg").write_text("")
    assert list(tree.frames(tmp_path)) == [1]
    # A user mends the copy and builds again, from the same notebook.
    (tmp_path / "img2.jpg").write_text("")
    assert list(tree.frames(tmp_path)) == [1, 2]


GRADIENT = np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)


@pytest.mark.parametrize("suffix", tree.PICTURES)
def test_gray_pictures_of_all_kinds(tmp_path, suffix):
    path = tmp_path / f"img1{suffix}"
    assert cv2.imwrite(str(path), GRADIENT)
    picture = tree.read_gray(path)
    assert picture.dtype == np.uint8
    assert picture.shape == (24, 32)
    error = np.abs(picture.astype(int) - GRADIENT).max()
    assert error <= (4 if suffix in (".jpg", ".jpeg") else 0)


# Blue, green, red, and what the luma of ITU-R BT.601 gives.
BGR = (40, 120, 200)
LUMA = 0.114 * 40 + 0.587 * 120 + 0.299 * 200


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg"])
def test_colour_becomes_luma(tmp_path, suffix):
    path = tmp_path / f"img1{suffix}"
    assert cv2.imwrite(str(path), np.full((24, 32, 3), BGR, np.uint8))
    assert np.abs(tree.read_gray(path) - LUMA).max() < (3 if suffix == ".jpg" else 1)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg"])
def test_colour_is_read_as_red_green_blue(tmp_path, suffix):
    path = tmp_path / f"img1{suffix}"
    assert cv2.imwrite(str(path), np.full((24, 32, 3), BGR, np.uint8))
    picture = tree.read_colour(path)
    assert picture.shape == (24, 32, 3)
    assert picture.dtype == np.uint8
    assert np.abs(picture - np.array(BGR[::-1], int)).max() < (4 if suffix == ".jpg" else 1)
    # Gray files have it in all three.
    assert cv2.imwrite(str(path), GRADIENT)
    picture = tree.read_colour(path)
    for channel in range(3):
        np.testing.assert_array_equal(picture[..., channel], tree.read_gray(path))


def test_colour_with_alpha_or_sixteen_bits(tmp_path):
    path = tmp_path / "img1.png"
    assert cv2.imwrite(str(path), np.full((4, 4, 4), (*BGR, 0), np.uint8))
    np.testing.assert_array_equal(tree.read_colour(path)[0, 0], BGR[::-1])
    assert cv2.imwrite(str(path), np.full((4, 4, 3), BGR, np.uint16) * 257)
    np.testing.assert_array_equal(tree.read_colour(path)[0, 0], BGR[::-1])
    path.write_text("this is a text")
    with pytest.raises(ValueError, match="no picture that OpenCV can read"):
        tree.read_colour(path)


@pytest.mark.parametrize("alpha", [0, 255])
def test_alpha_is_ignored(tmp_path, alpha):
    path = tmp_path / "img1.png"
    assert cv2.imwrite(str(path), np.full((24, 32, 4), (*BGR, alpha), np.uint8))
    assert np.abs(tree.read_gray(path) - LUMA).max() < 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_become_eight(tmp_path, suffix):
    path = tmp_path / f"img1{suffix}"
    assert cv2.imwrite(str(path), GRADIENT.astype(np.uint16) * 256 + 255)
    np.testing.assert_array_equal(tree.read_gray(path), GRADIENT)
    assert cv2.imwrite(str(path), np.full((24, 32, 3), BGR, np.uint16) * 257)
    picture = tree.read_gray(path)
    assert picture.dtype == np.uint8
    assert picture.shape == (24, 32)
    assert np.abs(picture - LUMA).max() < 1


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
    np.testing.assert_array_equal(tree.read_gray(path), np.full((4, 4), 200, np.uint8))


def test_unreadable_pictures(tmp_path):
    text, empty, folder = (tmp_path / f"{name}1.jpg" for name in ("text", "empty", "folder"))
    text.write_text("this is a text")
    empty.write_bytes(b"")
    folder.mkdir()
    for path in (text, empty):
        with pytest.raises(ValueError, match="no picture that OpenCV can read"):
            tree.read_gray(path)
    for path in (folder, tmp_path / "missing1.jpg"):
        with pytest.raises(ValueError, match="cannot be read"):
            tree.read_gray(path)
    floats = tmp_path / "floats1.tif"
    assert cv2.imwrite(str(floats), np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match="float32"):
        tree.read_gray(floats)


def test_a_damaged_header_that_claims_a_huge_picture(tmp_path):
    path = tmp_path / "img1.png"
    path.write_bytes(_png(200_000, 200_000, 8, 0, b"\0"))
    with pytest.raises(ValueError, match="OpenCV refuses it"):
        tree.read_gray(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_pictures_are_refused_and_not_half_read(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    data = cv2.imencode(suffix, noise)[1].tobytes()
    path = tmp_path / f"img1{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="no picture that OpenCV can read"):
        tree.read_gray(path)
