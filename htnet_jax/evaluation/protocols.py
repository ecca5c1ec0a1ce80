"""Which subjects are left out, and which of the others validate."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from htnet_jax.errors import UserError

PROTOCOLS: Mapping[str, str] = {
    "loso": "leave one subject out",
    "lodo": "leave one data set out",
    "kfold": "subject-grouped folds",
}
"""Name of each protocol -> what it does, in words."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One fold of a protocol: what is trained on is everything that is not tested.

    Attributes:
        name: The left-out subject or data set, or the number of the fold; unique.
        test: `(N,)` bool, the left-out clips.
    """

    name: str
    test: np.ndarray


def unique_subjects(
    subjects: Sequence[str] | np.ndarray, sources: Sequence[str] | np.ndarray
) -> np.ndarray:
    """The subjects' names, unique over data sets.

    Two data sets may use one name for two subjects: those become `source/subject`.

    Args:
        subjects: `(N,)` the subject of each clip, as its data set names them.
        sources: `(N,)` the data set of each clip.

    Returns:
        `(N,)` str.

    Raises:
        ValueError: The lengths differ.
    """
    pairs = [(str(a), str(b)) for a, b in zip(subjects, sources, strict=True)]
    homes: dict[str, set[str]] = {}
    for subject, source in pairs:
        homes.setdefault(subject, set()).add(source)
    return np.array(
        [
            subject if len(homes[subject]) == 1 else f"{source}/{subject}"
            for subject, source in pairs
        ],
        dtype=np.str_,
    )


def splits(
    protocol: str, subjects: np.ndarray, sources: np.ndarray, *, count: int = 5, seed: int = 0
) -> list[Split]:
    """The folds of a protocol, sorted by name.

    Args:
        protocol: `loso`: one fold a subject; `lodo`: one fold a data set; `kfold`: `count` folds of
            whole subjects, see `groups`.
        subjects: `(N,)` str, from `unique_subjects`.
        sources: `(N,)` str, the data set of each clip.
        count: Folds of `kfold`; unused by the others.
        seed: Of the split of `kfold`.

    Raises:
        UserError: An unknown protocol, fewer than two folds, or more folds than subjects.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; use one of {', '.join(PROTOCOLS)}")
    if protocol == "kfold":
        number = groups(subjects, sources, count, f"{seed}")
        digits = len(str(count))
        names = np.array([f"fold{index + 1:0{digits}d}of{count}" for index in number])
    else:
        names = subjects if protocol == "loso" else np.asarray(sources)
    found = sorted({str(name) for name in names})
    if len(found) < 2:
        raise UserError(
            f"protocol {protocol} ({PROTOCOLS[protocol]}) needs at least two folds, but the data "
            f"have {len(found)}; choose another protocol or more data"
        )
    return [Split(name, names == name) for name in found]


def groups(subjects: np.ndarray, sources: np.ndarray, count: int, key: str) -> np.ndarray:
    """Splits subjects into `count` groups, balanced per data set.

    Subjects are sorted by data set, then by the SHA-256 of `key/subject`, and assigned to the
    groups in turn: group sizes differ by at most one, in total and within each data set. No label
    is looked at.

    Args:
        subjects: `(N,)` str, the subject of each clip.
        sources: `(N,)` str, the data set of each clip.
        count: Number of groups, at least 2.
        key: Names the split, a seed for example.

    Returns:
        `(N,)` int, the group of each clip's subject, 0 to `count - 1`.

    Raises:
        UserError: Fewer than 2 groups, or more than subjects.
    """
    home = {str(subject): str(source) for subject, source in zip(subjects, sources, strict=True)}
    if not 2 <= count <= len(home):
        raise UserError(
            f"{len(home)} subjects cannot be split into {count} groups; give 2 to {len(home)}"
        )

    def rank(subject: str) -> tuple[str, str]:
        return home[subject], hashlib.sha256(f"{key}/{subject}".encode()).hexdigest()

    number = {subject: index % count for index, subject in enumerate(sorted(home, key=rank))}
    return np.array([number[str(subject)] for subject in subjects], dtype=np.int64)


def inner_folds(
    split: Split, subjects: np.ndarray, sources: np.ndarray, *, parts: int, count: int, seed: int
) -> np.ndarray:
    """Which training clips validate in each of a fold's inner folds.

    The training subjects are split into `parts` groups (see `groups`; the key is the seed and the
    fold's name). Inner fold j trains on all groups but the j-th and validates on that one.

    Args:
        split: The (outer) fold; its test clips validate nowhere.
        subjects: `(N,)` str, the subject of each clip.
        sources: `(N,)` str, the data set of each clip.
        parts: Number of groups: 5 means that a fifth of the subjects validate.
        count: How many inner folds to use, 1 to `parts`.
        seed: Of the split.

    Returns:
        `(N,)` int, the inner fold in which each clip validates, 0 to `count - 1`; -1 for none.

    Raises:
        UserError: `count` is not 1 to `parts`, or there are fewer training subjects than `parts`.
    """
    if not 1 <= count <= parts:
        raise UserError(f"{count} inner folds of {parts} parts; use 1 to {parts}")
    train = ~split.test
    found = np.full(len(subjects), -1)
    try:
        found[train] = groups(subjects[train], sources[train], parts, f"{seed}/{split.name}")
    except UserError as error:
        raise UserError(f"fold {split.name}, inner folds: {error}") from error
    found[found >= count] = -1
    return found


def classes_lost(labels: ArrayLike, folds: Sequence[Split]) -> dict[str, tuple[int, ...]]:
    """Finds the folds that train without some class that occurs in the data.

    Args:
        labels: `(N,)` int, the class of each clip.
        folds: The folds of a protocol.

    Returns:
        Fold name -> the classes it never sees in training, ascending; only folds that lose one.
    """
    labels = np.asarray(labels)
    lost = {fold.name: tuple(np.setdiff1d(labels, labels[~fold.test]).tolist()) for fold in folds}
    return {name: classes for name, classes in lost.items() if classes}
