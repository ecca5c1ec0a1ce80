"""Scores runs from their predictions alone, and compares them: no accelerator, no training.

  python -m htnet_jax.evaluate RUN [RUN ...] [--partial] [--output=DIR] [--data_dir=DIR]

RUN is the folder of a training run (its --workdir). For each one this reads RUN/predictions.npz,
prints the table of UF1 / UAR and writes into RUN, anew: metrics.json, predictions_SELECTION.csv,
table.md, table.tex, plots/ and report.html. Several runs are also compared with each other, pair by
pair (more than four: each with the first), in a report of their own.

The data set is not needed. Where it is built, the reports show pictures of the worst mistakes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from htnet_jax.errors import UserError, run_command
from htnet_jax.evaluation import comparison, report, tables
from htnet_jax.evaluation.predictions import FILE_NAME, Predictions
from htnet_jax.evaluation.protocols import PROTOCOLS
from htnet_jax.evaluation.runs import Pictures, Run
from htnet_jax.training.plan import Store

# Of more runs not every pair is compared: the table would be longer than anyone reads.
_ALL_PAIRS = 4
# A default folder is named after at most this many runs.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class _Folder:
    """What a run's folder holds."""

    path: Path
    predictions: Predictions
    config: dict[str, Any] | None
    environment: dict[str, Any] | None


def define_flags() -> None:
    """The command's flags; not at import, because other commands have some of the same names."""
    flags.DEFINE_bool("partial", False, "Score runs that lack folds too; every table says so then.")
    flags.DEFINE_string(
        "output",
        "",
        "Folder for the comparison of several runs (default: a new one beside the first RUN), or "
        "for the report of a single one (default: RUN).",
    )
    flags.DEFINE_string(
        "data_dir",
        "",
        "Where built data sets are, for the pictures; default: as the run's config.json says.",
    )


def main(argv: Sequence[str]) -> None:
    """Evaluates the runs in `argv[1:]` as the flags say; errors as `evaluate`."""
    values = flags.FLAGS
    evaluate(
        [Path(argument).expanduser() for argument in argv[1:]],
        partial=values.partial,
        output=Path(values.output).expanduser() if values.output else None,
        data_dir=values.data_dir,
    )


def evaluate(
    folders: Sequence[Path],
    *,
    partial: bool = False,
    output: Path | None = None,
    data_dir: str = "",
) -> None:
    """Prints the tables of runs and writes their reports.

    Args:
        folders: The folders of the runs.
        partial: Score what there is of a run that lacks folds or is not finished.
        output: Folder for the comparison; for a single run, its report goes there.
        data_dir: Where built data sets are; empty: as each run's settings say.

    Raises:
        UserError: No folder, one given twice, runs that cannot be read, lack folds or do not share
            their clips, or a file that cannot be written.
    """
    if not folders:
        raise UserError("No run given. Usage: python -m htnet_jax.evaluate RUN [RUN ...]")
    names = _names(folders)
    target = _target(folders, names, output)
    runs = [
        _score(name, folder, data_dir)
        for name, folder in zip(names, _read_all(folders, partial), strict=True)
    ]
    pairs = [_compare(first, second) for first, second in _pairs(runs)]
    for run, folder in zip(runs, folders, strict=True):
        into = folder if len(runs) > 1 else target
        _make_folder(into)
        print(
            f"{run.name}: clips {len(run.predictions.labels)}, folds {len(run.predictions.folds)}"
        )
        print(tables.text([run]))
        _say(f"{run.name}: drawing")
        report.write_run(run, into)
        print(f"Report: {into / 'report.html'}\n", flush=True)
    if pairs:
        _make_folder(target)
        print(tables.text(runs, pairs))
        _say("comparison: drawing")
        report.write_comparison(runs, pairs, target)
        print(f"Report: {target / 'report.html'}")


def _names(folders: Sequence[Path]) -> list[str]:
    """What to call each run: its folder, with the folder above where two are called the same."""
    resolved = [folder.resolve() for folder in folders]
    twice = [str(folder) for folder, count in Counter(resolved).items() if count > 1]
    if twice:
        raise UserError(f"{', '.join(twice)}: given more than once. Give each run once.")
    names = [folder.name for folder in resolved]
    for longer in (lambda folder: f"{folder.parent.name}/{folder.name}", str):
        counts = Counter(names)
        names = [
            longer(folder) if counts[name] > 1 else name
            for folder, name in zip(resolved, names, strict=True)
        ]
    return names


def _target(folders: Sequence[Path], names: Sequence[str], output: Path | None) -> Path:
    """The folder for the comparison, or for the report of a single run."""
    if output is None and len(folders) == 1:
        return folders[0]
    if output is None:
        parts = [name.strip("/").replace("/", "_") for name in names[:_NAMED]]
        more = f"_and_{len(names) - _NAMED}_more" if len(names) > _NAMED else ""
        output = folders[0].resolve().parent / ("_vs_".join(parts) + more)
    own = len(folders) == 1 and output.resolve() == folders[0].resolve()
    if not own and ((output / FILE_NAME).exists() or (output / Store.FOLDER).exists()):
        raise UserError(
            f"{output}: holds a run, whose report this would overwrite. Give another --output."
        )
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file, not a folder. Give another --output.")
    return output


