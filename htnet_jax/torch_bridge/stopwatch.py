"""Times several programs in turn, so that a busy or a hot machine slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np

# One measurement repeats a short call until it lasts about this long.
SECONDS_PER_MEASUREMENT = 0.3
MAX_CALLS = 1000

Key = TypeVar("Key", bound=Hashable)
# Measures once: seconds a unit of work.
Measure = Callable[[], float]


def timed(work: Callable[[], Any]) -> float:
    """Seconds that one call of `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def per_call(call: Callable[[], Any], wait: Callable[[Any], Any]) -> Measure:
    """Compiles and warms up, then returns a measurement of many calls in a row.

    Args:
        call: One unit of work; may return before it is done.
        wait: Given what the last call returned, waits until all calls are done.

    Returns:
        Measures seconds a call.
    """
    # The first call compiles, the second still fills caches and pools of memory.
    for _ in range(2):
        wait(call())
    once = timed(lambda: wait(call()))
    count = max(1, min(MAX_CALLS, math.ceil(SECONDS_PER_MEASUREMENT / max(once, 1e-9))))

    def calls() -> None:
        for _ in range(count):
            result = call()
        wait(result)

    return lambda: timed(calls) / count


def alternate(
    sides: Mapping[Key, Measure], repeats: int, on_measured: Callable[[], Any]
) -> dict[Key, np.ndarray]:
    """Measures every side `repeats` times, in turn.

    Args:
        sides: Name -> measurement.
        repeats: Rounds; every second one goes backwards, so that none always follows another.
        on_measured: Called after every measurement.

    Returns:
        Name -> `(repeats,)` float64, in order of time.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in sides}
    for index in range(repeats):
        for name in list(sides)[:: -1 if index % 2 else 1]:
            seconds[name].append(sides[name]())
            on_measured()
    return {name: np.array(values) for name, values in seconds.items()}


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """`(median, first quartile, third quartile)`."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), float(low), float(high)
