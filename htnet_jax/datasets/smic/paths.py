"""Clip names of SMIC, and what the path of a clip's folder says about it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.tree import Tree

# Code in a clip's name -> emotion, which is also the name of the folder above the clip.
EMOTIONS = {"ne": "negative", "po": "positive", "sur": "surprise"}
NAME = r"s0*(\d+)_(ne|po|sur)_0*(\d+)"
MODALITIES = ("hs", "vis", "nir")

_SUBJECT = r"s0*(\d+)"
_NON_MICRO = r"non.?micro"
# SMIC-E, the long clips: `HS_long`, `SMIC_HS_E`, `SMIC-HS-E`, `SMIC-E_raw image`.
_LONG = r"(smic[-_ ]?((hs|vis|nir)[-_ ]?)?|(hs|vis|nir)[-_ ]?)(e|long)([^a-z].*)?"
_SHORT = r"smic[-_ ]?all.*"


def standard_name(text: str) -> str | None:
    """A clip's name padded as in MEGC 2019's list (`s1_ne_1` -> `s01_ne_01`); None if it is none.

    Letter case is ignored.
    """
    found = re.fullmatch(NAME, text.strip(), re.IGNORECASE)
    return found and f"s{int(found[1]):02d}_{found[2].lower()}_{int(found[3]):02d}"


def subject_of(name: str) -> str:
    """Subject of a standard name: `s01` of `s01_ne_01`."""
    return name.partition("_")[0]


def emotion_of(name: str) -> str:
    """Emotion by the code in a standard name: "negative", "positive" or "surprise"."""
    return EMOTIONS[name.split("_")[1]]


def clip_id(name: str) -> str:
    """`smic/SUBJECT/NAME` of a standard name."""
    return f"smic/{subject_of(name)}/{name}"


def is_long(folder: Path) -> bool:
    """Whether a folder belongs to SMIC-E, by the innermost part of its path that tells."""
    for part in reversed(folder.parts):
        if re.fullmatch(_LONG, part, re.IGNORECASE):
            return True
        if re.fullmatch(_SHORT, part, re.IGNORECASE):
            return False
    return False


def modality(tree: Tree, folder: Path) -> str:
    """The innermost of "hs", "vis" and "nir" in the path; "" if it names none."""
    for part in reversed(_parts(tree, folder)):
        words = re.split(r"[^a-z]+", part.casefold())
        for name in MODALITIES:
            if name in words:
                return name
    return ""


def is_non_micro(tree: Tree, folder: Path) -> bool:
    """Whether a folder is or lies in `non_micro`, clips without an expression."""
    return any(re.fullmatch(_NON_MICRO, p, re.IGNORECASE) for p in _parts(tree, folder))


def pictures(tree: Tree, folder: Path) -> str:
    """What the path says of the pictures: "raw", "cropped" or ""."""
    for part in reversed(_parts(tree, folder)):
        words = re.split(r"[^a-z]+", part.casefold())
        if "raw" in words:
            return "raw"
        if "cropped" in words or "crop" in words:
            return "cropped"
    return ""


def contradiction(tree: Tree, folder: Path, name: str) -> str:
    """How the folders above a clip contradict its name, or ""."""
    for part in _parts(tree, folder)[1:-1]:
        found = re.fullmatch(_SUBJECT, part, re.IGNORECASE)
        if found and f"s{int(found[1]):02d}" != subject_of(name):
            return f"the clip's name is of subject {subject_of(name)}, its folder is in {part}"
        if part.casefold() in EMOTIONS.values() and part.casefold() != emotion_of(name):
            return f"the clip's name says {emotion_of(name)}, its folder is in {part}"
    return ""


def choose(tree: Tree, name: str, folders: Iterable[Path], audit: Audit) -> Path | None:
    """The one folder of a clip; None, and a finding, if there are several or it contradicts.

    An archive unpacked into a folder of its own name leaves that name twice in the path: the inner
    folder counts.
    """
    folders = list(folders)
    inner = [p for p in folders if not any(p in other.parents for other in folders)]
    if len(inner) > 1:
        names = ", ".join(tree.below(path) for path in inner)
        audit.add("path", tree.below(inner[0]), f"several folders: {names}", clip=clip_id(name))
        return None
    if what := contradiction(tree, inner[0], name):
        audit.add("row", tree.below(inner[0]), what, clip=clip_id(name))
        return None
    return inner[0]


def _parts(tree: Tree, folder: Path) -> tuple[str, ...]:
    """The chosen folder's own name, then the path below it."""
    return (tree.root.name, *folder.relative_to(tree.root).parts)
