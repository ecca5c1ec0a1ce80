"""The file layout of the HTNet release: reads all of it and checks it before anything is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from htnet_jax import errors
from htnet_jax.datasets import clips, png, tables
from htnet_jax.datasets.megc2019 import counts, landmarks, photographs
from htnet_jax.motion import regions

SIZE = 28  # side of the released flow pictures, in pixels
PNG_FOLDER = "STSNet_whole_norm_u_v_os"
CLIP_LIST = "combined_3_class2_for_optical_flow.csv"
LANDMARKS = "landmarks_mtcnn_28px.csv"
_COLUMNS = ("dataset", "sub", "filename_o", "label")

LAYOUT = f"""the manual directory must hold
  {CLIP_LIST}  (columns {", ".join(_COLUMNS)})
  {PNG_FOLDER}/SUB_FILENAME.png  ({SIZE}x{SIZE} RGB: u, v, optical strain; also 'SUB_FILENAME .png')
  {LANDMARKS}  (optional; columns {", ".join(landmarks.COLUMNS[:5])}, ...)
  the apex photographs  (for landmarks from dlib; in any other folder, named as the column
    {photographs.COLUMN} of the clip list says)"""

_PHOTOGRAPH_REMEDY = f"""
Without photographs, use the config 'release': it takes the landmarks of {LANDMARKS}, or the
fixed template. To take these only where a photograph or a face is missing, use the config
'release_dlib_partial': it records for which clips."""


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

    clips: tuple[clips.Clip, ...]
    flows: np.ndarray
    points: np.ndarray
    audit: dict[str, object]
    notes: tuple[str, ...]


def read(
    folder: Path, *, enforce_counts: bool, search: photographs.Search | None = None
) -> Release:
    """Reads the release's files from `folder` and audits them.

    Args:
        folder: The manual directory, laid out as `LAYOUT` says.
        enforce_counts: Whether the published numbers of clips and subjects must be met; if not,
            differences only appear in the notes and the audit.
        search: How to find the landmarks on the apex photographs; None: take those of the file
            `LANDMARKS`, and the template for clips without a row there.

    Raises:
        UserError: With everything that is wrong: missing files, bad rows, unreadable pictures,
            landmarks far outside the picture, photographs without a face (unless `search` falls
            back to the file), and (where enforced) wrong counts. Or dlib is missing.
    """
    problems = errors.Problems(f"{folder}")
    for name, is_there in (
        (CLIP_LIST, (folder / CLIP_LIST).is_file()),
        (PNG_FOLDER, (folder / PNG_FOLDER).is_dir()),
    ):
        if not is_there:
            problems.add(name, "missing")
    problems.raise_if_any(f"Check the folder's path: {LAYOUT}")

    columns = _COLUMNS if search is None else (*_COLUMNS, photographs.COLUMN)
    listed, named, pictures = _read_clips(folder / CLIP_LIST, columns, problems)
    flows = _read_flows(folder / PNG_FOLDER, listed, problems)
    found = {}
    if (folder / LANDMARKS).is_file() and (search is None or search.fall_back):
        found = landmarks.read_landmarks(folder / LANDMARKS, named, SIZE, problems)
    sound = len(problems.found)
    seen = photographs.Found({}, {}, ())
    if search is not None:
        seen = photographs.find_points(
            folder, pictures, SIZE, search, problems, flow_folder=folder / PNG_FOLDER
        )
    bad_photographs = len(problems.found) > sound
    counted = counts.count(listed)
    differences = counts.differences(counted)
    if enforce_counts:
        for place, what in differences:
            problems.add(place, what)
    problems.raise_if_any(
        f"Correct or restore these files; {LAYOUT}"
        + (_PHOTOGRAPH_REMEDY if bad_photographs and not search.fall_back else "")
        + (
            "\nTo build from a part of the composite on purpose, use the config "
            f"'{'release_partial' if search is None else 'release_dlib_partial'}'."
            if enforce_counts and differences
            else ""
        )
    )
    if not listed:
        raise errors.UserError(f"{folder / CLIP_LIST}: it lists no clip; add at least one row.")

    in_file = [found.get((clip.subject, clip.name)) for clip in listed]
    # Of the clips whose points dlib did not find.
    rest = [
        (clip, p) for clip, p in zip(listed, in_file, strict=True) if clip.id not in seen.points
    ]
    audit = {
        **counted,
        "differences": [f"{place}: {what}" for place, what in differences],
        "landmarks": {
            "detected": sum(p is not None and p.detected for _, p in rest),
            "template_in_file": sum(p is not None and not p.detected for _, p in rest),
            "template_no_row": sum(p is None for _, p in rest),
        },
        "landmarks_outside": [clip.id for clip, p in rest if p is not None and p.outside],
    }
    if search is not None:
        audit["landmarks"]["dlib"] = len(seen.points)
        audit["landmarks_not_from_dlib"] = seen.failed
    template = regions.TEMPLATE_POINTS
    points = [
        seen.points.get(clip.id, template if p is None else p.points)
        for clip, p in zip(listed, in_file, strict=True)
    ]
    return Release(
        clips=tuple(listed),
        flows=np.stack(flows).astype(np.float32),
        points=np.stack(points),
        audit=audit,
        notes=_notes(audit, max((p.outside for _, p in rest if p), default=0.0), seen.folders),
    )


def _read_clips(
    path: Path, columns: tuple[str, ...], problems: errors.Problems
) -> tuple[list[clips.Clip], set[tuple[str, str]], dict[str, str]]:
    """The good clips, (subject, name) of all that are listed, and clip id -> name of photograph.

    There are no photographs' names if that column is not one of `columns`.
    """
    listed: list[clips.Clip] = []
    first: dict[tuple[str, str], str] = {}
    source_of: dict[str, str] = {}
    pictures: dict[str, str] = {}
    for row in tables.read_rows(path, columns, problems):
        source, subject, name, label = (row.cells[column] for column in _COLUMNS)
        what = []
        if source not in counts.CLIPS:
            what.append(f"unknown dataset {source!r}, expected one of {', '.join(counts.CLIPS)}")
        elif source_of.setdefault(subject, source) != source:
            what.append(f"subject {subject} is in {source_of[subject]} and in {source}")
        if label not in ("0", "1", "2"):
            meaning = ", ".join(f"{i} {name}" for i, name in enumerate(clips.CLASSES))
            what.append(f"unknown label {label!r}, expected one of {meaning}")
        if {"/", "\\"} & set(subject + name):
            what.append("a subject or clip name must not contain a slash")
        if (subject, name) in first:
            what.append(f"duplicate clip {name} of subject {subject}: also {first[subject, name]}")
        first.setdefault((subject, name), row.where)
        for text in what:
            problems.add(row.where, text)
        if not what:
            number = int(label)
            clip = clips.Clip(source, subject, name, number, clips.CLASSES[number])
            listed.append(clip)
            if photographs.COLUMN in columns:
                pictures[clip.id] = row.cells[photographs.COLUMN]
    return listed, set(first), pictures


def _read_flows(
    folder: Path, listed: list[clips.Clip], problems: errors.Problems
) -> list[np.ndarray]:
    flows = []
    for clip in listed:
        stem = f"{clip.subject}_{clip.name}"
        # The released names have a space before the suffix; some copies have lost it.
        path = next(
            (p for p in (folder / f"{stem} .png", folder / f"{stem}.png") if p.is_file()), None
        )
        if path is None:
            problems.add(f"{PNG_FOLDER}/{stem} .png", "missing")
            continue
        try:
            flows.append(png.read_rgb_png(path, SIZE))
        except ValueError as error:
            problems.add(f"{PNG_FOLDER}/{path.name}", str(error))
    return flows


def _notes(audit: dict[str, object], farthest: float, folders: tuple[str, ...]) -> tuple[str, ...]:
    origin = audit["landmarks"]
    dlib = f"{origin['dlib']} clips by dlib from {', '.join(folders)}; " if "dlib" in origin else ""
    notes = [
        f"{audit['clips']} clips of {audit['subjects']} subjects",
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
            f"landmarks of {len(outside)} clips lie up to {farthest:.1f} pixels outside the "
            f"picture (kept; crops clip them): {', '.join(outside)}"
        )
    if audit["differences"]:
        notes.append("not the full composite: " + "; ".join(audit["differences"]))
    return tuple(notes)
