"""Tables of text cells: the owners' annotation sheets (.xlsx, .xls, .csv), and our CSV files."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import math
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from htnet_jax import foreign
from htnet_jax.datasets.recording import composed
from htnet_jax.errors import Problems, UserError, count

# Notes may stand above the header: SAMM's is on row 14.
MAX_HEADER_ROW = 40
# Excel's own limit for a sheet, and far more cells and sheets than any file of this field has: a
# few bytes can claim them.
MAX_ROWS = 2**20
MAX_CELLS = 4_000_000
MAX_TABLES = 256
# Numbers of frames are stored as int32.
MAX_WHOLE = 2**31 - 1

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
COORDINATES = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row below the header of a table.

    Attributes:
        number: Row as spreadsheets count, from 1.
        where: File, sheet and row, for messages.
        cells: Key or column -> text without surrounding blanks; "" for an empty cell or an optional
            column that is not there.
    """

    number: int
    where: str
    cells: dict[str, str]

    def whole(self, key: str) -> int | None:
        """The cell as a whole number up to `MAX_WHOLE`; None if it is none (empty, `/`, text)."""
        digits = re.fullmatch(r"0*(\d{1,10})", self.cells[key])
        return int(digits[1]) if digits and int(digits[1]) <= MAX_WHOLE else None


def read_sheet(
    path: Path,
    columns: Mapping[str, Sequence[str]],
    *,
    optional: Mapping[str, Sequence[str]] | None = None,
    sheet: str = "",
) -> list[Row]:
    """Reads the sheet of a workbook that has the needed columns.

    Formula cells give the values the workbook keeps for them. Numbers that are whole become `46`,
    not `46.0`; text keeps its zeros (`006`). Rows that are empty in all columns are left out.

    Args:
        path: .xlsx, .xls or .csv file.
        columns: Key -> the names a needed column may have; letter case and blanks do not matter.
        optional: The same for columns that may be missing.
        sheet: Name of the sheet to try first; others follow.

    Raises:
        UserError: The file cannot be read (missing, no regular file, locked by a password, damaged,
            larger than `foreign.MAX_SHEET`), or no sheet has all needed columns; names the columns
            that come nearest.
    """
    best: tuple[int, str] = (-1, "")
    for name, rows in _tables(path, sheet):
        for index, row in enumerate(rows[:MAX_HEADER_ROW]):
            header = [_plain(cell) for cell in row]
            places, missing = _places(header, columns)
            if not missing:
                extra, _ = _places(header, optional or {})
                return _rows(path, name, rows, index, {**places, **extra}, optional or {})
            if len(places) > best[0]:
                place = f"sheet {name!r}" if name else "it"
                best = len(places), f"{place} lacks {', '.join(missing)}"
    names = ", ".join(names[0] for names in columns.values())
    raise UserError(
        f"{path}: no sheet has a header row with the columns {names}; {best[1] or 'it is empty'}. "
        "Use the sheet as it was distributed."
    )


def read_csv(path: Path, columns: Sequence[str], problems: Problems) -> Iterator[Row]:
    """Reads a CSV file whose first line is its header; cells by column, in file order.

    A row with too few or too many cells, or with an empty cell in one of `columns`, is added to
    `problems` and left out, and so is what is wrong with the file as a whole (it then has no rows).

    Args:
        path: The CSV file, UTF-8.
        columns: Columns the file must have; others may be there.
        problems: Receives what is wrong.

    Yields:
        The good rows.
    """
    try:
        lines = list(_csv(foreign.read_bytes(path, foreign.MAX_SHEET)))
    except (OSError, ValueError, csv.Error) as error:
        problems.add(path.name, f"cannot be read as a CSV file ({foreign.reason(error)})")
        return
    header = [name.strip() for name in (lines[0][1] if lines else [])]
    if missing := [name for name in columns if name not in header]:
        problems.add(path.name, f"missing column {', '.join(missing)} in its first line")
        return
    if repeated := sorted(n for n, times in collections.Counter(header).items() if n and times > 1):
        problems.add(path.name, f"column {', '.join(repeated)} appears more than once")
        return
    for line, row in lines[1:]:
        where = f"{path.name} line {line}"
        if not row:
            continue
        if len(row) != len(header):
            problems.add(where, f"{count(len(row), 'cell')}, but the header has {len(header)}")
            continue
        cells = {name: text(cell) for name, cell in zip(header, row, strict=True)}
        if empty := [name for name in columns if not cells[name]]:
            problems.add(where, f"empty cell in column {', '.join(empty)}")
            continue
        yield Row(line, where, cells)


def five_points(row: Row) -> tuple[np.ndarray, list[str]]:
    """The five face points in the columns `COORDINATES` of a row.

    Returns:
        `(5, 2)` float64 (x, y), and what is wrong with the cells; with anything wrong, the points
        mean nothing.
    """
    values, bad = np.zeros(len(COORDINATES)), []
    for index, column in enumerate(COORDINATES):
        try:
            values[index] = float(row.cells[column])
        except ValueError:
            bad.append(f"{column} is {row.cells[column]!r}, not a number")
            continue
        if not math.isfinite(values[index]):
            bad.append(f"{column} is {row.cells[column]!r}, not a finite number")
    return values.reshape(5, 2), bad


