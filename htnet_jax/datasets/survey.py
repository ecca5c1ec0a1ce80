"""What a copy of a data set holds: folders and sheets, the clips they name, and what is wrong."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import os
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from htnet_jax.datasets import action_units, images, sheets
from htnet_jax.datasets.labels import OBJECTIVE
from htnet_jax.datasets.recording import OUTSIDE, VIDEOS, folded, is_inside, only_video
from htnet_jax.datasets.sheets import Row
from htnet_jax.errors import UserError, count, csv_cell, shown
from htnet_jax.io import write_atomically

# What a survey's finding is about, in the order of the report.
KINDS = (
    "sheet",
    "row",
    "folder",
    "onset",
    "apex",
    "offset",
    "image",
    "landmarks",
    "flow",
    "path",
    "count",
    "corrected",
    "note",
)
# The console shows this many findings of a kind; the CSV file has all.
SHOWN = 20
# Far more than any data set has; a walk through links, or from the wrong root, must end.
MOST_FOLDERS = 200_000
# What a sheet may say for an apex that is not known.
_NO_APEX = ("", "/", "na", "n/a", "nan", "none")
WITHOUT_ROW = "a clip folder without a row in the sheet"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong, was corrected, or is worth knowing.

    Attributes:
        kind: What it is about, such as one of `KINDS`.
        clips: Ids `source/subject/name` of the clips concerned; empty if it is about none.
        where: File, row or key.
        what: What is wrong, or what was corrected and why.
        is_problem: Whether it makes the data wrong; otherwise it informs.
        drops: Whether the clips cannot be built.
        folds: Names of the folds that test the clips.
    """

    kind: str
    clips: tuple[str, ...]
    where: str
    what: str
    is_problem: bool = True
    drops: bool = False
    folds: tuple[str, ...] = ()

    @property
    def clip(self) -> str:
        """The first clip's id, or ""."""
        return self.clips[0] if self.clips else ""


