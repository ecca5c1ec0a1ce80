"""`.safetensors` and `.pth` files of a `state_dict`, read without running any code in them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from htnet_jax import foreign
from htnet_jax.errors import Problems, UserError
from htnet_jax.io import write_atomically
from htnet_jax.torch_bridge import convert

SAFETENSORS = ".safetensors"
TORCH = (".pth", ".pt")
# Of a `.pth` file; a network of 64 blocks on each of 6 levels has 5,000 tensors.
_MOST_ENTRIES = 20_000
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
            loaded, metadata = _read_safetensors(path)
        else:
            loaded, metadata = _read_torch(path), {}
        try:
            if not isinstance(loaded, Mapping):
                raise UserError(f"it holds a {type(loaded).__name__}, not a state_dict")
            state_dict, notes = convert.clean(loaded)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        _check_types(path, state_dict)
        _check_memory(state_dict)
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


def _check_memory(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Raises a ValueError if tensors claim many more values than the file has for them.

    A tensor with a stride of 0 claims any number; expanded tensors of a sensible size are saved so.
    """
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    storages = {one.data_ptr(): one.nbytes() for one in map(_storage, state_dict.values())}
    there = sum(storages.values())
    if claimed > max(2**28, 8 * there):
        raise ValueError(f"tensors of {claimed:,} bytes in the {there:,} bytes of their values")


def _storage(tensor: torch.Tensor) -> Any:
    return tensor.untyped_storage()


def _check_archive(path: Path) -> None:
    """Raises a ValueError if a `.pth` file is an archive that grows when it is unpacked."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        # Each takes torch some time to open.
        if len(archive.infolist()) > _MOST_ENTRIES:
            raise ValueError(f"an archive of {len(archive.infolist()):,} entries")
        unpacked = sum(member.file_size for member in archive.infolist())
        # torch.save compresses nothing.
        if unpacked > path.stat().st_size:
            raise ValueError(f"{unpacked:,} bytes when unpacked; torch.save compresses nothing")


def _wrong_ending(path: Path) -> str:
    return f"{path}: the name must end in {SAFETENSORS}, {' or '.join(TORCH)}"


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _read_torch(path: Path) -> Any:
    _check_archive(path)
    try:
        # Its warnings about odd pickles would precede our message.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a pickled {found[1]}" if found else "something that is no tensor, or is damaged"
        raise UserError(
            f"{path}: holds {what}. Unpickling runs code that the file brings along, so it is not "
            "done here. If you trust the file, rewrite it where it comes from:\n"
            "  torch.save(model.state_dict(), 'weights.pth')   # not torch.save(model, ...)"
        ) from error
    except Exception as error:  # what torch raises depends on where a file was cut or changed
        raise UserError(
            f"{path}: truncated or not a PyTorch file ({_first_line(error)}); copy it again"
        ) from error


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    # Some errors consist of a number alone.
    return next((line for line in lines if re.search("[a-z]{3}", line)), type(error).__name__)
