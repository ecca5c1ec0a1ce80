"""The annotation sheet of SMIC-E: onset and offset of each micro-expression in a long clip."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.sheets import SheetRow, read_sheet
from htnet_jax.datasets.smic import paths
from htnet_jax.datasets.tree import Tree
from htnet_jax.errors import UserError

# The 157-row sheet joins neighbouring clips: the first name's further intervals are these clips.
# The 162-row sheet has rows for them, and the frames lie in the first one's folder all the same.
MERGED: Mapping[str, Sequence[str]] = {
    "s03_ne_02": ("s03_ne_03",),
    "s04_ne_04": ("s04_ne_05", "s04_ne_06"),
    "s09_sur_01": ("s09_sur_02",),
}
HOSTS = {name: host for host, names in MERGED.items() for name in names}

# "Three samples lost" (SMIC-E's owners); the first two are in no sheet, and the 162-row sheet
# calls the third one's frames missing.
LOST = ("s01_ne_02", "s02_sur_05", "s03_ne_20")


@dataclasses.dataclass(frozen=True)
class Correction:
    """A cell known to be wrong.

    Attributes:
        column: Key of the cell.
        wrong: What the sheet says, lower case; anything else is left alone.
        right: What is used instead.
        reason: Why, and by which source.
    """

    column: str
    wrong: str
    right: str
    reason: str


# (subject, clip) -> what to correct.
CORRECTIONS: Mapping[tuple[str, str], Correction] = {
    ("s18", "s18_sur_03"): Correction(
        "emotion",
        "negative",
        "surprise",
        "the clip's own name and MEGC 2019's label list say surprise",
    )
}


@dataclasses.dataclass(frozen=True)
class Interval:
    """A micro-expression in a long clip.

    Attributes:
        onset: Number of the first frame.
        offset: Number of the last frame.
        where: The sheet's row.
    """

    onset: int
    offset: int
    where: str


def find_sheet(tree: Tree, variant: str, audit: Audit) -> Path | None:
    """The workbook of a modality: `SMIC-<M>-E_annotation.xlsx`; None, and a finding, if none is.

    The HS workbook has a VIS sheet too, so it serves where VIS has no workbook of its own.
    """
    for name in (variant, "hs") if variant == "vis" else (variant,):
        documented = rf"smic-{name}-e_annotation\.xlsx"
        for pattern in (documented, rf"smic[-_ ]?{name}[-_ ]?e.*annotation.*\.xlsx?"):
            found = tree.files(pattern)
            if len(found) > 1:
                names = ", ".join(tree.below(path) for path in found)
                audit.note(tree.below(found[0]), f"the first of several sheets is used: {names}")
            if found:
                return found[0]
    what = f"SMIC-{variant.upper()}-E_annotation.xlsx is missing; SMIC-E's long clips need it"
    audit.add("sheet", tree.root, what)
    return None


def read_intervals(path: Path, variant: str, audit: Audit) -> dict[str, Interval]:
    """Standard clip name -> its interval; bad rows go to the audit.

    Args:
        path: The workbook.
        variant: "hs", "vis" or "nir".
        audit: Receives the findings.
    """
    try:
        rows = _rows(path, variant)
    except UserError as error:
        audit.add("sheet", path, str(error))
        return {}
    named: dict[str, SheetRow] = {}
    for row in rows:
        name = _name(row, audit)
        if name in named:
            what = f"clip {name} again, after {named[name].where}; the first is used"
            audit.add("row", row.where, what, clip=paths.clip_id(name), drops=False)
        elif name:
            named[name] = row
    found: dict[str, Interval] = {}
    for name, row in named.items():
        interval = _interval(row, name, 1, audit)
        if interval and _emotion_agrees(row, name, audit):
            found[name] = interval
    for name, row in named.items():
        found |= _further(row, name, named, audit)
    return found


def _rows(path: Path, variant: str) -> list[SheetRow]:
    """The rows; the NIR workbook calls its columns `OnsetF NIR` beside those of another camera."""
    optional = {"emotion": ["Emotion"]} | {
        f"{which}{k}": [f"{which}{k}F"] for k in (2, 3) for which in ("onset", "offset")
    }
    columns = {"subject": ["Subject"], "name": ["Filename"]}
    own = {"onset1": [f"OnsetF {variant}"], "offset1": [f"OffsetF {variant}"]}
    plain = {"onset1": ["OnsetF"], "offset1": ["OffsetF"]}
    try:
        rows = read_sheet(path, columns | own, optional=optional, sheet=variant)
    except UserError:
        rows = read_sheet(path, columns | plain, optional=optional, sheet=variant)
    else:
        return rows
    # Without the wanted sheet, that of another camera has been read.
    sheet = re.search(r", sheet (HS|VIS|NIR),", rows[0].where, re.IGNORECASE) if rows else None
    if sheet and sheet[1].lower() != variant:
        raise UserError(f"{path}: it has no sheet {variant.upper()}, only {sheet[1]}")
    return rows


def _name(row: SheetRow, audit: Audit) -> str | None:
    cells = row.cells
    name = paths.standard_name(cells["name"])
    subject = re.fullmatch(r"s?0*(\d+)", cells["subject"], re.IGNORECASE)
    if name and subject and f"s{int(subject[1]):02d}" == paths.subject_of(name):
        return name
    if not name and not subject and row.whole("onset1") is None:
        # Copies of the sheet have remarks below the last row.
        audit.note(row.where, f"no clip's row: {' '.join(filter(None, cells.values()))}")
    elif name:
        what = f"Subject is {cells['subject']!r}, Filename {cells['name']!r}"
        audit.add("row", row.where, f"{what}: they disagree", clip=paths.clip_id(name))
    else:
        audit.add("row", row.where, f"Filename is {cells['name']!r}, no name such as s3_ne_02")
    return None


def _interval(row: SheetRow, name: str, k: int, audit: Audit) -> Interval | None:
    onset, offset = row.whole(f"onset{k}"), row.whole(f"offset{k}")
    what = f"onset {row.cells[f'onset{k}']!r}, offset {row.cells[f'offset{k}']!r}"
    if k > 1:
        what = f"interval {k}: {what}"
    if onset is None or offset is None:
        what += ": no frame numbers (a formula that has lost its value? Save the sheet again)"
    elif offset < onset:
        what += ": it ends before it begins"
    else:
        return Interval(onset, offset, row.where)
    audit.add("row", row.where, what, clip=paths.clip_id(name))
    return None


def _emotion_agrees(row: SheetRow, name: str, audit: Audit) -> bool:
    emotion, by_name = row.cells["emotion"].casefold(), paths.emotion_of(name)
    correction = CORRECTIONS.get((paths.subject_of(name), name))
    if correction and emotion == correction.wrong:
        emotion = correction.right
        what = f"Emotion {correction.wrong} -> {correction.right}: {correction.reason}"
        audit.note(row.where, what, clip=paths.clip_id(name), kind="corrected")
    if emotion in ("", by_name):
        return True
    what = f"Emotion is {row.cells['emotion']!r}, the clip's name says {by_name}"
    audit.add("row", row.where, what, clip=paths.clip_id(name))
    return False


def _further(
    row: SheetRow, host: str, named: Mapping[str, SheetRow], audit: Audit
) -> dict[str, Interval]:
    """Intervals 2 and 3 of a row: clips that were joined to it, or none of the published ones."""
    found: dict[str, Interval] = {}
    merged = MERGED.get(host, ())
    for k in (2, 3):
        given = any(row.cells[f"{which}{k}"] for which in ("onset", "offset"))
        if k - 2 >= len(merged):
            if given:
                numbers = f"{row.cells[f'onset{k}']!r} to {row.cells[f'offset{k}']!r}"
                what = f"interval {k}, {numbers}, belongs to no published clip and is left out"
                audit.note(row.where, what, clip=paths.clip_id(host))
            continue
        name = merged[k - 2]
        if name in named:  # it has a row of its own
            continue
        if not given:
            what = f"neither a row nor interval {k} of {host}'s row"
            audit.add("row", row.where, what, clip=paths.clip_id(name))
        elif interval := _interval(row, name, k, audit):
            found[name] = interval
            what = f"interval {k} of {host}'s row, which joins both clips"
            audit.note(row.where, what, clip=paths.clip_id(name), kind="corrected")
    return found
