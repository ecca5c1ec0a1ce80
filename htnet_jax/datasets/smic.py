"""SMIC: the short clips of HS, VIS and NIR, and SMIC-E's long ones with their annotation sheet.

A clip's name says its subject and emotion (`s1_ne_01`); it is padded as in MEGC 2019's list
(`s01_ne_01`).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from htnet_jax.datasets import survey
from htnet_jax.datasets.builder import RawBuilder
from htnet_jax.datasets.labels import LabelSet, own_classes, three_classes
from htnet_jax.datasets.recording import FrameSource, NoFrames, only_video, open_frames
from htnet_jax.datasets.sheets import Row, quoted, read_sheet
from htnet_jax.datasets.survey import Audit, Correction, Counts, RawClip, Tree
from htnet_jax.errors import UserError

# Code in a clip's name -> emotion, which is also the name of the folder above the clip.
_EMOTIONS = {"ne": "negative", "po": "positive", "sur": "surprise"}
_NAME = r"s0*(\d{1,9})_(ne|po|sur)_0*(\d{1,9})"
# SMIC-E, the long clips: `HS_long`, `SMIC_HS_E`, `SMIC-HS-E`, `SMIC-E_raw image`.
_LONG = r"(smic[-_ ]?((hs|vis|nir)[-_ ]?)?|(hs|vis|nir)[-_ ]?)(e|long)([^a-z].*)?"
_SHORT = r"smic[-_ ]?all.*"

# The 157-row sheet joins neighbouring clips: the first name's further intervals are these clips.
# The 162-row sheet has rows for them, and the frames lie in the first one's folder all the same.
_MERGED = {
    "s03_ne_02": ("s03_ne_03",),
    "s04_ne_04": ("s04_ne_05", "s04_ne_06"),
    "s09_sur_01": ("s09_sur_02",),
}
_HOSTS = {name: host for host, names in _MERGED.items() for name in names}
# "Three samples lost" (SMIC-E's owners); the first two are in no sheet, and the 162-row sheet
# calls the third one's frames missing.
_LOST = ("s01_ne_02", "s02_sur_05", "s03_ne_20")
# Clips of the cropped HS copies that lack images, and how many: the public loaders' audits.
_LACKING = {"s03_po_08": 2, "s03_sur_01": 1, "s03_sur_05": 1, "s03_ne_16": 1}
# A short clip has no gap of this many frames: it lasts half a second, 50 frames at most.
_MOST_MISSING = 100
_NOT_PUBLISHED = "there are no published numbers of subjects and emotions to compare with"


def _counts(title: str, subjects: int, negative: int, positive: int, surprise: int) -> Counts:
    emotions = {"negative": negative, "positive": positive, "surprise": surprise}
    return Counts(title, sum(emotions.values()), subjects, emotions)


# HS: MEGC 2019's label list. SMIC-E's HS: the same without its three lost clips. VIS: SMIC-E's
# sheet by clip names; NIR has as many clips (Li et al., FG 2013), its subjects and emotions are not
# published. Key: modality, and whether the clips are SMIC-E's.
_COUNTS = {
    ("hs", False): _counts("SMIC HS", 16, 70, 51, 43),
    ("hs", True): _counts("SMIC-E HS", 16, 68, 51, 42),
    ("vis", False): _counts("SMIC VIS", 8, 23, 28, 20),
    ("vis", True): _counts("SMIC-E VIS", 8, 23, 28, 20),
    ("nir", False): Counts("SMIC NIR", 71, remark=_NOT_PUBLISHED),
    ("nir", True): Counts("SMIC-E NIR", 71, remark=_NOT_PUBLISHED),
}


class Smic(RawBuilder):
    """SMIC: 164 clips of 16 subjects at 100 frames/s (HS), 71 clips each at 25 (VIS, NIR)."""

    HOMEPAGE = "https://www.oulu.fi/cmvs/node/41319"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
the manual directory must hold one of
  SMIC_all_raw/HS/s1/micro/negative/s1_ne_01/image559740.bmp
  SMIC_all_cropped/HS/s1/micro/negative/s1_ne_01/reg_image559740.bmp
  (VIS, NIR: folders beside HS; the label is the clip's code ne, po or sur; no sheet is needed)
or, of SMIC-E,
  HS_long/SMIC_HS_E/s03/s3_ne_01/image034208.jpg  (also VIS, NIR)
  SMIC-HS-E_annotation.xlsx  (columns Subject, Filename, OnsetF, OffsetF; also Onset2F, Offset2F,
                              Onset3F, Offset3F, Emotion; NIR: OnsetF NIR, OffsetF NIR)
Letter case, padding of numbers and folders around these do not matter; a path that names none of
HS, VIS and NIR is taken as HS. The variants are hs, vis and nir."""
    VARIANTS = ("hs", "vis", "nir")
    LABELS: ClassVar[Mapping[str, LabelSet]] = {
        "megc3": three_classes("negative", "positive", "surprise"),
        "own": own_classes("negative positive surprise"),
    }
    # Clip -> what is wrong in SMIC-E's sheet.
    CORRECTIONS: ClassVar[Mapping[str, Correction]] = {
        "s18_sur_03": Correction(
            {"emotion": ("negative", "surprise")},
            "the clip's own name and MEGC 2019's label list say surprise",
        ),
    }
    KNOWN_GAPS: ClassVar[Mapping[str, str]] = {
        f"smic/{name[:3]}/{name}": f"the cropped HS copies lack images of this clip ({lacking})"
        for name, lacking in _LACKING.items()
    }

    @classmethod
    def counts(cls, clips: Sequence[RawClip], variant: str) -> Sequence[Counts]:
        """Those of the modality, and of short or long clips, whichever were found."""
        return (_COUNTS[variant, any(is_long(clip.folder) for clip in clips)],)

    @classmethod
    def survey(cls, tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
        """All clips of a modality, by subject and name.

        Short clips are preferred to SMIC-E's long ones if both are there, and of raw and cropped
        images the more complete copy is taken, raw if they are equal; a note says so.
        """
        short, long, unnamed = [], [], 0
        for folder in tree.names(_NAME):
            of = _modality(tree, folder)
            if (of or cls.VARIANTS[0]) != variant or _is_non_micro(tree, folder):
                continue
            unnamed += not of
            (long if is_long(folder) else short).append(folder)
        if unnamed:
            what = f"{unnamed} clip folders are taken as HS: no folder above names HS, VIS or NIR"
            audit.note(tree.root, what)
        if short and long:
            what = f"{len(short)} short clips are used; {len(long)} long ones (SMIC-E) are left out"
            audit.note(tree.root, what)
        found: list[RawClip] = []
        if short:
            found = _short_clips(tree, _one_copy(tree, short, audit), audit)
        elif long:
            found = _long_clips(tree, variant, _one_copy(tree, long, audit), audit)
        else:
            what = f"no {variant.upper()} clip folder such as HS/s1/micro/negative/s1_ne_01"
            audit.add("folder", tree.root, what)
        for folder in tree.names(".+"):
            if (
                folder.parent.name.casefold() in _EMOTIONS.values()
                and standard_name(folder.name) is None
                and (_modality(tree, folder) or cls.VARIANTS[0]) == variant
                and not _is_non_micro(tree, folder)
            ):
                what = "no clip's name such as s1_ne_01: a clip in it is not used"
                audit.add("row", tree.below(folder), what)
        there = {clip.name for clip in found}
        for film in tree.videos:
            name = standard_name(film.stem)
            of = _modality(tree, film.parent) or cls.VARIANTS[0]
            if name and name not in there and of == variant and not _is_non_micro(tree, film):
                what = only_video(film.name, film.stem)
                audit.add("folder", tree.below(film), what, clip=_id(name))
        return sorted(found, key=lambda clip: (clip.subject, clip.name))


def standard_name(text: str) -> str | None:
    """A clip's name padded as in MEGC 2019's list (`s1_ne_1` -> `s01_ne_01`); None if it is none.

    Letter case is ignored.
    """
    found = re.fullmatch(_NAME, text.strip(), re.IGNORECASE)
    return found and f"s{int(found[1]):02d}_{found[2].lower()}_{int(found[3]):02d}"


def is_long(folder: Path) -> bool:
    """Whether a folder belongs to SMIC-E, by the innermost part of its path that tells."""
    for part in reversed(folder.parts):
        if re.fullmatch(_LONG, part, re.IGNORECASE):
            return True
        if re.fullmatch(_SHORT, part, re.IGNORECASE):
            return False
    return False


def _subject(name: str) -> str:
    return name.partition("_")[0]


def _emotion(name: str) -> str:
    return _EMOTIONS[name.split("_")[1]]


def _id(name: str) -> str:
    return f"smic/{_subject(name)}/{name}"


def _word_in_path(tree: Tree, folder: Path, words: Sequence[str]) -> str:
    """Which of the words stands innermost in the path; "" if none does."""
    for part in reversed(tree.parts(folder)):
        found = re.split(r"[^a-z]+", part)
        for word in words:
            if word in found:
                return word
    return ""


def _modality(tree: Tree, folder: Path) -> str:
    return _word_in_path(tree, folder, Smic.VARIANTS)


def _images(tree: Tree, folder: Path) -> str:
    """What the path says of the images: "raw", "cropped" or ""."""
    word = _word_in_path(tree, folder, ("raw", "cropped", "crop"))
    return "cropped" if word == "crop" else word


def _is_non_micro(tree: Tree, folder: Path) -> bool:
    """Whether a folder is or lies in `non_micro`, clips without an expression."""
    return any(re.fullmatch("non.?micro", part) for part in tree.parts(folder))


def _one_copy(tree: Tree, folders: Sequence[Path], audit: Audit) -> dict[str, list[Path]]:
    """Clip name -> its folders, all of raw or all of cropped images."""
    copies: dict[str, dict[str, list[Path]]] = {"raw": {}, "cropped": {}, "": {}}
    for folder in folders:
        name = standard_name(folder.name)
        copies[_images(tree, folder)].setdefault(name, []).append(folder)
    chosen = max(copies, key=lambda kind: len(copies[kind]))  # the first of equal ones
    others = [f"{len(found)} {kind}".strip() for kind, found in copies.items() if kind != chosen]
    if sum(map(bool, copies.values())) > 1:
        what = f"{len(copies[chosen])} {chosen} clips are used; there are also {', '.join(others)}"
        audit.note(tree.root, what)
    return copies[chosen]


def _choose(tree: Tree, name: str, folders: Sequence[Path], audit: Audit) -> Path | None:
    """The one folder of a clip; None, and a finding, if there are several or it contradicts."""
    inner = survey.innermost(folders)
    if len(inner) > 1:
        names = ", ".join(tree.below(path) for path in inner)
        audit.add("path", tree.below(inner[0]), f"several folders: {names}", clip=_id(name))
        return None
    if what := _contradiction(tree, inner[0], name):
        audit.add("row", tree.below(inner[0]), what, clip=_id(name))
        return None
    return inner[0]


def _contradiction(tree: Tree, folder: Path, name: str) -> str:
    """How the folders above a clip contradict its name, or ""."""
    for part in tree.parts(folder)[1:-1]:
        found = re.fullmatch(r"s0*(\d{1,9})", part)
        if found and f"s{int(found[1]):02d}" != _subject(name):
            return f"the clip's name is of subject {_subject(name)}, its folder is in {part}"
        if part in _EMOTIONS.values() and part != _emotion(name):
            return f"the clip's name says {_emotion(name)}, its folder is in {part}"
    return ""


def _clip(name: str, folder: Path, onset: int, offset: int) -> RawClip:
    # SMIC gives no apex.
    return RawClip("smic", _subject(name), name, _emotion(name), folder, onset, None, offset)


def _short_clips(tree: Tree, found: Mapping[str, list[Path]], audit: Audit) -> list[RawClip]:
    """Clips that go from the first to the last frame of their folder."""
    clips = []
    for name, folders in found.items():
        folder = _choose(tree, name, folders, audit)
        if folder is None:
            continue
        where, clip = tree.below(folder), _id(name)
        try:
            source = open_frames(folder)
        except UserError as error:
            kind = "folder" if isinstance(error, NoFrames) else "path"
            audit.add(kind, where, str(error), clip=clip)
            continue
        numbers = source.numbers
        if what := _unclear(source):
            audit.add("image", where, what, clip=clip)
            continue
        if clip in Smic.KNOWN_GAPS and _images(tree, folder) == "cropped":
            audit.note(where, f"{Smic.KNOWN_GAPS[clip]}; it is taken as it is", clip=clip)
        clips.append(_clip(name, folder, min(numbers), max(numbers)))
    return clips


def _unclear(source: FrameSource) -> str:
    """Why the first and last frame of a folder may not be those of its clip, or ""."""
    if any(len(rival) > 1 for rival in source.rivals):
        return (
            "images are named in several ways, and no sheet says which numbers are the clip's: "
            f"{source.describe()}; move those that are not its frames elsewhere"
        )
    for before, after in itertools.pairwise(source.numbers):
        if after - before > _MOST_MISSING:
            return (
                f"frame {after} follows {before}: not one clip; move the images that are not its "
                "frames elsewhere"
            )
    return ""


def _long_clips(
    tree: Tree, variant: str, found: Mapping[str, list[Path]], audit: Audit
) -> list[RawClip]:
    """Clips by SMIC-E's sheet."""
    intervals = _intervals(tree, variant, audit)
    if not intervals:
        return []
    clips = []
    for name, interval in intervals.items():
        folders = found.get(name) or found.get(_HOSTS.get(name, ""))
        if folders:
            if folder := _choose(tree, name, folders, audit):
                clips.append(_clip(name, folder, interval.onset, interval.offset))
        elif name in _LOST:
            what = "no folder: one of the three clips that SMIC-E has lost"
            audit.note(interval.where, what, clip=_id(name))
        else:
            audit.add("folder", interval.where, f"no folder {name}", clip=_id(name))
    reported = {finding.clip for finding in audit.findings}
    for name in sorted(found.keys() - intervals.keys()):
        if _id(name) not in reported:
            where = ", ".join(tree.below(folder) for folder in found[name])
            audit.add("row", where, survey.WITHOUT_ROW, clip=_id(name))
    return clips


@dataclasses.dataclass(frozen=True)
class _Interval:
    """A micro-expression in a long clip: numbers of its first and last frame, and its row."""

    onset: int
    offset: int
    where: str


def _intervals(tree: Tree, variant: str, audit: Audit) -> dict[str, _Interval]:
    """Standard clip name -> its interval, by SMIC-E's sheet; bad rows go to the audit."""
    # The HS workbook has a VIS sheet too, so it serves where VIS has no workbook of its own.
    patterns = [
        pattern
        for of in ((variant, "hs") if variant == "vis" else (variant,))
        for pattern in (
            rf"smic-{of}-e_annotation\.xlsx",
            rf"smic[-_ ]?{of}[-_ ]?e.*annotation.*\.xlsx?",
        )
    ]
    path = survey.find_sheet(tree, patterns, f"SMIC-{variant.upper()}-E_annotation.xlsx", audit)
    if path is None:
        return {}
    try:
        rows = _rows(path, variant)
    except UserError as error:
        audit.add("sheet", tree.below(path), str(error).removeprefix(f"{path}: "))
        return {}
    first: dict[str, str] = {}
    named: dict[str, Row] = {}
    for row in rows:
        name = _name(row, audit)
        if name and not survey.is_repeated(first, row, _id(name), audit, drops=False):
            named[name] = row
    found: dict[str, _Interval] = {}
    for name, row in named.items():
        interval = _interval(row, name, 1, audit)
        if interval and _emotion_agrees(row, name, audit):
            found[name] = interval
    for name, row in named.items():
        found |= _further(row, name, named, audit)
    return found


def _rows(path: Path, variant: str) -> list[Row]:
    """The rows; the NIR workbook calls its columns `OnsetF NIR` beside those of another camera."""
    optional = {"emotion": ["Emotion"]} | {
        f"{which}{k}": [f"{which}{k}F"] for k in (2, 3) for which in ("onset", "offset")
    }
    columns = {"subject": ["Subject"], "name": ["Filename"]}
    own = {"onset1": [f"OnsetF {variant}"], "offset1": [f"OffsetF {variant}"]}
    plain = {"onset1": ["OnsetF"], "offset1": ["OffsetF"]}
    try:
        return read_sheet(path, columns | own, optional=optional, sheet=variant)
    except UserError:
        rows = read_sheet(path, columns | plain, optional=optional, sheet=variant)
    # The wanted sheet is missing, and that of another camera was read.
    sheet = re.search(r", sheet (HS|VIS|NIR),", rows[0].where, re.IGNORECASE) if rows else None
    if sheet and sheet[1].lower() != variant:
        raise UserError(f"{path}: it has no sheet {variant.upper()}, only {sheet[1]}")
    return rows


def _name(row: Row, audit: Audit) -> str | None:
    cells = row.cells
    name = standard_name(cells["name"])
    subject = re.fullmatch(r"s?0*(\d{1,9})", cells["subject"], re.IGNORECASE)
    if name and subject and f"s{int(subject[1]):02d}" == _subject(name):
        return name
    if not name and not subject and row.whole("onset1") is None:
        # Copies of the sheet have remarks below the last row.
        audit.note(row.where, f"no clip's row: {' '.join(filter(None, cells.values()))}")
    elif name:
        what = f"Subject is {quoted(cells['subject'])}, Filename {quoted(cells['name'])}"
        audit.add("row", row.where, f"{what}: they disagree", clip=_id(name))
    else:
        audit.add(
            "row", row.where, f"Filename is {quoted(cells['name'])}, no name such as s3_ne_02"
        )
    return None


def _interval(row: Row, name: str, k: int, audit: Audit) -> _Interval | None:
    onset, offset = row.whole(f"onset{k}"), row.whole(f"offset{k}")
    what = f"onset {quoted(row.cells[f'onset{k}'])}, offset {quoted(row.cells[f'offset{k}'])}"
    if k > 1:
        what = f"interval {k}: {what}"
    if onset is None or offset is None:
        what += ": no frame numbers (a formula that has lost its value? Save the sheet again)"
    elif offset < onset:
        what += ": it ends before it begins"
    else:
        return _Interval(onset, offset, row.where)
    audit.add("row", row.where, what, clip=_id(name))
    return None


def _emotion_agrees(row: Row, name: str, audit: Audit) -> bool:
    row, changes = survey.correct(row, Smic.CORRECTIONS.get(name))
    for what in changes:
        audit.note(row.where, what, clip=_id(name), kind="corrected")
    if row.cells["emotion"].casefold() in ("", _emotion(name)):
        return True
    what = f"Emotion is {quoted(row.cells['emotion'])}, the clip's name says {_emotion(name)}"
    audit.add("row", row.where, what, clip=_id(name))
    return False


def _further(row: Row, host: str, named: Mapping[str, Row], audit: Audit) -> dict[str, _Interval]:
    """Intervals 2 and 3 of a row: clips that were joined to it, or none of the published ones."""
    found: dict[str, _Interval] = {}
    merged = _MERGED.get(host, ())
    for k in (2, 3):
        given = any(row.cells[f"{which}{k}"] for which in ("onset", "offset"))
        if k - 2 >= len(merged):
            if given:
                numbers = f"{quoted(row.cells[f'onset{k}'])} to {quoted(row.cells[f'offset{k}'])}"
                what = f"interval {k}, {numbers}, belongs to no published clip and is left out"
                audit.note(row.where, what, clip=_id(host))
            continue
        name = merged[k - 2]
        if name in named:  # it has a row of its own
            continue
        if not given:
            what = f"neither a row nor interval {k} of {host}'s row"
            audit.add("row", row.where, what, clip=_id(name))
        elif interval := _interval(row, name, k, audit):
            found[name] = interval
            what = f"interval {k} of {host}'s row, which joins both clips"
            audit.note(row.where, what, clip=_id(name), kind="corrected")
    return found
