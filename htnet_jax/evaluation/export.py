"""Predictions as CSV, for spreadsheets and other programs."""

from __future__ import annotations

import csv
import io

from htnet_jax.evaluation import calibration, temperature
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.selection import Selection, select

# A spreadsheet takes a text that starts with one of these for a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def predictions_csv(predictions: Predictions, selection: Selection | str) -> str:
    """The predictions of a run under a selection, a row for each seed and clip.

    Columns: `clip`, `subject`, `source`, `fold`, `seed`, `truth`, `predicted` (class names),
    `correct` (1 or 0), `p_CLASS` (probability of each class, as the model gives it),
    `p_CLASS_calibrated` (the same with the fold's temperature, for a run with inner folds and a
    selection that does not look at the test subject), `selected_epoch`.

    Names are kept as they are, with one exception: a text that a spreadsheet would run as a formula
    (it starts with `= + - @`, a tab or a line break) gets an apostrophe in front, and so does one
    that starts with an apostrophe: take one leading apostrophe away to have the name.

    Args:
        predictions: A run.
        selection: One of `selection.available(predictions)`.

    Returns:
        CSV as in RFC 4180: commas, double quotes, lines that end with CR LF.

    Raises:
        ValueError: As `selection.select`.
    """
    selected = select(predictions, selection)
    names = [str(name) for name in predictions.class_names]
    probabilities = {"": calibration.softmax(selected.logits)}
    scaled = temperature.scaled(predictions, selected)
    if scaled is not None:
        probabilities["_calibrated"] = calibration.softmax(scaled)
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(
        [
            *("clip", "subject", "source", "fold", "seed", "truth", "predicted", "correct"),
            *(f"p_{name}{suffix}" for suffix in probabilities for name in names),
            "selected_epoch",
        ]
    )
    texts = [
        [_safe(str(value)) for value in values]
        for values in (
            predictions.clips,
            predictions.subjects,
            predictions.sources,
            predictions.folds[predictions.fold],
        )
    ]
    classes = [_safe(name) for name in names]
    for seed, number in enumerate(predictions.seeds.tolist()):
        for clip, (truth, predicted, fold) in enumerate(
            zip(predictions.labels, selected.predicted[seed], predictions.fold, strict=True)
        ):
            writer.writerow(
                [
                    *(column[clip] for column in texts),
                    number,
                    classes[truth],
                    classes[predicted],
                    int(truth == predicted),
                    *(f"{p:.6f}" for table in probabilities.values() for p in table[seed, clip]),
                    selected.epochs[seed, fold],
                ]
            )
    return stream.getvalue()


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith((*_FORMULA, "'")) else text
