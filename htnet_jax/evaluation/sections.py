"""The parts of a page about a single run: headline, classes, people, calibration, settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from htnet_jax.evaluation import drawing, markup, plots, scoreboard, tables
from htnet_jax.evaluation.runs import Run
from htnet_jax.evaluation.selection import Selection, select
from htnet_jax.evaluation.summary import COMPOSITE, describe, display_name

_FINAL = Selection.FINAL


def headline(run: Run, *, named: bool) -> str:
    """The scores of `final`, then of `inner`; where they come from; what is missing.

    Args:
        run: The run.
        named: Say the run's name: there are others on the page.
    """
    mark = tables.partial_mark(run)
    body = markup.paragraph(f"{mark}. {_missing(run)}", "partial") if mark else ""
    body += _numbers(run, _FINAL, "headline")
    if Selection.INNER.value in run.summary:
        body += _numbers(run, Selection.INNER, "headline second")
    body += markup.paragraph(_facts(run), "soft")
    return markup.section(run.name if named else "Result", body)


def classes(run: Run, pictures: Iterable[drawing.Drawn], *, named: bool) -> str:
    """Precision, recall and F1 of each class, and the confusion matrices, under `final`."""
    rows = []
    entries = run.summary[_FINAL.value]
    for group, label in scoreboard.shown_groups(run.predictions).items():
        rows.append(markup.group_row(label, 5))
        for name, one in entries[group]["per_class"].items():
            cells = [_share(one[score]) for score in ("precision", "recall", "f1")]
            rows.append(markup.row(name, [*cells, str(one["clips"])]))
    seeds = len(run.predictions.seeds)
    over = f"; all {seeds} seeds together" if seeds > 1 else ""
    table = markup.table(
        ["class", "precision", "recall", "F1", "clips"],
        rows,
        f"final ({_FINAL.description}){over}; - is not defined (0/0)",
    )
    note = markup.paragraph(
        "Confusion: a row is a true class; a cell is the share of its clips, and their number"
        + (" (mean over seeds)." if seeds > 1 else "."),
        "soft",
    )
    return markup.section(
        _title("Classes and confusion", run, named), table + note + grid(pictures)
    )


def subjects(run: Run, picture: drawing.Drawn, *, named: bool) -> str:
    """Everybody's accuracy under `final`, drawn and as a table that is folded away."""
    found = plots.subjects(run.predictions, select(run.predictions, _FINAL).predicted)
    rows = []
    for one in found:
        share = one.accuracy
        bar = f'<span class="bar"><i style="width:{share:.0%}"></i></span>'
        right = f"{one.correct.mean():.3g} of {one.clips} ({share:.0%})"
        cells = [markup.text(display_name(one.source)), str(one.clips), bar + right]
        rows.append(markup.row(one.name, cells))
    seeds = len(run.predictions.seeds)
    note = markup.paragraph(
        f"final ({_FINAL.description}). A dot is a person, its area the number of clips"
        + (f", a line from the worst to the best of {seeds} seeds" if seeds > 1 else "")
        + "; the level line is the accuracy over all clips of the source.",
        "soft",
    )
    table = markup.table(["subject", "source", "clips", "right"], rows)
    folded = markup.details(f"Table of {markup.count(len(found), 'subject')}", table)
    return markup.section(
        _title("Accuracy of each subject", run, named), note + figure(picture) + folded
    )


def calibration(run: Run, picture: drawing.Drawn, *, named: bool) -> str:
    """ECE and NLL before and after the temperature, and the reliability plot of `final`."""
    rows = []
    for name in (_FINAL.value, Selection.INNER.value):
        if name not in run.summary:
            continue
        entry = run.summary[name][COMPOSITE]
        keys = ("ece", "nll", "ece_scaled", "nll_scaled", "temperature")
        cells = [f"{entry[key]:.3f}" if key in entry else "-" for key in keys]
        rows.append(markup.row(f"{name}: {Selection(name).description}", cells))
    table = markup.table(
        ["", "ECE", "NLL", "ECE, with temperature", "NLL, with temperature", "temperature"],
        rows,
        "Over all clips; 0 is best"
        + ("; means over seeds" if len(run.predictions.seeds) > 1 else ""),
    )
    if run.predictions.inner is None:
        why = (
            "No temperature: the run has no inner folds to fit it on, and to fit it on the test "
            "subjects would be to look at the answer."
        )
    else:
        why = (
            "The temperature of a fold makes its validation subjects, who are training subjects, "
            "most likely; no test subject is looked at. The table has the median over folds."
        )
    caption = (
        f"final ({_FINAL.description}): how often predictions of a probability are right, in bins; "
        "the larger a dot, the more clips. Below the dotted line the network is too sure."
    )
    return markup.section(
        _title("Calibration", run, named),
        table + markup.paragraph(why, "soft") + figure(picture, caption),
    )


