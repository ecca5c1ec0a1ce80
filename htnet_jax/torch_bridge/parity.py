"""Runs a network in Flax and in PyTorch on the same inputs and weights, and compares all of it.

Activations layer by layer, logits, loss, gradients, and losses and parameters along a number of
optimizer steps. In training mode also the running statistics of batch normalisation, and PyTorch
repeats the draws of Flax's drop path; dropout cannot be compared. In float64 two correct
implementations agree to about twelve digits, so a real difference stands out; in float32 what is
left is rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch

from htnet_jax.errors import UserError
from htnet_jax.torch_bridge import convert
from htnet_jax.torch_bridge.tables import Bridge
from htnet_jax.torch_bridge.traces import (
    Batch,
    Optimizer,
    Trace,
    flax_trace,
    inputs_of,
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


def run(
    module: Any,
    bridge: Bridge,
    variables: Mapping[str, Any],
    batches: Sequence[Batch],
    *,
    dtype: str = "float64",
    optimizer: Optimizer | None = None,
    steps: int = 20,
    torch_model: torch.nn.Module | None = None,
    train: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Report:
    """Compares a Flax network with its PyTorch counterpart.

    Args:
        module: Flax module; it is run in `dtype`.
        bridge: Its bridge.
        variables: Its variables.
        batches: `(inputs, labels)`: a tuple of `(B, H, W, C)` or a single one, and `(B,)`
            integers. Layers and gradients are compared on the first; the steps go through all,
            again and again.
        dtype: "float32" or "float64".
        optimizer: Default: Adam as the release uses it.
        steps: Optimizer steps.
        torch_model: The PyTorch side with weights of its own; default: converted from `variables`.
        train: Training mode: the batch's own statistics, running ones that move, drop path.
        on_progress: Called with a word before each part of the work.

    Raises:
        UserError: No batch, an unknown dtype, weights that cannot be converted, or training mode
            with dropout.
    """
    return run_all(
        module,
        bridge,
        variables,
        batches,
        dtypes=(dtype,),
        optimizer=optimizer,
        steps=steps,
        torch_model=torch_model,
        train=train,
        on_progress=on_progress,
    )[0]


def run_all(
    module: Any,
    bridge: Bridge,
    variables: Mapping[str, Any],
    batches: Sequence[Batch],
    *,
    dtypes: Sequence[str],
    optimizer: Optimizer | None = None,
    steps: int = 20,
    torch_model: torch.nn.Module | None = None,
    train: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> list[Report]:
    """`run` in several types; with float64 before float32 it computes less than separate runs."""
    for dtype in dtypes:
        if dtype not in TOLERANCES:
            raise UserError(f"dtype={dtype!r} is unknown; use {' or '.join(TOLERANCES)}")
    if not batches:
        raise UserError("no batch to compare on")
    if train and getattr(module, "dropout", 0):
        raise UserError(
            f"dropout={module.dropout}: its draws cannot be repeated in PyTorch; compare in "
            "evaluation mode, or with --config.model.dropout=0"
        )
    optimizer = optimizer or Optimizer()
    say = on_progress or (lambda text: None)
    if torch_model is None:
        torch_model = bridge.build(module, inputs_of(batches[0])[0].shape[-1])
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
            )
        theirs = torch_side(dtype, ours)
        if dtype == "float64":
            reference = theirs
        elif reference is None and (steps or "batch_stats" in variables):
            reference = torch_side("float64", ours)
        report = compare(ours, theirs, dtype, reference)
        reports.append(dataclasses.replace(report, train=train))
    return reports


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
    add("loss", "cross-entropy", ours.losses[:1], theirs.losses[:1])
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


def _size(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0))


def _cast(
    variables: Mapping[str, Any], batches: Sequence[Batch], dtype: str
) -> tuple[Any, list[Batch]]:
    cast = jax.tree.map(lambda a: np.asarray(a, dtype), dict(variables))
    return cast, [
        (tuple(np.asarray(x, dtype) for x in inputs_of(batch)), np.asarray(batch[1]))
        for batch in batches
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
