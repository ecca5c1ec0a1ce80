"""Where MMEW's clips, frames and labels are found in a copy of the data set."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.raw import LabelSet, RawClip, action_units, own_classes, three_classes
from htnet_jax.datasets.sheets import SheetRow, read_sheet
from htnet_jax.datasets.tree import Tree
from htnet_jax.errors import UserError

VARIANTS: tuple[str, ...] = ("",)

_OWN = own_classes("happiness anger surprise disgust fear sadness others")
EMOTIONS = _OWN.classes
# Copies disagree in the name of the seventh emotion: `others` in loaders, `repression` in folders.
SAME = {"repression": "others"}

LABELS: Mapping[str, LabelSet] = {
    "megc3": three_classes("anger disgust fear sadness", "happiness", "surprise"),
    "own": LabelSet(EMOTIONS, {**_OWN.of_emotion, **SAME}),
}


HOMEPAGE = "https://github.com/benxianyeteam/MMEW-Dataset"

_COLUMNS = {
    "subject": ["Subject"],
    "name": ["Filename"],
    "onset": ["OnsetFrame", "Onset Frame"],
    "apex": ["ApexFrame", "Apex Frame"],
    "offset": ["OffsetFrame", "Offset Frame"],
    "emotion": ["Estimated Emotion"],
}
_OPTIONAL = {"aus": ["Action Units"]}

LAYOUT = f"""the manual directory must hold
  MMEW_Micro_Exp.xlsx  (columns {", ".join(names[0] for names in _COLUMNS.values())};
                        Action Units if there)
  Micro_Expression/disgust/S04-03-001/1.jpg  or  S04/disgust/S04-03-001/1.jpg
Letter case and folders around these do not matter; the seventh emotion's folder may be called
others or repression. Macro_Expression is not used."""

# No copy with missing frames is documented.
KNOWN_GAPS: Mapping[str, str] = {}

# Ben et al., TPAMI 2022 (clips); subjects S01 to S30 in the file names. Copies and papers disagree
# about them, so differences are only noted; numbers by emotion are not confirmed at all.
CLIPS = 300
SUBJECTS = 30

_NAME = r"S0*(\d+)-0*(\d+)-0*(\d+)"
_SUBJECT = r"S?0*(\d+)"


def survey(tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
    """All annotated clips whose folder was found, sorted by name; everything else is a finding.

    Args:
        tree: The manual directory.
        variant: The only one, "".
        audit: Receives the findings.
    """
    path = _find_sheet(tree, audit)
    if path is None:
        return []
    try:
        rows = read_sheet(path, _COLUMNS, optional=_OPTIONAL, sheet="Sheet1")
    except UserError as error:
        audit.add("sheet", path, str(error))
        return []
    folders = _clip_folders(tree)
    first: dict[str, SheetRow] = {}
    clips = []
    for row in rows:
        name = standard_name(row.cells["name"])
        if name is None:
            audit.add("row", row.where, f"Filename is {row.cells['name']!r}, no S04-03-001")
        elif name in first:
            what = f"clip {name} again, after {first[name].where}; the first is used"
            audit.add("row", row.where, what, clip=_id(name), drops=False)
        else:
            first[name] = row
            if clip := _clip(tree, row, name, folders.get(name, []), audit):
                clips.append(clip)
    for name in sorted(folders.keys() - first.keys()):
        where = ", ".join(tree.below(folder) for folder in folders[name])
        audit.add("row", where, "a clip folder without a row", clip=_id(name))
    return sorted(clips, key=lambda clip: (clip.subject, clip.name))


def check_counts(clips: list[RawClip], variant: str, audit: Audit) -> None:
    """Notes where clips and subjects differ from the published numbers; nothing is enforced.

    Args:
        clips: What `survey` returned.
        variant: The only one, "".
        audit: Receives a note for each difference.
    """
    people = len({clip.subject for clip in clips})
    for what, count, published in (("clips", len(clips), CLIPS), ("subjects", people, SUBJECTS)):
        if count != published:
            audit.note("MMEW", f"{count} {what}, the published data set has {published}")


def standard_name(text: str) -> str | None:
    """A clip's name padded as in the data set (`s4-3-1` -> `S04-03-001`); None if it is none."""
    found = re.fullmatch(_NAME, text.strip(), re.IGNORECASE)
    return found and f"S{int(found[1]):02d}-{int(found[2]):02d}-{int(found[3]):03d}"


