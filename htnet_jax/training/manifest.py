"""The SHA-256 of every file of a checkpoint: a flipped bit would otherwise be read as a number."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from htnet_jax.io import write_atomically

NAME = "manifest.json"


class DamagedError(Exception):
    """A checkpoint whose files are not those that were written; says which."""


def write(folder: Path, arrays: str, **facts: Any) -> None:
    """Writes `folder/manifest.json`.

    Args:
        folder: The checkpoint.
        arrays: The folder inside it whose files are hashed.
        facts: JSON-safe values to keep beside the hashes.

    Raises:
        UserError: The file cannot be written.
    """
    content = json.dumps({"files": _hashes(folder, arrays), **facts}, indent=2) + "\n"
    write_atomically(folder / NAME, lambda file: file.write(content.encode()))


def check(folder: Path, arrays: str) -> dict[str, Any]:
    """Compares the files with the manifest, before anything opens them.

    Args:
        folder: The checkpoint.
        arrays: The folder inside it whose files are compared.

    Returns:
        The manifest's facts.

    Raises:
        DamagedError: The manifest cannot be read, or files are changed, missing or new.
    """
    try:
        content = json.loads((folder / NAME).read_text())
        expected = content.pop("files")
        found = _hashes(folder, arrays)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from error
    wrong = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
    if wrong:
        raise DamagedError(f"changed or missing: {', '.join(wrong)}")
    return content


def _hashes(folder: Path, arrays: str) -> dict[str, str]:
    files = sorted(path for path in (folder / arrays).rglob("*") if path.is_file())
    found = {}
    for path in files:
        # Not read at once: a file may hold gigabytes.
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(folder).as_posix()] = digest
    return found
