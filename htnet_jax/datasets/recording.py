"""Frames of a recording on disk: a folder of numbered images or a video file, read alike."""

from __future__ import annotations

import abc
import collections
import functools
import os
import re
import types
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from htnet_jax import foreign
from htnet_jax.datasets import images
from htnet_jax.errors import UserError, shown

VIDEOS = (".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
# Decoded frames of a video that are kept, in bytes: 140 frames of 640 x 480 pixels. Most clips fit,
# so that onset, apex and the frames between them are decoded once.
_KEPT_BYTES = 128 * 2**20
# Frame numbers are stored with 32 bits.
_LARGEST_NUMBER = 2**31 - 1
OUTSIDE = (
    "is a link leading outside the folder and is not followed; put a copy of what it leads to there"
)


def is_inside(path: Path, real_root: str) -> bool:
    """Whether a path, links resolved, lies inside an already resolved root."""
    return os.path.commonpath([os.path.realpath(path), real_root]) == real_root


def composed(name: str) -> str:
    """A name with its letters in Unicode's composed form.

    macOS writes an `é` in a folder's name as two characters, most sheets have it as one.
    """
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """A name as names are compared where letter case does not matter, nor how letters compose."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


class Listing(NamedTuple):
    """What a folder of images holds.

    Attributes:
        files: Number -> image, in order of the numbers.
        left_out: Name of an image that is no frame -> why.
        rivals: For each other way in which images are named, their numbers.
    """

    files: Mapping[int, Path]
    left_out: Mapping[str, str]
    rivals: Sequence[frozenset[int]]


def image_files(folder: Path) -> Mapping[int, Path]:
    """Number -> image of a clip's folder, see `listing`."""
    return listing(folder).files


def listing(folder: Path) -> Listing:
    """The frames of a clip's folder: the images that are named alike, such as `reg_img46.jpg`.

    They have one pattern: what stands before and after the last number, that number's padding with
    zeros, and the extension. The pattern of most images counts; others are foreign images or copies
    (`39 (1).jpg`, `mean_face2.jpg`).

    Raises:
        ValueError: Several patterns have as many images, two images have one number, or a link
            leads out of the folder.
    """
    return _listing(folder, folder.stat().st_mtime_ns)


# Recordings may have thousands of frames, so only the folders at hand are remembered.
@functools.lru_cache(maxsize=64)
def _listing(folder: Path, _changed: int) -> Listing:
    left_out: dict[str, str] = {}
    alike: dict[tuple[str, str, str], dict[str, str]] = collections.defaultdict(dict)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            stem, extension = os.path.splitext(entry.name)
            if extension.lower() not in images.SUFFIXES or entry.name.startswith("._"):
                continue
            found = re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", stem, re.DOTALL)
            if not entry.is_file():
                left_out[entry.name] = "no regular file"
            elif found is None:
                left_out[entry.name] = "it has no number"
            elif int(found[2]) > _LARGEST_NUMBER:
                left_out[entry.name] = f"its number is above {_LARGEST_NUMBER:,}"
            else:
                around = composed(found[1]), composed(found[3]), extension.lower()
                alike[around][entry.name] = found[2]
    patterns = [
        (names, _described(*around, width))
        for around, numbers in alike.items()
        for width, names in _by_padding(numbers)
    ]
    patterns.sort(key=lambda pattern: -len(pattern[0]))
    names, pattern = patterns[0] if patterns else ({}, "")
    if rivals := [text for others, text in patterns[1:] if len(others) == len(names)]:
        raise ValueError(
            f"{', '.join([pattern, *rivals])}: images are named in several ways, {len(names)} in "
            "each, so that it is not clear which are the frames; move the others elsewhere"
        )
    files: dict[int, Path] = {}
    for name, number in names.items():
        if int(number) in files:
            raise ValueError(f"{files[int(number)].name} and {name} have the same number")
        files[int(number)] = folder / name
    base = os.path.realpath(folder)
    for path in files.values():
        if path.is_symlink() and not is_inside(path, base):
            raise ValueError(f"{path.name} {OUTSIDE}")
    for name in (name for numbers in alike.values() for name in numbers):
        if name not in names:
            left_out[name] = f"not named like the frames, {pattern}"
    return Listing(
        types.MappingProxyType(dict(sorted(files.items()))),
        types.MappingProxyType(left_out),
        [
            frozenset(int(number) for name, number in others.items() if name not in names)
            for others, _ in patterns[1:]
        ],
    )


def _by_padding(numbers: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Digits that numbers are filled up to with zeros (1: none), and the names that agree."""
    padded = {len(number) for number in numbers.values() if number[0] == "0"}
    for width in sorted({1, *padded}):
        agree = {
            name: number
            for name, number in numbers.items()
            if len(number) == width or (len(number) > width and number[0] != "0")
        }
        if agree:
            yield width, agree


def _described(before: str, after: str, extension: str, width: int) -> str:
    number = f"{width} digits" if width > 1 else "number"
    return shown(f"{before}<{number}>{after}{extension}")


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
        left_out: What is there and not used -> why: images that are not named like the frames, or
            what follows the first damage in a video.
        rivals: For each other way in which images there are named, their numbers.
    """

    path: Path
    numbers: Sequence[int]
    times: np.ndarray | None
    left_out: Mapping[str, str]
    rivals: Sequence[frozenset[int]] = ()

    @property
    def depth(self) -> int:
        """Bits that the values of all images together need; the highest 8 of them are used."""
        return 8

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
        why = f"cannot be opened as frames ({foreign.reason(error)})"
        raise UserError(f"{path}: {why}") from error
    if path.suffix.lower() not in VIDEOS or not path.is_file():  # A pipe would be waited for.
        known = ", ".join(VIDEOS)
        raise UserError(f"{path}: neither a folder of images nor a video file ({known})")
    return _open_video(path, changed, fps, first)


class _Folder(FrameSource):
    def __init__(self, path: Path, fps: float | None) -> None:
        self.path = path
        self._files, self.left_out, self.rivals = listing(path)
        self.numbers = tuple(self._files)
        if not self.numbers:
            films = [shown(p.name) for p in sorted(path.iterdir()) if p.suffix.lower() in VIDEOS]
            only = f"; {only_video(films[0], path.name)}" if films else ""
            raise NoFrames(f"{path}: it holds no images with a number in their name{only}")
        self.times = (np.array(self.numbers) - self.numbers[0]) / fps if fps else None

    def read(self, number: int) -> np.ndarray:
        return self._read(number, images.read_colour)

    def read_gray(self, number: int) -> np.ndarray:
        return self._read(number, images.read_gray)

    def _read(self, number: int, reader: Callable[..., np.ndarray]) -> np.ndarray:
        if number not in self._files:
            raise UserError(f"{self.path}: frame {number} is not there; {self.describe()}")
        try:
            return reader(self._files[number], self.depth)
        except ValueError as error:
            raise UserError(f"{self.name(number)}: {error}") from error

    @property
    def depth(self) -> int:
        if self._files[self.numbers[0]].suffix.lower() not in (".png", ".tif", ".tiff"):
            return 8  # as all images of these formats
        return _depth(self.path, self.path.stat().st_mtime_ns)

    def name(self, number: int) -> str:
        return self._files[number].name

    def describe(self) -> str:
        found = f"the folder has frames {self.numbers[0]} to {self.numbers[-1]}"
        others = ", ".join(shown(name) for name in list(self.left_out)[:5])
        more = f" and {len(self.left_out) - 5} more" * (len(self.left_out) > 5)
        return f"{found}; not used: {others}{more}" if others else found

    def stamps(self, first: int, last: int) -> list[tuple]:
        depth = [("bits", self.depth)] if self.depth != 8 else []  # All its images decide it.
        return depth + [
            (number, path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for number, path in self._files.items()
            if first <= number <= last
        ]


@functools.lru_cache(maxsize=256)
def _depth(folder: Path, changed: int) -> int:
    """The bits that the values of a folder's images need; 8 if the first has 8."""
    largest = None
    for path in _listing(folder, changed).files.values():
        try:
            image = images.decode(path)
        except ValueError:
            continue  # Where it is used, this is said.
        if image.dtype == np.uint8 and largest is None:
            return 8
        largest = max(largest or 0, int(image.max()))
        if images.depth_of(largest) == 16:
            break
    return images.depth_of(largest or 0)


def only_video(film: str, folder: str) -> str:
    """What to do about a video where images are expected, for messages."""
    return (
        f"only the video {film} is there; extract its frames to numbered images in a folder "
        f"{folder}/ first, with the numbers that the sheet uses"
    )


class _Video(FrameSource):
    """Decodes forward only: seeking by frame is not exact in many files."""

    def __init__(self, path: Path, changed: int, fps: float | None, first: int) -> None:
        self.path = path
        count, self.times, self._claimed, damage = _scan(path, changed)
        self.left_out = {f"frame {first + count} and later": damage} if damage else {}
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
        found += f", of {self._claimed} that its header claims" * is_short
        return "; ".join([found, *(f"{what}: {why}" for what, why in self.left_out.items())])

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


def _capture(path: Path, *, threads: int = 0) -> Any:
    """OpenCV's reader; FFmpeg only, as another backend would take `img1.jpg` for a series.

    Args:
        path: The video.
        threads: Of the decoder; 0: as many as it likes.
    """
    import cv2

    with foreign.reading(path, "video", "Give it a name in UTF-8."):
        str(path).encode()  # OpenCV ends the process where this fails.
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
    if not capture.isOpened():
        raise UserError(f"{path}: no video that OpenCV can read, or a truncated one")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


# What FFmpeg says of damaged data, whose frames it fills up: `[mjpeg @ 0x55d1] overread 8`.
_DAMAGE = re.compile(r"^\[\w+[\w, ]* @ 0x[0-9a-f]+\] (.*)")


@functools.lru_cache(maxsize=256)
def _scan(path: Path, changed: int) -> tuple[int, np.ndarray | None, int, str]:
    """Frames that can be used, their times in seconds, frames claimed, first damage or ""."""
    import cv2

    # With one thread, what the decoder says is said while the frame in question is decoded; others
    # work ahead, and speak at any moment.
    capture = _capture(path, threads=1)
    claimed, fps = (capture.get(key) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
    milliseconds, sound, damage = [], None, ""
    while True:
        with images.complaints(_DAMAGE) as said:
            found = capture.grab()
        if said and sound is None:
            # Said while this frame or one after it was decoded; later ones depend on it.
            sound = len(milliseconds)
            damage = f"the decoder reports damage ({shown(_DAMAGE.search(said[0])[1])})"
        if not found:
            break
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
    if sound is not None and sound < count:
        count = sound
        if not count:
            raise NoFrames(f"{path}: not one frame of this video can be used: {damage}")
    else:
        damage = ""
    return count, None if times is None else times[:count], int(claimed), damage
