import math
import os
import re
import time
import zipfile

import openpyxl
import pytest
import xlwt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from htnet_jax.datasets import sheets
from htnet_jax.errors import Problems, UserError

COLUMNS = {"subject": ("Subject",), "onset": ("Onset Frame", "OnsetF"), "apex": ("Apex",)}
HEADER = ["Subject", "Onset Frame", "Apex"]
ROWS = [["006", 46, 50], ["017", 61.0, "/"], [18, 70, None]]
CELLS = [("006", "46", "50"), ("017", "61", "/"), ("18", "70", "")]


def _xlsx(path, **tables):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in tables.items():
        sheet = book.create_sheet(name)
        for number, row in enumerate(rows, 1):
            for column, cell in enumerate(row, 1):
                sheet.cell(number, column, cell)
    book.save(path)


def _xls(path, **tables):
    book = xlwt.Workbook()
    for name, rows in tables.items():
        sheet = book.add_sheet(name)
        for i, row in enumerate(rows):
            for j, cell in enumerate(row):
                if cell is not None:
                    sheet.write(i, j, cell)
    book.save(str(path))


def _csv(path, **tables):
    (rows,) = tables.values()
    lines = (",".join("" if cell is None else str(cell) for cell in row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))


WRITERS = {".xlsx": _xlsx, ".xls": _xls, ".csv": _csv}


def _values(rows):
    return [tuple(row.cells[key] for key in COLUMNS) for row in rows]


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_header_in_the_first_row(tmp_path, suffix):
    path = tmp_path / f"codes{suffix}"
    rows = [["006", 46, 50], ["017", 61, "/"], [18, 70, None]]
    WRITERS[suffix](path, label=[HEADER, *rows])
    found = sheets.read_sheet(path, COLUMNS)
    assert _values(found) == CELLS
    assert [row.number for row in found] == [2, 3, 4]
    title = "codes.csv" if suffix == ".csv" else f"codes{suffix}, sheet label"
    assert [row.where for row in found] == [f"{title}, row {number}" for number in (2, 3, 4)]


@pytest.mark.parametrize("suffix", [".xlsx", ".xls"])
def test_notes_and_blank_rows_above_the_header(tmp_path, suffix):
    path = tmp_path / f"codes{suffix}"
    notes = [["Subject: the number of a person"], [], [], ["Onset Frame", "explained"], []]
    table = [*notes, *[[None]] * 8, HEADER, *ROWS]
    WRITERS[suffix](path, label=table)
    found = sheets.read_sheet(path, COLUMNS)
    assert _values(found) == CELLS
    assert [row.number for row in found] == [15, 16, 17]


def test_notes_above_the_header_of_a_csv_file(tmp_path):
    path = tmp_path / "codes.csv"
    path.write_text("What the codes mean\n\nSubject,Onset Frame,Apex\n006,46,50\n")
    found = sheets.read_sheet(path, COLUMNS)
    assert _values(found) == [("006", "46", "50")]
    assert found[0].number == 4


def test_a_header_too_far_down_is_none(tmp_path):
    for before, works in ((39, True), (40, False)):
        path = tmp_path / f"{before}.xlsx"
        _xlsx(path, label=[*[["note"]] * before, HEADER, *ROWS])
        if works:
            assert _values(sheets.read_sheet(path, COLUMNS)) == CELLS
        else:
            with pytest.raises(UserError, match="no sheet has a header row"):
                sheets.read_sheet(path, COLUMNS)


@pytest.mark.parametrize("suffix", [".xlsx", ".xls"])
def test_other_sheets_do_not_matter(tmp_path, suffix):
    path = tmp_path / f"codes{suffix}"
    junk = [["Subject", "sum"], ["006", 4]]
    WRITERS[suffix](path, Sheet1=junk, empty=[], label=[HEADER, *ROWS], Sheet3=[[1]])
    assert _values(sheets.read_sheet(path, COLUMNS)) == CELLS


