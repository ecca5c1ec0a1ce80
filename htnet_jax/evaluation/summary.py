"""The scores of a run, for every selection and every source."""

from __future__ import annotations

from typing import Any

import numpy as np

from htnet_jax.errors import UserError
from htnet_jax.evaluation import calibration, metrics, resampling, temperature
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import PROTOCOLS, people
from htnet_jax.evaluation.selection import Selected, available, select

COMPOSITE = "composite"
"""The name of the row over all sources together ("Full" in the papers)."""

SOURCE_NAMES = {
    "smic": "SMIC",
    "casme2": "CASME II",
    "samm": "SAMM",
    "casme3": "CAS(ME)^3",
    "mmew": "MMEW",
    "fourdme": "4DME",
}
"""How the papers write the data sets; those of MEGC 2019 first, in the order of its tables."""

Summary = dict[str, dict[str, dict[str, Any]]]
"""Selection -> "composite" or source -> its scores; ready for JSON."""


def summarize(predictions: Predictions) -> Summary:
    """Scores a run under every selection it allows, over all clips and over each source.

    Scores are pooled over folds (all test clips of all folds at once) for each seed, then averaged
    over seeds. A class without a clip in the truth of a group is left out of its means.

    Returns:
        `{selection: {"composite" or source: entry}}`, each entry with

        - `uf1`, `uar`, `accuracy`, `macro_f1`: means over seeds; for each of these `NAME_interval`,
          its 95 % interval over subjects (`resampling.intervals`; nulls for a single subject), and
          with several seeds `NAME_std`, the standard deviation over seeds (n - 1);
        - `clips`, `subjects`: how many;
        - `confusion`: `(C, C)` counts, row = truth, summed over seeds;
        - `per_class`: `{class: {precision, recall, f1, clips}}` of that matrix, null where
          undefined (`clips` counts each clip once);
        - `ece`, `nll`: expected calibration error and mean negative log-likelihood of the
          probabilities; with inner folds also `ece_scaled`, `nll_scaled` and `temperature` (the
          median over seeds and folds);
        - `absent`: names of the classes without a clip, where there are such.

    Raises:
        UserError: a source is called "composite".
    """
    groups = source_masks(predictions)
    summary: Summary = {}
    for selection in available(predictions):
        selected = select(predictions, selection)
        # Fitted once for all groups: the slowest part of a summary.
        found = temperature.temperatures(predictions, selected)
        summary[selection.value] = {
            name: _entry(predictions, selected, found, mask) for name, mask in groups.items()
        }
    return summary


def describe(predictions: Predictions) -> dict[str, Any]:
    """What was run: data set, protocol, folds, seeds, epochs; ready for JSON."""
    protocol = str(predictions.protocol)
    inner = predictions.inner
    return {
        "dataset": str(predictions.dataset),
        "fingerprint": str(predictions.fingerprint),
        "protocol": protocol,
        "protocol_in_words": PROTOCOLS.get(protocol, protocol),
        "folds": len(predictions.folds),
        "missing_folds": predictions.missing_folds,
        "clips": len(predictions.labels),
        "classes": predictions.class_names.tolist(),
        "seeds": predictions.seeds.tolist(),
        "recorded_epochs": len(predictions.epochs),
        "last_epoch": int(predictions.epochs[-1]),
        "inner_folds": 0 if inner is None else inner.test_logits.shape[1],
        "inner_refit": None if inner is None else bool(inner.refit),
    }


def source_masks(predictions: Predictions) -> dict[str, np.ndarray]:
    """(M,) bool of the clips of "composite" and of each source, in the order tables show them.

    Raises:
        UserError: a source is called "composite".
    """
    sources = sorted({str(source) for source in predictions.sources}, key=_source_order)
    if COMPOSITE in sources:
        raise UserError(f"A source is called {COMPOSITE!r}, the name of all sources: rename it.")
    masks = {COMPOSITE: np.ones(len(predictions.sources), dtype=bool)}
    masks.update({source: predictions.sources == source for source in sources})
    return masks


def display_name(group: str) -> str:
    """A source, or "composite", as the tables write it."""
    return SOURCE_NAMES.get(group, group)


def subject_table(
    predictions: Predictions, predicted: np.ndarray, mask: np.ndarray | None = None
) -> resampling.SubjectConfusions:
    """The confusion matrix of each person, for intervals and comparisons.

    Args:
        predictions: A run of S seeds and M clips.
        predicted: `(S, M)` int classes.
        mask: `(M,)` bool, the clips to count; all by default.
    """
    mask = np.ones(len(predictions.labels), bool) if mask is None else mask
    persons = people(predictions.subjects, predictions.sources)
    return resampling.subject_confusions(
        predictions.labels[mask],
        predicted[:, mask],
        persons[mask],
        len(predictions.class_names),
        predictions.sources[mask],
    )


def _entry(
    predictions: Predictions, selected: Selected, found: np.ndarray | None, mask: np.ndarray
) -> dict[str, Any]:
    table = subject_table(predictions, selected.predicted, mask)
    matrices = table.counts.sum(axis=1)
    of_seeds = metrics.scores(matrices)
    spans = resampling.intervals(table)
    entry: dict[str, Any] = {}
    for name in metrics.SCORES:
        entry[name] = float(of_seeds[name].mean())
        entry[f"{name}_interval"] = [_number(end) for end in spans[name]]
        if len(matrices) > 1:
            entry[f"{name}_std"] = float(of_seeds[name].std(ddof=1))
    entry |= {"clips": int(mask.sum()), "subjects": len(table.people)}
    entry |= _calibration(selected.logits[:, mask], predictions.labels[mask], "")
    if found is not None:
        scaled = temperature.scaled(predictions, selected, found)
        entry |= _calibration(scaled[:, mask], predictions.labels[mask], "_scaled")
        entry["temperature"] = float(np.median(found[:, np.unique(predictions.fold[mask])]))
    entry["confusion"] = matrices.sum(axis=0).tolist()
    entry["per_class"] = _per_class(predictions, matrices)
    absent = np.setdiff1d(np.arange(len(predictions.class_names)), predictions.labels[mask])
    if absent.size:
        entry["absent"] = predictions.class_names[absent].tolist()
    return entry


def _calibration(logits: np.ndarray, labels: np.ndarray, suffix: str) -> dict[str, float]:
    """ECE and NLL, means over seeds."""
    errors = [
        calibration.expected_calibration_error(calibration.softmax(one), labels) for one in logits
    ]
    likelihoods = [calibration.negative_log_likelihood(one, labels) for one in logits]
    return {
        f"ece{suffix}": float(np.mean(errors)),
        f"nll{suffix}": float(np.mean(likelihoods)),
    }


def _per_class(predictions: Predictions, matrices: np.ndarray) -> dict[str, dict[str, Any]]:
    of_classes = metrics.class_scores(matrices.sum(axis=0), undefined="nan")
    clips = matrices[0].sum(axis=1)
    return {
        str(name): {
            "precision": _number(of_classes.precision[index]),
            "recall": _number(of_classes.recall[index]),
            "f1": _number(of_classes.f1[index]),
            "clips": int(clips[index]),
        }
        for index, name in enumerate(predictions.class_names)
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)


def _source_order(source: str) -> tuple[int, str]:
    known = list(SOURCE_NAMES)
    return (known.index(source) if source in known else len(known), source)