def records(runs: Iterable[Run], *, named: bool) -> str:
    """Settings and environments, folded away; empty where none is known."""
    blocks = "".join(
        markup.details(
            f"{heading} of {run.name}" if named else heading,
            f"<pre>{markup.text(json.dumps(content, indent=2, default=str))}</pre>",
        )
        for run in runs
        for heading, content in (("Configuration", run.config), ("Environment", run.environment))
        if content is not None
    )
    return markup.section("Settings", blocks) if blocks else ""


def grid(pictures: Iterable[drawing.Drawn]) -> str:
    """Pictures beside each other where there is room."""
    return f'<div class="plots">{"".join(figure(one) for one in pictures)}</div>'


def figure(picture: drawing.Drawn, caption: str = "") -> str:
    """A picture with its caption (text)."""
    words = f'<figcaption class="soft">{markup.text(caption)}</figcaption>' if caption else ""
    return f"<figure>{markup.image(picture.png, picture.alt)}{words}</figure>"


def _title(title: str, run: Run, named: bool) -> str:
    mark = tables.partial_mark(run)
    return title + (f": {run.name}" if named else "") + (f" ({mark})" if mark else "")


def _numbers(run: Run, selection: Selection, kind: str) -> str:
    entry: Mapping[str, Any] = run.summary[selection.value][COMPOSITE]
    mark = "*" if "absent" in entry else ""
    boxes = "".join(
        f'<div><span class="number">{entry[score]:.3f}{mark}</span>'
        f"<strong>{scoreboard.SCORE_NAMES[score]}</strong> "
        f'<span class="soft">{scoreboard.interval(entry[f"{score}_interval"])}'
        f"{_over_seeds(entry, score)}</span></div>"
        for score in ("uf1", "uar")
    )
    words = f"<strong>{selection.value}</strong>: {selection.description}"
    return f'<p>{words}</p><div class="{kind}">{boxes}</div>'


def _over_seeds(entry: Mapping[str, Any], score: str) -> str:
    spread = scoreboard.spread(entry, score)
    return f"; {spread.strip()} over seeds" if spread else ""


def _facts(run: Run) -> str:
    known = describe(run.predictions)
    entry = run.summary[_FINAL.value][COMPOSITE]
    seeds = known["seeds"]
    inner = ""
    if known["inner_folds"]:
        number = markup.count(known["inner_folds"], "inner fold")
        inner = f" {number} in each fold; inner takes " + (
            "the model trained on all training subjects, at the epoch chosen."
            if known["inner_refit"]
            else "the inner models themselves, at the epoch chosen."
        )
    epochs = (
        f"last epoch {known['last_epoch']}, {known['recorded_epochs']} recorded."
        if known["recorded_epochs"] > 1
        else "one epoch recorded, so nothing was selected."
    )
    return (
        f"{markup.count(entry['clips'], 'clip')} of {markup.count(entry['subjects'], 'subject')} "
        f"in {known['dataset']}; {known['protocol_in_words']}: {len(run.predictions.folds)} of "
        f"{markup.count(len(run.predictions.protocol_folds), 'fold')}; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}; {epochs}{inner} "
        "Scores are pooled over folds; ranges are 95 % intervals over subjects."
    )


def _missing(run: Run) -> str:
    missing = run.predictions.missing_folds
    shown = ", ".join(missing[:10]) + (
        f" and {len(missing) - 10} more" if len(missing) > 10 else ""
    )
    return f"These numbers are not the result of the protocol: missing {shown}"


def _share(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"
