"""CSV reading: text stays text, and every bad row is reported."""

import pytest

from htnet_jax import errors
from htnet_jax.datasets import tables


def _read(tmp_path, text, columns=("sub", "label")):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    problems = errors.Problems("t")
    return list(tables.read_rows(path, columns, problems)), problems.found


def test_cells_stay_text_and_lines_are_counted(tmp_path):
    rows, found = _read(tmp_path, "\ufeffsub, label,other\r\n006,1,\r\n\r\n 007 ,2,x\r\n")
    assert not found
    assert [row.where for row in rows] == ["t.csv line 2", "t.csv line 4"]
    assert rows[0].cells == {"sub": "006", "label": "1", "other": ""}
    assert rows[1].cells == {"sub": "007", "label": "2", "other": "x"}


def test_every_bad_row_is_reported_and_left_out(tmp_path):
    rows, found = _read(tmp_path, "sub,label\n1,2\n,\n1,2,3\n4\n5,6\n")
    assert [row.cells["sub"] for row in rows] == ["1", "5"]
    assert found == [
        ("t.csv line 3", "empty cell in column sub, label"),
        ("t.csv line 4", "3 cells, but the header has 2"),
        ("t.csv line 5", "1 cells, but the header has 2"),
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
    rows, found = _read(tmp_path, text)
    assert rows == []
    assert len(found) == 1
    assert found[0][0] == "t.csv"
    assert message in found[0][1]


def test_a_missing_file_is_a_problem(tmp_path):
    problems = errors.Problems("t")
    assert list(tables.read_rows(tmp_path / "none.csv", ("sub",), problems)) == []
    assert problems.found[0][0] == "none.csv"
