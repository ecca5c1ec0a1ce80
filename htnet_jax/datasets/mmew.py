"""MMEW, micro-expressions: where its clips and labels are found in a copy, and their numbers."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from htnet_jax.datasets import survey
from htnet_jax.datasets.builder import RawBuilder
from htnet_jax.datasets.labels import LabelSet, own_classes, three_classes
from htnet_jax.datasets.sheets import Row, quoted
from htnet_jax.datasets.survey import Audit, Counts, RawClip, Tree

SHEET = "MMEW_Micro_Exp.xlsx"
_OWN = own_classes("happiness anger surprise disgust fear sadness others")
# Copies disagree in the name of the seventh emotion: `others` in loaders, `repression` in folders.
_SAME = {"repression": "others"}
_NAME = r"S0*(\d{1,9})-0*(\d{1,9})-0*(\d{1,9})"


class Mmew(RawBuilder):
    """MMEW's micro-expressions: 300 clips of 30 subjects at 90 frames/s, seven emotions."""

    HOMEPAGE = "https://github.com/benxianyeteam/MMEW-Dataset"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
the manual directory must hold
  {SHEET}  (columns Subject, Filename, OnsetFrame, ApexFrame, OffsetFrame,
                        Estimated Emotion; Action Units if there)
  Micro_Expression/disgust/S04-03-001/1.jpg  or  S04/disgust/S04-03-001/1.jpg
Letter case and folders around these do not matter; the seventh emotion's folder may be called
others or repression. Macro_Expression is not used."""
    LABELS: ClassVar[Mapping[str, LabelSet]] = {
        "megc3": three_classes("anger disgust fear sadness", "happiness", "surprise"),
        "own": LabelSet(_OWN.classes, {**_OWN.of_emotion, **_SAME}),
    }
    # Ben et al., TPAMI 2022 (clips); subjects S01 to S30 in the file names. Copies and papers
    # disagree about them; numbers by emotion are not confirmed at all.
    COUNTS = (Counts("MMEW", clips=300, subjects=30, enforced=False),)

    @classmethod
    def survey(cls, tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
        """All annotated clips whose folder was found, by name."""
        rows = survey.sheet_rows(
            tree,
            (r"mmew_micro_exp\.xlsx", r"mmew.*micro.*\.xlsx?"),
            SHEET,
            {
                "subject": ("Subject",),
                "name": ("Filename",),
                "onset": ("OnsetFrame", "Onset Frame"),
                "apex": ("ApexFrame", "Apex Frame"),
                "offset": ("OffsetFrame", "Offset Frame"),
                "emotion": ("Estimated Emotion",),
            },
            audit,
            optional={"aus": ("Action Units",)},
            sheet="Sheet1",
        )
        if not rows:
            return []
        folders = _clip_folders(tree)
        first: dict[str, str] = {}
        clips = []
        for row in rows:
            name = standard_name(row.cells["name"])
            if name is None:
                what = f"Filename is {quoted(row.cells['name'])}, no name such as S04-03-001"
                audit.add("row", row.where, what)
                continue
            subject = name.partition("-")[0]
            clip_id = f"{cls.name}/{subject}/{name}"
            if survey.is_repeated(first, row, clip_id, audit, drops=False):
                continue
            found = folders.pop(name, [])
            fields = survey.values(row, clip_id, audit, cls.LABELS["own"].of_emotion)
            contradictions = list(_contradictions(tree, row, subject, found if fields else []))
            for what in contradictions:
                audit.add("row", row.where, what, clip=clip_id)
            folder = survey.one_folder(tree, found, row.where, clip_id, f"no folder {name}", audit)
            if fields and folder and not contradictions:
                clips.append(RawClip(cls.name, subject, name, folder=folder, **fields))
        for name in sorted(folders):
            clip_id = f"{cls.name}/{name.partition('-')[0]}/{name}"
            where = ", ".join(tree.below(folder) for folder in folders[name])
            audit.add("row", where, survey.WITHOUT_ROW, clip=clip_id)
        return sorted(clips, key=lambda clip: (clip.subject, clip.name))


def standard_name(text: str) -> str | None:
    """A clip's name padded as in the data set (`s4-3-1` -> `S04-03-001`); None if it is none."""
    found = re.fullmatch(_NAME, text.strip(), re.IGNORECASE)
    return found and f"S{int(found[1]):02d}-{int(found[2]):02d}-{int(found[3]):03d}"


def _clip_folders(tree: Tree) -> dict[str, list[Path]]:
    """Standard name -> its folders among those of micro-expressions."""
    found: dict[str, list[Path]] = collections.defaultdict(list)
    for folder in tree.names(_NAME):
        if not any(part.startswith("macro") for part in tree.parts(folder)[1:-1]):
            found[standard_name(folder.name)].append(folder)
    return {name: survey.innermost(folders) for name, folders in found.items()}


def _contradictions(tree: Tree, row: Row, subject: str, folders: list[Path]) -> Iterator[str]:
    """How the sheet's subject and the folders above a clip contradict its name and emotion."""

    def differs(text: str) -> bool:
        number = re.fullmatch(r"S?0*(\d{1,9})", text, re.IGNORECASE)
        return not number or f"S{int(number[1]):02d}" != subject

    # An empty cell is one merged with that above.
    if row.cells["subject"] and differs(row.cells["subject"]):
        cells = f"Subject is {quoted(row.cells['subject'])}, Filename {quoted(row.cells['name'])}"
        yield f"{cells}: they disagree"
    emotion = row.cells["emotion"].casefold()
    for folder in folders:
        for part in tree.parts(folder)[1:-1]:
            word = _SAME.get(part, part)
            if word in _OWN.classes and word != _SAME.get(emotion, emotion):
                yield f"emotion is {emotion}, the folder {tree.below(folder)}"
            if re.fullmatch(r"s\d+", part) and differs(part):
                yield f"Filename is {row.cells['name']}, the folder {tree.below(folder)}"
