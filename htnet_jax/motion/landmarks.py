"""Five face points on a photograph, by dlib's frontal detector and its 68-point predictor.

The predictor's model, `shape_predictor_68_face_landmarks.dat`, was trained on the iBUG 300-W
images, whose licence excludes commercial use: points found with it are for research.

Coordinates are (x, y) in pixels; whole numbers are pixel centres.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from htnet_jax.errors import UserError

MODEL_FILE = "shape_predictor_68_face_landmarks.dat"
MODEL_PACKAGE = "face_recognition_models"
REMEDY = "Install dlib and the model with `pip install -e .[landmarks]`"

# Images are brought to a longer side between these, in pixels. The detector's window is 80 pixels
# wide, and the predictor gives whole pixels, so that small images are enlarged; in large ones
# more pixels only cost time, since the face fills much of the image in these data.
_WORKING_SIDES = (400, 1000)
# Below this side there is no face to see.
_SMALLEST = 20

# The 68 points (Sagonas et al., "300 faces in-the-wild challenge", 2016) number the image's left
# eye 36..41, its right eye 42..47, the nose tip 30, and the mouth corners 48 and 54.
_LEFT_EYE, _RIGHT_EYE = slice(36, 42), slice(42, 48)
_NOSE, _LEFT_MOUTH, _RIGHT_MOUTH = 30, 48, 54

# The predictor runs on the box and on the box moved, grown or shrunk by 6 % of its side. On a face
# all agree, mostly within 3 % of the eye distance. Where there is no face each puts its average
# face into its box, and they scatter by 5 % and more. Of scikit-image's subset of LFW (100 faces,
# 100 other details, 25 pixels wide) 4 faces are refused and 1 other detail is taken for one.
_SHIFT = 0.06
_SCATTER = 0.04

# Where the detector's box lies about the points, in eye distances: its centre below the middle
# between the eyes, and half its side (measured on a photograph).
_BOX_BELOW = 0.55
_BOX_HALF = 1.0

# The scatter above is that of all points; mouth corners that slip onto the chin or a beard leave it
# as it is. So each corner's mean distance from its place is looked at too. It is at most 8 % on 235
# good faces (8 photographs, 95 of LFW's, 132 rendered); of corners that a covered mouth made slip
# by a quarter of the eye distance, every fourth pair differs by more than this.
_MOUTH_SCATTER = 0.1

# Limits of `implausible`, as shares of the eye distance unless said otherwise. They lie outside of
# all that 505 good faces have: those above, and the 270 clips of MEGC 2019 in which the release's
# detector found points. The range of these faces stands behind each. The release's template has
# 0.94 from eyes to mouth, a mouth of 0.87, and the nose at 0.57 of the way.
_MOST_ROLL = 30.0  # degrees; beyond, the predicted points are visibly off
_EYES_TO_MOUTH = (0.6, 1.45)  # 0.81 to 1.41
_MOUTH_WIDTH = (0.5, 1.4)  # 0.66 to 1.20
_NOSE_HEIGHT = (0.2, 0.9)  # share of the way from the eyes to the mouth; 0.24 to 0.80
_NOSE_TO_MOUTH = 0.87  # at most 0.85; of corners on the chin half an eye distance more
_NOSE_TO_MOUTH_WIDTH = 1.2  # share of the mouth's width; at most 1.16
_MOST_TILT = 12.0  # degrees from mouth line to eye line; at most 4, a smile of one side makes 10
_NOSE_SKEW = 0.4  # nose beside the middle between the eyes; at most 0.39
_MOUTH_SKEW = 0.3  # the same of the mouth; at most 0.23
# Eye distance in an image that is all face, as a share of the image's width: half on a face that
# just fits; a face of half the image's width would have been detected.
_EYES_OF_CROP = (0.25, 0.8)

# Between an onset and its apex, at most half a second apart, a head moves by millimetres to
# centimetres. Two heads cannot be nearer to each other than one is wide: 2.4 eye distances (153 mm
# of 64 mm, both the means of Farkas, "Anthropometry of the head and face", 1994). A face that has
# moved by more than half of this, or that is larger by a third, is another.
_MOST_MOVED = 1.2
_MOST_GROWN = 4 / 3


class NoFace(ValueError):
    """There is no frontal, upright face in the image; the message says why."""


@dataclasses.dataclass(frozen=True)
class Face:
    """A face that was found.

    Attributes:
        points: `(5, 2)` float32 (x, y) in pixels: left eye centre, right eye centre, nose tip, left
            mouth corner, right mouth corner; left and right are the image's.
        box: The face's box x0, y0, x1, y1 in pixels, as the predictor got it.
        how: "detector", "upsampled" (the detector, on an enlarged image) or "whole picture" (a
            tight crop, where the detector finds nothing).
    """

    points: np.ndarray
    box: tuple[float, float, float, float]
    how: str


class Detector:
    """Finds the largest face of an image whose points are plausible, and follows it.

    It holds no more than the model's path, so it can be sent to worker processes; each loads dlib
    and the model once, at its first image.

    Attributes:
        model: Path of the model file.
    """

    def __init__(self, model: Path | None = None) -> None:
        """Checks that dlib and the model are there, without loading them.

        Args:
            model: The 68-point model's file; None: the one in the package
                `face_recognition_models`.

        Raises:
            UserError: dlib or the model is missing; the message tells the remedy.
        """
        if importlib.util.find_spec("dlib") is None:
            raise UserError(f"dlib is not installed. {REMEDY}, or choose other landmarks.")
        self.model = _packaged_model() if model is None else Path(model)
        if not self.model.is_file():
            raise UserError(
                f"{self.model}: there is no such model file. {REMEDY}, "
                f"or give the path of {MODEL_FILE} with --landmark_model=FILE."
            )

    def find(self, gray: np.ndarray) -> Face:
        """The largest frontal face of an image.

        Args:
            gray: `(H, W)` uint8, grayscale.

        Raises:
            NoFace: No upright frontal face; the message says why.
            ValueError: Wrong dtype or shape.
            UserError: The model file is not one of 68 points.
        """
        _check_image(gray)
        detector, predictor = _load(self.model)
        image, scale = _resized(gray)
        reasons = []
        for box, how in _boxes(detector, image, order=lambda box: -box.area()):
            points, scatter = _five_points(predictor, image, box)
            reason = _doubt(points, scatter, image.shape)
            if not reason:
                return _face(points, box, how if scale <= 1 else "upsampled", scale)
            reasons.append(reason)
        if reasons:  # of the largest face; smaller ones are no better
            raise NoFace(f"the detector finds a face, but {reasons[0]}")
        box, points, scatter = _whole_image(predictor, image)
        reason = _doubt(points, scatter, image.shape, whole=True)
        if not reason:
            upside_down = np.ascontiguousarray(image[::-1, ::-1])
            if _whole_image(predictor, upside_down)[2][0] < scatter[0]:
                reason = "it seems to be upside down"
        if reason:
            raise NoFace(f"the detector finds no face, and in the image taken for one {reason}")
        return _face(points, box, "whole picture", scale)

    def follow(self, gray: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The points of a face in another frame of its recording.

        Of several faces the nearest is taken. Where the detector misses it, as it does in one of
        two frames that hardly differ, the predictor looks where the face was.

        Args:
            gray: `(H, W)` uint8, grayscale: the other frame.
            points: `(5, 2)` of the face, pixels.

        Returns:
            `(5, 2)` float32 (x, y) in pixels.

        Raises:
            NoFace: No face, or none that can be the same, see `apart`; the message says why.
            ValueError: Wrong dtype or shape.
            UserError: The model file is not one of 68 points.
        """
        _check_image(gray)
        detector, predictor = _load(self.model)
        image, scale = _resized(gray)
        known = (np.asarray(points, np.float64) + 0.5) * scale - 0.5
        x, y = known.mean(axis=0)
        boxes = _boxes(
            detector, image, order=lambda box: math.hypot(box.center().x - x, box.center().y - y)
        )
        reasons = []
        for box, how in (*boxes, (_box_about(known), "known place")):
            found, scatter = _five_points(predictor, image, box)
            reason = _doubt(found, scatter, image.shape) or apart(known, found)
            if not reason:
                return _face(found, box, how, scale).points
            reasons.append(reason)
        raise NoFace(f"the face is no longer there: {reasons[0]}")


