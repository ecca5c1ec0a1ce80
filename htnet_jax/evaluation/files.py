"""Files that are either the old version or the new one, never half of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from htnet_jax.errors import UserError


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
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
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