def test_the_named_sheet_comes_first(tmp_path):
    path = tmp_path / "codes.xlsx"
    other = [HEADER, ["001", 1, 2]]
    _xlsx(path, HS=[HEADER, *ROWS], VIS=other)
    assert _values(sheets.read_sheet(path, COLUMNS)) == CELLS
    assert _values(sheets.read_sheet(path, COLUMNS, sheet="vis")) == [("001", "1", "2")]
    assert _values(sheets.read_sheet(path, COLUMNS, sheet="NIR")) == CELLS
    found = sheets.read_sheet(path, COLUMNS, sheet="VIS")
    assert found[0].where == "codes.xlsx, sheet VIS, row 2"


def test_blank_columns_rows_and_spelling(tmp_path):
    path = tmp_path / "codes.xlsx"
    header = [None, " SUBJECT ", None, "onset  frame", "Unnamed: 2", "apex\n"]
    rows = [[1, " 006 ", None, "46 ", "x", 50], [], ["only here"], [None, None, None, 70]]
    _xlsx(path, label=[header, *rows])
    found = sheets.read_sheet(path, COLUMNS)
    assert _values(found) == [("006", "46", "50"), ("", "70", "")]
    assert [row.number for row in found] == [2, 5]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        *[(None, ""), (math.nan, ""), (46, "46"), (46.0, "46"), (46.5, "46.5"), ("006", "006")],
        *[("46.0", "46.0"), (" 4+L10 ", "4+L10"), ("", ""), (0, "0"), (-3.0, "-3")],
        *[(1e6, "1000000"), (math.inf, "inf"), ("\xa06", "6")],
    ],
)
def test_a_cell_as_text(cell, expected):
    assert sheets.text(cell) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [("46", 46), ("046", 46), ("0", 0), ("", None), ("/", None), ("46.5", None), ("-3", None)],
)
def test_a_cell_as_a_whole_number(text, number):
    assert sheets.Row(2, "somewhere", {"apex": text}).whole("apex") == number


@pytest.mark.parametrize("suffix", [".xlsx", ".xls"])
def test_text_keeps_its_zeros_among_numbers(tmp_path, suffix):
    # Readers that guess a column's type make 6 of 006, and 46.0 of 46 where a cell is empty.
    path = tmp_path / f"codes{suffix}"
    rows = [["006", 46, 1], ["006", None, 2], [6, 48.0, "NA"], ["06", "0049", "1e3"]]
    WRITERS[suffix](path, label=[HEADER, *rows])
    found = _values(sheets.read_sheet(path, COLUMNS))
    assert found[:2] == [("006", "46", "1"), ("006", "", "2")]
    assert found[2] == ("6", "48", "NA")
    assert found[3] == ("06", "0049", "1e3")


