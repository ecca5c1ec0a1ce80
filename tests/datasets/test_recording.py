"""Images are read whole or refused; folders and videos give the same numbered frames."""

import os
import struct
import unicodedata

import cv2
import numpy as np
import pytest

from htnet_jax.datasets import recording
from htnet_jax.datasets.recording import open_frames
from htnet_jax.errors import UserError, shown

GRADIENT = np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)


def test_images_that_lead_out_of_their_folder_are_refused(tmp_path):
    root, folder = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    folder.mkdir()
    (folder / "img1.jpg").write_text("")
    (root / "img2.jpg").write_text("")
    (root / "img3.jpg").symlink_to("img2.jpg")
    assert list(recording.image_files(root)) == [2, 3]
    clip = root / "clip"
    clip.mkdir()
    (clip / "img1.jpg").symlink_to(folder / "img1.jpg")
    with pytest.raises(ValueError, match=r"img1\.jpg is a link leading outside"):
        recording.image_files(clip)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *[("img1.jpg", 1), ("reg_img46.jpg", 46), ("006_05562.jpg", 5562), ("00000.bmp", 0)],
        *[("reg_image559740.bmp", 559740), ("image034208.jpg", 34208), ("175.JPG", 175)],
        *[("Frame_000001823.jpg", 1823), ("reg_00007.bmp", 7), ("S01-07-001.jpg", 1)],
        *[("image12345678.bmp", 12345678), ("img46_face.jpg", 46), ("a.b.3.png", 3)],
        *[("frame.jpg", None), (".jpg", None), ("img-5.jpg", 5), ("jpg", None), ("mp4.jpg", 4)],
        *[("\n7\n.png", 7), ("img99999999999.jpg", None), ("img\u0663.jpg", None)],
    ],
)
def test_the_number_in_a_frame_s_name(tmp_path, name, number):
    (tmp_path / name).write_text("")
    assert list(recording.image_files(tmp_path)) == ([] if number is None else [number])


# As the data sets name them: pattern, first number, last number.
REAL = ["img{}.jpg", "reg_img{}.jpg", "006_{:05d}.jpg", "006_{:04d}.jpg", "image{:06d}.bmp"]
REAL += ["reg_image{}.bmp", "{:05d}.bmp", "reg_{:05d}.bmp", "{}.jpg", "Frame_{:09d}.jpg", "{}.JPG"]


@pytest.mark.parametrize("first", [0, 8, 97, 9998, 99998, 999998])
@pytest.mark.parametrize("pattern", REAL)
def test_frames_are_in_order_of_their_numbers(tmp_path, pattern, first):
    wanted = {number: tmp_path / pattern.format(number) for number in range(first, first + 5)}
    for path in reversed(wanted.values()):
        path.write_text("")
    found = recording.listing(tmp_path)
    assert list(found.files.items()) == list(wanted.items())
    assert not found.left_out


STRAYS = ["image034106 (1).bmp", "39 (1).jpg", "s3_po_01_flow.png", "mean_face2.jpg", "thumb1.jpg"]
STRAYS += [
    "copy of 12.jpg",
    "12 - Copy.jpg",
    "12_mask.png",
    "12.png",
    "12.jpeg",
    "012.jpg",
    "x.bmp",
]
STRAYS += [
    "12~.jpg",
    "Kopie von 12.jpg",
    "12 (2).JPG",
    "img12.jpg",
    "12.0.jpg",
    ".12.jpg",
    "12b.tif",
]
STRAYS += ["99999999999.jpg", "\u0661\u0662.jpg", "1\x1b[2J2.jpg", "12\udcff.jpg"]
STRAYS += [".12.jpg", "012.jpg"]


@pytest.mark.parametrize("stray", STRAYS)
def test_a_stray_image_is_never_a_frame(tmp_path, stray):
    for number in range(9, 13):
        assert cv2.imwrite(str(tmp_path / f"{number}.jpg"), GRADIENT)
    (tmp_path / stray).write_text("no image")
    source = open_frames(tmp_path)
    assert source.numbers == (9, 10, 11, 12)
    assert list(source.left_out) == [stray]
    assert [number for number, _ in source] == [9, 10, 11, 12]
    with pytest.raises(UserError, match="frames 9 to 12; not used: ") as caught:
        source.read(13)
    assert shown(stray) in str(caught.value)


