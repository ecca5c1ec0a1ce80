"""The plots of a report, as PNG bytes. Matplotlib is imported only when one is drawn."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from htnet_jax.evaluation import metrics
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import Selection, select

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FINAL_COLOUR = "#1f5fa8"
_ORACLE_COLOUR = "#b4540a"
_DOTS_PER_INCH = 160


def confusion_png(
    labels: np.ndarray,
    predicted: np.ndarray,
    class_names: list[str],
    title: str,
) -> bytes:
    """Draws a confusion matrix: a cell shows its share of the true class and its number of clips.

    Args:
        labels: (M,) int, the truth.
        predicted: (M,) int.
        class_names: (C,) names, in the order of the indices.
        title: printed above.

    Returns:
        A PNG file.
    """
    counts = metrics.confusion(labels, predicted, len(class_names))
    # A class absent from the truth has an empty row: it stays 0, with "-" for the shares.
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    names = [_plain(name) for name in class_names]

    side = 1.6 + 0.72 * len(names)
    figure = _new_figure(side + 0.2, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(*counts.shape):
        share = f"{shares[row, column]:.0%}" if totals[row, 0] else "-"
        axes.text(
            column,
            row,
            f"{share}\n{counts[row, column]}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if shares[row, column] > 0.55 else "#1a1a1a",
        )
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.set_title(_plain(title), fontsize=11)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _png(figure)


def learning_curve_png(predictions: Predictions) -> bytes:
    """Draws composite UF1 of each epoch's predictions, the oracle's level, and the training loss.

    A class absent from the truth is skipped, as in the tables.

    Returns:
        A PNG file.
    """
    num_classes = len(predictions.class_names)
    curve = [
        metrics.uf1(predictions.labels, predicted, num_classes, absent="skip")
        for predicted in predictions.logits.argmax(axis=-1)
    ]
    oracle_labels, _ = select(predictions, Selection.ORACLE)
    oracle = metrics.uf1(predictions.labels, oracle_labels, num_classes, absent="skip")

    figure = _new_figure(6.4, 5.2)
    scores, losses = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    # A single recorded epoch is a point, not a line.
    marker = "o" if len(curve) <= 30 else None
    scores.plot(
        predictions.epochs,
        curve,
        color=_FINAL_COLOUR,
        marker=marker,
        markersize=3,
        label="all folds at this epoch (its last point is 'final')",
    )
    scores.axhline(
        oracle,
        color=_ORACLE_COLOUR,
        linestyle="--",
        label="oracle: selected on the test subject;\nfor comparison with published tables only",
    )
    scores.set_ylim(0.0, 1.02)
    scores.set_ylabel("composite UF1")
    scores.legend(fontsize=8, loc="lower right", framealpha=0.9)
    losses.plot(
        predictions.epochs,
        predictions.train_loss.mean(axis=0),
        color="#444444",
        marker=marker,
        markersize=3,
    )
    losses.set_ylabel("training loss\n(mean over folds)")
    losses.set_ylim(bottom=0.0)
    losses.set_xlabel("epoch")
    # Epochs are whole numbers.
    losses.xaxis.get_major_locator().set_params(integer=True)
    for axes in (scores, losses):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches."""
    # The figure is made without pyplot: no display, and no global list of open figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No software version inside: the same predictions give the same bytes.
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _plain(text: str) -> str:
    """`text` with its dollar signs kept, which Matplotlib would read as formulas."""
    return text.replace("$", r"\$")
