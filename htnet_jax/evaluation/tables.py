"""The scores of runs as tables: plain text, Markdown, LaTeX; and predictions as CSV.

All are written from the same frames. Every row says how its epoch was selected, every table whether
folds are missing.
"""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from htnet_jax.errors import count, csv_cell, shown
from htnet_jax.evaluation import calibration, retrieval
from htnet_jax.evaluation.metrics import HEADLINE, METRICS
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import PROTOCOLS
from htnet_jax.evaluation.selection import Selection, select
from htnet_jax.evaluation.statistics import FEWEST
from htnet_jax.evaluation.summary import (
    COMPOSITE,
    FITTED_ONCE,
    Pair,
    Run,
    display_name,
    shortened,
)

MOST_NAMES = 20
"""A note names this many folds."""

WIDTH = 100
"""Columns of a terminal that plain tables keep to."""

# Longer names are wrapped in plain tables.
_NAME_WIDTH = 24

_TITLES = " / ".join(METRICS[name].title for name in HEADLINE)
_CHOSEN = "epoch selected by"

# Markdown's and HTML's own characters.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$&])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    # After the end of a line LaTeX would read these as its options.
    "[": "{[}",
    "*": "{*}",
} | {character: f"\\{character}" for character in "&%$#_"}


def text(runs: Sequence[Run], pairs: Sequence[Pair] = ()) -> str:
    """The scores as aligned plain text, a row a run and selection; no table is wider than `WIDTH`.

    Only the composite shows its intervals and deviations, on lines of their own. How an epoch was
    selected is a numbered note below. Columns that have no room follow in a second table.

    Args:
        runs: One or more runs.
        pairs: Comparisons of them.
    """
    labels = _labels(runs)
    scores = _scores(runs)
    for column in scores.columns[len(labels) + 1 : -1]:
        scores[column] = scores[column].str.partition("\n")[0]
    numbers: dict[str, int] = {}
    parts = [*_banner(runs), *_aligned(_numbered(scores, "selection", numbers), len(labels)), ""]
    if pairs:
        differences = _numbered(_differences(runs, pairs), "selection", numbers)
        # A score and its p-value stay together.
        parts += [*_aligned(differences, 3, 2), ""]
    chosen = [f"[{number}] {words}" for words, number in numbers.items()]
    lines = [*parts, *chosen, *notes(runs, pairs)]
    return "\n".join(piece for line in lines for piece in _folded(line))


def markdown(runs: Sequence[Run], pairs: Sequence[Pair] = ()) -> str:
    """As `text`, in Markdown, with all intervals; ends with a line break."""
    blocks = [f"**{_md(line)}**" for line in _banner(runs)]
    for frame in (_scores(runs), *([_differences(runs, pairs)] if pairs else [])):
        head = map(_one_line, frame.columns)
        rows = [head, ["---"] * frame.shape[1], *frame.itertuples(index=False)]
        cells = [["<br>".join(map(_md, str(cell).split("\n"))) for cell in row] for row in rows]
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in cells))
    return "\n\n".join([*blocks, *map(_md, notes(runs, pairs))]) + "\n"


def latex(runs: Sequence[Run], pairs: Sequence[Pair] = ()) -> str:
    r"""As `markdown`, as LaTeX `tabular`s that need only the package booktabs.

    Rows name their selection, the notes below say what it is. To be read with `\input` in a `table`
    or `table*`.
    """
    parts = ["% Needs \\usepackage{booktabs}."]
    parts += [f"\\textbf{{{_tex(line)}}}\\par" for line in _banner(runs)]
    for frame in (_scores(runs), *([_differences(runs, pairs)] if pairs else [])):
        kept = frame.drop(columns=_CHOSEN)
        rows = _cell_lines(list(kept.itertuples(index=False)))
        lines = pd.DataFrame(rows, columns=kept.columns)
        lines.columns = map(_tex, lines.columns)
        parts.append(
            lines.map(_tex)
            .to_latex(index=False, escape=False, column_format=f"@{{}}{'l' * lines.shape[1]}@{{}}")
            .strip()
        )
        parts.append("\\par\\smallskip")
    chosen = {
        name: chosen_of([run for run in runs if name in run.summary], name)
        for name in _selections(runs)
    }
    words = [f"{name}: {how}." for name, how in chosen.items()]
    parts += [f"{{\\footnotesize {_tex(note)}\\par}}" for note in words + notes(runs, pairs)]
    return "\n".join(parts) + "\n"


