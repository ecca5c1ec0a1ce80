"""One clip's frames -> face points -> aligned face -> flow tensor, in worker processes.

A clip's result depends on its frames and the recipe alone, so any number of workers, and a run
that was interrupted, give the same bytes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from htnet_jax import foreign
from htnet_jax.datasets import frames
from htnet_jax.datasets.recipe import FACE_SIZE, Recipe
from htnet_jax.datasets.recording import NoFrames, open_frames
from htnet_jax.datasets.survey import Finding, RawClip
from htnet_jax.errors import UserError, shown
from htnet_jax.io import write_atomically
from htnet_jax.motion import regions
from htnet_jax.progress import progress

# The largest flow within the face, in eye distances: 22 mm of an adult's 63 mm, 4.2 px of an
# aligned tensor of 28. So far the corner of the mouth moves in the widest of smiles (7 to 22 mm,
# Paletz et al., Plastic and Reconstructive Surgery 1994); in a micro-expression far less, and the
# rest is left to the head. On rendered clips it is at most 0.09; into another face or an image
# without one TV-L1 reaches 0.2 to 1.7, mostly more than this.
MOST_FLOW = 0.35
# The least correlation of the face's gray levels at onset and apex: blank images have 0, and there
# TV-L1 finds no motion at all. It is 0.97 and more on rendered clips, and on a photograph 0.7 to 1
# with other light, gain or noise, and 0.4 where it has moved as far as the flow may.
LEAST_ALIKE = 0.4

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything a worker needs.

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
        """SHA-256 of all that decides the result, the files' sizes and times included."""
        clip = self.clip
        stamps = open_frames(clip.folder).stamps(clip.onset, clip.offset)
        points = None if self.points is None else self.points.tolist()
        text = repr((clip, self.recipe.canonical, str(self.model), points, stamps))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What inspecting a clip's frames gave.

    Attributes:
        findings: What is wrong; with a dropping one the other fields mean nothing.
        apex: Number of the apex frame that is used.
        apex_rule: "sheet", "midpoint" or "estimate".
        points: `(5, 2)` float64 (x, y) on the onset frame, pixels.
        apex_points: The same on the apex frame, of the face nearest to the onset's; None where the
            points do not come from the images.
        found: How the points were found: "detector", "upsampled", "whole picture", "csv" or
            "template".
        unusable: Numbers of frames that the recipe wants stored and that cannot be.
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
        onset: `(H, W)` uint8, the image that flow is computed on: aligned, or as it is.
        apex: The same of the apex frame.
        tensor: `(S, S, 3)` float32: u, v, optical strain, in pixels of the tensor.
        landmarks: `(5, 2)` float32 in pixels of the tensor.
        frames: The face frames, where the recipe has any.
    """

    onset: np.ndarray
    apex: np.ndarray
    tensor: np.ndarray
    landmarks: np.ndarray
    frames: frames.ClipFrames | None = None


def check_frames(clip: RawClip, known_gap: str = "") -> Iterator[Finding]:
    """Findings about frames that do not exist; of folders it reads the names only.

    Args:
        clip: The clip.
        known_gap: Why its last frames are known to be missing; then that is only a note.
    """
    try:
        source = open_frames(clip.folder)
    except UserError as error:
        kind = "folder" if isinstance(error, NoFrames) else "path"
        # The folder's path stands beside it, and tells of the machine.
        yield _finding(clip, kind, str(error).removeprefix(f"{clip.folder}: "), drops=True)
        return
    for name, why in source.left_out.items():
        yield _finding(clip, "image", f"{shown(name)} is not used: {why}")
    wanted = {"onset": clip.onset, "apex": clip.apex, "offset": clip.offset}
    if not _is_possible(clip):
        del wanted["apex"]
    numbers = set(wanted.values())
    if len(numbers) > 1 and any(numbers <= rival for rival in source.rivals):
        # The most images need not be the frames: a whole video may have been extracted beside them.
        what = "its frames are there twice, named in two ways; move those that are not the clip's"
        yield _finding(clip, "image", what, drops=True)
    for kind, number in wanted.items():
        if number in source.numbers:
            continue
        what = f"{kind} frame {number} is not there; {source.describe()}"
        if kind == "offset" and known_gap:
            yield _finding(clip, "note", f"{what} ({known_gap})")
        else:
            yield _finding(clip, kind, what, drops=kind != "offset")


def inspect(job: Job) -> Inspection:
    """Reads the onset and apex frames, finds the points, and applies the apex rule."""
    clip, recipe = job.clip, job.recipe
    found: list[Finding] = []
    try:
        onset = _read(clip, clip.onset)
        points, how = _points(job, onset)
        _check_usable(recipe, onset, points)
        if 8 < (depth := open_frames(clip.folder).depth) < 16:
            what = f"16-bit images with values of {depth} bits: the lowest {depth - 8} are dropped"
            found.append(_finding(clip, "note", what))
        apex, rule = clip.apex, "sheet"
        if not _is_possible(clip):
            apex, rule = _ruled_apex(job, onset, points), recipe.apex
            if clip.apex is not None:
                what = f"apex {clip.apex} is impossible (onset {clip.onset}, offset {clip.offset})"
                found.append(_finding(clip, "note", f"{what}; {rule} gives {apex}"))
        image = _read(clip, apex)
        if image.shape != onset.shape:
            raise _Bad("image", f"apex is {_size(image)} pixels, onset is {_size(onset)}")
        # Looked at in any case: without a face there, the flow means nothing.
        apex_points = _apex_points(job, apex, image, points)
        unusable = {}
        if recipe.frames != "none":
            unusable = _unusable(clip, apex, recipe.frames, onset)
            # The clip does not need it: another is taken, or jitter has one less to choose from.
            found += [_finding(clip, "image", what) for what in unusable.values()]
    except _Bad as bad:
        return Inspection((_finding(clip, bad.kind, str(bad), drops=True),))
    return Inspection(tuple(found), apex, rule, points, apex_points, how, tuple(unusable))


def compute(job: Job, inspection: Inspection) -> Steps:
    """The tensor of a clip that was inspected without a dropping finding."""
    from htnet_jax.motion import alignment, flow

    clip, recipe = job.clip, job.recipe
    onset, apex = _read(clip, clip.onset), _read(clip, inspection.apex)
    points = inspection.points
    if recipe.align != "none":
        transforms = _transforms(job, inspection, FACE_SIZE)
        onset = alignment.warp(onset, transforms[0], FACE_SIZE)
        apex = alignment.warp(apex, transforms[1], FACE_SIZE)
        points = alignment.transform_points(transforms[0], points)
    with single_threaded():
        stored = _face_frames(job, inspection) if recipe.frames != "none" else None
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


def _transforms(job: Job, inspection: Inspection, side: int) -> tuple[np.ndarray, np.ndarray]:
    """What aligns the onset and the apex to faces of that side."""
    from htnet_jax.motion import alignment

    own = inspection.apex_points if job.recipe.align == "head" else inspection.points
    return (
        alignment.face_transform(inspection.points, side),
        alignment.face_transform(own, side),
    )


def impossible_flow(job: Job, steps: Steps) -> Finding | None:
    """What is wrong with flow that no face can make, see `MOST_FLOW` and `LEAST_ALIKE`.

    Only the flow near the points counts, as far as an aligned face reaches: beside it, something
    may move.
    """
    eyes = float(np.linalg.norm(steps.landmarks[1] - steps.landmarks[0]))
    size = len(steps.tensor)
    reach = eyes * 14 / np.linalg.norm(np.subtract(*regions.TEMPLATE_POINTS[:2]))
    y, x = np.mgrid[:size, :size]
    centre = steps.landmarks.mean(axis=0)
    near = (abs(x - centre[0]) <= reach) & (abs(y - centre[1]) <= reach)
    largest = float(np.linalg.norm(steps.tensor[..., :2], axis=-1)[near].max(initial=0))
    alike = _correlation(steps.onset, steps.apex, near)
    if largest > MOST_FLOW * eyes:
        what = f"flow of {largest:.1f} pixels of {size}, {largest / eyes:.1f} eye distances: no "
        what += "face moves so far from onset to apex"
    elif alike < LEAST_ALIKE:
        what = f"the face's gray levels at onset and apex have a correlation of {alike:.2f}"
    else:
        return None
    what += "; are both images of this clip, and do the points fit?"
    return _finding(job.clip, "flow", what, drops=True)


def _correlation(onset: np.ndarray, apex: np.ndarray, near: np.ndarray) -> float:
    """Pearson's, of two images at the size of the mask `near` and within it; 0 of a blank one."""
    import cv2

    first, second = (
        cv2.resize(image, near.shape, interpolation=cv2.INTER_AREA)[near].astype(np.float64)
        for image in (onset, apex)
    )
    first, second = first - first.mean(), second - second.mean()
    scale = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / scale) if scale else 0.0


