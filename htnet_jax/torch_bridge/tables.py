"""What a model declares to be convertible: its table of names, its layers, its sizes.

A new network gets a file beside `htnet.py` with such a `Bridge`, and a line in `BRIDGES`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table: an array's name and axes on both sides; used in both directions.

    Example:
        Rule("params/level_{i}/conv/kernel", "layers.{i}.conv.weight", "h w i o -> o i h w")

    Attributes:
        flax: Path in the Flax variables, collection first, joined by `/`. `{i}`, `{j}` ... stand
            for a number and appear in both names.
        torch: Name in the `state_dict`.
        axes: How the axes go from Flax to PyTorch, as `einops.rearrange` writes it; read backwards
            for the other direction, so only transpositions, axes of length 1, and axes joined on
            the PyTorch side, `(c h w)`, are allowed.
    """

    flax: str
    torch: str
    axes: str

    @property
    def axes_to_flax(self) -> str:
        """`axes` read backwards."""
        left, right = self.axes.split("->")
        return f"{right.strip()} -> {left.strip()}"

    def lengths(self, shape: Shape) -> dict[str, int]:
        """The length of every named axis of a Flax array of that shape."""
        return dict(zip(self.axes.split("->")[0].split(), shape, strict=True))

    @property
    def counter(self) -> str | None:
        """Name of the number of batches that PyTorch counts beside a running mean, if this is one.

        It matters only for a BN without momentum, and Flax has no such number.
        """
        layer = self.torch.removesuffix(".running_mean")
        return None if layer == self.torch else f"{layer}.num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Bridge:
    """All that conversion and parity checks need to know of a model.

    Attributes:
        table: One `Rule` for every kind of array.
        layers: Pairs of patterns (Flax path of a module or sown value, PyTorch module) whose
            outputs must agree, for the parity check. Four-dimensional outputs are channels-last in
            Flax and channels-first in PyTorch; all others have the same axes.
        build: `(flax_module, channels) -> torch.nn.Module` of the same sizes, float32, evaluating.
        sizes: `(shapes by state_dict name, known attributes, channels) -> attributes of the Flax
            module`; raises a UserError if the shapes contradict each other or what is known.
        assumed: Attributes that shapes do not determine: `sizes` gives the release's if they are
            not known.
        unused: Names in the release's files of arrays that its network never reads; they have no
            place in the Flax variables.
        recreate: `(the other shapes by state_dict name) -> those arrays`, so that a file fits the
            release's own class again.
        pieces: `(pattern of a Flax path, names)`: an array that holds several parameters side by
            side on its last axis, in equal parts; the parity check compares each on its own.
    """

    table: tuple[Rule, ...]
    layers: tuple[tuple[str, str], ...]
    build: Callable[[Any, int], torch.nn.Module]
    sizes: Callable[[Mapping[str, Shape], Mapping[str, Any], int], dict[str, Any]]
    assumed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    recreate: Callable[[Mapping[str, Shape]], dict[str, torch.Tensor]] = lambda shapes: {}
    pieces: tuple[tuple[str, tuple[str, ...]], ...] = ()


def match(pattern: str, name: str) -> dict[str, str] | None:
    """The numbers that `{i}` ... stand for in `name`, or None if it does not fit the pattern."""
    parts = re.split(r"\{(\w+)\}", pattern)
    regex = "".join(
        rf"(?P<{part}>\d+)" if index % 2 else re.escape(part) for index, part in enumerate(parts)
    )
    found = re.fullmatch(regex, name)
    return found.groupdict() if found else None


def translate(name: str, source: str, target: str) -> str | None:
    """`name`, which fits the pattern `source`, as `target` writes it; None if it does not fit."""
    numbers = match(source, name)
    return None if numbers is None else target.format(**numbers)
