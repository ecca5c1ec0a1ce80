"""From predictions to what people read: `metrics.json`, tables and one self-contained page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from htnet_jax.evaluation import page
from htnet_jax.evaluation.files import write_atomically
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.summary import Summary, markdown_table, summarize, table

__all__ = ["markdown_table", "summarize", "table", "write_report"]


def write_report(
    predictions: Predictions,
    directory: str | os.PathLike[str],
    title: str = "Micro-expression recognition run",
    config: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
) -> Summary:
    """Writes `metrics.json` and `report.html` into `directory`, replacing older ones atomically.

    Args:
        predictions: the run.
        directory: an existing folder.
        title: heading of the page.
        config: the run's configuration, shown at the end of the page.
        environment: versions and devices of the run, shown at the end of the page.

    Returns:
        The summary that `metrics.json` holds.

    Raises:
        UserError: a file cannot be written, or a source is called "composite".
    """
    directory = Path(directory)
    summary = summarize(predictions)
    records = [
        (heading, content)
        for heading, content in (("Configuration", config), ("Environment", environment))
        if content is not None
    ]
    text = page.render(predictions, summary, title, records)
    metrics = json.dumps(summary, indent=2) + "\n"
    write_atomically(directory / "metrics.json", lambda file: file.write(metrics.encode()))
    write_atomically(directory / "report.html", lambda file: file.write(text.encode()))
    return summary
