"""SAMM's short clips as they are distributed: trees, annotation sheet, labels and known errors."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from htnet_jax.datasets import coded, sheets
from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.raw import (
    OBJECTIVE_SET,
    LabelSet,
    RawClip,
    own_classes,
    three_classes,
)
from htnet_jax.datasets.tree import Tree
from htnet_jax.errors import UserError

SOURCE = "samm"
HOMEPAGE = "http://www2.docm.mmu.ac.uk/STAFF/m.yap/dataset.php"

# The pictures as recorded, and public copies with the faces cut out.
VARIANTS = ("raw", "cropped")

LABELS: Mapping[str, LabelSet] = {
    # MEGC 2019 leaves out "other".
    "megc3": three_classes("anger contempt disgust fear sadness", "happiness", "surprise"),
    "five": own_classes("anger contempt happiness surprise other"),
    "own": own_classes("anger contempt disgust fear happiness other sadness surprise"),
    "objective": OBJECTIVE_SET,
}

LAYOUT = """\
SAMM must be requested from its owners (http://www2.docm.mmu.ac.uk/STAFF/m.yap/dataset.php). The \
manual directory must hold, at any depth:
- the annotation sheet SAMM_Micro_FACS_Codes_v2.xlsx (or another SAMM_*.xlsx or .xls of the
  short clips), with the columns Subject, Filename, Onset Frame, Apex Frame, Offset Frame,
  Action Units and Estimated Emotion; a column Objective Classes is read where there is one;
- the pictures, as recorded (SAMM/006/006_1_2/006_05562.jpg) or cropped
  (SAMM_CROP/006/006_1_2/006_05562.jpg). With both, the recipe's variant (raw or cropped) decides;
  with one, that one is used.
The long videos are not used.
"""

# The annotation sheet's documented name; others that fit the pattern come after it.
SHEET = "SAMM_Micro_FACS_Codes_v2"
SHEET_PATTERN = r"samm[-_ ](?!long).*\.xlsx?"
COLUMNS = {
    "subject": ("Subject",),
    "name": ("Filename", "File name"),
    "onset": ("Onset Frame", "OnsetFrame"),
    "apex": ("Apex Frame", "ApexFrame"),
    "offset": ("Offset Frame", "OffsetFrame"),
    "aus": ("Action Units",),
    "emotion": ("Estimated Emotion",),
}
OPTIONAL = {"objective": ("Objective Classes", "Objective Class")}


class Correction(NamedTuple):
    """A cell that is known to be wrong; another value than `wrong` is left as it is."""

    field: str
    wrong: str
    right: str
    reason: str


# (subject, name) -> what to change. Both apexes lie outside onset..offset. Public loaders disagree
# about them (1088, 1105, 1113 and the midpoint; 4930, 4937, 4945 and the midpoint); we take the
# numbers that differ from the sheet's in one digit, which one edited public copy of the sheet has.
CORRECTIONS: Mapping[tuple[str, str], Correction] = {
    ("028", "028_4_1"): Correction(
        "apex",
        "1143",
        "1113",
        "the sheet's apex lies after the offset; one digit is wrong, as a public loader's edited "
        "sheet has it",
    ),
    ("032", "032_3_1"): Correction(
        "apex",
        "1930",
        "4930",
        "the sheet's apex lies far before the onset; one digit is wrong, as a public loader's "
        "edited sheet has it",
    ),
}

# No frames are known to be missing in the distributed copies.
KNOWN_GAPS: Mapping[str, str] = {}

# Other ways to write an emotion word.
SYNONYMS = {"others": "other"}
SUBJECTS = 29
# Clips per emotion, counted in the annotation sheet (159 rows).
EMOTIONS = {
    "anger": 57,
    "contempt": 12,
    "disgust": 9,
    "fear": 8,
    "happiness": 26,
    "other": 26,
    "sadness": 6,
    "surprise": 15,
}


def survey(tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
    """All annotated clips whose folder is there; everything that is wrong goes to the audit.

    Args:
        tree: The chosen folder.
        variant: "raw" or "cropped".
        audit: Receives the findings.

    Returns:
        The clips by subject and name.
    """
    rows = _read_sheet(tree, audit)
    if rows is None:
        return []
    there = {_is_cropped(tree, path) for path in tree.names(r"\d+_\d+_\d+")}
    cropped = coded.uses_cropped(tree, variant, there, audit)
    first_row: dict[tuple[str, str], str] = {}
    clips = []
    for row in rows:
        name = row.cells["name"]
        if not re.fullmatch(r"\d+", row.cells["subject"]) or not name:
            what = f"subject {row.cells['subject']!r}, file name {name!r}: no subject's clip"
            audit.add("row", row.where, what)
            continue
        subject = f"{int(row.cells['subject']):03d}"
        clip_id, key = f"{SOURCE}/{subject}/{name}", (subject, name.casefold())
        if key in first_row:
            what = f"{subject}/{name} again, after {first_row[key]}"
            audit.add("row", row.where, what, clip=clip_id)
            continue
        first_row[key] = row.where
        row = _corrected(row, subject, name, audit)
        values = coded.values(row, clip_id, audit, emotions=EMOTIONS, synonyms=SYNONYMS)
        folder = _folder(tree, subject, name, cropped, audit)
        if values and folder:
            clips.append(RawClip(SOURCE, subject, name, folder=folder, **values))
    _report_folders_without_row(tree, cropped, set(first_row), audit)
    if clips and not any(clip.objective for clip in clips):
        audit.note("sheet", "it has no objective classes: labels=objective finds no clip")
    return sorted(clips, key=lambda clip: (clip.subject, clip.name))


def check_counts(clips: list[RawClip], variant: str, audit: Audit) -> None:
    """Compares clips, subjects and emotions with the published numbers.

    Args:
        clips: As `survey` returns them.
        variant: Of no effect: both trees hold the same clips.
        audit: Receives a "count" finding for each difference.
    """
    del variant
    emotions = collections.Counter(clip.emotion for clip in clips)
    counts = [(len(clips), "clips", sum(EMOTIONS.values()))]
    if clips:
        counts.append((len({clip.subject for clip in clips}), "subjects", SUBJECTS))
        counts += [(emotions[name], f"{name} clips", n) for name, n in EMOTIONS.items()]
    for found, what, published in counts:
        if found != published:
            audit.add("count", SOURCE, f"{found} {what}, the published data set has {published}")


def _read_sheet(tree: Tree, audit: Audit) -> list[sheets.SheetRow] | None:
    found = tree.files(SHEET_PATTERN)
    if not found:
        audit.add("sheet", tree.root, f"no {SHEET}.xlsx (or another sheet of the short clips)")
        return None
    found.sort(key=lambda path: (path.stem.casefold() != SHEET.casefold(), path))
    if found[1:]:
        others = ", ".join(tree.below(path) for path in found[1:])
        audit.note(tree.below(found[0]), f"this sheet is used; left aside: {others}")
    try:
        return sheets.read_sheet(found[0], COLUMNS, optional=OPTIONAL, sheet="MICRO_ONLY")
    except UserError as error:
        audit.add("sheet", tree.below(found[0]), str(error))
        return None


def _corrected(row: sheets.SheetRow, subject: str, name: str, audit: Audit) -> sheets.SheetRow:
    """The row, with what is known to be wrong in it corrected and noted."""
    change = CORRECTIONS.get((subject, name))
    if change is None or row.cells[change.field] != change.wrong:
        return row
    what = f"{change.field} {change.wrong} -> {change.right}: {change.reason}"
    audit.note(row.where, what, clip=f"{SOURCE}/{subject}/{name}", kind="corrected")
    return dataclasses.replace(row, cells={**row.cells, change.field: change.right})


def _is_cropped(tree: Tree, folder: Path) -> bool:
    return "crop" in f"{tree.root.name}/{tree.below(folder)}".casefold()


def _folder(tree: Tree, subject: str, name: str, cropped: bool, audit: Audit) -> Path | None:
    found = (
        path
        for written in {subject, str(int(subject))}
        for path in tree.folders(written, name)
        if _is_cropped(tree, path) == cropped
    )
    return coded.only_folder(tree, found, f"{SOURCE}/{subject}/{name}", cropped, audit)


def _report_folders_without_row(
    tree: Tree, cropped: bool, keys: set[tuple[str, str]], audit: Audit
) -> None:
    for path in tree.names(r"\d+_\d+_\d+"):
        owner = path.parent.name
        if not owner.isdecimal() or _is_cropped(tree, path) != cropped:
            continue
        if (f"{int(owner):03d}", path.name.casefold()) not in keys:
            audit.add("row", tree.below(path), "a clip without a row in the sheet")