def test_what_is_no_image_is_passed_over(tmp_path):
    names = ["._img1.jpg", ".DS_Store", "Thumbs.db", "notes2.txt", "film3.mp4", "img8.jpg.part"]
    for name in ("img1.jpg", *names):
        (tmp_path / name).write_text("")
    found = recording.listing(tmp_path)
    assert list(found.files) == [1]
    assert not found.left_out


def test_only_regular_files_are_frames(tmp_path):
    (tmp_path / "img1.jpg").write_text("")
    (tmp_path / "img2.jpg").mkdir()
    os.mkfifo(tmp_path / "img3.jpg")
    (tmp_path / "img4.jpg").symlink_to("nowhere")
    found = recording.listing(tmp_path)
    assert list(found.files) == [1]
    assert found.left_out == dict.fromkeys(("img2.jpg", "img3.jpg", "img4.jpg"), "no regular file")


@pytest.mark.parametrize(
    "names",
    [
        *[("img46.jpg", twin) for twin in ("img046.jpg", "img46.png", "reg_img46.jpg")],
        ("1.jpg", "2.jpg", "1_mask.png", "2_mask.png"),
        ("a_1.jpg", "a_2.jpg", "b_3.jpg", "b_4.jpg", "cover.jpg"),
        ("1.jpg", "10.jpg", "01.jpg"),
    ],
)
def test_which_images_are_the_frames_is_not_guessed(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="it is not clear which are the frames") as caught:
        open_frames(tmp_path)
    assert "<number>" in str(caught.value)


def test_two_images_with_one_number(tmp_path):
    for name in ("img46.jpg", "img46.JPG"):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=r"img46\.JPG and img46\.jpg have the same number"):
        open_frames(tmp_path)


def test_how_a_name_composes_its_letters_does_not_matter(tmp_path):
    for number, form in enumerate(("NFC", "NFD", "NFC"), 1):
        (tmp_path / unicodedata.normalize(form, f"é{number}.jpg")).write_text("")
    assert list(recording.image_files(tmp_path)) == [1, 2, 3]
    assert recording.folded("Ü\u0345") == recording.folded(unicodedata.normalize("NFD", "ü\u0345"))


def test_frames_that_come_and_go_are_noticed(tmp_path):
    (tmp_path / "img1.jpg").write_text("")
    assert list(recording.image_files(tmp_path)) == [1]
    # A user mends the copy and builds again, from the same notebook.
    (tmp_path / "img2.jpg").write_text("")
    assert list(recording.image_files(tmp_path)) == [1, 2]


# Frames of a folder or a video.

SHAPE = (48, 64)


def _images(count, seed=0):
    """`(count, 48, 64, 3)` uint8 RGB: noise in the left half, the frame's index in the right."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *SHAPE, 3), np.uint8)
    images[:, :, 32:] = np.arange(count, dtype=np.uint8)[:, None, None, None] * 9
    return images


def _video(path, images, codec="FFV1", fps=25):
    """A video, without loss by default."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, SHAPE[::-1])
    assert writer.isOpened()
    for image in images:
        writer.write(image[..., ::-1])
    writer.release()
    return path


def _folder(path, images, first=1):
    path.mkdir()
    for number, image in enumerate(images, first):
        assert cv2.imwrite(str(path / f"img{number}.png"), image[..., ::-1])
    return path


@pytest.fixture
def opened(monkeypatch):
    """How often a video is opened for decoding."""
    calls, original = [], recording._capture

    def capture(path, **options):
        calls.append(path)
        return original(path, **options)

    monkeypatch.setattr(recording, "_capture", capture)
    return calls


def test_a_folder_and_a_video_of_the_same_frames_are_alike(tmp_path):
    images = _images(12)
    folder = open_frames(_folder(tmp_path / "clip", images), fps=25)
    video = open_frames(_video(tmp_path / "clip.avi", images))
    assert list(folder.numbers) == list(video.numbers) == list(range(1, 13))
    np.testing.assert_allclose(folder.times, video.times, atol=1e-9)
    for source in (folder, video):
        numbers = []
        for number, image in source:
            np.testing.assert_array_equal(image, images[number - 1])
            gray = cv2.cvtColor(images[number - 1], cv2.COLOR_RGB2GRAY)
            np.testing.assert_array_equal(source.read_gray(number), gray)
            numbers.append(number)
        assert numbers == list(source.numbers)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mp4v"), ("a.AVI", "MJPG")])
