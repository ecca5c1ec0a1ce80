"""4DME, micro-expressions in gray videos: its folders, annotation sheet and counts.

An emotion may be several words (`Surprise+Positive`); only clips with exactly one enter a class.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.raw import LabelSet, RawClip, action_units, own_classes, three_classes
from htnet_jax.datasets.sheets import SheetRow, read_sheet
from htnet_jax.datasets.tree import Tree
from htnet_jax.errors import UserError

# Li et al., "4DME", IEEE TAFFC 2022: five categories.
EMOTIONS = ("positive", "negative", "surprise", "repression", "others")
# Clips that a public loader (the MEB library) counts; the paper's numbers are not verified.
CLIPS = 267

VARIANTS: tuple[str, ...] = ("",)
LABELS: Mapping[str, LabelSet] = {
    "megc3": three_classes("negative", "positive", "surprise"),
    "own": own_classes(" ".join(EMOTIONS)),
}
KNOWN_GAPS: Mapping[str, str] = {}
# The MEB library swaps the action units of rows 144 and 145 (counted from 0 below the header) of
# its copy. A number is no key: in a copy sorted otherwise it names other clips. So none here.
CORRECTIONS: Mapping[tuple[str, str], Mapping[str, str]] = {}
HOMEPAGE = (
    "https://6gflagship.com/publications/"
    "4dme-a-spontaneous-4d-micro-expression-dataset-with-multimodalities"
)

SHEET = "4DME_Labelling_Micro_release v1.xlsx"
LAYOUT = f"""Request 4DME from its owners (University of Oulu); the manual directory must hold
  {SHEET}  (or "Micro and Macro-expression labels.xlsx"; columns sub_ID,
    fold_name, Emotion, Onset, Apex, Offset, AUs)
and, at any depth, one of
  gray_micro/SUB_ID/FOLD_NAME/...
  micro_short_gray_video/SUB_ID/FOLD_NAME/Frame_000001823.jpg
