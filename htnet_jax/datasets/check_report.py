"""A data set's checkup as text, JSON and CSV."""

from __future__ import annotations

import collections
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from htnet_jax.datasets.checks import KINDS, Checkup
from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.datasets.similarity import Closest
from htnet_jax.datasets.survey import Finding

# The console shows this many findings of a kind; the files have all.
SHOWN = 10


def by_fold(findings: Sequence[Finding]) -> dict[str, dict[str, int]]:
    """Counts the findings of each kind that touch a fold.

    Returns:
        `{fold: {kind: n}}`: folds by name, kinds in the order of `KINDS`; only those found.
    """
    numbers = collections.Counter((fold, f.kind) for f in findings for fold in f.folds)
    folds = sorted({fold for fold, _ in numbers})
    return {
        fold: {kind: numbers[fold, kind] for kind in KINDS if numbers[fold, kind]} for fold in folds
    }


def as_json(checkup: Checkup, arrays: ClipArrays, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, in JSON types.

    Args:
        checkup: What was found.
        arrays: In this data set.
        settings: Protocol, number of folds and the like; copied into the result.
    """
    return {
        "dataset": arrays.name,
        "fingerprint": arrays.fingerprint,
        **settings,
        "passed": not checkup.problems,
        "problems": len(checkup.problems),
        "notes": len(checkup.findings) - len(checkup.problems),
        "counts": checkup.counts,
        "compared_with_published": checkup.compared,
        "clips_of_person": checkup.persons,
        "landmarks_when_built": checkup.landmarks,
        "most_similar": {
            "same_person": _closest(checkup.alike.within, checkup, arrays),
            "different_people": _closest(checkup.alike.between, checkup, arrays),
        },
        "findings": [
            {
                "kind": f.kind,
                "severity": _severity(f),
                "clips": list(f.clips),
                "folds": list(f.folds),
                "what": f.what,
            }
            for f in checkup.findings
        ],
        "findings_by_fold": by_fold(checkup.findings),
    }


def as_csv(findings: Sequence[Finding]) -> str:
    """One row a finding: severity, kind, clips and folds (joined by " | "), what."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["severity", "kind", "clips", "folds", "what"])
    for f in findings:
        writer.writerow([_severity(f), f.kind, " | ".join(f.clips), " | ".join(f.folds), f.what])
    return text.getvalue()


def as_text(checkup: Checkup, arrays: ClipArrays, title: str) -> str:
    """The report for a console: counts, findings, the folds they touch, and the verdict."""
    parts = [
        f"{arrays.name}: {title}",
        "\n".join(_count_lines(checkup)),
        "\n".join(_similarity_lines(checkup, arrays)),
        *_finding_parts(checkup.findings, arrays),
    ]
    if folds := by_fold(checkup.findings):
        parts.append("\n".join(["findings by fold that tests the clips", *_fold_table(folds)]))
    problems = len(checkup.problems)
    notes = len(checkup.findings) - problems
    parts.append(f"{_number(problems, 'problem')}, {_number(notes, 'note')}")
    return "\n\n".join(parts)


def _severity(finding: Finding) -> str:
    return "problem" if finding.is_problem else "note"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _count_lines(checkup: Checkup) -> list[str]:
    columns = list(next(iter(checkup.counts.values())))
    rows = [["source", *columns]]
    rows += [[name, *map(str, n.values())] for name, n in checkup.counts.items()]
    clips = np.array([person["clips"] for person in checkup.persons.values()])
    lines = _table(rows)
    lines.append(f"clips a person: {clips.min()} to {clips.max()}, median {np.median(clips):g}")
    differs = any(f.kind == "counts" for f in checkup.findings)
    if checkup.compared:
        lines.append(f"published counts: {'differ, see below' if differs else 'all met'}")
    else:
        lines.append("published counts: none to compare a built data set with")
    if checkup.landmarks:
        numbers = ", ".join(f"{number} {key}" for key, number in checkup.landmarks.items())
        lines.append(f"landmarks when it was built: {numbers}")
    return lines


def _similarity_lines(checkup: Checkup, arrays: ClipArrays) -> list[str]:
    lines = []
    for words, closest in (
        ("one person", checkup.alike.within),
        ("two people", checkup.alike.between),
    ):
        found = _closest(closest, checkup, arrays)
        if found:
            names = " and ".join(found["clips"])
            lines.append(f"most similar flows of {words}: {found['similarity']:.3f}, {names}")
    return lines or ["no two flows to compare"]


def _closest(
    closest: Closest | None, checkup: Checkup, arrays: ClipArrays
) -> dict[str, Any] | None:
    if closest is None:
        return None
    rows = checkup.rows[[closest.first, closest.second]]
    clips = [str(arrays.clips[row]) for row in rows]
    return {"similarity": round(closest.similarity, 6), "clips": clips}


def _finding_parts(findings: Sequence[Finding], arrays: ClipArrays) -> list[str]:
    source_of = dict(zip(map(str, arrays.clips), map(str, arrays.sources), strict=True))
    parts = []
    for is_problem in (True, False):
        for kind, meaning in KINDS.items():
            chosen = [f for f in findings if f.kind == kind and f.is_problem == is_problem]
            if not chosen:
                continue
            sources = collections.Counter(
                source for f in chosen for source in {source_of[clip] for clip in f.clips}
            )
            where = ", ".join(f"{source} {n}" for source, n in sorted(sources.items()))
            head = f"{_severity(chosen[0])}: {kind} ({meaning}): {len(chosen)}"
            lines = [f"{head}; {where}" if where else head]
            for f in chosen[:SHOWN]:
                names = ", ".join(f.clips[:SHOWN])
                if len(f.clips) > SHOWN:
                    names += f" and {len(f.clips) - SHOWN} more"
                lines.append(f"  {names}: {f.what}" if names else f"  {f.what}")
            if len(chosen) > SHOWN:
                lines.append(f"  ... and {len(chosen) - SHOWN} more; --json or --csv has all")
            parts.append("\n".join(lines))
    return parts


def _fold_table(folds: Mapping[str, Mapping[str, int]]) -> list[str]:
    kinds = [kind for kind in KINDS if any(kind in numbers for numbers in folds.values())]
    rows = [["fold", *kinds]]
    rows += [[fold, *(str(n.get(kind, "")) for kind in kinds)] for fold, n in folds.items()]
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as needed: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]
