"""Where SMIC's clips, frames and labels are found in a copy of the data set."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.raw import LabelSet, RawClip, own_classes, three_classes
from htnet_jax.datasets.smic import long_clips, paths
from htnet_jax.datasets.tree import Tree, frames

VARIANTS: tuple[str, ...] = paths.MODALITIES

LABELS: Mapping[str, LabelSet] = {
    "megc3": three_classes("negative", "positive", "surprise"),
    "own": own_classes("negative positive surprise"),
}


HOMEPAGE = "https://www.oulu.fi/cmvs/node/41319"

LAYOUT = """the manual directory must hold one of
  SMIC_all_raw/HS/s1/micro/negative/s1_ne_01/image559740.bmp
  SMIC_all_cropped/HS/s1/micro/negative/s1_ne_01/reg_image559740.bmp
  (VIS, NIR: folders beside HS; the label is the clip's code ne, po or sur; no sheet is needed)
or, of SMIC-E,
  HS_long/SMIC_HS_E/s03/s3_ne_01/image034208.jpg  (also VIS, NIR)
  SMIC-HS-E_annotation.xlsx  (columns Subject, Filename, OnsetF, OffsetF; also Onset2F, Offset2F,
                              Onset3F, Offset3F, Emotion; NIR: OnsetF NIR, OffsetF NIR)
Letter case, padding of numbers and folders around these do not matter; a path that names none of
HS, VIS and NIR is taken as HS. The variants are hs, vis and nir."""

CORRECTIONS = long_clips.CORRECTIONS

# The public loaders' audits of the cropped copies.
_LACKING = {"s03_po_08": 2, "s03_sur_01": 1, "s03_sur_05": 1, "s03_ne_16": 1}
KNOWN_GAPS: Mapping[str, str] = {
    paths.clip_id(name): f"the cropped HS copies lack images of this clip ({lacking})"
    for name, lacking in _LACKING.items()
}

# Clips, subjects and clips (negative, positive, surprise). HS: MEGC 2019's label list. SMIC-E's
# HS: the same without its three lost clips. VIS: SMIC-E's sheet by clip names; NIR has as many
# clips (Li et al., FG 2013), its subjects and emotions are not published.
_HS = (164, 16, (70, 51, 43))
_HS_LONG = (161, 16, (68, 51, 42))
_VIS = (71, 8, (23, 28, 20))
_NIR = (71, None, None)


def survey(tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
    """All clips of a modality, sorted by subject and name; everything else is a finding.

    Short clips are preferred to SMIC-E's long ones if both are there, and of raw and cropped
    pictures the more complete copy is taken, raw if they are equal; a note says so.

    Args:
        tree: The manual directory.
        variant: One of `VARIANTS`.
        audit: Receives the findings.
    """
    short, long, unnamed = [], [], 0
    for folder in tree.names(paths.NAME):
        of = paths.modality(tree, folder)
        if (of or VARIANTS[0]) != variant or paths.is_non_micro(tree, folder):
            continue
        unnamed += not of
        (long if paths.is_long(folder) else short).append(folder)
    if unnamed:
        what = f"{unnamed} clip folders are taken as HS: no folder above names HS, VIS or NIR"
        audit.note(tree.root, what)
    if short and long:
        what = f"{len(short)} short clips are used; {len(long)} long ones (SMIC-E) are left out"
        audit.note(tree.root, what)
    if short:
        found = _short_clips(tree, _one_copy(tree, short, audit), audit)
    elif long:
        found = _long_clips(tree, variant, _one_copy(tree, long, audit), audit)
    else:
        what = f"no {variant.upper()} clip folder such as HS/s1/micro/negative/s1_ne_01"
        audit.add("folder", tree.root, what)
        found = []
    _report_strange(tree, variant, audit)
    return sorted(found, key=lambda clip: (clip.subject, clip.name))


def check_counts(clips: list[RawClip], variant: str, audit: Audit) -> None:
    """Compares clips, subjects and emotions with the published numbers of the recognised copy.

    Args:
        clips: What `survey` returned.
        variant: One of `VARIANTS`.
        audit: Receives a "count" finding for each difference.
    """
    is_long = any(paths.is_long(clip.folder) for clip in clips)
    title = f"SMIC{'-E' if is_long else ''} {variant.upper()}"
    hs = _HS_LONG if is_long else _HS
    number, subjects, emotions = {"hs": hs, "vis": _VIS, "nir": _NIR}[variant]
    counted = collections.Counter(clip.emotion for clip in clips)
    wanted = [("clips", len(clips), number)]
    people = len({clip.subject for clip in clips})
    if subjects is None or emotions is None:
        had = ", ".join(f"{counted[word]} {word}" for word in paths.EMOTIONS.values())
        audit.note(title, f"{people} subjects, {had}; there are no published numbers to compare")
    else:
        wanted.append(("subjects", people, subjects))
        for word, published in zip(paths.EMOTIONS.values(), emotions, strict=True):
            wanted.append((f"{word} clips", counted[word], published))
    for what, count, published in wanted:
        if count != published:
            audit.add("count", title, f"{count} {what}, the published data set has {published}")


def _one_copy(tree: Tree, folders: Sequence[Path], audit: Audit) -> dict[str, list[Path]]:
    """Clip name -> its folders, all of raw or all of cropped pictures."""
    copies: dict[str, dict[str, list[Path]]] = {"raw": {}, "cropped": {}, "": {}}
    for folder in folders:
        name = paths.standard_name(folder.name)
        if name:
            copies[paths.pictures(tree, folder)].setdefault(name, []).append(folder)
    chosen = max(copies, key=lambda kind: len(copies[kind]))  # the first of equal ones
    others = [f"{len(found)} {kind}".strip() for kind, found in copies.items() if kind != chosen]
    if sum(map(bool, copies.values())) > 1:
        what = f"{len(copies[chosen])} {chosen} clips are used; there are also {', '.join(others)}"
        audit.note(tree.root, what)
    return copies[chosen]


def _short_clips(tree: Tree, found: Mapping[str, list[Path]], audit: Audit) -> list[RawClip]:
    """Clips that go from the first to the last frame of their folder."""
    clips = []
    for name, folders in found.items():
        folder = paths.choose(tree, name, folders, audit)
        if folder is None:
            continue
        where, clip = tree.below(folder), paths.clip_id(name)
        try:
            numbers = frames(folder)
        except (OSError, ValueError) as error:
            audit.add("path", where, str(error), clip=clip)
            continue
        if not numbers:
            audit.add("folder", where, "it holds no pictures", clip=clip)
            continue
        if clip in KNOWN_GAPS and paths.pictures(tree, folder) == "cropped":
            audit.note(where, f"{KNOWN_GAPS[clip]}; it is taken as it is", clip=clip)
        clips.append(_clip(name, folder, min(numbers), max(numbers)))
    return clips


def _long_clips(
    tree: Tree, variant: str, found: Mapping[str, list[Path]], audit: Audit
) -> list[RawClip]:
    """Clips by SMIC-E's sheet."""
    sheet = long_clips.find_sheet(tree, variant, audit)
    intervals = long_clips.read_intervals(sheet, variant, audit) if sheet else {}
    if not intervals:
        return []
    clips = []
    for name, interval in intervals.items():
        folders = found.get(name) or found.get(long_clips.HOSTS.get(name, ""))
        if folders:
            if folder := paths.choose(tree, name, folders, audit):
                clips.append(_clip(name, folder, interval.onset, interval.offset))
        elif name in long_clips.LOST:
            what = "no folder: one of the three clips that SMIC-E has lost"
            audit.note(interval.where, what, clip=paths.clip_id(name))
        else:
            audit.add("folder", interval.where, f"no folder {name}", clip=paths.clip_id(name))
    reported = {finding.clip for finding in audit.findings}
    for name in sorted(found.keys() - intervals.keys()):
        if paths.clip_id(name) not in reported:
            where = ", ".join(tree.below(folder) for folder in found[name])
            audit.add("row", where, "a clip folder without a row", clip=paths.clip_id(name))
    return clips


def _clip(name: str, folder: Path, onset: int, offset: int) -> RawClip:
    # SMIC gives no apex.
    subject, emotion = paths.subject_of(name), paths.emotion_of(name)
    return RawClip("smic", subject, name, emotion, folder, onset, None, offset)


def _report_strange(tree: Tree, variant: str, audit: Audit) -> None:
    """Folders in an emotion's folder whose name is no clip's."""
    for folder in tree.names(".+"):
        if (
            folder.parent.name.casefold() in paths.EMOTIONS.values()
            and paths.standard_name(folder.name) is None
            and (paths.modality(tree, folder) or VARIANTS[0]) == variant
            and not paths.is_non_micro(tree, folder)
        ):
            what = "no clip's name such as s1_ne_01: a clip in it is not used"
            audit.add("row", tree.below(folder), what)
