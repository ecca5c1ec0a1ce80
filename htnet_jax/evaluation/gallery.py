"""The most confident mistakes of a run, with what the network saw."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from htnet_jax import pages
from htnet_jax.evaluation import calibration, retrieval
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import unique_subjects
from htnet_jax.evaluation.selection import Selection, select
from htnet_jax.evaluation.summary import Images

MOST = 12
"""Mistakes in the gallery: what can be looked at in one go."""

MOST_A_SUBJECT = 2
"""Mistakes of one subject: one odd face would fill the gallery otherwise."""

BRIGHTEST = 98.0
"""Percentile of a clip's magnitudes from which on the flow is drawn with full brightness."""

# Side in pixels from which an image is shown; smaller ones are enlarged by a whole number.
_SIDE = 224
# Pixels between the images of one card.
_GAP = 16


class Mistake(NamedTuple):
    """A clip that was taken for another class.

    Attributes:
        clip: Its id.
        source: Its data set.
        subject: Who is on it.
        truth: Name of its class.
        predicted: Name of the class it was taken for.
        probability: Of the predicted class.
        of_truth: Probability of the true class.
        units: Its action units, such as `4+7`; empty where they are not known.
        nearest_units: Those of the nearest sentence; empty for a network without sentences.
    """

    clip: str
    source: str
    subject: str
    truth: str
    predicted: str
    probability: float
    of_truth: float
    units: str = ""
    nearest_units: str = ""


def mistakes(
    predictions: Predictions, *, most: int = MOST, most_a_subject: int = MOST_A_SUBJECT
) -> list[Mistake]:
    """The wrong predictions of `final` with the highest probability, the highest first.

    Probabilities are means over seeds; the predicted class is the most probable one. Clips of equal
    probability stay in the order of the run.

    Args:
        predictions: A run.
        most: How many at most.
        most_a_subject: How many of one subject at most.
    """
    selected = select(predictions, Selection.FINAL)
    probabilities = calibration.softmax(selected.logits).mean(axis=0)
    predicted = probabilities.argmax(axis=-1)
    highest = probabilities.max(axis=-1)
    subjects = unique_subjects(predictions.subjects, predictions.sources).tolist()
    names = predictions.class_names.tolist()
    described = retrieval.in_words(predictions)
    units, _, nearest = ([""] * len(predicted),) * 3 if described is None else described
    taken: dict[str, int] = {}
    found: list[Mistake] = []
    for index in np.argsort(-highest, kind="stable").tolist():
        truth, subject = int(predictions.labels[index]), subjects[index]
        if predicted[index] == truth or taken.get(subject, 0) >= most_a_subject:
            continue
        if len(found) == most:
            break
        taken[subject] = taken.get(subject, 0) + 1
        found.append(
            Mistake(
                str(predictions.clips[index]),
                str(predictions.sources[index]),
                str(predictions.subjects[index]),
                names[truth],
                names[predicted[index]],
                float(highest[index]),
                float(probabilities[index, truth]),
                str(units[index]),
                str(nearest[index]),
            )
        )
    return found


def draw(images: Images, index: int) -> np.ndarray:
    """Flow and, where there is one, mosaic of a clip side by side: `(h, w, 4)` uint8 RGBA."""
    vectors = images.flow[index, ..., :2]
    if not images.centred:
        # What stands still is taken to be most of the image.
        vectors = vectors - np.median(vectors, axis=(0, 1))
    # One odd pixel would leave all others dark; where hardly any moves, it is all there is to see.
    largest = float(np.percentile(np.hypot(vectors[..., 0], vectors[..., 1]), BRIGHTEST))
    parts = [pages.flow_colours(vectors, largest if largest > 0 else None)]
    if images.mosaic is not None:
        parts.append(mosaic_colours(images.mosaic[index]))
    large = [pages.enlarged(part, _SIDE) for part in parts]
    height = max(len(image) for image in large)
    row = np.zeros((height, sum(one.shape[1] + _GAP for one in large) - _GAP, 4), np.uint8)
    left = 0
    for image in large:
        bottom, right = len(image), left + image.shape[1]
        row[:bottom, left:right, :3] = image
        row[:bottom, left:right, 3] = 255
        left = right + _GAP
    return row


def mosaic_colours(channels: np.ndarray) -> np.ndarray:
    """A mosaic in colour: one channel is grey, several are red, green and blue.

    Args:
        channels: `(H, W, N)` float; of more than three channels the first three are shown.

    Returns:
        `(H, W, 3)` uint8: R, G, B; each channel's smallest value is 0 and its largest 255, a
        constant channel is 0.

    Raises:
        ValueError: Another shape.
    """
    if channels.ndim != 3 or 0 in channels.shape:
        raise ValueError(f"channels must be (H, W, N), got shape {channels.shape}")
    shown = channels[..., :3].astype(np.float64)
    low = shown.min(axis=(0, 1))
    extent = shown.max(axis=(0, 1)) - low
    scaled = np.round((shown - low) / np.where(extent > 0, extent, 1) * 255).astype(np.uint8)
    if scaled.shape[-1] == 1:
        return scaled.repeat(3, axis=-1)
    return np.pad(scaled, ((0, 0), (0, 0), (0, 3 - scaled.shape[-1])))
