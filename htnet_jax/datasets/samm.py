"""SAMM's short clips as they are distributed: trees, sheet, label sets, known errors and counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from htnet_jax.datasets import survey
from htnet_jax.datasets.builder import RawBuilder
from htnet_jax.datasets.labels import OBJECTIVE_SET, LabelSet, own_classes, three_classes
from htnet_jax.datasets.survey import Audit, Correction, Counts, RawClip, Tree

SHEET = "SAMM_Micro_FACS_Codes_v2.xlsx"


class Samm(RawBuilder):
    """SAMM: flow tensors from the raw or cropped short clips, up to 159 of 29 subjects."""

    HOMEPAGE = "http://www2.docm.mmu.ac.uk/STAFF/m.yap/dataset.php"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
SAMM must be requested from its owners ({HOMEPAGE}). The \
manual directory must hold, at any depth:
- the annotation sheet {SHEET} (or another SAMM_*.xlsx or .xls of the
  short clips), with the columns Subject, Filename, Onset Frame, Apex Frame, Offset Frame,
  Action Units and Estimated Emotion; a column Objective Classes is read where there is one;
- the images, as recorded (SAMM/006/006_1_2/006_05562.jpg) or cropped
  (SAMM_CROP/006/006_1_2/006_05562.jpg). With both, the recipe's variant (raw or cropped) decides;
  with one, that one is used.
The long videos are not used.
"""
    # The images as recorded, and public copies with the faces cut out.
    VARIANTS = ("raw", "cropped")
    LABELS: ClassVar[Mapping[str, LabelSet]] = {
        # MEGC 2019 leaves out "other".
        "megc3": three_classes("anger contempt disgust fear sadness", "happiness", "surprise"),
        "five": own_classes("anger contempt happiness surprise other"),
        "own": own_classes("anger contempt disgust fear happiness other sadness surprise"),
        "objective": OBJECTIVE_SET,
    }
    # Counted in the annotation sheet.
    COUNTS = (
        Counts(
            "samm",
            clips=159,
            subjects=29,
            emotions={
                "anger": 57,
                "contempt": 12,
                "disgust": 9,
                "fear": 8,
                "happiness": 26,
                "other": 26,
                "sadness": 6,
                "surprise": 15,
            },
        ),
    )
    # (subject, clip) -> what to correct. Both apexes lie outside onset..offset. Public loaders
    # disagree about them (1088, 1105, 1113 and the midpoint; 4930, 4937, 4945 and the midpoint); we
    # take the numbers that differ from the sheet's in one digit, which one edited public copy has.
    CORRECTIONS: ClassVar[Mapping[tuple[str, str], Correction]] = {
        ("028", "028_4_1"): Correction(
            {"apex": ("1143", "1113")},
            "the sheet's apex lies after the offset; one digit is wrong, as a public loader's "
            "edited sheet has it",
        ),
        ("032", "032_3_1"): Correction(
            {"apex": ("1930", "4930")},
            "the sheet's apex lies far before the onset; one digit is wrong, as a public loader's "
            "edited sheet has it",
        ),
    }

    @classmethod
    def survey(cls, tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
        """All annotated clips whose folder is there, by subject and name."""
        rows = survey.sheet_rows(
            tree,
            (r"samm_micro_facs_codes_v2\.xlsx?", r"samm[-_ ](?!long).*\.xlsx?"),
            f"{SHEET} (or another sheet of the short clips)",
            {
                "subject": ("Subject",),
                "name": ("Filename", "File name"),
                "onset": ("Onset Frame", "OnsetFrame"),
                "apex": ("Apex Frame", "ApexFrame"),
                "offset": ("Offset Frame", "OffsetFrame"),
                "aus": ("Action Units",),
                "emotion": ("Estimated Emotion",),
            },
            audit,
            optional={"objective": ("Objective Classes", "Objective Class")},
            sheet="MICRO_ONLY",
        )
        if not rows:
            return []
        return survey.coded_clips(
            tree,
            variant,
            rows,
            audit,
            source=cls.name,
            subject=_subject,
            folders=r"\d+_\d+_\d+",
            cropped="crop",
            emotions=cls.LABELS["own"].of_emotion,
            synonyms={"others": "other"},
            corrections=cls.CORRECTIONS,
        )


def _subject(text: str) -> str | None:
    return f"{int(text):03d}" if re.fullmatch(r"\d{1,9}", text) else None
