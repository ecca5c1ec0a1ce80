"""What the report page shows; its words and their order are in `templates/report.html`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from htnet_jax import pages
from htnet_jax.evaluation import figures as plots
from htnet_jax.evaluation import gallery, published, retrieval, tables
from htnet_jax.evaluation.metrics import HEADLINE, METRICS
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import PROTOCOLS
from htnet_jax.evaluation.selection import Selection, select
from htnet_jax.evaluation.statistics import Comparison
from htnet_jax.evaluation.summary import (
    COMPOSITE,
    FITTED_ONCE,
    Pair,
    Run,
    describe,
    display_name,
    is_fitted_once,
    shortened,
    source_masks,
)

LIMIT = 0.05
"""A difference counts as shown below this p-value, the convention of the field."""

_FINAL = Selection.FINAL.value


def figures(runs: Sequence[Run], pairs: Sequence[Pair] = ()) -> dict[str, plots.Drawn]:
    """Draws every plot of a page.

    Args:
        runs: One or several, with different names.
        pairs: Comparisons of these runs.

    Returns:
        Stem of a file name (letters, digits and "_") -> plot. One run: `learning_curves`,
        `confusion_composite`, `confusion_SOURCE`, `subjects`, `calibration`. Of several runs the
        last three names end in the run's number from 1; there are also `intervals` and, for the
        pair of the i-th and j-th run, `agreement_i_j`.

    Raises:
        ValueError: No run, two of one name, or a pair of a run that is not among them.
    """
    _check(runs, pairs)
    marks = {run.name: run.partial for run in runs}
    partial = [run.name for run in runs if run.partial]
    every = runs[0].partial if len(runs) == 1 else ""
    if len(runs) > 1 and partial:
        every = f"PARTIAL, folds are missing: {', '.join(partial)}"
    found = {}
    if len(runs) > 1:
        found["intervals"] = plots.draw_intervals(runs, every)
    drawn = plots.draw_curves(runs, every)
    if drawn is not None:
        found["learning_curves"] = drawn
    subjects = {}
    for run in runs:
        end, mark = _end(runs, run), run.partial
        selected = select(run.predictions, _FINAL)
        subjects[run.name] = plots.subjects(run.predictions, selected.predicted)
        for stem, group, label in _confusions(runs, run):
            found[stem] = plots.draw_confusion(
                run.summary[_FINAL][group]["confusion"],
                run.predictions.class_names.tolist(),
                label,
                len(run.predictions.seeds),
                mark,
                run.chosen(_FINAL),
            )
        found[f"subjects{end}"] = plots.draw_subjects(subjects[run.name], mark, run.chosen(_FINAL))
        reliabilities = plots.reliabilities(run.predictions, selected)
        found[f"calibration{end}"] = plots.draw_calibration(reliabilities, mark, run.chosen(_FINAL))
    for pair in pairs:
        shares = plots.agreement(subjects[pair.first], subjects[pair.second])
        found[_agreement(runs, pair)] = plots.draw_agreement(
            shares,
            (pair.first, pair.second),
            marks[pair.first] or marks[pair.second],
            tables.chosen_of(_both(runs, pair), _FINAL),
        )
    return found


def render(runs: Sequence[Run], pairs: Sequence[Pair], drawn: Mapping[str, plots.Drawn]) -> str:
    """The whole page.

    Args:
        runs: One or several, with different names.
        pairs: Comparisons of these runs.
        drawn: What `figures` returned for the same runs and pairs.

    Returns:
        HTML text with its style and its images inside.

    Raises:
        ValueError: As `figures`.
    """
    _check(runs, pairs)
    names = [run.name for run in runs]
    title = " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), names[-1]])
    others = _comparable(runs)
    groups = _shown_groups(runs[0].predictions)
    return pages.render(
        "report.html",
        title=title,
        several=len(runs) > 1,
        runs=[_run_values(runs, run, drawn) for run in runs],
        pairs=[_pair_values(runs, pair, drawn) for pair in pairs],
        intervals=drawn["intervals"] if len(runs) > 1 else None,
        curves=drawn.get("learning_curves"),
        selections={one.value: one.description for one in Selection},
        used=_used(runs),
        metrics=METRICS.values(),
        titles=[metric.title for metric in METRICS.values()],
        headline=" / ".join(METRICS[name].title for name in HEADLINE),
        groups=list(groups.values()),
        score_rows=_score_rows(runs, others, groups),
        full_rows=_full_rows(runs, others),
        notes=[*filter(None, map(_absent_note, runs)), *tables.cautions(runs)],
        published=bool(others),
        one_epoch=len(runs) > 1 and any(len(run.predictions.epochs) == 1 for run in runs),
        gallery=_gallery_values(runs[0]),
        limit=LIMIT,
    )


def in_words(pair: Pair, score: str, found: Comparison) -> str:
    """One paired comparison as a sentence.

    A difference is called shown where the p-value is below `LIMIT` and the interval leaves out 0.

    Args:
        pair: The runs.
        score: How to write the score.
        found: Its comparison, first minus second.
    """
    p = f"p {'< 0.001' if found.p_value < 0.001 else f'= {found.p_value:.3f}'}"
    # Fewer than two subjects: the ends are NaN, and no comparison with them holds.
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
    span = _signed_ends(found)
    return (
        f"No difference in {score} is shown: {pair.first} minus {pair.second} is "
        f"{_signed(found.difference)} ({span if span == _NO_INTERVAL else f'95 % interval {span}'}"
        f", {p})."
    )


def _check(runs: Sequence[Run], pairs: Sequence[Pair]) -> None:
    names = [run.name for run in runs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a page needs runs with different names, got {names}")
    unknown = {name for pair in pairs for name in (pair.first, pair.second)} - set(names)
    if unknown:
        raise ValueError(f"a pair names runs that are not on the page: {sorted(unknown)}")


def _both(runs: Sequence[Run], pair: Pair) -> list[Run]:
    return [run for name in (pair.first, pair.second) for run in runs if run.name == name]


def _number(runs: Sequence[Run], name: str) -> int:
    return [run.name for run in runs].index(name) + 1


def _end(runs: Sequence[Run], run: Run) -> str:
    """What tells the run's files from those of others."""
    return f"_{_number(runs, run.name)}" if len(runs) > 1 else ""


