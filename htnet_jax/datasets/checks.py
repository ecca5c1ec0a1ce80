"""What is wrong with a built data set: leaks between folds, label conflicts, empty clips, counts.

Each finding names its clips and the folds that test them; every other fold trains on them.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from htnet_jax import datasets
from htnet_jax.datasets import similarity
from htnet_jax.datasets.builder import RawBuilder
from htnet_jax.datasets.labels import OBJECTIVE
from htnet_jax.datasets.loading import FLOW_CHANNELS, ClipArrays
from htnet_jax.datasets.survey import Finding
from htnet_jax.errors import count, csv_cell, shown
from htnet_jax.evaluation.protocols import Split, classes_lost
from htnet_jax.motion.regions import TEMPLATE_POINTS, outside

# Kind of finding -> what it is about, in the order of the report.
KINDS: Mapping[str, str] = {
    "values": "numbers that are not finite",
    "empty": "flow that shows no motion",
    "identical": "one flow under several clip ids",
    "similar": "nearly one flow under several clip ids",
    "label": "labels that contradict each other",
    "names": "one subject or clip under two names",
    "counts": "differs from the published data set",
    "class": "a fold that never trains on a class",
    "landmarks": "face points that cannot be right",
    "template": "fixed face points, where no face was found",
}

# The console shows this many findings of a kind; the files have all.
SHOWN = 10

# A flow in pixels that varies by this or less shows no motion: far below what any flow method
# resolves, and above the rounding of float32.
_LEAST_MOTION = 1e-3
# Points this near (in pixels) to the template are the template.
_TEMPLATE_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True)
class Checkup:
    """All findings about a data set.

    Attributes:
        findings: In the order of `KINDS`; problems of a kind before its notes.
        counts: See `counted`.
        subjects: Clips of each class of each subject, see `counted_by_subject`.
        compared: Whether there are published numbers, with which `counts` were compared.
        alike: The comparison of all flows; indices are those of `rows`.
        rows: `(M,)` int: the clips whose flows were compared.
        landmarks: Number of clips by origin of their points, as recorded when the data set was
            built; empty if it was not.
    """

    findings: tuple[Finding, ...]
    counts: dict[str, dict[str, int]]
    subjects: dict[str, dict[str, int]]
    compared: bool
    alike: similarity.Alike
    rows: np.ndarray
    landmarks: dict[str, int]

    @property
    def problems(self) -> list[Finding]:
        """The findings that make results wrong."""
        return [finding for finding in self.findings if finding.is_problem]


class _Collector:
    """Makes findings from row numbers."""

    def __init__(self, clips: np.ndarray, folds: Sequence[Split]) -> None:
        self.clips = clips
        self.fold_of = np.full(len(clips), "", dtype=object)
        for fold in folds:
            self.fold_of[fold.test] = fold.name
        self.found: list[Finding] = []

    def add(self, kind: str, what: str, rows: Iterable[int] = (), *, note: bool = False) -> None:
        rows = list(rows)
        clips = tuple(str(self.clips[row]) for row in rows)
        folds = self.folds(rows)
        # Names of subjects and clips are in it.
        self.found.append(Finding(kind, clips, "", shown(what), is_problem=not note, folds=folds))

    def folds(self, rows: Iterable[int]) -> tuple[str, ...]:
        return tuple(sorted({self.fold_of[row] for row in rows} - {""}))


def check(
    arrays: ClipArrays,
    subjects: np.ndarray,
    folds: Sequence[Split],
    metadata: Mapping[str, object] | None = None,
    *,
    threshold: float = similarity.SAME,
) -> Checkup:
    """Looks for everything this module knows of.

    Args:
        arrays: The data set, N clips.
        subjects: `(N,)` str, unique over all sources; from `protocols.unique_subjects`.
        folds: Of a protocol, see `protocols.splits`.
        metadata: What the builder recorded (`info.metadata`).
        threshold: Similarity from which two flows are one clip's, see `similarity`.

    Raises:
        ValueError: Arrays of different lengths.
    """
    lengths = {len(arrays.flow), len(arrays.landmarks), len(arrays.labels), len(subjects)}
    if lengths != {len(arrays.clips)} or any(len(fold.test) not in lengths for fold in folds):
        raise ValueError("the arrays, subjects and folds must be of the same clips")
    metadata = metadata or {}
    collector = _Collector(arrays.clips, folds)
    usable = _check_flows(arrays.flow, collector)
    rows = np.flatnonzero(usable)
    alike = _check_copies(arrays, subjects, rows, threshold, collector)
    _check_emotions(arrays, collector)
    _check_names(arrays, collector)
    compared = _check_counts(arrays, metadata, collector)
    _check_classes(arrays, folds, collector)
    landmarks = _check_landmarks(arrays, metadata, collector)
    order = list(KINDS)
    found = sorted(collector.found, key=lambda f: (order.index(f.kind), not f.is_problem))
    return Checkup(
        tuple(found),
        counted(arrays),
        counted_by_subject(arrays, subjects),
        compared,
        alike,
        rows,
        landmarks,
    )


def counted(arrays: ClipArrays) -> dict[str, dict[str, int]]:
    """Counts subjects, clips of each class and clips: for each source, and for "all" of them.

    Returns:
        `{source: {"subjects": n, class: n, ..., "clips": n}}`; sources by name, "all" last.
    """
    names = sorted({str(source) for source in arrays.sources})
    chosen = {name: arrays.sources == name for name in names}
    chosen["all"] = np.ones(len(arrays.clips), bool)
    return {
        name: {
            "subjects": len({*zip(arrays.sources[rows], arrays.subjects[rows], strict=True)}),
            **_count_classes(arrays, rows),
        }
        for name, rows in chosen.items()
    }


def counted_by_subject(arrays: ClipArrays, subjects: np.ndarray) -> dict[str, dict[str, int]]:
    """Counts the clips of each class, and all clips, of each subject, by name."""
    names = sorted({str(subject) for subject in subjects})
    return {name: _count_classes(arrays, subjects == name) for name in names}


def _count_classes(arrays: ClipArrays, rows: np.ndarray) -> dict[str, int]:
    labels = arrays.labels[rows]
    numbers = {name: int((labels == i).sum()) for i, name in enumerate(arrays.class_names)}
    return {**numbers, "clips": int(rows.sum())}


def _check_flows(flow: np.ndarray, collector: _Collector) -> np.ndarray:
    """`(N,)` bool: the flows that are finite and show motion."""
    finite = np.isfinite(flow)
    usable = finite.all(axis=(1, 2, 3))
    for row in np.flatnonzero(~usable):
        bad = (~finite[row]).sum(axis=(0, 1))
        named = ", ".join(f"{n} of {c}" for n, c in zip(bad, FLOW_CHANNELS, strict=True) if n)
        collector.add("values", f"values of the flow are not finite: {named}", [row])
    for row in np.flatnonzero(usable):
        why = _empty(flow[row])
        if why:
            usable[row] = False
            collector.add("empty", why, [row])
    return usable


def _empty(flow: np.ndarray) -> str:
    """Why a finite flow `(S, S, 3)` shows no motion, or ""."""
    # 0 is added because a value of -0.0 would be printed with its sign.
    low, high = flow.min(axis=(0, 1)) + 0, flow.max(axis=(0, 1)) + 0
    # Strain is a derivative, not a length, and small where there is motion.
    still = high - low <= np.array([_LEAST_MOTION, _LEAST_MOTION, 0])
    if not low.any() and not high.any():
        return "the flow is 0 everywhere, as from an apex that is the onset"
    if still[:2].all():
        return f"u and v do not vary ({low[0]:g}, {low[1]:g}): there is no motion"
    if still.any():
        named = [f"{c} is {low[i]:g}" for i, c in enumerate(FLOW_CHANNELS) if still[i]]
        return f"{', '.join(named)} everywhere"
    extreme = ((flow == low) | (flow == high)).all(axis=(0, 1))
    if extreme.any():
        named = [c for c, is_extreme in zip(FLOW_CHANNELS, extreme, strict=True) if is_extreme]
        return f"{', '.join(named)}: saturated, only two values occur"
    return ""


def _check_copies(
    arrays: ClipArrays,
    subjects: np.ndarray,
    rows: np.ndarray,
    threshold: float,
    collector: _Collector,
) -> similarity.Alike:
    flow = arrays.flow[rows]
    alike = similarity.alike(flow[..., :2], subjects[rows], threshold)
    equal = [tuple(rows[list(group)].tolist()) for group in similarity.equal_groups(flow)]
    for group in equal:
        _add_copies("identical", "the same flow in every value", group, subjects, collector)
        _add_label_conflict("one and the same flow", group, arrays, collector)
    for group, lowest in zip(alike.groups, alike.lowest, strict=True):
        members = tuple(rows[list(group)].tolist())
        if members in equal:  # all of it is said already
            continue
        text = f"nearly the same flow (similarity {lowest:.3f} or more)"
        _add_copies("similar", text, members, subjects, collector)
        _add_label_conflict("nearly the same flow", members, arrays, collector)
    return alike


def _add_copies(
    kind: str, text: str, rows: Sequence[int], subjects: np.ndarray, collector: _Collector
) -> None:
    folds = collector.folds(rows)
    names = sorted({str(subjects[row]) for row in rows})
    if len(names) > 1:
        text += f", on {len(names)} subjects: one of them under two names, or a clip filed twice"
    if len(folds) > 1:
        text += f"; it crosses folds: each of {', '.join(folds)} tests what the others train on"
    # A clip that occurs twice counts twice in every score, even if no fold trains on it.
    is_problem = kind == "identical" or len(folds) > 1 or len(names) > 1
    collector.add(kind, text, rows, note=not is_problem)


def _add_label_conflict(
    text: str, rows: Sequence[int], arrays: ClipArrays, collector: _Collector
) -> None:
    labels = [int(arrays.labels[row]) for row in rows]
    if len(set(labels)) > 1:
        words = ", ".join(
            f"{arrays.clips[row]} is {arrays.class_names[label]}"
            for row, label in zip(rows, labels, strict=True)
        )
        collector.add("label", f"{text} with different labels: {words}", rows)


def _check_emotions(arrays: ClipArrays, collector: _Collector) -> None:
    if arrays.class_names == OBJECTIVE:
        return  # classes by action units: one emotion may be in several
    rows_of = collections.defaultdict(list)
    for row, (source, emotion) in enumerate(zip(arrays.sources, arrays.emotions, strict=True)):
        rows_of[str(source), str(emotion)].append(row)
    for (source, emotion), rows in sorted(rows_of.items()):
        numbers = collections.Counter(int(arrays.labels[row]) for row in rows)
        named = ", ".join(f"{arrays.class_names[label]} {n}x" for label, n in numbers.items())
        # A word that is a class's name says which label is right; else the most frequent one is.
        if emotion in arrays.class_names:
            usual = [arrays.class_names.index(emotion)]
        else:
            most = max(numbers.values())
            usual = [label for label, n in numbers.items() if n == most]
        odd = [row for row in rows if arrays.labels[row] not in usual]
        if odd or len(usual) > 1:
            text = f"emotion {emotion!r} of {source} has the label {named}"
            collector.add("label", text, odd or rows)


def _standard(name: str) -> str:
    """A name without letter case, kind of separator and leading zeros: `EP02_1`, `ep2-01`."""
    name = re.sub(r"[\s_.\-]+", "-", name.strip().casefold())
    return re.sub(r"0+(?=\d)", "", re.sub(r"(\d+)", r" \1", name)).replace(" ", "")


def _check_names(arrays: ClipArrays, collector: _Collector) -> None:
    names = [
        (str(source), str(subject), str(clip).split("/")[-1])
        for source, subject, clip in zip(arrays.sources, arrays.subjects, arrays.clips, strict=True)
    ]
    subjects = collections.defaultdict(list)
    everywhere = collections.defaultdict(list)
    for row, (source, subject, name) in enumerate(names):
        subjects[_standard(source), _standard(subject)].append(row)
        everywhere[_standard(subject), _standard(name)].append(row)
    for rows in subjects.values():
        spelled = sorted({"/".join(names[row][:2]) for row in rows})
        if len(spelled) > 1:
            text = f"one subject spelled in several ways: {', '.join(spelled)}"
            collector.add("names", text, rows)
    for rows in everywhere.values():
        if len(rows) > 1:
            homes = {_standard(names[row][0]) for row in rows}
            spelled = sorted({str(arrays.clips[row]) for row in rows})
            if len(homes) == len(rows):  # may be chance: data sets use similar names
                text = f"one name of subject and clip in several data sets: {', '.join(spelled)}"
            elif len(spelled) == 1:
                text = f"{len(rows)} clips have the id {spelled[0]}"
            else:
                text = f"one clip under several ids: {', '.join(spelled)}"
            collector.add("names", text, rows, note=len(homes) == len(rows))


def _check_counts(
    arrays: ClipArrays, metadata: Mapping[str, object], collector: _Collector
) -> bool:
    builder = datasets.BUILDERS.get(arrays.name.split("/")[0])
    is_raw = builder is not None and issubclass(builder, RawBuilder)
    differences = builder.differences(arrays) if is_raw else None
    for place, what in differences or []:
        collector.add("counts", f"{place}: {what}")
    for what in metadata.get("incomplete", []):
        collector.add("counts", f"left out or wrong when it was built: {what}")
    return differences is not None


def _check_classes(arrays: ClipArrays, folds: Sequence[Split], collector: _Collector) -> None:
    tested = {fold.name: fold.test for fold in folds}
    for name, classes in classes_lost(arrays.labels, folds).items():
        for label in classes:
            text = f"all clips of class {arrays.class_names[label]} are tested in fold {name}, "
            text += "which trains on none of it"
            rows = np.flatnonzero(tested[name] & (arrays.labels == label))
            collector.add("class", text, rows, note=True)


def _check_landmarks(
    arrays: ClipArrays, metadata: Mapping[str, object], collector: _Collector
) -> dict[str, int]:
    side = arrays.flow.shape[1]
    template = (TEMPLATE_POINTS + 0.5) * (side / 28) - 0.5
    for row, points in enumerate(arrays.landmarks):
        if not np.isfinite(points).all():
            collector.add("values", "a landmark is not finite", [row])
        elif (np.ptp(points, axis=0) < _TEMPLATE_ROUNDING).all():
            collector.add("landmarks", "all five points are one", [row])
        elif (np.abs(points - template) < _TEMPLATE_ROUNDING).all():
            text = "the five points are the release's template"
            collector.add("template", text, [row], note=True)
        elif why := _implausible(points, side):
            collector.add("landmarks", why, [row], note=True)
    origins = metadata.get("landmarks", {})
    return {str(key): int(number) for key, number in origins.items()}


def _implausible(points: np.ndarray, side: int) -> str:
    from htnet_jax.motion import landmarks  # here, because it needs OpenCV

    farthest = float(outside(points, side).max())
    if farthest > 0:
        return f"a point lies {farthest:.2g} pixels outside the image"
    return landmarks.implausible(points, (side, side))


# The report.


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
        "clips_of_subject": checkup.subjects,
        "landmarks_when_built": checkup.landmarks,
        "most_similar": {
            "same_subject": _closest(checkup.alike.within, checkup, arrays),
            "different_subjects": _closest(checkup.alike.between, checkup, arrays),
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
    import pandas as pd

    rows = [
        [_severity(f), f.kind, *map(csv_cell, (" | ".join(f.clips), " | ".join(f.folds), f.what))]
        for f in findings
    ]
    table = pd.DataFrame(rows, columns=["severity", "kind", "clips", "folds", "what"])
    return table.to_csv(index=False, lineterminator="\n")


def as_text(checkup: Checkup, arrays: ClipArrays, title: str) -> str:
    """The report for a console: counts, findings, the folds they touch, and the verdict."""
    parts = [
        f"{arrays.name}: {title}",
        "\n".join(_count_lines(checkup)),
        "\n".join(_similarity_lines(checkup, arrays)),
        *_finding_parts(checkup.findings, arrays),
    ]
    if folds := by_fold(checkup.findings):
        kinds = [kind for kind in KINDS if any(kind in n for n in folds.values())]
        rows = {fold: {kind: n.get(kind) for kind in kinds} for fold, n in folds.items()}
        parts.append(f"findings by fold that tests the clips\n{_table(rows, 'fold')}")
    problems = len(checkup.problems)
    notes = len(checkup.findings) - problems
    parts.append(f"{count(problems, 'problem')}, {count(notes, 'note')}")
    return "\n\n".join(parts)


def _joined(between: str, names: Iterable[str]) -> str:
    return between.join(map(shown, names))


def _severity(finding: Finding) -> str:
    return "problem" if finding.is_problem else "note"


def _count_lines(checkup: Checkup) -> list[str]:
    clips = np.array([subject["clips"] for subject in checkup.subjects.values()])
    spread = f"clips a subject: {clips.min()} to {clips.max()}, median {np.median(clips):g}"
    lines = [_table(checkup.counts, "source"), spread]
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
        ("one subject", checkup.alike.within),
        ("two subjects", checkup.alike.between),
    ):
        found = _closest(closest, checkup, arrays)
        if found:
            names = _joined(" and ", found["clips"])
            lines.append(f"most similar flows of {words}: {found['similarity']:.3f}, {names}")
    return lines or ["no two flows to compare"]


def _closest(
    closest: similarity.Closest | None, checkup: Checkup, arrays: ClipArrays
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
                names = _joined(", ", f.clips[:SHOWN])
                if len(f.clips) > SHOWN:
                    names += f" and {len(f.clips) - SHOWN} more"
                lines.append(f"  {names}: {f.what}" if names else f"  {f.what}")
            if len(chosen) > SHOWN:
                lines.append(f"  ... and {len(chosen) - SHOWN} more; --json or --csv has all")
            parts.append("\n".join(lines))
    return parts


def _table(rows: Mapping[str, Mapping[str, int | None]], name: str) -> str:
    """Name of a row -> name of a column -> number, as text; `name` heads the first column."""
    import pandas as pd

    rows = {shown(key): row for key, row in rows.items()}
    table = pd.DataFrame.from_dict(rows, orient="index").astype("Int64").astype(object)
    table = table.where(table.notna(), "").rename_axis(name, axis="columns")
    return table.to_string()
