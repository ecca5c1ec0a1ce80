"""Which folds train side by side: how many on a device, in equal groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def balanced_size(folds: int, devices: int, fit: int) -> int:
    """Folds per device so that all rounds are about equally full.

    Args:
        folds: All there are.
        devices: That work at the same time.
        fit: Folds that a device has room for; less than 1 counts as 1.

    Returns:
        The smallest group that needs no more rounds than groups of `fit`.
    """
    rounds = math.ceil(folds / (max(1, fit) * devices))
    return math.ceil(folds / (rounds * devices))


def groups(folds: Sequence[Item], devices: int, size: int) -> list[list[Item]]:
    """Cuts folds into groups for the devices.

    Args:
        folds: In order.
        devices: That work at the same time, each on one group.
        size: Most folds of a group.

    Returns:
        Groups that differ by one fold at most, the larger ones first; in the last round every
        device has one, unless there are fewer folds than that.
    """
    if not folds:
        return []
    rounds = math.ceil(len(folds) / (devices * size))
    return spread(folds, min(rounds * devices, len(folds)))


def spread(items: Sequence[Item], parts: int) -> list[list[Item]]:
    """Cuts a sequence into parts that differ by one item at most, the larger ones first."""
    least, more = divmod(len(items), parts)
    starts = [part * least + min(part, more) for part in range(parts + 1)]
    return [list(items[a:b]) for a, b in itertools.pairwise(starts)]
