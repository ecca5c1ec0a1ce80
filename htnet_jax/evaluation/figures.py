"""The plots of a report, each drawn from numbers that a function of its own computes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from htnet_jax.errors import shown
from htnet_jax.evaluation import calibration, metrics
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import unique_subjects
from htnet_jax.evaluation.selection import Selected, Selection, inner_choice, oracle_choices
from htnet_jax.evaluation.summary import COMPOSITE, Run, display_name, source_masks

if TYPE_CHECKING:  # imported when used: Matplotlib takes a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by colour-blind readers too: Okabe and Ito, "Color Universal Design" (2008). Its yellow
# is left out: too pale for lines on white.
BLUE, VERMILION, *_ = COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#555555"

# A figure of 4.6 inches is 736 pixels wide: sharp on a phone, and its page stays small.
_WIDTH = 4.6
_DOTS_PER_INCH = 160
_LONGEST_NAME = 26
# Fewer epochs than this are drawn as points too.
_FEW_EPOCHS = 30
# More subjects than this leave no room for their names.
_MOST_NAMES = 40
# Share from which a cell is so dark that white is read best on it.
_DARK = 0.7
# From this many subjects on a dot is large enough for their number.
_READABLE = 3


class Drawn(NamedTuple):
    """A finished plot.

    Attributes:
        png: A PNG file.
        alt: What it shows, in words, for those who do not see it.
    """

    png: bytes
    alt: str


class Curves(NamedTuple):
    """A run over its E recorded epochs, S seeds.

    Attributes:
        epochs: `(E,)` int32, 1-based.
        final: `(S, E)` float64, UF1 over all clips if training ended there.
        oracle: `(S, E)` float64, the same for the epochs that `oracle` would have taken.
        inner: `(S * F,)` int32, the epochs that `inner` takes; empty without inner folds.
        loss: `(S, E)` float64, training loss, mean over folds.
    """

    epochs: np.ndarray
    final: np.ndarray
    oracle: np.ndarray
    inner: np.ndarray
    loss: np.ndarray


class Subject(NamedTuple):
    """How one subject's clips went.

    Attributes:
        source: The data set; several are joined by "+".
        name: The subject, told apart from others of that name.
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


def curves(predictions: Predictions) -> Curves:
    """Scores a run at each of its epochs; classes absent from the truth are skipped."""

    def uf1(predicted: np.ndarray) -> np.ndarray:
        matrices = metrics.confusions(predictions.labels, predicted, len(predictions.class_names))
        return metrics.scores(matrices)["uf1"]

    predicted = predictions.logits.argmax(axis=-1)
    best = oracle_choices(predictions)[:, :, predictions.fold]
    chosen = np.zeros(0, np.int32)
    if predictions.inner is not None:
        chosen = predictions.epochs[inner_choice(predictions).ravel()]
    return Curves(
        predictions.epochs,
        uf1(predicted),
        uf1(np.take_along_axis(predicted, best, axis=1)),
        chosen,
        predictions.train_loss.mean(axis=1, dtype=np.float64),
    )


def draw_curves(runs: Sequence[Run], mark: str = "") -> Drawn | None:
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
    figure = _new_figure(1.0 + sum(heights.values()))
    panels = figure.subplot_mosaic(
        [[name] for name in heights], sharex=True, height_ratios=list(heights.values())
    )
    alone = len(runs) == 1
    for index, (run, one) in enumerate(zip(runs, found, strict=True)):
        colour = _colour(index)
        name = "" if alone else f"{plain(run.name)}: "
        if len(one.epochs) == 1:
            panels["scores"].axhline(
                one.final.mean(),
                color=colour,
                linestyle=":",
                label=f"{name}{run.chosen('final').partition(';')[0]}",
            )
            continue
        over = VERMILION if alone else colour
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
    panels["losses"].set_xlabel("epoch", fontsize=9)
    # Epochs are whole numbers.
    panels["losses"].xaxis.get_major_locator().set_params(integer=True)
    _tidy(*panels.values())
    figure.legend(loc="outside upper left", fontsize=8, ncols=3 if alone else 2, frameon=False)
    words = [_curves_in_words(run, one) for run, one in zip(runs, found, strict=True)]
    return _drawn(figure, mark, "Learning curves. " + " ".join(words))