def _agreement(runs: Sequence[Run], pair: Pair) -> str:
    return f"agreement_{_number(runs, pair.first)}_{_number(runs, pair.second)}"


def _shown_groups(predictions: Predictions) -> dict[str, str]:
    """Groups of a summary -> how to write them; a single source stands for all clips."""
    names = [name for name in source_masks(predictions) if name != COMPOSITE]
    if len(names) == 1:
        return {COMPOSITE: display_name(names[0])}
    return {name: display_name(name) for name in (COMPOSITE, *names)}


def _confusions(runs: Sequence[Run], run: Run) -> Iterator[tuple[str, str, str]]:
    """(stem, group, how to write it) of each confusion matrix."""
    taken = set()
    for group, label in _shown_groups(run.predictions).items():
        # A source may be called anything; its file may not.
        slug = re.sub(r"[^a-z0-9]+", "_", group.lower()).strip("_")[:80] or "source"
        while slug in taken:
            slug += "_"
        taken.add(slug)
        yield f"confusion_{slug}{_end(runs, run)}", group, label


def _comparable(runs: Sequence[Run]) -> list[published.PublishedRow]:
    """The published rows that may stand beside every run."""
    if any(run.common for run in runs):
        return []
    found = [published.comparable_rows(run.predictions) for run in runs]
    return found[0] if all(rows == found[0] for rows in found) else []


