"""How well the nearest sentence describes a clip: which action units the final model reads off it.

A clip's nearest sentence is looked for among the sets of units that occur in its fold's training
clips, as for a clip of somebody new. A clip whose own set does not occur there cannot be recalled:
it counts as missed, and the share of such clips is told. Clips whose units are not known are left
out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from htnet_jax.evaluation import statistics
from htnet_jax.evaluation.metrics import Counts
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import unique_subjects

TOP = (1, 5)
"""Recall is told among so many nearest sentences."""

SCORES: dict[str, str] = {
    **{f"recall_at_{top}": f"recall@{top}" for top in TOP},
    "unit_macro_f1": "macro-F1 of units",
}
"""Key of a score -> how tables write it."""

PERMUTATIONS = 1000
"""How often the true sets are permuted among the clips for the level of chance."""


def ranking(similarities: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The allowed sets of each clip, the nearest first.

    Args:
        similarities: `(..., M, D)` float.
        allowed: `(M, D)` bool, the sets to choose from.

    Returns:
        `(..., M, D)` int64, indices of sets; -1 behind the last allowed one. Of equally near sets
        the first comes first.
    """
    order = np.argsort(-np.where(allowed, similarities, -np.inf), axis=-1, kind="stable")
    return np.where(np.arange(allowed.shape[-1]) < allowed.sum(axis=-1)[:, None], order, -1)


