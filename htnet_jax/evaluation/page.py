"""The report as one HTML page: no script, no link to anything outside the file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from htnet_jax.evaluation import plots, published
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import Selection, select
from htnet_jax.evaluation.summary import (
    COMPOSITE,
    Summary,
    display_name,
    footnotes,
    score_cell,
    source_masks,
)

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d5dae0;
  --page: #f5f6f8; --card: #ffffff; --accent: #1f5fa8; --warn: #b4540a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa5b1; --line: #363d46;
  --page: #14171b; --card: #1d2126; --accent: #7fb2ef; --warn: #f0a35e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1.1rem; margin: 0 0 1rem; }
p { margin: 0 0 .75rem; } p:last-child { margin-bottom: 0; }
.soft { color: var(--soft); font-size: .9rem; }
.headline { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin-bottom: .5rem; }
.headline div { min-width: 6rem; }
.number { display: block; font-size: 2.3rem; font-weight: 650; line-height: 1.15;
  color: var(--accent); font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .92rem; }
th, td { text-align: left; padding: .4rem .7rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.score, th.score { white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; }
tr.group th { color: var(--soft); font-weight: 600; padding-top: .9rem; }
tr.ours td { font-weight: 600; }
.oracle { color: var(--warn); }
.how { min-width: 9rem; }
.plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
img { display: block; max-width: min(100%, 42rem); height: auto;
  background: #fff; border-radius: .35rem;
  margin: 0 auto; }
.bar { display: inline-block; width: 6rem; height: .6rem; border-radius: .3rem;
  background: var(--line); overflow: hidden; vertical-align: middle; margin-right: .5rem; }
.bar i { display: block; height: 100%; background: var(--accent); }
details + details { margin-top: .75rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .82rem; margin: .5rem 0 0; }
"""


def render(
    predictions: Predictions,
    summary: Summary,
    title: str,
    records: Sequence[tuple[str, dict[str, Any]]],
) -> str:
    """The whole page.

    Args:
        predictions: the run.
        summary: its scores, from `summarize`.
        title: heading of the page.
        records: (heading, content) pairs shown at the end, such as the configuration.

    Returns:
        HTML text with its style and its pictures inside.
    """
    final_labels, _ = select(predictions, Selection.FINAL)
    sections = [
        _headline(predictions, summary),
        _scores(predictions, summary),
        _curve(predictions),
        _confusions(predictions, final_labels),
        _subjects(predictions, final_labels),
        _records(records),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{text(title)}</h1>\n" + "\n".join(sections) + "\n</main></body></html>\n"
    )


def _headline(predictions: Predictions, summary: Summary) -> str:
    entry = summary[Selection.FINAL.value][COMPOSITE]
    mark = "*" if "absent" in entry else ""
    numbers = "".join(
        f'<div><span class="number">{entry[key]:.3f}{mark}</span>{name}</div>'
        for key, name in (("uf1", "UF1"), ("uar", "UAR"))
    )
    counts = (
        f"{entry['clips']} clips, {_count(len(predictions.folds), 'fold')}, "
        f"each tested on clips its model never saw; epoch {predictions.epochs[-1]}, the last one, "
        "for every fold."
    )
    return (
        f'<section><div class="headline">{numbers}</div>'
        f'<p class="soft">{counts} Scores are pooled over folds.</p></section>'
    )


