"""The parts of a page that set scores side by side: runs, published rows, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from htnet_jax.evaluation import drawing, markup, published, tables
from htnet_jax.evaluation.comparison import Pair
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.resampling import Comparison
from htnet_jax.evaluation.runs import Run
from htnet_jax.evaluation.selection import Selection
from htnet_jax.evaluation.summary import COMPOSITE, display_name, source_masks

SCORE_NAMES = {"uf1": "UF1", "uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro-F1"}
"""How tables write the scores of `metrics.SCORES`."""

LIMIT = 0.05
"""A difference counts as shown below this p-value, the convention of the field."""

# The classes that the published rows are about.
_CLASSES = {"negative", "positive", "surprise"}


def shown_groups(predictions: Predictions) -> dict[str, str]:
    """Groups of a summary -> how to write them; a single source stands for all clips."""
    names = [name for name in source_masks(predictions) if name != COMPOSITE]
    if len(names) == 1:
        return {COMPOSITE: display_name(names[0])}
    return {COMPOSITE: display_name(COMPOSITE)} | {name: display_name(name) for name in names}


def comparable(predictions: Predictions) -> tuple[published.PublishedRow, ...]:
    """The published rows that may stand beside a run.

    They are for three classes of exactly the composite's sources, leave one subject out, all folds.
    """
    if str(predictions.protocol) != "loso" or predictions.missing_folds:
        return ()
    if set(predictions.class_names.tolist()) != _CLASSES:
        return ()
    return published.comparable_rows(predictions.sources)


def scores(runs: Sequence[Run]) -> str:
    """UF1 and UAR of every run and selection over all clips and each source, then the other scores.

    Rows are grouped by how the epoch was selected; published ones among them.
    """
    groups = shown_groups(runs[0].predictions)
    others = comparable(runs[0].predictions)
    if any(comparable(run.predictions) != others for run in runs):
        others = ()
    by_selection: dict[str, list[str]] = {}
    for selection in Selection:
        for run in runs:
            entries = run.summary.get(selection.value)
            if entries is None:
                continue
            cells = [_pair_cell(entries.get(group)) for group in groups]
            by_selection.setdefault(selection.description, []).append(
                markup.row(_name(runs, run, selection), cells, "ours")
            )
    for other in others:
        cells = [f"{other.scores[g][0]:.4f} / {other.scores[g][1]:.4f}" for g in groups]
        name = f"{other.method}, published ({other.origin})"
        by_selection.setdefault(other.selection, []).append(markup.row(name, cells))
    body = []
    for description, rows in by_selection.items():
        kind = "oracle" if description == Selection.ORACLE.description else ""
        body += [markup.group_row(f"Epoch: {description}", len(groups) + 1, kind), *rows]
    entries = runs[0].summary[Selection.FINAL.value]
    body.append(markup.row("clips", [str(entries[group]["clips"]) for group in groups]))
    table = markup.table(
        ["UF1 / UAR", *groups.values()],
        body,
        "UF1 / UAR with 95 % intervals over subjects; one group of rows for each way of selecting "
        "the epoch",
    )
    notes = [*(_absent_note(run) for run in runs), *tables.cautions(runs)]
    if others:
        notes.append(
            "Compare rows of one group only: choosing the epoch on the test subject raises the "
            "scores of any model."
        )
    shown = "".join(markup.paragraph(note, "soft") for note in notes if note)
    return markup.section("Scores", table + shown + _all_scores(runs))


def differences(
    runs: Sequence[Run],
    pairs: Sequence[Pair],
    figures: Mapping[str, drawing.Drawn],
    stems: Sequence[str],
) -> str:
    """What the paired tests say, in words, then in a table, then drawn.

    Args:
        runs: Those of the page.
        pairs: The comparisons.
        figures: The plots of the page.
        stems: For each pair the name of its plot in `figures`.
    """
    if not pairs:
        return ""
    marks = {run.name: tables.partial_mark(run) for run in runs}
    body = ""
    for pair, stem in zip(pairs, stems, strict=True):
        mark = marks[pair.first] or marks[pair.second]
        heading = f"{pair.first} and {pair.second}" + (f" ({mark})" if mark else "")
        body += f"<h3>{markup.text(heading)}</h3>"
        for name, by_group in pair.differences.items():
            words = " ".join(
                in_words(pair, SCORE_NAMES[score], by_group[COMPOSITE][score])
                for score in ("uf1", "uar")
            )
            description = Selection(name).description
            body += markup.paragraph(f"{name} ({description}): {words}")
        body += _difference_table(pair)
        if stem in figures:
            drawn = figures[stem]
            body += (
                f'<div class="plots"><figure>{markup.image(drawn.png, drawn.alt)}<figcaption '
                'class="soft">Each dot is a person, or as many as the number inside it says: '
                f"share of clips right, {markup.text(pair.first)} to the right, "
                f"{markup.text(pair.second)} upwards; final ({Selection.FINAL.description})."
                "</figcaption></figure></div>"
            )
    if len(pairs) > 1:
        body += markup.paragraph(
            f"{len(pairs)} comparisons: the p-values are not corrected for their number, so one "
            "below the limit by chance is the more likely.",
            "soft",
        )
    return markup.section("Differences between the runs", body)


def in_words(pair: Pair, score: str, found: Comparison) -> str:
    """One paired comparison as a sentence.

    A difference is called shown where the p-value is below `LIMIT` and the interval leaves out 0.

    Args:
        pair: The runs.
        score: How to write the score.
        found: Its comparison, first less second.
    """
    p = f"p {'< 0.001' if found.p_value < 0.001 else f'= {found.p_value:.3f}'}"
    # Fewer than two people: the ends are NaN, and no comparison with them holds.
    shown = found.p_value < LIMIT and (found.low > 0 or found.high < 0)
    if shown and (found.difference > 0) == (found.low > 0):
        better, worse = (
            (pair.first, pair.second) if found.difference > 0 else (pair.second, pair.first)
        )
        ends = sorted((abs(found.low), abs(found.high)))
        return (
            f"{better} is better than {worse} by {abs(found.difference):.3f} {score} "
            f"(95 % interval {ends[0]:.3f} to {ends[1]:.3f}, {p})."
        )
    interval = (
        f"95 % interval {signed(found.low)} to {signed(found.high)}"
        if found.low <= found.high
        else "no interval"
    )
    return (
        f"No difference in {score} is shown: {pair.first} less {pair.second} is "
        f"{signed(found.difference)} ({interval}, {p})."
    )


def signed(value: float) -> str:
    """A difference with its sign, +0.100 for example; a minus sign instead of a hyphen."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def interval(ends: Sequence[float | None]) -> str:
    """`0.583 to 0.699`; "no interval" for a single subject."""
    low, high = ends
    return "no interval" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def spread(entry: Mapping[str, Any], score: str) -> str:
    """` ± 0.012` over seeds; empty for one seed."""
    value = entry.get(f"{score}_std")
    return "" if value is None else f" ± {value:.3f}"


