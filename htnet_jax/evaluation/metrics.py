"""Scores from confusion matrices, pooled over the clips given.

UF1 and UAR are the measures of the MEGC 2019 challenge: See, Yap, Li, Hong, Wang, *MEGC 2019 - The
Second Facial Micro-Expressions Grand Challenge*, FG 2019. Pooled over folds: give all test clips of
all folds at once, never the mean of per-fold scores.

A class without a clip in the truth counts under a named rule (`Absent`) in UF1 and UAR. Macro-F1
has a rule of its own, scikit-learn's; see `macro_f1` for how it differs from UF1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from htnet_jax.errors import UserError

Absent = Literal["error", "skip", "zero"]
"""What a class without any clip in the truth counts: an error, nothing, or 0."""

Undefined = Literal["error", "nan", "zero"]
"""What a class's score counts where it is 0/0: an error, not a number, or 0."""

SCORES = ("uf1", "uar", "accuracy", "macro_f1")
"""The scores of a whole confusion matrix, in the order tables show them."""


class AbsentClassError(UserError, ValueError):
    """A class has no clip in the truth, and the caller named no rule for that."""


class UndefinedScoreError(UserError, ValueError):
    """A score of a class is 0/0, and the caller asked for an error in that case."""


class ClassScores(NamedTuple):
    """The scores of each class.

    Attributes:
        precision: (C,) float64, TP / (TP + FP); 0/0 for a class that is never predicted.
        recall: (C,) float64, TP / (TP + FN); 0/0 for a class without a clip in the truth.
        f1: (C,) float64, 2TP / (2TP + FP + FN); 0/0 for a class that occurs in neither.
        clips: (C,) int64, the clips of the class in the truth.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    clips: np.ndarray


def confusion(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> np.ndarray:
    """Counts how often each true class was given each predicted class.

    Args:
        labels: (M,) integers in [0, num_classes), the truth.
        predictions: (M,) integers in [0, num_classes).
        num_classes: number of classes C.

    Returns:
        (C, C) int64; row = truth, column = prediction.

    Raises:
        ValueError: empty or non-integer input, different lengths, a value out of range.
    """
    predictions = np.asarray(predictions)
    if predictions.ndim != 1:
        raise ValueError(f"predictions must have one axis, got shape {predictions.shape}")
    return confusions(labels, predictions, num_classes)


def confusions(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> np.ndarray:
    """One confusion matrix for each of many predictions (epochs, seeds) of the same clips.

    Args:
        labels: (M,) integers in [0, num_classes), the truth.
        predictions: (..., M) integers in [0, num_classes).
        num_classes: number of classes C.

    Returns:
        (..., C, C) int64; row = truth, column = prediction.

    Raises:
        ValueError: as `confusion`.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels must have one axis, got shape {labels.shape}")
    truth = _class_indices("labels", labels, num_classes)
    predicted = _class_indices("predictions", predictions, num_classes)
    if truth.size != predicted.shape[-1]:
        raise ValueError(f"{truth.size} labels but {predicted.shape[-1]} predictions")
    lead = predicted.shape[:-1]
    # Each matrix has its own C * C numbers, so that one count serves them all.
    matrices = np.arange(predicted.size // truth.size).reshape(*lead, 1)
    cells = (matrices * num_classes + truth) * num_classes + predicted
    counts = np.bincount(cells.ravel(), minlength=matrices.size * num_classes**2)
    return counts.reshape(*lead, num_classes, num_classes).astype(np.int64, copy=False)


def scores(matrix: ArrayLike, absent: Absent = "skip") -> dict[str, np.ndarray]:
    """UF1, UAR, accuracy and macro-F1 of one confusion matrix or of many.

    Args:
        matrix: (..., C, C) counts, row = truth, column = prediction; integers, or floats where the
            clips are weighted.
        absent: for UF1 and UAR, what a class without a clip in the truth counts, as in `uf1`.
            Accuracy and macro-F1 need no rule.

    Returns:
        For each name of `SCORES` a (...) float64 array of numbers in [0, 1]; a scalar for one
        matrix.

    Raises:
        AbsentClassError: a class is absent from the truth of some matrix and `absent` is "error".
        ValueError: not square matrices, a count that is negative or not finite, a matrix without
            any clip, or an unknown `absent`.
    """
    matrix = _checked_matrix(matrix)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    truth, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
    present = _present(truth, absent)
    # Row sum + column sum = 2TP + FN + FP.
    f1 = _ratio(2 * hits, truth + predicted, 0.0)
    recall = _ratio(hits, truth, 0.0)
    counted = truth.shape[-1] if absent == "zero" else present.sum(axis=-1)
    occurring = (truth + predicted > 0).sum(axis=-1)
    return {
        "uf1": np.where(present, f1, 0.0).sum(axis=-1) / counted,
        "uar": recall.sum(axis=-1) / counted,
        "accuracy": hits.sum(axis=-1) / truth.sum(axis=-1),
        "macro_f1": f1.sum(axis=-1) / occurring,
    }


def uf1(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, absent: Absent = "error"
) -> float:
    """Unweighted F1: the mean over classes of 2TP / (2TP + FP + FN).

    Args:
        labels: (M,) integers in [0, num_classes), the truth.
        predictions: (M,) integers in [0, num_classes).
        num_classes: number of classes.
        absent: for a class without a clip in the truth: "error"; "skip", the mean over the classes
            present; "zero", the class counts as 0.

    Returns:
        A number in [0, 1].

    Raises:
        AbsentClassError: a class is absent from the truth and `absent` is "error".
        ValueError: as `confusion`, or an unknown `absent`.
    """
    return float(scores(confusion(labels, predictions, num_classes), absent)["uf1"])


def uar(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, absent: Absent = "error"
) -> float:
    """Unweighted average recall: the mean over classes of TP / (TP + FN).

    Arguments, return value and errors as for `uf1`.
    """
    return float(scores(confusion(labels, predictions, num_classes), absent)["uar"])


def accuracy(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> float:
    """The share of clips given their true class, in [0, 1]; errors as for `confusion`."""
    return float(scores(confusion(labels, predictions, num_classes))["accuracy"])


def macro_f1(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> float:
    """The mean F1 over the classes that occur in the truth or among the predictions.

    This is scikit-learn's `f1_score(labels, predictions, average="macro")`. The F1 of a class is
    the same 2TP / (2TP + FP + FN) as in UF1; the two differ in the classes the mean is over, so
    they are equal when every class occurs in the truth. A class that is predicted but has no clip
    in the truth counts 0 here; UF1 leaves it out under "skip". A class that occurs in neither is
    left out here; UF1 counts it 0 under "zero". Hence UF1 under "zero" <= macro-F1 <= UF1 under
    "skip".

    Arguments, return value and errors as for `confusion` and `accuracy`.
    """
    return float(scores(confusion(labels, predictions, num_classes))["macro_f1"])


def class_scores(matrix: ArrayLike, undefined: Undefined = "nan") -> ClassScores:
    """Precision, recall and F1 of each class.

    Args:
        matrix: (C, C) integer counts, row = truth, column = prediction.
        undefined: what a score that is 0/0 counts. Precision is 0/0 for a class that is never
            predicted, recall for one without a clip in the truth, F1 for one that is neither.

    Returns:
        Four arrays of C.

    Raises:
        UndefinedScoreError: a score is 0/0 and `undefined` is "error"; names every such class.
        ValueError: not one square matrix of integers, a negative count, a matrix without any clip,
            or an unknown `undefined`.
    """
    if undefined not in ("error", "nan", "zero"):
        raise ValueError(f'undefined must be "error", "nan" or "zero", got {undefined!r}')
    matrix = _checked_matrix(matrix)
    if matrix.ndim != 2 or matrix.dtype.kind not in "iu":
        raise ValueError(
            f"matrix must be one (C, C) integer array, got {matrix.shape} {matrix.dtype}"
        )
    hits, clips, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    terms = {
        "precision": (hits, predicted),
        "recall": (hits, clips),
        "F1": (2 * hits, clips + predicted),
    }
    if undefined == "error":
        _refuse_undefined({name: below for name, (_, below) in terms.items()})
    fill = 0.0 if undefined == "zero" else np.nan
    return ClassScores(
        *(_ratio(above, below, fill) for above, below in terms.values()), clips.astype(np.int64)
    )


def _refuse_undefined(denominators: dict[str, np.ndarray]) -> None:
    found = [
        f"{name} of class {', '.join(str(index) for index in np.flatnonzero(below == 0))}"
        for name, below in denominators.items()
        if (below == 0).any()
    ]
    if found:
        raise UndefinedScoreError(
            f"Not defined (0/0): {'; '.join(found)}. Precision needs a prediction of the class, "
            "recall a clip of it in the truth, F1 either. Evaluate more folds, or name a rule: "
            'undefined="nan" or undefined="zero".'
        )


def _present(truth: np.ndarray, absent: Absent) -> np.ndarray:
    """(..., C) bool: the classes that occur in the truth of each matrix."""
    if absent not in ("error", "skip", "zero"):
        raise ValueError(f'absent must be "error", "skip" or "zero", got {absent!r}')
    present = truth > 0
    if absent == "error" and not present.all():
        somewhere = ~present.reshape(-1, present.shape[-1]).all(axis=0)
        missing = ", ".join(str(index) for index in np.flatnonzero(somewhere))
        raise AbsentClassError(
            f"No clip of the truth has class {missing}, so the mean over all {truth.shape[-1]} "
            "classes is not defined. Evaluate more folds, or name a rule: "
            'absent="skip" (mean over the classes present) or absent="zero" (an absent class '
            "counts as 0)."
        )
    return present


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float) -> np.ndarray:
    """`above / below` in float64, and `otherwise` where `below` is 0."""
    result = np.full(below.shape, otherwise)
    return np.divide(above, below, out=result, where=below > 0)


def _checked_matrix(matrix: ArrayLike) -> np.ndarray:
    matrix = np.asarray(matrix)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(f"matrix must have shape (..., C, C), got {matrix.shape}")
    if matrix.dtype.kind not in "iuf":
        raise ValueError(f"matrix must hold numbers, got {matrix.dtype}")
    if not (np.isfinite(matrix) & (matrix >= 0)).all():
        raise ValueError("matrix holds a count that is negative or not finite")
    if not (matrix.sum(axis=(-2, -1)) > 0).all():
        raise ValueError("matrix holds no clips: there is nothing to score")
    return matrix


def _class_indices(name: str, values: ArrayLike, num_classes: int) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim == 0:
        raise ValueError(f"{name} must have an axis of clips, got a single number")
    if array.size == 0:
        raise ValueError(f"{name} is empty: there is nothing to score")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    bad = (array < 0) | (array >= num_classes)
    if bad.any():
        raise ValueError(f"{name} holds {array[bad][0]}, expected 0 to {num_classes - 1}")
    return array.astype(np.int64)
