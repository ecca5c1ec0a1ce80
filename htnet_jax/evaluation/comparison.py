"""Two runs on the same clips: how far apart they are, and whether chance explains it."""

from __future__ import annotations

import dataclasses

import numpy as np

from htnet_jax.errors import Problems
from htnet_jax.evaluation import resampling
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.selection import Selection, available, select
from htnet_jax.evaluation.summary import source_masks, subject_table

# One report names this many clips.
_SHOWN = 10

Differences = dict[str, dict[str, dict[str, resampling.Comparison]]]
"""Selection -> "composite" or source -> score -> first run less second."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A comparison of two runs.

    Attributes:
        first: Name of the first run.
        second: Name of the second run.
        differences: Of every selection that both runs allow.
    """

    first: str
    second: str
    differences: Differences


def compare(first: Predictions, second: Predictions, names: tuple[str, str]) -> Pair:
    """Compares two runs, subject by subject.

    Under `final` and `inner` each run is taken under that selection; a run of a single recorded
    epoch (a baseline), which has only `final`, stands for `inner` too, because nothing was selected
    in it on the test subject.

    Args:
        first: A run.
        second: A run on the same clips with the same labels, whatever its protocol and seeds.
        names: How to call the runs.

    Raises:
        UserError: The runs do not share their clips, subjects, labels or classes.
    """
    order = _same_clips(first, second, names)
    masks = source_masks(first)
    differences: Differences = {}
    for selection in (Selection.FINAL, Selection.INNER):
        if not all(_allows(run, selection) for run in (first, second)):
            continue
        if all(len(available(run)) == 1 for run in (first, second)) and differences:
            continue
        ours = select(first, _taken(first, selection)).predicted
        theirs = select(second, _taken(second, selection)).predicted[:, order]
        differences[selection.value] = {
            group: resampling.compare(
                subject_table(first, ours, mask), subject_table(first, theirs, mask)
            )
            for group, mask in masks.items()
        }
    return Pair(*names, differences)


def _allows(run: Predictions, selection: Selection) -> bool:
    return selection in available(run) or len(run.epochs) == 1


def _taken(run: Predictions, selection: Selection) -> Selection:
    return selection if selection in available(run) else Selection.FINAL


def _same_clips(first: Predictions, second: Predictions, names: tuple[str, str]) -> np.ndarray:
    """The rows of `second` in the order of the clips of `first`."""
    problems = Problems(f"{names[0]} and {names[1]} cannot be compared")
    if first.class_names.tolist() != second.class_names.tolist():
        problems.add("classes", f"{first.class_names.tolist()}, {second.class_names.tolist()}")
    where = {clip: row for row, clip in enumerate(second.clips.tolist())}
    ours = first.clips.tolist()
    for name, alone in (
        (names[0], [clip for clip in ours if clip not in where]),
        (names[1], sorted(set(where) - set(ours))),
    ):
        if alone:
            problems.add(f"{len(alone)} clips only in {name}", _list(alone))
    shared = [clip for clip in ours if clip in where]
    rows = np.array([where[clip] for clip in shared], dtype=np.int64)
    kept = np.array([clip in where for clip in ours])
    for field in ("labels", "subjects", "sources"):
        differ = getattr(first, field)[kept] != getattr(second, field)[rows]
        if differ.any():
            clips = [clip for clip, bad in zip(shared, differ, strict=True) if bad]
            problems.add(f"{len(clips)} clips have other {field}", _list(clips))
    problems.raise_if_any(
        "Compare runs on one data set with one label set; finish runs that lack folds."
    )
    return rows


def _list(clips: list[str]) -> str:
    more = f" and {len(clips) - _SHOWN} more" if len(clips) > _SHOWN else ""
    return ", ".join(clips[:_SHOWN]) + more