def _scores(predictions: Predictions, summary: Summary) -> str:
    groups = list(summary[Selection.FINAL.value])
    head = "".join(
        f'<th scope="col" class="score">{text(display_name(group))}</th>' for group in groups
    )
    published_rows = published.comparable_rows(predictions.sources)
    # Ours first, each beside the published rows that were selected in the same way.
    by_selection: dict[str, list[str]] = {}
    for name, entries in summary.items():
        by_selection.setdefault(Selection(name).description, []).append(
            _score_row(f"this run, {name}", [score_cell(entries[g]) for g in groups], ours=True)
        )
    for row in published_rows:
        cells = [f"{row.scores[g][0]:.4f} / {row.scores[g][1]:.4f}" for g in groups]
        by_selection.setdefault(row.selection, []).append(
            _score_row(f"{row.method}, published ({row.origin})", cells, ours=False)
        )
    oracle = Selection.ORACLE.description
    body = "".join(
        f'<tr class="group"><th scope="rowgroup" colspan="{len(groups) + 1}"'
        + (' class="oracle"' if description == oracle else "")
        + f">Epoch: {text(description)}</th></tr>{''.join(rows)}"
        for description, rows in by_selection.items()
    )
    clips = _score_row("clips", [str(summary["final"][g]["clips"]) for g in groups], ours=False)
    notes = "".join(f'<p class="soft">{text(note)}</p>' for note in footnotes(summary))
    if published_rows:
        notes += (
            '<p class="soft">Compare rows of one group only: choosing the epoch on the test '
            "subject raises the scores of any model.</p>"
        )
    return (
        "<section><h2>UF1 / UAR</h2>"
        f'<div class="scroll"><table><thead><tr><th scope="col"></th>{head}</tr></thead>'
        f"<tbody>{body}{clips}</tbody></table></div>{notes}</section>"
    )


def _score_row(name: str, cells: list[str], *, ours: bool) -> str:
    kind = ' class="ours"' if ours else ""
    scores = "".join(f'<td class="score">{text(cell)}</td>' for cell in cells)
    return f'<tr{kind}><td class="how">{text(name)}</td>{scores}</tr>'


def _curve(predictions: Predictions) -> str:
    picture = image(
        plots.learning_curve_png(predictions),
        "Composite UF1 and mean training loss over epochs, with the level of the oracle.",
    )
    return f"<section><h2>Over the epochs</h2>{picture}</section>"


def _confusions(predictions: Predictions, final_labels: np.ndarray) -> str:
    names = [str(name) for name in predictions.class_names]
    pictures = []
    for group, mask in source_masks(predictions).items():
        name = display_name(group)
        data = plots.confusion_png(predictions.labels[mask], final_labels[mask], names, name)
        pictures.append(image(data, f"Confusion matrix, last epoch: {name}"))
    return (
        "<section><h2>Confusion, last epoch</h2>"
        '<p class="soft">A row is a true class: share of its clips, and their number.</p>'
        f'<div class="plots">{"".join(pictures)}</div></section>'
    )


def _subjects(predictions: Predictions, final_labels: np.ndarray) -> str:
    # Two sources may use the same subject name for different people.
    people = sorted(
        {
            (str(source), str(subject))
            for source, subject in zip(predictions.sources, predictions.subjects, strict=True)
        }
    )
    correct = final_labels == predictions.labels
    rows = []
    for source, subject in people:
        own = (predictions.sources == source) & (predictions.subjects == subject)
        share = correct[own].mean()
        rows.append(
            f"<tr><td>{text(display_name(source))}</td><td>{text(subject)}</td>"
            f"<td>{own.sum()}</td>"
            f'<td class="score"><span class="bar"><i style="width:{share:.0%}"></i></span>'
            f"{correct[own].sum()} of {own.sum()} ({share:.0%})</td></tr>"
        )
    return (
        f"<section><details><summary>Accuracy of {_count(len(people), 'subject')}, last epoch"
        '</summary><div class="scroll"><table><thead><tr><th scope="col">source</th>'
        '<th scope="col">subject</th><th scope="col">clips</th><th scope="col">correct</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div></details></section>"
    )


def _records(records: Sequence[tuple[str, dict[str, Any]]]) -> str:
    if not records:
        return ""
    blocks = "".join(
        f"<details><summary>{text(heading)}</summary>"
        f"<pre>{text(json.dumps(content, indent=2, default=str))}</pre></details>"
        for heading, content in records
    )
    return f"<section>{blocks}</section>"


def image(png: bytes, alt: str) -> str:
    """An `img` element that carries its PNG."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{text(alt)}" src="data:image/png;base64,{data}">'


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def text(value: object) -> str:
    """A value's text, safe inside HTML."""
    return html.escape(str(value))
