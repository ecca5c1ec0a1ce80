"""Files and the machine: atomic writes, named arrays without pickle, the cores there are."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from htnet_jax import foreign
from htnet_jax.errors import UserError

_VERSION_KEY = "format_version"
# Type of a field -> kinds of arrays that are taken for it without a change of meaning.
KINDS = {np.float32: "f", np.int32: "iu", np.int64: "iu", np.str_: "U", np.bool_: "b"}


def core_count() -> int:
    """Cores this process may use; on Linux a container's share, not the whole machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def data_folder(given: str = "") -> Path:
    """Where built data sets are: `given`, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
        UserError: No such user, or no home folder, for `~`; a name that array_record cannot open.
    """
    folder = foreign.expanded(given or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    check_text(folder, "data folder")
    return folder


def check_text(path: Path, what: str) -> None:
    """Refuses names that libraries written in C++ (array_record, tensorstore) cannot open.

    Raises:
        UserError: The name is not UTF-8 text, or Python, for its locale, does not take it for such.
    """
    # Bytes that are no text stand as lone surrogates in Python's names of files.
    if any(one == "\0" or "\ud800" <= one <= "\udfff" for one in str(path)):
        raise UserError(
            f"{what} {path}: its name is not UTF-8 text; choose another one, or, if only the "
            "locale of this shell says so, set PYTHONUTF8=1"
        )


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, then puts it in the place of `path`.

    Args:
        path: the file to create or replace; its folder must exist.
        write: called once with a binary file open for writing.

    Raises:
        UserError: the file cannot be written (disk full, no permission, no such folder). What was
            at `path` before is then untouched, and no temporary file stays behind.
    """
    path = Path(path)
    # In the same folder, because a rename is atomic only within one file system. Its name cannot be
    # guessed and it must be new, so that nobody's link is followed.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{path}: cannot be written ({reason}). "
            "Free some space or choose a folder you can write to; the old file, if any, is kept."
        ) from error


def inner_folder(folder: Path, name: str) -> Path:
    """A folder inside a chosen one, made if missing.

    Raises:
        UserError: It is a link, which could lead out of the chosen folder, or cannot be created.
    """
    path = folder / name
    try:
        if path.is_symlink():
            raise UserError(
                f"{path}: is a link to {os.readlink(path)}, and nothing outside {folder} is "
                "written or deleted. Remove the link, or move the folder here."
            )
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be created ({error.strerror}). Remove what stands in its place, or "
            "choose a folder you can write to."
        ) from error
    return path


class OtherVersion(UserError):
    """A file of arrays of another format version."""


def typed(name: str, value: object, dtype: type) -> np.ndarray:
    """`value` as an array of `dtype`, without a change of meaning (float to int, number to str).

    Raises:
        UserError: The value is of another kind.
    """
    array = np.asarray(value)
    if array.dtype.kind not in KINDS[dtype]:
        raise UserError(f"{name} has type {array.dtype}, expected {dtype.__name__.strip('_')}.")
    return array if dtype is np.str_ else array.astype(dtype, copy=False)


def save_arrays(
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


def load_arrays(
    path: str | os.PathLike[str],
    version: int,
    what: str,
    *,
    most: int = foreign.MAX_ARRAYS,
    check_headers: Callable[[dict[str, foreign.Header]], object] | None = None,
) -> dict[str, np.ndarray]:
    """Reads what `save_arrays` wrote, without its version.

    Args:
        path: The file.
        version: The version of the format that is understood.
        what: What the file should be ("predictions file"), for messages.
        most: Bytes that its arrays may take together.
        check_headers: Raises anything if names, shapes or types are not as they should be; called
            before any array is read.

    Raises:
        UserError: The file is missing, truncated or of another kind.
        OtherVersion: It is of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file. Give the folder of a training run that has finished."
        )

    def check(headers: Mapping[str, foreign.Header]) -> None:
        found = headers.get(_VERSION_KEY)
        if found is None or found.shape != () or found.dtype.kind not in "iu":
            raise UserError(
                f"{path}: not a {what} (no {_VERSION_KEY!r}). Give a file that a training run "
                "wrote."
            )
        size = sum(math.prod(one.shape) * one.dtype.itemsize for one in headers.values())
        if size > most:
            raise UserError(
                f"{path}: {size:,} bytes of arrays, more than the {most:,} of a {what} of this run"
            )
        if check_headers is not None:
            check_headers({name: one for name, one in headers.items() if name != _VERSION_KEY})

    remedy = "Copy it again, or train the run again."
    arrays = foreign.read_arrays(path, what, remedy, check)
    found = int(arrays.pop(_VERSION_KEY))
    if found != version:
        raise OtherVersion(
            f"{path}: format version {found}, but this program reads version {version}. "
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
