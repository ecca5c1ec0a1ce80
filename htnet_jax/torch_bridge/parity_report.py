"""A parity report as a table, as JSON, and its losses as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from htnet_jax.errors import UserError
from htnet_jax.io import write_atomically
from htnet_jax.torch_bridge.parity import FLOAT32_MARGIN, KINDS, Comparison, Report

# Of the runs in a plot: two types in two modes at most.
COLOURS = ("#0b62a4", "#d9480f", "#2b8a3e", "#862e9c")


def table(report: Report, *, worst_only: bool = False) -> str:
    """Every comparison, or the worst of each kind, and the verdict; for a console."""
    rows = _worst(report.rows) if worst_only else report.rows
    title = "layer or parameter"
    width = max(len(title), *(len(row.name) for row in rows))
    header = f"{'':4} {'kind':10} {title:{width}} {'absolute':>9} {'relative':>9}"
    lines = [f"{report.label}", f"{header} {'tolerance':>9}"]
    for row in rows:
        lines.append(
            f"{'ok' if row.passed else 'FAIL':4} {row.kind:10} {row.name:{width}} "
            f"{row.absolute:9.1e} {row.relative:9.1e} {row.tolerance:9.0e}"
        )
    if report.dtype == "float32" and any(row.kind == "update" for row in rows):
        lines.append(
            f"In gradients and along the steps up to {FLOAT32_MARGIN} times what float32 costs "
            "PyTorch alone passes."
        )
    return "\n".join([*lines, verdict(report)])


def verdict(report: Report) -> str:
    """One line: all agree, or how many differ and which is the first."""
    first = report.first_difference
    if first is None:
        return f"{report.label}: all {len(report.rows)} comparisons agree"
    failed = sum(not row.passed for row in report.rows)
    return (
        f"{report.label}: {failed} of {len(report.rows)} comparisons differ; "
        f"the first is {first.kind} {first.name}"
    )


def loss_table(report: Report) -> str:
    """The loss before every optimizer step in both frameworks."""
    lines = [f"{report.label}", f"{'step':>5} {'Flax':>20} {'PyTorch':>20} {'difference':>11}"]
    for step, (ours, theirs) in enumerate(zip(*report.losses, strict=True), 1):
        lines.append(f"{step:5} {ours:20.12f} {theirs:20.12f} {ours - theirs:11.1e}")
    return "\n".join(lines)


def as_json(reports: Sequence[Report]) -> dict[str, Any]:
    """JSON-safe: `{"passed": ..., "runs": [{"dtype", "mode", "passed", ...}]}`.

    A difference that is not finite (NaN, or a layer that one side lacks) is null.
    """
    return {
        "passed": all(report.passed for report in reports),
        "runs": [
            {
                "dtype": report.dtype,
                "mode": "train" if report.train else "eval",
                "passed": report.passed,
                "first_difference": report.first_difference and report.first_difference.name,
                "worst": {row.kind: _finite(row.relative) for row in _worst(report.rows)},
                "rows": [
                    {
                        "kind": row.kind,
                        "name": row.name,
                        "absolute": _finite(row.absolute),
                        "relative": _finite(row.relative),
                        "tolerance": row.tolerance,
                        "passed": row.passed,
                    }
                    for row in report.rows
                ],
                "losses": {
                    "flax": [_finite(float(loss)) for loss in report.losses[0]],
                    "torch": [_finite(float(loss)) for loss in report.losses[1]],
                },
            }
            for report in reports
        ],
    }


def plot_losses(reports: Sequence[Report], path: Path, title: str) -> None:
    """Draws both frameworks' losses over the steps, and below them their difference (PNG).

    Raises:
        UserError: The file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7, 5), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    for report, colour in zip(reports, COLOURS, strict=False):
        ours, theirs = report.losses
        steps = range(1, len(ours) + 1)
        top.plot(steps, ours, color=colour, linewidth=4, alpha=0.35, label=f"Flax {report.label}")
        top.plot(steps, theirs, "--", color=colour, linewidth=1.2, label=f"PyTorch {report.label}")
        # A logarithmic axis has no zero: equal losses are drawn at a tenth of eps.
        least = np.finfo(report.dtype).eps / 10
        relative = np.maximum(abs(ours - theirs) / abs(theirs), least)
        bottom.semilogy(steps, relative, ".-", color=colour)
    top.set(title=title, ylabel="cross-entropy")
    top.legend()
    bottom.set(xlabel="optimizer step", ylabel="relative difference")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
    finally:
        plt.close(figure)


def _worst(rows: Sequence[Comparison]) -> list[Comparison]:
    """Of each kind the comparison that comes nearest to its tolerance, or exceeds it most."""

    def badness(row: Comparison) -> tuple[bool, float]:
        share = row.relative / row.tolerance if row.tolerance else row.relative
        return not row.passed, share if math.isfinite(share) else math.inf

    present = [kind for kind in KINDS if any(row.kind == kind for row in rows)]
    return [max((row for row in rows if row.kind == kind), key=badness) for kind in present]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
