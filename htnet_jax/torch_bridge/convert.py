"""Flax variables <-> PyTorch `state_dict`, driven by what a model's `Bridge` declares.

Every array is only transposed and reshaped, so a round trip is bit-exact. A new network gets a file
beside `htnet.py` with a `Bridge`, and a line in `BRIDGES`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import einops
import jax
import numpy as np
import torch
from flax import traverse_util

from htnet_jax.errors import Problems, UserError

Shape = tuple[int, ...]
# `(module, clips, generator) -> name -> (clips, ...)`: see `Bridge.draw`.
Draw = Callable[[Any, int, np.random.Generator], dict[str, np.ndarray]]
# Gives the entries of a release's files that its network never reads: see `Bridge.recreate`.
Recreate = Callable[[Mapping[str, Shape]], dict[str, torch.Tensor]]

# Under these keys training scripts keep the state_dict in their checkpoints.
NESTED_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model"),
    *("net", "network", "params", "weights"),
)
# What DataParallel, Lightning and torch.compile put before every name.
PREFIXES = ("module.", "model.", "_orig_mod.", "net.")

# A training script's dict in a dict; more is no checkpoint of this field.
MAX_DEPTH = 8
# Of a layer, as PyTorch writes it; a name with a larger one belongs to no network.
_NUMBER = "0|[1-9][0-9]{0,2}"
# A message names this many keys.
_SHOWN = 50


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
            outputs must agree, for the parity check. Outputs of four or more dimensions are
            channels-last in Flax and channels-first in PyTorch; all others have the same axes.
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
        pretrained: `(state_dict of another training, Flax module) -> part of its variables` that
            begin so, float32; raises a UserError for a file of another network or size. None: the
            network starts from no file.
        draw: Random features of so many clips that only training sees, for a parity check without
            data.
    """

    table: tuple[Rule, ...]
    layers: tuple[tuple[str, str], ...]
    build: Callable[[Any, int], torch.nn.Module]
    sizes: Callable[[Mapping[str, Shape], Mapping[str, Any], int], dict[str, Any]]
    assumed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    recreate: Recreate = lambda shapes: {}
    pieces: tuple[tuple[str, tuple[str, ...]], ...] = ()
    pretrained: Callable[[Mapping[str, torch.Tensor], Any], dict[str, Any]] | None = None
    draw: Draw = lambda module, count, rng: {}


def match(pattern: str, name: str) -> dict[str, str] | None:
    """The numbers that `{i}` ... stand for in `name`, or None if it does not fit the pattern."""
    parts = re.split(r"\{(\w+)\}", pattern)
    regex = "".join(
        rf"(?P<{part}>{_NUMBER})" if index % 2 else re.escape(part)
        for index, part in enumerate(parts)
    )
    found = re.fullmatch(regex, name)
    return found.groupdict() if found else None


def translate(name: str, source: str, target: str) -> str | None:
    """`name`, which fits the pattern `source`, as `target` writes it; None if it does not fit."""
    numbers = match(source, name)
    return None if numbers is None else target.format(**numbers)


def kernel_and_bias(flax: str, theirs: str, axes: str) -> tuple[Rule, Rule]:
    """The lines of a dense layer or a convolution with a bias; `axes` are the kernel's."""
    return (
        Rule(f"params/{flax}/kernel", f"{theirs}.weight", axes),
        Rule(f"params/{flax}/bias", f"{theirs}.bias", "o -> o"),
    )


def gain_and_bias(
    flax: str, theirs: str, names: tuple[str, str] = ("weight", "bias"), axes: str = "c -> c"
) -> tuple[Rule, Rule]:
    """The lines of a normalisation; `names` are PyTorch's for the gain and the bias."""
    return (
        Rule(f"params/{flax}/scale", f"{theirs}.{names[0]}", axes),
        Rule(f"params/{flax}/bias", f"{theirs}.{names[1]}", axes),
    )


def batch_norm(flax: str, theirs: str) -> tuple[Rule, ...]:
    """The lines of a batch normalisation, its running statistics included."""
    return (
        *gain_and_bias(flax, theirs),
        Rule(f"batch_stats/{flax}/mean", f"{theirs}.running_mean", "c -> c"),
        Rule(f"batch_stats/{flax}/var", f"{theirs}.running_var", "c -> c"),
    )


def conv_norm(flax: str, conv: str, norm: str, axes: str) -> tuple[Rule, ...]:
    """The lines of a convolution without bias and a batch normalisation."""
    return (
        Rule(f"params/{flax}/conv/kernel", f"{conv}.weight", axes),
        *batch_norm(f"{flax}/norm", norm),
    )


def check_ranks(shapes: Mapping[str, Shape], ranks: Mapping[str, int], problems: Problems) -> None:
    """For `Bridge.sizes`: adds entries that are missing, have other axes or none of any length."""
    for name, rank in ranks.items():
        if len(shapes.get(name, ())) != rank:
            problems.add(name, f"shape {shapes.get(name, 'missing')}, expected {rank} axes")
        elif 0 in shapes[name]:
            problems.add(name, f"shape {shapes[name]}: an axis of length 0")