def predictions_csv(predictions: Predictions, selection: Selection | str) -> str:
    r"""The predictions of a run under a selection, a row for each seed and clip.

    Columns: `clip`, `subject`, `source`, `fold`, `seed`, `truth`, `predicted` (class names),
    `correct` (1 or 0), `p_CLASS` (probability of each class, as the model gives it),
    `p_CLASS_calibrated` (the same with the fold's temperature, for a run with inner folds and a
    selection that does not look at the test subject), `selected_epoch`. Of a network that learned
    sentences of action units, `final` also has `units` (the clip's own, such as `4+7`; `0`: none;
    empty: not known) and `nearest_units` (those of the nearest sentence, see `retrieval`).

    Names are kept as they are, with two exceptions: what is not printable in them is escaped as
    Python does (a line break is `\\n`), and a text that a spreadsheet would run as a formula (it
    starts with `= + - @`) gets an apostrophe in front, and so does one that starts with an
    apostrophe: take one leading apostrophe away to have the name.

    Args:
        predictions: A run.
        selection: One of `selection.available(predictions)`.

    Returns:
        CSV as in RFC 4180: commas, double quotes, lines that end with CR LF.

    Raises:
        ValueError: As `selection.select`.
    """
    run, selected = predictions, select(predictions, selection)
    classes = np.array([csv_cell(name) for name in run.class_names])
    probabilities = {"": calibration.softmax(selected.logits)}
    scaled = calibration.scaled(run, selected)
    if scaled is not None:
        probabilities["_calibrated"] = calibration.softmax(scaled)
    # Only the last epoch's models were asked.
    is_final = selected.selection is Selection.FINAL
    described = retrieval.in_words(run) if is_final else None
    parts = []
    for index, seed in enumerate(run.seeds):
        columns = {
            "clip": map(csv_cell, run.clips),
            "subject": map(csv_cell, run.subjects),
            "source": map(csv_cell, run.sources),
            "fold": map(csv_cell, run.folds[run.fold]),
            "seed": seed,
            "truth": classes[run.labels],
            "predicted": classes[selected.predicted[index]],
            "correct": (run.labels == selected.predicted[index]).astype(int),
        }
        for suffix, found in probabilities.items():
            for number, name in enumerate(run.class_names):
                columns[f"p_{shown(name)}{suffix}"] = found[index, :, number]
        columns["selected_epoch"] = selected.epochs[index, run.fold]
        if described is not None:
            columns |= {"units": described[0], "nearest_units": described[1][index]}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts).to_csv(index=False, float_format="%.6f", lineterminator="\r\n")


def notes(runs: Sequence[Run], pairs: Sequence[Pair] = ()) -> list[str]:
    """What a reader of the tables must know, a line each."""
    found = ["[low, high]: 95 % interval over subjects, bootstrap."]
    seeds = sorted({len(run.predictions.seeds) for run in runs} - {1})
    if seeds:
        numbers = " or ".join(map(str, seeds))
        found.append(f"Mean over {numbers} seeds; +-: standard deviation over seeds.")
    if pairs:
        found.append("p: two-sided, subjects' results swapped between the runs.")
    found += _stand_ins(runs, pairs) + cautions(runs)
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        found += [prefix + note for note in (*_descriptions(run), *_limits(run))]
    # A remark that holds for several runs is repeated only where it differs.
    return list(dict.fromkeys(map(shown, found)))


