"""Runs a network in Flax and in PyTorch on the same inputs and weights, and compares all of it.

Activations layer by layer, logits, loss, gradients, and losses and parameters along a number of
optimizer steps. In training mode also the running statistics of batch normalisation, and PyTorch
repeats the draws of Flax's drop path; dropout cannot be compared. In float64 two correct
implementations agree to about twelve digits, so a real difference stands out; in float32 what is
left is rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from htnet_jax.errors import UserError
from htnet_jax.io import write_atomically
from htnet_jax.torch_bridge import convert
from htnet_jax.torch_bridge.convert import Bridge
from htnet_jax.torch_bridge.traces import (
    Clips,
    Losses,
    Optimizer,
    Trace,
    fed,
    flax_trace,
    torch_trace,
)

# What is compared, in this order. "statistics": the running ones after one batch. "parameter":
# values after the steps (of running statistics as well), "update": their movement.
KINDS = (
    "weight",
    "activation",
    "logits",
    "statistics",
    "loss",
    "gradient",
    "step loss",
    "parameter",
    "update",
)

# Largest relative difference that passes. float64: nine digits, where rounding leaves twelve.
# float32 (seven digits): sums of up to ten thousand terms through fifty layers may cost three.
TOLERANCES: dict[str, dict[str, float]] = {
    "float64": dict.fromkeys(KINDS, 1e-9) | {"weight": 0.0},
    "float32": dict.fromkeys(KINDS, 1e-4) | {"weight": 0.0},
}

# Training amplifies rounding from step to step, the more the higher the learning rate. Along the
# steps a float32 difference may therefore be this many times what float32 costs PyTorch alone: the
# distance of its float32 run from its own float64 run, up to that step; for parameters the largest
# distance of any, because rounding does not stay in the array where it arises. The same holds for
# gradients: rounding takes a value near zero to the other side of a ReLU, and its whole gradient
# comes or goes. (MMNet at 224 px, batch 2, in training: a kernel's gradient moved by 3 % where the
# layers around agreed to five digits; PyTorch's own float32 gradients lay up to 0.5 % from its
# float64 ones.)
FLOAT32_MARGIN = 10

# Of the runs in a plot: two types in two modes at most.
COLOURS = ("#0b62a4", "#d9480f", "#2b8a3e", "#862e9c")

# A gradient up to this many eps times the network's largest gradient is zero but for rounding (the
# last level's position scalars: a shift that the head's LN removes). It is measured against the
# largest gradient, and which way Adam moves such a parameter is not compared.
ROUNDING_EPS = 100


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One line of the table.

    Attributes:
        kind: One of `KINDS`.
        name: Flax path, or a word.
        absolute: Largest absolute difference.
        relative: Divided by the largest value of the PyTorch side; for "update" the norm of the
            difference divided by the norm of the movement.
        tolerance: Largest `relative` that passes.
    """

    kind: str
    name: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance (never for NaN)."""
        return self.relative <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Report:
    """All comparisons of one run.

    Attributes:
        dtype: "float32" or "float64".
        rows: In order of computation.
        losses: `(steps,)` of Flax and of PyTorch.
        train: Whether the networks ran in training mode.
    """

    dtype: str
    rows: tuple[Comparison, ...]
    losses: tuple[np.ndarray, np.ndarray]
    train: bool = False

    @property
    def label(self) -> str:
        """The type, and the mode unless it is evaluation."""
        return f"{self.dtype} train" if self.train else self.dtype

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        return all(row.passed for row in self.rows)

    @property
    def first_difference(self) -> Comparison | None:
        """The first comparison that failed: the earliest layer, if any layer failed."""
        return next((row for row in self.rows if not row.passed), None)

    @property
    def verdict(self) -> str:
        """One line: all agree, or how many differ and which is the first."""
        first = self.first_difference
        if first is None:
            return f"{self.label}: all {len(self.rows)} comparisons agree"
        failed = sum(not row.passed for row in self.rows)
        return (
            f"{self.label}: {failed} of {len(self.rows)} comparisons differ; "
            f"the first is {first.kind} {first.name}"
        )

    @property
    def worst(self) -> list[Comparison]:
        """Of each kind the comparison nearest to its tolerance, or furthest beyond it."""

        def badness(row: Comparison) -> tuple[bool, float]:
            share = row.relative / row.tolerance if row.tolerance else row.relative
            return not row.passed, share if math.isfinite(share) else math.inf

        of_kind = ([row for row in self.rows if row.kind == kind] for kind in KINDS)
        return [max(rows, key=badness) for rows in of_kind if rows]


def run(
    module: Any,
    bridge: Bridge,
    variables: Mapping[str, Any],
    batches: Sequence[Clips | tuple[Any, ...]],
    *,
    dtypes: Sequence[str] = ("float64",),
    optimizer: Optimizer | None = None,
    losses: Losses | None = None,
    steps: int = 20,
    torch_model: torch.nn.Module | None = None,
    train: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> list[Report]:
    """Compares a Flax network with its PyTorch counterpart.

    Args:
        module: Flax module.
        bridge: Its bridge.
        variables: Its variables.
        batches: `Clips`, or tuples of what they hold. Layers and gradients are compared on the
            first; the steps go through all, again and again.
        dtypes: "float64", "float32" or both, a report for each. In this order float64 is computed
            once, though float32 needs it too.
        optimizer: Default: `Optimizer()`.
        losses: Default: `Losses()`, cross-entropy.
        steps: Optimizer steps.
        torch_model: The PyTorch side with weights of its own; default: converted from `variables`.
        train: Training mode: the batch's own statistics, running ones that move, drop path.
        on_progress: Called with a word before each part of the work.

    Raises:
        UserError: No batch, an unknown dtype or loss, weights that cannot be converted, or training
            mode with dropout.
    """
    for dtype in dtypes:
        if dtype not in TOLERANCES:
            raise UserError(f"dtype={dtype!r} is unknown; use {' or '.join(TOLERANCES)}")
    batches = [Clips(*batch) for batch in batches]
    if not batches:
        raise UserError("no batch to compare on")
    if train and getattr(module, "dropout", 0):
        raise UserError(
            f"dropout={module.dropout}: its draws cannot be repeated in PyTorch; compare in "
            "evaluation mode, or with --config.model.dropout=0"
        )
    optimizer, losses = optimizer or Optimizer(), losses or Losses()
    say = on_progress or (lambda text: None)
    if torch_model is None:
        torch_model = bridge.build(module, batches[0].inputs[0].shape[-1])
        torch_model.load_state_dict(convert.to_state_dict(variables, bridge.table), strict=True)

    def torch_side(dtype: str, ours: Trace) -> Trace:
        return torch_trace(
            torch_model,
            bridge,
            *_cast(variables, batches, dtype),
            optimizer,
            steps,
            lambda text: say(f"{dtype} {text}"),
            train=train,
            kept=ours.kept,
            losses=losses,
            privileged=fed(module, batches[0].privileged),
        )

    reports = []
    reference = None
    for dtype in dtypes:
        with jax.enable_x64(dtype == "float64"):
            ours = flax_trace(
                module.clone(dtype=dtype),
                bridge,
                *_cast(variables, batches, dtype),
                optimizer,
                steps,
                lambda text, dtype=dtype: say(f"{dtype} {text}"),
                train=train,
                losses=losses,
            )
        theirs = torch_side(dtype, ours)
        if dtype == "float64":
            reference = theirs
        elif reference is None and (steps or "batch_stats" in variables):
            reference = torch_side("float64", ours)
        report = compare(ours, theirs, dtype, reference)
        reports.append(dataclasses.replace(report, train=train))
    return reports


def parts(dtypes: Sequence[str], steps: int) -> int:
    """At most how often `run` tells its progress."""
    sides = 2 * len(dtypes) + ("float64" not in dtypes)
    return sides * (1 + max(1, steps))


def compare(ours: Trace, theirs: Trace, dtype: str, reference: Trace | None = None) -> Report:
    """All differences between two traces, in order of computation.

    Args:
        ours: The Flax side.
        theirs: The PyTorch side, which the differences are relative to.
        dtype: "float32" or "float64"; names the tolerances.
        reference: The PyTorch side in float64, for the tolerances of float32 in gradients and along
            the steps.
    """
    tolerances = TOLERANCES[dtype]
    rows = []

    def add(kind: str, name: str, a: Any, b: Any, floor: float = 0.0, cost: float = 0.0) -> None:
        tolerance = max(tolerances[kind], FLOAT32_MARGIN * cost)
        rows.append(Comparison(kind, name, *_difference(a, b, floor), tolerance))

    for name, start in theirs.start.items():
        add("weight", name, ours.start[name], start)
    # The order in which PyTorch ran the layers; a layer that one side lacks is a difference.
    for name in [
        *theirs.activations,
        *(n for n in ours.activations if n not in theirs.activations),
    ]:
        add("activation", name, ours.activations.get(name), theirs.activations.get(name))
    add("logits", "logits", ours.logits, theirs.logits)
    for name, moved in theirs.statistics.items():
        add("statistics", name, ours.statistics[name], moved)
    add("loss", "loss", ours.losses[:1], theirs.losses[:1])
    largest = max(_size(gradient) for gradient in theirs.gradients.values())
    limit = ROUNDING_EPS * np.finfo(dtype).eps * largest
    rounding = {
        name
        for name, gradient in theirs.gradients.items()
        if max(_size(gradient), _size(ours.gradients[name])) <= limit
    }
    cost = 0.0
    if reference is not None:
        sure = [name for name in theirs.gradients if name not in rounding]
        costs = [_difference(theirs.gradients[n], reference.gradients[n])[1] for n in sure]
        cost = max(costs, default=0.0)
    for name, gradient in theirs.gradients.items():
        floor = largest if name in rounding else 0.0
        add("gradient", name, ours.gradients[name], gradient, floor, cost)
    rows += _along_the_steps(ours, theirs, reference or theirs, rounding, tolerances)
    return Report(dtype, tuple(rows), (ours.losses, theirs.losses))


def _along_the_steps(
    ours: Trace, theirs: Trace, reference: Trace, rounding: set[str], tolerances: dict[str, float]
) -> Iterator[Comparison]:
    """Losses of the steps, parameters after them, and how far those moved."""

    def row(kind: str, name: str, difference: tuple[float, float], cost: float) -> Comparison:
        tolerance = max(tolerances[kind], FLOAT32_MARGIN * cost)
        return Comparison(kind, name, *difference, tolerance)

    cost = 0.0
    every = zip(ours.losses, theirs.losses, reference.losses, strict=True)
    for step, (loss, their_loss, exact) in enumerate(every, 1):
        if step > 1:
            cost = max(cost, _difference(their_loss, exact)[1])
            yield row("step loss", f"step {step}", _difference(loss, their_loss), cost)
    names = list(theirs.parameters)
    sure = [name for name in names if name not in rounding]

    def values(trace: Trace, name: str) -> np.ndarray:
        return trace.parameters[name]

    def moved(trace: Trace, name: str) -> np.ndarray:
        return trace.parameters[name] - trace.start[name]

    for kind, chosen, of, distance in (
        ("parameter", names, values, _difference),
        ("update", sure, moved, _norm_difference),
    ):
        costs = {n: distance(of(theirs, n), of(reference, n))[1] for n in chosen}
        largest = max((costs[name] for name in sure), default=0.0)
        for name in chosen:
            difference = distance(of(ours, name), of(theirs, name))
            yield row(kind, name, difference, max(largest, costs[name]))


def random_variables(module: Any, bridge: Bridge, channels: int, seed: int) -> dict[str, Any]:
    """Random variables for a check, float32: PyTorch's initial ones, with no gain 1 and no bias 0.

    Running variances stay near 1, means near 0.

    Drawn without compiling anything, so quicker than `module.init`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state_dict = bridge.build(module, channels).state_dict()
        for tensor in state_dict.values():
            if tensor.squeeze().ndim == 1:
                tensor.add_(0.1 * torch.randn(tensor.shape))
        for tensor in state_dict.values():
            if tensor.shape == (1,) and float(tensor) in (0.0, 1.0):
                tensor.add_(0.1 * torch.randn(1))
    expected = convert.expected_variables(module, channels)
    return convert.from_state_dict(state_dict, bridge.table, expected)


