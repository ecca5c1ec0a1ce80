"""CASME II as it is distributed: picture trees, coding sheet, labels and known errors."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping
from pathlib import Path

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

SOURCE = "casme2"
HOMEPAGE = "http://casme.psych.ac.cn/casme/e2"

# The pictures as recorded, and the faces that the owners registered and cut out.
VARIANTS = ("raw", "cropped")

LABELS: Mapping[str, LabelSet] = {
    # MEGC 2019 leaves out "others", and sadness and fear, which are too few.
    "megc3": three_classes("disgust repression", "happiness", "surprise"),
    "five": own_classes("happiness disgust repression surprise others"),
    "own": own_classes("happiness disgust surprise repression others sadness fear"),
    "objective": OBJECTIVE_SET,
    # As MMNet's release (muse1998/MMNet, 7b62fa9) numbers them: a converted checkpoint's outputs
    # have this order.
    "mmnet5": own_classes("happiness repression disgust surprise others"),
    "mmnet3": LabelSet(
        ("happiness", "surprise", "negative"),
        {
            "happiness": "happiness",
            "surprise": "surprise",
            **dict.fromkeys(("repression", "disgust", "fear", "sadness"), "negative"),
        },
    ),
}

LAYOUT = """\
CASME II must be requested from its owners (http://casme.psych.ac.cn/casme/e2). The manual \
directory must hold, at any depth:
- the coding sheet CASME2-coding-20140508.xlsx (the labels of MEGC 2019) or another version of it
  (CASME2-coding-*.xlsx or .xls), with the columns Subject, Filename, OnsetFrame, ApexFrame,
  OffsetFrame, Action Units and Estimated Emotion; a column Objective Classes is read where there is
  one. With several versions that of 2014 is used;
- the pictures, raw (CASME2-RAW/sub01/EP02_01f/img1.jpg or
  CASME2_RAW_selected/sub01/EP02_01f/img46.jpg) or cropped (Cropped/sub01/EP02_01f/reg_img46.jpg).
  With both, the recipe's variant (raw or cropped) decides; with one, that one is used.
"""

# The annotation sheets in order of preference: the challenge's labels are those of 2014.
SHEETS = ("CASME2-coding-20140508", "CASME2-coding-20190701")
SHEET_PATTERN = r"casme2[-_ ]coding.*\.xlsx?"
OLD_SHEET_PATTERN = r"casme2[-_ ]label.*\.xlsx?"
COLUMNS = {
    "subject": ("Subject",),
    "name": ("Filename", "File name"),
    "onset": ("OnsetFrame", "Onset Frame"),
    "apex": ("ApexFrame", "Apex Frame"),
    "offset": ("OffsetFrame", "Offset Frame"),
    "aus": ("Action Units",),
    "emotion": ("Estimated Emotion",),
}
OPTIONAL = {"objective": ("Objective Classes", "Objective Class")}

# Rows known to be wrong: (subject, name) -> the change. There are none: where public loaders differ
# from the sheet about frames, the pictures agree with the sheet, and the one apex that is not given
# (sub04/EP12_01f has "/") is left to the recipe's rule.
CORRECTIONS: Mapping[tuple[str, str], tuple[str, str, str]] = {}

# Reported by public loaders, of the cropped pictures.
KNOWN_GAPS: Mapping[str, str] = {
    "casme2/sub16/EP01_08": "the distributed cropped pictures end at frame 96, the sheet's clip at "
    "110",
}

# Clips that are distributed without a row in the sheet of 2014, as public loaders list them.
WITHOUT_ROW = frozenset({("sub09", "ep02_02f"), ("sub24", "ep02_07")})

SUBJECTS = 26
# Clips per emotion, counted in the two versions of the annotation sheet. That of 2019 calls three
# clips of sub24 surprise instead of sadness.
EMOTIONS: Mapping[str, Mapping[str, int]] = {
    year: {
        "happiness": 32,
        "disgust": 63,
        "surprise": surprise,
        "repression": 27,
        "others": 99,
        "sadness": sadness,
        "fear": 2,
    }
    for year, surprise, sadness in (("2014", 25, 7), ("2019", 28, 4))
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
    there = {_is_cropped(tree, path) for path in tree.names(r"sub\d+")}
    cropped = coded.uses_cropped(tree, variant, there, audit)
    first_row: dict[tuple[str, str], str] = {}
    clips = []
    for row in rows:
        number = re.fullmatch(r"(?:sub)?(\d+)", row.cells["subject"], re.IGNORECASE)
        name = row.cells["name"]
        if not number or not name:
            what = f"subject {row.cells['subject']!r}, file name {name!r}: no subject's clip"
            audit.add("row", row.where, what)
            continue
        subject = f"sub{int(number[1]):02d}"
        clip_id, key = f"{SOURCE}/{subject}/{name}", (subject, name.casefold())
        if key in first_row:
            what = f"{subject}/{name} again, after {first_row[key]}"
            audit.add("row", row.where, what, clip=clip_id)
            continue
        first_row[key] = row.where
        values = coded.values(row, clip_id, audit, emotions=EMOTIONS["2014"], synonyms={})
        folder = _folder(tree, subject, name, cropped, audit)
        if values and folder:
            clips.append(RawClip(SOURCE, subject, name, folder=folder, **values))
    _report_folders_without_row(tree, cropped, set(first_row), audit)
    if clips and not any(clip.objective for clip in clips):
        audit.note("sheet", "it has no objective classes: labels=objective finds no clip")
    return sorted(clips, key=lambda clip: (clip.subject, clip.name))


def check_counts(clips: list[RawClip], variant: str, audit: Audit) -> None:
    """Compares clips, subjects and emotions with the version of the sheet that comes nearest.

    Args:
        clips: As `survey` returns them.
        variant: Of no effect: both trees hold the same clips.
        audit: Receives a "count" finding for each difference.
    """
    del variant
    emotions = collections.Counter(clip.emotion for clip in clips)
    year = min(
        EMOTIONS,
        key=lambda year: sum(abs(emotions[name] - n) for name, n in EMOTIONS[year].items()),
    )
    place = f"{SOURCE}, sheet of {year}"
    total = sum(EMOTIONS[year].values())
    counts = [(len(clips), "clips", total)]
    if clips:
        counts.append((len({clip.subject for clip in clips}), "subjects", SUBJECTS))
        counts += [(emotions[name], f"{name} clips", n) for name, n in EMOTIONS[year].items()]
    for found, what, published in counts:
        if found != published:
            audit.add("count", place, f"{found} {what}, the published data set has {published}")
    if clips and year == "2019":
        audit.note(place, "MEGC 2019 has the labels of 2014; three clips of sub24 differ")


def _read_sheet(tree: Tree, audit: Audit) -> list[sheets.SheetRow] | None:
    found = tree.files(SHEET_PATTERN)
    if not found:
        old = tree.files(OLD_SHEET_PATTERN)
        if old:
            what = f"an older list, whose columns are not documented; add {SHEETS[0]}.xlsx"
            audit.add("sheet", tree.below(old[0]), what)
        else:
            audit.add("sheet", tree.root, f"no {SHEETS[0]}.xlsx (or another version of it)")
        return None
    ranks = {stem.casefold(): rank for rank, stem in enumerate(SHEETS)}
    found.sort(key=lambda path: (ranks.get(path.stem.casefold(), len(ranks)), path))
    if found[1:]:
        others = ", ".join(tree.below(path) for path in found[1:])
        audit.note(tree.below(found[0]), f"this sheet is used; left aside: {others}")
    try:
        return sheets.read_sheet(found[0], COLUMNS, optional=OPTIONAL, sheet="Sheet1")
    except UserError as error:
        audit.add("sheet", tree.below(found[0]), str(error))
        return None


def _is_cropped(tree: Tree, folder: Path) -> bool:
    return "cropped" in f"{tree.root.name}/{tree.below(folder)}".casefold()


def _folder(tree: Tree, subject: str, name: str, cropped: bool, audit: Audit) -> Path | None:
    # Beside the raw pictures there may be the selection of them, which holds nothing else.
    prefer = ("cropped",) if cropped else ("casme2-raw",)
    found = (
        path
        for written in {subject, f"sub{int(subject[3:])}"}
        for path in tree.folders(written, name, prefer=prefer)
        if _is_cropped(tree, path) == cropped
    )
    return coded.only_folder(tree, found, f"{SOURCE}/{subject}/{name}", cropped, audit)


def _report_folders_without_row(
    tree: Tree, cropped: bool, keys: set[tuple[str, str]], audit: Audit
) -> None:
    for path in tree.names(r"ep\d+.*"):
        owner = re.fullmatch(r"sub(\d+)", path.parent.name, re.IGNORECASE)
        if not owner or _is_cropped(tree, path) != cropped:
            continue
        key = (f"sub{int(owner[1]):02d}", path.name.casefold())
        if key in WITHOUT_ROW and key not in keys:
            audit.note(tree.below(path), "a clip that is known to have no row in the sheet")
        elif key not in keys:
            audit.add("row", tree.below(path), "a clip without a row in the sheet")
