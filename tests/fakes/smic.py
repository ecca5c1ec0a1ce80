"""SMIC as its owners distribute it, with invented frame numbers and rendered faces."""

import re
import zipfile

import cv2
import openpyxl

from htnet_jax.datasets.survey import RawClip

EMOTIONS = {"ne": "negative", "po": "positive", "sur": "surprise"}
# (subject, code, index, first frame); counters have six to eight digits. SMIC-E's sheet of 157
# rows joins the second clip to the first.
CLIPS = (
    (3, "ne", 2, 34100),
    (3, "ne", 3, 34110),
    (3, "po", 1, 35200),
    (3, "sur", 2, 99998),
    (11, "ne", 1, 220000),
    (11, "po", 1, 230000),
    (11, "sur", 1, 240000),
    (18, "ne", 1, 1000100),
    (18, "po", 2, 10000200),
    (18, "sur", 3, 10000300),
)
MERGED = {"s3_ne_03": "s3_ne_02"}
FRAMES = 5
FILE_NAMES = {
    ("hs", "raw"): "image{:06d}.bmp",
    ("hs", "cropped"): "reg_image{:06d}.bmp",
    ("vis", "raw"): "image{:06d}.bmp",
    ("vis", "cropped"): "reg_image{:06d}.bmp",
    ("nir", "raw"): "{:05d}.bmp",
    ("nir", "cropped"): "reg_{:05d}.bmp",
}
HEADERS = {
    "hs": [
        *["Subject", "Filename", None, "OnsetF", "OffsetF", "Onset2F", "Offset2F", "Onset3F"],
        *["Offset3F", None, "FirstF", "LastF", "TotalMF1", "TotalMF2", "TotalMF3", "TotalVL"],
        "Emotion",
    ],
    "vis": [
        *["Subject", "Filename", None, "OnsetF", "OffsetF", "Onset2F", "Offset2F", None, "FirstF"],
        *["TotalMF1", "TotalMF2", "TotalVL", "Emotion"],
    ],
    "nir": [
        *["Subject", "Filename", None, "OnsetF", "OffsetF", "OnsetF NIR", "OffsetF NIR", None],
        *["TotalMF1", "Emotion"],
    ],
}


def clips_of(variant):
    """HS has all subjects; VIS and NIR filmed the later ones only."""
    return [clip for clip in CLIPS if variant == "hs" or clip[0] >= 11]


def write(root, faces, *, variant="hs", pictures="raw"):
    """The short clips: `SMIC_all_raw/HS/s3/micro/negative/s3_ne_02/image034100.bmp`."""
    made = []
    top = root / f"SMIC_all_{pictures}" / variant.upper()
    for clip in clips_of(variant):
        subject, code, index, first = clip
        name = f"s{subject}_{code}_{index:02d}"
        folder = top / f"s{subject}" / "micro" / EMOTIONS[code] / name
        _write_frames(folder, FILE_NAMES[variant, pictures], first, _chosen(faces, clip))
        made.append(_expected(clip, folder, first))
    still = top / "s3" / "non_micro" / "s3_n1"
    face = faces(0, 0)
    _write_frames(still, FILE_NAMES[variant, pictures], 500, [face.frames[face.onset]] * 2)
    return made


def write_long(root, faces, *, variant="hs", nested=False, split=False):
    """SMIC-E: two still frames before and after each clip, and the sheet.

    `nested` takes the other known names of the folders; `split` gives every clip a row, as the
    sheet of 162 rows does.
    """
    modality = variant.upper()
    top = root / f"{modality}_long" / f"SMIC_{modality}_E"
    if nested:
        long = root / "SMIC-E_raw image" / f"{modality}_long"
        top = long / f"SMIC-{modality}-E" / modality
    made = []
    for clip in clips_of(variant):
        subject, code, index, first = clip
        name = f"s{subject}_{code}_{index:02d}"
        folder = top / f"s{subject:02d}" / MERGED.get(name, name)
        chosen = _chosen(faces, clip)
        frames = [chosen[0]] * 2 + chosen + [chosen[-1]] * 2
        _write_frames(folder, "image{:06d}.jpg", first - 2, frames)
        made.append(_expected(clip, folder, first))
    path = top.parent / f"SMIC-{modality}-E_annotation.xlsx"
    write_sheet(path, sheet_rows(variant, split=split), variant)
    return made


