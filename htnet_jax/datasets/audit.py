"""Everything that is wrong with a copy of a data set, collected in one report."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path

from htnet_jax.errors import UserError
from htnet_jax.io import write_atomically

# What a finding is about, in the order of the report.
KINDS = (
    "sheet",
    "row",
    "folder",
    "onset",
    "apex",
    "offset",
    "image",
    "landmarks",
    "path",
    "count",
    "corrected",
    "note",
)
# These inform and never stop a build.
HARMLESS = ("corrected", "note")
# The console shows this many findings of a kind; the CSV file has all.
SHOWN = 20


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
    """Collects findings while a data set is read.

    Attributes:
        findings: In the order they were found.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(
        self, kind: str, where: object, what: str, *, clip: str = "", drops: bool = True
    ) -> None:
        """Records what is wrong.

        Args:
            kind: One of `KINDS`.
            where: File, row or key.
            what: What is wrong.
            clip: The clip it concerns, if one.
            drops: Whether that clip cannot be built.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}")
        is_problem = kind not in HARMLESS
        drops = drops and bool(clip) and is_problem
        clips = (clip,) if clip else ()
        self.findings.append(Finding(kind, clips, str(where), what, is_problem, drops))

    def note(self, where: object, what: str, *, clip: str = "", kind: str = "note") -> None:
        """Records what is worth knowing and stops nothing: `kind` is "note" or "corrected"."""
        self.add(kind, where, what, clip=clip, drops=False)

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
                lines += [f"  {f.clip or f.where}: {f.what}" for f in found[:SHOWN]]
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
            writer.writerow([f.kind, f.clip, f.where, f.what, int(f.drops)])
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))

    def raise_if_errors(self, subject: str, remedy: str) -> None:
        """Raises one UserError with the whole report, if anything stops the build."""
        if self.errors:
            clips = len({f.clip for f in self.errors if f.clip})
            raise UserError(
                f"{subject}: {len(self.errors)} findings, {clips} clips concerned\n"
                f"{self.report()}\n{remedy}"
            )

    def extend(self, findings: Iterable[Finding]) -> None:
        """Adds findings that were made elsewhere, in a worker process for example."""
        self.findings.extend(findings)