def subjects(predictions: Predictions, predicted: np.ndarray) -> list[Subject]:
    """Every subject's accuracy.

    Args:
        predictions: A run.
        predicted: `(S, M)` int, predicted classes under some selection.

    Returns:
        Subjects by source in the order of the tables, the best first (ties: by name).
    """
    names = unique_subjects(predictions.subjects, predictions.sources)
    right = predicted == predictions.labels
    found = []
    for name in np.unique(names):
        own = names == name
        source = "+".join(np.unique(predictions.sources[own]).tolist())
        found.append(Subject(source, str(name), int(own.sum()), right[:, own].sum(axis=1)))
    order = {source: place for place, source in enumerate(source_masks(predictions))}

    def rank(one: Subject) -> tuple[int, str, float, str]:
        return order.get(one.source, len(order)), one.source, -one.accuracy, one.name

    return sorted(found, key=rank)


def draw_subjects(
    found: Sequence[Subject], mark: str = "", chosen: str = Selection.FINAL.description
) -> Drawn:
    """Draws each subject's accuracy as a dot, a panel a source; its area is the number of clips.

    Args:
        found: From `subjects`; not empty.
        mark: A warning that is drawn below.
        chosen: How the epoch was chosen.
    """
    sources = list(dict.fromkeys(one.source for one in found))
    figure = _new_figure(0.4 + 1.75 * len(sources))
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
        axes.vlines(spots, low, high, color=BLUE, alpha=0.4, linewidth=1)
        axes.scatter(spots, shares, 8 + 72 * clips / largest, color=BLUE, alpha=0.75)
        axes.axhline(mean, color=VERMILION, linewidth=1)
        axes.set_ylim(-0.08, 1.08)
        axes.set_xlim(-0.8, len(own) - 0.2)
        axes.yaxis.set_major_formatter("{x:.0%}")
        name = display_name(source)
        axes.set_title(f"{plain(name)}: {mean:.0%} of all clips", fontsize=9.5, loc="left")
        _tidy(axes)
        if len(own) <= _MOST_NAMES:
            # What tells the subjects of one source apart: without the source, and shortened.
            short = [plain(one.name.rpartition("/")[2][-12:]) for one in own]
            axes.set_xticks(spots, short, rotation=90, fontsize=6)
        else:
            axes.set_xticks([])
        none = sum(share == 0 for share in shares)
        every = sum(share == 1 for share in shares)
        words.append(
            f"{name}: {mean:.0%} of all clips right; of {len(own)} subjects {every} have all their "
            f"clips right and {none} none."
        )
    return _drawn(figure, mark, f"Accuracy of each subject, {chosen}. " + " ".join(words))


def draw_confusion(
    matrix: ArrayLike,
    class_names: Sequence[str],
    title: str,
    seeds: int = 1,
    mark: str = "",
    chosen: str = Selection.FINAL.description,
) -> Drawn:
    """Draws a confusion matrix: a cell shows its share of the true class and its number of clips.

    Args:
        matrix: `(C, C)` counts, row = truth, summed over seeds.
        class_names: `(C,)` names, in the order of the indices.
        title: Printed above.
        seeds: Numbers of clips are divided by this.
        mark: A warning that is drawn below.
        chosen: How the epoch was chosen.
    """
    counts = np.asarray(matrix)
    # A class absent from the truth has an empty row: it stays 0, with "-" for the shares.
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    names = [plain(name) for name in class_names]
    side = 1.3 + 0.68 * len(names)
    figure = _new_figure(side, side + 0.2)
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
    axes.set_title(plain(title), fontsize=10.5)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    recalls = ", ".join(
        f"{name} {shares[index, index]:.0%}" if totals[index, 0] else f"{name} has no clip"
        for index, name in enumerate(class_names)
    )
    words = f"Confusion matrix, {chosen}, {title}. Recognised: {recalls}."
    return _drawn(figure, mark, words)


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
    scaled = calibration.scaled(predictions, selected)
    if scaled is not None:
        found["with temperature"] = of(scaled)
    return found


