"""The plots of a report but for the learning curves: confusion, subjects, calibration, intervals.

Each is drawn from numbers that a function of its own computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from htnet_jax.evaluation import calibration, drawing, temperature
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import people
from htnet_jax.evaluation.runs import Run
from htnet_jax.evaluation.selection import Selected, Selection
from htnet_jax.evaluation.summary import COMPOSITE, source_masks

# More people than this leave no room for their names.
_MOST_NAMES = 40
# Share from which a cell is so dark that white is read best on it.
_DARK = 0.7
# From this many people on a dot is large enough for their number.
_READABLE = 3


class Subject(NamedTuple):
    """How one person's clips went.

    Attributes:
        source: The data set; several are joined by "+".
        name: The person, told apart from others of that name.
        clips: How many.
        correct: `(S,)` int, right clips under each seed.
    """

    source: str
    name: str
    clips: int
    correct: np.ndarray

    @property
    def accuracy(self) -> float:
        """Mean over seeds of the share of right clips."""
        return float(self.correct.mean() / self.clips)


def subjects(predictions: Predictions, predicted: np.ndarray) -> list[Subject]:
    """Every person's accuracy.

    Args:
        predictions: A run.
        predicted: `(S, M)` int, predicted classes under some selection.

    Returns:
        People by source in the order of the tables, the best first (ties: by name).
    """
    persons = people(predictions.subjects, predictions.sources)
    right = predicted == predictions.labels
    found = []
    for name in np.unique(persons):
        own = persons == name
        source = "+".join(np.unique(predictions.sources[own]).tolist())
        found.append(Subject(source, str(name), int(own.sum()), right[:, own].sum(axis=1)))
    order = {source: place for place, source in enumerate(source_masks(predictions))}

    def rank(one: Subject) -> tuple[int, str, float, str]:
        return order.get(one.source, len(order)), one.source, -one.accuracy, one.name

    return sorted(found, key=rank)


def draw_confusion(
    matrix: ArrayLike, class_names: Sequence[str], title: str, seeds: int = 1, mark: str = ""
) -> drawing.Drawn:
    """Draws a confusion matrix: a cell shows its share of the true class and its number of clips.

    Args:
        matrix: `(C, C)` counts, row = truth, summed over seeds.
        class_names: `(C,)` names, in the order of the indices.
        title: Printed above.
        seeds: Numbers of clips are divided by this.
        mark: A warning that is drawn below.
    """
    counts = np.asarray(matrix)
    # A class absent from the truth has an empty row: it stays 0, with "-" for the shares.
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    names = [drawing.plain(name) for name in class_names]
    side = 1.3 + 0.68 * len(names)
    figure = drawing.new_figure(side, side + 0.2)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(*counts.shape):
        share = f"{shares[row, column]:.0%}" if totals[row, 0] else "-"
        clips = counts[row, column] / seeds
        axes.text(
            column,
            row,
            f"{share}\n{clips:.0f}" if seeds == 1 else f"{share}\n{clips:.1f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if shares[row, column] > _DARK else "#1a1a1a",
        )
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.set_title(drawing.plain(title), fontsize=10.5)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    recalls = ", ".join(
        f"{name} {shares[index, index]:.0%}" if totals[index, 0] else f"{name} has no clip"
        for index, name in enumerate(class_names)
    )
    return drawing.Drawn(
        drawing.png(figure, mark), f"Confusion matrix, last epoch, {title}. Recognised: {recalls}."
    )


def draw_subjects(
    found: Sequence[Subject], labels: Mapping[str, str], mark: str = ""
) -> drawing.Drawn:
    """Draws every person's accuracy as a dot, a panel a source; its area is the number of clips.

    Args:
        found: From `subjects`; not empty.
        labels: Source -> how to write it; others are written as they are.
        mark: A warning that is drawn below.
    """
    sources = list(dict.fromkeys(one.source for one in found))
    figure = drawing.new_figure(0.4 + 1.75 * len(sources))
    panels = figure.subplots(len(sources), 1, squeeze=False)[:, 0]
    largest = max(one.clips for one in found)
    words = []
    for axes, source in zip(panels, sources, strict=True):
        own = [one for one in found if one.source == source]
        spots = np.arange(len(own))
        shares = [one.accuracy for one in own]
        clips = np.array([one.clips for one in own])
        mean = float(np.average(shares, weights=clips))
        low, high = ([end(one.correct) / one.clips for one in own] for end in (np.min, np.max))
        axes.vlines(spots, low, high, color=drawing.BLUE, alpha=0.4, linewidth=1)
        axes.scatter(spots, shares, 8 + 72 * clips / largest, color=drawing.BLUE, alpha=0.75)
        axes.axhline(mean, color=drawing.VERMILION, linewidth=1)
        axes.set_ylim(-0.08, 1.08)
        axes.set_xlim(-0.8, len(own) - 0.2)
        axes.yaxis.set_major_formatter("{x:.0%}")
        name = labels.get(source, source)
        axes.set_title(f"{drawing.plain(name)}: {mean:.0%} of all clips", fontsize=9.5, loc="left")
        drawing.tidy(axes)
        if len(own) <= _MOST_NAMES:
            axes.set_xticks(spots, [_short(one.name) for one in own], rotation=90, fontsize=6)
        else:
            axes.set_xticks([])
        none = sum(share == 0 for share in shares)
        every = sum(share == 1 for share in shares)
        words.append(
            f"{name}: {mean:.0%} of all clips right; of {len(own)} people {every} have all their "
            f"clips right and {none} none."
        )
    return drawing.Drawn(
        drawing.png(figure, mark), "Accuracy of each person, last epoch. " + " ".join(words)
    )


def reliabilities(
    predictions: Predictions, selected: Selected
) -> dict[str, calibration.Reliability]:
    """How often predictions are right by their probability, all seeds together.

    Returns:
        "as trained", and with inner folds also "with temperature".
    """
    labels = np.tile(predictions.labels, len(predictions.seeds))

    def of(logits: np.ndarray) -> calibration.Reliability:
        flat = logits.reshape(-1, logits.shape[-1])
        return calibration.reliability(calibration.softmax(flat), labels)

    found = {"as trained": of(selected.logits)}
    scaled = temperature.scaled(predictions, selected)
    if scaled is not None:
        found["with temperature"] = of(scaled)
    return found


def draw_calibration(found: Mapping[str, calibration.Reliability], mark: str = "") -> drawing.Drawn:
    """Draws accuracy over probability; the area of a dot is the number of clips in its bin.

    Args:
        found: From `reliabilities`.
        mark: A warning that is drawn below.
    """
    figure = drawing.new_figure(4.4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=drawing.GREY, linestyle=":", linewidth=1, label="ideal")
    looks = ((drawing.BLUE, "o", "-"), (drawing.VERMILION, "s", "--"))
    words = []
    for (name, table), (colour, marker, style) in zip(found.items(), looks, strict=False):
        filled = table.count > 0
        confidence, accuracy = table.confidence[filled], table.accuracy[filled]
        count = table.count[filled]
        axes.plot(confidence, accuracy, color=colour, linestyle=style, linewidth=1, alpha=0.7)
        axes.scatter(
            confidence,
            accuracy,
            10 + 200 * count / count.max(),
            color=colour,
            marker=marker,
            alpha=0.6,
            label=name,
        )
        mean = float(np.average(confidence, weights=count))
        share = float(np.average(accuracy, weights=count))
        words.append(f"{name}: mean probability {mean:.0%}, right {share:.0%}.")
    axes.set_xlim(0, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("probability of the predicted class", fontsize=9)
    axes.set_ylabel("clips predicted right", fontsize=9)
    drawing.tidy(axes)
    legend = axes.legend(loc="upper left", fontsize=8.5, frameon=False)
    for handle in legend.legend_handles[1:]:
        handle.set_sizes([40])
    return drawing.Drawn(
        drawing.png(figure, mark),
        "Reliability of the probabilities, last epoch. " + " ".join(words),
    )


def draw_intervals(runs: Sequence[Run], mark: str = "") -> drawing.Drawn:
    """Draws UF1 and UAR over all clips with their intervals, a line a run and selection.

    `oracle` is left out: it is no estimate of what a model can do on a new subject.

    Args:
        runs: Several.
        mark: A warning that is drawn below.
    """
    rows = [
        (index, run, name, run.summary[name][COMPOSITE])
        for index, run in enumerate(runs)
        for name in (Selection.FINAL.value, Selection.INNER.value)
        if name in run.summary
    ]
    figure = drawing.new_figure(0.9 + 0.5 * len(rows))
    axes = figure.subplots()
    words = []
    for line, (index, run, name, entry) in enumerate(rows):
        for score, marker, shift in (("uf1", "o", -0.13), ("uar", "s", 0.13)):
            low, high = entry[f"{score}_interval"]
            if low is not None:
                axes.plot([low, high], [line + shift] * 2, color=drawing.colour(index), alpha=0.6)
            axes.plot(entry[score], line + shift, marker, color=drawing.colour(index), markersize=5)
        words.append(f"{run.name}, {name}: UF1 {entry['uf1']:.3f}, UAR {entry['uar']:.3f}.")
    names = [f"{drawing.plain(run.name)}\n{name}" for _, run, name, _ in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for marker, label in (("o", "UF1"), ("s", "UAR")):
        axes.plot([], [], marker, color=drawing.GREY, label=label)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8.5, frameon=False)
    axes.set_xlabel("score, with its 95 % interval over subjects", fontsize=9)
    drawing.tidy(axes)
    return drawing.Drawn(
        drawing.png(figure, mark), "Scores of all runs with their intervals. " + " ".join(words)
    )


def agreement(first: Sequence[Subject], second: Sequence[Subject]) -> dict[str, np.ndarray]:
    """Two runs' accuracies of the same people.

    Args:
        first: From `subjects`, of one run.
        second: Of another run on the same clips.

    Returns:
        `first`, `second`: `(P,)` float64, accuracy of each person.

    Raises:
        ValueError: Other people, or with other numbers of clips.
    """
    ours, theirs = ({one.name: one for one in found} for found in (first, second))
    if {name: one.clips for name, one in ours.items()} != {
        name: one.clips for name, one in theirs.items()
    }:
        raise ValueError("the runs were tested on different people or clips")
    names = sorted(ours)
    return {
        "first": np.array([ours[name].accuracy for name in names]),
        "second": np.array([theirs[name].accuracy for name in names]),
    }


def draw_agreement(
    shares: Mapping[str, np.ndarray], names: tuple[str, str], mark: str = ""
) -> drawing.Drawn:
    """Draws each person's accuracy under one run against that under another.

    Args:
        shares: From `agreement`.
        names: The runs.
        mark: A warning that is drawn below.
    """
    # Equal on paper may differ by rounding: means over different numbers of seeds.
    points, people_there = np.unique(
        np.round(np.stack([shares["first"], shares["second"]], axis=1), 9),
        axis=0,
        return_counts=True,
    )
    figure = drawing.new_figure(4.5)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=drawing.GREY, linestyle=":", linewidth=1)
    axes.scatter(*points.T, 28 * people_there, color=drawing.BLUE, alpha=0.55, linewidths=0)
    for (x, y), number in zip(points, people_there, strict=True):
        if number >= _READABLE:
            axes.text(x, y, str(number), ha="center", va="center", fontsize=8, color="#1a1a1a")
    axes.set_xlim(-0.09, 1.09)
    axes.set_ylim(-0.09, 1.09)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.0%}")
    axes.set_xlabel(f"{drawing.plain(names[0])}: clips right", fontsize=9)
    axes.set_ylabel(f"{drawing.plain(names[1])}: clips right", fontsize=9)
    drawing.tidy(axes)
    above = int(people_there[points[:, 1] > points[:, 0]].sum())
    below = int(people_there[points[:, 1] < points[:, 0]].sum())
    return drawing.Drawn(
        drawing.png(figure, mark),
        f"Accuracy of each person, last epoch. {names[0]} is better on {below} people, {names[1]} "
        f"on {above}; {int(people_there.sum()) - above - below} are equal.",
    )


def _short(name: str) -> str:
    """What tells people of one source apart: without the source, and shortened."""
    return drawing.plain(name.rpartition("/")[2][-12:])
