"""The most confident mistakes of a run, with what the network saw."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from htnet_jax.evaluation import calibration, colours, markup, tables
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import people
from htnet_jax.evaluation.runs import Pictures, Run
from htnet_jax.evaluation.selection import Selection, select
from htnet_jax.evaluation.summary import display_name

MOST = 12
"""Mistakes in the gallery: what can be looked at in one go."""

MOST_A_SUBJECT = 2
"""Mistakes of one person: one odd face would fill the gallery otherwise."""


BRIGHTEST = 98.0
"""Percentile of a clip's magnitudes from which on the flow is drawn with full brightness."""


class Mistake(NamedTuple):
    """A clip that was taken for another class.

    Attributes:
        clip: Its id.
        source: Its data set.
        subject: Who is on it.
        truth: Index of its class.
        predicted: Index of the class it was taken for.
        probability: Of the predicted class.
        of_truth: Probability of the true class.
    """

    clip: str
    source: str
    subject: str
    truth: int
    predicted: int
    probability: float
    of_truth: float


def mistakes(
    predictions: Predictions, *, most: int = MOST, most_a_subject: int = MOST_A_SUBJECT
) -> list[Mistake]:
    """The wrong predictions of `final` with the highest probability, the highest first.

    Probabilities are means over seeds; the predicted class is the most probable one. Clips of equal
    probability stay in the order of the run.

    Args:
        predictions: A run.
        most: How many at most.
        most_a_subject: How many of one person at most.
    """
    selected = select(predictions, Selection.FINAL)
    probabilities = calibration.softmax(selected.logits).mean(axis=0)
    predicted = probabilities.argmax(axis=-1)
    highest = probabilities.max(axis=-1)
    persons = people(predictions.subjects, predictions.sources).tolist()
    taken: dict[str, int] = {}
    found: list[Mistake] = []
    for index in np.argsort(-highest, kind="stable").tolist():
        truth = int(predictions.labels[index])
        if predicted[index] == truth or taken.get(persons[index], 0) >= most_a_subject:
            continue
        if len(found) == most:
            break
        taken[persons[index]] = taken.get(persons[index], 0) + 1
        found.append(
            Mistake(
                str(predictions.clips[index]),
                str(predictions.sources[index]),
                str(predictions.subjects[index]),
                truth,
                int(predicted[index]),
                float(highest[index]),
                float(probabilities[index, truth]),
            )
        )
    return found


def section(run: Run) -> str:
    """The gallery as HTML: pictures where there are any, else a table."""
    found = mistakes(run.predictions)
    mark = tables.partial_mark(run)
    title = "The most confident mistakes" + (f" ({mark})" if mark else "")
    intro = markup.paragraph(
        f"final ({Selection.FINAL.description}) of {run.name}: wrong predictions with the highest "
        "probability" + (" (mean over seeds)" if len(run.predictions.seeds) > 1 else "") + ", "
        f"at most {MOST_A_SUBJECT} of one person. Worth a look: is the label right, is there any "
        "motion, is it in the right place?",
        "soft",
    )
    if not found:
        return markup.section(title, markup.paragraph("There is none: every clip is right."))
    names = run.predictions.class_names
    shown = {} if run.pictures is None else _where(run.pictures)
    missing = [one for one in found if one.clip not in shown]
    body = intro
    if run.pictures is not None and len(missing) < len(found):
        cards = "".join(
            _card(one, run.pictures, shown[one.clip], names) for one in found if one.clip in shown
        )
        body += _legend(run.pictures) + f'<div class="cards">{cards}</div>'
    else:
        body += markup.paragraph(
            "No pictures: the data were not at hand. To see each clip's flow and mosaic, evaluate "
            "the run where its data set is built (--data_dir names the folder).",
            "soft",
        )
    if missing:
        body += _table(missing, names)
    return markup.section(title, body)


def draw(pictures: Pictures, index: int) -> bytes:
    """Flow and, where there is one, mosaic of a clip side by side, as a PNG file."""
    vectors = pictures.flow[index, ..., :2]
    if not pictures.centred:
        vectors = colours.without_level(vectors)
    # One odd pixel would leave all others dark; where hardly any moves, it is all there is to see.
    largest = float(np.percentile(np.hypot(vectors[..., 0], vectors[..., 1]), BRIGHTEST))
    parts = [colours.flow(vectors, largest if largest > 0 else None)]
    if pictures.mosaic is not None:
        parts.append(colours.mosaic(pictures.mosaic[index]))
    return colours.png(colours.side_by_side(*parts))


def _where(pictures: Pictures) -> dict[str, int]:
    return {clip: index for index, clip in enumerate(pictures.clips.tolist())}


def _card(one: Mistake, pictures: Pictures, index: int, names: np.ndarray) -> str:
    what = "Flow" if pictures.mosaic is None else "Flow (left) and mosaic (right)"
    picture = markup.image(draw(pictures, index), f"{what} of clip {one.clip}.")
    words = (
        f"<strong>{markup.text(names[one.predicted])}</strong> {one.probability:.0%}, but it is "
        f"<strong>{markup.text(names[one.truth])}</strong> ({one.of_truth:.0%})"
    )
    return (
        f"<figure>{picture}<figcaption>{words}<br>"
        f'<span class="soft">{markup.text(display_name(one.source))}, subject '
        f"{markup.text(one.subject)}<br>{markup.text(one.clip)}</span></figcaption></figure>"
    )


def _legend(pictures: Pictures) -> str:
    words = (
        "Flow: the colour is the direction of motion in the picture, as in the wheel (right red, "
        "down yellow-green, left cyan, up violet); black does not move, and the 2 % of a "
        "clip's pixels that move most have full brightness."
    )
    if not pictures.centred:
        words += (
            " These flows are scaled to 0..255 by clip and channel, so the level of no motion is "
            "unknown: each channel's median is taken for it. As u and v are scaled apart, "
            "directions are only roughly right."
        )
    if pictures.mosaic is not None:
        number = pictures.mosaic.shape[-1]
        words += " Mosaic: the network's input" + (
            "; its channel is grey, " if number == 1 else "; its channels are red, green, blue, "
        )
        words += "each from its smallest value (dark) to its largest."
        if number > 3:
            words += f" Only 3 of its {number} channels are shown."
    wheel = markup.image(
        colours.png(colours.wheel()),
        "Colour wheel: right red, down yellow-green, left cyan, up violet.",
    )
    return f'<div class="legend">{wheel}<div>{markup.paragraph(words, "soft")}</div></div>'


def _table(found: list[Mistake], names: np.ndarray) -> str:
    rows = [
        markup.row(
            one.clip,
            [
                markup.text(display_name(one.source)),
                markup.text(one.subject),
                markup.text(names[one.truth]),
                f"{markup.text(names[one.predicted])} ({one.probability:.0%})",
            ],
        )
        for one in found
    ]
    return markup.table(["clip", "source", "subject", "truth", "predicted"], rows)
