"""Clips and people of a built data set: counted, and compared with the published numbers."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from htnet_jax import datasets
from htnet_jax.datasets import clips, raw_builder
from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.datasets.megc2019 import counts

ALL = "all"


def counted(arrays: ClipArrays) -> dict[str, dict[str, int]]:
    """Counts people, clips of each class and clips: for each source, and for `ALL` sources.

    Returns:
        `{source: {"people": n, class: n, ..., "clips": n}}`; sources by name, `ALL` last.
    """
    names = sorted({str(source) for source in arrays.sources})
    chosen = {name: arrays.sources == name for name in names}
    chosen[ALL] = np.ones(len(arrays.clips), bool)
    return {
        name: {
            "people": len({*zip(arrays.sources[rows], arrays.subjects[rows], strict=True)}),
            **_classes(arrays.labels[rows], arrays.class_names),
            "clips": int(rows.sum()),
        }
        for name, rows in chosen.items()
    }


def counted_by_person(arrays: ClipArrays, persons: np.ndarray) -> dict[str, dict[str, int]]:
    """Counts the clips of each class, and all clips, of each person: people by name."""
    found = {}
    for name in sorted({str(person) for person in persons}):
        rows = persons == name
        classes = _classes(arrays.labels[rows], arrays.class_names)
        found[name] = {**classes, "clips": int(rows.sum())}
    return found


def differences(arrays: ClipArrays) -> list[tuple[str, str]] | None:
    """Where the counts differ from the published ones.

    MEGC 2019 is compared by source, class and subject. A data set that was made from its own copy
    was compared as a whole when it was built; here its clips of each emotion are compared again,
    if its layout knows their number.

    Returns:
        `(place, what)` pairs; empty if all agree, None if no published numbers are known.
    """
    name = arrays.name.split("/")[0]
    builder = datasets.BUILDERS.get(name)
    if builder is datasets.BUILDERS["megc2019"]:
        return counts.differences(counts.count(_clips(arrays)))
    if builder is None or not issubclass(builder, raw_builder.RawBuilder):
        return None
    published = _emotions(builder.LAYOUT_MODULE, arrays)
    if not published:
        return None
    found = collections.Counter(str(word) for word in arrays.emotions)
    return [
        (name, f"{found[word]} clips of {word}, the published data set has {number}")
        for word, number in published.items()
        if found[word] != number
    ]


def _classes(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    return {name: int((labels == label).sum()) for label, name in enumerate(names)}


def _clips(arrays: ClipArrays) -> list[clips.Clip]:
    fields = (arrays.sources, arrays.subjects, arrays.clips, arrays.labels, arrays.emotions)
    return [
        clips.Clip(str(source), str(subject), str(clip), int(label), str(emotion))
        for source, subject, clip, label, emotion in zip(*fields, strict=True)
    ]


def _emotions(layout: object, arrays: ClipArrays) -> dict[str, int]:
    """Published clips of each emotion that belongs to one of the classes; empty: not known."""
    known = getattr(layout, "EMOTIONS", None)
    if not isinstance(known, Mapping):
        return {}
    # Several sheets may be in use; the one that comes nearest is meant, as when building.
    sheets = list(known.values()) if isinstance(next(iter(known.values())), Mapping) else [known]
    sets = [labels for labels in layout.LABELS.values() if labels.classes == arrays.class_names]
    if not sets or not sets[0].of_emotion:
        return {}
    found = collections.Counter(str(word) for word in arrays.emotions)
    wanted = [{w: n for w, n in sheet.items() if w in sets[0].of_emotion} for sheet in sheets]
    return min(wanted, key=lambda sheet: sum(abs(found[w] - n) for w, n in sheet.items()))
