"""Scores from confusion matrices, pooled over the clips given.

UF1 and UAR are the measures of the MEGC 2019 challenge: See, Yap, Li, Hong, Wang, *MEGC 2019 - The
Second Facial Micro-Expressions Grand Challenge*, FG 2019. Pooled over folds: give all test clips of
all folds at once, never the mean of per-fold scores.

A new score is an entry of `METRICS`, and nothing else: metrics.json, intervals, comparisons, tables
and pages go through that table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from htnet_jax.errors import UserError

Absent = Literal["error", "skip", "zero"]
"""What a class without any clip in the truth counts: an error, nothing, or 0."""


class AbsentClassError(UserError, ValueError):
    """A class has no clip in the truth, and the caller named no rule for that."""


@dataclass(frozen=True)
class Counts:
    """One confusion matrix or many, as the functions of `METRICS` take them; checked.

    ValueError: not square matrices, a count that is negative or not finite, or a matrix without any
    clip.

    Attributes:
        matrix: (..., C, C) counts, row = truth, column = prediction; integers, or floats where the
            clips are weighted.
    """

    matrix: np.ndarray

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix)
        object.__setattr__(self, "matrix", matrix)
        if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
            raise ValueError(f"matrix must have shape (..., C, C), got {matrix.shape}")
        if matrix.dtype.kind not in "iuf":
            raise ValueError(f"matrix must hold numbers, got {matrix.dtype}")
        if not (np.isfinite(matrix) & (matrix >= 0)).all():
            raise ValueError("matrix holds a count that is negative or not finite")
        if not (matrix.sum(axis=(-2, -1)) > 0).all():
            raise ValueError("matrix holds no clips: there is nothing to score")

    @cached_property
    def hits(self) -> np.ndarray:
        """(..., C): clips of each class that were given it."""
        return np.diagonal(self.matrix, axis1=-2, axis2=-1)

    @cached_property
    def truth(self) -> np.ndarray:
        """(..., C): clips of each class."""
        return self.matrix.sum(axis=-1)

    @cached_property
    def predicted(self) -> np.ndarray:
        """(..., C): clips that were given each class."""
        return self.matrix.sum(axis=-2)

    @cached_property
    def recall(self) -> np.ndarray:
        """(..., C) float64: TP / (TP + FN); NaN for a class without a clip in the truth."""
        return _ratio(self.hits, self.truth)

    @cached_property
    def precision(self) -> np.ndarray:
        """(..., C) float64: TP / (TP + FP); NaN for a class that is never predicted."""
        return _ratio(self.hits, self.predicted)

    @cached_property
    def f1(self) -> np.ndarray:
        """(..., C) float64: 2TP / (2TP + FP + FN); NaN for a class that occurs in neither."""
        return _ratio(2 * self.hits, self.truth + self.predicted)

    def mean_over_present(self, values: np.ndarray) -> np.ndarray:
        """The mean of (..., C) values over the classes with a clip in the truth."""
        present = self.truth > 0
        return np.where(present, values, 0.0).sum(axis=-1) / present.sum(axis=-1)


class Metric(NamedTuple):
    """A score of whole confusion matrices.

    Attributes:
        title: How tables write it.
        score: `Counts` of (..., C, C) matrices -> (...) float64, the higher the better.
        meaning: What it is, in a sentence for the page.
        headline: Shown first: in the printed tables and on top of the page. Others are in
            metrics.json and in the page's full tables.
    """

    title: str
    score: Callable[[Counts], np.ndarray]
    meaning: str
    headline: bool = False


# A class that is predicted but has no clip in the truth counts 0 in macro-F1, as in scikit-learn's
# f1_score(average="macro"), and is left out of UF1: with every class in the truth they are equal.
METRICS: dict[str, Metric] = {
    "uf1": Metric(
        "UF1",
        lambda counts: counts.mean_over_present(counts.f1),
        "mean over the classes of F1 = 2TP / (2TP + FP + FN)",
        headline=True,
    ),
    "uar": Metric(
        "UAR",
        lambda counts: counts.mean_over_present(counts.recall),
        "mean over the classes of recall = TP / (TP + FN)",
        headline=True,
    ),
    "accuracy": Metric(
        "accuracy",
        lambda counts: counts.hits.sum(axis=-1) / counts.truth.sum(axis=-1),
        "share of clips that are right",
    ),
    "macro_f1": Metric(
        "macro-F1",
        lambda counts: np.nanmean(counts.f1, axis=-1),
        "as UF1, which differs only where a class has no clip",
    ),
}
"""Name -> score, in the order tables show them. A score skips classes without a clip."""

HEADLINE = tuple(name for name, metric in METRICS.items() if metric.headline)
"""The scores that tables show first."""


def scores(matrix: ArrayLike) -> dict[str, np.ndarray]:
    """Every score of `METRICS` for one confusion matrix or many.

    Args:
        matrix: (..., C, C), see `Counts`.

    Returns:
        For each name a (...) float64 array; a scalar for one matrix.

    Raises:
        ValueError: As `Counts`.
    """
    counts = Counts(np.asarray(matrix))
    return {name: metric.score(counts) for name, metric in METRICS.items()}


def confusion(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> np.ndarray:
    """As `confusions`, for predictions of one axis: (M,) -> (C, C)."""
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
        ValueError: empty or non-integer input, different lengths, a value out of range.
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
        ValueError: as `confusions`, or an unknown `absent`.
    """
    return _of_labels("uf1", labels, predictions, num_classes, absent)


def uar(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, absent: Absent = "error"
) -> float:
    """Unweighted average recall: the mean over classes of TP / (TP + FN).

    Arguments, return value and errors as for `uf1`.
    """
    return _of_labels("uar", labels, predictions, num_classes, absent)


def _of_labels(
    name: str, labels: ArrayLike, predictions: ArrayLike, num_classes: int, absent: Absent
) -> float:
    if absent not in ("error", "skip", "zero"):
        raise ValueError(f'absent must be "error", "skip" or "zero", got {absent!r}')
    counts = Counts(confusion(labels, predictions, num_classes))
    present = counts.truth > 0
    if absent == "error" and not present.all():
        missing = ", ".join(str(index) for index in np.flatnonzero(~present))
        raise AbsentClassError(
            f"No clip of the truth has class {missing}, so the mean over all {num_classes} classes "
            "is not defined. Evaluate more folds, or name a rule: "
            'absent="skip" (mean over the classes present) or absent="zero" (an absent class '
            "counts as 0)."
        )
    value = float(METRICS[name].score(counts))
    return value * float(present.mean()) if absent == "zero" else value


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above / below` in float64, and NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)


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
