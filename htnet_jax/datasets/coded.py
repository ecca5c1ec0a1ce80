"""What CASME II and SAMM share: sheets with the same coding, and raw beside cropped pictures."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from htnet_jax.datasets import sheets
from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.raw import action_units
from htnet_jax.datasets.tree import Tree


def values(
    row: sheets.SheetRow,
    clip_id: str,
    audit: Audit,
    *,
    emotions: Collection[str],
    synonyms: Mapping[str, str],
) -> dict[str, Any] | None:
    """The fields of a `RawClip` that a row gives.

    Args:
        row: Has the cells onset, apex, offset, emotion, objective and aus.
        clip_id: For the findings.
        audit: Receives what is wrong with the row.
        emotions: The words there are, in lower case.
        synonyms: Other word -> word of `emotions`.

    Returns:
        emotion, onset, apex, offset, aus and objective, or None for a row with findings.
    """
    problems = [
        f"{key} frame is {row.cells[key]!r}, not a whole number"
        for key in ("onset", "apex", "offset")
        if row.whole(key) is None and (key != "apex" or row.cells[key] not in ("", "/"))
    ]
    onset, offset = row.whole("onset"), row.whole("offset")
    if onset is not None and offset is not None and offset < onset:
        problems.append(f"offset frame {offset} lies before onset frame {onset}")
    word = row.cells["emotion"].casefold()
    emotion = synonyms.get(word, word)
    if emotion not in emotions:
        known = ", ".join(emotions)
        problems.append(f"emotion {row.cells['emotion']!r} is unknown, expected one of {known}")
    objective = row.cells["objective"]
    if not re.fullmatch("[1-7]?", objective):
        problems.append(f"objective class is {objective!r}, expected 1 to 7")
    for problem in problems:
        audit.add("row", row.where, problem, clip=clip_id)
    if problems:
        return None
    return {
        "emotion": emotion,
        "onset": onset,
        "apex": row.whole("apex"),
        "offset": offset,
        "aus": action_units(row.cells["aus"]),
        "objective": int(objective or 0),
    }


def uses_cropped(tree: Tree, variant: str, there: set[bool], audit: Audit) -> bool:
    """Whether clips are taken from the cropped pictures: the variant's, or what there is.

    Args:
        tree: The copy.
        variant: "raw" or "cropped".
        there: For the folders of pictures that there are: whether they are cropped.
        audit: Receives a note where the variant is not there.
    """
    wanted = variant == "cropped"
    if not there or wanted in there:
        return wanted
    other = "raw" if wanted else "cropped"
    audit.note(tree.root, f"there are no {variant} pictures; the {other} ones are used")
    return not wanted


def only_folder(
    tree: Tree, found: Iterable[Path], clip_id: str, cropped: bool, audit: Audit
) -> Path | None:
    """The one folder of a clip; none or several are a finding.

    Args:
        tree: The copy.
        found: The folders that may be the clip's.
        clip_id: `source/subject/name`.
        cropped: Which pictures are wanted, for the finding.
        audit: Receives the finding.
    """
    folders = sorted(found)
    if len(folders) == 1:
        return folders[0]
    place = clip_id.partition("/")[2]
    if folders:
        places = ", ".join(tree.below(path) for path in folders)
        audit.add("path", place, f"{len(folders)} folders: {places}", clip=clip_id)
    else:
        which = "cropped" if cropped else "raw"
        audit.add("folder", place, f"no folder {place} with {which} pictures", clip=clip_id)
    return None