def draw_calibration(
    found: Mapping[str, calibration.Reliability],
    mark: str = "",
    chosen: str = Selection.FINAL.description,
) -> Drawn:
    """Draws accuracy over probability; the area of a dot is the number of clips in its bin.

    Args:
        found: From `reliabilities`.
        mark: A warning that is drawn below.
        chosen: How the epoch was chosen.
    """
    figure, axes = _square(4.4, 0.03)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="ideal")
    looks = ((BLUE, "o", "-"), (VERMILION, "s", "--"))
    words = []
    for (name, table), (colour, marker, style) in zip(found.items(), looks, strict=False):
        filled = table.count > 0
        confidence, accuracy = table.confidence[filled], table.accuracy[filled]
        count = table.count[filled]
        axes.plot(confidence, accuracy, color=colour, linestyle=style, linewidth=1, alpha=0.7)
        areas = 10 + 200 * count / count.max()
        look = {"color": colour, "marker": marker, "alpha": 0.6, "label": name}
        axes.scatter(confidence, accuracy, areas, **look)
        mean = float(np.average(confidence, weights=count))
        share = float(np.average(accuracy, weights=count))
        words.append(f"{name}: mean probability {mean:.0%}, right {share:.0%}.")
    axes.set_xlim(0, 1.03)
    axes.set_xlabel("probability of the predicted class", fontsize=9)
    axes.set_ylabel("clips predicted right", fontsize=9)
    legend = axes.legend(loc="upper left", fontsize=8.5, frameon=False)
    for handle in legend.legend_handles[1:]:
        handle.set_sizes([40])
    words.insert(0, f"Reliability of the probabilities, {chosen}.")
    return _drawn(figure, mark, " ".join(words))


