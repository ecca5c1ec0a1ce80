"""What all baselines share: their form, their checks, and logits for classes never trained on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np

ABSENT_MARGIN = 30.0
"""How far the logit of a class without a training clip lies below the clip's lowest other logit.

Its odds are e^-30 (about 1e-13): finite, so that losses and temperatures stay so, and never first.
"""

# Squared distances below this share of the squared lengths are rounding errors of float64.
_ROUNDING = 1e-12


class Fitted(Protocol):
    """A baseline after it has seen its training clips."""

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """`(m, S, S, Ch)` inputs -> `(m, C)` float32."""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A classifier before it has seen any clip; its attributes are its hyper-parameters.

    An attribute named in `CHOOSABLE` may be a tuple: then it stands for the values to choose from,
    and `candidates` lists the baselines to compare. No baseline draws random numbers: the same
    clips give the same fit.

    Attributes:
        num_classes: C, the number of classes.
    """

    num_classes: int = 3

    CHOOSABLE: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Checks the hyper-parameters.

        Raises:
            ValueError: A value that is impossible; says which.
        """
        check_value("num_classes", self.num_classes, is_count, "a whole number, at least 1")

    def check_inputs(self, shape: tuple[int, ...]) -> None:
        """Checks the shape of all inputs.

        Args:
            shape: `(n, S, S, Ch)`.

        Raises:
            ValueError: Another number of axes or, where a baseline names them, of channels.
        """
        if len(shape) != 4:
            raise ValueError(f"inputs {shape} must have the axes (n, S, S, Ch)")

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> Fitted:
        """Learns from the training clips.

        Args:
            inputs: `(n, S, S, Ch)` float32, in any unit: see each baseline.
            labels: `(n,)` integers in [0, C).

        Raises:
            ValueError: Wrong shapes or labels, inputs that are not finite, or a hyper-parameter
                that still has several values.
        """
        raise NotImplementedError

    def candidates(self) -> list[Baseline]:
        """The baselines that the values of the `CHOOSABLE` attributes make, first values first.

        Returns:
            One a combination, the last attribute varying fastest; without tuples, the baseline.
        """
        values = [options(getattr(self, name)) for name in self.CHOOSABLE]
        return [
            dataclasses.replace(self, **dict(zip(self.CHOOSABLE, combination, strict=True)))
            for combination in itertools.product(*values)
        ]

    def chosen_from(self, grid: Baseline) -> dict[str, Any]:
        """The values of the attributes for which `grid` leaves a choice."""
        names = [name for name in self.CHOOSABLE if len(options(getattr(grid, name))) > 1]
        return {name: getattr(self, name) for name in names}


def options(value: Any) -> tuple[Any, ...]:
    """The values that an attribute stands for."""
    return value if isinstance(value, tuple) else (value,)


def is_count(value: Any) -> bool:
    """Whether it is a whole number, at least 1."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1


def is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return bool(number and 0 < value < float("inf"))


def check_value(name: str, value: Any, is_right: Callable[[Any], bool], what: str) -> None:
    """Checks one hyper-parameter, or each of the values it may take.

    Args:
        name: Name of the attribute.
        value: A value, or a tuple of them.
        is_right: Says whether one value is possible.
        what: The possible values, in words.

    Raises:
        ValueError: An impossible value, or an empty tuple.
    """
    if not options(value) or not all(is_right(one) for one in options(value)):
        raise ValueError(f"{name}={value!r} must be {what}")


def training_set(
    baseline: Baseline, inputs: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Checks what `fit` was given.

    Args:
        baseline: What is fitted.
        inputs: `(n, S, S, Ch)`.
        labels: `(n,)`.

    Returns:
        The inputs as float64 and the labels.

    Raises:
        ValueError: As `Baseline.fit`.
    """
    baseline.check()
    if len(baseline.candidates()) > 1:
        raise ValueError(f"{baseline} leaves a choice; fit one of its candidates()")
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    baseline.check_inputs(inputs.shape)
    if len(inputs) == 0 or labels.shape != inputs.shape[:1]:
        raise ValueError(f"inputs {inputs.shape} and labels {labels.shape}: clips differ, or none")
    if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < (
        baseline.num_classes
    ):
        raise ValueError(f"labels must be integers from 0 to {baseline.num_classes - 1}")
    if not np.isfinite(inputs).all():
        raise ValueError("inputs hold values that are not finite")
    return inputs.astype(np.float64), labels


def all_classes(scores: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Puts the scores of the classes trained on among the logits of all classes.

    Args:
        scores: `(m, k)` floats; `(m,)` for two classes: how much more the second is preferred.
        classes: `(k,)` integers, ascending: which classes these are.
        num_classes: C.

    Returns:
        `(m, C)` float32; the other classes lie `ABSENT_MARGIN` below the lowest of the row.
    """
    if scores.ndim == 1:
        scores = np.stack([-scores / 2, scores / 2], axis=1)
    logits = np.repeat(scores.min(axis=1, keepdims=True) - ABSENT_MARGIN, num_classes, axis=1)
    logits[:, classes] = scores
    return logits.astype(np.float32)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances between rows; exactly 0 between equal ones.

    Args:
        a: `(m, k)` float64.
        b: `(n, k)` float64.

    Returns:
        `(m, n)` float64.
    """
    lengths = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    squared = lengths - 2 * a @ b.T
    return np.where(squared > _ROUNDING * lengths, squared, 0.0)