def _descriptions(run: Run) -> list[str]:
    """How well the nearest sentences describe the clips, in a line; none for other networks."""
    found = run.descriptions
    if found is None:
        return []
    scores = []
    for name, title in retrieval.SCORES.items():
        value, chance = (
            "-" if found[key] is None else f"{found[key]:.3f}" for key in (name, f"{name}_chance")
        )
        span = interval(found[f"{name}_interval"])
        scores.append(f"{title} {value} {span}".rstrip() + f" (chance {chance})")
    unseen = f"{found['unseen']:.0%} of {count(found['clips'], 'clip')}"
    return [
        f"Nearest sentences of the last epoch: {', '.join(scores)}; {unseen} count as missed, as "
        "no training clip has their units."
    ]


def cautions(runs: Sequence[Run]) -> list[str]:
    """What makes the numbers less certain, or the runs less comparable, than they look."""
    return _common(runs) + _other_data(runs) + _other_protocols(runs) + _rough_intervals(runs)


def values(entry: dict[str, Any]) -> str:
    """The headline scores with four decimals, marked `*` where a class is absent from the truth."""
    return " / ".join(f"{entry[name]:.4f}" for name in HEADLINE) + "*" * ("absent" in entry)


def interval(ends: Sequence[float | None], sign: str = "") -> str:
    """`[low, high]` with three decimals; empty where there is no interval.

    Args:
        ends: Two numbers; None or NaN where there is no interval.
        sign: "+" to write the sign of positive numbers.
    """
    if any(end is None or math.isnan(end) for end in ends):
        return ""
    return "[" + ", ".join(f"{end:{sign}.3f}" for end in ends) + "]"


def _selections(runs: Sequence[Run]) -> list[str]:
    return [one.value for one in Selection if any(one.value in run.summary for run in runs)]


def _groups(runs: Sequence[Run]) -> list[str]:
    """ "composite" and the sources of the runs, in the order of the summaries."""
    return list(dict.fromkeys(g for run in runs for g in run.summary[Selection.FINAL.value]))


def _labels(runs: Sequence[Run]) -> list[str]:
    """The first columns: of a single run its name is left out."""
    return ["run", "selection"] if len(runs) > 1 else ["selection"]


def _scores(runs: Sequence[Run]) -> pd.DataFrame:
    """The headline scores as text; cells hold several lines (scores, intervals, deviations).

    By selection, then by run: rows that may be compared stand together.
    """
    groups = _groups(runs)
    rows = []
    for selection in _selections(runs):
        for run in runs:
            if selection not in run.summary:
                continue
            mark = " (PARTIAL)" if run.partial else ""
            label = [shown(run.name) + mark, selection] if len(runs) > 1 else [selection + mark]
            cells = [_cell(run.summary[selection].get(group)) for group in groups]
            rows.append([*label, *cells, run.chosen(selection)])
    final = [run.summary[Selection.FINAL.value] for run in runs]
    counts = [[str(entries.get(g, {}).get("clips", "-")) for g in groups] for entries in final]
    same = all(row == counts[0] for row in counts)
    for run, row in zip(runs[:1] if same else runs, counts, strict=False):
        label = ["clips" if same else f"clips of {shown(run.name)}", ""][: len(_labels(runs))]
        rows.append([*label, *row, ""])
    titles = [f"{shown(display_name(group))}\n{_TITLES}" for group in groups]
    return pd.DataFrame(rows, columns=[*_labels(runs), *titles, _CHOSEN], dtype=object)


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    lines = [values(entry)]
    spans = [interval(entry[f"{name}_interval"]) for name in HEADLINE]
    if all(spans):
        lines.append(" / ".join(spans))
    if f"{HEADLINE[0]}_std" in entry:
        lines.append(" / ".join(f"+-{entry[f'{name}_std']:.4f}" for name in HEADLINE))
    return "\n".join(lines)