def about_frames(jobs: Sequence[Job], inspections: Sequence[Inspection]) -> dict[str, Any]:
    """What the metadata say of the stored face frames; loading takes rule and share from here.

    Args:
        jobs: All clips that are built, of one recipe with frames.
        inspections: Of the same clips.
    """
    recipe = jobs[0].recipe
    rule, count = recipe.frames, frames.count_of(recipe.frames)
    stored = missing = repeating = 0
    for job, inspection in zip(jobs, inspections, strict=True):
        clip = job.clip
        span = clip.onset, inspection.apex, clip.offset
        stored += sum(map(len, _chosen(clip, inspection.apex, rule, inspection.unusable)))
        there = sum(map(len, _chosen(clip, inspection.apex, rule)))
        # Every frame from onset to offset would be there: as many as the rule can store.
        wanted = frames.pick(rule, span, range(clip.onset, clip.offset + 1))
        missing += max(sum(map(len, wanted)) - there, 0)
        if count:
            numbers, times = _usable(clip, inspection.unusable)
            rows = frames.evenly(numbers, clip.onset, clip.offset, count, times)
            repeating += len({*rows}) < count
    return {
        "kind": rule,
        "side": recipe.frame_side,
        "share": frames.share_of(rule),
        "stored": stored,
        "missing": missing,
        "unusable": sum(len(inspection.unusable) for inspection in inspections),
        **({"flow": recipe.flow, "repeating": repeating} if recipe.clip else {}),
    }


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


