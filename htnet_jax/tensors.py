"""Tensors in foreign `.safetensors` and PyTorch files, read without running any code in them.

torch is imported for PyTorch's files only, and safetensors for its own: both come with extras.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from htnet_jax import foreign
from htnet_jax.errors import UserError

if TYPE_CHECKING:
    import torch

# Of a PyTorch file; a network of 64 blocks on each of 6 levels has 5,000 tensors.
_MOST_ENTRIES = 20_000


def read_arrays(path: Path, what: str, remedy: str = "Copy it again.") -> dict[str, np.ndarray]:
    """The floating-point tensors of a file, in float32.

    Args:
        path: `.safetensors`; with any other ending a PyTorch file of a state_dict.
        what: What it should be, for the message.
        remedy: What to do.

    Raises:
        UserError: The file is missing, damaged, too large, or holds anything but tensors; the
            library that reads it is not installed.
    """
    with foreign.reading(path, what, remedy):
        with foreign.opened(path, foreign.MAX_ARRAYS):
            pass
        try:
            if path.suffix == ".safetensors":
                tensors, _ = read_safetensors(path, "np")
                # Of types that NumPy does not know by itself, only bfloat16 is taken for floats.
                return {
                    name: array.astype(np.float32)
                    for name, array in tensors.items()
                    if array.dtype.kind == "f" or array.dtype.name == "bfloat16"
                }
            loaded = read_torch(path)
        except ImportError as error:
            raise UserError(
                f"{path}: reading it needs the package {error.name}, which is not installed: "
                "pip install --constraint constraints.txt -e .[torch]"
            ) from error
        if not isinstance(loaded, Mapping):
            raise UserError(f"{path}: it holds a {type(loaded).__name__}, not a state_dict")
        floats = {
            name: tensor
            for name, tensor in loaded.items()
            if isinstance(name, str) and _is_float(tensor)
        }
        check_memory(floats)
        return {name: tensor.detach().float().numpy() for name, tensor in floats.items()}


def _is_float(value: Any) -> bool:
    """Whether something in a state_dict is a tensor of floats; buffers of counts are not."""
    return hasattr(value, "is_floating_point") and value.is_floating_point()


def read_safetensors(path: Path, framework: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors of a file and what it says of itself.

    Args:
        path: The file.
        framework: "pt" for PyTorch's tensors, "np" for arrays.
    """
    import safetensors

    with safetensors.safe_open(path, framework=framework) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU; nothing but tensors is unpickled.

    Raises:
        UserError: It holds something else, or is damaged.
        ValueError: An archive that grows when it is unpacked.
    """
    import torch

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


def check_memory(state_dict: Mapping[str, torch.Tensor]) -> None:
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


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    # Some errors consist of a number alone.
    return next((line for line in lines if re.search("[a-z]{3}", line)), type(error).__name__)