def _name(runs: Sequence[Run], run: Run, selection: Selection) -> str:
    mark = tables.partial_mark(run)
    name = "this run" if len(runs) == 1 else run.name
    return f"{name}, {selection.value}" + (f" ({mark})" if mark else "")


def _pair_cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    mark = "*" if "absent" in entry else ""
    lines = [
        f"{SCORE_NAMES[score]} {interval(entry[f'{score}_interval'])}" for score in ("uf1", "uar")
    ]
    if "uf1_std" in entry:
        lines.append(f"seeds{spread(entry, 'uf1')} /{spread(entry, 'uar')}")
    small = "".join(f"<small>{markup.text(line)}</small>" for line in lines)
    return f"{entry['uf1']:.4f} / {entry['uar']:.4f}{mark}{small}"


def _absent_note(run: Run) -> str:
    entries = run.summary[Selection.FINAL.value]
    found = [
        f"{', '.join(entries[group]['absent'])} in {label}"
        for group, label in shown_groups(run.predictions).items()
        if "absent" in entries[group]
    ]
    if not found:
        return ""
    return (
        f"* {run.name}: mean over the classes present only, not comparable with a full run: no "
        f"clip of class {'; '.join(found)}."
    )


def _all_scores(runs: Sequence[Run]) -> str:
    rows = []
    for selection in Selection:
        for run in runs:
            if selection.value not in run.summary:
                continue
            entry = run.summary[selection.value][COMPOSITE]
            cells = [
                f"{entry[score]:.4f}{spread(entry, score)}"
                f"<small>{interval(entry[f'{score}_interval'])}</small>"
                for score in SCORE_NAMES
            ]
            name = f"{_name(runs, run, selection)}: {selection.description}"
            rows.append(markup.row(name, cells, "oracle" if selection == Selection.ORACLE else ""))
    table = markup.table(["over all clips", *SCORE_NAMES.values()], rows)
    return markup.details("Accuracy and macro-F1 too", table)


def _difference_table(pair: Pair) -> str:
    rows = []
    for name, by_group in pair.differences.items():
        rows.append(
            markup.group_row(f"{name}: {Selection(name).description}", len(SCORE_NAMES) + 1)
        )
        for group, by_score in by_group.items():
            cells = [
                f"{signed(found.difference)}<small>{_ends(found)}</small>"
                f"<small>p = {found.p_value:.4f}</small>"
                for found in (by_score[score] for score in SCORE_NAMES)
            ]
            rows.append(markup.row(display_name(group), cells))
    caption = f"{pair.first} less {pair.second}, with 95 % intervals and p-values"
    return markup.details(
        "All scores, and each source",
        markup.table(["", *SCORE_NAMES.values()], rows, caption),
    )


def _ends(found: Comparison) -> str:
    if found.low <= found.high:
        return f"{signed(found.low)} to {signed(found.high)}"
    return "no interval"
