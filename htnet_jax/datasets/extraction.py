"""One clip's frames -> points, apex, flow tensor: what a worker process does, and nothing shared.

A clip's result depends on its frames and the recipe alone, so any number of workers, and a run
that was interrupted, give the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from htnet_jax.datasets import face_frames
from htnet_jax.datasets.frames import ClipFrames
from htnet_jax.datasets.recipe import FACE_SIZE, Recipe
from htnet_jax.datasets.survey import Finding, RawClip
from htnet_jax.datasets.tree import frames, read_gray
from htnet_jax.motion import regions


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a worker needs.

    Attributes:
        clip: The clip.
        recipe: How its tensor is made.
        model: File of dlib's 68-point model; None: the installed one.
        points: `(5, 2)` points on the onset frame for `landmarks=csv`, else None.
    """

    clip: RawClip
    recipe: Recipe
    model: Path | None = None
    points: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the result, the frames' sizes and times included."""
        clip = self.clip
        files = frames(clip.folder)
        stamps = [
            (number, path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for number, path in files.items()
            if clip.onset <= number <= clip.offset
        ]
        points = None if self.points is None else self.points.tolist()
        text = repr((clip, self.recipe.canonical, str(self.model), points, stamps))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What looking at a clip's pictures gave.

    Attributes:
        findings: What is wrong; with a dropping one the other fields mean nothing.
        apex: Number of the apex frame that is used.
        apex_rule: "sheet", "midpoint" or "estimate".
        points: `(5, 2)` float64 (x, y) on the onset frame, pixels.
        apex_points: The same on the apex frame, for `align=head`.
        found: How the points were found: "detector", "upsampled", "whole picture", "csv" or
            "template".
        unusable: Numbers of frames near onset or apex that cannot be stored as face frames.
    """

    findings: tuple[Finding, ...]
    apex: int = 0
    apex_rule: str = ""
    points: np.ndarray | None = None
    apex_points: np.ndarray | None = None
    found: str = ""
    unusable: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Steps:
    """Every step from frames to tensor, for the preview as well.

    Attributes:
        onset: `(H, W)` uint8, the picture that flow is computed on: aligned, or as it is.
        apex: The same of the apex frame.
        tensor: `(S, S, 3)` float32: u, v, optical strain, in pixels of the tensor.
        landmarks: `(5, 2)` float32 in pixels of the tensor.
        frames: The face frames, where the recipe has any.
    """

    onset: np.ndarray
    apex: np.ndarray
    tensor: np.ndarray
    landmarks: np.ndarray
    frames: ClipFrames | None = None


def check_frames(clip: RawClip, known_gap: str = "") -> Iterator[Finding]:
    """Findings about frames that are not on disk; looks at names only.

    Args:
        clip: The clip.
        known_gap: Why its last frames are known to be missing; then that is only a note.
    """
    try:
        files = frames(clip.folder)
    except (OSError, ValueError) as error:
        yield Finding("path", (clip.id,), str(clip.folder), str(error), drops=True)
        return
    if not files:
        yield Finding("folder", (clip.id,), str(clip.folder), "it holds no pictures", drops=True)
        return
    span = f"the folder has frames {min(files)} to {max(files)}"
    if clip.onset not in files:
        what = f"onset frame {clip.onset} is not there; {span}"
        yield Finding("onset", (clip.id,), str(clip.folder), what, drops=True)
    if _is_possible(clip) and clip.apex not in files:
        what = f"apex frame {clip.apex} is not there; {span}"
        yield Finding("apex", (clip.id,), str(clip.folder), what, drops=True)
    if clip.offset not in files:
        what = f"offset frame {clip.offset} is not there; {span}"
        if known_gap:
            what = f"{what} ({known_gap})"
            yield Finding("note", (clip.id,), str(clip.folder), what, is_problem=False)
        else:
            yield Finding("offset", (clip.id,), str(clip.folder), what)


def inspect(job: Job) -> Inspection:
    """Reads the onset and apex pictures, finds the points, and applies the apex rule."""
    clip, recipe = job.clip, job.recipe
    found: list[Finding] = []
    try:
        onset = _read(clip, clip.onset)
        points, how = _points(job, onset)
        _check_usable(recipe, onset, points)
        apex, rule = clip.apex, "sheet"
        if not _is_possible(clip):
            apex, rule = _ruled_apex(job, onset, points), recipe.apex
            if clip.apex is not None:
                what = f"apex {clip.apex} is impossible (onset {clip.onset}, offset {clip.offset})"
                note = f"{what}; {rule} gives {apex}"
                found.append(Finding("note", (clip.id,), str(clip.folder), note, is_problem=False))
        picture = _read(clip, apex)
        if picture.shape != onset.shape:
            raise _Bad("image", f"apex is {_size(picture)} pixels, onset is {_size(onset)}")
        apex_points = _points(job, picture)[0] if recipe.align == "head" else None
        unusable = {}
        if recipe.frames != "none":
            unusable = face_frames.problems(clip, apex, recipe.frames, onset.shape)
            # The clip can do without: such a frame is one of several that jitter may take.
            found += [Finding("image", (clip.id,), str(clip.folder), w) for w in unusable.values()]
    except _Bad as bad:
        return Inspection((Finding(bad.kind, (clip.id,), str(clip.folder), str(bad), drops=True),))
    return Inspection(tuple(found), apex, rule, points, apex_points, how, tuple(unusable))


def compute(job: Job, inspection: Inspection) -> Steps:
    """The tensor of a clip that was inspected without a dropping finding."""
    from htnet_jax.motion import flow

    clip, recipe = job.clip, job.recipe
    onset, apex = _read(clip, clip.onset), _read(clip, inspection.apex)
    points = inspection.points
    transforms = None if recipe.align == "none" else _transforms(inspection)
    if transforms:
        onset, apex, points = _aligned(onset, apex, points, transforms)
    stored = None
    with single_threaded():
        if recipe.frames != "none":
            chosen = face_frames.groups(clip, inspection.apex, recipe.frames, inspection.unusable)
            stored = face_frames.extract(clip, inspection.apex, chosen, transforms, FACE_SIZE)
        tensor = flow.flow_tensor(
            onset,
            apex,
            method=recipe.flow,
            size=recipe.size,
            strain=recipe.strain,
            order=recipe.order,
        )
    # Pixel centres have whole-numbered coordinates.
    scale = recipe.size / np.array(onset.shape[::-1], np.float64)
    landmarks = (points + 0.5) * scale - 0.5
    return Steps(onset, apex, tensor, landmarks.astype(np.float32), stored)


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """OpenCV on one thread: the workers share the cores among themselves, and order matters."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class _Bad(Exception):
    """A clip that cannot be built; `kind` as in `survey.KINDS`."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def _is_possible(clip: RawClip) -> bool:
    # An apex on the onset shows no motion at all.
    return clip.apex is not None and clip.onset < clip.apex <= clip.offset


def _read(clip: RawClip, number: int) -> np.ndarray:
    path = frames(clip.folder)[number]
    try:
        return read_gray(path)
    except ValueError as error:
        raise _Bad("image", f"{path.name}: {error}") from error


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def _points(job: Job, picture: np.ndarray) -> tuple[np.ndarray, str]:
    if job.recipe.landmarks == "csv":
        if job.points is None:
            raise _Bad("landmarks", "no row in landmarks.csv")
        return np.asarray(job.points, np.float64), "csv"
    if job.recipe.landmarks == "template":
        scale = np.array(picture.shape[::-1]) / 28
        return (regions.TEMPLATE_POINTS.astype(np.float64) + 0.5) * scale - 0.5, "template"
    from htnet_jax.motion import landmarks

    try:
        face = _detector(job.model).find(picture)
    except landmarks.NoFace as error:
        raise _Bad("landmarks", str(error)) from error
    return face.points.astype(np.float64), face.how


@functools.cache
def _detector(model: Path | None) -> Any:
    """One detector a process: loading the model takes longer than using it."""
    from htnet_jax.motion import landmarks

    return landmarks.Detector(model)


def _check_usable(recipe: Recipe, picture: np.ndarray, points: np.ndarray) -> None:
    """What would fail later, in the middle of the flow."""
    from htnet_jax.motion import alignment, flow

    try:
        alignment.face_transform(points, FACE_SIZE)
    except ValueError as error:
        raise _Bad("landmarks", str(error)) from error
    smallest = flow.DIS_SMALLEST if recipe.flow == "dis" else 2
    if recipe.align == "none" and recipe.order == "crop" and min(picture.shape) < smallest:
        what = f"{_size(picture)} pixels; {recipe.flow} needs at least {smallest}"
        raise _Bad("image", what)


def _ruled_apex(job: Job, onset: np.ndarray, points: np.ndarray) -> int:
    """The apex by the recipe's rule, among the frames after the onset that are on disk."""
    clip = job.clip
    numbers = [n for n in frames(clip.folder) if clip.onset < n <= clip.offset]
    if not numbers:
        raise _Bad("apex", f"no frame between onset {clip.onset} and offset {clip.offset}")
    if job.recipe.apex == "midpoint":
        middle = (clip.onset + clip.offset) // 2
        return min(numbers, key=lambda number: (abs(number - middle), number))
    from htnet_jax.motion import alignment, apex

    transform = alignment.face_transform(points, FACE_SIZE)

    def face(picture: np.ndarray) -> np.ndarray:
        return alignment.warp(picture, transform, FACE_SIZE)

    with single_threaded():
        return apex.estimate_apex(
            face(onset),
            ((number, face(_read(clip, number))) for number in numbers),
            alignment.transform_points(transform, points),
        )


def _transforms(inspection: Inspection) -> tuple[np.ndarray, np.ndarray]:
    """Of the onset and of the apex; the same unless each frame has its own points."""
    from htnet_jax.motion import alignment

    transform = alignment.face_transform(inspection.points, FACE_SIZE)
    apex_points = inspection.apex_points
    own = transform if apex_points is None else alignment.face_transform(apex_points, FACE_SIZE)
    return transform, own


def _aligned(
    onset: np.ndarray,
    apex: np.ndarray,
    points: np.ndarray,
    transforms: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from htnet_jax.motion import alignment

    return (
        alignment.warp(onset, transforms[0], FACE_SIZE),
        alignment.warp(apex, transforms[1], FACE_SIZE),
        alignment.transform_points(transforms[0], points),
    )
