"""The scores of a run, for every selection and source, and its differences to another run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from htnet_jax.errors import Problems, UserError, count, shown
from htnet_jax.evaluation import calibration, metrics, published, retrieval, statistics
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import PROTOCOLS, unique_subjects
from htnet_jax.evaluation.selection import Selected, Selection, available, select

COMPOSITE = "composite"
"""The name of the row over all sources together ("Full" in the papers)."""

# A message names this many clips.
_SHOWN = 10

FITTED_ONCE = "fitted once; nothing to select"
"""What stands for a selection where there are no epochs to select from: a baseline."""

Summary = dict[str, dict[str, dict[str, Any]]]
"""Selection -> "composite" or source -> its scores; ready for JSON."""

Differences = dict[str, dict[str, dict[str, statistics.Comparison]]]
"""Selection -> "composite" or source -> score -> first run minus second."""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """What can be shown of the clips of a run.

    Attributes:
        clips: `(N,)` str, the clips there are images of.
        flow: `(N, S, S, 3)` float32: u, v and optical strain, in any unit.
        mosaic: `(N, S, S, channels)` float32, the network's input; None where that is the flow.
        centred: Zero motion is 0. False: the flow is scaled to 0..255 by clip and channel (as
            released images are), so that the level of zero motion is unknown.
    """

    clips: np.ndarray
    flow: np.ndarray
    mosaic: np.ndarray | None
    centred: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run in a report.

    Attributes:
        name: How the report calls it; unique in a report.
        predictions: Its predictions.
        summary: Their scores, from `summarize`.
        config: Its settings, if known.
        environment: Versions, devices and times, if known.
        images: Flows and mosaics for the gallery, if at hand.
        common: Number of all its clips, where it is scored on those only that all runs have.
    """

    name: str
    predictions: Predictions
    summary: Summary
    config: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    images: Images | None = None
    common: int = 0

    @classmethod
    def of(cls, name: str, predictions: Predictions, **known: Any) -> Run:
        """A run with its scores computed; `known`: the optional attributes."""
        return cls(name, predictions, summarize(predictions), **known)

    @functools.cached_property
    def descriptions(self) -> dict[str, Any] | None:
        """How well the nearest sentences describe its clips, see `retrieval.summarize`."""
        return retrieval.summarize(self.predictions)

    def chosen(self, selection: str) -> str:
        """How the epoch of a selection was chosen, in words; a baseline has no epochs."""
        if is_fitted_once(self.predictions):
            return FITTED_ONCE
        return Selection(selection).description

    @property
    def partial(self) -> str:
        """ "PARTIAL: 2 of 68 folds" where folds are missing, else empty."""
        run = self.predictions
        if not run.missing_folds:
            return ""
        return f"PARTIAL: {len(run.folds)} of {len(run.protocol_folds)} folds"


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


def is_fitted_once(predictions: Predictions) -> bool:
    """Whether there was a single epoch, as of a baseline."""
    return predictions.epochs.tolist() == [1]


