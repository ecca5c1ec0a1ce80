"""Probabilities one can trust: a temperature for each fold, fitted on its inner subjects only."""

from __future__ import annotations

import numpy as np

from htnet_jax.evaluation import calibration
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.selection import Selected, Selection

# A normal prior of 1/T with mean 1 and deviation 1, worth less than a clip. It matters where all
# validation clips of a fold are right: the likelihood alone would call the model certain.
PRIOR = 1.0


def temperatures(predictions: Predictions, selected: Selected) -> np.ndarray | None:
    """The temperature of each seed and fold.

    It is the one that makes the validation clips of the fold's inner folds most likely (see also
    `PRIOR`), as their inner models see them at the epoch that the selection takes. No clip of the
    test subject is looked at.

    Args:
        predictions: A run.
        selected: Its predictions under a selection.

    Returns:
        `(S, F)` float64; None for a run without inner folds, and under `oracle`, whose epoch was
        chosen on the test subject.
    """
    inner = predictions.inner
    if inner is None or selected.selection is Selection.ORACLE:
        return None
    index = np.searchsorted(predictions.epochs, selected.epochs)
    return np.array(
        [
            [
                calibration.fit_temperature(
                    inner.logits[seed, index[seed, fold]][rows], inner.labels[rows], prior=PRIOR
                )
                for fold in range(len(predictions.folds))
                for rows in [inner.fold == fold]
            ]
            for seed in range(len(predictions.seeds))
        ]
    )


def scaled(
    predictions: Predictions, selected: Selected, found: np.ndarray | None = None
) -> np.ndarray | None:
    """The selected logits divided by their fold's temperature.

    Args:
        predictions: A run.
        selected: Its predictions under a selection.
        found: Their `temperatures`, where already at hand.

    Returns:
        `(S, M, C)` float64, or None where there is no temperature.
    """
    found = temperatures(predictions, selected) if found is None else found
    return None if found is None else selected.logits / found[:, predictions.fold, None]
