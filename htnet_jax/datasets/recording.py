"""Frames of a recording on disk: a folder of numbered images or a video file, read alike."""

from __future__ import annotations

import abc
import collections
import functools
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from htnet_jax.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
VIDEOS = (".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
# Decoded frames of a video that are kept, in bytes: 140 frames of 640 x 480 pixels. Most clips fit,
# so that onset, apex and the frames between them are decoded once.
_KEPT_BYTES = 128 * 2**20


def is_inside(path: Path, real_root: str) -> bool:
    """Whether a path, links resolved, lies inside an already resolved root."""
    return os.path.commonpath([os.path.realpath(path), real_root]) == real_root


def frame_number(name: str) -> int | None:
    """The last whole number in a file name's stem: `reg_img46.jpg` 46, `006_05562.jpg` 5562."""
    found = re.search(r"(\d+)\D*$", Path(name).stem)
    return int(found[1]) if found else None


def image_files(folder: Path) -> Mapping[int, Path]:
    """Number -> image of a clip's folder, in order of the numbers.

    Raises:
        ValueError: Two images with one number, or a link that leads out of the folder.
    """
    return _image_files(folder, folder.stat().st_mtime_ns)


# Recordings may have thousands of frames, so only the folders at hand are remembered.
@functools.lru_cache(maxsize=64)
def _image_files(folder: Path, _changed: int) -> Mapping[int, Path]:
    found: dict[int, Path] = {}
    base = os.path.realpath(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGES or path.name.startswith("._"):
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
    """An image as `(H, W)` uint8: colour is converted, alpha ignored, 16 bits become 8.

    Raises:
        ValueError: No image, or a truncated one; the message leaves out the path.
    """
    import cv2  # here, because reading a built data set needs none

    image = _decode(path)
    if image.ndim == 3:
        channels = {1: None, 3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY}
        code = channels[image.shape[2]]
        image = image[..., 0] if code is None else cv2.cvtColor(image, code)
    return image


def read_colour(path: Path) -> np.ndarray:
    """An image as `(H, W, 3)` uint8 RGB: gray becomes three equal channels, else as `read_gray`.

    Raises:
        ValueError: As `read_gray`.
    """
    import cv2

    image = _decode(path)
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    code = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGB
    return cv2.cvtColor(image, code)


def _decode(path: Path) -> np.ndarray:
    """An image as OpenCV has it, `(H, W)`, or `(H, W, C)` in the order B, G, R, A; 8 bits."""
    import cv2

    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    try:
        flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        raise ValueError(f"OpenCV refuses it ({error.err})") from error
    if image is None:
        raise ValueError("no image that OpenCV can read")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"an image of {image.dtype} values; 8 or 16 bits are expected")
    return image


class NoFrames(UserError):
    """A folder without numbered images, or a video of which no frame can be decoded."""


class FrameSource(abc.ABC):
    """The numbered frames of a folder or a video file, see `open_frames`.

    Iterating gives `(number, (H, W, 3) uint8 RGB)` in order, one frame in memory at a time.

    Attributes:
        path: The folder or file.
        numbers: Of the frames, ascending. Folders: those in the file names. Videos: counted from
            `first`.
        times: `(len(numbers),)` float64 seconds from the start; None where they are not known.
    """

    path: Path
    numbers: Sequence[int]
    times: np.ndarray | None

    @abc.abstractmethod
    def read(self, number: int) -> np.ndarray:
        """A frame as `(H, W, 3)` uint8 RGB.

        Raises:
            UserError: There is no such frame, or it cannot be read; the message names it.
        """

    @abc.abstractmethod
    def read_gray(self, number: int) -> np.ndarray:
        """A frame as `(H, W)` uint8; raises as `read`."""

    @abc.abstractmethod
    def name(self, number: int) -> str:
        """The frame's file, and for a video its number, for messages."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Which frames there are, for messages: `the folder has frames 1 to 9`."""

    @abc.abstractmethod
    def stamps(self, first: int, last: int) -> list[tuple]:
        """Names, sizes and modification times of the files that hold frames `first` to `last`."""

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        for number in self.numbers:
            yield number, self.read(number)


def open_frames(path: Path | str, *, fps: float | None = None, first: int = 1) -> FrameSource:
    """Opens a folder of numbered images, or a video file, as numbered frames.

    A video's frames are those that can be decoded, whatever count its header claims, turned as its
    rotation flag says. Of a video with fewer frames than claimed the last one is left out: where a
    file was cut off, decoders fill it up. Their times are its time stamps, so that the frame rate
    may vary.

    Args:
        path: The folder or file.
        fps: Frames a second: for a folder, which has no times of its own, or a video whose stamps
            are wrong (slow motion). A folder's first frame is at 0 s, gaps in the numbers count.
        first: Number of a video's first frame; 1, as ffmpeg numbers the images it extracts.

    Raises:
        UserError: No such path, two images with one number, or a file that is no video;
            `NoFrames`: nothing that can be decoded.
    """
    path = Path(path)
    try:
        changed = path.stat().st_mtime_ns
        if path.is_dir():
            return _Folder(path, fps)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be opened as frames ({reason})") from error
    if path.suffix.lower() not in VIDEOS:
        known = ", ".join(VIDEOS)
        raise UserError(f"{path}: neither a folder of images nor a video file ({known})")
    return _open_video(path, changed, fps, first)


class _Folder(FrameSource):
    def __init__(self, path: Path, fps: float | None) -> None:
        self.path = path
        self._files = image_files(path)
        self.numbers = tuple(self._files)
        if not self.numbers:
            raise NoFrames(f"{path}: it holds no images with a number in their name")
        self.times = (np.array(self.numbers) - self.numbers[0]) / fps if fps else None

    def read(self, number: int) -> np.ndarray:
        return self._read(number, read_colour)

    def read_gray(self, number: int) -> np.ndarray:
        return self._read(number, read_gray)

    def _read(self, number: int, reader: Callable[[Path], np.ndarray]) -> np.ndarray:
        if number not in self._files:
            raise UserError(f"{self.path}: frame {number} is not there; {self.describe()}")
        try:
            return reader(self._files[number])
        except ValueError as error:
            raise UserError(f"{self.name(number)}: {error}") from error

    def name(self, number: int) -> str:
        return self._files[number].name

    def describe(self) -> str:
        return f"the folder has frames {self.numbers[0]} to {self.numbers[-1]}"

    def stamps(self, first: int, last: int) -> list[tuple]:
        return [
            (number, path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for number, path in self._files.items()
            if first <= number <= last
        ]


class _Video(FrameSource):
    """Decodes forward only: seeking by frame is not exact in many files."""

    def __init__(self, path: Path, changed: int, fps: float | None, first: int) -> None:
        self.path = path
        count, self.times, self._claimed = _scan(path, changed)
        self.numbers = range(first, first + count)
        if fps:
            self.times = np.arange(count) / fps
        self._capture: Any = None
        self._next = first
        self._kept: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    def read(self, number: int) -> np.ndarray:
        import cv2

        return cv2.cvtColor(self._frame(number), cv2.COLOR_BGR2RGB)

    def read_gray(self, number: int) -> np.ndarray:
        import cv2

        return cv2.cvtColor(self._frame(number), cv2.COLOR_BGR2GRAY)

    def name(self, number: int) -> str:
        return f"{self.path.name}, frame {number}"

    def describe(self) -> str:
        found = f"the video has frames {self.numbers[0]} to {self.numbers[-1]}"
        is_short = self._claimed > len(self.numbers)
        return found + f", of {self._claimed} that its header claims" * is_short

    def stamps(self, first: int, last: int) -> list[tuple]:
        found = self.path.stat()
        return [(self.path.name, found.st_size, found.st_mtime_ns)]

    def _frame(self, number: int) -> np.ndarray:
        """A frame in the order B, G, R; those that are passed on the way are kept for a while."""
        if number not in self.numbers:
            raise UserError(f"{self.path}: frame {number} is not there; {self.describe()}")
        if number in self._kept:
            return self._kept[number]
        if self._capture is None or number < self._next:
            self._capture, self._next = _capture(self.path), self.numbers[0]
        while self._next <= number:
            done, image = self._capture.read()
            if not done:
                raise UserError(f"{self.name(self._next)}: can no longer be decoded")
            self._kept[self._next] = image
            self._next += 1
            while len(self._kept) > 1 and len(self._kept) * image.nbytes > _KEPT_BYTES:
                self._kept.popitem(last=False)
        return image


# Only one, because of the frames it keeps: the clips of a video follow one another.
@functools.lru_cache(maxsize=1)
def _open_video(path: Path, changed: int, fps: float | None, first: int) -> FrameSource:
    return _Video(path, changed, fps, first)


def _capture(path: Path) -> Any:
    """OpenCV's reader; FFmpeg only, as another backend would take `img1.jpg` for a series."""
    import cv2

    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise UserError(f"{path}: no video that OpenCV can read, or a truncated one")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


@functools.lru_cache(maxsize=256)
def _scan(path: Path, changed: int) -> tuple[int, np.ndarray | None, int]:
    """How many frames can be decoded, their times in seconds, and how many the header claims."""
    import cv2

    capture = _capture(path)
    claimed, fps = (capture.get(key) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
    milliseconds = []
    while capture.grab():
        milliseconds.append(capture.get(cv2.CAP_PROP_POS_MSEC))
    if not milliseconds:
        raise NoFrames(f"{path}: not one frame of this video can be decoded")
    times = np.array(milliseconds) / 1000
    if not (np.diff(times) > 0).all():  # Some containers have no usable stamps.
        times = np.arange(len(times)) / fps if fps > 0 else None
    count = len(milliseconds)
    if claimed > count > 1:
        # Cut off: decoders fill up the last frame that is there. Half of it would be wrong data.
        count -= 1
    return count, None if times is None else times[:count], int(claimed)
