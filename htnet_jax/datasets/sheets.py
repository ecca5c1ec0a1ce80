"""Tables of text cells: the owners' annotation sheets (.xlsx, .xls, .csv), and our CSV files."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from htnet_jax.datasets.recording import composed
from htnet_jax.errors import Problems, UserError

# Notes may stand above the header: SAMM's is on row 14.
MAX_HEADER_ROW = 40

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
        """The cell as a whole number, or None if it is none (empty, `/`, text)."""
        return int(self.cells[key]) if re.fullmatch(r"\d+", self.cells[key]) else None


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
        UserError: The file cannot be read (missing, locked by a password, damaged), or no sheet
            has all needed columns; names the columns that come nearest.
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
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.add(path.name, f"cannot be read as a CSV file ({error})")
        return
    if missing := [name for name in columns if name not in header]:
        problems.add(path.name, f"missing column {', '.join(missing)} in its first line")
        return
    if repeated := sorted({name for name in header if name and header.count(name) > 1}):
        problems.add(path.name, f"column {', '.join(repeated)} appears more than once")
        return
    for line, row in rows:
        where = f"{path.name} line {line}"
        if len(row) != len(header):
            problems.add(where, f"{len(row)} cells, but the header has {len(header)}")
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
    import pandas as pd

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with warnings.catch_warnings(action="ignore"):  # of openpyxl, about styles
            if path.suffix.lower() == ".csv":
                with path.open(newline="", encoding="utf-8-sig") as file:
                    lines = list(csv.reader(file, strict=True))
                width = max(map(len, lines), default=0)
                return [("", [line + [""] * (width - len(line)) for line in lines])]
            frames = pd.read_excel(path, sheet_name=None, header=None, dtype=object)
    except Exception as error:  # the readers raise many types for damaged and locked files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path}: cannot be read as a spreadsheet ({reason}). Copy it again; if it is locked, "
            "save it without a password."
        ) from error
    named = sorted(frames.items(), key=lambda item: item[0].casefold() != first.casefold())
    return [(str(name), frame.to_numpy(dtype=object).tolist()) for name, frame in named]


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
        cells = {key: text(rows[index][place]) for key, place in places.items()}
        if any(cells.values()):
            cells |= {key: "" for key in optional if key not in cells}
            found.append(Row(index + 1, f"{title}, row {index + 1}", cells))
    return found


def _plain(cell: Any) -> str:
    return " ".join(text(cell).casefold().split())
