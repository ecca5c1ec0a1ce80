"""Annotation sheets (.xlsx, .xls, .csv): the header wherever it is, every cell as text."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from htnet_jax.errors import UserError

# Notes may stand above the header: SAMM's is on row 14.
MAX_HEADER_ROW = 40


@dataclasses.dataclass(frozen=True)
class SheetRow:
    """One row below the header.

    Attributes:
        number: Row as spreadsheets count, from 1.
        where: `FILE, sheet NAME, row N`, for messages.
        cells: Key -> text; "" for an empty cell or an optional column that is not there.
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
) -> list[SheetRow]:
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
) -> list[SheetRow]:
    found = []
    title = f"{path.name}, sheet {sheet}" if sheet else path.name
    for index in range(header + 1, len(rows)):
        cells = {key: text(rows[index][place]) for key, place in places.items()}
        if any(cells.values()):
            cells |= {key: "" for key in optional if key not in cells}
            found.append(SheetRow(index + 1, f"{title}, row {index + 1}", cells))
    return found


def text(cell: Any) -> str:
    """A cell as text: "" for nothing, `46` for 46.0, blanks at the ends taken off."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _plain(cell: Any) -> str:
    return " ".join(text(cell).casefold().split())
