"""The border for files that others wrote: a stated size, regular files only, one message if wrong.

Whatever reads a foreign file opens it here and parses it within `reading`, so that a damaged,
gigantic or malicious file ends in one `UserError` that names it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from htnet_jax.errors import UserError

# Largest files that are read, in bytes, far above what the data sets and runs of this field need.
# The environment variable raises (or lowers) all of them.
MAX_TEXT = 256 * 2**20
MAX_SHEET = 32 * 2**20  # unpacked; the parsers take minutes and gigabytes for what MAX_TEXT allows
MAX_IMAGE = 2**28  # as a file, and its pixels
MAX_ARRAYS = 16 * 2**30
LIMIT_VARIABLE = "HTNET_MAX_FILE_BYTES"

# Nested lists and objects of a JSON file; ours have fewer than ten. Python copies and writes such
# content recursively, and stops at a few hundred.
MAX_DEPTH = 100

# NumPy's own limit for the header of an array, whose parser is slow and deep.
_MAX_HEADER = 10_000
# Booleans, integers, floats, text; never objects, which would be pickled.
_KINDS = "biufUS"


def limit(most: int) -> int:
    """The largest size in bytes that is read: `most`, unless the environment says otherwise.

    Raises:
        UserError: The environment variable is not a whole number of bytes.
    """
    given = os.environ.get(LIMIT_VARIABLE, "")
    if not given:
        return most
    if not given.isascii() or not given.isdecimal() or len(given) > 18:
        raise UserError(f"{LIMIT_VARIABLE}={given}: give a whole number of bytes")
    return int(given)


@contextlib.contextmanager
def reading(
    path: str | os.PathLike[str], what: str, remedy: str = "Copy it again."
) -> Iterator[None]:
    """Turns whatever parsing a foreign file raises into one message.

    Args:
        path: The file, for the message.
        what: What it should be ("predictions file").
        remedy: What to do.

    Raises:
        UserError: Anything was raised; a `UserError` passes as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # parsers of foreign data raise anything; this is their one border
        # The system's errors have a number: the file is missing, or may not be read.
        is_there = getattr(error, "errno", None) is None
        problem = f"damaged, or not a {what}" if is_there else "cannot be read"
        raise UserError(f"{path}: {problem} ({reason(error)}). {remedy}") from error


def opened(path: str | os.PathLike[str], most: int) -> BinaryIO:
    """Opens a regular file of at most `limit(most)` bytes for reading.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no regular file (a pipe would be waited for), or too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
            raise ValueError(f"{kind}, not a regular file")
        check_size(found.st_size, most)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_size(size: int, most: int) -> None:
    """Raises a ValueError if `size` bytes are more than `limit(most)`."""
    if size > limit(most):
        raise ValueError(
            f"{size:,} bytes, more than the {limit(most):,} that are read; "
            f"{LIMIT_VARIABLE}=BYTES in the environment raises this"
        )


def read_bytes(path: str | os.PathLike[str], most: int = MAX_TEXT) -> bytes:
    """The content of a file; raises as `opened`."""
    with opened(path, most) as file:
        # Not up to the limit, for which memory would be taken. A file that grows meanwhile is cut.
        return file.read(os.fstat(file.fileno()).st_size)


def read_json(
    path: str | os.PathLike[str],
    what: str,
    remedy: str = "Copy it again.",
    check: Callable[[Any], object] | None = None,
) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        what: What it should be, for the message.
        remedy: What to do.
        check: Raises anything if the content is not as it should be.

    Raises:
        UserError: It is missing, not readable, no JSON, nested too deep, or `check` refuses it.
    """
    with reading(path, what, remedy):
        content = json.loads(read_bytes(path).decode("utf-8"))
        _check_depth(content)
        if check is not None:
            check(content)
        return content


def _check_depth(content: Any) -> None:
    """Raises a ValueError if lists and objects are nested deeper than `MAX_DEPTH`."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [one for one in level if isinstance(one, list | dict)]
        if not level:
            return
        level = [v for one in level for v in (one.values() if isinstance(one, dict) else one)]
    raise ValueError(f"nested too deep, in more than {MAX_DEPTH} levels")


class Header(NamedTuple):
    """What an array's header says, before its values are read."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_arrays(
    path: str | os.PathLike[str],
    what: str,
    remedy: str = "Copy it again.",
    check: Callable[[Mapping[str, Header]], object] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, each checked before memory is taken for any.

    Args:
        path: The file.
        what: What it should be, for the message.
        remedy: What to do.
        check: Raises anything if names, shapes or types are not as they should be.

    Raises:
        UserError: It is missing, damaged, too large, holds objects, or `check` refuses it.
    """
    with (
        reading(path, what, remedy),
        opened(path, MAX_ARRAYS) as file,
        zipfile.ZipFile(file) as archive,
    ):
        members = archive.infolist()
        # Twice the same name: which of them counts would depend on the reader.
        if len({member.filename for member in members}) != len(members):
            raise ValueError("two arrays of one name")
        check_size(sum(member.file_size for member in members), MAX_ARRAYS)
        headers = {}
        for member in members:
            if not member.filename.endswith(".npy"):
                raise ValueError(f"{member.filename} is no array")
            with archive.open(member) as array:
                name = member.filename.removesuffix(".npy")
                headers[name] = header_of(array, member.file_size)
        if check is not None:
            check(headers)
        arrays = {}
        for member in members:
            with archive.open(member) as array:
                name = member.filename.removesuffix(".npy")
                arrays[name] = read_array(array, member.file_size)
        return arrays


def header_of(file: Any, size: int) -> Header:
    """Shape and type of an array in NumPy's format; the file is then at its values.

    Args:
        file: Open for reading, at the array's begin.
        size: Bytes of the array, header included.

    Raises:
        ValueError: No such array, an impossible header, or one of objects.
    """
    formats = np.lib.format
    version = formats.read_magic(file)
    readers = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of NumPy's format")
    shape, _, dtype = readers[version](file, max_header_size=_MAX_HEADER)
    if dtype.kind not in _KINDS or dtype.hasobject:
        raise ValueError(f"values of type {dtype}")
    if any(length < 0 for length in shape):
        raise ValueError(f"an array of shape {shape}")
    needed = math.prod(shape) * dtype.itemsize
    if needed != size - file.tell():
        raise ValueError(
            f"an array of shape {shape} and type {dtype} takes {needed:,} bytes, but "
            f"{size - file.tell():,} are there"
        )
    return Header(shape, dtype)


def read_array(file: Any, size: int) -> np.ndarray:
    """An array in NumPy's format; arguments and errors as `header_of`."""
    start = file.tell()
    header_of(file, size)
    file.seek(start)
    array = np.lib.format.read_array(file, allow_pickle=False, max_header_size=_MAX_HEADER)
    file.read(1)  # At a zip member's end its checksum is compared.
    return array


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` replaced by the home folder.

    Raises:
        UserError: No such user, or no home folder is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}; give the path without ~") from error


def reason(error: Exception) -> str:
    """What an exception says, briefly, for a message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, MemoryError):
        return "more than fits into memory"
    # Some parsers quote the whole input.
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
