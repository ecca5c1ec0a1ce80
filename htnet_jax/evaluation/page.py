"""The report as one HTML page: no script, no link to anything outside the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from htnet_jax.evaluation import (
    curves,
    drawing,
    gallery,
    markup,
    plots,
    scoreboard,
    sections,
    tables,
)
from htnet_jax.evaluation.comparison import Pair
from htnet_jax.evaluation.protocols import PROTOCOLS
from htnet_jax.evaluation.runs import Run
from htnet_jax.evaluation.selection import Selection, select
from htnet_jax.evaluation.summary import SOURCE_NAMES

_CURVES = "learning_curves"
_INTERVALS = "intervals"


def figures(runs: Sequence[Run], pairs: Sequence[Pair] = ()) -> dict[str, drawing.Drawn]:
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
    marks = {run.name: tables.partial_mark(run) for run in runs}
    every = _marks(runs)
    found = {}
    if len(runs) > 1:
        found[_INTERVALS] = plots.draw_intervals(runs, every)
    drawn = curves.draw(runs, every)
    if drawn is not None:
        found[_CURVES] = drawn
    people = {}
    for run in runs:
        end = _end(runs, run)
        selected = select(run.predictions, Selection.FINAL)
        people[run.name] = plots.subjects(run.predictions, selected.predicted)
        for stem, group, label in _confusions(runs, run):
            found[stem] = plots.draw_confusion(
                run.summary[Selection.FINAL.value][group]["confusion"],
                run.predictions.class_names.tolist(),
                label,
                len(run.predictions.seeds),
                marks[run.name],
            )
        found[f"subjects{end}"] = plots.draw_subjects(
            people[run.name], SOURCE_NAMES, marks[run.name]
        )
        found[f"calibration{end}"] = plots.draw_calibration(
            plots.reliabilities(run.predictions, selected), marks[run.name]
        )
    for pair in pairs:
        shares = plots.agreement(people[pair.first], people[pair.second])
        found[_agreement(runs, pair)] = plots.draw_agreement(
            shares, (pair.first, pair.second), marks[pair.first] or marks[pair.second]
        )
    return found


def render(runs: Sequence[Run], pairs: Sequence[Pair], drawn: Mapping[str, drawing.Drawn]) -> str:
    """The whole page.

    Args:
        runs: One or several, with different names.
        pairs: Comparisons of these runs.
        drawn: What `figures` returned for the same runs and pairs.

    Returns:
        HTML text with its style and its pictures inside.

    Raises:
        ValueError: As `figures`.
    """
    _check(runs, pairs)
    several = len(runs) > 1
    stems = [_agreement(runs, pair) for pair in pairs]
    parts = [sections.headline(run, named=several) for run in runs]
    if several:
        parts.append(
            markup.section("All runs", sections.figure(drawn[_INTERVALS], _intervals_caption()))
        )
    parts += [scoreboard.differences(runs, pairs, drawn, stems), scoreboard.scores(runs)]
    parts.append(_curves(drawn))
    for run in runs:
        pictures = [drawn[stem] for stem, _, _ in _confusions(runs, run)]
        parts.append(sections.classes(run, pictures, named=several))
    for run in runs:
        picture = drawn[f"subjects{_end(runs, run)}"]
        parts.append(sections.subjects(run, picture, named=several))
    for run in runs:
        picture = drawn[f"calibration{_end(runs, run)}"]
        parts.append(sections.calibration(run, picture, named=several))
    parts += [gallery.section(runs[0]), _how_to_read(runs), sections.records(runs, named=several)]
    names = [run.name for run in runs]
    title = " and ".join([*([", ".join(names[:-1])] if several else []), names[-1]])
    return markup.document(title, "\n".join(part for part in parts if part))


def _marks(runs: Sequence[Run]) -> str:
    """What must stand on a plot of all runs."""
    if len(runs) == 1:
        return tables.partial_mark(runs[0])
    partial = [run.name for run in runs if tables.partial_mark(run)]
    return f"PARTIAL, folds are missing: {', '.join(partial)}" if partial else ""


def _check(runs: Sequence[Run], pairs: Sequence[Pair]) -> None:
    names = [run.name for run in runs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a page needs runs with different names, got {names}")
    unknown = {name for pair in pairs for name in (pair.first, pair.second)} - set(names)
    if unknown:
        raise ValueError(f"a pair names runs that are not on the page: {sorted(unknown)}")


def _end(runs: Sequence[Run], run: Run) -> str:
    """What tells the run's files from those of others."""
    return f"_{_number(runs, run.name)}" if len(runs) > 1 else ""


