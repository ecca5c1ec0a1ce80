"""Scores runs from their predictions alone, and compares them: no accelerator, no training.

  python -m htnet_jax.evaluate RUN [RUN ...] [--partial] [--common] [--output=DIR] [--data_dir=DIR]

RUN is the folder of a training run (its --workdir). For each one this reads RUN/predictions.npz,
prints the table of UF1 / UAR and writes into RUN, replacing older ones: metrics.json,
predictions_SELECTION.csv, table.md, table.tex, plots/ and report.html. Several runs are also
compared with each other, pair by pair (more than four: each with the first), in a report of their
own.

The data set is not needed. Where it is built, the reports show images of the worst mistakes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from absl import flags

from htnet_jax import foreign
from htnet_jax.errors import UserError, count, run_command, say, shown
from htnet_jax.evaluation import report, tables
from htnet_jax.evaluation.summary import Run, compare, on_common_clips
from htnet_jax.training import finished

# Of more runs not every pair is compared: the table would be longer than anyone reads.
_ALL_PAIRS = 4
# A default folder is named after at most this many runs.
_NAMED = 3


def define_flags() -> None:
    """The command's flags; not at import, because other commands have some of the same names."""
    flags.DEFINE_bool("partial", False, "Score runs that lack folds too; every table says so then.")
    flags.DEFINE_string("workdir", "", "A RUN too: the folder by the name it had in training.")
    flags.DEFINE_bool(
        "common",
        False,
        "Compare runs of different clips on the clips that all have; table and report say so.",
    )
    flags.DEFINE_string(
        "output",
        "",
        "Folder for the comparison of several runs (default: a new one beside the first RUN), or "
        "for the report of a single one (default: RUN).",
    )
    flags.DEFINE_string(
        "data_dir",
        "",
        "Where built data sets are, for the images; default: as the run's config.json says.",
    )


def main(argv: Sequence[str]) -> None:
    """Evaluates the runs in `argv[1:]` as the flags say; errors as `evaluate`."""
    values = flags.FLAGS
    evaluate(
        [foreign.expanded(name) for name in (*argv[1:], values.workdir) if name],
        partial=values.partial,
        common=values.common,
        output=foreign.expanded(values.output) if values.output else None,
        data_dir=values.data_dir,
    )


def evaluate(
    folders: Sequence[Path],
    *,
    partial: bool = False,
    common: bool = False,
    output: Path | None = None,
    data_dir: str = "",
) -> None:
    """Prints the tables of runs and writes their reports.

    Args:
        folders: The folders of the runs.
        partial: Score what there is of a run that lacks folds or is not finished.
        common: Compare runs on the clips that all of them have; their own reports have all clips.
        output: Folder for the comparison; for a single run, its report goes there.
        data_dir: Where built data sets are; empty: as each run's settings say.

    Raises:
        UserError: No folder, one given twice, runs that cannot be read, lack folds or do not share
            their clips, or a file that cannot be written.
    """
    if not folders:
        raise UserError(
            "No run given. Usage: python -m htnet_jax.evaluate RUN [RUN ...], where RUN is the "
            "--workdir of a training run"
        )
    if common and len(folders) < 2:
        raise UserError("--common compares several runs, but a single one is given")
    names = _names(folders)
    target = _target(folders, names, output)
    contents = finished.read_all(folders, partial=partial)
    runs = [_score(*each, data_dir) for each in zip(names, contents, strict=True)]
    # What is compared; the runs' own reports stay as they are.
    compared = on_common_clips(runs) if common else runs
    pairs = []
    for first, second in _pairs(compared):
        say(f"comparing {first.name} with {second.name}")
        both = (first.name, second.name)
        pairs.append(compare(first.predictions, second.predictions, both))
    for run, folder in zip(runs, folders, strict=True):
        into = folder if len(runs) > 1 else target
        _make_folder(into)
        clips, folds = len(run.predictions.labels), len(run.predictions.folds)
        print(f"{run.name}: {count(clips, 'clip')}, {count(folds, 'fold')}")
        print(tables.text([run]))
        say(f"{run.name}: drawing")
        report.write_run(run, into)
        print(f"Report: {shown(into / 'report.html')}\n", flush=True)
    if pairs:
        _make_folder(target)
        print(tables.text(compared, pairs))
        say("comparison: drawing")
        report.write_comparison(compared, pairs, target)
        print(f"Report: {shown(target / 'report.html')}")


def _names(folders: Sequence[Path]) -> list[str]:
    """What to call each run: its folder, with the folder above where two are called the same.

    Never the whole path, which tells of the machine: a number stands behind names that stay alike.
    What cannot be printed in a name is escaped: it stands in every table, file and message.
    """
    resolved = [Path(os.path.realpath(folder)) for folder in folders]
    twice = [str(folder) for folder, count in Counter(resolved).items() if count > 1]
    if twice:
        raise UserError(f"{', '.join(twice)}: given more than once. Give each run once.")
    names = [shown(folder.name) for folder in resolved]
    counts = Counter(names)
    names = [
        f"{shown(folder.parent.name)}/{name}" if counts[name] > 1 else name
        for folder, name in zip(resolved, names, strict=True)
    ]
    counts = Counter(names)
    return [
        f"{name} ({names[: index + 1].count(name)})" if counts[name] > 1 else name
        for index, name in enumerate(names)
    ]


def _target(folders: Sequence[Path], names: Sequence[str], output: Path | None) -> Path:
    """The folder for the comparison, or for the report of a single run."""
    if output is None and len(folders) == 1:
        return folders[0]
    if output is None:
        parts = [name.strip("/").replace("/", "_") for name in names[:_NAMED]]
        more = f"_and_{len(names) - _NAMED}_more" if len(names) > _NAMED else ""
        output = Path(os.path.realpath(folders[0])).parent / ("_vs_".join(parts) + more)
        # Not a folder that the user has chosen, so that a link there is not the user's either.
        if os.path.islink(output):
            raise UserError(f"{output}: is a link, which is not followed. Give --output.")
    own = len(folders) == 1 and os.path.realpath(output) == os.path.realpath(folders[0])
    if not own and finished.holds_run(output):
        raise UserError(
            f"{output}: holds a run, whose report this would overwrite. Give another --output."
        )
    if os.path.exists(output) and not output.is_dir():
        raise UserError(f"{output}: is a file, not a folder. Give another --output.")
    return output


def _score(name: str, content: finished.Content, data_dir: str) -> Run:
    found = content.predictions
    say(
        f"{name}: scoring {count(len(found.labels), 'clip')}, "
        f"{count(len(found.epochs), 'recorded epoch')}, {count(len(found.seeds), 'seed')}"
    )
    images = None
    try:
        images = finished.images(content, data_dir)
    except UserError as error:
        say(f"{name}: no images of mistakes in the report: {error}")
    known = {"config": content.config, "environment": content.environment, "images": images}
    return Run.of(name, found, **known)


def _pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    if len(runs) > _ALL_PAIRS:
        return [(runs[0], other) for other in runs[1:]]
    return list(combinations(runs, 2))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be created ({error.strerror}). Give another --output."
        ) from error


if __name__ == "__main__":
    define_flags()
    run_command(main)
