"""Which epoch of a run counts: the last one, or one chosen on training or test subjects."""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from htnet_jax.evaluation import metrics
from htnet_jax.evaluation.predictions import InnerPredictions, Predictions


class Selection(enum.StrEnum):
    """How the epoch whose predictions count is chosen."""

    FINAL = "final"
    INNER = "inner"
    ORACLE = "oracle"

    @property
    def description(self) -> str:
        """How the epoch was chosen, in the words every table and plot must carry."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Selection.FINAL: "last epoch",
    Selection.INNER: "best epoch on validation subjects, taken from the training subjects",
    Selection.ORACLE: (
        "best epoch, selected on the test subject; for comparison with published tables only"
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Selected:
    """The predictions that count under a selection.

    Attributes:
        selection: The selection.
        logits: `(S, M, C)` float32.
        predicted: `(S, M)` int64, the class with the largest logit (equal logits: the lowest).
        epochs: `(S, F)` int32, the epoch number (1-based) that each fold takes.
    """

    selection: Selection
    logits: np.ndarray
    predicted: np.ndarray
    epochs: np.ndarray


def available(predictions: Predictions) -> tuple[Selection, ...]:
    """The selections that a run allows.

    `inner` needs inner folds; where a single epoch was recorded there is nothing to select, and
    `final` is all there is.
    """
    if len(predictions.epochs) == 1:
        return (Selection.FINAL,)
    if predictions.inner is None:
        return (Selection.FINAL, Selection.ORACLE)
    return (Selection.FINAL, Selection.INNER, Selection.ORACLE)


def select(predictions: Predictions, selection: Selection | str) -> Selected:
    """The predictions of each clip under a selection.

    `final` takes the last recorded epoch.

    `inner` takes, for each seed and fold, the epoch with the best UF1 over the clips that validate
    in the fold's inner folds, pooled (classes absent from them are skipped; ties: the earliest). If
    the run says so (`inner.refit`), these are the predictions of the model that was trained on all
    training subjects for that many epochs; else those of the inner models at that epoch: the mean
    of their probabilities.

    `oracle` takes, for each seed and fold, the epoch with the most correct test clips of that fold
    (ties: the latest). HTNet's release does so: it scores the held-out subject after every epoch
    and keeps what is at least as good as the best so far. This looks at the test labels, so it
    overstates what the model can do on a new subject.

    Args:
        predictions: A run.
        selection: A `Selection` or its name, one of `available(predictions)`.

    Raises:
        ValueError: An unknown selection, or `inner` of a run without inner folds.
    """
    selection = Selection(selection)
    seeds, last = len(predictions.seeds), len(predictions.epochs) - 1
    if selection is Selection.FINAL:
        chosen = np.full((seeds, len(predictions.folds)), last)
    elif selection is Selection.INNER:
        chosen = inner_choice(predictions)
    else:
        chosen = oracle_choices(predictions)[:, -1]
    logits = _at(predictions.logits, chosen[:, predictions.fold])
    if selection is Selection.INNER and not _inner(predictions).refit:
        logits = _mean_of_models(_inner(predictions).test_logits, chosen[:, predictions.fold])
    return Selected(selection, logits, logits.argmax(axis=-1), predictions.epochs[chosen])


def inner_choice(predictions: Predictions) -> np.ndarray:
    """For each seed and fold the index (not the number) of the epoch that `inner` takes.

    Returns:
        `(S, F)` int. No label of a test clip is looked at.

    Raises:
        ValueError: A run without inner folds.
    """
    inner = _inner(predictions)
    predicted = inner.logits.argmax(axis=-1)
    chosen = np.empty((len(predictions.seeds), len(predictions.folds)), np.int64)
    for fold in range(len(predictions.folds)):
        rows = inner.fold == fold
        matrices = metrics.confusions(
            inner.labels[rows], predicted[:, :, rows], len(predictions.class_names)
        )
        chosen[:, fold] = metrics.scores(matrices)["uf1"].argmax(axis=-1)
    return chosen


def oracle_choices(predictions: Predictions) -> np.ndarray:
    """For every epoch the index of the best one so far, as `oracle` counts.

    Returns:
        `(S, E, F)` int: if training ended after epoch e, `oracle` would take index `[:, e]`.
    """
    correct = predictions.logits.argmax(axis=-1) == predictions.labels
    hits = np.stack(
        [
            correct[:, :, predictions.fold == fold].sum(axis=-1)
            for fold in range(len(predictions.folds))
        ],
        axis=-1,
    )
    index = np.arange(hits.shape[1])[:, None]
    # An epoch is a new best where none before it exceeds it: ties go to the latest.
    new = hits == np.maximum.accumulate(hits, axis=1)
    return np.maximum.accumulate(np.where(new, index, 0), axis=1)


def _inner(predictions: Predictions) -> InnerPredictions:
    if predictions.inner is None:
        raise ValueError("the run has no inner folds, so there is no selection 'inner'")
    return predictions.inner


def _at(logits: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(S, E, M, C) logits and (S, M) epoch indices -> (S, M, C)."""
    return np.take_along_axis(logits, index[:, None, :, None], axis=1)[:, 0]


def _mean_of_models(logits: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(S, K, E, M, C) logits of K models, (S, M) epoch indices -> (S, M, C) of their mean."""
    models = np.take_along_axis(logits, index[:, None, None, :, None], axis=2)[:, :, 0]
    if models.shape[1] == 1:
        return models[:, 0]
    models = models.astype(np.float64)
    models -= np.logaddexp.reduce(models, axis=-1, keepdims=True)
    mean = np.logaddexp.reduce(models, axis=1) - np.log(models.shape[1])
    return mean.astype(np.float32)