def check_known(found: Mapping[str, Any], known: Mapping[str, Any], problems: Problems) -> None:
    """For `Bridge.sizes`: adds the attributes that differ from what is known of them."""
    for name, value in found.items():
        expected = known.get(name, value)
        expected = tuple(expected) if isinstance(expected, list) else expected
        if expected != value:
            problems.add(name, f"{value} in the file, {expected} expected")


def count_numbered(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number that `pattern`, from the name's beginning, captures."""
    numbers = (int(found[1]) for name in names if (found := re.match(pattern, name)))
    return 1 + max(numbers, default=-1)


def to_state_dict(
    variables: Mapping[str, Any], table: Sequence[Rule], recreate: Recreate | None = None
) -> dict[str, torch.Tensor]:
    """Flax variables as a `state_dict`.

    Args:
        variables: `{"params": ..., ...}`, arrays of any dtype that PyTorch knows.
        table: The model's table.
        recreate: `bridge.recreate` also adds what the release's files hold and never read.

    Returns:
        Contiguous tensors of the same dtypes that share no memory with `variables`; beside every
        running mean the number of batches that PyTorch counts, 0.

    Raises:
        UserError: Arrays that no line of the table names, all of them.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    pairs = _pairs(flat, table)
    tensors = {}
    for path, array in flat.items():
        name, rule = pairs[path]
        tensors[name] = torch.from_numpy(
            np.array(einops.rearrange(np.asarray(array), rule.axes), order="C")
        )
        if rule.counter:
            tensors[translate(name, rule.torch, rule.counter)] = torch.tensor(0)
    if recreate:
        tensors |= recreate({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return tensors


def from_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    table: Sequence[Rule],
    expected: Mapping[str, Any],
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """A `state_dict` as Flax variables.

    Args:
        state_dict: All entries and no others, without prefixes (see `clean`); PyTorch's counts of
            batches beside running means may be there or not.
        table: The model's table.
        expected: The variables' nested dict with shapes, as `jax.eval_shape` of `module.init`
            gives.
        dtype: Type of the result; bit-exact for tensors of that type.

    Returns:
        Nested dict of NumPy arrays that share no memory with `state_dict`.

    Raises:
        UserError: Missing, unknown and misshapen entries, all together, names side by side.
    """
    shapes = {
        path: tuple(leaf.shape)
        for path, leaf in traverse_util.flatten_dict(expected, sep="/").items()
    }
    pairs = _pairs(shapes, table)
    wanted = {name: _torch_shape(shapes[path], rule) for path, (name, rule) in pairs.items()}
    have = {name: tuple(t.shape) for name, t in state_dict.items() if not _is_counter(name, table)}
    _compare(wanted, have)
    flat = {
        path: np.array(
            einops.rearrange(
                _numpy(state_dict[name], dtype), rule.axes_to_flax, **rule.lengths(shapes[path])
            ),
            order="C",
        )
        for path, (name, rule) in pairs.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def attributes(module: Any) -> dict[str, Any]:
    """What a Flax module was made with, without the type of its computation."""
    names = (field.name for field in dataclasses.fields(module))
    return {n: getattr(module, n) for n in names if n not in ("parent", "name", "dtype")}


def expected_variables(module: Any, channels: int) -> dict[str, Any]:
    """Shapes and dtypes of a module's variables, without computing any."""
    inputs = [
        jax.ShapeDtypeStruct((1, *shape), np.float32) for shape in module.input_shapes(channels)
    ]
    return jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, train=False), *inputs)