def quoted(cell: str) -> str:
    """A cell's text in quotes for a message, long ones shortened."""
    return repr(cell if len(cell) <= 60 else f"{cell[:60]}...")


def text(cell: Any) -> str:
    """A cell as text: "" for nothing, `46` for 46.0, no blanks at the ends, letters composed."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return composed(str(cell)).strip()


def _tables(path: Path, first: str) -> list[tuple[str, list[list[Any]]]]:
    """(sheet name, rows of cells) of a file; the sheet called `first` comes first."""
    remedy = "Copy it again; if it is locked, save it without a password."
    with foreign.reading(path, "spreadsheet", remedy):
        data = foreign.read_bytes(path, foreign.MAX_SHEET)
        if path.suffix.lower() == ".csv":
            return _bounded(1, [("", (row for _, row in _csv(data)))])
        with warnings.catch_warnings(action="ignore"):  # of openpyxl, about styles
            # By content: renamed files are common.
            found = _xlsx(data) if data.startswith(b"PK") else _xls(data)
    return sorted(found, key=lambda item: item[0].casefold() != first.casefold())


def _csv(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each line, blank ones included."""
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    for row in reader:
        yield reader.line_num, row


def _xlsx(data: bytes) -> list[tuple[str, list[list[Any]]]]:
    import openpyxl

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        foreign.check_size(sum(m.file_size for m in archive.infolist()), foreign.MAX_SHEET)
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)

    def rows(sheet: Any) -> Iterator[Iterable[Any]]:
        sheet.reset_dimensions()  # those that the file claims
        return sheet.iter_rows(values_only=True)

    return _bounded(len(book.worksheets), ((str(s.title), rows(s)) for s in book.worksheets))


def _xls(data: bytes) -> list[tuple[str, list[list[Any]]]]:
    import xlrd

    def cell(kind: int, value: Any) -> Any:
        if kind == xlrd.XL_CELL_DATE:
            return xlrd.xldate.xldate_as_datetime(value, book.datemode)
        if kind == xlrd.XL_CELL_ERROR:
            return xlrd.error_text_from_code.get(value, "#ERROR")
        return bool(value) if kind == xlrd.XL_CELL_BOOLEAN else value

    def rows(sheet: Any) -> Iterator[Iterable[Any]]:
        for row in range(sheet.nrows):
            yield map(cell, sheet.row_types(row), sheet.row_values(row))

    # Sheets are read one by one: thousands of them may be the same bytes of the file.
    options = {"ragged_rows": True, "on_demand": True, "logfile": io.StringIO()}
    with xlrd.open_workbook(file_contents=data, **options) as book:
        sheets = (book.sheet_by_index(index) for index in range(book.nsheets))
        return _bounded(book.nsheets, ((sheet.name, rows(sheet)) for sheet in sheets))


def _bounded(
    number: int, tables: Iterable[tuple[str, Iterable[Iterable[Any]]]]
) -> list[tuple[str, list[list[Any]]]]:
    """Each table's rows up to the last one with cells; rows may have their own lengths."""
    if number > MAX_TABLES:
        raise ValueError(f"{number:,} sheets, more than {MAX_TABLES}")
    found: list[tuple[str, list[list[Any]]]] = []
    cells = 0
    for name, rows in tables:
        kept: list[list[Any]] = []
        last = 0
        for row in rows:
            kept.append(list(row))
            cells += 1 + len(kept[-1])  # An empty row takes memory too.
            if kept[-1]:
                last = len(kept)
            if len(kept) > MAX_ROWS or cells > MAX_CELLS:
                raise ValueError(f"more than {MAX_ROWS:,} rows or {MAX_CELLS:,} cells")
        found.append((name, kept[:last]))
    return found


def _places(
    header: Sequence[str], columns: Mapping[str, Sequence[str]]
) -> tuple[dict[str, int], list[str]]:
    places, missing = {}, []
    for key, names in columns.items():
        found = [header.index(name) for name in map(_plain, names) if name in header]
        if found:
            places[key] = found[0]
        else:
            missing.append(names[0])
    return places, missing


def _rows(
    path: Path,
    sheet: str,
    rows: Sequence[Sequence[Any]],
    header: int,
    places: Mapping[str, int],
    optional: Mapping[str, Sequence[str]],
) -> list[Row]:
    found = []
    title = f"{path.name}, sheet {sheet}" if sheet else path.name
    for index in range(header + 1, len(rows)):
        row = rows[index]
        cells = {k: text(row[place]) if place < len(row) else "" for k, place in places.items()}
        if any(cells.values()):
            cells |= {key: "" for key in optional if key not in cells}
            found.append(Row(index + 1, f"{title}, row {index + 1}", cells))
    return found


def _plain(cell: Any) -> str:
    return " ".join(text(cell).casefold().split())
