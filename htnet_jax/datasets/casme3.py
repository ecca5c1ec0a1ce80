"""CAS(ME)^3 Part A, colour frames: folders, annotation sheet, label sets, known errors and counts.

A recording holds several micro-expressions, so a clip is named by its recording and onset: `a_175`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from htnet_jax.datasets import survey
from htnet_jax.datasets.builder import RawBuilder
from htnet_jax.datasets.labels import OBJECTIVE_SET, LabelSet, own_classes, three_classes
from htnet_jax.datasets.recording import folded, image_files
from htnet_jax.datasets.sheets import quoted
from htnet_jax.datasets.survey import Audit, Correction, Counts, RawClip, Tree

SHEET = "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx"
# The authors: most recordings of Part A lack their first 7 or 8 frames, and a few later ones.
_UNRECORDED = 8
_MEB = "the MEB library (Varanka et al.)"


class Casme3(RawBuilder):
    """860 micro-expressions of 94 subjects from Part A of CAS(ME)^3, colour frames."""

    HOMEPAGE = "http://casme.psych.ac.cn/casme/e4"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
Request CAS(ME)^3 from its owners ({HOMEPAGE}); the manual directory must hold
  {SHEET}  (version 2; columns Subject, Filename,
    Onset, Apex, Offset, AU, Objective class, emotion)
and, at any depth, one of
  part_A/spNO.1/a/color/175.jpg                (the recordings as frames; depth is not used)
  Part_A_ME_clip/frame/spNO.1_a_175/175.jpg    (the clips; folders are Subject_Filename_Onset)
Letter case does not matter. Videos (.mp4) must be extracted to such frames first."""
    LABELS: ClassVar[Mapping[str, LabelSet]] = {
        "megc3": three_classes("disgust fear anger sad", "happy", "surprise"),
        "own": own_classes("disgust surprise others fear anger sad happy"),
        "objective": OBJECTIVE_SET,
    }
    # Of version 2 of the annotation sheet.
    COUNTS = (
        Counts(
            "casme3",
            clips=860,
            subjects=94,
            emotions={
                "disgust": 250,
                "surprise": 187,
                "others": 161,
                "fear": 86,
                "anger": 64,
                "sad": 57,
                "happy": 55,
            },
        ),
    )
    # (subject, recording, onset in the sheet) -> what is wrong there.
    CORRECTIONS: ClassVar[Mapping[tuple[str, str, str], Correction]] = {
        ("spNO.149", "d", "112"): Correction(
            {"apex": ("83", "123")}, f"the sheet's apex precedes its onset; 123 is from {_MEB}"
        ),
        ("spNO.214", "c", "5"): Correction(
            {"offset": ("3460", "34")},
            f"the sheet's clip would last two minutes; 34 is from {_MEB}",
        ),
        ("spNO.216", "d", "3647"): Correction(
            {"onset": ("3647", "2647")},
            "a digit is wrong; the owners' sheet part_A_v2 has 2647",
        ),
        ("spNO.216", "e", "0"): Correction(
            {"onset": ("0", "1"), "apex": ("0", "1")},
            f"frames count from 1; the owners' list of exceptions and {_MEB} have 1",
        ),
        ("spNO.40", "e", "1812"): Correction(
            {"offset": ("0", "1845")}, f"the sheet has no offset; 1845 is from {_MEB}"
        ),
        ("spNO.40", "e", "2327"): Correction(
            {"offset": ("0", "2403")}, f"the sheet has no offset; 2403 is from {_MEB}"
        ),
    }

    @classmethod
    def survey(cls, tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
        """All annotated clips whose folder was found, by subject's number, recording and onset."""
        rows = survey.sheet_rows(
            tree,
            (re.escape(SHEET), r"cas\(me\)\^?3_part_a_me_label_jpgindex_v2.*\.xlsx?"),
            SHEET,
            {
                "subject": ("Subject",),
                "video": ("Filename",),
                "onset": ("Onset",),
                "apex": ("Apex",),
                "offset": ("Offset",),
                "aus": ("AU",),
                "objective": ("Objective class",),
                "emotion": ("emotion",),
            },
            audit,
            sheet="label",
            refused={
                r"cas\(me\)\^?3_part_a_me_label_jpgindex_v1.*\.xlsx?": (
                    "version 1 of the labels, with rows that its authors have withdrawn"
                ),
                r"cas\(me\)\^?3_part_a_v\d.*\.xlsx?": "a sheet without emotions",
            },
        )
        if not rows:
            return []
        found: list[RawClip] = []
        first: dict[str, str] = {}
        named: set[str] = set()
        for row in rows:
            number = re.fullmatch(r"sp\s*no\.?\s*(\d{1,9})", row.cells["subject"], re.IGNORECASE)
            video, onset = row.cells["video"].lower(), row.whole("onset")
            if number is None or not re.fullmatch(r"[a-z0-9]{1,99}", video) or onset is None:
                key = ", ".join(quoted(row.cells[k]) for k in ("subject", "video", "onset"))
                what = f"Subject, Filename, Onset are {key}: they name no clip"
                audit.add("row", row.where, what)
                continue
            subject = f"spNO.{int(number[1])}"
            row, changes = survey.correct(row, cls.CORRECTIONS.get((subject, video, str(onset))))
            name = f"{video}_{row.whole('onset')}"
            # Folders were named when the error was still in; a corrected release may rename them.
            places = list(dict.fromkeys((f"{subject}_{video}_{onset}", f"{subject}_{name}")))
            named.update(folded(place) for place in places)
            clip_id = f"{cls.name}/{subject}/{name}"
            for what in changes:
                audit.note(row.where, what, clip=clip_id, kind="corrected")
            fields = survey.values(row, clip_id, audit, cls.LABELS["own"].of_emotion)
            if fields is None or survey.is_repeated(first, row, clip_id, audit):
                continue
            # The clips' folders first: they hold the same frames, and are listed much faster.
            folders = _clip_folders(tree, [f for p in places for f in tree.folders("frame", p)])
            folders = folders or tree.folders(subject, video, "color")
            missing = f"neither frame/{places[0]} nor {subject}/{video}/color is there"
            folder = survey.one_folder(
                tree, folders, row.where, clip_id, missing, audit, names=places
            )
            if folder:
                fields["onset"] = _recorded_onset(clip_id, folder, fields, audit)
                found.append(RawClip(cls.name, subject, name, folder=folder, **fields))
        for folder in _clip_folders(tree, tree.names(r"spno\.\d+_[a-z0-9]+_\d+")):
            if folded(folder.name) not in named:
                audit.add("row", tree.below(folder), survey.WITHOUT_ROW)
        return sorted(found, key=_order)


def _clip_folders(tree: Tree, folders: Sequence[Path]) -> list[Path]:
    """Those of the colour frames of micro-expressions: not depth, and not `Part_A_MaE_clip`."""
    return [
        path
        for path in folders
        if path.parent.name.casefold() == "frame" and "_mae_" not in tree.below(path).casefold()
    ]


def _recorded_onset(clip_id: str, folder: Path, fields: Mapping[str, int], audit: Audit) -> int:
    """The first recorded frame of a clip, where the sheet's onset was not recorded."""
    onset = fields["onset"]
    try:
        numbers = image_files(folder)
    except (OSError, ValueError):
        return onset  # the check of all clips' frames reports the folder
    last = min(onset + _UNRECORDED, fields["offset"] - 1)
    first = next((number for number in numbers if onset <= number <= last), onset)
    if first != onset:
        what = (
            f"onset {onset} -> {first}, the first frame on disk: the owners say that most "
            "recordings lack their first 7 or 8 frames, and a few later ones"
        )
        audit.note(folder, what, clip=clip_id, kind="corrected")
    return first


def _order(clip: RawClip) -> tuple[int, str, int]:
    video, _, onset = clip.name.partition("_")
    return int(clip.subject.removeprefix("spNO.")), video, int(onset)
