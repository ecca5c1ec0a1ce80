"""A small CAS(ME)^3 Part A with invented rows: recordings or clips, and the sheet.

All cells of the real sheet are text, so there are no formulas here.
"""

import dataclasses
import pathlib

import cv2
import numpy as np
import openpyxl

from htnet_jax.datasets import survey

SHEET = "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx"
HEADER = ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion")
KEYS = ("subject", "name", "onset", "apex", "offset", "aus", "objective", "emotion")
# In the order of the expected result; the sheet has them in another. Two in one recording; an apex
# on the onset; none; a filename and an emotion in capitals.
ROWS = (
    ("spNO.2", "a", "11", "14", "17", "4+L10", "III", "disgust"),
    ("spNO.2", "a", "111", "114", "117", "12", "I", "happy"),
    ("spNO.2", "b", "21", "24", "27", "1+2", "II", "surprise"),
    ("spNO.2", "m", "8", "8", "14", "24", "VII", "Others"),
    ("spNO.10", "J", "31", "34", "37", "R4", "III", "anger"),
    ("spNO.10", "k", "41", "44", "47", "15", "V", "sad"),
    ("spNO.10", "k", "141", "/", "147", "?", "VII", "surprise"),
    ("spNO.113", "c", "51", "54", "57", "", "VI", "fear"),
    ("spNO.113", "d", "61", "65", "67", "12", "I", "happy"),
)
_LABELS = {"happy": 1, "surprise": 2}
_OBJECTIVE = ("", "I", "II", "III", "IV", "V", "VI", "VII")


def write(root, faces, *, kind="recordings", nest="", spell=str, rows=None, sheet=SHEET):
    """Lays out the frames and the sheet.

    Args:
        root: The manual directory.
        faces: The fixture of rendered clips.
        kind: "recordings", "clips" or "videos" (clips that hold no frames).
        nest: Folders of archives around the data, such as `part_A/part_A`.
        spell: Changes the spelling of subject folders, such as `str.upper`.
        rows: Rows of the sheet where they differ from `ROWS`.
        sheet: The sheet's file name; "" for none.

    Returns:
        The clips that a survey should find.
    """
    root = pathlib.Path(root)
    found = []
    for index, row in enumerate(ROWS):
        clip = expected(row)
        folder = root / nest / _place(kind, row, spell)
        if kind == "videos":
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.with_name(f"{folder.name}.mp4").write_bytes(b"a film, never opened")
        else:
            subject = sorted({r[0] for r in ROWS}).index(row[0])
            face = faces(subject, _LABELS.get(clip.emotion, 0))
            write_frames(folder, face, clip.onset, clip.apex, clip.offset, depth=index < 2)
        found.append(dataclasses.replace(clip, folder=folder))
    if sheet:
        write_sheet(root / sheet, rows or (*ROWS[4:], *ROWS[:4]))
    return found


def expected(row, folder=pathlib.Path()):
    """The clip of a row."""
    subject, video, onset, apex, offset, aus, objective, emotion = row
    return survey.RawClip(
        source="casme3",
        subject=subject,
        name=f"{video.lower()}_{onset}",
        emotion=emotion.lower(),
        folder=folder,
        onset=int(onset),
        apex=int(apex) if apex.isdigit() else None,
        offset=int(offset),
        aus=tuple(unit for unit in aus.split("+") if unit.strip("?")),
        objective=_OBJECTIVE.index(objective),
    )


def write_frames(folder, face, onset, apex, offset, depth=False):
    """Colour frames `NUMBER.jpg` from onset to offset, and a 16-bit depth picture beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    middle = apex if apex and apex > onset else (onset + offset) // 2
    for number in range(onset, offset + 1):
        at = np.interp(number, [onset, middle, offset], [face.onset, face.apex, face.offset])
        gray = face.frames[round(at)]
        colour = np.stack([gray, gray, gray], axis=-1)
        assert cv2.imwrite(str(folder / f"{number}.jpg"), colour)
    if depth:
        parts = ("depth" if part in ("color", "frame") else part for part in folder.parts)
        beside = pathlib.Path(*parts)
        beside.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(beside / f"{onset}.png"), np.full((8, 8), 900, np.uint16))


def write_sheet(path, rows, header=HEADER, title="label"):
    """The workbook: its sheet of text cells, and two junk sheets, one of them in front."""
    book = openpyxl.Workbook()
    book.active.title = "Sheet1"
    book.active.append(["Subject", "sum"])
    book.active.append(["spNO.2", "4"])
    sheet = book.create_sheet(title)
    for row in (header, *rows):
        sheet.append(row)
    book.create_sheet("Sheet3")
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def _place(kind, row, spell):
    subject, video, onset = row[:3]
    if kind == "recordings":
        return pathlib.Path("part_A", spell(subject), spell(video), "color")
    part = {"clips": "frame", "videos": "video"}[kind]
    return pathlib.Path("Part_A_ME_clip", part, f"{spell(subject)}_{video}_{onset}")


def rewrite(root, faces, change, without=""):
    """Writes the sheet again, its rows altered by `change(rows)`, perhaps without a column."""
    rows = [dict(zip(KEYS, row, strict=True)) for row in (*ROWS[4:], *ROWS[:4])]
    change(rows)
    header = [name if key != without else "other" for name, key in zip(HEADER, KEYS, strict=True)]
    write_sheet(
        pathlib.Path(root) / SHEET, [tuple(row[key] for key in KEYS) for row in rows], header
    )