def _read_all(folders: Sequence[Path], partial: bool) -> list[_Folder]:
    """All runs, or one error that says what is wrong with each."""
    found, problems = [], []
    for folder in folders:
        try:
            found.append(_read(folder, partial))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return found


def _read(folder: Path, partial: bool) -> _Folder:
    if folder.is_file():
        raise UserError(f"{folder}: is a file. Give the folder of the run, {folder.parent}.")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Give the --workdir of a training run.")
    inside = sorted(path.parent for path in folder.glob(f"*/{FILE_NAME}"))
    if inside and not (folder / FILE_NAME).exists():
        names = tables.shortened([str(path) for path in inside])
        raise UserError(f"{folder}: is not a run, but holds some: {names}. Give these.")
    if not (folder / FILE_NAME).exists() and (folder / Store.FOLDER).is_dir():
        predictions = _read_unfinished(folder, partial)
    else:
        predictions = Predictions.load(folder / FILE_NAME)
    config = _read_record(folder / "config.json")
    environment = _read_record(folder / "environment.json")
    seen = (environment or {}).get("data_fingerprint", str(predictions.fingerprint))
    if seen != str(predictions.fingerprint):
        raise UserError(
            f"{folder / FILE_NAME}: predictions of another data set than environment.json of "
            "this run says: the file was copied here from another run. Put the run's own "
            "predictions back, or train it again."
        )
    missing = predictions.missing_folds
    if missing and not partial:
        protocol = str(predictions.protocol)
        raise UserError(
            f"{folder}: {len(missing)} of the {len(predictions.protocol_folds)} folds of its "
            f"protocol ({PROTOCOLS.get(protocol, protocol)}) are missing: "
            f"{tables.shortened(missing)}. Train them, or give --partial to score the "
            f"{len(predictions.folds)} there are."
        )
    return _Folder(folder, predictions, config, environment)


def _read_unfinished(folder: Path, partial: bool) -> Predictions:
    store = Store.open(folder / Store.FOLDER)
    if not partial:
        raise UserError(
            f"{folder}: not finished: {len(store.finished_folds())} of {len(store.plan.folds)} "
            f"folds are{_with_inner(store)}. Give its training command again to go on, or give "
            "--partial to score the finished folds."
        )
    return store.assemble()


def _with_inner(store: Store) -> str:
    return " (with their inner folds)" if store.plan.inner_folds else ""


def _read_record(path: Path) -> dict[str, Any] | None:
    """A JSON object that the page shows; None where the run has no such file."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({error}). Restore it, or remove it: "
            "the scores do not need it."
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: not a JSON object. Restore it, or remove it.")
    return record


def _score(name: str, folder: _Folder, data_dir: str) -> Run:
    predictions = folder.predictions
    _say(
        f"{name}: scoring {len(predictions.labels)} clips, {len(predictions.epochs)} recorded "
        f"epochs, {len(predictions.seeds)} seeds"
    )
    pictures = None
    try:
        pictures = _pictures(folder.config, predictions, data_dir)
    except UserError as error:
        _say(f"{name}: no pictures of mistakes in the report: {error}")
    return Run.of(
        name,
        predictions,
        config=folder.config,
        environment=folder.environment,
        pictures=pictures,
    )


def _pictures(config: dict[str, Any] | None, predictions: Predictions, data_dir: str) -> Pictures:
    """The clips' pictures, from the built data set; a UserError says why there are none."""
    dataset = (config or {}).get("dataset")
    keys = ("name", "config", "data_dir", "layout", "channels", "scaling")
    if not isinstance(dataset, dict) or not all(isinstance(dataset.get(k), str) for k in keys):
        raise UserError("the run has no config.json that names its data set")
    name = dataset["name"]
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    where = Path(data_dir or dataset["data_dir"] or default).expanduser()
    absent = f"{name} is not built in {where}; --data_dir=DIR says where it is"
    # A look at the folder first: importing TFDS takes longer than scoring a run.
    if not (where / name).is_dir():
        raise UserError(absent)

    from htnet_jax.datasets import loading
    from htnet_jax.datasets.loading import pictures

    if loading.built(name, config=dataset["config"], data_dir=str(where)) is None:
        raise UserError(absent)
    labels = dataset.get("labels", "")
    arrays = loading.load(name, config=dataset["config"], data_dir=str(where), labels=labels)
    if arrays.fingerprint != str(predictions.fingerprint):
        raise UserError(f"{name} in {where} is not the data that the run saw")
    kept = np.isin(arrays.clips, predictions.clips)
    shown = dataclasses.replace(
        arrays,
        clips=arrays.clips[kept],
        flow=arrays.flow[kept],
        landmarks=arrays.landmarks[kept],
    )
    channels = [channel.strip() for channel in dataset["channels"].split(",")]
    inputs = loading.network_inputs(
        shown, layout=dataset["layout"], channels=channels, scaling=dataset["scaling"]
    )
    return pictures(shown, inputs, dataset["layout"])


def _pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    if len(runs) > _ALL_PAIRS:
        return [(runs[0], other) for other in runs[1:]]
    return list(combinations(runs, 2))


def _compare(first: Run, second: Run) -> comparison.Pair:
    _say(f"comparing {first.name} with {second.name}")
    return comparison.compare(first.predictions, second.predictions, (first.name, second.name))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be created ({error.strerror}). Give another --output."
        ) from error


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    define_flags()
    run_command(main)
