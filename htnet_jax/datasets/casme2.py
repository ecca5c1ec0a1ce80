"""CASME II as it is distributed: image trees, coding sheet, label sets, known errors and counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from htnet_jax.datasets import survey
from htnet_jax.datasets.builder import RawBuilder
from htnet_jax.datasets.labels import OBJECTIVE_SET, LabelSet, own_classes, three_classes
from htnet_jax.datasets.survey import Audit, Counts, RawClip, Tree

SHEET = "CASME2-coding-20140508.xlsx"


class Casme2(RawBuilder):
    """CASME II: flow tensors from the raw or cropped clips, up to 255 of 26 subjects."""

    HOMEPAGE = "http://casme.psych.ac.cn/casme/e2"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
CASME II must be requested from its owners ({HOMEPAGE}). The manual \
directory must hold, at any depth:
- the coding sheet {SHEET} (the labels of MEGC 2019) or another version of it
  (CASME2-coding-*.xlsx or .xls), with the columns Subject, Filename, OnsetFrame, ApexFrame,
  OffsetFrame, Action Units and Estimated Emotion; a column Objective Classes is read where there is
  one. With several versions that of 2014 is used;
- the images, raw (CASME2-RAW/sub01/EP02_01f/img1.jpg or
  CASME2_RAW_selected/sub01/EP02_01f/img46.jpg) or cropped (Cropped/sub01/EP02_01f/reg_img46.jpg).
  With both, the recipe's variant (raw or cropped) decides; with one, that one is used.
"""
    # The images as recorded, and the faces that the owners registered and cut out.
    VARIANTS = ("raw", "cropped")
    LABELS: ClassVar[Mapping[str, LabelSet]] = {
        # MEGC 2019 leaves out "others", and sadness and fear, which are too few.
        "megc3": three_classes("disgust repression", "happiness", "surprise"),
        "five": own_classes("happiness disgust repression surprise others"),
        "own": own_classes("happiness disgust surprise repression others sadness fear"),
        "objective": OBJECTIVE_SET,
        # As MMNet's release (muse1998/MMNet, 7b62fa9) numbers them: a converted checkpoint's
        # outputs have this order.
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
    # Counted in the two versions of the sheet. That of 2019 calls three clips of sub24 surprise
    # instead of sadness.
    COUNTS = tuple(
        Counts(
            f"casme2, sheet of {year}",
            clips=255,
            subjects=26,
            emotions={
                "happiness": 32,
                "disgust": 63,
                "surprise": surprise,
                "repression": 27,
                "others": 99,
                "sadness": sadness,
                "fear": 2,
            },
            remark=remark,
        )
        for year, surprise, sadness, remark in (
            (2014, 25, 7, ""),
            (2019, 28, 4, "MEGC 2019 has the labels of 2014; three clips of sub24 differ"),
        )
    )
    # Reported by public loaders, of the cropped images.
    KNOWN_GAPS: ClassVar[Mapping[str, str]] = {
        "casme2/sub16/EP01_08": "the distributed cropped images end at frame 96, the sheet's clip "
        "at 110",
    }

    @classmethod
    def survey(cls, tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
        """All annotated clips whose folder is there, by subject and name.

        There are no corrections: where public loaders differ from the sheet about frames, the
        images agree with the sheet, and the one apex that is not given (sub04/EP12_01f has "/") is
        left to the recipe's rule.
        """
        rows = survey.sheet_rows(
            tree,
            # The challenge's labels are those of 2014.
            (
                r"casme2-coding-20140508\.xlsx?",
                r"casme2-coding-20190701\.xlsx?",
                r"casme2[-_ ]coding.*\.xlsx?",
            ),
            f"{SHEET} (or another version of it)",
            {
                "subject": ("Subject",),
                "name": ("Filename", "File name"),
                "onset": ("OnsetFrame", "Onset Frame"),
                "apex": ("ApexFrame", "Apex Frame"),
                "offset": ("OffsetFrame", "Offset Frame"),
                "aus": ("Action Units",),
                "emotion": ("Estimated Emotion",),
            },
            audit,
            optional={"objective": ("Objective Classes", "Objective Class")},
            sheet="Sheet1",
            refused={
                r"casme2[-_ ]label.*\.xlsx?": "an older list, whose columns are not documented"
            },
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
            folders=r"ep\d+.*",
            # Beside them there may be the selection of them, which holds nothing else.
            complete="casme2-raw",
            emotions=cls.LABELS["own"].of_emotion,
            # Distributed without a row in the sheet of 2014, as public loaders list them.
            without_row={("sub09", "ep02_02f"), ("sub24", "ep02_07")},
        )


def _subject(text: str) -> str | None:
    number = re.fullmatch(r"(?:sub)?(\d{1,9})", text, re.IGNORECASE)
    return number and f"sub{int(number[1]):02d}"
