"""Action units as sheets write them, and the one form in which examples store them.

    stored = group {"+" group}                  made together; or "0": no unit is active
    group  = unit {"|" unit}                    one of these; the coder could not tell which
    unit   = [side] number [intensity] ["?"]    "?": the coder was not sure
    side   = L R (left, right), T B (top, bottom), U (unilateral)

such as `R1+2|4+L10B?`. A stored text is also a cell, so `parse` reads both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# Codes of FACS (Ekman, Friesen and Hager, 2002) and their names there: face, gross behaviour, head
# and eyes, visibility. 41, 42 and 44 are degrees of 43 and 7 since 2002; their names are of 1978.
NAMES: Mapping[int, str] = {
    1: "inner brow raiser",
    2: "outer brow raiser",
    4: "brow lowerer",
    5: "upper lid raiser",
    6: "cheek raiser",
    7: "lid tightener",
    8: "lips toward each other",
    9: "nose wrinkler",
    10: "upper lip raiser",
    11: "nasolabial deepener",
    12: "lip corner puller",
    13: "sharp lip puller",
    14: "dimpler",
    15: "lip corner depressor",
    16: "lower lip depressor",
    17: "chin raiser",
    18: "lip pucker",
    19: "tongue show",
    20: "lip stretcher",
    21: "neck tightener",
    22: "lip funneler",
    23: "lip tightener",
    24: "lip presser",
    25: "lips part",
    26: "jaw drop",
    27: "mouth stretch",
    28: "lips suck",
    29: "jaw thrust",
    30: "jaw sideways",
    31: "jaw clencher",
    32: "bite",
    33: "blow",
    34: "puff",
    35: "cheek suck",
    36: "tongue bulge",
    37: "lip wipe",
    38: "nostril dilator",
    39: "nostril compressor",
    40: "sniff",
    41: "lid droop",
    42: "slit",
    43: "eye closure",
    44: "squint",
    45: "blink",
    46: "wink",
    50: "speech",
    51: "head turn left",
    52: "head turn right",
    53: "head up",
    54: "head down",
    55: "head tilt left",
    56: "head tilt right",
    57: "head forward",
    58: "head back",
    59: "head shake up and down",
    60: "head shake side to side",
    61: "eyes turn left",
    62: "eyes turn right",
    63: "eyes up",
    64: "eyes down",
    65: "walleye",
    66: "crosseye",
    68: "upward rolling of eyes",
    69: "eyes look at other person",
    70: "brows and forehead not visible",
    71: "eyes not visible",
    72: "lower face not visible",
    73: "entire face not visible",
    74: "unscorable",
    80: "swallow",
    81: "chewing",
    82: "shoulder shrug",
    83: "head upward and to the side",
    84: "head shake back and forth",
    85: "head nod up and down",
    91: "flash",
    92: "partial flash",
    97: "shiver",
    98: "fast up-down look",
}
NUMBERS = frozenset(NAMES)
SIDES = ("", "L", "R", "T", "B", "U")
INTENSITIES = ("", "A", "B", "C", "D", "E")

_FLAGS = re.ASCII | re.IGNORECASE
_UNIT = re.compile(
    r"(?:AU ?)?([LRTBU]?) ?(?<![0-9])0{0,2}([0-9]{1,2})([A-E]?)"
    r"(?P<doubt> ?\?+)?(?P<held> ?\(k\))?(?![0-9A-Z(?.])",
    _FLAGS,
)
_OR = re.compile(r"[/|]|(?<![A-Z])OR(?![A-Z])", _FLAGS)
_AND = re.compile(r"(?<![A-Z/])AND(?![A-Z]| ?/)", _FLAGS)  # "and/or" is no separator
_BRACKETS = re.compile(r"\(([^()]*)\) ?(\?*)")
# Wide, narrow and small forms are the same character; a superscript is another one: 4² is not 42.
_SAME_CHARACTER = ("<wide>", "<narrow>", "<small>", "<noBreak>")


class ActionUnit(NamedTuple):
    """One unit.

    Attributes:
        side: One of `SIDES`; "": both sides, or none given.
        number: One of `NUMBERS`.
        intensity: One of `INTENSITIES`; "": none given.
        uncertain: Whether the coder was not sure.
    """

    side: str
    number: int
    intensity: str = ""
    uncertain: bool = False

    def __str__(self) -> str:
        return f"{self.side}{self.number}{self.intensity}{'?' if self.uncertain else ''}"


# Alternatives of each other; nearly always one unit.
Group = tuple[ActionUnit, ...]


class Parsed(NamedTuple):
    """What a cell says.

    Attributes:
        groups: Made together, in the cell's order.
        rest: Parts of the cell that are no units.
        none: Whether the cell says that no unit is active, which an empty one does not.
    """

    groups: tuple[Group, ...]
    rest: tuple[str, ...]
    none: bool = False

    @property
    def stored(self) -> tuple[str, ...]:
        """Each group as it is stored, such as `("R1", "2|4")`; `("0",)` for none."""
        return ("0",) if self.none else tuple("|".join(map(str, group)) for group in self.groups)


def parse(cell: str) -> Parsed:
    """The units of a sheet's cell, or of a stored text; never raises.

    Units are separated by `+ , ; &`, blanks or "and", alternatives by "or", `/` or `|`; letter
    case, "AU" before a unit and dots at a part's end do not matter. `10A/B` is `10A|10B`. Brackets
    bind: `(L6 or L12)+L15`. Held units, `7(k)`, were not made in the clip and are left out, and a
    cell that is only `?` has no units: nobody knows them. One that is only `0` or `none` says that
    there are none. A cell that is only `4.0` is 4, as tables are exported in which a column is a
    number with gaps. A part between two separators of which anything is not
    understood is left out as a whole: half of it could say the opposite.
    """
    same = "".join(
        unicodedata.normalize("NFKC", character)
        if unicodedata.decomposition(character).startswith(_SAME_CHARACTER)
        else character
        for character in cell
    )
    groups: list[Group] = []
    rest: list[str] = []
    if not same.strip("? "):
        return Parsed((), ())
    if found := re.fullmatch(r" *([0-9]{1,2})\.0 *", same):
        same = found[1]
    if same.strip(" .").lower() in ("0", "none"):
        return Parsed((), (), none=True)
    for part in _parts(" ".join(same.split())):
        found = _groups(part)
        if found is None:
            rest.append(part)
        else:
            groups += found
    return Parsed(tuple(groups), tuple(rest))


def _parts(text: str) -> Iterator[str]:
    """What stands between the separators that are in no brackets, unless it is nothing."""
    depth, start = 0, 0
    cuts = []
    ands = {found.start(): found.end() for found in _AND.finditer(text)}
    for place, character in enumerate(text):
        depth = max(depth + (character == "(") - (character == ")"), 0)
        if depth == 0 and (character in "+,;&\u3001" or place in ands):
            cuts.append((start, place))
            start = ands.get(place, place + 1)
    for begin, end in (*cuts, (start, len(text))):
        part = text[begin:end].strip(" ").rstrip(" .")
        if part:
            yield part


def _groups(part: str) -> list[Group] | None:
    """The groups of a part; None if it has anything else. Held units are no group."""
    if found := _BRACKETS.fullmatch(part):
        inner = [_groups(inside) for inside in _parts(found[1])]
        if not inner or None in inner:
            return None
        return [
            tuple(unit._replace(uncertain=unit.uncertain or bool(found[2])) for unit in group)
            for groups in inner
            for group in groups
        ]
    alternatives = [text.strip(" ") for text in _OR.split(part)]
    if len(alternatives) == 1:
        return _listed(part)
    units: list[ActionUnit] = []
    for text in alternatives:
        if units and units[-1].intensity and re.fullmatch(r"[A-E]", text, _FLAGS):
            units.append(units[-1]._replace(intensity=text.upper()))
            continue
        listed = _listed(text)
        if listed is None or len(listed) != 1:
            return None
        units += listed[0]
    return [tuple(dict.fromkeys(units))]


def _listed(text: str) -> list[Group] | None:
    """Units with nothing but blanks between them."""
    groups: list[Group] = []
    place = 0
    while place < len(text):
        found = _UNIT.match(text, place)
        if found is None or int(found[2]) not in NUMBERS:
            return None
        if not found["held"]:
            uncertain = bool(found["doubt"])
            groups.append(
                (ActionUnit(found[1].upper(), int(found[2]), found[3].upper(), uncertain),)
            )
        place = found.end() + (text[found.end() : found.end() + 1] == " ")
    return groups
