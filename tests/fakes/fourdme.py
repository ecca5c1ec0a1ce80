"""A small 4DME with invented rows: the gray videos of micro-expressions, and the sheet.

`Total` is the only column whose cells may be formulas, and it is not read; openpyxl keeps no
values for formulas, so a reader that wanted it would find nothing here.
"""

import dataclasses
import pathlib

import cv2
import numpy as np
import openpyxl

from htnet_jax.datasets import survey

SHEET = "4DME_Labelling_Micro_release v1.xlsx"
HEADER = (
    *("fold", "sub_ID", "fold_name", "Onset", "Apex", "Offset", None, "AUs", "eye blink"),
    *("Positive", "Negative", "Surprise", "Repression", "Others", "Total", "Emotion"),
)
# sub_ID, fold_name, onset, apex, offset, AUs, emotion; and the units that count. In the order of
# the expected result; the sheet has them in another.
ROWS = (
    ("S02", "S02_001_01_m1", 11, 14, 17, "AU4+AU7(k)", "Negative", ("4",)),
    ("S02", "S02_001_01_m2", 1021, 1024, 1027, "AU12", "Positive", ("12",)),
    ("S02", "S02_003_01_m1", 31, 34, 37, "AU1+AU2", "Surprise", ("1", "2")),
    ("S08", "S08_002_01_m1", 1823, 1826, 1829, "1+2+12", "Surprise+Positive", ("1", "2", "12")),
    ("S08", "S08_002_01_m2", 41, "/", 47, "AU24 (k)", "Repression", ()),
    ("S08", "S08_004_02_m1", 51, 55, 57, "AUL14+AU4", "Negative", ("L14", "4")),
    ("S19", "S19_001_01_m1", 61, 64, 67, None, "Others", ()),
    ("S19", "S19_001_01_m2", 71, 74, 77, "AU12(k)+AU6", "Positive", ("6",)),
    ("S19", "S19_002_01_m1", 81, 84, 87, "AU5", "Surprise", ("5",)),
)
_LABELS = {"Positive": 1, "Surprise": 2}


def write(
    root, faces, *, part="gray_micro", name="Frame_{:09d}.jpg", spell=str, rows=None, sheet=SHEET
):
    """Lays out the frames and the sheet.

    Args:
        root: The manual directory.
        faces: The fixture of rendered clips.
        part: Folder that holds the subjects; "" for none.
        name: Name of a frame by its number.
        spell: Changes the spelling of subject folders, such as `str.lower`.
        rows: Rows of the sheet where they differ from `ROWS`.
        sheet: The sheet's file name; "" for none.

    Returns:
        The clips that a survey should find.
    """
    root = pathlib.Path(root)
    found = []
    for row in ROWS:
        clip = expected(row)
        folder = root / part / spell(clip.subject) / clip.name
        subject = sorted({r[0] for r in ROWS}).index(clip.subject)
        face = faces(subject, _LABELS.get(row[6], 0))
        write_frames(folder, face, clip.onset, clip.apex, clip.offset, name)
        found.append(dataclasses.replace(clip, folder=folder))
    if sheet:
        write_sheet(root / sheet, rows or (*ROWS[4:], *ROWS[:4]))
    return found


def expected(row, folder=pathlib.Path()):
    """The clip of a row."""
    subject, name, onset, apex, offset, _, emotion, aus = row
    apex = None if apex == "/" else apex
    return survey.RawClip(
        "fourdme", subject, name, emotion.lower(), folder, onset, apex, offset, tuple(aus)
    )


def write_frames(folder, face, onset, apex, offset, name="Frame_{:09d}.jpg"):
    """Gray frames from onset to offset."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(onset, offset + 1):
        points = [onset, apex or (onset + offset) // 2, offset]
        at = np.interp(number, points, [face.onset, face.apex, face.offset])
        assert cv2.imwrite(str(folder / name.format(number)), face.frames[round(at)])


def write_sheet(path, rows, header=HEADER):
    """The workbook: one sheet, with a blank column, flags and formulas that are not needed."""
    book = openpyxl.Workbook()
    book.active.append(header)
    for number, row in enumerate(rows, 2):
        subject, name, onset, apex, offset, aus, emotion = row[:7]
        flags = [int(word in (emotion or "")) for word in HEADER[9:14]]
        total = f"=SUM(J{number}:N{number})"
        book.active.append(
            [1, subject, name, onset, apex, offset, None, aus, 0, *flags, total, emotion]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def rewrite(root, faces, change, without=""):
    """Writes the sheet again, its rows altered by `change(rows)`, perhaps without a column."""
    keys = ("subject", "name", "onset", "apex", "offset", "aus", "emotion")
    rows = [dict(zip(keys, row, strict=False)) for row in (*ROWS[4:], *ROWS[:4])]
    change(rows)
    lost = {"offset": "Offset", "emotion": "Emotion"}.get(without)
    header = ["other" if name and name == lost else name for name in HEADER]
    write_sheet(
        pathlib.Path(root) / SHEET, [tuple(row[key] for key in keys) for row in rows], header
    )
