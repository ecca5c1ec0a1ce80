"""CAS(ME)^3 Part A, colour frames: its folders, annotation sheet, known errors and counts.

A recording holds several micro-expressions, so a clip is named by its recording and onset: `a_175`.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.raw import (
    OBJECTIVE,
    OBJECTIVE_SET,
    LabelSet,
    RawClip,
    action_units,
    own_classes,
    three_classes,
)
from htnet_jax.datasets.sheets import SheetRow, read_sheet
from htnet_jax.datasets.tree import Tree, frames
from htnet_jax.errors import UserError

# Clips of each emotion, all clips, and subjects in version 2 of the annotation sheet.
EMOTIONS = {
    "disgust": 250,
    "surprise": 187,
    "others": 161,
    "fear": 86,
    "anger": 64,
    "sad": 57,
    "happy": 55,
}
CLIPS = 860
SUBJECTS = 94

VARIANTS: tuple[str, ...] = ("",)
LABELS: Mapping[str, LabelSet] = {
    "megc3": three_classes("disgust fear anger sad", "happy", "surprise"),
    "own": own_classes(" ".join(EMOTIONS)),
    "objective": OBJECTIVE_SET,
}
# About a tenth of the clips lack frames, but no list says which.
KNOWN_GAPS: Mapping[str, str] = {}
HOMEPAGE = "http://casme.psych.ac.cn/casme/e4"

SHEET = "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx"
LAYOUT = f"""Request CAS(ME)^3 from its owners ({HOMEPAGE}); the manual directory must hold
  {SHEET}  (version 2; columns Subject, Filename,
    Onset, Apex, Offset, AU, Objective class, emotion)
and, at any depth, one of
  part_A/spNO.1/a/color/175.jpg                (the recordings as frames; depth is not used)
  Part_A_ME_clip/frame/spNO.1_a_175/175.jpg    (the clips; folders are Subject_Filename_Onset)