def in_words(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The units of each test clip and of the sentence nearest to it.

    Returns:
        None for a run without similarities. Else the clips' own units, `(M,)` str, empty where they
        are not known; those of the nearest sentence under each seed, `(S, M)` str; and by the mean
        similarity over seeds, `(M,)` str.
    """
    described = predictions.described
    if described is None:
        return None
    truth = np.where(described.truth < 0, "", described.sets[described.truth])
    allowed = described.trained[predictions.fold]
    each, mean = (
        described.sets[ranking(similarities, allowed)[..., 0]]
        for similarities in (described.similarities, described.similarities.mean(axis=0))
    )
    return truth, each, mean


def units_of(sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which units each set has.

    Args:
        sets: `(D,)` str, as `Described.sets`.

    Returns:
        `(U,)` int64, all units that occur, ascending; and `(D, U)` bool.
    """
    split = [[int(unit) for unit in str(one).split("+") if unit != "0"] for one in sets]
    units = np.unique([unit for one in split for unit in one]).astype(np.int64)
    return units, np.array([np.isin(units, one) for one in split]).reshape(len(sets), -1)


def summarize(predictions: Predictions) -> dict[str, Any] | None:
    """Scores the descriptions of a run's test clips, over all folds together.

    Returns:
        None for a run without similarities, or without a test clip whose units are known. Else,
        ready for JSON,

        - for each NAME of `SCORES`: `NAME`, mean over seeds; `NAME_interval`, its 95 % interval
          over subjects (`statistics.bootstrap`; nulls for a single subject); with several seeds
          `NAME_std`; `NAME_chance` and `NAME_chance_range`, the mean and the range of 95 % of
          `PERMUTATIONS` runs in which the true sets were permuted: those of clips that can be
          recalled among themselves, and so those of the others, which stay missed.
          `recall_at_K`: share of clips whose own set is among the K nearest. `unit_macro_f1`: F1 of
          each unit, present or not in the nearest set, pooled over clips; the mean over the units
          that occur in a true or a nearest set (null if none does);
        - `clips`, `subjects`: how many are scored; `clips_without_units`: how many are not;
        - `sets`: distinct sets among the scored clips; `unseen`: the share of scored clips whose
          set no training clip of their fold has;
        - `positives`: clips of the same set that a training clip finds in a batch, itself among
          them: expected, mean over folds;
        - `permutations`.
    """
    if predictions.described is None or (predictions.described.truth < 0).all():
        return None
    described = predictions.described
    known = described.truth >= 0
    truth = described.truth[known]
    allowed = described.trained[predictions.fold[known]]
    order = ranking(described.similarities[:, known], allowed)
    _, has = units_of(described.sets)
    names = unique_subjects(predictions.subjects, predictions.sources)[known]
    subjects, owner = np.unique(names, return_inverse=True)
    seen = allowed[np.arange(len(truth)), truth]
    of_clips = _counts(truth, order, has, seen)
    counts = np.zeros((len(subjects), *of_clips.shape[1:]))
    np.add.at(counts, owner, of_clips)
    clips = np.bincount(owner)
    sources = predictions.sources[known]
    strata = np.array(["+".join(np.unique(sources[owner == i])) for i in range(len(subjects))])
    values = _scores(counts.sum(axis=0)[None], np.array([len(truth)]))[0]
    ends = statistics.bootstrap(
        lambda weights: _scores(
            np.tensordot(weights.astype(np.float64), counts, 1), weights @ clips
        ).mean(axis=1),
        clips,
        strata,
    )
    generator = np.random.default_rng(0)
    totals = []
    for _ in range(PERMUTATIONS):
        mixed = np.empty_like(truth)
        for kind in (seen, ~seen):
            mixed[kind] = generator.permutation(truth[kind])
        totals.append(_counts(mixed, order, has, seen).sum(axis=0))
    permuted = _scores(np.stack(totals), len(truth)).mean(axis=1)
    found: dict[str, Any] = {}
    for index, name in enumerate(SCORES):
        found[name] = _number(values[:, index].mean())
        found[f"{name}_interval"] = [_number(end) for end in ends[index]]
        if len(values) > 1:
            found[f"{name}_std"] = _number(values[:, index].std(ddof=1))
        found[f"{name}_chance"] = _number(permuted[:, index].mean())
        spread = np.quantile(permuted[:, index], [0.025, 0.975])
        found[f"{name}_chance_range"] = [_number(end) for end in spread]
    return found | {
        "clips": len(truth),
        "subjects": len(subjects),
        "clips_without_units": int((~known).sum()),
        "sets": len(np.unique(truth)),
        "unseen": float(1 - seen.mean()),
        "positives": float(described.positives.mean()),
        "permutations": PERMUTATIONS,
    }


def _counts(truth: np.ndarray, order: np.ndarray, has: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """What each clip adds to the scores.

    Args:
        truth: (M,) int, true sets.
        order: (S, M, D) int, as `ranking` gives it.
        has: (D, U) bool.
        seen: (M,) bool, the clips that can be recalled.

    Returns:
        (M, S, len(TOP) + 4U) float64: whether the set is recalled among the first, for each of
        `TOP`; then a confusion matrix (2, 2) for each unit.
    """
    hits = (order == truth[:, None]) & seen[:, None]
    recalled = np.stack([hits[..., :top].any(axis=-1) for top in TOP], axis=-1)
    ours, theirs = has[truth].astype(np.int64), has[order[..., 0]].astype(np.int64)
    cells = (2 * ours + theirs)[..., None] == np.arange(4)
    parts = (recalled, cells.reshape(*cells.shape[:2], -1))
    return np.concatenate(parts, axis=-1).swapaxes(0, 1).astype(np.float64)


def _scores(counts: np.ndarray, clips: np.ndarray | int) -> np.ndarray:
    """The scores of sums of `_counts`.

    Args:
        counts: (R, S, len(TOP) + 4U).
        clips: (R,) or a number: how many clips were added up.

    Returns:
        (R, S, K) float64, a column for each of `SCORES`; NaN where no unit occurs.
    """
    recall = counts[..., : len(TOP)] / np.reshape(clips, (-1, 1, 1))
    matrices = counts[..., len(TOP) :].reshape(*counts.shape[:2], -1, 2, 2)
    f1 = Counts(matrices).f1[..., 1]
    occurs = ~np.isnan(f1)
    number = occurs.sum(axis=-1)
    total = np.where(occurs, f1, 0.0).sum(axis=-1)
    macro = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return np.concatenate([recall, macro[..., None]], axis=-1)


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)