def _keep_values(path, values):
    """Puts the values of formulas into the workbook, as spreadsheets do and openpyxl does not."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    parts[name], count = re.subn(
        rb'(<c r="(\w+)"[^>]*><f>[^<]*</f>)<v\s*(?:/>|></v>)',
        lambda found: found[1] + b"<v>%d</v>" % values[found[2].decode()],
        parts[name],
    )
    assert count == len(values)
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)


def test_formulas_give_the_values_kept_for_them(tmp_path):
    path = tmp_path / "codes.xlsx"
    _xlsx(path, HS=[HEADER, ["006", 46, "=B2+4"], ["017", "=B2+15", "/"]])
    # Without kept values a formula is an empty cell, never its text.
    assert _values(sheets.read_sheet(path, COLUMNS)) == [("006", "46", ""), ("017", "", "/")]
    # The kept values differ from what the formulas would give: nothing is computed.
    _keep_values(path, {"C2": 51, "B3": 62})
    assert _values(sheets.read_sheet(path, COLUMNS)) == [("006", "46", "51"), ("017", "62", "/")]


def test_optional_columns(tmp_path):
    path = tmp_path / "codes.xlsx"
    _xlsx(path, label=[[*HEADER, "Objective Classes"], ["006", 46, 50, 7], [None, None, None, 1]])
    optional = {"objective": ("Objective Class", "Objective Classes"), "notes": ("Notes",)}
    found = sheets.read_sheet(path, COLUMNS, optional=optional)
    assert found[0].cells == {
        **{"subject": "006", "onset": "46", "apex": "50"},
        **{"objective": "7", "notes": ""},
    }
    assert found[0].whole("notes") is None
    assert len(found) == 2
    assert "objective" not in sheets.read_sheet(path, COLUMNS)[0].cells


def test_the_first_alias_that_is_there_counts(tmp_path):
    path = tmp_path / "codes.xlsx"
    _xlsx(path, label=[["OnsetF", "Onset Frame", "Subject", "Apex"], [1, 2, "006", 3]])
    assert sheets.read_sheet(path, COLUMNS)[0].cells["onset"] == "2"
    turned = {**COLUMNS, "onset": ("Start", "OnsetF", "Onset Frame")}
    assert sheets.read_sheet(path, turned)[0].cells["onset"] == "1"


def test_of_columns_with_one_name_the_first_counts(tmp_path):
    path = tmp_path / "codes.xlsx"
    _xlsx(path, label=[[*HEADER, "Apex"], ["006", 46, 50, 99]])
    assert _values(sheets.read_sheet(path, COLUMNS)) == [("006", "46", "50")]


def test_the_message_names_what_the_nearest_sheet_lacks(tmp_path):
    path = tmp_path / "codes.xlsx"
    _xlsx(path, far=[["Subject"]], near=[["note"], ["Subject", "OnsetF", "Peak"]], other=[["Apex"]])
    with pytest.raises(UserError) as caught:
        sheets.read_sheet(path, COLUMNS)
    message = str(caught.value)
    assert message.startswith(f"{path}: no sheet has a header row")
    assert "columns Subject, Onset Frame, Apex;" in message
    assert "sheet 'near' lacks Apex" in message
    assert "far" not in message


def test_the_message_about_a_csv_file_names_no_sheet(tmp_path):
    path = tmp_path / "codes.csv"
    path.write_text("Subject,Apex\n006,50\n")
    with pytest.raises(UserError, match="lacks Onset Frame") as caught:
        sheets.read_sheet(path, COLUMNS)
    assert "sheet ''" not in str(caught.value)


def test_a_header_without_rows_and_an_empty_workbook(tmp_path):
    path = tmp_path / "codes.xlsx"
    _xlsx(path, label=[HEADER])
    assert sheets.read_sheet(path, COLUMNS) == []
    _xlsx(path, label=[], more=[])
    with pytest.raises(UserError, match="it is empty"):
        sheets.read_sheet(path, COLUMNS)


def test_a_file_under_another_name(tmp_path):
    # A workbook saved in the old format and renamed, and the other way round.
    for writer, suffix in ((_xls, ".xlsx"), (_xlsx, ".xls")):
        right = tmp_path / f"right{'.xls' if writer is _xls else '.xlsx'}"
        writer(right, label=[HEADER, *ROWS])
        wrong = right.rename(tmp_path / f"renamed{suffix}")
        assert _values(sheets.read_sheet(wrong, COLUMNS)) == CELLS
    upper = tmp_path / "CODES.CSV"
    _csv(upper, label=[HEADER, ["006", 46, 50]])
    assert _values(sheets.read_sheet(upper, COLUMNS)) == [("006", "46", "50")]


def test_a_csv_file_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "codes.csv"
    path.write_text("Subject,Onset Frame,Apex\n006,46,50\n", encoding="utf-8-sig")
    assert _values(sheets.read_sheet(path, COLUMNS)) == [("006", "46", "50")]


def _cut(path):
    _xlsx(path, label=[HEADER, *ROWS])
    path.write_bytes(path.read_bytes()[:1500])


# What a workbook with a password begins with: a container that holds the encrypted one.
CONTAINER = bytes.fromhex("D0CF11E0A1B11AE1")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("Subject,Onset Frame,Apex\n"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(CONTAINER + bytes(4096)),
        lambda path: path.write_bytes(CONTAINER),
        _cut,
    ],
    ids=["text", "empty", "password", "cut_password", "cut"],
)
@pytest.mark.parametrize("suffix", [".xlsx", ".xls"])
def test_files_that_are_no_spreadsheets(tmp_path, suffix, spoil):
    path = tmp_path / f"codes{suffix}"
    spoil(path)
    with pytest.raises(UserError) as caught:
        sheets.read_sheet(path, COLUMNS)
    message = str(caught.value)
    assert message.startswith(f"{path}: damaged, or not a spreadsheet (")
    assert "password" in message
    assert "\n" not in message


def test_a_csv_file_that_is_no_text_or_empty(tmp_path):
    path = tmp_path / "codes.csv"
    for content, message in (
        (b"Subject,Onset\xff\xfe\n", "damaged, or not a spreadsheet"),
        (b"", "it is empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            sheets.read_sheet(path, COLUMNS)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"codes\.xlsx: .*\(No such file or directory\)"):
        sheets.read_sheet(tmp_path / "codes.xlsx", COLUMNS)
    (tmp_path / "folder.xlsx").mkdir()
    with pytest.raises(UserError, match=r"\(a folder, not a regular file\)"):
        sheets.read_sheet(tmp_path / "folder.xlsx", COLUMNS)


def _read_csv(tmp_path, text, columns=("sub", "label")):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    problems = Problems("t")
    return list(sheets.read_csv(path, columns, problems)), problems.found


def test_cells_stay_text_and_lines_are_counted(tmp_path):
    rows, found = _read_csv(tmp_path, "\ufeffsub, label,other\r\n006,1,\r\n\r\n 007 ,2,x\r\n")
    assert not found
    assert [row.where for row in rows] == ["t.csv line 2", "t.csv line 4"]
    assert rows[0].cells == {"sub": "006", "label": "1", "other": ""}
    assert rows[1].cells == {"sub": "007", "label": "2", "other": "x"}


def test_every_bad_row_is_reported_and_left_out(tmp_path):
    rows, found = _read_csv(tmp_path, "sub,label\n1,2\n,\n1,2,3\n4\n5,6\n")
    assert [row.cells["sub"] for row in rows] == ["1", "5"]
    assert found == [
        ("t.csv line 3", "empty cell in column sub, label"),
        ("t.csv line 4", "3 cells, but the header has 2"),
        ("t.csv line 5", "1 cell, but the header has 2"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,other\n1,2\n", "missing column sub in"),
        ("", "missing column sub, label in"),
        ("sub,label,label\n1,2,3\n", "label appears more than once"),
        (b"sub,label\n\xff\xfe,1\n", "cannot be read"),
        ('sub,label\n"1,2\n', "cannot be read"),
    ],
)
def test_what_is_wrong_with_the_file(tmp_path, text, message):
    rows, found = _read_csv(tmp_path, text)
    assert rows == []
    assert len(found) == 1
    assert found[0][0] == "t.csv"
    assert message in found[0][1]


def test_a_missing_file_is_a_problem(tmp_path):
    problems = Problems("t")
    assert list(sheets.read_csv(tmp_path / "none.csv", ("sub",), problems)) == []
    assert problems.found[0][0] == "none.csv"


def test_five_points():
    cells = dict(
        zip(
            sheets.COORDINATES,
            ["9", "10", "19.5", "10", "14", "15", "10", "20", "18", "20"],
            strict=True,
        )
    )
    points, bad = sheets.five_points(sheets.Row(2, "row 2", cells))
    assert points.tolist() == [[9, 10], [19.5, 10], [14, 15], [10, 20], [18, 20]]
    assert bad == []
    cells |= {"nose_x": "far", "right_mouth_y": "inf"}
    assert sheets.five_points(sheets.Row(2, "row 2", cells))[1] == [
        "nose_x is 'far', not a number",
        "right_mouth_y is 'inf', not a finite number",
    ]


# Files that someone made to do harm, or that something has spoiled.


def _rewritten(path, *changes, part="xl/worksheets/sheet1.xml"):
    """Replaces text within a part of a workbook; changes are (old, new)."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for old, new in changes:
        assert old in parts[part]
        parts[part] = parts[part].replace(old, new, 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


# Each entity is thirty of the one before.
LAUGHS = b'<!DOCTYPE a [<!ENTITY a "ha">%s]>' % b"".join(
    b'<!ENTITY %c "%s">' % (letter, b"&%c;" % (letter - 1) * 30) for letter in range(98, 123)
)
CELL = b"<v>46</v>"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([(CELL, b"<v>" + b"9" * 5000 + b"</v>")], "integer string conversion"),
        ([(CELL, b"<v>1e999</v>")], ""),
        ([(b'<row r="3"', b'<row r="1999999999"')], "more than 1,048,576 rows"),
        ([(CELL, b" " * 50_000_000 + CELL)], "more than the 33,554,432 that are read"),
        ([(CELL, b"<x>" * 100_000 + b"</x>" * 100_000 + CELL)], ""),
        ([(b"<sheetData>", b"<sheetData><row>" * 100_000)], "mismatched tag"),
        ([(b"<worksheet", LAUGHS + b"<worksheet"), (CELL, b"<v>&z;</v>")], "amplification"),
        ([(b"<worksheet", b"<worksheet \xff")], "not well-formed"),
    ],
    ids=["digits", "infinite", "row", "bomb", "deep", "deep_rows", "laughs", "no_xml"],
)
def test_a_hostile_workbook_ends_in_one_message(tmp_path, changes, said):
    path = tmp_path / "codes.xlsx"
    _xlsx(path, label=[HEADER, *ROWS])
    _rewritten(path, *changes)
    start = time.process_time()
    if said:
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{said}") as caught:
            sheets.read_sheet(path, COLUMNS)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    else:
        assert len(sheets.read_sheet(path, COLUMNS)) == 3
    assert time.process_time() - start < 10