def _id(name: str) -> str:
    return f"mmew/{_subject_of(name)}/{name}"


def _subject_of(name: str) -> str:
    return name.partition("-")[0]


def _find_sheet(tree: Tree, audit: Audit) -> Path | None:
    for pattern in (r"mmew_micro_exp\.xlsx", r"mmew.*micro.*\.xlsx?"):
        found = tree.files(pattern)
        if len(found) > 1:
            names = ", ".join(tree.below(path) for path in found)
            audit.note(tree.below(found[0]), f"the first of several sheets is used: {names}")
        if found:
            return found[0]
    audit.add("sheet", tree.root, "MMEW_Micro_Exp.xlsx is missing")
    return None


def _clip_folders(tree: Tree) -> dict[str, list[Path]]:
    """Standard name -> its folders; of a folder within one of its own name the inner counts."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in tree.names(_NAME):
        name = standard_name(folder.name)
        if name and not any(part.startswith("macro") for part in _above(tree, folder)):
            found[name].append(folder)
    return {
        name: [p for p in folders if not any(p in other.parents for other in folders)]
        for name, folders in found.items()
    }


def _above(tree: Tree, folder: Path) -> list[str]:
    """Lower-case names of the folders between the root and a clip's folder."""
    return [part.casefold() for part in folder.relative_to(tree.root).parts[:-1]]


def _clip(
    tree: Tree, row: SheetRow, name: str, folders: list[Path], audit: Audit
) -> RawClip | None:
    """The row's clip; None, and findings, if the row is wrong or has not exactly one folder."""
    cells = row.cells
    numbers = {key: row.whole(key) for key in ("onset", "apex", "offset")}
    emotion = cells["emotion"].casefold()
    bad = []
    subject = re.fullmatch(_SUBJECT, cells["subject"], re.IGNORECASE)
    # An empty cell is one merged with that above.
    if cells["subject"] and (not subject or f"S{int(subject[1]):02d}" != _subject_of(name)):
        bad.append(f"Subject is {cells['subject']!r}, Filename {cells['name']!r}: they disagree")
    for key, number in numbers.items():
        if number is None and not (key == "apex" and cells[key] in ("", "/")):
            bad.append(f"{_COLUMNS[key][0]} is {cells[key]!r}, no frame number")
    onset, offset = numbers["onset"], numbers["offset"]
    if onset is not None and offset is not None and offset < onset:
        bad.append(f"offset {offset} is before onset {onset}")
    if SAME.get(emotion, emotion) not in EMOTIONS:
        bad.append(f"Estimated Emotion is {cells['emotion']!r}, none of {', '.join(EMOTIONS)}")
    for folder in folders if not bad else ():
        bad += _contradictions(tree, folder, name, emotion)
    for what in bad:
        audit.add("row", row.where, what, clip=_id(name))
    if len(folders) > 1:
        names = ", ".join(map(tree.below, folders))
        audit.add("path", row.where, f"several folders: {names}", clip=_id(name))
    if not folders:
        audit.add("folder", row.where, f"no folder {name}", clip=_id(name))
    if bad or len(folders) != 1 or onset is None or offset is None:
        return None
    return RawClip(
        "mmew",
        _subject_of(name),
        name,
        emotion,
        folders[0],
        onset,
        numbers["apex"],
        offset,
        action_units(cells["aus"]),
    )


def _contradictions(tree: Tree, folder: Path, name: str, emotion: str) -> list[str]:
    """How the folders above a clip contradict its row."""
    found = []
    for part in _above(tree, folder):
        word = SAME.get(part, part)
        if word in EMOTIONS and word != SAME.get(emotion, emotion):
            found.append(f"Estimated Emotion is {emotion}, the folder {tree.below(folder)}")
        subject = re.fullmatch(r"s0*(\d+)", part)
        if subject and f"S{int(subject[1]):02d}" != _subject_of(name):
            found.append(f"Filename is {name}, the folder {tree.below(folder)}")
    return found