def test_usual_codecs_come_close(tmp_path, name, codec):
    images = np.stack([cv2.GaussianBlur(image, (0, 0), 4) for image in _images(9)])
    source = open_frames(_video(tmp_path / name, images, codec))
    assert len(source.numbers) == 9
    for number, image in source:
        assert np.abs(image.astype(int) - images[number - 1]).mean() < 6
    np.testing.assert_allclose(source.times, np.arange(9) / 25, atol=1e-6)


def test_numbers_and_times_of_a_folder(tmp_path):
    folder = _folder(tmp_path / "clip", _images(3), first=46)
    (folder / "img47.png").unlink()
    source = open_frames(str(folder))
    assert source.numbers == (46, 48)
    assert source.times is None
    np.testing.assert_array_equal(open_frames(folder, fps=200).times, [0, 0.01])
    with pytest.raises(UserError, match=r"frame 47 is not there; the folder has frames 46 to 48"):
        source.read(47)
    (folder / "img46.png").write_text("this is a text")
    with pytest.raises(UserError, match=r"img46\.png: no image that OpenCV can read"):
        source.read_gray(46)


def test_a_video_may_be_numbered_and_timed_otherwise(tmp_path):
    images = _images(4)
    source = open_frames(_video(tmp_path / "a.avi", images), fps=200, first=0)
    assert list(source.numbers) == [0, 1, 2, 3]
    np.testing.assert_allclose(source.times, np.arange(4) / 200)
    np.testing.assert_array_equal(source.read(0), images[0])
    for number in (-1, 4):
        with pytest.raises(UserError, match=rf"frame {number} is not there; .* frames 0 to 3"):
            source.read(number)


def test_frames_that_were_passed_need_no_second_decoding(tmp_path, opened):
    source = open_frames(_video(tmp_path / "a.avi", _images(20)))
    del opened[:]  # that of the scan
    for number in (3, 9, 4, 8, 2, 9, 20, 1):
        assert source.read(number)[0, 40, 0] == (number - 1) * 9
    assert len(opened) == 1


def test_frames_that_were_forgotten_are_decoded_again(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(recording, "_KEPT_BYTES", 3 * 48 * 64 * 3)
    source = open_frames(_video(tmp_path / "a.avi", _images(20)))
    del opened[:]
    for number in (9, 8, 7, 12, 10, 3, 20):
        assert source.read(number)[0, 40, 0] == (number - 1) * 9
        assert len(source._kept) <= 3
    assert len(opened) == 2  # 3 lies before what is kept


def test_a_video_that_changed_is_read_again(tmp_path):
    path = tmp_path / "a.avi"
    assert len(open_frames(_video(path, _images(5))).numbers) == 5
    before = open_frames(path).stamps(1, 5)
    _video(path, _images(7))
    os.utime(path, ns=(1, 1))
    assert len(open_frames(path).numbers) == 7
    assert open_frames(path).stamps(1, 5) != before == [("a.avi", *before[0][1:])]


def _boxes(data, start, end):
    """Yields (kind, start, end) of an MP4's boxes."""
    while start < end:
        size = struct.unpack_from(">I", data, start)[0]
        yield data[start + 4 : start + 8], start, start + size
        start += size


def _inside(data, *kinds):
    """Start and end of a box, by the kinds of those around it."""
    start, end, above = 0, len(data), []
    for kind in kinds:
        start, end = next((a, b) for k, a, b in _boxes(data, start, end) if k == kind)
        above.append(start)
        start += 8
    return above, end


def test_time_stamps_of_a_variable_frame_rate(tmp_path):
    path = _video(tmp_path / "a.mp4", _images(6), "mp4v")
    data = bytearray(path.read_bytes())
    kinds = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts")
    above, end = _inside(data, *kinds)
    # Three frames of the usual length, then three of a quarter of it.
    count, delta = struct.unpack_from(">II", data, above[-1] + 16)
    assert (count, end - above[-1]) == (6, 24)
    table = struct.pack(">IIIII", 2, 3, delta, 3, delta // 4)
    data[above[-1] + 12 : end] = table
    for start in above:
        size = struct.unpack_from(">I", data, start)[0]
        struct.pack_into(">I", data, start, size + 8)
    path.write_bytes(data)
    source = open_frames(path)
    np.testing.assert_allclose(source.times, np.array([0, 1, 2, 3, 3.25, 3.5]) / 25, atol=1e-3)


def test_a_rotation_flag_is_obeyed(tmp_path):
    images = np.stack([cv2.GaussianBlur(image, (0, 0), 4) for image in _images(2)])
    path = _video(tmp_path / "a.mp4", images, "mp4v")
    upright = open_frames(path).read(1)
    data = bytearray(path.read_bytes())
    (*_, start), _ = _inside(data, b"moov", b"trak", b"tkhd")
    # The matrix of a turn by 90 degrees clockwise, in 16.16 (and 2.30) fixed point.
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data[start + 48 : start + 84] = matrix
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    turned = open_frames(path).read(1)
    assert turned.shape == (64, 48, 3)
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))