def _run_values(runs: Sequence[Run], run: Run, drawn: Mapping[str, plots.Drawn]) -> dict[str, Any]:
    """What the template shows of one run."""
    known = describe(run.predictions)
    final = run.summary[_FINAL]
    end = _end(runs, run)
    protocol = known["protocol"]
    class_rows: list[pages.Row | pages.Group] = []
    for group, label in _shown_groups(run.predictions).items():
        class_rows.append(pages.Group(label))
        for name, one in final[group]["per_class"].items():
            shares = [_or_dash(one[key], ".3f") for key in ("precision", "recall", "f1")]
            class_rows.append(pages.Row(name, [*shares, one["clips"]]))
    calibration_rows = []
    for name in (_FINAL, Selection.INNER.value):
        if name in run.summary:
            entry = run.summary[name][COMPOSITE]
            keys = ("ece", "nll", "ece_scaled", "nll_scaled", "temperature")
            cells = [_or_dash(entry.get(key), ".3f") for key in keys]
            calibration_rows.append(pages.Row(f"{name}: {run.chosen(name)}", cells))
    selected = select(run.predictions, _FINAL)
    records = {"Configuration": run.config, "Environment": run.environment}
    records = {heading: _published(content) for heading, content in records.items()}
    return {
        "name": run.name,
        "mark": run.partial,
        "final": run.chosen(_FINAL),
        "fitted_once": is_fitted_once(run.predictions),
        "known": known,
        "missing": shortened(run.predictions.missing_folds, 10),
        "folds": f"{known['folds']} of " + pages.count(len(run.predictions.protocol_folds), "fold"),
        "entry": final[COMPOSITE],
        "headlines": [
            (
                name,
                run.chosen(name),
                [_headline(run.summary[name][COMPOSITE], score) for score in HEADLINE],
            )
            for name in (_FINAL, Selection.INNER.value)
            if name in run.summary
        ],
        "protocol": f"{PROTOCOLS.get(protocol, protocol)} ({protocol}): a clip is tested by a "
        f"model that never saw its {'data set' if protocol == 'lodo' else 'subject'}",
        "classes": class_rows,
        "confusions": [drawn[stem] for stem, _, _ in _confusions(runs, run)],
        "subjects": [
            (one.name, display_name(one.source), one.clips, one.correct.mean(), one.accuracy)
            for one in plots.subjects(run.predictions, selected.predicted)
        ],
        "subjects_plot": drawn[f"subjects{end}"],
        "descriptions": run.descriptions,
        "description_rows": _description_rows(run),
        "calibration": calibration_rows,
        "calibration_plot": drawn[f"calibration{end}"],
        "records": [
            (heading, json.dumps(content, indent=2, default=str))
            for heading, content in records.items()
            if content is not None
        ],
    }


def _description_rows(run: Run) -> list[pages.Row]:
    """A row for each score of the nearest sentences, beside chance."""
    found = run.descriptions
    return [
        pages.Row(
            title,
            [
                f"{_or_dash(found[name], '.3f')} {_spread(found, name)}".rstrip(),
                _ends(found[f"{name}_interval"]),
                _or_dash(found[f"{name}_chance"], ".3f"),
                _ends(found[f"{name}_chance_range"]),
            ],
        )
        for name, title in (retrieval.SCORES.items() if found else ())
    ]


def _headline(entry: Mapping[str, Any], score: str) -> dict[str, str]:
    spread = _spread(entry, score)
    return {
        "value": f"{entry[score]:.3f}" + "*" * ("absent" in entry),
        "title": METRICS[score].title,
        "range": _ends(entry[f"{score}_interval"]) + (f"; {spread} over seeds" if spread else ""),
    }


