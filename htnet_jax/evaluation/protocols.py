"""Who is left out, and which epoch of a run counts."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from htnet_jax.evaluation.predictions import Predictions


class Selection(enum.StrEnum):
    """How the epoch whose predictions count is chosen."""

    FINAL = "final"
    ORACLE = "oracle"

    @property
    def description(self) -> str:
        """How the epoch was chosen, in the words every table and plot must carry."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Selection.FINAL: "last epoch",
    Selection.ORACLE: (
        "best epoch, selected on the test subject; for comparison with published tables only"
    ),
}


def loso_folds(subjects: Sequence[str] | np.ndarray) -> list[str]:
    """Leave one subject out: the fold names, one for each distinct subject, sorted.

    Args:
        subjects: (M,) the subject of each clip.
    """
    return sorted({str(subject) for subject in subjects})


def classes_lost(
    labels: ArrayLike, subjects: Sequence[str] | np.ndarray
) -> dict[str, tuple[int, ...]]:
    """Finds the folds that train without some class.

    Args:
        labels: (M,) int, the class of each clip.
        subjects: (M,) the subject of each clip.

    Returns:
        For each subject who alone has all clips of some class: those classes, ascending. Empty when
        every fold trains on every class that occurs.

    Raises:
        ValueError: `labels` and `subjects` differ in length.
    """
    owners: dict[int, set[str]] = {}
    for label, subject in zip(np.asarray(labels).tolist(), subjects, strict=True):
        owners.setdefault(label, set()).add(str(subject))
    lost: dict[str, tuple[int, ...]] = {}
    for label, names in sorted(owners.items()):
        if len(names) == 1:
            (name,) = names
            lost[name] = (*lost.get(name, ()), label)
    return dict(sorted(lost.items()))


def select(predictions: Predictions, selection: Selection | str) -> tuple[np.ndarray, np.ndarray]:
    """The predicted class of each clip under a selection.

    `final` takes the last recorded epoch. `oracle` takes, for each fold, the epoch with the most
    correct test clips of that fold (ties: the earliest), as HTNet's release does: it scores the
    held-out subject after every epoch and keeps the best epoch's predictions. It looks at the
    test labels, so it overstates what the model can do on a new subject.

    Args:
        predictions: E recorded epochs, M clips, F folds.
        selection: a `Selection` or its name.

    Returns:
        (M,) int64 predicted classes (equal logits: the lowest class) and (F,) int32 epoch numbers
        (1-based, as `predictions.epochs`).

    Raises:
        ValueError: an unknown selection.
    """
    selection = Selection(selection)
    num_folds = len(predictions.folds)
    predicted = predictions.logits.argmax(axis=-1)
    if selection is Selection.FINAL:
        chosen = np.full(num_folds, len(predictions.epochs) - 1)
    else:
        correct = predicted == predictions.labels
        hits = np.stack(
            [correct[:, predictions.fold == fold].sum(axis=1) for fold in range(num_folds)], axis=1
        )
        chosen = hits.argmax(axis=0)
    labels = predicted[chosen[predictions.fold], np.arange(len(predictions.labels))]
    return labels, predictions.epochs[chosen]