def summarize(predictions: Predictions) -> Summary:
    """Scores a run under every selection it allows, over all clips and over each source.

    Scores are pooled over folds (all test clips of all folds at once) for each seed, then averaged
    over seeds. A class without a clip in the truth of a group is left out of its means.

    Returns:
        `{selection: {"composite" or source: entry}}`, each entry with

        - for each NAME of `metrics.METRICS`: `NAME`, mean over seeds; `NAME_interval`, its 95 %
          interval over subjects (`statistics.intervals`; nulls for a single subject); with several
          seeds `NAME_std`, the standard deviation over seeds (n - 1);
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
        found = calibration.temperatures(predictions, selected)
        summary[selection.value] = {
            name: _entry(predictions, selected, found, mask) for name, mask in groups.items()
        }
    return summary


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
        taken = [Selection.FINAL if len(run.epochs) == 1 else selection for run in (first, second)]
        if taken == [Selection.FINAL] * 2 and differences:
            continue
        if not all(one in available(run) for one, run in zip(taken, (first, second), strict=True)):
            continue
        ours = select(first, taken[0]).predicted
        theirs = select(second, taken[1]).predicted[:, order]
        differences[selection.value] = {
            group: statistics.compare(
                subject_table(first, ours, mask), subject_table(first, theirs, mask)
            )
            for group, mask in masks.items()
        }
    return Pair(*names, differences)


def on_common_clips(runs: Sequence[Run]) -> list[Run]:
    """The runs, each scored on the clips that all of them have.

    Raises:
        UserError: There is no such clip.
    """
    clips = set.intersection(*(set(run.predictions.clips.tolist()) for run in runs))
    if not clips:
        names = ", ".join(shown(run.name) for run in runs)
        raise UserError(
            f"{names}: no clip that all of them have; compare runs on the same data set"
        )
    found = []
    for run in runs:
        predictions = run.predictions.of_clips(clips)
        summary = summarize(predictions)
        number = len(run.predictions.labels)
        found.append(
            dataclasses.replace(run, predictions=predictions, summary=summary, common=number)
        )
    return found


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
    known = list(published.NAMES)
    sources = sorted(
        {str(source) for source in predictions.sources},
        key=lambda name: (known.index(name) if name in known else len(known), name),
    )
    if COMPOSITE in sources:
        raise UserError(f"A source is called {COMPOSITE!r}, the name of all sources: rename it.")
    masks = {COMPOSITE: np.ones(len(predictions.sources), dtype=bool)}
    masks.update({source: predictions.sources == source for source in sources})
    return masks


def display_name(group: str) -> str:
    """A source, or "composite", as the tables write it."""
    return published.NAMES.get(group, group)


def subject_table(
    predictions: Predictions, predicted: np.ndarray, mask: np.ndarray | None = None
) -> statistics.SubjectConfusions:
    """The confusion matrix of each subject, for intervals and comparisons.

    Args:
        predictions: A run of S seeds and M clips.
        predicted: `(S, M)` int classes.
        mask: `(M,)` bool, the clips to count; all by default.
    """
    mask = np.ones(len(predictions.labels), bool) if mask is None else mask
    return statistics.subject_confusions(
        predictions.labels[mask],
        predicted[:, mask],
        unique_subjects(predictions.subjects, predictions.sources)[mask],
        len(predictions.class_names),
        predictions.sources[mask],
    )


def shortened(names: list[str], most: int) -> str:
    """The names in a list, printable, the first `most` of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def _entry(
    predictions: Predictions, selected: Selected, found: np.ndarray | None, mask: np.ndarray
) -> dict[str, Any]:
    table = subject_table(predictions, selected.predicted, mask)
    matrices = table.counts.sum(axis=1)
    spans = statistics.intervals(table)
    entry: dict[str, Any] = {}
    for name, of_seeds in metrics.scores(matrices).items():
        entry[name] = float(of_seeds.mean())
        entry[f"{name}_interval"] = [_number(end) for end in spans[name]]
        if len(matrices) > 1:
            entry[f"{name}_std"] = float(of_seeds.std(ddof=1))
    entry |= {"clips": int(mask.sum()), "subjects": len(table.subjects)}
    labels = predictions.labels[mask]
    entry |= _calibration(selected.logits[:, mask], labels, "")
    if found is not None:
        scaled = calibration.scaled(predictions, selected, found)
        entry |= _calibration(scaled[:, mask], labels, "_scaled")
        entry["temperature"] = float(np.median(found[:, np.unique(predictions.fold[mask])]))
    entry["confusion"] = matrices.sum(axis=0).tolist()
    counts = metrics.Counts(matrices.sum(axis=0))
    clips = matrices[0].sum(axis=1)
    entry["per_class"] = {
        str(name): {
            "precision": _number(counts.precision[index]),
            "recall": _number(counts.recall[index]),
            "f1": _number(counts.f1[index]),
            "clips": int(clips[index]),
        }
        for index, name in enumerate(predictions.class_names)
    }
    absent = predictions.class_names[clips == 0].tolist()
    return entry | ({"absent": absent} if absent else {})


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


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)


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
            problems.add(f"{count(len(alone), 'clip')} only in {name}", shortened(alone, _SHOWN))
    kept = np.array([clip in where for clip in ours])
    rows = np.array([where[clip] for clip in ours if clip in where], dtype=np.int64)
    for field in ("labels", "subjects", "sources"):
        differ = getattr(first, field)[kept] != getattr(second, field)[rows]
        if differ.any():
            clips = first.clips[kept][differ].tolist()
            what = f"{count(len(clips), 'clip has', 'clips have')} other {field}"
            problems.add(what, shortened(clips, _SHOWN))
    problems.raise_if_any(
        "Compare runs on one data set with one label set; finish runs that lack folds. --common "
        "compares on the clips that all runs have."
    )
    return rows