def apart(points: np.ndarray, others: np.ndarray) -> str:
    """Why two frames' faces cannot be one face from the onset to the apex, or "".

    Args:
        points: `(5, 2)` in the first frame, pixels.
        others: `(5, 2)` in the second.
    """
    points, others = np.asarray(points, np.float64), np.asarray(others, np.float64)
    eyes = math.hypot(*(points[1] - points[0]))
    moved = math.hypot(*(others.mean(axis=0) - points.mean(axis=0))) / eyes
    if moved > _MOST_MOVED:
        return f"it is {moved:.1f} eye distances from where it was before"
    grown = math.hypot(*(others[1] - others[0])) / eyes
    if not 1 / _MOST_GROWN <= grown <= _MOST_GROWN:
        return f"it is {grown:.2f} times as large as before"
    return ""


def _check_image(gray: np.ndarray) -> None:
    if gray.dtype != np.uint8 or gray.ndim != 2 or not gray.size:
        raise ValueError(
            f"the image must be grayscale, (H, W) uint8; got shape {gray.shape}, {gray.dtype}"
        )
    height, width = gray.shape
    if min(height, width) < _SMALLEST:
        raise NoFace(f"an image of {width}x{height} pixels is too small for a face")


def implausible(points: np.ndarray, shape: tuple[int, int], *, whole: bool = False) -> str:
    """Why five points cannot be those of an upright, frontal face.

    Args:
        points: `(5, 2)` (x, y) in pixels: left eye, right eye, nose, left and right mouth corner.
        shape: Height and width of the image in pixels.
        whole: Whether the face should fill the image; then the eye distance is checked too.

    Returns:
        The first reason found, or "" if there is none.
    """
    points = np.asarray(points, np.float64)
    height, width = shape
    if points.shape != (5, 2) or not np.isfinite(points).all():
        return "there are not five finite points"
    if (points < -0.5).any() or (points > (width - 0.5, height - 0.5)).any():
        return "a point lies outside the image"
    left_eye, right_eye, nose, left_mouth, right_mouth = points
    across = right_eye - left_eye
    distance = math.hypot(*across)
    if across[0] <= 0:
        return "the left eye is not to the left of the right eye"
    roll = math.degrees(math.atan2(across[1], across[0]))
    if abs(roll) > _MOST_ROLL:
        return f"the head is rolled by {roll:.0f} degrees"
    # Along the eyes, and down the face, in eye distances from the middle between the eyes.
    axes = np.stack([across, (-across[1], across[0])], axis=1) / distance**2
    middle = (left_eye + right_eye) / 2
    nose, left_mouth, right_mouth = (np.stack([nose, left_mouth, right_mouth]) - middle) @ axes
    mouth = (left_mouth + right_mouth) / 2
    if not _EYES_TO_MOUTH[0] <= mouth[1] <= _EYES_TO_MOUTH[1]:
        return f"the mouth is {mouth[1]:.2f} eye distances below the eyes"
    if not _NOSE_HEIGHT[0] <= nose[1] / mouth[1] <= _NOSE_HEIGHT[1]:
        return f"the nose is at {nose[1] / mouth[1]:.0%} of the way from the eyes to the mouth"
    opening, slope = right_mouth - left_mouth
    if not _MOUTH_WIDTH[0] <= opening <= _MOUTH_WIDTH[1]:
        return f"the mouth is {opening:.2f} eye distances wide"
    tilt = math.degrees(math.atan2(slope, opening))
    if abs(tilt) > _MOST_TILT:
        return f"the mouth is tilted by {tilt:.0f} degrees against the eyes"
    below = mouth[1] - nose[1]
    if below > min(_NOSE_TO_MOUTH, _NOSE_TO_MOUTH_WIDTH * opening):
        return f"the mouth is {below:.2f} eye distances below the nose"
    for name, place, most in (("nose", nose, _NOSE_SKEW), ("mouth", mouth, _MOUTH_SKEW)):
        if abs(place[0]) > most:
            return f"the {name} is {abs(place[0]):.2f} eye distances beside the middle"
    if whole and not _EYES_OF_CROP[0] <= distance / width <= _EYES_OF_CROP[1]:
        return f"the eyes are {distance / width:.0%} of the image's width apart"
    return ""


