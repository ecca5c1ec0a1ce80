"""The scores of runs as tables: plain text for the console, Markdown and LaTeX for papers.

Every row says how its epoch was selected, every table whether folds are missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from htnet_jax.evaluation.comparison import Pair
from htnet_jax.evaluation.protocols import PROTOCOLS
from htnet_jax.evaluation.resampling import FEWEST, Comparison
from htnet_jax.evaluation.runs import Run
from htnet_jax.evaluation.selection import Selection
from htnet_jax.evaluation.summary import COMPOSITE, display_name

_SCORES = {"uf1": "UF1", "uar": "UAR"}
_CHOSEN = "epoch selected by"
# A note names this many folds.
_SHOWN = 20

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


class _Row(NamedTuple):
    """One run under one selection.

    Attributes:
        run: Its name, marked where folds are missing.
        label: The first cells of the row: run (where there are several) and selection.
        selection: The selection.
        entries: Those of the summary, None for a group that the run does not have.
    """

    run: str
    label: list[str]
    selection: Selection
    entries: list[dict[str, Any] | None]


class _Difference(NamedTuple):
    """One pair under one selection in one group."""

    names: str
    selection: Selection
    group: str
    scores: dict[str, Comparison]


def text(runs: Sequence[Run], pairs: Sequence[Pair] = ()) -> str:
    """The scores as aligned plain text, a row a run and selection.

    Only the composite shows its intervals and deviations, on lines of their own, so that the lines
    stay short.

    Args:
        runs: One or more runs.
        pairs: Comparisons of them.
    """
    lines = [*_banner(runs), *_scores_as_text(runs)]
    if pairs:
        lines += ["", *_differences_as_text(pairs)]
    return "\n".join([*lines, "", *notes(runs, pairs)])


def markdown(runs: Sequence[Run], pairs: Sequence[Pair] = ()) -> str:
    """As `text`, in Markdown, with all intervals; ends with a line break."""
    groups = group_names(runs)
    several = len(runs) > 1
    head = ["run"] * several + ["selection"]
    head += [f"{_md(display_name(group))} UF1 / UAR" for group in groups] + [_CHOSEN]
    body = [
        [_md(cell) for cell in row.label]
        + ["<br>".join(_md(line) for line in _cell(entry)) for entry in row.entries]
        + [_md(row.selection.description)]
        for row in _rows(runs)
    ]
    for name, counts in _clip_counts(runs):
        body.append([_md(name), *[""] * several, *counts, ""])
    blocks = [f"**{_md(line)}**" for line in _banner(runs)]
    blocks.append(_pipes(head, body))
    if pairs:
        head = ["difference", "group", *_pair_head(), _CHOSEN]
        body = [
            [
                _md(row.names),
                _md(display_name(row.group)),
                *map(_md, _difference_cells(row)),
                _md(row.selection.description),
            ]
            for row in _difference_rows(pairs)
        ]
        blocks.append(_pipes(head, body))
    return "\n\n".join([*blocks, *map(_md, notes(runs, pairs))]) + "\n"


def latex(runs: Sequence[Run], pairs: Sequence[Pair] = ()) -> str:
    r"""As `markdown`, as LaTeX `tabular`s that need only the package booktabs.

    Rows are grouped by how their epoch was selected, UF1 above UAR. To be read with `\input` in a
    `table` or `table*`.
    """
    parts = ["% Needs \\usepackage{booktabs}.", *_scores_as_latex(runs)]
    if pairs:
        parts += ["", "\\par\\bigskip", *_differences_as_latex(pairs)]
    parts += ["", "\\par\\smallskip"]
    parts += [f"{{\\footnotesize {_tex(note)}\\par}}" for note in notes(runs, pairs)]
    return "\n".join(parts) + "\n"


def group_names(runs: Sequence[Run]) -> list[str]:
    """ "composite" and the sources of the runs, in the order of the summaries."""
    return list(dict.fromkeys(group for run in runs for group in _first(run)))


def partial_mark(run: Run) -> str:
    """ "PARTIAL: 2 of 68 folds" for a run that lacks folds, empty for a whole one."""
    predictions = run.predictions
    if not predictions.missing_folds:
        return ""
    return f"PARTIAL: {len(predictions.folds)} of {len(predictions.protocol_folds)} folds"


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
        found += [prefix + note for note in _limits(run)]
    # What holds for several runs is said once for each only where it differs.
    return list(dict.fromkeys(found))


def cautions(runs: Sequence[Run]) -> list[str]:
    """What makes the numbers less certain, or the runs less comparable, than they look."""
    return _other_data(runs) + _other_protocols(runs) + _rough_intervals(runs)


def score_cell(entry: dict[str, Any]) -> str:
    """`UF1 / UAR` with four decimals, marked `*` where a class is absent from the truth."""
    return f"{entry['uf1']:.4f} / {entry['uar']:.4f}" + ("*" if "absent" in entry else "")


def interval(ends: Sequence[float | None], sign: str = "") -> str:
    """`[low, high]` with three decimals; empty where there is no interval.

    Args:
        ends: Two numbers; None or NaN where there is no interval.
        sign: "+" to write the sign of positive numbers.
    """
    if any(end is None or math.isnan(end) for end in ends):
        return ""
    return "[" + ", ".join(f"{end:{sign}.3f}" for end in ends) + "]"


def _first(run: Run) -> dict[str, dict[str, Any]]:
    return run.summary[Selection.FINAL.value]


def _rows(runs: Sequence[Run]) -> list[_Row]:
    """By selection, then by run: rows that may be compared stand together."""
    groups = group_names(runs)
    rows = []
    for selection in Selection:
        for run in runs:
            if selection.value not in run.summary:
                continue
            mark = " (PARTIAL)" if partial_mark(run) else ""
            name = run.name + mark
            label = [name, selection.value] if len(runs) > 1 else [selection.value + mark]
            entries = run.summary[selection.value]
            rows.append(_Row(name, label, selection, [entries.get(group) for group in groups]))
    return rows


def _clip_counts(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """A row of clip counts, or one a run where they differ."""
    groups = group_names(runs)
    counts = [[str(_first(run).get(g, {}).get("clips", "-")) for g in groups] for run in runs]
    if all(row == counts[0] for row in counts):
        yield "clips", counts[0]
    else:
        for run, row in zip(runs, counts, strict=True):
            yield f"clips of {run.name}", row


def _cell(entry: dict[str, Any] | None) -> list[str]:
    """The lines of a cell: scores, intervals, deviations over seeds."""
    if entry is None:
        return ["-"]
    lines = [score_cell(entry)]
    spans = [interval(entry[f"{name}_interval"]) for name in _SCORES]
    if all(spans):
        lines.append(" / ".join(spans))
    if "uf1_std" in entry:
        lines.append(" / ".join(f"+-{entry[f'{name}_std']:.4f}" for name in _SCORES))
    return lines


def _banner(runs: Sequence[Run]) -> list[str]:
    """One line for each run that lacks folds; it stands above the table."""
    name = (lambda run: f" ({run.name})") if len(runs) > 1 else (lambda run: "")
    return [partial_mark(run) + name(run) for run in runs if partial_mark(run)]


def _scores_as_text(runs: Sequence[Run]) -> list[str]:
    several = len(runs) > 1
    groups = group_names(runs)
    # A row of the table is a list of cells, a cell a list of lines.
    table = [
        [["run"]] * several
        + [["selection"]]
        + [[display_name(group), "UF1 / UAR"] for group in groups]
        + [[_CHOSEN]]
    ]
    for row in _rows(runs):
        cells = [_cell(entry) for entry in row.entries]
        cells = [cells[0], *(cell[:1] for cell in cells[1:])]
        label = [[cell] for cell in row.label]
        table.append([*label, *cells, [row.selection.description]])
    for name, counts in _clip_counts(runs):
        table.append([[name], *[[""]] * several, *([count] for count in counts), [""]])
    return _aligned(table)


def _differences_as_text(pairs: Sequence[Pair]) -> list[str]:
    table = [[[cell] for cell in ("difference", "group", *_pair_head(), _CHOSEN)]]
    before = None
    for row in _difference_rows(pairs):
        head = (row.names, row.selection)
        names, chosen = ("", "") if head == before else (row.names, row.selection.description)
        before = head
        cells = [names, display_name(row.group), *_difference_cells(row), chosen]
        table.append([[cell] for cell in cells])
    return _aligned(table)


def _aligned(table: list[list[list[str]]]) -> list[str]:
    """The lines of a table of multi-line cells; a rule below its first row."""
    columns = range(len(table[0]))
    widths = [max(len(line) for row in table for line in row[column]) for column in columns]

    def lines(row: list[list[str]]) -> Iterator[str]:
        for index in range(max(len(cell) for cell in row)):
            parts = [cell[index] if index < len(cell) else "" for cell in row]
            padded = (part.ljust(width) for part, width in zip(parts, widths, strict=True))
            yield "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in [*widths[:-1], len(_CHOSEN)])
    return [*lines(table[0]), rule, *(line for row in table[1:] for line in lines(row))]


def _scores_as_latex(runs: Sequence[Run]) -> list[str]:
    groups = group_names(runs)
    width = len(groups) + 2
    lines = [f"\\begin{{tabular}}{{@{{}}ll*{{{len(groups)}}}{{l}}@{{}}}}", "\\toprule"]
    lines += [_span(width, f"\\textbf{{{_tex(line)}}}") for line in _banner(runs)]
    lines.append(_ampersands(["", "", *(_tex(display_name(group)) for group in groups)]))
    before = None
    for row in _rows(runs):
        if row.selection != before:
            before = row.selection
            chosen = f"{_CHOSEN.capitalize()}: {before.description} ({before.value})"
            lines += ["\\midrule", _span(width, f"\\textit{{{_tex(chosen)}}}")]
        for number, (key, name) in enumerate(_SCORES.items()):
            label = "" if number else _tex(row.run)
            cells = [_latex_cell(entry, key) for entry in row.entries]
            lines.append(_ampersands([label, name, *cells]))
    lines.append("\\midrule")
    lines += [_ampersands([_tex(name), "", *counts]) for name, counts in _clip_counts(runs)]
    return [*lines, "\\bottomrule", "\\end{tabular}"]


def _latex_cell(entry: dict[str, Any] | None, key: str) -> str:
    if entry is None:
        return "--"
    cell = f"{entry[key]:.4f}" + ("$^*$" if "absent" in entry else "")
    if f"{key}_std" in entry:
        cell += f" $\\pm$ {entry[f'{key}_std']:.4f}"
    span = interval(entry[f"{key}_interval"])
    return cell + (f" {{\\scriptsize {_tex(span)}}}" if span else "")


def _differences_as_latex(pairs: Sequence[Pair]) -> list[str]:
    width = 1 + len(_pair_head())
    head = _ampersands(["", *map(_tex, _pair_head())])
    lines = [f"\\begin{{tabular}}{{@{{}}l*{{{width - 1}}}{{r}}@{{}}}}", "\\toprule", head]
    before = None
    for row in _difference_rows(pairs):
        if (row.names, row.selection) != before:
            before = (row.names, row.selection)
            chosen = f"{row.names}, {_CHOSEN}: {row.selection.description}"
            lines += ["\\midrule", _span(width, f"\\textit{{{_tex(chosen)}}}")]
        cells = [f"${cell}$" if cell[0] in "+-" else cell for cell in _difference_cells(row)]
        lines.append(_ampersands([_tex(display_name(row.group)), *cells]))
    return [*lines, "\\bottomrule", "\\end{tabular}"]


def _pair_head() -> list[str]:
    return [part for name in _SCORES.values() for part in (name, "p")]


def _difference_rows(pairs: Sequence[Pair]) -> Iterator[_Difference]:
    for pair in pairs:
        for selection, of_groups in pair.differences.items():
            for group, scores in of_groups.items():
                names = f"{pair.first} - {pair.second}"
                yield _Difference(names, Selection(selection), group, scores)


def _difference_cells(row: _Difference) -> list[str]:
    cells = []
    for name in _SCORES:
        found = row.scores[name]
        span = interval((found.low, found.high), sign="+")
        cells += [f"{found.difference:+.4f} {span}".rstrip(), f"{found.p_value:.4f}"]
    return cells


def _stand_ins(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[str]:
    """Runs that stand in comparisons under `inner` without having that selection."""
    compared = {
        name
        for pair in pairs
        if Selection.INNER.value in pair.differences
        for name in (pair.first, pair.second)
    }
    return [
        f"{run.name}: a single recorded epoch, so nothing was selected in it; its final "
        "predictions are compared with the other run's inner ones."
        for run in runs
        if run.name in compared and Selection.INNER.value not in run.summary
    ]


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
    for run in runs:
        for entries in run.summary.values():
            for group, entry in entries.items():
                # Of a single source the composite is that source.
                is_named = group != COMPOSITE or len(entries) > 2
                if is_named and 2 <= entry["subjects"] < FEWEST:
                    few[display_name(group)] = None
                spans = [entry[f"{name}_interval"] for name in _SCORES]
                flat |= any(low is not None and low == high for low, high in spans)
    found = []
    if few:
        found.append(f"Intervals of fewer than {FEWEST} subjects are rough: {', '.join(few)}.")
    if flat:
        found.append("An interval without width only says that all resamples are alike.")
    return found


def _limits(run: Run) -> list[str]:
    """What makes the numbers of a run less than those of a full one."""
    found = []
    if partial_mark(run):
        found.append(
            f"{partial_mark(run)}, not comparable with a full run; "
            f"missing: {shortened(run.predictions.missing_folds)}."
        )
    for group, entry in _first(run).items():
        if "absent" in entry:
            found.append(
                "* mean over the classes present only, not comparable with a full run: no clip of "
                f"class {', '.join(entry['absent'])} in {display_name(group)}"
            )
        if entry["subjects"] < 2:
            found.append(f"No interval for {display_name(group)}: a single subject.")
    return found


def shortened(names: Sequence[str]) -> str:
    """The names in a list, the first 20 of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _md(plain: str) -> str:
    """Text for a cell of a Markdown table."""
    plain = " ".join(plain.split()).replace("+-", "±")
    # Brackets of an interval are no link: there is no "(" or ":" behind them.
    if re.fullmatch(r"[-+±\[\]0-9., /*]*", plain):
        return plain.replace("*", r"\*")
    return _MARKDOWN.sub(r"\\\1", plain)


def _tex(plain: str) -> str:
    """Text for LaTeX."""
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(plain.split()))
    return escaped.replace("+-", "$\\pm$")


def _pipes(head: list[str], body: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _span(width: int, content: str) -> str:
    return f"\\multicolumn{{{width}}}{{@{{}}l@{{}}}}{{{content}}} \\\\"