def _differences(runs: Sequence[Run], pairs: Sequence[Pair]) -> pd.DataFrame:
    """The differences in the headline scores as text, a row a pair, selection and group."""
    rows = []
    for pair in pairs:
        for selection, of_groups in pair.differences.items():
            for group, found in of_groups.items():
                row = {
                    "difference": shown(f"{pair.first} - {pair.second}"),
                    "selection": selection,
                    "group": shown(display_name(group)),
                }
                for name in HEADLINE:
                    one, title = found[name], METRICS[name].title
                    span = interval((one.low, one.high), sign="+")
                    row[title] = f"{one.difference:+.4f} {span}".rstrip()
                    row[f"p ({title})"] = f"{one.p_value:.4f}"
                both = [run for run in runs if run.name in (pair.first, pair.second)]
                rows.append(row | {_CHOSEN: chosen_of(both, selection)})
    return pd.DataFrame(rows)


def chosen_of(runs: Sequence[Run], selection: str) -> str:
    """How the epochs of several runs were chosen under a selection; baselines are named."""
    ways: dict[str, list[str]] = {}
    for run in runs:
        ways.setdefault(run.chosen(selection), []).append(run.name)
    if len(ways) == 1:
        return next(iter(ways))
    fitted = ways.pop(FITTED_ONCE)
    return f"{next(iter(ways))} ({', '.join(fitted)}: {FITTED_ONCE})"


def _numbered(frame: pd.DataFrame, column: str, numbers: dict[str, int]) -> pd.DataFrame:
    """The frame with the number of a note behind `column` instead of the note as last column.

    Args:
        frame: Its last column holds the notes, or nothing.
        column: Where the number goes.
        numbers: Note -> its number; new notes are added.
    """
    marks = [
        f" [{numbers.setdefault(words, len(numbers) + 1)}]" if words else ""
        for words in frame[_CHOSEN]
    ]
    frame = frame.drop(columns=_CHOSEN)
    frame[column] += marks
    return frame


def _folded(line: str) -> list[str]:
    """A line as lines of at most `WIDTH`; those of tables already are."""
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ") if len(line) > WIDTH else [line]


def _aligned(frame: pd.DataFrame, labels: int, unit: int = 1) -> list[str]:
    """The lines of a table, its cells flush left; a rule below its head.

    Args:
        frame: Cells of one or more lines.
        labels: The first columns, which each part repeats.
        unit: So many columns stay together.
    """
    head = [_wrapped(title) for title in frame.columns]
    body = [[*map(_wrapped, row[:labels]), *row[labels:]] for row in frame.itertuples(index=False)]
    top, rest = _cell_lines([head]), _cell_lines(body)
    widths = [max(map(len, cells)) for cells in zip(*top, *rest, strict=True)]
    first = list(range(labels))
    parts = [first]
    for start in range(labels, len(head), unit):
        longer = [*parts[-1], *range(start, start + unit)]
        if sum(widths[one] + 2 for one in longer) - 2 > WIDTH and len(parts[-1]) > labels:
            parts.append([*first, *longer[-unit:]])
        else:
            parts[-1] = longer
    lines: list[str] = []
    for number, part in enumerate(parts):
        rule = ["-" * width for width in widths]
        lines += [""] * (number > 0)
        for row in [*top, rule, *rest]:
            line = "  ".join(row[one].ljust(widths[one]) for one in part).rstrip()
            # Lines of a cell that is in another part.
            lines += [line] if line else []
    return lines


def _wrapped(cell: str) -> str:
    """A name of any length, on lines of its own."""
    lines = (textwrap.wrap(line, _NAME_WIDTH) or [""] for line in cell.split("\n"))
    return "\n".join(itertools.chain.from_iterable(lines))