def _finding(clip: RawClip, kind: str, what: str, *, drops: bool = False) -> Finding:
    is_problem = kind != "note"
    return Finding(kind, (clip.id,), str(clip.folder), what, is_problem=is_problem, drops=drops)


class _Bad(Exception):
    """A clip that cannot be built; `kind` as in `survey.KINDS`."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def _is_possible(clip: RawClip) -> bool:
    # An apex on the onset shows no motion at all.
    return clip.apex is not None and clip.onset < clip.apex <= clip.offset


def _read(clip: RawClip, number: int) -> np.ndarray:
    try:
        return open_frames(clip.folder).read_gray(number)
    except UserError as error:
        raise _Bad("image", str(error)) from error


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _apex_points(job: Job, apex: int, image: np.ndarray, near: np.ndarray) -> np.ndarray | None:
    if job.recipe.landmarks != "dlib":
        return None
    from htnet_jax.motion import landmarks

    try:
        return _detector(job.model).follow(image, near).astype(np.float64)
    except landmarks.NoFace as error:
        raise _Bad("landmarks", f"apex frame {apex}: {error}") from error


def _points(job: Job, image: np.ndarray) -> tuple[np.ndarray, str]:
    if job.recipe.landmarks == "csv":
        if job.points is None:
            raise _Bad("landmarks", "no row in landmarks.csv")
        return np.asarray(job.points, np.float64), "csv"
    if job.recipe.landmarks == "template":
        scale = np.array(image.shape[::-1]) / 28
        return (regions.TEMPLATE_POINTS.astype(np.float64) + 0.5) * scale - 0.5, "template"
    from htnet_jax.motion import landmarks

    try:
        face = _detector(job.model).find(image)
    except landmarks.NoFace as error:
        raise _Bad("landmarks", str(error)) from error
    return face.points.astype(np.float64), face.how


@functools.cache
def _detector(model: Path | None) -> Any:
    """One detector a process: loading the model takes longer than using it."""
    from htnet_jax.motion import landmarks

    return landmarks.Detector(model)


def _check_usable(recipe: Recipe, image: np.ndarray, points: np.ndarray) -> None:
    """Raises what would fail later, in the middle of the flow."""
    from htnet_jax.motion import alignment, flow

    try:
        alignment.face_transform(points, FACE_SIZE)
    except ValueError as error:
        raise _Bad("landmarks", str(error)) from error
    smallest = flow.DIS_SMALLEST if recipe.flow == "dis" else 2
    if recipe.align == "none" and recipe.order == "crop" and min(image.shape) < smallest:
        what = f"{_size(image)} pixels; {recipe.flow} needs at least {smallest}"
        raise _Bad("image", what)


def _ruled_apex(job: Job, onset: np.ndarray, points: np.ndarray) -> int:
    """The apex by the recipe's rule, among the frames after the onset that exist."""
    clip = job.clip
    numbers = [n for n in open_frames(clip.folder).numbers if clip.onset < n <= clip.offset]
    if not numbers:
        raise _Bad("apex", f"no frame between onset {clip.onset} and offset {clip.offset}")
    if job.recipe.apex == "midpoint":
        middle = (clip.onset + clip.offset) // 2
        return min(numbers, key=lambda number: (abs(number - middle), number))
    from htnet_jax.motion import alignment, apex

    transform = alignment.face_transform(points, FACE_SIZE)

    def face(image: np.ndarray) -> np.ndarray:
        return alignment.warp(image, transform, FACE_SIZE)

    with single_threaded():
        return apex.estimate_apex(
            face(onset),
            ((number, face(_read(clip, number))) for number in numbers),
            alignment.transform_points(transform, points),
        )