Letter case and padding do not matter. Long, macro-expression and colour videos are not used."""

# In order of preference.
_SHEET_PATTERNS = (
    re.escape(SHEET),
    r"4DME_Labelling_Micro_release.*\.xlsx?",
    r"Micro[ _]and[ _]Macro-expression[ _]labels.*\.xlsx?",
)
_COLUMNS = {
    "subject": ("sub_ID", "SubID"),
    "name": ("fold_name",),
    "emotion": ("Emotion",),
    "onset": ("Onset",),
    "apex": ("Apex",),
    "offset": ("Offset",),
    "aus": ("AUs", "AU"),
}
# Words in the names of the release's other folders, such as `long_gray_video`.
_OTHER_PARTS = ("long", "macro", "rgb", "color", "depth")


def survey(tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
    """All annotated clips whose folder was found, by subject and name.

    Args:
        tree: The manual directory, see `LAYOUT`.
        variant: "", there is only one.
        audit: Receives everything else: unusable sheet, bad rows, missing and ambiguous folders,
            and folders without a row.
    """
    path = _choose_sheet(tree, audit)
    if path is None:
        return []
    try:
        rows = read_sheet(path, _COLUMNS)
    except UserError as error:
        audit.add("sheet", tree.below(path), str(error))
        return []
    found: list[RawClip] = []
    rows_of: dict[str, str] = {}
    named: set[tuple[str, str]] = set()
    for row in rows:
        key = _subject(row.cells["subject"]), row.cells["name"]
        if not all(key) or "/" in "".join(key):
            audit.add("row", row.where, f"sub_ID, fold_name are {key[0]!r}, {key[1]!r}: no clip")
            continue
        named.add((key[0].casefold(), key[1].casefold()))
        clip = _read_row(row, *key, audit)
        if clip is None:
            continue
        if clip.id.casefold() in rows_of:
            first = rows_of[clip.id.casefold()]
            audit.add("row", row.where, f"the clip again, after {first}", clip=clip.id)
            continue
        rows_of[clip.id.casefold()] = row.where
        folder = _find_folder(tree, clip, audit)
        if folder is not None:
            found.append(dataclasses.replace(clip, folder=folder))
    _report_extra(tree, named, audit)
    return sorted(found, key=lambda clip: (clip.subject, clip.name))


def check_counts(clips: Sequence[RawClip], variant: str, audit: Audit) -> None:
    """Notes a difference from the number of clips that a public loader counts; enforces nothing."""
    if len(clips) != CLIPS:
        audit.note("fourdme", f"{len(clips)} clips; a public loader counts {CLIPS} (unverified)")


def _choose_sheet(tree: Tree, audit: Audit) -> Path | None:
    files = tree.files(r".+\.xlsx?")
    found = [
        file
        for pattern in _SHEET_PATTERNS
        for file in files
        if re.fullmatch(pattern, file.name, re.IGNORECASE)
    ]
    if not found:
        audit.add("sheet", tree.root, f"no annotation sheet; it is called {SHEET}")
        return None
    for file in dict.fromkeys(found[1:]):
        if file != found[0]:
            audit.note(tree.below(file), f"not used: {tree.below(found[0])} is")
    return found[0]


def _subject(text: str) -> str:
    """`8`, `S8` and `s08` as `S08`; other names as they are."""
    number = re.fullmatch(r"s?(\d+)", text, re.IGNORECASE)
    return f"S{int(number[1]):02d}" if number else text


def _read_row(row: SheetRow, subject: str, name: str, audit: Audit) -> RawClip | None:
    """The clip, its folder still unknown."""
    cells = row.cells
    onset, apex, offset = (row.whole(field) for field in ("onset", "apex", "offset"))
    words = [word.strip().lower() for word in cells["emotion"].split("+")]
    wrongs = [
        f"{title} {cells[title.lower()]!r} is no frame number"
        for title, number in (("Onset", onset), ("Offset", offset))
        if number is None
    ]
    if apex is None and cells["apex"] not in ("", "/"):
        wrongs.append(f"Apex {cells['apex']!r} is no frame number")
    if None not in (onset, offset) and offset < onset:
        wrongs.append(f"Offset {offset} precedes Onset {onset}")
    if not set(words) <= set(EMOTIONS):
        wrongs.append(f"Emotion {cells['emotion']!r} is not made of {', '.join(EMOTIONS)}")
    if wrongs:
        audit.add("row", row.where, "; ".join(wrongs), clip=f"fourdme/{subject}/{name}")
        return None
    return RawClip(
        source="fourdme",
        subject=subject,
        name=name,
        emotion="+".join(words),
        folder=Path(),
        onset=onset,
        apex=apex,
        offset=offset,
        aus=_action_units(cells["aus"]),
    )


def _action_units(cell: str) -> tuple[str, ...]:
    """`AU4+AU7(k)` -> `("4",)`: units marked (k) were held, not made in the clip."""
    moved = re.sub(r"[^+,;&\s]+\s*\(k\)", "", cell, flags=re.IGNORECASE)
    return action_units(re.sub(r"AU\s*", "", moved, flags=re.IGNORECASE))


def _find_folder(tree: Tree, clip: RawClip, audit: Audit) -> Path | None:
    found = [
        path
        for path in tree.folders(clip.name)
        if _subject(path.parent.name).casefold() == clip.subject.casefold()
        and _is_micro_gray(tree, path)
    ]
    # Beside the distributed folders, crops that a user has made (`gray_micro_crop`).
    found = [path for path in found if "crop" not in tree.below(path).casefold()] or found
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(tree.below(path) for path in found)
        audit.add("path", clip.id, f"several folders match: {places}; keep one", clip=clip.id)
    else:
        what = f"no folder {clip.subject}/{clip.name} among the gray micro-expression videos"
        audit.add("folder", clip.id, what, clip=clip.id)
    return None


def _is_micro_gray(tree: Tree, folder: Path) -> bool:
    """Whether a clip's folder belongs to the gray videos of micro-expressions."""
    above = tree.below(folder).split("/")[:-2]
    if any(_holds_subjects(part) for part in above):
        return True
    return not any(word in part.casefold() for part in above for word in _OTHER_PARTS)


def _holds_subjects(name: str) -> bool:
    """`gray_micro`, `micro_short_gray_video` and the like."""
    return "micro" in name.casefold() and "gray" in name.casefold()


def _report_extra(tree: Tree, named: set[tuple[str, str]], audit: Audit) -> None:
    """Folders two levels below `gray_micro` or `micro_short_gray_video` that no row names."""
    for folder in tree.names(r".+"):
        part, subject, name = folder.parts[-3:]
        # Archives unpack into folders of their own name, one in the other.
        if not _holds_subjects(part) or _holds_subjects(subject) or _holds_subjects(name):
            continue
        if (_subject(subject).casefold(), name.casefold()) not in named:
            audit.add("row", tree.below(folder), "this clip folder has no row in the sheet")
