"""4DME, micro-expressions in gray videos: its folders, annotation sheet, label sets and counts.

An emotion may be several words (`Surprise+Positive`); only clips with exactly one enter a class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from htnet_jax.datasets import survey
from htnet_jax.datasets.builder import RawBuilder
from htnet_jax.datasets.labels import LabelSet, own_classes, three_classes
from htnet_jax.datasets.recording import folded
from htnet_jax.datasets.sheets import quoted
from htnet_jax.datasets.survey import Audit, Counts, RawClip, Tree

SHEET = "4DME_Labelling_Micro_release v1.xlsx"
# Words in the names of the release's other folders, such as `long_gray_video`.
_OTHER_PARTS = ("long", "macro", "rgb", "color", "depth")


class Fourdme(RawBuilder):
    """The micro-expressions of 4DME, from its gray videos."""

    HOMEPAGE = (
        "https://6gflagship.com/publications/"
        "4dme-a-spontaneous-4d-micro-expression-dataset-with-multimodalities"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
Request 4DME from its owners (University of Oulu); the manual directory must hold
  {SHEET}  (or "Micro and Macro-expression labels.xlsx"; columns sub_ID,
    fold_name, Emotion, Onset, Apex, Offset, AUs)
and, at any depth, one of
  gray_micro/SUB_ID/FOLD_NAME/...
  micro_short_gray_video/SUB_ID/FOLD_NAME/Frame_000001823.jpg
Letter case and padding do not matter. Long, macro-expression and colour videos are not used."""
    LABELS: ClassVar[Mapping[str, LabelSet]] = {
        "megc3": three_classes("negative", "positive", "surprise"),
        # Li et al., "4DME", IEEE TAFFC 2022: five categories.
        "own": own_classes("positive negative surprise repression others"),
    }
    # The paper's numbers are not verified.
    COUNTS = (Counts("fourdme", clips=267, by="a public loader (unverified)", enforced=False),)

    @classmethod
    def survey(cls, tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
        """All annotated clips whose folder was found, by subject and name.

        There are no corrections: the MEB library swaps the action units of rows 144 and 145
        (counted from 0 below the header) of its copy, but a number is no key: in a copy sorted
        otherwise it names other clips.
        """
        rows = survey.sheet_rows(
            tree,
            (
                re.escape(SHEET),
                r"4dme_labelling_micro_release.*\.xlsx?",
                r"micro[ _]and[ _]macro-expression[ _]labels.*\.xlsx?",
            ),
            SHEET,
            {
                "subject": ("sub_ID", "SubID"),
                "name": ("fold_name",),
                "emotion": ("Emotion",),
                "onset": ("Onset",),
                "apex": ("Apex",),
                "offset": ("Offset",),
                "aus": ("AUs", "AU"),
            },
            audit,
        )
        if not rows:
            return []
        found: list[RawClip] = []
        first: dict[str, str] = {}
        named: set[tuple[str, str]] = set()
        for row in rows:
            subject, name = _subject(row.cells["subject"]), row.cells["name"]
            if not survey.is_name(subject) or not survey.is_name(name):
                what = f"sub_ID, fold_name are {quoted(subject)}, {quoted(name)}: no clip"
                audit.add("row", row.where, what)
                continue
            named.add((folded(subject), folded(name)))
            clip_id = f"{cls.name}/{subject}/{name}"
            emotions = cls.LABELS["own"].of_emotion
            fields = survey.values(row, clip_id, audit, emotions, compound=True)
            if fields is None or survey.is_repeated(first, row, clip_id, audit):
                continue
            missing = f"no folder {subject}/{name} among the gray micro-expression videos"
            folders = _folders(tree, subject, name)
            if folder := survey.one_folder(tree, folders, row.where, clip_id, missing, audit):
                found.append(RawClip(cls.name, subject, name, folder=folder, **fields))
        for folder in tree.names(r".+"):
            part, subject, name = folder.parts[-3:]
            # Archives unpack into folders of their own name, one in the other.
            if not _holds_subjects(part) or _holds_subjects(subject) or _holds_subjects(name):
                continue
            if (folded(_subject(subject)), folded(name)) not in named:
                audit.add("row", tree.below(folder), survey.WITHOUT_ROW)
        return sorted(found, key=lambda clip: (clip.subject, clip.name))


def _subject(text: str) -> str:
    """`8`, `S8` and `s08` as `S08`; other names as they are."""
    number = re.fullmatch(r"s?(\d{1,9})", text, re.IGNORECASE)
    return f"S{int(number[1]):02d}" if number else text


def _folders(tree: Tree, subject: str, name: str) -> list[Path]:
    found = [
        path
        for path in tree.folders(name)
        if folded(_subject(path.parent.name)) == folded(subject) and _is_micro_gray(tree, path)
    ]
    # Beside the distributed folders, crops that a user has made (`gray_micro_crop`).
    return [path for path in found if "crop" not in tree.below(path).casefold()] or found


def _is_micro_gray(tree: Tree, folder: Path) -> bool:
    """Whether a clip's folder belongs to the gray videos of micro-expressions."""
    above = tree.parts(folder)[1:-2]
    if any(_holds_subjects(part) for part in above):
        return True
    return not any(word in part for part in above for word in _OTHER_PARTS)


def _holds_subjects(name: str) -> bool:
    """`gray_micro`, `micro_short_gray_video` and the like."""
    return "micro" in name.casefold() and "gray" in name.casefold()