# Face frames.


def _chosen(
    clip: RawClip, apex: int, rule: str, unusable: Collection[int] = ()
) -> tuple[list[int], list[int]]:
    """Numbers of the frames to store around onset and apex: those that exist and can be used."""
    there, times = _usable(clip, unusable)
    return frames.pick(rule, (clip.onset, apex, clip.offset), there, times=times)


def _usable(clip: RawClip, unusable: Collection[int]) -> tuple[list[int], np.ndarray | None]:
    """Numbers of the frames that exist and can be used, and their times if these are known."""
    source = open_frames(clip.folder)
    rows = [row for row, number in enumerate(source.numbers) if number not in unusable]
    times = None if source.times is None else source.times[rows]
    return [source.numbers[row] for row in rows], times


def _unusable(clip: RawClip, apex: int, rule: str, onset: np.ndarray) -> dict[int, str]:
    """Frames that the rule picks and that cannot be stored -> what is wrong, file name first."""
    source = open_frames(clip.folder)
    found: dict[int, str] = {}
    usable = {clip.onset, apex}  # They were read already.
    # Another frame may be picked in place of one that fails; it is checked next.
    while new := {n for group in _chosen(clip, apex, rule, found) for n in group} - usable:
        for number in sorted(new):
            try:
                image = source.read_gray(number)
            except UserError as error:
                found[number] = str(error)
                continue
            if image.shape != onset.shape:
                what = f"{_size(image)} pixels, the onset is {_size(onset)}"
                found[number] = f"{source.name(number)}: {what}"
            else:
                usable.add(number)
    return dict(sorted(found.items()))


def _face_frames(job: Job, inspection: Inspection) -> frames.ClipFrames:
    """Reads and aligns the frames: each group by its own transform, see `frames.pick`."""
    clip, rule, side = job.clip, job.recipe.frames, job.recipe.frame_side
    aligns = job.recipe.align != "none"
    transforms = _transforms(job, inspection, side) if aligns else (None, None)
    source = open_frames(clip.folder)
    chosen = _chosen(clip, inspection.apex, rule, inspection.unusable)
    groups = (
        {number: _face(source.read(number), transform, side) for number in numbers}
        for numbers, transform in zip(chosen, transforms, strict=True)
    )
    times = None
    if frames.count_of(rule):
        known = source.times is not None
        times = dict(zip(source.numbers, source.times, strict=True)) if known else {}
    flow = job.recipe.flow if job.recipe.clip else ""
    return frames.clip_frames(clip.onset, inspection.apex, *groups, times=times, flow=flow)


def _face(image: np.ndarray, transform: np.ndarray | None, side: int) -> np.ndarray:
    """`(side, side, 3)`: aligned, or without a transform the whole image resized."""
    import cv2

    from htnet_jax.motion import alignment

    if transform is not None:
        return alignment.warp(image, transform, side)
    shrinks = min(image.shape[:2]) >= side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), (side, side), interpolation=method)


