"""Frames in a folder, found by the number in their name, and the reading of images."""

from __future__ import annotations

import functools
import os
import re
import types
from collections.abc import Mapping
from pathlib import Path

import numpy as np

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


def is_inside(path: Path, real_root: str) -> bool:
    """Whether a path, links resolved, lies inside an already resolved root."""
    return os.path.commonpath([os.path.realpath(path), real_root]) == real_root


def frame_number(name: str) -> int | None:
    """The last whole number in a file name's stem: `reg_img46.jpg` 46, `006_05562.jpg` 5562."""
    found = re.search(r"(\d+)\D*$", Path(name).stem)
    return int(found[1]) if found else None


def frames(folder: Path) -> Mapping[int, Path]:
    """Number -> picture of a clip's folder, in order of the numbers.

    Raises:
        ValueError: Two pictures with one number, or a link that leads out of the folder.
    """
    return _frames(folder, folder.stat().st_mtime_ns)


# Recordings may have thousands of frames, so only the folders at hand are remembered.
@functools.lru_cache(maxsize=64)
def _frames(folder: Path, _changed: int) -> Mapping[int, Path]:
    found: dict[int, Path] = {}
    base = os.path.realpath(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in PICTURES or path.name.startswith("._"):
            continue
        number = frame_number(path.name)
        if number is None:
            continue
        if path.is_symlink() and not is_inside(path, base):
            raise ValueError(f"{path.name} is a link that leads out of its folder")
        if number in found:
            raise ValueError(f"{found[number].name} and {path.name} have the same number")
        found[number] = path
    return types.MappingProxyType(dict(sorted(found.items())))


def read_gray(path: Path) -> np.ndarray:
    """A picture as `(H, W)` uint8: colour is converted, alpha ignored, 16 bits become 8.

    Raises:
        ValueError: No picture, or a truncated one.
    """
    import cv2  # here, because reading a data set that is built needs none

    picture = _read(path)
    if picture.ndim == 3:
        channels = {1: None, 3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY}
        code = channels[picture.shape[2]]
        picture = picture[..., 0] if code is None else cv2.cvtColor(picture, code)
    return picture


def read_colour(path: Path) -> np.ndarray:
    """A picture as `(H, W, 3)` uint8 RGB: gray becomes three equal channels, else as `read_gray`.

    Raises:
        ValueError: No picture, or a truncated one.
    """
    import cv2

    picture = _read(path)
    if picture.ndim == 2 or picture.shape[2] == 1:
        return cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    code = cv2.COLOR_BGR2RGB if picture.shape[2] == 3 else cv2.COLOR_BGRA2RGB
    return cv2.cvtColor(picture, code)


def _read(path: Path) -> np.ndarray:
    """A picture as OpenCV has it, `(H, W)`, or `(H, W, C)` in the order B, G, R, A; 8 bits."""
    import cv2

    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    try:
        flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        raise ValueError(f"OpenCV refuses it ({error.err})") from error
    if picture is None:
        raise ValueError("no picture that OpenCV can read")
    if picture.dtype == np.uint16:
        picture = (picture >> 8).astype(np.uint8)
    if picture.dtype != np.uint8:
        raise ValueError(f"a picture of {picture.dtype} values; 8 or 16 bits are expected")
    return picture
