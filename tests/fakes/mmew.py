"""MMEW as its owners distribute it, with invented rows and rendered faces."""

import cv2
import openpyxl

from htnet_jax.datasets.survey import RawClip

# (clip, emotion, class of the rendered face, apex in the sheet, action units)
CLIPS = (
    ("S04-01-001", "happiness", 1, 3, "6+12"),
    ("S04-02-001", "surprise", 2, 3, "1+2"),
    ("S04-03-001", "disgust", 0, 3, 4),
    ("S04-08-002", "others", 0, "/", "?"),
    ("S09-01-002", "happiness", 1, None, "L12"),
    ("S09-02-001", "surprise", 2, 3, None),
    ("S09-04-001", "fear", 0, 3, "20"),
    ("S21-06-001", "sadness", 0, 3, "1+4"),
    ("S21-07-010", "anger", 0, 3, "4+7"),
    ("S21-01-001", "happiness", 1, 3, "12"),
)
FRAMES = 5
SHEET = "MMEW_Micro_Exp.xlsx"
HEADER = [
    *["Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Action Units"],
    *["Estimated Emotion", "remarks"],
]


def write(root, faces, *, by="emotion", others="others", text=False):
    """Clips by emotion (`Micro_Expression/disgust/S04-03-001/1.jpg`) or by subject, and the sheet.

    `others` is the folder of the seventh emotion; `text`: the sheet's numbers are text.
    """
    made = []
    subjects = sorted({name[:3] for name, *_ in CLIPS})
    for name, emotion, label, apex, aus in CLIPS:
        word = others if emotion == "others" else emotion
        folder = root / "Micro_Expression" / word / name
        if by == "subject":
            folder = root / name[:3] / word / name
        face = faces(subjects.index(name[:3]), label)
        onset, top, offset = face.onset, face.apex, face.offset
        chosen = [onset, (onset + top) // 2, top, (top + offset) // 2, offset]
        folder.mkdir(parents=True)
        for number, index in enumerate(chosen, start=1):
            assert cv2.imwrite(str(folder / f"{number}.jpg"), face.frames[index])
        units = tuple(str(aus).split("+")) if aus not in (None, "?") else ()
        apex = apex if isinstance(apex, int) else None
        made.append(
            RawClip("mmew", name[:3], name, emotion, folder, 1, apex, FRAMES, units),
        )
    still = root / "Macro_Expression" / "S04" / "anger"
    still.mkdir(parents=True)
    assert cv2.imwrite(str(still / "S04-07-001.jpg"), face.frames[0])
    write_sheet(root / SHEET, sheet_rows(), text=text)
    return sorted(made, key=lambda clip: clip.name)


def sheet_rows():
    """Column -> cell; by emotion, as no reader may rely on the order."""
    rows = []
    for name, emotion, _, apex, aus in sorted(CLIPS, key=lambda clip: clip[1]):
        row = {"Subject": name[:3], "Filename": name, "OnsetFrame": 1, "ApexFrame": apex}
        row |= {"OffsetFrame": FRAMES, "Action Units": aus, "Estimated Emotion": emotion}
        rows.append(row)
    return rows


def rewrite(root, faces, change, without=""):
    """Writes the sheet again, its rows altered by `change(rows)`, perhaps without a column."""
    keys = ("subject", "name", "onset", "apex", "offset", "aus", "emotion")
    columns = dict(zip(keys, HEADER, strict=False))
    rows = [{key: row[columns[key]] for key in keys} for row in sheet_rows()]
    change(rows)
    header = [name for name in HEADER if name != columns.get(without)]
    made = [{columns[key]: cell for key, cell in row.items()} for row in rows]
    write_sheet(root / SHEET, made, header=header)


def write_sheet(path, rows, *, header=None, text=False):
    """The workbook: a sheet of another name, the rows, blank rows below."""
    header = header or HEADER
    book = openpyxl.Workbook()
    book.active.title = "junk"
    book.active.append(["nothing", "of", "interest"])
    sheet = book.create_sheet("Micro")
    sheet.append(header)
    for row in rows:
        cells = [row.get(name) for name in header]
        sheet.append([str(cell) if text and cell is not None else cell for cell in cells])
    sheet.cell(len(rows) + 4, len(header)).value = "a remark below the rows"
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
