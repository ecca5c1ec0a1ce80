"""The apex frame of a clip that has none: where the face is strained most against the onset."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from htnet_jax.motion.flow import optical_flow, optical_strain

# Faces are shrunk to this side before their flow: half of what tensors are made from is enough to
# compare frames with each other, and takes a quarter of the time.
WORKING_SIDE = 112
# Side of the squares around the eyes and mouth corners, as a share of the face's: on the template
# a third reaches over the brows and half-way to the nose.
REGION = 1 / 3


def estimate_apex(
    onset_face: np.ndarray, faces: Iterable[tuple[int, np.ndarray]], points: np.ndarray
) -> int:
    """Number of the frame with the largest mean optical strain against the onset.

    The flow (Farneback) from the onset to each frame gives a strain; its mean over squares around
    both eyes and both mouth corners is averaged over three neighbouring frames if there are that
    many; at the ends the last frame counts twice.

    Args:
        onset_face: `(S, S)` uint8: the aligned face of the onset frame.
        faces: Frame numbers in order, with `(S, S)` uint8 faces, aligned as the onset's.
        points: `(5, 2)` (x, y) in pixels of the aligned face: left eye, right eye, nose, left mouth
            corner, right mouth corner.

    Returns:
        One of the numbers in `faces`; of several with the same strain the first.

    Raises:
        ValueError: No faces, faces that are not square or not like the onset's, or wrong points.
    """
    if onset_face.ndim != 2 or onset_face.shape[0] != onset_face.shape[1]:
        raise ValueError(f"the onset face must be square, (S, S); got {onset_face.shape}")
    mask = _regions(np.asarray(points, np.float64), onset_face.shape[0])
    onset = _shrunk(onset_face)
    numbers, strains = [], []
    for number, face in faces:
        if face.shape != onset_face.shape:
            raise ValueError(f"frame {number} has shape {face.shape}, the onset {onset_face.shape}")
        strain = optical_strain(optical_flow(onset, _shrunk(face), "farneback"))
        numbers.append(number)
        strains.append(float(strain[mask].mean()))
    if not numbers:
        raise ValueError("there are no frames to find the apex in")
    smooth = _averaged(np.array(strains))
    # Sums in another order differ in their last digits; such frames are equally strained.
    return numbers[int(np.flatnonzero(smooth >= smooth.max() * (1 - 1e-9))[0])]


def _shrunk(face: np.ndarray) -> np.ndarray:
    if face.shape[0] <= WORKING_SIDE:
        return face
    return cv2.resize(
        np.ascontiguousarray(face), (WORKING_SIDE, WORKING_SIDE), interpolation=cv2.INTER_AREA
    )


def _regions(points: np.ndarray, side: int) -> np.ndarray:
    """Which pixels of the shrunk face lie in a square around an eye or a mouth corner."""
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise ValueError(f"points must be (5, 2) and finite; got {points.tolist()}")
    size = min(side, WORKING_SIDE)
    centres = (points[[0, 1, 3, 4]] + 0.5) * size / side - 0.5
    axis = np.arange(size)
    near = np.abs(axis - centres[..., None]) <= REGION * size / 2  # point, x or y, pixel
    mask = (near[:, 1, :, None] & near[:, 0, None, :]).any(axis=0)
    if not mask.any():
        raise ValueError(f"no point lies near the face of {side}x{side} pixels")
    return mask


def _averaged(values: np.ndarray) -> np.ndarray:
    if len(values) < 3:
        return values
    padded = np.pad(values, 1, mode="edge")
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3