def _resized(gray: np.ndarray) -> tuple[np.ndarray, float]:
    """The image at a side within `_WORKING_SIDES`, and by how much it grew."""
    longer = max(gray.shape)
    scale = float(np.clip(longer, *_WORKING_SIDES)) / longer
    if scale == 1:
        return np.ascontiguousarray(gray), scale
    height, width = (max(1, round(side * scale)) for side in gray.shape)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(gray), (width, height), interpolation=how), scale


def _boxes(
    detector: Any, image: np.ndarray, order: Callable[[Any], float]
) -> Iterator[tuple[tuple[float, ...], str]]:
    """The boxes that the detector finds, in an order, without and then with upsampling."""
    for upsampling, how in enumerate(("detector", "upsampled")):
        for box in sorted(detector(image, upsampling), key=order):
            yield (box.left(), box.top(), box.right(), box.bottom()), how


def _doubt(
    points: np.ndarray, scatter: np.ndarray, shape: tuple[int, int], *, whole: bool = False
) -> str:
    """Why predicted points are not believed, or ""."""
    reason = implausible(points, shape, whole=whole)
    limits = (("", _SCATTER), (" of a mouth corner", _MOUTH_SCATTER))
    for share, (what, most) in zip(scatter, limits, strict=True):
        if not reason and share > most:
            reason = f"repeated predictions{what} differ by {share:.0%} of the eye distance"
    return reason


