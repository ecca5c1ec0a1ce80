"""From runs to the files that are read: scores, tables, plots and one self-contained page."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from htnet_jax import foreign
from htnet_jax.errors import UserError
from htnet_jax.evaluation import page, tables
from htnet_jax.evaluation.selection import Selection
from htnet_jax.evaluation.summary import Pair, Run, describe
from htnet_jax.io import inner_folder, write_atomically

METRICS = "metrics.json"
COMPARISON = "comparison.json"

# The plots that a report may have, see `page.figures`.
_PLOT = re.compile(
    r"(learning_curves|intervals|(confusion|subjects|calibration|agreement)[a-z0-9_]*)\.png"
)


def write_run(run: Run, directory: str | os.PathLike[str]) -> None:
    """Writes everything about one run.

    - `metrics.json`: `run` (what was run), each selection's scores as `summary.summarize` gives
      them, `descriptions` as `retrieval.summarize` gives them (of a run that has them), and `plots`
      (the names of the plots);
    - `predictions_SELECTION.csv`, see `tables.predictions_csv`;
    - `table.md`, `table.tex`, `plots/NAME.png`, `report.html`.

    Each file is replaced atomically. Predictions and plots of an earlier report of this folder that
    the new one does not have are removed; other files are left alone. A link is never followed out
    of the folder: one in a file's place is replaced, one in the place of `plots` is refused.

    Args:
        run: The run.
        directory: An existing folder.

    Raises:
        UserError: A file cannot be written or removed.
    """
    content = _metrics(run)
    files = {
        f"predictions_{selection}.csv": tables.predictions_csv(run.predictions, selection)
        for selection in run.summary
    }
    directory = Path(directory)
    _write(directory, METRICS, content, files, [run], ())
    for selection in Selection:
        if selection.value not in run.summary:
            _remove(directory / f"predictions_{selection.value}.csv")


def write_comparison(
    runs: Sequence[Run], pairs: Sequence[Pair], directory: str | os.PathLike[str]
) -> None:
    """Writes everything about several runs side by side.

    - `comparison.json`: `runs` (name -> what `metrics.json` says of it), `pairs` (`first`,
      `second` and `differences`: selection -> group -> score -> `difference`, `low`, `high`,
      `p_value`; first minus second, null where there is no interval), and `plots`;
    - `table.md`, `table.tex`, `plots/NAME.png`, `report.html`.

    Files are replaced and removed as `write_run` does.

    Args:
        runs: Two or more runs with unique names.
        pairs: Comparisons of them.
        directory: An existing folder.

    Raises:
        UserError: A file cannot be written or removed.
        ValueError: Two runs share a name.
    """
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"runs share a name: {[run.name for run in runs]}")
    content = {
        "runs": {run.name: _metrics(run) for run in runs},
        "pairs": [
            {"first": pair.first, "second": pair.second, "differences": _differences(pair)}
            for pair in pairs
        ],
    }
    _write(Path(directory), COMPARISON, content, {}, runs, pairs)


def _metrics(run: Run) -> dict[str, Any]:
    found = {"run": describe(run.predictions), **run.summary}
    return found if run.descriptions is None else found | {"descriptions": run.descriptions}


def _write(
    directory: Path,
    record: str,
    content: dict[str, Any],
    files: Mapping[str, str],
    runs: Sequence[Run],
    pairs: Sequence[Pair],
) -> None:
    figures = page.figures(runs, pairs)
    plots = {f"{stem}.png": figure.png for stem, figure in figures.items()}
    content["plots"] = sorted(plots)
    texts = {
        **files,
        "table.md": tables.markdown(runs, pairs),
        "table.tex": tables.latex(runs, pairs),
        "report.html": page.render(runs, pairs, figures),
        record: json.dumps(content, indent=2) + "\n",
    }
    folder = inner_folder(directory, "plots")
    stale = _earlier_plots(directory / record) - set(plots)
    for name, png in plots.items():
        write_atomically(folder / name, lambda file, png=png: file.write(png))
    for name, text in texts.items():
        write_atomically(directory / name, lambda file, text=text: file.write(text.encode()))
    for name in stale:
        _remove(folder / name)


def _earlier_plots(record: Path) -> set[str]:
    """The plots that the last report wrote: only those may be removed."""
    try:
        names = foreign.read_json(record, "report")["plots"]
        # The file may come from anywhere: no name that is not one of ours.
        return {name for name in names if _PLOT.fullmatch(name)}
    except (UserError, KeyError, TypeError):
        # No report so far, or not one of ours: nothing to clear away.
        return set()


def _remove(path: Path) -> None:
    """Removes a file of an older report; a link, which is none of ours, stays."""
    try:
        if not path.is_symlink():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: an older report's file that no longer holds cannot be removed "
            f"({error.strerror}); delete it"
        ) from error


def _differences(pair: Pair) -> dict[str, Any]:
    return {
        selection: {
            group: {
                score: {
                    name: None if np.isnan(value) else value
                    for name, value in found._asdict().items()
                }
                for score, found in scores.items()
            }
            for group, scores in groups.items()
        }
        for selection, groups in pair.differences.items()
    }