Letter case does not matter. Videos (.mp4) must be extracted to such frames first."""

_SHEET_PATTERN = r"cas\(me\)\^?3_part_a_me_label_jpgindex_v2.*\.xlsx?"
# Sheets of the same owners that cannot be used, and why.
_OTHER_SHEETS = {
    r"cas\(me\)\^?3_part_a_me_label_jpgindex_v1.*\.xlsx?": (
        "version 1 of the labels, with rows that its authors have withdrawn"
    ),
    r"cas\(me\)\^?3_part_a_v\d.*\.xlsx?": "a sheet without emotions",
}
_COLUMNS = {
    "subject": ("Subject",),
    "video": ("Filename",),
    "onset": ("Onset",),
    "apex": ("Apex",),
    "offset": ("Offset",),
    "aus": ("AU",),
    "objective": ("Objective class",),
    "emotion": ("emotion",),
}
_CLIP_FOLDER = r"spno\.\d+_[a-z0-9]+_\d+"
# The authors: most recordings of Part A lack their first 7 or 8 frames, and a few later ones.
_UNRECORDED = 8


@dataclasses.dataclass(frozen=True)
class Correction:
    """What is wrong in a row of the sheet.

    Attributes:
        changes: Field -> (the sheet's wrong number, the right one). A field that has another
            number, as in a corrected sheet, is left alone.
        reason: Why it is wrong, and where the right number comes from.
    """

    changes: Mapping[str, tuple[int, int]]
    reason: str


_MEB = "the MEB library (Varanka et al.)"
# (subject, recording, onset in the sheet) -> what is wrong there.
CORRECTIONS: Mapping[tuple[str, str, int], Correction] = {
    ("spNO.149", "d", 112): Correction(
        {"apex": (83, 123)}, f"the sheet's apex precedes its onset; 123 is from {_MEB}"
    ),
    ("spNO.214", "c", 5): Correction(
        {"offset": (3460, 34)}, f"the sheet's clip would last two minutes; 34 is from {_MEB}"
    ),
    ("spNO.216", "d", 3647): Correction(
        {"onset": (3647, 2647)}, "a digit is wrong; the owners' sheet part_A_v2 has 2647"
    ),
    ("spNO.216", "e", 0): Correction(
        {"onset": (0, 1), "apex": (0, 1)},
        f"frames count from 1; the owners' list of exceptions and {_MEB} have 1",
    ),
    ("spNO.40", "e", 1812): Correction(
        {"offset": (0, 1845)}, f"the sheet has no offset; 1845 is from {_MEB}"
    ),
    ("spNO.40", "e", 2327): Correction(
        {"offset": (0, 2403)}, f"the sheet has no offset; 2403 is from {_MEB}"
    ),
}


def survey(tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
    """All annotated clips whose folder was found, by number of the subject, recording and onset.

    Args:
        tree: The manual directory, see `LAYOUT`.
        variant: "", there is only one.
        audit: Receives everything else: unusable sheet, bad rows, missing and ambiguous folders,
            folders without a row, and each correction.
    """
    # One walk for both: the recordings are more than a million files.
    files = tree.files(r".+\.(xlsx?|mp4)")
    path = _choose_sheet(tree, files, audit)
    if path is None:
        return []
    try:
        rows = read_sheet(path, _COLUMNS, sheet="label")
    except UserError as error:
        audit.add("sheet", tree.below(path), str(error))
        return []
    videos = {file.stem.casefold(): file for file in files if file.suffix.lower() == ".mp4"}
    found: list[RawClip] = []
    rows_of: dict[str, str] = {}
    named: set[str] = set()
    for row in rows:
        clip, folder_names = _read_row(row, audit)
        named.update(name.casefold() for name in folder_names)
        if clip is None:
            continue
        if clip.id in rows_of:
            audit.add("row", row.where, f"the clip again, after {rows_of[clip.id]}", clip=clip.id)
            continue
        rows_of[clip.id] = row.where
        folder = _find_folder(tree, clip, folder_names, videos, audit)
        if folder is not None:
            clip = dataclasses.replace(clip, folder=folder)
            found.append(_start_where_recorded(clip, audit))
    for folder in _clip_folders(tree, tree.names(_CLIP_FOLDER)):
        if folder.name.casefold() not in named:
            audit.add("row", tree.below(folder), "this clip folder has no row in the sheet")
    return sorted(found, key=_order)


def check_counts(clips: Sequence[RawClip], variant: str, audit: Audit) -> None:
    """Compares clips, subjects and emotions with version 2 of the annotation sheet."""
    counted = collections.Counter(clip.emotion for clip in clips)
    numbers = [
        ("clips", len(clips), CLIPS),
        ("subjects", len({clip.subject for clip in clips}), SUBJECTS),
        *((f"clips of {word}", counted[word], wanted) for word, wanted in EMOTIONS.items()),
    ]
    for what, number, wanted in numbers:
        if number != wanted:
            audit.add("count", "casme3", f"{number} {what}, the published data set has {wanted}")


def _choose_sheet(tree: Tree, files: Sequence[Path], audit: Audit) -> Path | None:
    def like(pattern: str) -> list[Path]:
        return [file for file in files if re.fullmatch(pattern, file.name, re.IGNORECASE)]

    found = sorted(like(_SHEET_PATTERN), key=lambda file: file.name.casefold() != SHEET.casefold())
    for file in found[1:]:
        audit.note(tree.below(file), f"not used: {tree.below(found[0])} is")
    if found:
        return found[0]
    others = [(file, why) for pattern, why in _OTHER_SHEETS.items() for file in like(pattern)]
    for file, why in others:
        audit.add("sheet", tree.below(file), f"{why}; the right sheet is {SHEET}")
    if not others:
        audit.add("sheet", tree.root, f"no annotation sheet; it is called {SHEET}")
    return None


def _read_row(row: SheetRow, audit: Audit) -> tuple[RawClip | None, list[str]]:
    """The clip, its folder still unknown, and the names its folder in the release may have."""
    cells = row.cells
    person = re.fullmatch(r"sp\s*no\.?\s*(\d+)", cells["subject"], re.IGNORECASE)
    video = cells["video"].lower()
    numbers = {field: row.whole(field) for field in ("onset", "apex", "offset")}
    sheet_onset = numbers["onset"]
    if person is None or not re.fullmatch(r"[a-z0-9]+", video) or sheet_onset is None:
        key = ", ".join(repr(cells[field]) for field in ("subject", "video", "onset"))
        audit.add("row", row.where, f"Subject, Filename, Onset are {key}: they name no clip")
        return None, []
    subject = f"spNO.{int(person[1])}"
    correction = CORRECTIONS.get((subject, video, sheet_onset), Correction({}, ""))
    changes = {f: pair for f, pair in correction.changes.items() if numbers[f] == pair[0]}
    numbers |= {field: right for field, (_, right) in changes.items()}
    onset, apex, offset = numbers.values()
    name = f"{video}_{onset}"
    clip_id = f"casme3/{subject}/{name}"
    for field, (wrong, right) in changes.items():
        what = f"{field} {right} in place of {wrong}: {correction.reason}"
        audit.note(row.where, what, clip=clip_id, kind="corrected")
    emotion, objective = cells["emotion"].lower(), cells["objective"].upper()
    wrongs = []
    if offset is None:
        wrongs.append(f"Offset {cells['offset']!r} is no frame number")
    elif offset < onset:
        wrongs.append(f"Offset {offset} precedes Onset {onset}")
    if apex is None and cells["apex"] not in ("", "/"):
        wrongs.append(f"Apex {cells['apex']!r} is no frame number")
    if emotion not in EMOTIONS:
        wrongs.append(f"emotion {cells['emotion']!r} is none of {', '.join(EMOTIONS)}")
    if objective not in ("", *OBJECTIVE):
        wrongs.append(f"Objective class {cells['objective']!r} is none of {', '.join(OBJECTIVE)}")
    # Folders were named when the error was still in; a corrected release may name them anew.
    folder_names = [f"{subject}_{video}_{number}" for number in dict.fromkeys((sheet_onset, onset))]
    if wrongs:
        audit.add("row", row.where, "; ".join(wrongs), clip=clip_id)
        return None, folder_names
    clip = RawClip(
        source="casme3",
        subject=subject,
        name=name,
        emotion=emotion,
        folder=Path(),
        onset=onset,
        apex=apex,
        offset=offset,
        aus=action_units(cells["aus"]),
        objective=OBJECTIVE.index(objective) + 1 if objective else 0,
    )
    return clip, folder_names


def _find_folder(
    tree: Tree,
    clip: RawClip,
    folder_names: Sequence[str],
    videos: Mapping[str, Path],
    audit: Audit,
) -> Path | None:
    video, _, _ = clip.name.partition("_")
    # The clips' folders first: they hold the same frames, and are listed much faster.
    found = [
        path for name in folder_names for path in _clip_folders(tree, tree.folders("frame", name))
    ] or tree.folders(clip.subject, video, "color")
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(tree.below(path) for path in found)
        audit.add("path", clip.id, f"several folders match: {places}; keep one", clip=clip.id)
        return None
    only = [videos[name.casefold()] for name in folder_names if name.casefold() in videos]
    if only:
        what = (
            f"only the video {tree.below(only[0])} is here; extract its frames to "
            f"frame/{folder_names[0]}/NUMBER.jpg, numbered from the onset {clip.onset}"
        )
    else:
        what = f"neither frame/{folder_names[0]} nor {clip.subject}/{video}/color is there"
    audit.add("folder", clip.id, what, clip=clip.id)
    return None


def _clip_folders(tree: Tree, folders: Sequence[Path]) -> list[Path]:
    """Those of the colour frames of micro-expressions: not depth, and not `Part_A_MaE_clip`."""
    return [
        path
        for path in folders
        if path.parent.name.casefold() == "frame" and "_mae_" not in tree.below(path).casefold()
    ]


def _start_where_recorded(clip: RawClip, audit: Audit) -> RawClip:
    """The clip from its first recorded frame on, where the sheet's onset was not recorded."""
    try:
        numbers = frames(clip.folder)
    except (OSError, ValueError):
        return clip  # the check of all clips' frames reports the folder
    last = min(clip.onset + _UNRECORDED, clip.offset - 1)
    first = next((number for number in numbers if clip.onset <= number <= last), clip.onset)
    if first == clip.onset:
        return clip
    what = (
        f"onset {first}, the first frame on disk, in place of {clip.onset}: the owners say that "
        "most recordings lack their first 7 or 8 frames, and a few later ones"
    )
    audit.note(clip.folder, what, clip=clip.id, kind="corrected")
    return dataclasses.replace(clip, onset=first)


def _order(clip: RawClip) -> tuple[int, str, int]:
    video, _, onset = clip.name.partition("_")
    return int(clip.subject.removeprefix("spNO.")), video, int(onset)