def drop_unused(
    state_dict: Mapping[str, torch.Tensor], bridge: Bridge
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Leaves out what a file holds and Flax has no place for.

    Args:
        state_dict: Without prefixes (see `clean`).
        bridge: The model's.

    Returns:
        `(state_dict, notes)`: a note names the entries that the release's network never reads, and
        says how many counts of batches there were.
    """
    notes = []
    unused = [name for name in state_dict if name in bridge.unused]
    counters = [
        name for name in state_dict if name not in unused and _is_counter(name, bridge.table)
    ]
    if unused:
        names = ", ".join(_entry(name, tuple(state_dict[name].shape)) for name in unused)
        notes.append(f"left out, because the network never reads them: {names}")
    if counters:
        notes.append(f"left out: {len(counters)} x num_batches_tracked, which changes nothing")
    left_out = {*unused, *counters}
    return {name: t for name, t in state_dict.items() if name not in left_out}, notes


def infer_sizes(
    state_dict: Mapping[str, torch.Tensor],
    bridge: Bridge,
    known: Mapping[str, Any],
    channels: int,
) -> dict[str, Any]:
    """The attributes of the Flax module that a `state_dict` belongs to; see `Bridge.sizes`.

    Raises:
        UserError: Names that are not the model's, all of them; or shapes that contradict each
            other or `known`.
    """
    unknown = [
        name for name in state_dict if all(match(rule.torch, name) is None for rule in bridge.table)
    ]
    unused = [
        rule.torch
        for rule in bridge.table
        if all(match(rule.torch, name) is None for name in state_dict)
    ]
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    if unknown:
        # A network of one level leaves lines of the table unused, so those alone are no mistake.
        raise UserError(_report(unused, [_entry(name, shapes[name]) for name in unknown], []))
    return bridge.sizes(shapes, known, channels)


def clean(loaded: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The bare `state_dict` of what a `.pth` file holds.

    Args:
        loaded: A state_dict, or a training checkpoint that holds one under one of `NESTED_KEYS`;
            names may all begin with one of `PREFIXES`.

    Returns:
        `(state_dict, notes)`; a note says what was left out or taken away.

    Raises:
        UserError: No state_dict found; lists the keys that there are.
    """
    notes = []
    state_dict: Mapping[str, Any] = loaded
    depth = 0
    while not _is_state_dict(state_dict):
        depth += 1
        if depth > MAX_DEPTH:  # or the file contains itself
            raise UserError(f"no state_dict found in {MAX_DEPTH} dicts within each other")
        key = next((k for k in NESTED_KEYS if isinstance(state_dict.get(k), Mapping)), None)
        if key is None:
            keys = _listed(state_dict) or "nothing"
            raise UserError(
                f"no state_dict found; there is {keys}. It must be the whole file or stand under "
                f"one of {', '.join(NESTED_KEYS)}."
            )
        others = _listed(other for other in state_dict if other != key)
        left_out = f"; left out: {others}" if others else ""
        notes.append(f"the state_dict stands under {key!r}{left_out}")
        state_dict = state_dict[key]
    found = dict(state_dict)
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in found)), None):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        notes.append(f"the prefix {prefix!r} was taken off every name")
    return found, notes


def non_finite(state_dict: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many NaN or infinite values each entry has; entries without any are left out."""
    counts = {
        name: int((~torch.isfinite(tensor)).sum())
        for name, tensor in state_dict.items()
        if tensor.is_floating_point()
    }
    return {name: count for name, count in counts.items() if count}


def _listed(keys: Iterable[Any]) -> str:
    """Keys of a foreign dict, which may be anything and many."""
    names = [repr(key) if isinstance(key, str | int) else type(key).__name__ for key in keys]
    short = [name if len(name) <= 100 else f"{name[:100]}..." for name in names[:_SHOWN]]
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*short, *more])


def _is_state_dict(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    )


def _pairs(paths: Iterable[str], table: Sequence[Rule]) -> dict[str, tuple[str, Rule]]:
    """The state_dict name and the rule of every Flax path."""
    pairs, unknown = {}, []
    for path in paths:
        found = [(name, rule) for rule in table if (name := translate(path, rule.flax, rule.torch))]
        if found:
            pairs[path] = found[0]
        else:
            unknown.append(path)
    if unknown:
        raise UserError(
            "the table of names has no line for these Flax arrays:\n  " + "\n  ".join(unknown)
        )
    return pairs


def _torch_shape(shape: Shape, rule: Rule) -> Shape:
    return tuple(einops.rearrange(torch.empty(shape, device="meta"), rule.axes).shape)


def _is_counter(name: str, table: Sequence[Rule]) -> bool:
    return any(rule.counter and match(rule.counter, name) is not None for rule in table)


def _numpy(tensor: torch.Tensor, dtype: Any) -> np.ndarray:
    # bfloat16 has no NumPy type; float64 holds every value of the other types.
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.to(torch.float32)
    return tensor.numpy().astype(dtype)


def _compare(wanted: Mapping[str, Shape], have: Mapping[str, Shape]) -> None:
    missing = [_entry(name, wanted[name]) for name in wanted if name not in have]
    unknown = [_entry(name, have[name]) for name in have if name not in wanted]
    misshapen = [
        (_entry(name, shape), str(have[name]))
        for name, shape in wanted.items()
        if have.get(name, shape) != shape
    ]
    if missing or unknown or misshapen:
        raise UserError(_report(missing, unknown, misshapen))


def _entry(name: str, shape: Shape) -> str:
    return f"{name} {shape}"


def _report(
    missing: Sequence[str], unknown: Sequence[str], misshapen: Sequence[tuple[str, str]]
) -> str:
    """What does not fit, expected and found side by side."""
    rows = [*misshapen, *itertools.zip_longest(missing, unknown, fillvalue="")]
    width = max(len(left) for left, _ in [*rows, ("expected", "")])
    lines = [f"  {left:{width}} | {right}".rstrip() for left, right in rows]
    return "\n".join(
        [
            f"the state_dict does not fit: {len(missing)} missing, {len(unknown)} unknown, "
            f"{len(misshapen)} misshapen",
            f"  {'expected':{width}} | in the file",
            *lines,
            "Convert a state_dict of this network, or give the --config that belongs to it.",
        ]
    )
