"""Reading of annotation sheets in CSV form: all cells as text, every bad row reported."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from htnet_jax import errors


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a CSV file.

    Attributes:
        where: `FILE line N`, for messages.
        cells: Column -> text without surrounding blanks.
    """

    where: str
    cells: dict[str, str]


def read_rows(path: Path, columns: Sequence[str], problems: errors.Problems) -> Iterator[Row]:
    """Reads a CSV file with a header, in file order.

    Cells stay text, so that a subject called 006 keeps its name. A row with too few or too many
    cells, or with an empty cell in one of `columns`, is added to `problems` and left out, and so
    is what is wrong with the file as a whole (it then has no rows).

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
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        if empty := [name for name in columns if not cells[name]]:
            problems.add(where, f"empty cell in column {', '.join(empty)}")
            continue
        yield Row(where, cells)
