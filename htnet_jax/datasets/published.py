"""Clips and subjects of a built data set: counted, and compared with the published numbers."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from htnet_jax import datasets
from htnet_jax.datasets import megc2019_release
from htnet_jax.datasets.builder import RawBuilder
from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.datasets.survey import nearest

ALL = "all"


def counted(arrays: ClipArrays) -> dict[str, dict[str, int]]:
    """Counts subjects, clips of each class and clips: for each source, and for `ALL` sources.

    Returns:
        `{source: {"subjects": n, class: n, ..., "clips": n}}`; sources by name, `ALL` last.
    """
    names = sorted({str(source) for source in arrays.sources})
    chosen = {name: arrays.sources == name for name in names}
    chosen[ALL] = np.ones(len(arrays.clips), bool)
    return {
        name: {
            "subjects": len({*zip(arrays.sources[rows], arrays.subjects[rows], strict=True)}),
            **_classes(arrays.labels[rows], arrays.class_names),
            "clips": int(rows.sum()),
        }
        for name, rows in chosen.items()
    }


def counted_by_person(arrays: ClipArrays, persons: np.ndarray) -> dict[str, dict[str, int]]:
    """Counts the clips of each class, and all clips, of each subject, by name."""
    found = {}
    for name in sorted({str(person) for person in persons}):
        rows = persons == name
        classes = _classes(arrays.labels[rows], arrays.class_names)
        found[name] = {**classes, "clips": int(rows.sum())}
    return found


def differences(arrays: ClipArrays) -> list[tuple[str, str]] | None:
    """Where the counts differ from those that the data set's file declares.

    MEGC 2019 is compared by source, class and subject. A data set that was made from its own copy
    was compared as a whole when it was built; here its clips of each emotion are compared again,
    as far as these belong to one of the classes.

    Returns:
        `(place, what)` pairs; empty if all agree, None if no published numbers are known.
    """
    name = arrays.name.split("/")[0]
    builder = datasets.BUILDERS.get(name)
    if builder is datasets.Megc2019:
        rows = zip(arrays.sources, arrays.subjects, arrays.labels, strict=True)
        found = ((str(source), str(subject), int(label)) for source, subject, label in rows)
        return megc2019_release.differences(megc2019_release.count(found))
    if builder is None or not issubclass(builder, RawBuilder):
        return None
    sets = [labels for labels in builder.LABELS.values() if labels.classes == arrays.class_names]
    words = sets[0].of_emotion if sets else {}
    versions = [
        dataclasses.replace(c, emotions={w: n for w, n in c.emotions.items() if w in words})
        for c in builder.COUNTS
    ]
    versions = [counts for counts in versions if counts.emotions]
    if not versions:
        return None
    found = collections.Counter(str(word) for word in arrays.emotions)
    return [
        (name, f"{found[word]} clips of {word}, the published data set has {number}")
        for word, number in nearest(versions, found).emotions.items()
        if found[word] != number
    ]


def _classes(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    return {name: int((labels == label).sum()) for label, name in enumerate(names)}
