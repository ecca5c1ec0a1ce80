"""Named arrays in `.npz` files: checked types and shapes, never a pickle."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from htnet_jax.errors import UserError
from htnet_jax.evaluation.files import write_atomically

_VERSION_KEY = "format_version"
_KINDS = {np.float32: "f", np.int32: "iu", np.int64: "iu", np.str_: "U", np.bool_: "b"}


def typed(name: str, value: object, dtype: type) -> np.ndarray:
    """`value` as an array of `dtype`, without a change of meaning (float to int, number to str).

    Raises:
        UserError: The value is of another kind.
    """
    array = np.asarray(value)
    if array.dtype.kind not in _KINDS[dtype]:
        raise UserError(f"{name} has type {array.dtype}, expected {dtype.__name__.strip('_')}.")
    return array if dtype is np.str_ else array.astype(dtype, copy=False)


def save(
    path: str | os.PathLike[str], fields: Mapping[str, Any], version: int, *, compress: bool = True
) -> None:
    """Writes arrays as `.npz`, atomically.

    Args:
        path: The file; one that is there is replaced.
        fields: Name -> array.
        version: Version of the format, written with them.
        compress: Smaller, but slower to write.

    Raises:
        UserError: The file cannot be written (disk full, no permission); a file that was there
            before is untouched.
    """
    content = {**fields, _VERSION_KEY: np.int32(version)}
    write = np.savez_compressed if compress else np.savez
    write_atomically(path, lambda file: write(file, **content))


def load(path: str | os.PathLike[str], version: int, what: str) -> dict[str, np.ndarray]:
    """Reads what `save` wrote, without its version.

    Args:
        path: The file.
        version: The version of the format that is understood.
        what: What the file should be ("predictions file"), for messages.

    Raises:
        UserError: The file is missing, truncated, of another kind or of another version.
    """
    path = Path(path)
    arrays = _read(path, what)
    found = arrays.pop(_VERSION_KEY, None)
    if found is None or found.shape != () or found.dtype.kind not in "iu":
        raise UserError(
            f"{path}: not a {what} (no {_VERSION_KEY!r}). Give a file that a training run wrote."
        )
    if int(found) != version:
        raise UserError(
            f"{path}: format version {int(found)}, but this program reads version {version}. "
            "Use the version of htnet_jax that wrote the file, or train the run again."
        )
    return arrays


def check_names(path: Path, arrays: Mapping[str, np.ndarray], expected: set[str]) -> None:
    """Raises a UserError that lists the arrays that are missing or unknown."""
    wrong = sorted(expected ^ set(arrays))
    if wrong:
        raise UserError(
            f"{path}: missing or unknown arrays: {', '.join(wrong)}. Train the run again."
        )


def _read(path: Path, what: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file. Give the folder of a training run that has finished."
        )
    try:
        # Checksums first: np.load would try other formats on a file that is not a zip, and would
        # parse the array headers of a damaged one before it compares their checksum.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        EOFError,
        KeyError,
        OSError,
        RuntimeError,  # zipfile's word for encrypted or unknown compression
    ) as error:
        raise UserError(
            f"{path}: damaged, or not a {what} ({error}). Copy it again, or train the run again."
        ) from error