def _cell_lines(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """A row for each line of the cells."""
    return [
        line
        for row in rows
        for line in itertools.zip_longest(*(cell.split("\n") for cell in row), fillvalue="")
    ]


def _banner(runs: Sequence[Run]) -> list[str]:
    """One line for each run that lacks folds; it stands above the table."""
    several = len(runs) > 1
    return [
        run.partial + (f" ({shown(run.name)})" if several else "") for run in runs if run.partial
    ]


def _stand_ins(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[str]:
    """Runs that stand in comparisons under `inner` without having that selection."""
    compared = {
        name
        for pair in pairs
        if Selection.INNER.value in pair.differences
        for name in (pair.first, pair.second)
    }
    return [
        f"{run.name}: nothing was selected in it; its final predictions are compared with the "
        "other run's inner ones."
        for run in runs
        if run.name in compared and Selection.INNER.value not in run.summary
    ]


def _common(runs: Sequence[Run]) -> list[str]:
    if not any(run.common for run in runs):
        return []
    parts = ", ".join(f"{run.name} has {run.common}" for run in runs)
    number = count(len(runs[0].predictions.labels), "clip")
    return [f"Only the {number} that all runs have are scored ({parts})."]


def _other_data(runs: Sequence[Run]) -> list[str]:
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        by_data.setdefault(str(run.predictions.fingerprint), []).append(run)
    if len(by_data) < 2:
        return []
    parts = [
        f"{', '.join(run.name for run in group)}: {group[0].predictions.dataset}"
        for group in by_data.values()
    ]
    return [f"The runs saw other data for the same clips ({'; '.join(parts)})."]


def _other_protocols(runs: Sequence[Run]) -> list[str]:
    protocols = {run.name: str(run.predictions.protocol) for run in runs}
    found = []
    if len(set(protocols.values())) > 1:
        parts = ", ".join(
            f"{name}: {PROTOCOLS.get(key, key)} ({key})" for name, key in protocols.items()
        )
        found.append(f"The runs followed different protocols, a reason to differ ({parts}).")
    if set(protocols.values()) - {"loso"}:
        found.append(
            'Where a whole data set or group of subjects is left out, "test subject" means all of '
            "the left-out clips."
        )
    return found


def _rough_intervals(runs: Sequence[Run]) -> list[str]:
    few: dict[str, None] = {}
    flat = False
    for entries in (entries for run in runs for entries in run.summary.values()):
        for group, entry in entries.items():
            # Of a single source the composite is that source.
            is_named = group != COMPOSITE or len(entries) > 2
            if is_named and 2 <= entry["subjects"] < FEWEST:
                few[display_name(group)] = None
            spans = [entry[f"{name}_interval"] for name in HEADLINE]
            flat |= any(low is not None and low == high for low, high in spans)
    found = []
    if few:
        found.append(f"Intervals of fewer than {FEWEST} subjects are rough: {', '.join(few)}.")
    if flat:
        found.append("A zero-width interval means every resample scored alike, not certainty.")
    return found


def _limits(run: Run) -> list[str]:
    """What makes the numbers of a run less than those of a full one."""
    found = []
    if run.partial:
        found.append(
            f"{run.partial}, not comparable with a full run; "
            f"missing: {shortened(run.predictions.missing_folds, MOST_NAMES)}."
        )
    for group, entry in run.summary[Selection.FINAL.value].items():
        if "absent" in entry:
            found.append(
                "* mean over the classes present only, not comparable with a full run: no clip of "
                f"class {', '.join(entry['absent'])} in {display_name(group)}"
            )
        if entry["subjects"] < 2:
            found.append(f"No interval for {display_name(group)}: a single subject.")
    return found


def _md(plain: str) -> str:
    """Text for a line of a Markdown cell."""
    plain = _one_line(plain).replace("+-", "±")
    # Brackets of an interval are no link: there is no "(" or ":" behind them.
    if re.fullmatch(r"[-+±\[\]0-9., /*]*", plain):
        return plain.replace("*", r"\*")
    return _MARKDOWN.sub(r"\\\1", plain)


def _tex(plain: str) -> str:
    """Text for LaTeX."""
    escaped = "".join(_LATEX.get(character, character) for character in _one_line(plain))
    if re.fullmatch(r"[+-]\d[-+.,\[\]\d ]*", plain):
        return f"${escaped}$"
    if re.fullmatch(r"[-\[\].,/\d ]*\]", plain):  # intervals below their scores
        return f"{{\\scriptsize {escaped}}}"
    return escaped.replace("+-", "$\\pm$")


def _one_line(name: str) -> str:
    """The lines of a cell as one."""
    return " ".join(name.split())
