"""The scores of a run, and the text tables that show them."""

from __future__ import annotations

from typing import Any

import numpy as np

from htnet_jax.errors import UserError
from htnet_jax.evaluation import metrics
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import Selection, select

COMPOSITE = "composite"
"""The name of the row over all sources together ("Full" in the papers)."""

SOURCE_NAMES = {"smic": "SMIC", "casme2": "CASME II", "samm": "SAMM"}
"""How the papers write the sources of MEGC 2019, in the order of their tables."""

Summary = dict[str, dict[str, dict[str, Any]]]
"""Selection -> "composite" or source -> its scores; ready for JSON."""

_ABSENT_NOTE = (
    "* mean over the classes present only, not comparable with a full run: no clip of class {}"
)


def summarize(predictions: Predictions) -> Summary:
    """Scores a run under every selection, over all clips and over each source.

    Returns:
        `{"final": {"composite": {"uf1", "uar", "accuracy", "clips"}, "<source>": {...}, ...},
        "oracle": {...}}`. Where a class has no clip in the truth, the scores are the mean over the
        classes present and the entry also holds `"absent": [class names]`.

    Raises:
        UserError: a source is called "composite".
    """
    groups = source_masks(predictions)
    summary: Summary = {}
    for selection in Selection:
        predicted, _ = select(predictions, selection)
        summary[selection.value] = {
            name: _scores(predictions, predicted, mask) for name, mask in groups.items()
        }
    return summary


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


def table(summary: Summary) -> str:
    """The summary as aligned plain text: a row a selection, each saying how its epoch was chosen.

    A score marked `*` has a footnote that names the classes absent from the truth.
    """
    groups = _groups(summary)
    rows = [
        [
            "selection",
            *(f"{display_name(group)} UF1 / UAR" for group in groups),
            "epoch selected by",
        ],
        *_rows(summary),
        ["clips", *_clip_counts(summary), ""],
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:], *footnotes(summary)])


def markdown_table(summary: Summary) -> str:
    """The summary as a Markdown table, with the same columns, labels and footnotes as `table`."""
    groups = _groups(summary)
    header = ["selection", *(f"{display_name(group)} UF1 / UAR" for group in groups)]
    header.append("epoch selected by")
    rows = [header, ["---"] * len(header), *_rows(summary), ["clips", *_clip_counts(summary), ""]]
    # A bar would end the cell; a star would start emphasis.
    escaped = [[cell.replace("|", r"\|").replace("*", r"\*") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    notes = [note.replace("*", r"\*") for note in footnotes(summary)]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def footnotes(summary: Summary) -> list[str]:
    """One line for each group with absent classes; empty when every class occurs everywhere."""
    entries = summary[Selection.FINAL.value]
    return [
        _ABSENT_NOTE.format(", ".join(entry["absent"])) + f" in {display_name(group)}"
        for group, entry in entries.items()
        if "absent" in entry
    ]


def score_cell(entry: dict[str, Any]) -> str:
    """`UF1 / UAR` with four decimals, marked `*` where a class is absent from the truth."""
    return f"{entry['uf1']:.4f} / {entry['uar']:.4f}" + ("*" if "absent" in entry else "")


def _scores(predictions: Predictions, predicted: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    labels, predicted = predictions.labels[mask], predicted[mask]
    num_classes = len(predictions.class_names)
    entry: dict[str, Any] = {
        "uf1": metrics.uf1(labels, predicted, num_classes, absent="skip"),
        "uar": metrics.uar(labels, predicted, num_classes, absent="skip"),
        "accuracy": metrics.accuracy(labels, predicted, num_classes),
        "clips": int(mask.sum()),
    }
    absent = np.setdiff1d(np.arange(num_classes), labels)
    if absent.size:
        entry["absent"] = [str(name) for name in predictions.class_names[absent]]
    return entry


def _source_order(source: str) -> tuple[int, str]:
    known = list(SOURCE_NAMES)
    return (known.index(source) if source in known else len(known), source)


def _groups(summary: Summary) -> list[str]:
    return list(summary[Selection.FINAL.value])


def _rows(summary: Summary) -> list[list[str]]:
    return [
        [name, *(score_cell(entry) for entry in entries.values()), Selection(name).description]
        for name, entries in summary.items()
    ]


def _clip_counts(summary: Summary) -> list[str]:
    return [str(entry["clips"]) for entry in summary[Selection.FINAL.value].values()]