def _face(points: np.ndarray, box: tuple[float, ...], how: str, scale: float) -> Face:
    """A face in pixels of the image as it was before `_resized`."""
    corners = ((np.array(box) + 0.5) / scale - 0.5).tolist()
    return Face(((points + 0.5) / scale - 0.5).astype(np.float32), tuple(corners), how)


def _whole_image(
    predictor: Any, image: np.ndarray
) -> tuple[tuple[float, ...], np.ndarray, np.ndarray]:
    """Box, points and scatter of a face that should fill the image.

    The image is a poor box; the points it leads to give a better one.
    """
    height, width = image.shape
    first, scatter = _five_points(predictor, image, (0, 0, width - 1, height - 1))
    box = _box_about(first)
    points, rest = _five_points(predictor, image, box)
    return box, points, np.maximum(scatter, rest)


def _box_about(points: np.ndarray) -> tuple[float, ...]:
    """Where the detector's box would lie, see `_BOX_BELOW`."""
    distance = math.hypot(*(points[1] - points[0]))
    x, y = (points[0] + points[1]) / 2 + (0, _BOX_BELOW * distance)
    half = _BOX_HALF * distance
    return x - half, y - half, x + half, y + half


def _five_points(
    predictor: Any, gray: np.ndarray, box: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Five points from several predictions, and by how many eye distances these scatter.

    The scatter is `(2,)`: of all points, and of the mouth corner that scatters more.

    The predictor gives whole pixels; the mean of the middle predictions is finer than that.
    """
    x0, y0, x1, y1 = box
    right, down = _SHIFT * (x1 - x0), _SHIFT * (y1 - y0)
    boxes = [
        (x0, y0, x1, y1),
        (x0 + right, y0 + down, x1 - right, y1 - down),
        (x0 - right, y0 - down, x1 + right, y1 + down),
        (x0 + right, y0, x1 + right, y1),
        (x0 - right, y0, x1 - right, y1),
        (x0, y0 + down, x1, y1 + down),
        (x0, y0 - down, x1, y1 - down),
    ]
    found = np.stack([_predict(predictor, gray, each) for each in boxes])
    points = np.sort(found, axis=0)[2:-2].mean(axis=0)
    distance = max(math.hypot(*(points[1] - points[0])), 1.0)
    apart = np.linalg.norm(found - points, axis=-1) / distance
    return points, np.array([np.median(apart), apart[:, 3:].mean(axis=0).max()])


def _predict(predictor: Any, gray: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    import dlib

    shape = predictor(gray, dlib.rectangle(*(round(corner) for corner in box)))
    points = np.array([(point.x, point.y) for point in shape.parts()], np.float64)
    return np.stack(
        [
            points[_LEFT_EYE].mean(axis=0),
            points[_RIGHT_EYE].mean(axis=0),
            points[_NOSE],
            points[_LEFT_MOUTH],
            points[_RIGHT_MOUTH],
        ]
    )


def _packaged_model() -> Path:
    """The model's path in its package, which is not imported: it warns about its own loading."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the package {MODEL_PACKAGE} with the landmark model is not installed. {REMEDY}, "
            f"or give the path of {MODEL_FILE} with --landmark_model=FILE."
        )
    return Path(next(iter(spec.submodule_search_locations)), "models", MODEL_FILE)


@functools.cache
def _load(model: Path) -> tuple[Any, Any]:
    """Loads dlib's detector and the predictor; once per process and model."""
    import dlib

    wrong = f"{model}: not a landmark model of 68 points; give {MODEL_FILE}, unpacked"
    try:
        predictor = dlib.shape_predictor(str(model))
    except RuntimeError as error:
        raise UserError(f"{wrong} ({error})") from error
    # Only a prediction tells how many points a model has.
    blank = np.zeros((_SMALLEST, _SMALLEST), np.uint8)
    count = predictor(blank, dlib.rectangle(0, 0, _SMALLEST - 1, _SMALLEST - 1)).num_parts
    if count != 68:
        raise UserError(f"{wrong} (this one has {count})")
    return dlib.get_frontal_face_detector(), predictor
