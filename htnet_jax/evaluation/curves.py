"""Scores and losses over the epochs, and the plot of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from htnet_jax.evaluation import drawing, metrics
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.runs import Run
from htnet_jax.evaluation.selection import inner_choice, oracle_choices

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Fewer epochs than this are drawn as points too.
_FEW = 30


class Curves(NamedTuple):
    """A run over its E recorded epochs, S seeds.

    Attributes:
        epochs: `(E,)` int32, 1-based.
        final: `(S, E)` float64, UF1 over all clips had training ended there.
        oracle: `(S, E)` float64, the same for the epochs that `oracle` would have taken.
        inner: `(S * F,)` int32, the epochs that `inner` takes; empty without inner folds.
        loss: `(S, E)` float64, training loss, mean over folds.
    """

    epochs: np.ndarray
    final: np.ndarray
    oracle: np.ndarray
    inner: np.ndarray
    loss: np.ndarray


def curves(predictions: Predictions) -> Curves:
    """Scores a run at each of its epochs; classes absent from the truth are skipped."""
    predicted = predictions.logits.argmax(axis=-1)
    best = oracle_choices(predictions)[:, :, predictions.fold]
    with_best = np.take_along_axis(predicted, best, axis=1)
    chosen = np.zeros(0, np.int32)
    if predictions.inner is not None:
        chosen = predictions.epochs[inner_choice(predictions).ravel()]
    return Curves(
        predictions.epochs,
        _uf1(predictions, predicted),
        _uf1(predictions, with_best),
        chosen,
        predictions.train_loss.mean(axis=1, dtype=np.float64),
    )


def draw(runs: Sequence[Run], mark: str = "") -> drawing.Drawn | None:
    """Draws UF1 by epoch of `final` and `oracle` and the gap between, and the training loss.

    With several seeds lines are means and bands reach from the lowest to the highest. A run of one
    recorded epoch is a level line among others.

    Args:
        runs: One or several.
        mark: A warning that is drawn below it.

    Returns:
        The plot; None where no run has a second recorded epoch.
    """
    found = [curves(run.predictions) for run in runs]
    if all(len(one.epochs) == 1 for one in found):
        return None
    chosen = any(one.inner.size and len(one.epochs) > 1 for one in found)
    heights = {"scores": 3.0, **({"chosen": 0.9} if chosen else {}), "losses": 1.3}
    figure = drawing.new_figure(1.0 + sum(heights.values()))
    panels = figure.subplot_mosaic(
        [[name] for name in heights], sharex=True, height_ratios=list(heights.values())
    )
    alone = len(runs) == 1
    for index, (run, one) in enumerate(zip(runs, found, strict=True)):
        colour = drawing.colour(index)
        name = "" if alone else f"{drawing.plain(run.name)}: "
        if len(one.epochs) == 1:
            panels["scores"].axhline(
                one.final.mean(), color=colour, linestyle=":", label=f"{name}final (one epoch)"
            )
            continue
        over = drawing.VERMILION if alone else colour
        final, oracle = one.final.mean(axis=0), one.oracle.mean(axis=0)
        panels["scores"].fill_between(
            one.epochs, final, oracle, color=over, alpha=0.13, linewidth=0, label=f"{name}the gap"
        )
        _line(panels["scores"], one.epochs, one.final, colour, "-", f"{name}final")
        _line(panels["scores"], one.epochs, one.oracle, over, "--", f"{name}oracle")
        _line(panels["losses"], one.epochs, one.loss, colour, "-")
        if one.inner.size:
            bins = np.linspace(one.epochs[0], one.epochs[-1], 31)
            panels["chosen"].hist(one.inner, bins, color=colour, alpha=0.55)
    panels["scores"].set_ylim(0.0, 1.02)
    panels["scores"].set_ylabel("UF1, all clips", fontsize=9)
    if chosen:
        panels["chosen"].set_ylabel("folds whose\nepoch inner\ntakes", fontsize=8)
    panels["losses"].set_ylabel("training loss", fontsize=9)
    panels["losses"].set_ylim(bottom=0.0)
    panels["losses"].set_xlabel("had training ended after this epoch", fontsize=9)
    # Epochs are whole numbers.
    panels["losses"].xaxis.get_major_locator().set_params(integer=True)
    drawing.tidy(*panels.values())
    figure.legend(loc="outside upper left", fontsize=8, ncols=3 if alone else 2, frameon=False)
    words = [_words(run, one) for run, one in zip(runs, found, strict=True)]
    return drawing.Drawn(drawing.png(figure, mark), "Learning curves. " + " ".join(words))


def _line(
    axes: Axes, epochs: np.ndarray, values: np.ndarray, colour: str, style: str, label: str = ""
) -> None:
    marker = "o" if len(epochs) <= _FEW else None
    axes.plot(
        epochs,
        values.mean(axis=0),
        color=colour,
        linestyle=style,
        linewidth=1.3,
        marker=marker,
        markersize=2.5,
        label=label or None,
    )
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.25, linewidth=0)


def _words(run: Run, one: Curves) -> str:
    final, oracle = one.final.mean(axis=0)[-1], one.oracle.mean(axis=0)[-1]
    if len(one.epochs) == 1:
        return f"{run.name}: one epoch, UF1 {final:.3f}."
    words = (
        f"{run.name}: after epoch {one.epochs[-1]} UF1 is {final:.3f} for final and {oracle:.3f} "
        f"for oracle; the training loss goes from {one.loss.mean(axis=0)[0]:.3g} to "
        f"{one.loss.mean(axis=0)[-1]:.3g}."
    )
    if one.inner.size:
        words += (
            f" inner takes epochs {one.inner.min()} to {one.inner.max()}, "
            f"half of them {np.median(one.inner):g} or earlier."
        )
    return words


def _uf1(predictions: Predictions, predicted: np.ndarray) -> np.ndarray:
    matrices = metrics.confusions(predictions.labels, predicted, len(predictions.class_names))
    return metrics.scores(matrices)["uf1"]