class Audit:
    """Collects findings while a copy of a data set is read.

    Attributes:
        findings: In the order they were found.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(
        self, kind: str, where: object, what: str, *, clip: str = "", drops: bool = True
    ) -> None:
        """Records what is wrong, as in `Finding`; `clip` is the id of the clip it concerns."""
        self._add(kind, where, what, clip, is_problem=True, drops=drops and bool(clip))

    def note(self, where: object, what: str, *, clip: str = "", kind: str = "note") -> None:
        """Records what is worth knowing and stops nothing: `kind` is "note" or "corrected"."""
        self._add(kind, where, what, clip, is_problem=False, drops=False)

    def _add(self, kind: str, where: object, what: str, clip: str, **kinds: bool) -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}")
        self.findings.append(Finding(kind, (clip,) if clip else (), str(where), what, **kinds))

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop a build."""
        return [finding for finding in self.findings if finding.is_problem]

    @property
    def dropped(self) -> set[str]:
        """Ids of the clips that cannot be built."""
        return {finding.clip for finding in self.findings if finding.drops}

    def report(self) -> str:
        """The findings by kind, for a console."""
        grouped: dict[str, list[Finding]] = collections.defaultdict(list)
        for finding in self.findings:
            grouped[finding.kind].append(finding)
        lines = []
        for kind in KINDS:
            found = grouped[kind]
            if found:
                lines.append(f"{kind}: {len(found)}")
                for f in found[:SHOWN]:
                    where, what = shown(f.clip or f.where), shown(f.what, keep="\n")
                    lines.append(f"  {where}: {what}")
                if len(found) > SHOWN:
                    lines.append(f"  ... and {len(found) - SHOWN} more")
        return "\n".join(lines)

    def write_csv(self, path: Path) -> None:
        """Writes all findings: columns kind, clip, where, what, drops.

        Raises:
            UserError: The file cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["kind", "clip", "where", "what", "drops"])
        for f in self.findings:
            writer.writerow([f.kind, *map(csv_cell, (f.clip, f.where, f.what)), int(f.drops)])
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))

    def raise_if_errors(self, subject: str, remedy: str) -> None:
        """Raises one UserError with the whole report, if anything stops the build."""
        if self.errors:
            clips = count(len({f.clip for f in self.errors if f.clip}), "clip")
            number = count(len(self.errors), "finding")
            raise UserError(f"{subject}: {number}, {clips} concerned\n{self.report()}\n{remedy}")

    def extend(self, findings: Iterable[Finding]) -> None:
        """Adds findings that were made elsewhere, in a worker process for example."""
        self.findings.extend(findings)


class Tree:
    """All folders below a root, found as they are on disk and never by formatting a path.

    Copies differ in letter case, padding and nesting of archives, so folders are looked up by the
    last parts of their path. Links that lead out of the root are not followed, nor are links within
    linked folders: what they hold is found where it lies, and folders may link to each other.

    Attributes:
        root: The chosen folder.
        outside: Links to folders that lead out of it, for the audit.
        linked: The same to files other than images.
        unreadable: Folders that cannot be listed -> why.
        videos: The video files.
    """

    def __init__(self, root: Path) -> None:
        """Lists the folders once; the images are listed when asked for.

        Raises:
            UserError: There are more folders than any data set has.
        """
        self.root = root
        self.outside: list[Path] = []
        self.linked: list[Path] = []
        self.unreadable: dict[Path, str] = {}
        self.videos: list[Path] = []
        self._count = 0
        self._by_name: dict[str, list[Path]] = collections.defaultdict(list)
        self._files: list[Path] = []
        self._walk(root, os.path.realpath(root), is_linked=False)

    def _walk(self, top: Path, base: str, *, is_linked: bool) -> None:
        """Lists what is below `top`, which a link may have led to."""

        def note(error: OSError) -> None:
            self.unreadable[Path(error.filename)] = error.strerror

        for folder, names, files in os.walk(top, onerror=note, followlinks=False):
            self._count += 1
            if self._count > MOST_FOLDERS:
                raise UserError(
                    f"{self.root}: more than {MOST_FOLDERS:,} folders, links followed. Give the "
                    "folder of one data set."
                )
            # Zips made on macOS unpack a twin of every folder there.
            names[:] = sorted(name for name in names if name != "__MACOSX")
            for name in sorted(files):
                suffix = os.path.splitext(name)[1].lower()
                if name.startswith(("~$", "._")) or suffix in images.SUFFIXES:
                    continue
                path = Path(folder, name)
                if path.is_symlink() and not is_inside(path, base):
                    self.linked.append(path)
                else:
                    (self.videos if suffix in VIDEOS else self._files).append(path)
            for name in names:
                path = Path(folder, name)
                target = os.path.realpath(path)
                if path.is_symlink() and not is_inside(path, base):
                    self.outside.append(path)
                    continue
                self._by_name[folded(name)].append(path)
                is_circle = is_inside(Path(folder), target)
                if path.is_symlink() and not is_linked and not is_circle:
                    self._walk(path, base, is_linked=True)

    def folders(self, *parts: str) -> list[Path]:
        """Folders whose path ends in `parts`, such as `("sub01", "EP02_01f")`; see `folded`."""
        wanted = [folded(part) for part in parts]
        return sorted(
            path
            for path in self._by_name.get(wanted[-1], ())
            if [folded(part) for part in path.parts[-len(wanted) :]] == wanted
        )

    def names(self, pattern: str) -> list[Path]:
        """Folders whose own name matches a regular expression as a whole, letter case ignored."""
        regex = re.compile(pattern, re.IGNORECASE)
        return sorted(
            path for name, paths in self._by_name.items() if regex.fullmatch(name) for path in paths
        )

    def files(self, pattern: str) -> list[Path]:
        """Files below the root whose name matches a regular expression, letter case ignored.

        Images, videos, Office's lock files (`~$...`) and links that lead out of the root are left
        out.
        """
        regex = re.compile(pattern, re.IGNORECASE)
        return sorted(path for path in self._files if regex.fullmatch(path.name))

    def below(self, path: Path) -> str:
        """The path relative to the root, for messages."""
        return path.relative_to(self.root).as_posix()

    def parts(self, folder: Path) -> tuple[str, ...]:
        """Names (`folded`) of the root, which may say what is in it, and of all folders below it.

        The last one is the folder's own.
        """
        below = folder.relative_to(self.root).parts
        return tuple(folded(part) for part in (self.root.name, *below))


@dataclasses.dataclass(frozen=True)
class RawClip:
    """One annotated clip; frame numbers are those in the file names.

    Attributes:
        source: Data set, lower case (`casme2`).
        subject: Padded as in MEGC 2019's list (`sub01`, `s01`, `006`); unique within the source.
        name: Unique within the subject (`EP02_01f`).
        emotion: The sheet's word, lower case.
        folder: Folder with the clip's frames, or a video file.
        onset: Number of the onset frame.
        apex: Number of the apex frame; None where the sheet has none, or an impossible one.
        offset: Number of the offset frame.
        aus: Action units as in `action_units.Parsed.stored`, such as `("4", "L10|12", "T23")`.
        objective: Objective class 1..7; 0 where none is given.
    """

    source: str
    subject: str
    name: str
    emotion: str
    folder: Path
    onset: int
    apex: int | None
    offset: int
    aus: tuple[str, ...] = ()
    objective: int = 0

    @property
    def id(self) -> str:
        """`source/subject/name`."""
        return f"{self.source}/{self.subject}/{self.name}"


@dataclasses.dataclass(frozen=True)
class Correction:
    """What is known to be wrong in a row of a sheet.

    Attributes:
        changes: Key of a cell -> (the sheet's wrong text in lower case, the right one). A cell with
            another text, as in a corrected sheet, is left alone.
        reason: Why it is wrong, and where the right value comes from.
    """

    changes: Mapping[str, tuple[str, str]]
    reason: str


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of a data set, or of one part or version of it.

    Attributes:
        title: What they are of, for messages.
        clips: Annotated clips.
        subjects: Subjects with clips; None: not known.
        emotions: Emotion -> clips; empty: not known.
        by: Who has them.
        enforced: Whether a difference stops a build; otherwise it is noted.
        remark: What else is worth knowing of this version.
    """

    title: str
    clips: int
    subjects: int | None = None
    emotions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    by: str = "the published data set"
    enforced: bool = True
    remark: str = ""


def nearest(published: Sequence[Counts], emotions: Mapping[str, int]) -> Counts:
    """Of several versions' numbers those whose emotions differ least from what was counted."""
    return min(
        published,
        key=lambda c: sum(abs(emotions.get(word, 0) - n) for word, n in c.emotions.items()),
    )


def check_counts(clips: Sequence[RawClip], published: Sequence[Counts], audit: Audit) -> None:
    """Compares clips, subjects and emotions with the published version that comes nearest.

    Each difference is a "count" finding, or a note where the numbers are not enforced.
    """
    if not published:
        return
    found = collections.Counter(clip.emotion for clip in clips)
    wanted = nearest(published, found)
    numbers = [("clip", len(clips), wanted.clips)]
    if clips:
        numbers.append(("subject", len({clip.subject for clip in clips}), wanted.subjects))
        numbers += [(f"{word} clip", found[word], n) for word, n in wanted.emotions.items()]
    tell = (lambda *what: audit.add("count", *what)) if wanted.enforced else audit.note
    for what, number, expected in numbers:
        if expected is not None and number != expected:
            tell(wanted.title, f"{count(number, what)}, {wanted.by} has {expected}")
    if clips and wanted.remark:
        counted = ""
        # Nothing was compared: say what is there.
        if wanted.subjects is None and not wanted.emotions:
            words = ", ".join(f"{number} {word}" for word, number in sorted(found.items()))
            counted = f"{count(len({clip.subject for clip in clips}), 'subject')}, {words}; "
        audit.note(wanted.title, counted + wanted.remark)


def sheet_rows(
    tree: Tree,
    patterns: Sequence[str],
    wanted: str,
    columns: Mapping[str, Sequence[str]],
    audit: Audit,
    *,
    optional: Mapping[str, Sequence[str]] | None = None,
    sheet: str = "",
    refused: Mapping[str, str] = types.MappingProxyType({}),
) -> list[Row]:
    """The rows of a copy's annotation sheet; none, and a finding, if it cannot be used.

    Args:
        tree: The copy.
        patterns: Regular expressions of the file's name, in order of preference.
        wanted: What it should be called.
        columns: As in `sheets.read_sheet`, like `optional` and `sheet`.
        audit: Receives the findings.
        optional: Columns that may be missing.
        sheet: Name of the sheet to try first.
        refused: Pattern of another file, named where the right one is missing -> why it is no use.
    """
    path = find_sheet(tree, patterns, wanted, audit, refused)
    if path is None:
        return []
    try:
        return sheets.read_sheet(path, columns, optional=optional, sheet=sheet)
    except UserError as error:
        audit.add("sheet", tree.below(path), str(error).removeprefix(f"{path}: "))
        return []


def find_sheet(
    tree: Tree,
    patterns: Sequence[str],
    wanted: str,
    audit: Audit,
    refused: Mapping[str, str] = types.MappingProxyType({}),
) -> Path | None:
    """The file of a copy's annotation sheet; arguments as in `sheet_rows`."""
    found = list(dict.fromkeys(path for pattern in patterns for path in tree.files(pattern)))
    if len(found) > 1:
        others = ", ".join(tree.below(path) for path in found[1:])
        audit.note(tree.below(found[0]), f"this sheet is used; left aside: {others}")
    if found:
        return found[0]
    others = [(path, why) for pattern, why in refused.items() for path in tree.files(pattern)]
    for path, why in others:
        audit.add("sheet", tree.below(path), f"{why}; the right sheet is {wanted}")
    linked = [
        path
        for path in tree.linked
        if any(re.fullmatch(pattern, path.name, re.IGNORECASE) for pattern in patterns)
    ]
    for path in linked:
        audit.add("sheet", tree.below(path), OUTSIDE)
    if not others and not linked:
        audit.add("sheet", tree.root, f"no annotation sheet; it is called {wanted}")
    return None


def correct(row: Row, correction: Correction | None) -> tuple[Row, list[str]]:
    """A row with what is known to be wrong in it corrected, and each change in words."""
    changes = {
        key: (wrong, right)
        for key, (wrong, right) in (correction.changes if correction else {}).items()
        if row.cells[key].casefold() == wrong
    }
    cells = row.cells | {key: right for key, (_, right) in changes.items()}
    words = [
        f"{k} {wrong} -> {right}: {correction.reason}" for k, (wrong, right) in changes.items()
    ]
    return dataclasses.replace(row, cells=cells), words


def is_name(text: str) -> bool:
    """Whether a cell can be the name of a folder."""
    return 0 < len(text.encode("utf-8", "replace")) <= 255 and not {"/", "\0"} & {*text}


def is_repeated(
    first: dict[str, str], row: Row, clip_id: str, audit: Audit, *, drops: bool = True
) -> bool:
    """Whether a clip had a row before, which is a finding.

    Args:
        first: Clip id in lower case -> its first row; a new clip is added.
        row: A row of the clip.
        clip_id: `source/subject/name`.
        audit: Receives the finding.
        drops: Whether the clip is not built then; otherwise its first row is used.
    """
    before = first.setdefault(folded(clip_id), row.where)
    if before == row.where:
        return False
    what = f"the clip again, after {before}{'' if drops else '; the first is used'}"
    audit.add("row", row.where, what, clip=clip_id, drops=drops)
    return True


def values(
    row: Row,
    clip_id: str,
    audit: Audit,
    emotions: Collection[str],
    *,
    synonyms: Mapping[str, str] = types.MappingProxyType({}),
    compound: bool = False,
) -> dict[str, Any] | None:
    """The fields of a `RawClip` that a row gives.

    Args:
        row: Has the cells onset, apex, offset and emotion; perhaps aus and objective.
        clip_id: `source/subject/name`.
        audit: Receives what is wrong with the row.
        emotions: The words there are, in lower case.
        synonyms: Other word -> word of `emotions`.
        compound: Whether an emotion may be several words, joined by `+`.

    Returns:
        emotion, onset, apex, offset, aus and objective, or None for a row with findings.
    """
    problems = [
        f"{key} is {sheets.quoted(row.cells[key])}, no frame number"
        for key in ("onset", "apex", "offset")
        if row.whole(key) is None and (key != "apex" or row.cells[key].casefold() not in _NO_APEX)
    ]
    onset, offset = row.whole("onset"), row.whole("offset")
    if onset is not None and offset is not None and offset < onset:
        problems.append(f"offset {offset} lies before onset {onset}")
    emotion = row.cells["emotion"].casefold()
    emotion = synonyms.get(emotion, emotion)
    words = [word.strip() for word in emotion.split("+")] if compound else [emotion]
    if not set(words) <= set(emotions):
        known = ", ".join(emotions)
        problems.append(
            f"emotion is {sheets.quoted(row.cells['emotion'])}, expected one of {known}"
        )
    objective = row.cells.get("objective", "").upper()
    numbers = {"": 0} | {name: i for i, word in enumerate(OBJECTIVE, 1) for name in (word, str(i))}
    if objective not in numbers:
        problems.append(
            f"objective class is {sheets.quoted(objective)}, expected 1 to 7 or I to VII"
        )
    for problem in problems:
        audit.add("row", row.where, problem, clip=clip_id)
    if problems:
        return None
    cell = row.cells.get("aus", "")
    units = action_units.parse(cell)
    if units.rest:
        named = ", ".join(map(sheets.quoted, units.rest))
        what = f"action units {sheets.quoted(cell)}: left out, because not understood: {named}"
        audit.note(row.where, what, clip=clip_id)
    return {
        "emotion": "+".join(words),
        "onset": onset,
        "apex": row.whole("apex"),
        "offset": offset,
        "aus": units.stored,
        "objective": numbers[objective],
    }


def one_folder(
    tree: Tree,
    found: Iterable[Path],
    where: str,
    clip_id: str,
    missing: str,
    audit: Audit,
    names: Collection[str] = (),
) -> Path | None:
    """The one folder of a clip; none (`missing` says what) or several are a finding.

    A video in its place, with the clip's name or one of `names`, is mentioned.
    """
    folders = sorted(found)
    if len(folders) == 1:
        return folders[0]
    if folders:
        places = ", ".join(tree.below(path) for path in folders)
        audit.add("path", where, f"several folders: {places}; keep one", clip=clip_id)
    else:
        _, subject, name = map(folded, clip_id.split("/", 2))
        wanted = {name, *map(folded, names)}
        films = [
            only_video(tree.below(path), path.stem)
            for path in tree.videos
            if folded(path.stem) in wanted and subject in " ".join(tree.parts(path))
        ]
        audit.add("folder", where, "; ".join([missing, *films[:1]]), clip=clip_id)
    return None


def innermost(folders: Sequence[Path]) -> list[Path]:
    """Without those that hold another of them: archives unpack into folders of their own name."""
    return [path for path in folders if not any(path in other.parents for other in folders)]


def coded_clips(
    tree: Tree,
    variant: str,
    rows: Sequence[Row],
    audit: Audit,
    *,
    source: str,
    subject: Callable[[str], str | None],
    folders: str,
    emotions: Collection[str],
    cropped: str = "cropped",
    synonyms: Mapping[str, str] = types.MappingProxyType({}),
    complete: str = "",
    corrections: Mapping[tuple[str, str], Correction] = types.MappingProxyType({}),
    without_row: Collection[tuple[str, str]] = (),
) -> list[RawClip]:
    """The clips of a sheet whose frames lie in folders SUBJECT/NAME, raw or cropped.

    Args:
        tree: The copy.
        variant: "raw" or "cropped": which images to take if both are there.
        rows: Of the sheet, with the cells subject and name, and those of `values`.
        audit: Receives what is wrong.
        source: Name of the data set.
        subject: Standard name of a subject from a cell or a folder's name; None for no subject's.
        folders: Regular expression of the clip folders' names.
        emotions: As in `values`.
        cropped: The word in the path of cropped images, where there are some.
        synonyms: As in `values`.
        complete: The word in the path of raw images that are preferred to other raw ones.
        corrections: (subject, clip) -> what is wrong in its row.
        without_row: (subject, clip in lower case) of clips that are known to have no row.

    Returns:
        The clips by subject and name.
    """

    def is_cropped(folder: Path) -> bool:
        return any(cropped in part for part in tree.parts(folder))

    clip_folders = [path for path in tree.names(folders) if subject(path.parent.name)]
    there = {is_cropped(path) for path in clip_folders}
    use_cropped = variant == "cropped"
    if there and use_cropped not in there:
        use_cropped = not use_cropped
        other = "cropped" if use_cropped else "raw"
        audit.note(tree.root, f"there are no {variant} images; the {other} ones are used")
    preferred = cropped if use_cropped else complete
    of_clip: dict[tuple[str, str], list[Path]] = collections.defaultdict(list)
    for path in clip_folders:
        if is_cropped(path) == use_cropped:
            of_clip[subject(path.parent.name), folded(path.name)].append(path)

    first: dict[str, str] = {}
    clips = []
    for row in rows:
        owner, name = subject(row.cells["subject"]), row.cells["name"]
        if not owner or not is_name(name):
            named = ", file name ".join(map(sheets.quoted, (row.cells["subject"], name)))
            audit.add("row", row.where, f"subject {named}: no subject's clip")
            continue
        clip_id, key = f"{source}/{owner}/{name}", (owner, folded(name))
        if is_repeated(first, row, clip_id, audit):
            continue
        row, changes = correct(row, corrections.get((owner, name)))
        for what in changes:
            audit.note(row.where, what, clip=clip_id, kind="corrected")
        found = values(row, clip_id, audit, emotions, synonyms=synonyms)
        places = of_clip.pop(key, [])
        places = [p for p in places if preferred in tree.below(p).casefold()] or places
        missing = f"no folder {owner}/{name} with {'cropped' if use_cropped else 'raw'} images"
        folder = one_folder(tree, places, row.where, clip_id, missing, audit)
        if found and folder:
            clips.append(RawClip(source, owner, name, folder=folder, **found))
    for key, places in of_clip.items():
        for path in places:
            if key in without_row:
                audit.note(tree.below(path), "a clip that is known to have no row in the sheet")
            else:
                audit.add("row", tree.below(path), WITHOUT_ROW)
    # Said only of data sets whose sheets may have them.
    may_have = any("objective" in row.cells for row in rows)
    if clips and may_have and not any(clip.objective for clip in clips):
        audit.note("sheet", "it has no objective classes: labels=objective finds no clip")
    return sorted(clips, key=lambda clip: (clip.subject, clip.name))