def sheet_rows(variant="hs", split=False):
    """Column -> cell; a formula is a pair of its text (`{row}`: its own row) and its value."""
    rows = {}
    for subject, code, index, first in clips_of(variant):
        name = f"s{subject}_{code}_{index:02d}"
        last = first + FRAMES - 1
        if name in MERGED and not split:
            rows[MERGED[name]] |= {"Onset2F": first, "Offset2F": last}
            continue
        rows[name] = {"Subject": subject, "Filename": name, "Emotion": EMOTIONS[code]}
        rows[name] |= {"TotalMF1": FRAMES, "FirstF": first - 2, "LastF": last + 2}
        if variant == "nir":
            rows[name] |= {"OnsetF": 7 * first, "OffsetF": 7 * last}
            rows[name] |= {"OnsetF NIR": first, "OffsetF NIR": ("=F{row}+I{row}-1", last)}
        else:
            total = "M" if variant == "hs" else "J"
            rows[name] |= {"OnsetF": first, "OffsetF": (f"=D{{row}}+{total}{{row}}-1", last)}
    # The known error, and the rubbish in the third interval of late rows.
    rows["s18_sur_03"]["Emotion"] = "negative"
    if variant == "hs" and not split:
        rows["s18_po_02"] |= {"TotalMF3": -9, "Offset3F": ("=H{row}+O{row}-1", -10)}
    return sorted(rows.values(), key=lambda row: row["Filename"][::-1])  # not by subject


def write_sheet(path, rows, variant="hs", *, header=None):
    """The workbook: its sheet of rows, an empty sheet and blank rows below, formulas with values.

    openpyxl writes formulas without values, so the values are put into the file's XML.
    """
    header = header or HEADERS[variant]
    book = openpyxl.Workbook()
    book.active.title = "Sheet2"
    sheet = book.create_sheet(variant.upper())
    sheet.append(header)
    values = {}
    for number, row in enumerate(rows, start=2):
        for column, name in enumerate(header, start=1):
            cell = sheet.cell(number, column)
            value = row.get(name) if name else None
            if isinstance(value, tuple):
                values[cell.coordinate] = value[1]
                value = value[0].format(row=number)
            cell.value = value
    sheet.cell(len(rows) + 4, 12).value = "total"  # in no column that is read
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    _put_values(path, "xl/worksheets/sheet2.xml", values)


def _put_values(path, part, values):
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    text = parts[part].decode()
    for cell, value in values.items():
        pattern = rf'(<c r="{cell}"[^>]*><f>[^<]*</f>)<v\s*(?:/>|></v>)'
        text, count = re.subn(pattern, rf"\g<1><v>{value}</v>", text)
        assert count == 1
    parts[part] = text.encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, data)


def _chosen(faces, clip):
    subject, code, _, _ = clip
    face = faces((3, 11, 18).index(subject), list(EMOTIONS).index(code))
    onset, apex, offset = face.onset, face.apex, face.offset
    numbers = [onset, (onset + apex) // 2, apex, (apex + offset) // 2, offset]
    return [face.frames[number] for number in numbers]


def _write_frames(folder, file_name, first, frames):
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, start=first):
        assert cv2.imwrite(str(folder / file_name.format(number)), frame)


def _expected(clip, folder, first):
    subject, code, index, _ = clip
    name = f"s{subject:02d}_{code}_{index:02d}"
    last = first + FRAMES - 1
    return RawClip("smic", f"s{subject:02d}", name, EMOTIONS[code], folder, first, None, last)
