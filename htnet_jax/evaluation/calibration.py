"""Does a probability of 0.8 come true 80 times in 100? And the temperature that mends it.

The reliability diagram, the expected calibration error over 15 bins and temperature scaling are
from Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017. Ours is
that a run's temperatures are fitted on its inner folds' validation subjects, one for each fold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.selection import Selected, Selection

BINS = 15
"""Bins of the calibration error in the tables of Guo et al. 2017."""

TEMPERATURES = (0.05, 20.0)
"""The lowest and highest temperature that `fit_temperature` returns.

A choice of ours, so that a few well separated validation clips cannot turn every probability into
0 or 1. Guo et al. 2017 find temperatures between about 1 and 3.
"""

PRIOR = 1.0
"""Weight of the normal prior of 1/T (mean 1, deviation 1) in `temperatures`; less than one clip.

It matters where all validation clips of a fold are right: the likelihood alone would call the model
certain.
"""

# Rows of float32 probabilities add up to 1 within about 1e-6; anything worse is another mistake.
_SUM_TOLERANCE = 1e-5
# Halvings of the interval of log(T), which is 6 wide: T has a relative error of about 5e-12.
_HALVINGS = 40


class Reliability(NamedTuple):
    """How often the predicted class is right, by the probability the model gave it.

    Attributes:
        edges: (bins + 1,) float64 from 0 to 1; bin i holds edges[i] < probability <= edges[i + 1].
        confidence: (bins,) float64, mean probability of the predicted class; NaN in an empty bin.
        accuracy: (bins,) float64, share of the clips that are right; NaN in an empty bin.
        count: (bins,) int64, the clips in the bin.
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def softmax(logits: ArrayLike) -> np.ndarray:
    """The probabilities that belong to logits.

    Args:
        logits: (..., C) finite numbers.

    Returns:
        (..., C) float64, each row adds up to 1.

    Raises:
        ValueError: no class axis, or a logit that is not finite.
    """
    return np.exp(_log_softmax(_checked_logits(logits)))


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> Reliability:
    """Groups the clips by the probability of their predicted class, in bins of equal width.

    Args:
        probabilities: (M, C), each row adds up to 1. The predicted class is the most probable one
            (of equals: the lowest).
        labels: (M,) integers in [0, C), the truth.
        bins: number of bins.

    Returns:
        The bins; a probability on an edge belongs to the bin below it, as in Guo et al. 2017.

    Raises:
        ValueError: wrong shapes, no clips, rows that are no probabilities, labels out of range,
            or fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = _checked_labels("probabilities", probabilities, labels)
    # Written so that NaN fails too.
    sound = (probabilities >= 0) & (probabilities <= 1 + _SUM_TOLERANCE)
    if not (sound.all() and (np.abs(probabilities.sum(axis=1) - 1) <= _SUM_TOLERANCE).all()):
        raise ValueError("probabilities must be in [0, 1] and add up to 1 in each row")
    right = probabilities.argmax(axis=1) == labels
    # Rounding may leave a float32 probability just above 1.
    highest = np.minimum(probabilities.max(axis=1), 1.0)
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.searchsorted(edges, highest, side="left") - 1
    count = np.bincount(index, minlength=bins)

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.bincount(index, weights=values, minlength=bins)
        return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)

    return Reliability(edges, mean(highest), mean(right), count.astype(np.int64, copy=False))


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS
) -> float:
    """ECE: the mean over clips of |accuracy - confidence| of the clip's bin, in [0, 1].

    Arguments and errors as for `reliability`. With few clips it is biased upwards: even a perfectly
    calibrated model has bins whose accuracy is off by chance.
    """
    table = reliability(probabilities, labels, bins)
    filled = table.count > 0
    gaps = np.abs(table.accuracy - table.confidence)[filled]
    return float(np.average(gaps, weights=table.count[filled]))


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike) -> float:
    """The mean over clips of -log(probability of the true class), in nats.

    Args:
        logits: (M, C) finite numbers.
        labels: (M,) integers in [0, C), the truth.

    Raises:
        ValueError: wrong shapes, no clips, a logit that is not finite, labels out of range.
    """
    logits = _checked_logits(logits)
    labels = _checked_labels("logits", logits, labels)
    # The 0 keeps a certain and right clip from giving -0.0.
    return 0.0 - float(_log_softmax(logits)[np.arange(labels.size), labels].mean())


def fit_temperature(logits: ArrayLike, labels: ArrayLike, *, prior: float = 0.0) -> float:
    """The temperature T that minimises the mean negative log-likelihood of softmax(logits / T).

    The likelihood is convex in 1/T (with the prior too), so its derivative is bisected. Dividing by
    T never changes the predicted class. Give clips that the model was not trained on and that are
    not scored with T: the validation subjects, never the test subject.

    Args:
        logits: (V, C) finite numbers.
        labels: (V,) integers in [0, C), the truth.
        prior: how strongly 1/T is held near 1: prior / 2 * (1/T - 1)^2 is added to the sum of the
            clips' negative log-likelihoods. 0: not at all.

    Returns:
        T within `TEMPERATURES`. Without a prior: the lower bound where every clip is right (a lower
        T would always be better), the upper bound where the logits say less than nothing about the
        truth (no T is high enough). 1 where the logits of each clip are all equal, because then T
        changes nothing.

    Raises:
        ValueError: as `negative_log_likelihood`.
    """
    logits = _checked_logits(logits)
    labels = _checked_labels("logits", logits, labels)
    # Relative to the true class: the derivative by 1/T is then the mean expected logit.
    relative = logits - logits[np.arange(labels.size), labels, None]
    if not relative.any():
        return 1.0

    def slope(temperature: float) -> float:
        probabilities = np.exp(_log_softmax(relative / temperature))
        pull = prior * (1 / temperature - 1) / labels.size
        return float((probabilities * relative).sum(axis=1).mean() + pull)

    low, high = TEMPERATURES
    # A slope of 0 at the lower bound is a separated set whose tiny slope has underflowed.
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(np.sqrt(low * high))


def temperatures(predictions: Predictions, selected: Selected) -> np.ndarray | None:
    """The temperature of each seed and fold.

    It makes the validation clips of the fold's inner folds most likely (with `PRIOR`), as their
    inner models see them at the epoch that the selection takes. No clip of a test subject is used.

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
                fit_temperature(
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


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    # Relative to the largest, so that no exponential overflows.
    relative = logits - logits.max(axis=-1, keepdims=True)
    return relative - np.log(np.exp(relative).sum(axis=-1, keepdims=True))


def _checked_logits(logits: ArrayLike) -> np.ndarray:
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., C), got {logits.shape}")
    if not np.isfinite(logits).all():
        raise ValueError("logits holds NaN or infinity")
    return logits


def _checked_labels(name: str, rows: np.ndarray, labels: ArrayLike) -> np.ndarray:
    labels = np.asarray(labels)
    if rows.ndim != 2 or labels.shape != rows.shape[:1]:
        raise ValueError(
            f"{name} must have shape (M, C) and labels (M,), got {rows.shape} and {labels.shape}"
        )
    if rows.size == 0:
        raise ValueError(f"{name} is empty: there is nothing to score")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    bad = (labels < 0) | (labels >= rows.shape[1])
    if bad.any():
        raise ValueError(f"labels holds {labels[bad][0]}, expected 0 to {rows.shape[1] - 1}")
    return labels