# Worker processes, and what they keep.


def run(function: Callable[[T], R], items: Sequence[T], *, workers: int, title: str) -> Iterator[R]:
    """`map(function, items)` over processes, in order, with clips/s and the time left.

    Args:
        function: A picklable function of one item.
        items: What to work on.
        workers: Processes; 1 works in this one.
        title: Shown before the progress bar.

    Raises:
        UserError: A worker was killed.
    """
    if workers <= 1 or len(items) <= 1:
        yield from progress(map(function, items), len(items), title, "clip")
        return
    context = _context()
    lifeline, ours = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(items)), mp_context=context, initializer=_begin, initargs=(lifeline,)
    )
    try:
        with _uninterrupted():
            results = pool.map(function, items)
        yield from progress(results, len(items), title, "clip")
    except KeyboardInterrupt:
        # Whoever interrupts does not want to wait for the clips at hand.
        pool.shutdown(wait=False, cancel_futures=True)
        ours.close()
        raise
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; give fewer --workers. "
            "Finished clips are kept."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        ours.close()
        lifeline.close()


def _context() -> multiprocessing.context.BaseContext:
    """Processes that share no locks with this one: a fork would copy those of OpenCV and JAX.

    Where possible a server that has imported all that a worker needs is forked: importing takes as
    long as dozens of clips.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "htnet_jax.motion.flow"])
    try:
        with _uninterrupted():
            multiprocessing.forkserver.ensure_running()
    except OSError:  # Its socket is a file in TMPDIR, whose path may be too long for one.
        return multiprocessing.get_context("spawn")
    return context


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds interruptions back: of workers that are half begun nobody would know.

    Processes that begin meanwhile never see Ctrl-C, which a terminal sends to all of them: while
    they import they could only end in a traceback.
    """
    held: list[tuple[Any, ...]] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                handlers[number] = signal.signal(number, lambda *got: held.append(got))
    multiprocessing.resource_tracker.ensure_running()  # Beginning it would unblock the signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number, frame in held[:1]:
        handlers[number](number, frame)


def _begin(lifeline: multiprocessing.connection.Connection) -> None:
    """What a worker does first: it leaves Ctrl-C to its parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: multiprocessing.connection.Connection) -> None:
    """Ends this process once no one holds the other end, which only the parent has.

    However the parent ends, even before this process has begun. By itself a worker would not
    notice: it waits at a queue that it and the other workers hold open.
    """
    multiprocessing.connection.wait([lifeline])
    # An interrupted parent first forgets what is not begun: its pool would stumble over that.
    time.sleep(1)
    os._exit(1)


class Kept:
    """Results of finished clips in a folder beside the data set, until that is built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, job: Job) -> Path:
        """The file of one clip; another recipe or changed frames give another name."""
        return self.folder / f"{job.digest}.npz"

    def load(self, job: Job) -> dict[str, Any] | None:
        """What was kept of a clip; None if nothing usable was."""
        size = job.recipe.size
        wanted = {"tensor": (size, size, 3), "landmarks": (5, 2)}

        def check(headers: Mapping[str, foreign.Header]) -> None:
            shapes = {key: headers[key].shape for key in wanted}
            if shapes != wanted or any(headers[key].dtype != np.float32 for key in wanted):
                raise ValueError(f"arrays of shapes {shapes}")
            if missing := set(job.recipe.frame_keys) - set(headers):
                raise ValueError(f"no {', '.join(missing)}")

        try:
            return foreign.read_arrays(self.path(job), "kept clip", check=check)
        except UserError:
            return None

    def clear(self) -> None:
        """Deletes all."""
        shutil.rmtree(self.folder, ignore_errors=True)


def keep_tensor(task: tuple[Path, Job, Inspection]) -> Finding | None:
    """Computes one clip and writes its tensor to a file, complete or not at all.

    Returns:
        What is wrong with its flow, see `impossible_flow`; then nothing is written.
    """
    path, job, inspection = task
    steps = compute(job, inspection)
    if finding := impossible_flow(job, steps):
        return finding
    found = {"tensor": steps.tensor, "landmarks": steps.landmarks}
    if steps.frames is not None:
        found |= steps.frames.example()
    write_atomically(path, lambda file: np.savez(file, **found))
    return None
