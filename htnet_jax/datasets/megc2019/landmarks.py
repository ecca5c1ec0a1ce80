"""The landmark file of the release's layout: five points a clip, in pixels of the 28-px picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from pathlib import Path

import numpy as np

from htnet_jax import errors
from htnet_jax.datasets import tables

_POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
_COORDINATES = tuple(f"{point}_{axis}" for point in _POINTS for axis in "xy")
COLUMNS = ("sub", "filename_o", "detected", *_COORDINATES)


@dataclasses.dataclass(frozen=True)
class FivePoints:
    """The landmarks of one clip.

    Attributes:
        points: `(5, 2)` float32 (x, y), as in the file: before any clipping.
        detected: False where the file says that its points are the release's template.
        outside: How far, in pixels, the farthest point lies outside the picture (0: inside).
    """

    points: np.ndarray
    detected: bool
    outside: float


def read_landmarks(
    path: Path, known: Set[tuple[str, str]], size: int, problems: errors.Problems
) -> dict[tuple[str, str], FivePoints]:
    """Reads and checks the landmark file.

    A detector extrapolates a little beyond the picture, and the crops clip their centres anyway, so
    points up to a quarter of the picture outside it (the half side of a crop) are accepted.

    Args:
        path: The CSV file, columns `COLUMNS`.
        known: `(subject, clip name)` of the clips there are.
        size: Side of the picture, in pixels.
        problems: Receives every bad row.

    Returns:
        `(subject, clip name)` -> its points.
    """
    found: dict[tuple[str, str], FivePoints] = {}
    first: dict[tuple[str, str], str] = {}
    for row in tables.read_rows(path, COLUMNS, problems):
        clip = row.cells["sub"], row.cells["filename_o"]
        what = []
        if clip not in known:
            what.append(f"no clip {clip[1]} of subject {clip[0]} in the clip list")
        if clip in first:
            what.append(f"clip {clip[1]} of subject {clip[0]} again, after {first[clip]}")
        first.setdefault(clip, row.where)
        if row.cells["detected"] not in ("0", "1"):
            what.append(f"detected is {row.cells['detected']!r}, expected 0 or 1")
        points, bad = _points(row.cells)
        what += bad
        outside = 0.0
        if not bad:
            outside = float(max(-points.min(), points.max() - size, 0.0))
            what += [
                f"{name} is outside the {size}x{size} picture by {beyond:g} pixels"
                for name, beyond in _far_outside(points, size)
            ]
        for text in what:
            problems.add(row.where, text)
        if not what:
            found[clip] = FivePoints(points, row.cells["detected"] == "1", outside)
    return found


def _points(cells: dict[str, str]) -> tuple[np.ndarray, list[str]]:
    values, bad = [], []
    for column in _COORDINATES:
        try:
            value = float(cells[column])
        except ValueError:
            bad.append(f"{column} is {cells[column]!r}, not a number")
            continue
        if not np.isfinite(value):
            bad.append(f"{column} is {cells[column]!r}, not a finite number")
        values.append(value)
    points = np.zeros((5, 2), np.float32) if bad else np.array(values, np.float32).reshape(5, 2)
    return points, bad


def _far_outside(points: np.ndarray, size: int) -> list[tuple[str, float]]:
    beyond = np.maximum(-points, points - size).max(axis=1)
    return [
        (name, float(distance))
        for name, distance in zip(_POINTS, beyond, strict=True)
        if distance > size / 4
    ]
