"""How many clips and subjects the MEGC 2019 composite has, and the audit against it."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from htnet_jax.datasets import clips

# Clips (negative, positive, surprise) and subjects of each source: the composite database of
# MEGC 2019 (See et al., "MEGC 2019 - the second facial micro-expressions grand challenge",
# FG 2019), counted in the challenge's label file.
CLIPS = {"smic": (70, 51, 43), "casme2": (88, 32, 25), "samm": (92, 26, 15)}
SUBJECTS = {"smic": 16, "casme2": 24, "samm": 28}


def count(found: Iterable[clips.Clip]) -> dict[str, object]:
    """Counts clips and subjects.

    Returns:
        `{"clips": N, "subjects": N, "per_source": {source: {"negative": n, "positive": n,
        "surprise": n, "subjects": n}}}`, every known source included; JSON types only.
    """
    found = list(found)
    labels = collections.Counter((clip.source, clip.label) for clip in found)
    subjects = {(clip.source, clip.subject) for clip in found}
    per_source = {
        source: {
            **{name: labels[source, label] for label, name in enumerate(clips.CLASSES)},
            "subjects": sum(of == source for of, _ in subjects),
        }
        for source in CLIPS
    }
    return {"clips": len(found), "subjects": len(subjects), "per_source": per_source}


def differences(counted: dict[str, object]) -> list[tuple[str, str]]:
    """Where `count`'s result differs from the published composite.

    Returns:
        `(place, what)` pairs such as `("samm", "91 negative clips, the composite has 92")`; empty
        where everything agrees.
    """
    found = []
    for source, numbers in counted["per_source"].items():
        expected = dict(zip(clips.CLASSES, CLIPS[source], strict=True))
        for name, wanted in expected.items():
            if numbers[name] != wanted:
                what = f"{numbers[name]} {name} clips, the composite has {wanted}"
                found.append((source, what))
        if numbers["subjects"] != SUBJECTS[source]:
            what = f"{numbers['subjects']} subjects, the composite has {SUBJECTS[source]}"
            found.append((source, what))
    totals = {"clips": sum(map(sum, CLIPS.values())), "subjects": sum(SUBJECTS.values())}
    for name, wanted in totals.items():
        if counted[name] != wanted:
            found.append(("all sources", f"{counted[name]} {name}, the composite has {wanted}"))
    return found
