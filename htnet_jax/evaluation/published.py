"""What the papers say: how they write data sets, and their scores, from `published.json`."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, NamedTuple

from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.selection import Selection

_CONTENT: dict[str, Any] = json.loads(
    (resources.files(__package__) / "published.json").read_text(encoding="utf-8")
)

NAMES: dict[str, str] = _CONTENT["names"]
"""Data set -> how the papers write it, in the order of the tables."""


class PublishedRow(NamedTuple):
    """One published row.

    Attributes:
        method: Name of the method.
        origin: The paper it comes from.
        selection: How its epoch was selected, in words.
        scores: "composite" or a source -> name of a metric -> score.
        standing: "published"; of a row whose protocol is not known it says so.
    """

    method: str
    origin: str
    selection: str
    scores: dict[str, dict[str, float]]
    standing: str


def comparable_rows(predictions: Predictions) -> list[PublishedRow]:
    """The published rows that may stand beside a run.

    They have exactly its sources, classes and protocol, as far as these are known, and the run
    lacks no fold.
    """
    if predictions.missing_folds:
        return []
    return [
        PublishedRow(
            row["method"],
            row["origin"],
            Selection(row["selection"]).description
            if row["selection"]
            else "selection not known to us",
            {g: dict(zip(table["metrics"], v, strict=True)) for g, v in row["scores"].items()},
            "published" if table["protocol"] else "published, protocol unknown",
        )
        for table in _CONTENT["tables"]
        if table["protocol"] in (None, str(predictions.protocol))
        and (not table["classes"] or {*table["classes"]} == {*predictions.class_names.tolist()})
        and set(table["sources"]) == set(predictions.sources.tolist())
        for row in table["rows"]
    ]
