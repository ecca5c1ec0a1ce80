"""A small CASME II with invented rows: its trees and sheets, pictures of rendered faces."""

import pathlib

import cv2
import openpyxl
import xlwt

from htnet_jax.datasets import survey

# Name -> (folder, what stands before the frame number).
TREES = {
    "full": ("CASME2-RAW", "img"),
    "selected": ("CASME2_RAW_selected", "img"),
    "nested": ("CASME2_RAW_selected/CASME2_RAW_selected", "img"),
    "cropped": ("Cropped", "reg_img"),
    "updated": ("Cropped-updated/Cropped", "reg_img"),
    "original": ("Cropped_original", "reg_img"),
}
SHEET = "CASME2-coding-20140508.xlsx"
HEADER = (
    *("Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None),
    *("Action Units", "Estimated Emotion"),
)
COLUMNS = {"offset": "OffsetFrame", "emotion": "Estimated Emotion"}
KEYS = ("subject", "name", None, "onset", "apex", "offset", None, "aus", "emotion")

# Subject, name, onset, emotion, action units, objective class, face (subject, label). Three clips
# have the keys of known errors; frame numbers cross 10 and 100, so that order by text is wrong.
_ROWS = (
    ("01", "EP90_01", 3, "disgust", 4, 4, (0, 0)),
    ("01", "EP90_02f", 97, "happiness", "6+12", 1, (0, 1)),
    ("01", "EP91f", 8, "surprise", "R1+2", 2, (0, 2)),
    ("01", "EP92_02_01", 40, "others", "4 or L10", 7, (0, 0)),
    ("04", "EP12_01f", 61, "disgust", "4+9", 4, (1, 0)),
    ("04", "EP93_1", 5, "happiness", 12, 1, (1, 1)),
    ("04", "EP93_2", 9, "surprise", "1+2+25", 2, (1, 2)),
    ("04", "EP93_03", 20, "fear", "?", 6, (1, 0)),
    ("16", "EP01_08", 70, "repression", 15, 5, (2, 0)),
    ("16", "EP94_01", 11, "happiness", "L12", 1, (2, 1)),
    ("16", "EP94_02", 6, "surprise", 26, 2, (2, 2)),
    ("16", "EP94_03", 30, "sadness", "1+4", 5, (2, 0)),
)
_AUS = {4: ("4",), "6+12": ("6", "12"), "R1+2": ("R1", "2"), "4 or L10": ("4|L10",)}
_AUS |= {"4+9": ("4", "9"), 12: ("12",), "1+2+25": ("1", "2", "25"), "?": (), 15: ("15",)}
_AUS |= {"L12": ("L12",), 26: ("26",), "1+4": ("1", "4")}


def rows(faces):
    """The sheet's rows as dicts, in a new order; tests spoil them and call `write_sheet`."""
    found = []
    for subject, name, onset, emotion, aus, objective, face in _ROWS:
        clip = faces(*face)
        apex = onset + clip.apex - clip.onset
        row = dict(subject=subject, name=name, onset=onset, apex=apex, aus=aus, emotion=emotion)
        row |= dict(offset=onset + clip.offset - clip.onset, objective=objective, face=face)
        if (subject, name) == ("04", "EP12_01f"):
            row["apex"] = "/"
        found.append(row)
    return found[4:] + found[:4]


def write(root, faces, *, tree="selected", sheet=SHEET, objective=False, padded=True):
    """Writes pictures and sheet; returns the clips that a survey must find.

    `tree`: a key of `TREES`; `objective`: the sheet has the column; `padded`: `sub01`, not `SUB1`.
    """
    root = pathlib.Path(root)
    base, prefix = TREES[tree]
    clips = []
    for row in rows(faces):
        number = int(row["subject"])
        folder = root / base / (f"sub{number:02d}" if padded else f"SUB{number}") / row["name"]
        folder.mkdir(parents=True)
        _write_pictures(folder, prefix, row, faces, tree)
        apex = None if row["apex"] == "/" else row["apex"]
        clips.append(
            survey.RawClip(
                *("casme2", f"sub{number:02d}", row["name"], row["emotion"], folder),
                *(row["onset"], apex, row["offset"], _AUS[row["aus"]]),
                objective=row["objective"] if objective else 0,
            )
        )
    if sheet:
        write_sheet(root / sheet, rows(faces), objective=objective)
    return sorted(clips, key=lambda clip: (clip.subject, clip.name))


def _write_pictures(folder, prefix, row, faces, tree):
    frames = faces(*row["face"]).frames
    first = faces(*row["face"]).onset - row["onset"]
    # The full recordings start at 1, with the face at rest.
    start, stop = 1 if tree == "full" else row["onset"], row["offset"]
    if prefix == "reg_img" and row["name"] == "EP01_08":
        stop -= 2
    for number in range(start, stop + 1):
        path = folder / f"{prefix}{number}.jpg"
        assert cv2.imwrite(str(path), frames[max(number + first, 0)])


def write_sheet(path, rows, *, objective=False, without=()):
    """Writes the sheet, .xlsx or .xls; `without` are names of columns to leave out."""
    header, keys = list(HEADER), list(KEYS)
    if objective:
        header, keys = [*header, "Objective Classes"], [*keys, "objective"]
    table = [header, *([row[key] if key else None for key in keys] for row in rows)]
    kept = [i for i, name in enumerate(header) if name not in without]
    table = [[line[i] for i in kept] for line in table]
    if path.suffix == ".xls":
        book = xlwt.Workbook()
        sheet = book.add_sheet("Sheet1")
        for i, line in enumerate(table):
            for j, value in enumerate(line):
                if value is not None:
                    sheet.write(i, j, value)
    else:
        book = openpyxl.Workbook()
        book.active.title = "Sheet1"
        for line in table:
            book.active.append(line)
        book.create_sheet("Sheet2")
        book.create_sheet("Sheet3")
    book.save(path)


def rewrite(root, faces, change, without=""):
    """Writes the sheet again, its rows altered by `change(rows)`, perhaps without a column."""
    changed = rows(faces)
    change(changed)
    names = [] if not without else [COLUMNS[without]]
    write_sheet(pathlib.Path(root) / SHEET, changed, without=names)