def test_a_workbook_with_hostile_parts(tmp_path):
    path = tmp_path / "codes.xlsx"
    for part in ("[Content_Types].xml", "xl/workbook.xml", "xl/styles.xml"):
        _xlsx(path, label=[HEADER, *ROWS])
        _rewritten(path, (b">", b">" + b"<x>" * 100_000), part=part)
        with pytest.raises(UserError, match="damaged, or not a spreadsheet"):
            sheets.read_sheet(path, COLUMNS)


def test_claimed_dimensions_cost_nothing(tmp_path):
    path = tmp_path / "codes.xlsx"
    _xlsx(path, label=[HEADER, *ROWS])
    far = b'<row r="1048576"><c r="XFD1048576"/></row></sheetData>'
    claimed = b'<dimension ref="A1:XFD1048576"'
    _rewritten(path, (b'<dimension ref="A1:C4"', claimed))
    start = time.process_time()
    assert _values(sheets.read_sheet(path, COLUMNS)) == CELLS
    _rewritten(path, (b"</sheetData>", far))
    assert _values(sheets.read_sheet(path, COLUMNS)) == CELLS
    assert time.process_time() - start < 10
    wide = b"".join(b'<row><c r="XFD%d"><v>1</v></c></row>' % n for n in range(10, 400))
    _rewritten(path, (b"</sheetData>", wide + b"</sheetData>"))
    with pytest.raises(UserError, match="4,000,000 cells"):
        sheets.read_sheet(path, COLUMNS)


