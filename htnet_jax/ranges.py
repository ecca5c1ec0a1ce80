"""What a value from outside may be: its type and range, checked before anything is done with it.

Each kind has `refuse(key, value)`, which raises a ValueError that names the key, and as text says
what is possible; the tables of settings and the checks are made of the same objects.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol


class Allowed(Protocol):
    """What a value may be; `str` of it says so."""

    def refuse(self, key: str, value: object) -> None:
        """Raises a ValueError that names `key` if the value is not possible."""


class Range(NamedTuple):
    """Numbers.

    Attributes:
        least: The smallest value.
        most: The largest whole number; if `least` is a float, the value is real and lies below.
        several: "all": a sequence of at least one such value; "any": that or a single value; empty:
            a single value.
        ends: For real values: whether each end belongs to the range, as in "[)" or "(]".
    """

    least: float
    most: float
    several: str = ""
    ends: str = "[)"

    @property
    def _is_real(self) -> bool:
        return isinstance(self.least, float)

    def _bounds(self) -> str:
        return f"{self.ends[0]}{self.least:g}, {self.most:g}{self.ends[1]}"

    def __str__(self) -> str:
        bounds = f"in {self._bounds()}" if self._is_real else f"{self.least:,} to {self.most:,}"
        if self.several == "all":
            return f"numbers {bounds}" if self._is_real else f"whole numbers {bounds}"
        one = f"a number {bounds}" if self._is_real else f"a whole number, {bounds}"
        return f"{one}, or several in a tuple" if self.several else one

    def refuse(self, key: str, value: object) -> None:
        """Raises a ValueError that names `key` if the value is of another type or outside."""
        values: Sequence[object] = (value,)
        if isinstance(value, list | tuple) and self.several:
            values = value
            if not values:
                raise ValueError(f"{key}={short(value)} must be {self}, at least one")
        elif self.several == "all":
            raise ValueError(f"{key}={short(value)} must be a tuple of {self}")
        kind = numbers.Real if self._is_real else numbers.Integral
        for one in values:
            if isinstance(one, bool) or not isinstance(one, kind):
                raise ValueError(f"{key}={short(value)} must be {self}")
            if not self._is_real and one < self.least:
                raise ValueError(f"{key}={short(value)} must be at least {self.least}")
            if not self._holds(one):
                bound = f"lie in {self._bounds()}" if self._is_real else f"be {self}"
                raise ValueError(f"{key}={short(value)} must {bound}")

    def _holds(self, value: float) -> bool:
        # Written so that NaN fails.
        if not self._is_real:
            return value <= self.most
        above = self.least <= value if self.ends[0] == "[" else self.least < value
        return above and (value <= self.most if self.ends[1] == "]" else value < self.most)


class Choice(NamedTuple):
    """One of some names."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return " or ".join(f'"{name}"' for name in self.names)

    def refuse(self, key: str, value: object) -> None:
        """Raises a ValueError that names `key` if the value is none of the names."""
        if not isinstance(value, str) or value not in self.names:
            raise ValueError(f"{key}={short(repr(value))} is unknown; use {', '.join(self.names)}")


class Text:
    """A text, such as names separated by commas or a folder."""

    def __str__(self) -> str:
        return "text"

    def refuse(self, key: str, value: object) -> None:
        """Raises a ValueError that names `key` if the value is no text, or holds a NUL."""
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"{key}={short(repr(value))} must be text")


class Switch:
    """True or False."""

    def __str__(self) -> str:
        return "True or False"

    def refuse(self, key: str, value: object) -> None:
        """Raises a ValueError that names `key` if the value is neither."""
        if not isinstance(value, bool):
            raise ValueError(f"{key}={short(repr(value))} must be True or False")


def refusals(values: Mapping[str, object], allowed: Iterable[tuple[str, Allowed]]) -> list[str]:
    """One line for each value that is not possible; keys without a value are passed over."""
    lines = []
    for key, one in allowed:
        try:
            if key in values:
                one.refuse(key, values[key])
        except ValueError as error:
            lines.append(str(error))
    return lines


def short(value: object) -> str:
    """A value as text, shortened to 80 characters."""
    try:
        text = str(value)
    except ValueError:  # Python writes no whole numbers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:80]}..."
