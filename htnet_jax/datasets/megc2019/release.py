"""The file layout of the HTNet release: reads all of it and checks it before anything is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from htnet_jax import errors
from htnet_jax.datasets import clips, png, tables
from htnet_jax.datasets.megc2019 import counts, landmarks
from htnet_jax.motion import regions

SIZE = 28  # side of the released flow pictures, in pixels
PNG_FOLDER = "STSNet_whole_norm_u_v_os"
CLIP_LIST = "combined_3_class2_for_optical_flow.csv"
LANDMARKS = "landmarks_mtcnn_28px.csv"
_COLUMNS = ("dataset", "sub", "filename_o", "label")

LAYOUT = f"""the manual directory must hold
  {CLIP_LIST}  (columns {", ".join(_COLUMNS)})
  {PNG_FOLDER}/SUB_FILENAME.png  ({SIZE}x{SIZE} RGB: u, v, optical strain; also 'SUB_FILENAME .png')
  {LANDMARKS}  (optional; columns {", ".join(landmarks.COLUMNS[:5])}, ...)"""


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


def read(folder: Path, *, enforce_counts: bool) -> Release:
    """Reads the release's files from `folder` and audits them.

    Args:
        folder: The manual directory, laid out as `LAYOUT` says.
        enforce_counts: Whether the published numbers of clips and subjects must be met; if not,
            differences only appear in the notes and the audit.

    Raises:
        UserError: With everything that is wrong: missing files, bad rows, unreadable pictures,
            landmarks far outside the picture, and (where enforced) wrong counts.
    """
    problems = errors.Problems(f"{folder}")
    for name, is_there in (
        (CLIP_LIST, (folder / CLIP_LIST).is_file()),
        (PNG_FOLDER, (folder / PNG_FOLDER).is_dir()),
    ):
        if not is_there:
            problems.add(name, "missing")
    problems.raise_if_any(f"Check the folder's path: {LAYOUT}")

    listed, named = _read_clips(folder / CLIP_LIST, problems)
    flows = _read_flows(folder / PNG_FOLDER, listed, problems)
    found = {}
    if (folder / LANDMARKS).is_file():
        found = landmarks.read_landmarks(folder / LANDMARKS, named, SIZE, problems)
    counted = counts.count(listed)
    differences = counts.differences(counted)
    if enforce_counts:
        for place, what in differences:
            problems.add(place, what)
    problems.raise_if_any(
        f"Correct or restore these files; {LAYOUT}"
        + (
            "\nTo build from a part of the composite on purpose, use the config 'release_partial'."
            if enforce_counts and differences
            else ""
        )
    )
    if not listed:
        raise errors.UserError(f"{folder / CLIP_LIST}: it lists no clip; add at least one row.")

    five = [found.get((clip.subject, clip.name)) for clip in listed]
    audit = {
        **counted,
        "differences": [f"{place}: {what}" for place, what in differences],
        "landmarks": {
            "detected": sum(p is not None and p.detected for p in five),
            "template_in_file": sum(p is not None and not p.detected for p in five),
            "template_no_row": sum(p is None for p in five),
        },
        "landmarks_outside": [
            clip.id for clip, p in zip(listed, five, strict=True) if p is not None and p.outside
        ],
    }
    return Release(
        clips=tuple(listed),
        flows=np.stack(flows).astype(np.float32),
        points=np.stack([regions.TEMPLATE_POINTS if p is None else p.points for p in five]),
        audit=audit,
        notes=_notes(audit, max(p.outside if p else 0.0 for p in five)),
    )


def _read_clips(
    path: Path, problems: errors.Problems
) -> tuple[list[clips.Clip], set[tuple[str, str]]]:
    """The good clips, and (subject, name) of all that are listed, good or not."""
    listed: list[clips.Clip] = []
    first: dict[tuple[str, str], str] = {}
    source_of: dict[str, str] = {}
    for row in tables.read_rows(path, _COLUMNS, problems):
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
            listed.append(clips.Clip(source, subject, name, number, clips.CLASSES[number]))
    return listed, set(first)


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


def _notes(audit: dict[str, object], farthest: float) -> tuple[str, ...]:
    origin = audit["landmarks"]
    notes = [
        f"{audit['clips']} clips of {audit['subjects']} subjects",
        f"landmarks: {origin['detected']} clips with detected points, "
        f"{origin['template_in_file']} with the template rows of {LANDMARKS}, "
        f"{origin['template_no_row']} without a row there, for which the fixed template is used",
    ]
    if outside := audit["landmarks_outside"]:
        notes.append(
            f"landmarks of {len(outside)} clips lie up to {farthest:.1f} pixels outside the "
            f"picture (kept; crops clip them): {', '.join(outside)}"
        )
    if audit["differences"]:
        notes.append("not the full composite: " + "; ".join(audit["differences"]))
    return tuple(notes)
