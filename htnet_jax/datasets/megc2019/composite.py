"""The composite assembled from copies of CASME II, SMIC and SAMM: which of their clips it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from htnet_jax.datasets import clips, raw_builder
from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.casme2 import layout as casme2
from htnet_jax.datasets.megc2019 import counts
from htnet_jax.datasets.raw import LabelSet, RawClip
from htnet_jax.datasets.samm import layout as samm
from htnet_jax.datasets.smic import layout as smic

HOMEPAGE = "https://github.com/Facial-Micro-ExpressionGC/MEGC2019"

# In the order of the challenge's clip list.
SOURCES: dict[str, ModuleType] = {"casme2": casme2, "smic": smic, "samm": samm}

LABELS: Mapping[str, LabelSet] = {"megc3": LabelSet(clips.CLASSES, {"": clips.CLASSES[0]})}

# Clips with one of the three labels that the challenge's list leaves out, and why.
EXCLUDED = {
    "casme2/sub04/EP12_01f": "its sheet has no apex frame",
    "casme2/sub05/EP09_05f": "its apex is its onset",
    # Sadness in the sheet of 2014, which the challenge used; surprise in the sheet of 2019.
    "casme2/sub24/EP07_01": "sadness in the sheet the challenge used",
    "casme2/sub24/EP07_04f": "sadness in the sheet the challenge used",
    "casme2/sub24/EP10_03": "sadness in the sheet the challenge used",
}

LAYOUT = """the manual directory must hold a copy of each of the three data sets, in
  casme2/  smic/  samm/   (letter case ignored), each as its own builder takes it"""


def survey(folder: Path, variant: str, audit: Audit) -> list[tuple[RawClip, int]]:
    """The composite's clips and labels, in the order of the challenge's list.

    Args:
        folder: Holds `casme2/`, `smic/` and `samm/`.
        variant: `raw` or `cropped` frames of CASME II; "" for its default.
        audit: Receives what is wrong, differences from the published counts included.
    """
    inside = {path.name.casefold(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    found: list[tuple[RawClip, int]] = []
    for source, layout in SOURCES.items():
        place = inside.get(source)
        if place is None:
            audit.add("folder", source, f"no folder {source}/ in {folder}; {LAYOUT}")
            continue
        if place.is_symlink():
            # Copies of three data sets seldom lie in one folder; links below these are refused.
            audit.note(source, f"the link to {place.resolve()} is followed")
            place = place.resolve()
        own = variant if variant in layout.VARIANTS else ""
        labels = layout.LABELS["megc3"]
        for clip in raw_builder.survey(source, layout, place, own, audit):
            label = labels.label(clip)
            if label is None:
                continue
            if clip.id in EXCLUDED:
                audit.note(clip.id, f"left out: {EXCLUDED[clip.id]}", clip=clip.id)
            else:
                found.append((clip, label))
    as_clips = [
        clips.Clip(clip.source, clip.subject, clip.name, label, clip.emotion)
        for clip, label in found
    ]
    for place, what in counts.differences(counts.count(as_clips)):
        audit.add("count", place, what)
    return found