def _pair_values(
    runs: Sequence[Run], pair: Pair, drawn: Mapping[str, plots.Drawn]
) -> dict[str, Any]:
    """What the template shows of one comparison: words, then all numbers."""
    marks = {run.name: run.partial for run in runs}
    rows: list[pages.Row | pages.Group] = []
    words, chosen = {}, {}
    for name, by_group in pair.differences.items():
        chosen[name] = tables.chosen_of(_both(runs, pair), name)
        words[name] = " ".join(
            in_words(pair, METRICS[score].title, by_group[COMPOSITE][score]) for score in HEADLINE
        )
        rows.append(pages.Group(f"{name}: {chosen[name]}"))
        for group, by_score in by_group.items():
            cells = [
                (_signed(one.difference), _signed_ends(one), f"p = {one.p_value:.4f}")
                for one in (by_score[score] for score in METRICS)
            ]
            rows.append(pages.Row(display_name(group), cells))
    return {
        "first": pair.first,
        "second": pair.second,
        "mark": marks[pair.first] or marks[pair.second],
        "words": words,
        "chosen": chosen,
        "rows": rows,
        "plot": drawn[_agreement(runs, pair)],
    }


def _score_rows(
    runs: Sequence[Run], others: Sequence[published.PublishedRow], groups: Mapping[str, str]
) -> list[pages.Row | pages.Group]:
    """The headline scores, grouped by how the epoch was selected; published rows among them."""
    by_selection: dict[str, list[pages.Row]] = {}
    for selection, run, name in _named_rows(runs):
        entries = run.summary[selection.value]
        cells = [_score_cell(entries.get(group)) for group in groups]
        row = pages.Row(name, cells, "ours")
        by_selection.setdefault(run.chosen(selection), []).append(row)
    for other in others:
        cells = [_published_cell(other.scores[group]) for group in groups]
        row = pages.Row(f"{other.method}, {other.standing} ({other.origin})", cells)
        by_selection.setdefault(other.selection, []).append(row)
    found: list[pages.Row | pages.Group] = []
    for description, rows in by_selection.items():
        kind = "oracle" if description == Selection.ORACLE.description else ""
        title = description if description == FITTED_ONCE else f"Epoch: {description}"
        found += [pages.Group(title, kind), *rows]
    entries = runs[0].summary[_FINAL]
    return [*found, pages.Row("clips", [entries[group]["clips"] for group in groups])]


def _full_rows(runs: Sequence[Run], others: Sequence[published.PublishedRow]) -> list[pages.Row]:
    """Every score over all clips; also of published rows that have others than the headline's."""
    rows = []
    for selection, run, name in _named_rows(runs):
        entry = run.summary[selection.value][COMPOSITE]
        cells = [
            (
                f"{entry[score]:.4f} {_spread(entry, score)}".rstrip(),
                _ends(entry[f"{score}_interval"]),
            )
            for score in METRICS
        ]
        kind = "oracle" if selection is Selection.ORACLE else ""
        rows.append(pages.Row(f"{name}: {run.chosen(selection)}", cells, kind))
    for other in others:
        scores = other.scores[COMPOSITE]
        if {*scores} - {*HEADLINE}:
            cells = [_or_dash(scores.get(score), ".4f") for score in METRICS]
            rows.append(pages.Row(f"{other.method}, {other.standing}: {other.selection}", cells))
    return rows


def _named_rows(runs: Sequence[Run]) -> Iterator[tuple[Selection, Run, str]]:
    for selection in Selection:
        for run in runs:
            if selection.value in run.summary:
                name = "this run" if len(runs) == 1 else run.name
                mark = f" ({run.partial})" if run.partial else ""
                yield selection, run, f"{name}, {selection.value}{mark}"


def _published_cell(scores: Mapping[str, float]) -> str | list[str]:
    """The headline scores, and on lines of their own those that the page does not head with."""
    first = " / ".join(_or_dash(scores.get(name), ".4f") for name in HEADLINE)
    rest = [
        f"{METRICS[name].title} {value:.4f}"
        for name, value in scores.items()
        if name not in HEADLINE
    ]
    return [first, *rest] if rest else first