def test_one_sheet_many_times(tmp_path):
    """Its bytes are there once, and count as often as they are read."""
    path = tmp_path / "codes.xlsx"
    _xlsx(path, label=[HEADER, *ROWS])
    with zipfile.ZipFile(path) as archive:
        (sheet,) = re.findall(rb"<sheet [^>]*>", archive.read("xl/workbook.xml"))
    again = [sheet.replace(b'"label"', b'"%d"' % number) for number in range(300)]
    rows = b"".join(b'<row><c r="XFD%d"><v>1</v></c></row>' % n for n in range(10, 20))
    _rewritten(path, (b"</sheetData>", rows + b"</sheetData>"))
    for times, said in ((20, ""), (30, "4,000,000 cells"), (300, "300 sheets, more than 256")):
        _rewritten(path, (sheet, b"".join(again[:times])), part="xl/workbook.xml")
        if said:
            with pytest.raises(UserError, match=said):
                sheets.read_sheet(path, COLUMNS)
        else:
            assert _values(sheets.read_sheet(path, COLUMNS))[:3] == CELLS
        _rewritten(path, (b"".join(again[:times]), sheet), part="xl/workbook.xml")


def test_too_many_sheets_of_the_old_format(tmp_path):
    path = tmp_path / "codes.xls"
    _xls(path, label=[HEADER, *ROWS], **{f"s{number}": [] for number in range(256)})
    with pytest.raises(UserError, match="257 sheets, more than 256"):
        sheets.read_sheet(path, COLUMNS)


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_is_no_regular_file_or_too_large(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"codes{suffix}"
    os.mkfifo(path)
    with pytest.raises(UserError, match="a pipe, socket or device, not a regular file"):
        sheets.read_sheet(path, COLUMNS)
    path.unlink()
    WRITERS[suffix](path, label=[HEADER, ["006", 46, 50]])
    monkeypatch.setenv("HTNET_MAX_FILE_BYTES", "20")
    with pytest.raises(UserError, match="more than the 20 that are read"):
        sheets.read_sheet(path, COLUMNS)
    if suffix == ".csv":
        problems = Problems("t")
        assert list(sheets.read_csv(path, ["Subject"], problems)) == []
        assert "more than the 20 that are read" in problems.found[0][1]


@pytest.mark.parametrize("number", ["9" * 5000, "2147483648", "-1", "4.5", "nan", "1e3", "\u00b2"])
def test_numbers_that_no_frame_has(number):
    assert sheets.Row(2, "somewhere", {"apex": number}).whole("apex") is None


def test_the_largest_number_and_zeros():
    for number, whole in (("2147483647", 2**31 - 1), ("0" * 5000 + "46", 46), ("\uff14", 4)):
        assert sheets.Row(2, "somewhere", {"apex": number}).whole("apex") == whole


def test_odd_csv_files(tmp_path):
    path = tmp_path / "codes.csv"
    path.write_bytes(b"," * 3_000_000 + b"\nSubject,Onset Frame,Apex\n\x00006,46,5\x000\n017\n")
    found = sheets.read_sheet(path, COLUMNS)
    assert _values(found) == [("\x00006", "46", "5\x000"), ("017", "", "")]
    for content in ("Subject,Apex\n".encode("utf-16"), b'"', b"a," + b"x" * 200_000):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged, or not a spreadsheet"):
            sheets.read_sheet(path, COLUMNS)
        problems = Problems("t")
        assert list(sheets.read_csv(path, ["Subject"], problems)) == []
        assert len(problems.found) == 1
    many = ",".join(map(str, range(300_000)))
    path.write_text(f"{many}\n")
    assert len(_read_csv(tmp_path, f"{many}\n")[1]) == 1


@pytest.fixture(scope="module")
def whole_sheets(tmp_path_factory):
    found = {}
    for suffix, write in WRITERS.items():
        path = tmp_path_factory.mktemp("whole") / f"codes{suffix}"
        write(path, label=[HEADER, ["006", 46, 50], ["017", 61.5, "/"], ["\u00e9", 1, 2]])
        found[suffix] = path
    return found


def _spoiled(draw_at, content):
    content = bytearray(content)
    for place, byte in draw_at:
        content[place % len(content)] = byte
    return bytes(content)


CHANGES = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=9)


@pytest.mark.parametrize("suffix", WRITERS)
@given(changes=CHANGES, kept=st.integers(0, 2**20))
@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=5000)
def test_any_bytes_give_rows_or_one_message(whole_sheets, suffix, changes, kept):
    whole = whole_sheets[suffix]
    path = whole.with_name(f"spoiled{suffix}")
    content = _spoiled(changes, whole.read_bytes())
    path.write_bytes(content[: kept % len(content)] if kept % 4 == 0 else content)
    _rows_or_one_message(path)


@given(changes=CHANGES, part=st.integers(0, 99))
@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=5000)
def test_any_bytes_within_a_workbook(whole_sheets, changes, part):
    with zipfile.ZipFile(whole_sheets[".xlsx"]) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(parts)[part % len(parts)]
    parts[name] = _spoiled(changes, parts[name])
    path = whole_sheets[".xlsx"].with_name("spoiled.xlsx")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    _rows_or_one_message(path)


def _rows_or_one_message(path):
    try:
        for row in sheets.read_sheet(path, COLUMNS):
            assert row.whole("apex") is None or 0 <= row.whole("apex") <= sheets.MAX_WHOLE
    except UserError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