def draw_intervals(runs: Sequence[Run], mark: str = "") -> Drawn:
    """Draws the headline scores over all clips with their intervals, a line a run and selection.

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
    names = metrics.HEADLINE
    markers = [f"${index}$" if index > 4 else "os^Dv"[index] for index in range(len(names))]
    shifts = np.linspace(-0.13, 0.13, len(names)) if len(names) > 1 else [0.0]
    figure = _new_figure(0.9 + 0.5 * len(rows))
    axes = figure.subplots()
    words = []
    for line, (index, run, selection, entry) in enumerate(rows):
        for score, marker, shift in zip(names, markers, shifts, strict=True):
            low, high = entry[f"{score}_interval"]
            if low is not None:
                axes.plot([low, high], [line + shift] * 2, color=_colour(index), alpha=0.6)
            axes.plot(entry[score], line + shift, marker, color=_colour(index), markersize=5)
        found = ", ".join(f"{metrics.METRICS[name].title} {entry[name]:.3f}" for name in names)
        words.append(f"{run.name}, {selection}: {found}.")
    labels = [f"{plain(run.name)}\n{name}" for _, run, name, _ in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for marker, name in zip(markers, names, strict=True):
        axes.plot([], [], marker, color=GREY, label=metrics.METRICS[name].title)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8.5, frameon=False)
    axes.set_xlabel("score, with its 95 % interval over subjects", fontsize=9)
    _tidy(axes)
    return _drawn(figure, mark, "Scores of all runs with their intervals. " + " ".join(words))


def agreement(first: Sequence[Subject], second: Sequence[Subject]) -> tuple[np.ndarray, np.ndarray]:
    """Two runs' accuracies of the same subjects.

    Args:
        first: From `subjects`, of one run.
        second: Of another run on the same clips.

    Returns:
        `(P,)` float64 twice, the accuracy of each subject under the first and the second run.

    Raises:
        ValueError: Other subjects, or with other numbers of clips.
    """
    ours, theirs = ({one.name: one for one in found} for found in (first, second))
    if {name: one.clips for name, one in ours.items()} != {
        name: one.clips for name, one in theirs.items()
    }:
        raise ValueError("the runs were tested on different subjects or clips")
    names = sorted(ours)
    return (
        np.array([ours[name].accuracy for name in names]),
        np.array([theirs[name].accuracy for name in names]),
    )


def draw_agreement(
    shares: tuple[np.ndarray, np.ndarray],
    names: tuple[str, str],
    mark: str = "",
    chosen: str = Selection.FINAL.description,
) -> Drawn:
    """Draws each subject's accuracy under one run against that under another.

    Args:
        shares: From `agreement`.
        names: The runs.
        mark: A warning that is drawn below.
        chosen: How the epochs were chosen.
    """
    # Equal on paper may differ by rounding: means over different numbers of seeds.
    points, there = np.unique(np.round(np.stack(shares, axis=1), 9), axis=0, return_counts=True)
    figure, axes = _square(4.5, 0.09)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axes.scatter(*points.T, 28 * there, color=BLUE, alpha=0.55, linewidths=0)
    for (x, y), number in zip(points, there, strict=True):
        if number >= _READABLE:
            axes.text(x, y, str(number), ha="center", va="center", fontsize=8, color="#1a1a1a")
    axes.set_xlabel(f"{plain(names[0])}: clips right", fontsize=9)
    axes.set_ylabel(f"{plain(names[1])}: clips right", fontsize=9)
    above = int(there[points[:, 1] > points[:, 0]].sum())
    below = int(there[points[:, 1] < points[:, 0]].sum())
    return _drawn(
        figure,
        mark,
        f"Accuracy of each subject, {chosen}. {names[0]} is better on {below} subjects, "
        f"{names[1]} on {above}; {int(there.sum()) - above - below} are equal.",
    )


def plain(name: object, longest: int = _LONGEST_NAME) -> str:
    """A name for a plot: printable, shortened, its dollar signs no formulas to Matplotlib."""
    short = shown(name)
    if len(short) > longest:
        short = short[: longest - 1] + "…"
    return short.replace("$", r"\$")


def _colour(index: int) -> str:
    """The colour of the `index`-th run; they start again after six."""
    return COLOURS[index % len(COLOURS)]


def _new_figure(height: float, width: float = _WIDTH) -> Figure:
    """An empty figure, sizes in inches."""
    # The figure is made without pyplot: no display, and no global list of open figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _square(height: float, margin: float) -> tuple[Figure, Axes]:
    """A panel of shares over shares: both axes from 0 % to 100 %, alike in length."""
    figure = _new_figure(height)
    axes = figure.subplots()
    axes.set_xlim(-margin, 1 + margin)
    axes.set_ylim(-margin, 1 + margin)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.0%}")
    _tidy(axes)
    return figure, axes


def _tidy(*panels: Axes) -> None:
    """A light grid, and lines at the left and below only."""
    for axes in panels:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)


def _drawn(figure: Figure, mark: str, alt: str) -> Drawn:
    """The figure, with a warning below it if there is one; the same figure gives the same bytes."""
    if mark:
        figure.supxlabel(plain(mark, 60), color=VERMILION, fontsize=9, fontweight="bold")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that Matplotlib's font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from font")
        # No software version inside.
        figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return Drawn(buffer.getvalue(), alt)


def _line(
    axes: Axes, epochs: np.ndarray, values: np.ndarray, colour: str, style: str, label: str = ""
) -> None:
    axes.plot(
        epochs,
        values.mean(axis=0),
        color=colour,
        linestyle=style,
        linewidth=1.3,
        marker="o" if len(epochs) <= _FEW_EPOCHS else None,
        markersize=2.5,
        label=label or None,
    )
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.25, linewidth=0)


def _curves_in_words(run: Run, one: Curves) -> str:
    final, oracle = one.final.mean(axis=0)[-1], one.oracle.mean(axis=0)[-1]
    if len(one.epochs) == 1:
        return f"{run.name}: {run.chosen('final')}, UF1 {final:.3f}."
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
