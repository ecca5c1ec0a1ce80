"""`.safetensors` and `.pth` files of a `state_dict`, read without running any code in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from htnet_jax import foreign, tensors
from htnet_jax.errors import Problems, UserError
from htnet_jax.io import write_atomically
from htnet_jax.torch_bridge import convert

SAFETENSORS = ".safetensors"
TORCH = (".pth", ".pt")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class StateDictFile(NamedTuple):
    """What `read` returns.

    Attributes:
        state_dict: Bare names; tensors on the CPU.
        metadata: What a `.safetensors` file says of itself; empty for `.pth`.
        notes: What was left out or taken away on reading, and what looks wrong.
    """

    state_dict: dict[str, torch.Tensor]
    metadata: dict[str, str]
    notes: list[str]


def read(path: str | Path) -> StateDictFile:
    """Reads a `.safetensors`, `.pth` or `.pt` file; never unpickles anything but tensors.

    Raises:
        UserError: The file is missing, truncated, of another kind, holds pickled objects, or no
            state_dict.
    """
    path = foreign.expanded(path)
    what = "safetensors file" if path.suffix == SAFETENSORS else "PyTorch file"
    with foreign.reading(path, what):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give a {SAFETENSORS} or .pth file")
        if not path.exists():
            raise UserError(f"{path}: no such file")
        if path.suffix not in (SAFETENSORS, *TORCH):
            raise UserError(_wrong_ending(path))
        with foreign.opened(path, foreign.MAX_ARRAYS):
            pass
        if path.suffix == SAFETENSORS:
            loaded, metadata = tensors.read_safetensors(path, "pt")
        else:
            loaded, metadata = tensors.read_torch(path), {}
        try:
            if not isinstance(loaded, Mapping):
                raise UserError(f"it holds a {type(loaded).__name__}, not a state_dict")
            state_dict, notes = convert.clean(loaded)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        _check_types(path, state_dict)
        tensors.check_memory(state_dict)
        for name, count in convert.non_finite(state_dict).items():
            notes.append(f"warning: {name} has {count} values that are NaN or infinite")
    floats = [tensor for tensor in state_dict.values() if tensor.is_floating_point()]
    others = sorted({str(t.dtype) for t in floats if t.dtype != torch.float32})
    if others:
        notes.append(f"warning: {', '.join(others)} becomes float32")
    return StateDictFile(state_dict, metadata, notes)


def write(
    path: str | Path,
    state_dict: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
) -> None:
    """Writes a state_dict; the file appears complete or not at all.

    Args:
        path: Ends in `.safetensors`, `.pth` or `.pt`.
        state_dict: Contiguous tensors on the CPU.
        metadata: Kept in a `.safetensors` file only: a `.pth` file holds the bare state_dict, so
            that `model.load_state_dict(torch.load(path))` works.
        overwrite: Replace a file that is there.

    Raises:
        UserError: The ending is unknown, the file exists, or it cannot be written.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    if path.suffix == SAFETENSORS:
        data = safetensors.torch.save(dict(state_dict), dict(metadata))

        def save(file: Any) -> None:
            file.write(data)
    else:

        def save(file: Any) -> None:
            torch.save(dict(state_dict), file)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save)
    # torch reports a full disk as a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be written ({error}); choose another --output") from error


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuses an output of an unknown kind, or one that exists unless `overwrite`.

    Raises:
        UserError: With the remedy.
    """
    if path.suffix not in (SAFETENSORS, *TORCH):
        raise UserError(_wrong_ending(path))
    if path.exists() and not (overwrite and path.is_file()):
        raise UserError(f"{path}: exists already; choose another --output, or add --overwrite")


def _check_types(path: Path, state_dict: Mapping[str, torch.Tensor]) -> None:
    problems = Problems(str(path))
    for name, tensor in state_dict.items():
        counts = name.endswith(".num_batches_tracked") and tensor.dtype == torch.int64
        if (
            (tensor.dtype not in DTYPES and not counts)
            or tensor.layout != torch.strided
            or tensor.is_meta
        ):
            problems.add(name, f"{tensor.dtype}, {tensor.layout}")
    problems.raise_if_any("Only dense floating-point tensors can be converted.")


def _wrong_ending(path: Path) -> str:
    return f"{path}: the name must end in {SAFETENSORS}, {' or '.join(TORCH)}"
