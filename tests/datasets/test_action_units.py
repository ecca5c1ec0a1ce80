"""Cells of every kind that annotation sheets hold, and a few that they might."""

import datetime
import math
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htnet_jax.datasets import action_units, sheets
from htnet_jax.datasets.synthetic import anatomy

UNIT = re.compile(r"[LRTBU]?[1-9][0-9]?[A-E]?\??", re.ASCII)

CELLS = {
    **{"": "", "?": "", " ?? ": "", "4": "4", "04": "4", "6+12 ": "6+12", "4,L10;T23": "4+L10+T23"},
    **{
        "1&2": "1+2",
        "1 and 2": "1+2",
        "4 T23": "4+T23",
        "4、7": "4+7",
        "12B": "12B",
        "r12c": "R12C",
    },
    # The prefix, decimals, other forms of the same characters, doubt.
    **{"4.0": "4", "12.0 ": "12"},
    **{"AU4": "4", "au 4+AU7": "4+7", "AUL10": "L10", "4\uff0bL10": "4+L10", "\uff14+7": "4+7"},
    **{"4\xa0+\xa07": "4+7", "R14?": "R14?", "R14??": "R14?", "R14 ?": "R14?", "4+7?": "4+7?"},
    **{"(4)?": "4?", "4+7.": "4+7", "r12c": "R12C"},
    # Alternatives.
    **{"R1+2 or 4": "R1+2|4", "(L6 or L12)+L15": "L6|L12+L15", "10A/B": "10A|10B"},
    **{"10A/10B": "10A|10B", "12/14/15": "12|14|15", "4 OR 4": "4", "(L6 or L12)?": "L6?|L12?"},
    **{"(4+7)+12": "4+7+12"},
    # Held (4DME): not made in the clip.
    **{"AU4+AU7(k)": "4", "7(K)": "", "4(k)+12": "12"},
    # No unit at all is not the same as none known.
    **{"0": "0", "0.0": "0", " None. ": "0", "\uff10": "0"},
}
NOTED = {
    "R14+17+hard stare": ("R14+17", ["hard stare"]),
    "ref(43)": ("", ["ref(43)"]),
    "4+ref(7B)": ("4", ["ref(7B)"]),
    "2014-05-12 00:00:00": ("", ["2014-05-12 00:00:00"]),
    "12:30:00": ("", ["12:30:00"]),
    "4.5": ("", ["4.5"]),
    "-4": ("", ["-4"]),
    "4-7": ("", ["4-7"]),
    "True": ("", ["True"]),
    "nan": ("", ["nan"]),
    "/": ("", ["/"]),
    "4\xb2": ("", ["4\xb2"]),
    "4 (weak)+12": ("12", ["4 (weak)"]),
    "not 4": ("", ["not 4"]),
    "(L6 or L12+15": ("", ["(L6 or L12+15"]),
    "4 or 6 12": ("", ["4 or 6 12"]),
    "4 and/or 7": ("", ["4 and/or 7"]),
    "4 or/and 7": ("", ["4 or/and 7"]),
    "4 or 7(k)": ("", ["4 or 7(k)"]),
    "4+?": ("4", ["?"]),
    "()": ("", ["()"]),
    "12F+6": ("6", ["12F"]),
    "X12+6": ("6", ["X12"]),
    "43599": ("", ["43599"]),
    "0+4": ("4", ["0"]),
    "4+none": ("4", ["none"]),
    **{code: ("", [code]) for code in ("00", "AU0", "3", "47", "75", "79", "86", "99", "100")},
}


@pytest.mark.parametrize(("cell", "stored"), CELLS.items())
def test_units(cell, stored):
    parsed = action_units.parse(cell)
    assert ("+".join(parsed.stored), parsed.rest) == (stored, ())


@pytest.mark.parametrize(("cell", "expected"), NOTED.items())
def test_anything_else_is_left_over_as_a_whole(cell, expected):
    parsed = action_units.parse(cell)
    assert ("+".join(parsed.stored), list(parsed.rest)) == expected


@pytest.mark.parametrize(("cell", "stored"), [(12, "12"), (4.0, "4"), (None, ""), (math.nan, "")])
def test_numbers_of_units(cell, stored):
    parsed = action_units.parse(sheets.text(cell))
    assert ("+".join(parsed.stored), parsed.rest) == (stored, ())


@pytest.mark.parametrize(
    "cell",
    [
        *[datetime.datetime(2014, 5, 12), datetime.time(4, 7), datetime.timedelta(4), True],
        *[4.5, -4, 1e300, math.inf],
    ],
)
def test_other_cells_have_no_units(cell):
    parsed = action_units.parse(sheets.text(cell))
    assert parsed.groups == () and parsed.rest


def test_a_units_parts():
    (alternatives, sure) = action_units.parse("L10B? or 4+U12").groups
    assert alternatives == (action_units.ActionUnit("L", 10, "B", True), (("", 4, "", False)))
    assert sure == (("U", 12, "", False),)


def test_the_units_of_rendered_faces_are_units():
    for muscles in anatomy.CLASS_MUSCLES:
        cell = "+".join(muscle.removeprefix("AU") for muscle in muscles)
        assert "+".join(action_units.parse(cell).stored) == cell


_ODD = st.text(
    st.sampled_from("0123456789LRTBUABCDEaukKor()?/|+,;&. -\uff0b\uff14\xb2\u0660\x00\ud800")
)


@given(st.one_of(st.text(st.characters(exclude_categories=())), _ODD))
def test_any_text_gives_units_or_a_rest(cell):
    parsed = action_units.parse(cell)
    for group in parsed.groups:
        for unit in group:
            assert UNIT.fullmatch(str(unit))
            assert unit.side in action_units.SIDES and unit.intensity in action_units.INTENSITIES
            assert unit.number in action_units.NUMBERS
    # What is stored says the same when it is read again.
    assert action_units.parse("+".join(parsed.stored)) == parsed._replace(rest=())


def test_a_huge_cell_is_read_in_bounded_time():
    start = time.process_time()
    for text in ("4+", "(", "?", "4 or ", "AU", "0", " and "):
        parsed = action_units.parse(text * 30_000)
        assert {str(unit) for group in parsed.groups for unit in group} <= {"4"}
    assert time.process_time() - start < 10
