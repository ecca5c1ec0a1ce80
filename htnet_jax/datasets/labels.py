"""Label sets: how what a sheet says of a clip, emotion or objective class, becomes a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# The three classes of MEGC 2019 (See et al., FG 2019), in the order of its label file.
CLASSES = ("negative", "positive", "surprise")
# Classes by facial action, not by feeling (Davison et al., "Objective classes for micro-facial
# expression recognition", J. Imaging 2018).
OBJECTIVE = ("I", "II", "III", "IV", "V", "VI", "VII")


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """A way to turn emotions into classes.

    Attributes:
        classes: Names, in order of the labels.
        of_emotion: The data set's emotion word -> class name; clips with another word belong to no
            class and are left out. Empty: objective classes.
    """

    classes: tuple[str, ...]
    of_emotion: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def label(self, emotion: str, objective: int = 0) -> int | None:
        """The label of a clip, or None if it belongs to no class.

        Args:
            emotion: The sheet's word, lower case.
            objective: Objective class 1..7; 0: none is given.
        """
        if not self.of_emotion:
            return objective - 1 if objective else None
        name = self.of_emotion.get(emotion)
        return None if name is None else self.classes.index(name)


def three_classes(negative: str, positive: str, surprise: str) -> LabelSet:
    """MEGC's classes from emotion words, blank-separated."""
    words = zip((negative, positive, surprise), CLASSES, strict=True)
    return LabelSet(CLASSES, {word: name for group, name in words for word in group.split()})


def own_classes(words: str) -> LabelSet:
    """The data set's own emotions as classes, blank-separated, in this order."""
    return LabelSet(tuple(words.split()), {word: word for word in words.split()})


OBJECTIVE_SET = LabelSet(OBJECTIVE)