def test_a_truncated_video_has_the_frames_that_can_be_decoded(tmp_path):
    path = _video(tmp_path / "a.avi", _images(12), "MJPG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    source = open_frames(path)
    assert 1 <= len(source.numbers) < 12
    last = source.numbers[-1]
    with pytest.raises(UserError, match=rf"frames 1 to {last}, of 12 that its header claims"):
        source.read(12)
    assert len(list(source)) == last
    whole = dict(open_frames(_video(tmp_path / "whole.avi", _images(12), "MJPG")))
    for number, image in source:
        np.testing.assert_array_equal(image, whole[number])
    # Cut where the first frame begins, there is nothing.
    path.write_bytes(data[: data.index(b"movi") + 8])
    with pytest.raises(UserError, match=r"a\.avi: .*(not one frame|truncated)"):
        open_frames(path)


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "empty.avi", "cut.mp4"])
def test_files_that_are_no_video(tmp_path, name):
    path = tmp_path / name
    path.write_text("" if name == "empty.avi" else "this is a text\n" * 99)
    if name == "cut.mp4":
        data = _video(path, _images(5), "mp4v").read_bytes()
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"{name}: no video that OpenCV can read"):
        open_frames(path)


def test_paths_that_hold_no_frames(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: cannot be opened as frames \(No such file"):
        open_frames(tmp_path / "nowhere")
    (tmp_path / "film.avi").mkdir()
    os.mkfifo(tmp_path / "pipe.avi")
    for name in ("pipe.avi", "x" * 300, "\udcff.avi", "a\0b.avi", "film.avi"):
        with pytest.raises(UserError):
            open_frames(tmp_path / name)
    (tmp_path / "\udcff.avi").write_text("this is a text")
    with pytest.raises(UserError, match=r"^.*\.avi: "):
        open_frames(tmp_path / "\udcff.avi")
    # A single image is no series of images.
    image = _folder(tmp_path / "clip", _images(2)) / "img1.png"
    with pytest.raises(UserError, match="neither a folder of images nor a video"):
        open_frames(image)
    (tmp_path / "empty").mkdir()
    with pytest.raises(recording.NoFrames, match="holds no images"):
        open_frames(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "FFV1"), ("a.mp4", "mp4v"), ("b.avi", "MJPG")]
)
def test_frames_after_the_first_damage_of_a_video_are_not_used(tmp_path, name, codec):
    whole = open_frames(_video(tmp_path / name, _images(12), codec))
    assert not whole.left_out
    frames = dict(whole)
    data = bytearray((tmp_path / name).read_bytes())
    half = len(data) // 2
    data[half : half + 100] = np.random.default_rng(3).bytes(100)
    path = tmp_path / f"bad_{name}"
    path.write_bytes(data)
    source = open_frames(path)
    last = source.numbers[-1]
    assert last < 12
    # Whatever the decoder's threads do meanwhile.
    again = [recording._scan.__wrapped__(path, 0)[0] for _ in range(20)]
    assert again == [last] * 20
    for number, image in source:
        np.testing.assert_array_equal(image, frames[number])
    # Where the damage ends the decoding, the video is a shorter one than its header claims.
    said = r"the decoder reports damage \(.+\)" if source.left_out else "12 that its header claims"
    with pytest.raises(UserError, match=said):
        source.read(12)
    assert list(source.left_out) in ([], [f"frame {last + 1} and later"])
    assert source.left_out or codec != "FFV1"


def test_a_folder_that_holds_a_video_says_so(tmp_path):
    (tmp_path / "EP02_01f").mkdir()
    (tmp_path / "EP02_01f" / "film.AVI").write_text("")
    with pytest.raises(recording.NoFrames, match=r"only the video film\.AVI is there; extract"):
        open_frames(tmp_path / "EP02_01f")
