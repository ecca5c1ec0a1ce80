"""A small SAMM with invented rows: its trees and sheets, pictures of rendered faces."""

import pathlib
import re
import zipfile

import cv2
import openpyxl

from htnet_jax.datasets import survey

TREES = {"raw": "SAMM", "nested": "SAMM/SAMM", "cropped": "SAMM_CROP"}
SHEET = "SAMM_Micro_FACS_Codes_v2.xlsx"
HEADER = (
    *("Subject", "Filename", "Inducement Code", "Onset Frame", "Apex Frame", "Offset Frame"),
    *("Duration", "Micro", "Action Units", "Estimated Emotion", "Objective Classes", "Notes"),
)
COLUMNS = {"offset": "Offset Frame", "emotion": "Estimated Emotion"}
# Digits of the frame numbers: they depend on the recording, subject_inducement.
DIGITS = {"006_1": 5, "006_9": 4, "028_4": 4, "032_3": 4}

# Subject, name, apex, emotion, action units, objective class, face (subject, label). Two clips have
# the keys of known errors, with the corrected apex; frame numbers cross 100.
_ROWS = (
    ("006", "006_1_2", 5566, "Anger", "4+7", 4, (0, 0)),
    ("006", "006_1_13", 98, "Happiness", "6+12 ", 1, (0, 1)),
    ("006", "006_9_10", 183, "Surprise", "1+2", 2, (0, 2)),
    ("006", "006_9_3", 4040, "Other", "10A/B", 7, (0, 0)),
    ("028", "028_4_1", 1113, "Contempt", "L14", 6, (1, 0)),
    ("028", "028_4_7", 2031, "Happiness", 12, 1, (1, 1)),
    ("028", "028_4_20", 701, "Surprise", "1 or 2", 2, (1, 2)),
    ("032", "032_3_1", 4930, "Fear", "7B?", 7, (2, 0)),
    ("032", "032_3_8", 77, "Sadness", "T23", 5, (2, 0)),
    ("032", "032_3_9", 1500, "Disgust", 9, 4, (2, 0)),
    ("032", "032_3_10", 203, "Happiness", "12", 1, (2, 1)),
    ("032", "032_3_11", 999, "Surprise", "5+25", 3, (2, 2)),
)
_AUS = {"4+7": ("4", "7"), "6+12 ": ("6", "12"), "1+2": ("1", "2"), "10A/B": ("10A|10B",)}
_AUS |= {"L14": ("L14",), 12: ("12",), "1 or 2": ("1|2",), "7B?": ("7B?",)}
_AUS |= {"T23": ("T23",), 9: ("9",), "12": ("12",), "5+25": ("5", "25")}
# The apexes that the distributed sheet has.
_WRONG = {"028_4_1": 1143, "032_3_1": 1930}


def rows(faces):
    """The sheet's rows as dicts, in a new order; tests spoil them and call `write_sheet`."""
    found = []
    for subject, name, apex, emotion, aus, objective, face in _ROWS:
        clip = faces(*face)
        row = dict(subject=subject, name=name, emotion=emotion, aus=aus, objective=objective)
        row |= dict(onset=apex - (clip.apex - clip.onset), apex=_WRONG.get(name, apex))
        row |= dict(offset=apex + clip.offset - clip.apex, face=face, digits=DIGITS[name[:5]])
        found.append(row)
    return found[4:] + found[:4]


def write(root, faces, *, tree="raw", sheet=SHEET, padded=True):
    """Writes pictures and sheet; returns the clips that a survey must find.

    `tree`: a key of `TREES`; `padded`: subject folders `006`, not `6`.
    """
    root = pathlib.Path(root)
    clips = []
    for row in rows(faces):
        subject, name = row["subject"], row["name"]
        folder = root / TREES[tree] / (subject if padded else str(int(subject))) / name
        folder.mkdir(parents=True)
        face = faces(*row["face"])
        for number in range(row["onset"], row["offset"] + 1):
            path = folder / f"{subject}_{number:0{row['digits']}d}.jpg"
            assert cv2.imwrite(str(path), face.frames[face.onset + number - row["onset"]])
        apex = row["onset"] + face.apex - face.onset
        clips.append(
            survey.RawClip(
                *("samm", subject, name, row["emotion"].lower(), folder),
                *(row["onset"], apex, row["offset"], _AUS[row["aus"]], row["objective"]),
            )
        )
    if sheet:
        write_sheet(root / sheet, rows(faces))
    return sorted(clips, key=lambda clip: (clip.subject, clip.name))


def write_sheet(path, rows, *, header_row=14, without=()):
    """Writes the sheet; durations and the first offset are formulas with the values kept for them.

    `header_row`: rows above it hold notes; `without` are names of columns to leave out.
    """
    book = openpyxl.Workbook()
    book.active.title = "Key"
    book.active.append(["Subject", "explained elsewhere"])
    sheet = book.create_sheet("MICRO_ONLY")
    for number in range(1, header_row):
        sheet.cell(number, 1, f"Note {number}: what the codes mean.")
    columns = [name for name in HEADER if name not in without]
    for column, name in enumerate(columns, 1):
        sheet.cell(header_row, column, name)
    kept = {}
    for index, row in enumerate(rows):
        number = header_row + 1 + index
        cells = {"Subject": row["subject"], "Filename": row["name"], "Inducement Code": 1}
        cells |= {"Onset Frame": row["onset"], "Apex Frame": row["apex"], "Micro": "Micro - 1/2"}
        cells |= {"Offset Frame": row["offset"], "Duration": f"=F{number}-D{number}+1"}
        cells |= {"Action Units": row["aus"], "Estimated Emotion": row["emotion"]}
        cells |= {"Objective Classes": row["objective"]}
        duration = sheet.cell(number, 7).coordinate
        if isinstance(row["offset"], int) and isinstance(row["onset"], int):
            kept[duration] = row["offset"] - row["onset"] + 1
            if index == 0:
                cells["Offset Frame"] = f"=D{number}+{kept[duration] - 1}"
                kept[sheet.cell(number, 6).coordinate] = row["offset"]
        for column, name in enumerate(columns, 1):
            sheet.cell(number, column, cells.get(name))
    book.save(path)
    _keep_values(path, kept)


def _keep_values(path, values):
    """Puts the values of formulas into the workbook, as Excel does and openpyxl does not."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet2.xml"
    parts[name] = re.sub(
        rb'(<c r="(\w+)"[^>]*><f>[^<]*</f>)<v\s*(?:/>|></v>)',
        lambda found: found[1] + b"<v>%d</v>" % values.get(found[2].decode(), 0),
        parts[name],
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)


def rewrite(root, faces, change, without=""):
    """Writes the sheet again, its rows altered by `change(rows)`, perhaps without a column."""
    changed = rows(faces)
    change(changed)
    names = [] if not without else [COLUMNS[without]]
    write_sheet(pathlib.Path(root) / SHEET, changed, without=names)
