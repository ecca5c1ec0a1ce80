"""Five face points -> the similarity transform that puts a face into place, and the warped face.

Coordinates are (x, y) in pixels; whole numbers are pixel centres, so that scaling an image by s
moves the point x to (x + 0.5) * s - 0.5.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from htnet_jax.motion.regions import TEMPLATE_POINTS

# The release's five points, given at 28 px, in a square of side 1: (0, 0) is its upper left corner.
CANONICAL = (TEMPLATE_POINTS.astype(np.float64) + 0.5) / 28
CANONICAL.flags.writeable = False


def canonical_points(side: int) -> np.ndarray:
    """`CANONICAL` as `(5, 2)` float64 pixels of an image of `side` x `side` pixels.

    Raises:
        ValueError: A side below 1.
    """
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel; got {side}")
    return CANONICAL * side - 0.5


def face_transform(points: np.ndarray, side: int) -> np.ndarray:
    """The similarity (rotation, uniform scale, shift) that puts five points on the template.

    Least squares over the five points, in closed form: with points as complex numbers a similarity
    without reflection is w = a z + b, and the best a is a quotient of two sums. It is the solution
    of Umeyama (IEEE TPAMI 1991) in two dimensions.

    Args:
        points: `(5, 2)` finite (x, y) in pixels of the frame: left eye, right eye, nose, left mouth
            corner, right mouth corner.
        side: Side of the aligned face in pixels.

    Returns:
        `(2, 3)` float64: (x, y, 1) in the frame -> (x, y) in the aligned face.

    Raises:
        ValueError: Wrong shape, a point that is not finite, points that all coincide or fit the
            template at no angle, or a side below 1.
    """
    source = np.asarray(points, np.float64)
    if source.shape != (5, 2):
        raise ValueError(f"points must be (5, 2), one (x, y) a point; got shape {source.shape}")
    if not np.isfinite(source).all():
        raise ValueError(f"points must be finite; got {source.tolist()}")
    target = canonical_points(side)
    centre, target_centre = source.mean(axis=0), target.mean(axis=0)
    z = (source - centre) @ (1, 1j)
    w = (target - target_centre) @ (1, 1j)
    extent = np.sqrt((abs(z) ** 2).sum())
    # Coordinates of this size have no more digits than this.
    if extent <= 1e-9 * (1 + np.abs(source).max()):
        raise ValueError(f"the points must not all coincide; got {source.tolist()}")
    a = (z.conj() @ w) / extent**2
    if abs(a) * extent <= 1e-9 * np.sqrt((abs(w) ** 2).sum()):
        raise ValueError(f"no rotation brings the points nearer to a face; got {source.tolist()}")
    linear = np.array([[a.real, -a.imag], [a.imag, a.real]])
    return np.column_stack([linear, target_centre - linear @ centre])


def transform_points(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points moved by a transform.

    Args:
        transform: `(2, 3)`, see `face_transform`.
        points: `(..., 2)` (x, y) in pixels.

    Returns:
        `(..., 2)` float64.
    """
    transform = np.asarray(transform, np.float64)
    return np.asarray(points, np.float64) @ transform[:, :2].T + transform[:, 2]


def warp(frame: np.ndarray, transform: np.ndarray, side: int) -> np.ndarray:
    """The aligned face: bicubic, without aliasing when it shrinks; the border is replicated.

    Where the transform shrinks by a factor s < 1, the frame is first blurred by a Gaussian of
    0.5 * sqrt(1 / s^2 - 1) pixels, so that the result has the blur of 0.5 pixels that an image
    from a camera is commonly taken to have (Lowe, IJCV 2004).

    Args:
        frame: `(H, W)` uint8, grayscale, or `(H, W, 3)` uint8, colour.
        transform: `(2, 3)`, a similarity, see `face_transform`.
        side: Side of the result in pixels.

    Returns:
        `(side, side)` or `(side, side, 3)` uint8.

    Raises:
        ValueError: Wrong dtype or shape, a transform that is not finite or has no inverse, or a
            side below 1.
    """
    is_image = frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 3)
    if frame.dtype != np.uint8 or not is_image or not frame.size:
        raise ValueError(
            f"the frame must be (H, W) or (H, W, 3) uint8; got shape {frame.shape}, {frame.dtype}"
        )
    transform = np.asarray(transform, np.float64)
    if transform.shape != (2, 3) or not np.isfinite(transform).all():
        raise ValueError(f"the transform must be (2, 3) and finite; got {transform.tolist()}")
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel; got {side}")
    scale = math.sqrt(abs(np.linalg.det(transform[:, :2])))
    if not scale:
        raise ValueError(f"the transform has no inverse: {transform.tolist()}")
    frame = np.ascontiguousarray(frame)
    if scale < 1:
        sigma = 0.5 * math.sqrt(1 / scale**2 - 1)
        frame = cv2.GaussianBlur(frame, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    # Bilinear sampling of an enlarged face makes the flow's error about a tenth larger.
    return cv2.warpAffine(
        frame, transform, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