def table(report: Report, *, worst_only: bool = False) -> str:
    """Every comparison, or the worst of each kind, and the verdict; for a console."""
    rows = report.worst if worst_only else report.rows
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
    return "\n".join([*lines, report.verdict])


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
                "worst": {row.kind: _finite(row.relative) for row in report.worst},
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
    top.set(title=title, ylabel="loss")
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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _size(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0))


def _cast(
    variables: Mapping[str, Any], batches: Sequence[Clips], dtype: str
) -> tuple[Any, list[Clips]]:
    def floats(array: np.ndarray) -> np.ndarray:
        return np.asarray(array, dtype) if np.issubdtype(array.dtype, np.floating) else array

    cast = jax.tree.map(lambda a: np.asarray(a, dtype), dict(variables))
    return cast, [
        Clips(tuple(np.asarray(x, dtype) for x in inputs), labels, jax.tree.map(floats, privileged))
        for inputs, labels, privileged in batches
    ]


def _difference(a: Any, b: Any, floor: float = 0.0) -> tuple[float, float]:
    """Largest absolute difference, and that divided by the largest of `b` (at least `floor`)."""
    if a is None or b is None or np.shape(a) != np.shape(b):
        return float("inf"), float("inf")
    absolute = _size(np.asarray(a) - b)
    scale = max(_size(b), floor)
    return absolute, _ratio(absolute, scale)


def _norm_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    absolute, scale = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    return _size(a - b), _ratio(absolute, scale)


def _ratio(difference: float, scale: float) -> float:
    if not scale:
        return float("inf") if difference else 0.0
    return difference / scale
