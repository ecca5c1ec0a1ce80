"""UF1, UAR, accuracy and confusion matrices, pooled over the clips given.

UF1 and UAR are the measures of the MEGC 2019 challenge: See, Yap, Li, Hong, Wang, *MEGC 2019 - The
Second Facial Micro-Expressions Grand Challenge*, FG 2019. Pooled over folds: give all test clips of
all folds at once, never the mean of per-fold scores.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from htnet_jax.errors import UserError

Absent = Literal["error", "skip", "zero"]
"""What a class without any clip in the truth counts: an error, nothing, or 0."""


class AbsentClassError(UserError, ValueError):
    """A class has no clip in the truth, and the caller named no rule for that."""


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
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    truth = _class_indices("labels", labels, num_classes)
    predicted = _class_indices("predictions", predictions, num_classes)
    if truth.size != predicted.size:
        raise ValueError(f"{truth.size} labels but {predicted.size} predictions")
    cells = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


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
    matrix = confusion(labels, predictions, num_classes)
    hits = np.diag(matrix)
    # Row sum + column sum = 2TP + FN + FP.
    return _mean_over_classes(2 * hits, matrix.sum(axis=0) + matrix.sum(axis=1), matrix, absent)


def uar(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, absent: Absent = "error"
) -> float:
    """Unweighted average recall: the mean over classes of TP / (TP + FN).

    Arguments, return value and errors as for `uf1`.
    """
    matrix = confusion(labels, predictions, num_classes)
    return _mean_over_classes(np.diag(matrix), matrix.sum(axis=1), matrix, absent)


def accuracy(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> float:
    """The share of clips given their true class, in [0, 1]; errors as for `confusion`."""
    matrix = confusion(labels, predictions, num_classes)
    return float(np.trace(matrix) / matrix.sum())


def _mean_over_classes(
    numerators: np.ndarray, denominators: np.ndarray, matrix: np.ndarray, absent: Absent
) -> float:
    if absent not in ("error", "skip", "zero"):
        raise ValueError(f'absent must be "error", "skip" or "zero", got {absent!r}')
    present = matrix.sum(axis=1) > 0
    if absent == "error" and not present.all():
        missing = ", ".join(str(index) for index in np.flatnonzero(~present))
        raise AbsentClassError(
            f"No clip of the truth has class {missing}, so the mean over all {len(matrix)} classes "
            'is not defined. Evaluate more folds, or name a rule: absent="skip" (mean over the '
            'classes present) or absent="zero" (an absent class counts as 0).'
        )
    # A class present in the truth has a denominator of at least 1.
    scores = numerators[present] / denominators[present]
    return float(scores.sum() / (len(matrix) if absent == "zero" else present.sum()))


def _class_indices(name: str, values: ArrayLike, num_classes: int) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: there is nothing to score")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    bad = (array < 0) | (array >= num_classes)
    if bad.any():
        raise ValueError(f"{name} holds {array[bad][0]}, expected 0 to {num_classes - 1}")
    return array.astype(np.int64)
