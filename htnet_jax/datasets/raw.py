"""An annotated clip in a copy of a data set, and the labels its emotion and action units give."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.clips import CLASSES
from htnet_jax.datasets.tree import Tree

# Classes by facial action, not by feeling (Davison et al., "Objective classes for micro-facial
# expression recognition", J. Imaging 2018).
OBJECTIVE = ("I", "II", "III", "IV", "V", "VI", "VII")


@dataclasses.dataclass(frozen=True)
class RawClip:
    """One annotated clip; frame numbers are those in the file names.

    Attributes:
        source: Data set, lower case (`casme2`).
        subject: Padded as in MEGC 2019's list (`sub01`, `s01`, `006`); unique within the source.
        name: Unique within the subject (`EP02_01f`).
        emotion: The sheet's word, lower case.
        folder: Folder with the clip's frames.
        onset: Number of the onset frame.
        apex: Number of the apex frame; None where the sheet has none, or an impossible one.
        offset: Number of the offset frame.
        aus: Action units, such as `("4", "L10", "T23")`.
        objective: Objective class 1..7; 0 where none is given.
    """

    source: str
    subject: str
    name: str
    emotion: str
    folder: Path
    onset: int
    apex: int | None
    offset: int
    aus: tuple[str, ...] = ()
    objective: int = 0

    @property
    def id(self) -> str:
        """`source/subject/name`."""
        return f"{self.source}/{self.subject}/{self.name}"


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """A way to turn emotions into classes.

    Attributes:
        classes: Names, in order of the labels.
        of_emotion: The data set's emotion word -> class name; words that are missing belong to no
            class, and their clips are left out. Empty: objective classes.
    """

    classes: tuple[str, ...]
    of_emotion: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def label(self, clip: RawClip) -> int | None:
        """The clip's label, or None if it belongs to no class."""
        if not self.of_emotion:
            return clip.objective - 1 if clip.objective else None
        name = self.of_emotion.get(clip.emotion)
        return None if name is None else self.classes.index(name)


def three_classes(negative: str, positive: str, surprise: str) -> LabelSet:
    """MEGC's classes from emotion words, blank-separated."""
    words = zip((negative, positive, surprise), CLASSES, strict=True)
    return LabelSet(CLASSES, {word: name for group, name in words for word in group.split()})


def own_classes(words: str) -> LabelSet:
    """The data set's own emotions as classes, blank-separated, in this order."""
    return LabelSet(tuple(words.split()), {word: word for word in words.split()})


OBJECTIVE_SET = LabelSet(OBJECTIVE)


class Source(Protocol):
    """What a data set's `layout.py` offers as module-level names.

    Attributes:
        LABELS: Name of a label set (`megc3`, `five`, `own`, `objective`, ...) -> how it is formed.
        VARIANTS: Names of the parts or modalities (`("hs", "vis", "nir")`), the default first.
        LAYOUT: What the manual directory must hold, for users.
        KNOWN_GAPS: Clip id -> why its last frames are missing in the distributed copies.
        HOMEPAGE: Of the data set.
    """

    LABELS: Mapping[str, LabelSet]
    VARIANTS: tuple[str, ...]
    LAYOUT: str
    KNOWN_GAPS: Mapping[str, str]
    HOMEPAGE: str

    def survey(self, tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
        """All annotated clips whose folder was found; everything else is a finding."""
        ...

    def check_counts(self, clips: list[RawClip], variant: str, audit: Audit) -> None:
        """Compares clips, subjects and emotions with the published numbers."""
        ...


def action_units(cell: str) -> tuple[str, ...]:
    """A sheet's action units as a tuple: `R1+2 or 4` -> `("R1", "2", "4")`; "" and `?` -> ()."""
    return tuple(
        part for part in re.split(r"[+,\s&;]+|\bor\b", cell.strip()) if part and part != "?"
    )