def _score_cell(entry: Mapping[str, Any] | None) -> str | list[str]:
    if entry is None:
        return "-"
    lines = [f"{METRICS[name].title} {_ends(entry[f'{name}_interval'])}" for name in HEADLINE]
    if f"{HEADLINE[0]}_std" in entry:
        lines.append("seeds " + " / ".join(_spread(entry, name) for name in HEADLINE))
    return [tables.values(dict(entry)), *lines]


def _absent_note(run: Run) -> str:
    entries = run.summary[_FINAL]
    found = [
        f"{', '.join(entries[group]['absent'])} in {label}"
        for group, label in _shown_groups(run.predictions).items()
        if "absent" in entries[group]
    ]
    if not found:
        return ""
    return (
        f"* {run.name}: mean over the classes present only, not comparable with a full run: no "
        f"clip of class {'; '.join(found)}."
    )


def _gallery_values(run: Run) -> dict[str, Any]:
    """The mistakes of a run: cards for clips with images, rows of a table for the others."""
    found = gallery.mistakes(run.predictions)
    images = run.images
    index = {} if images is None else {c: i for i, c in enumerate(images.clips.tolist())}
    return {
        "name": run.name,
        "mark": run.partial,
        "final": run.chosen(_FINAL),
        "seeds": len(run.predictions.seeds),
        "most_a_subject": gallery.MOST_A_SUBJECT,
        "any": bool(found),
        "described": run.predictions.described is not None,
        "centred": images is None or images.centred,
        "channels": 0 if images is None or images.mosaic is None else images.mosaic.shape[-1],
        "cards": [
            (one, display_name(one.source), gallery.draw(images, index[one.clip]))
            for one in found
            if images is not None and one.clip in index
        ],
        "rows": [
            pages.Row(
                one.clip,
                [
                    display_name(one.source),
                    one.subject,
                    one.truth,
                    f"{one.predicted} ({one.probability:.0%})",
                    *([one.units or "-", one.nearest_units] if one.nearest_units else []),
                ],
            )
            for one in found
            if one.clip not in index
        ],
    }


# An absolute path, of any system, or one below a home folder.
_PATH = re.compile(
    r"""(?<![\w.)\]])(~\w*)?[/\\][^\s"']|\b[A-Za-z]:[/\\]|\bfile:|(^|[/\\])\.\.[/\\]"""
)
# What names the machine, its user or what was typed there.
_PRIVATE = {
    "command",
    "coordinator",
    "host",
    "hostname",
    "user",
    "workdir",
    "manual_dir",
    "data_dir",
}


def _published(content: Any) -> Any:
    """A run's record without paths and names of the machine and its user."""
    if isinstance(content, Mapping):
        return {
            key: _published(value)
            for key, value in content.items()
            if key not in _PRIVATE and not _PATH.search(str(key))
        }
    if isinstance(content, list):
        return [_published(value) for value in content]
    return "(path left out)" if isinstance(content, str) and _PATH.search(content) else content


def _used(runs: Sequence[Run]) -> dict[str, str]:
    """Selection -> how it chooses, in words; baselines are said to be fitted once."""
    names = [one.value for one in Selection if any(one.value in run.summary for run in runs)]
    return {
        name: tables.chosen_of([run for run in runs if name in run.summary], name) for name in names
    }


_NO_INTERVAL = "no interval"


def _ends(ends: Sequence[float | None]) -> str:
    """`0.583 to 0.699`; "no interval" for a single subject."""
    low, high = ends
    return _NO_INTERVAL if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _signed(value: float) -> str:
    """A difference with its sign, +0.100 for example; a minus sign instead of a hyphen."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _signed_ends(found: Comparison) -> str:
    if found.low <= found.high:
        return f"{_signed(found.low)} to {_signed(found.high)}"
    return _NO_INTERVAL


def _spread(entry: Mapping[str, Any], score: str) -> str:
    """`± 0.012` over seeds; empty for one seed."""
    value = entry.get(f"{score}_std")
    return "" if value is None else f"± {value:.3f}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
