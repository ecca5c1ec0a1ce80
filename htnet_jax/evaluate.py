"""Scores finished runs again from their predictions alone: no data set, no accelerator.

  python -m htnet_jax.evaluate RUN [RUN ...]

RUN is the folder of a training run (its --workdir). For each one this reads RUN/predictions.npz,
prints the table of UF1 / UAR and writes RUN/metrics.json and RUN/report.html anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from htnet_jax.errors import UserError, run_command
from htnet_jax.evaluation import report
from htnet_jax.evaluation.predictions import Predictions


def main(argv: Sequence[str]) -> None:
    """Evaluates each run folder in `argv[1:]`.

    Raises:
        UserError: no folder given, or a run that cannot be read or written.
    """
    runs = [Path(argument) for argument in argv[1:]]
    if not runs:
        raise UserError("No run given. Usage: python -m htnet_jax.evaluate RUN [RUN ...]")
    for run in runs:
        evaluate_run(run)


def evaluate_run(run: Path) -> None:
    """Prints the table of one run folder and rewrites its `metrics.json` and `report.html`.

    Raises:
        UserError: the folder or a file in it is missing, damaged or cannot be written.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder. Give the --workdir of a training run.")
    predictions = Predictions.load(run / "predictions.npz")
    summary = report.write_report(
        predictions,
        run,
        title=run.resolve().name,
        config=_read_record(run / "config.json"),
        environment=_read_record(run / "environment.json"),
    )
    print(f"{run}: clips {len(predictions.labels)}, folds {len(predictions.folds)}")
    print(report.table(summary))
    print(f"Report: {run / 'report.html'}\n")


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


if __name__ == "__main__":
    run_command(main)