def _number(runs: Sequence[Run], name: str) -> int:
    return [run.name for run in runs].index(name) + 1


def _agreement(runs: Sequence[Run], pair: Pair) -> str:
    return f"agreement_{_number(runs, pair.first)}_{_number(runs, pair.second)}"


def _confusions(runs: Sequence[Run], run: Run) -> Iterator[tuple[str, str, str]]:
    """(stem, group, how to write it) of each confusion matrix."""
    taken = set()
    for group, label in scoreboard.shown_groups(run.predictions).items():
        # A source may be called anything; its file may not.
        slug = re.sub(r"[^a-z0-9]+", "_", group.lower()).strip("_") or "source"
        while slug in taken:
            slug += "_"
        taken.add(slug)
        yield f"confusion_{slug}{_end(runs, run)}", group, label


def _curves(drawn: Mapping[str, drawing.Drawn]) -> str:
    title = "Over the epochs"
    if _CURVES not in drawn:
        words = "One epoch was recorded, so there is no curve, and nothing to select."
        return markup.section(title, markup.paragraph(words))
    caption = (
        "What final and oracle would have given had training ended after each epoch. "
        f"final: {Selection.FINAL.description}. oracle: {Selection.ORACLE.description}. The "
        "shaded gap is what looking at the test subject adds: it grows with the number of "
        "epochs to choose from, without the model getting better. Several seeds: line = mean, "
        "band = lowest to highest."
    )
    return markup.section(title, sections.figure(drawn[_CURVES], caption))


def _intervals_caption() -> str:
    return (
        f"Over all clips. final: {Selection.FINAL.description}. inner: "
        f"{Selection.INNER.description}. Overlapping intervals do not mean that runs are equal: "
        "the runs saw the same people, so look at the differences below."
    )


_READING = (
    (
        "UF1, UAR",
        "means over the classes of F1 = 2TP / (2TP + FP + FN) and of recall = TP / (TP + FN), from "
        "one confusion matrix over the test clips of all folds together. Macro-F1 differs only "
        "where a class has no clip.",
    ),
    (
        "Intervals",
        "95 %, by bootstrap over subjects (2000 resamples, within each source), because the clips "
        "of one subject are not independent: expanded percentile intervals. They cover the choice "
        "of subjects, not the chance in training; that is what ± over seeds shows.",
    ),
    (
        "p-values",
        "by a permutation test that swaps the two runs' results of a subject (10000 swaps, or all "
        "of them where there are fewer), two-sided. A difference is called shown where "
        f"p < {scoreboard.LIMIT} and the interval of the difference leaves out 0. A difference "
        "that is not shown may still be there.",
    ),
    (
        "ECE, NLL",
        "expected calibration error, the mean distance of probability and share of right clips "
        "over 15 bins; mean negative log-likelihood of the true class, in nats.",
    ),
)


def _how_to_read(runs: Sequence[Run]) -> str:
    present = [s for s in Selection if any(s.value in run.summary for run in runs)]
    entries = [(selection.value, selection.description) for selection in present]
    entries.append(
        (
            "Protocol",
            "; ".join(
                f"{run.name}: {words}" if len(runs) > 1 else words
                for run in runs
                for words in [_protocol(run)]
            ),
        )
    )
    if len(runs) > 1 and any(len(run.predictions.epochs) == 1 for run in runs):
        words = "nothing was selected in it, so in differences its final stands for inner too."
        entries.append(("A run of one epoch", words))
    listed = "".join(
        f"<dt>{markup.text(term)}</dt><dd>{markup.text(words)}</dd>"
        for term, words in (*entries, *_READING)
    )
    return markup.section("How to read this", f"<dl>{listed}</dl>")


def _protocol(run: Run) -> str:
    name = str(run.predictions.protocol)
    return (
        f"{PROTOCOLS.get(name, name)} ({name}): a clip is tested by a model that never saw its "
        + ("data set" if name == "lodo" else "subject")
    )
