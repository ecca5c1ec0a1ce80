"""Folders and frames of a copy of a data set, found as they are on disk and never by formatting.

Copies differ in letter case, padding and nesting of archives, so folders are looked up by the last
parts of their path, and frames by the number in their name.
"""

from __future__ import annotations

import collections
import functools
import os
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


class Tree:
    """All folders below a root; links that lead out of the root are not followed.

    Attributes:
        root: The chosen folder.
        outside: Links that lead out of it, for the audit.
    """

    def __init__(self, root: Path) -> None:
        """Lists the folders once; the images are listed when asked for."""
        self.root = root
        self.outside: list[Path] = []
        self._by_name: dict[str, list[Path]] = collections.defaultdict(list)
        self._files: list[Path] = []
        self._walk(root, os.path.realpath(root), frozenset())

    def _walk(self, top: Path, base: str, above: frozenset[str]) -> None:
        """Lists what is below `top`; `above` are the links that led here, against circles."""
        for folder, names, files in os.walk(top, followlinks=False):
            # Zips made on macOS unpack a twin of every folder there.
            names[:] = sorted(name for name in names if name != "__MACOSX")
            self._files += [
                Path(folder, name)
                for name in files
                if not name.startswith(("~$", "._")) and not name.lower().endswith(PICTURES)
            ]
            for name in names:
                path = Path(folder, name)
                target = os.path.realpath(path)
                if path.is_symlink() and not is_inside(path, base):
                    self.outside.append(path)
                    continue
                self._by_name[name.casefold()].append(path)
                is_circle = os.path.realpath(folder).startswith(target) or target in above
                if path.is_symlink() and not is_circle:
                    self._walk(path, base, above | {target})

    def folders(self, *parts: str, prefer: Sequence[str] = ()) -> list[Path]:
        """Folders whose path ends in `parts`, letter case ignored.

        Args:
            parts: For example `("sub01", "EP02_01f")`.
            prefer: Words in order of preference, such as `("cropped",)`: if folders match whose
                path below the root contains the first of these words that any contains, only
                those are returned.

        Returns:
            All matches, sorted. More than one means that the copy is ambiguous.
        """
        wanted = [part.casefold() for part in parts]
        found = [
            path
            for path in self._by_name.get(wanted[-1], ())
            if [p.casefold() for p in path.parts[-len(wanted) :]] == wanted
        ]
        for word in prefer:
            chosen = [p for p in found if word.casefold() in self.below(p).casefold()]
            if chosen:
                return sorted(chosen)
        return sorted(found)

    def names(self, pattern: str) -> list[Path]:
        """Folders whose own name matches a regular expression as a whole, letter case ignored."""
        regex = re.compile(pattern, re.IGNORECASE)
        return sorted(
            path for name, paths in self._by_name.items() if regex.fullmatch(name) for path in paths
        )

    def files(self, pattern: str) -> list[Path]:
        """Files below the root whose name matches a regular expression, letter case ignored.

        Images, Office's lock files (`~$...`) and links that lead out of the root are left out.
        """
        regex = re.compile(pattern, re.IGNORECASE)
        base = os.path.realpath(self.root)
        return sorted(
            path for path in self._files if regex.fullmatch(path.name) and is_inside(path, base)
        )

    def below(self, path: Path) -> str:
        """The path relative to the root, for messages."""
        return path.relative_to(self.root).as_posix()


def is_inside(path: Path, real_root: str) -> bool:
    """Whether a path, links resolved, lies inside an already resolved root."""
    return os.path.commonpath([os.path.realpath(path), real_root]) == real_root


def frame_number(name: str) -> int | None:
    """The last whole number in a file name's stem: `reg_img46.jpg` 46, `006_05562.jpg` 5562."""
    found = re.search(r"(\d+)\D*$", Path(name).stem)
    return int(found[1]) if found else None


def frames(folder: Path) -> Mapping[int, Path]:
    """Number -> image of a clip's folder, in order of the numbers.

    Raises:
        ValueError: Two images with one number, or a link that leads out of the folder.
    """
    return _frames(folder, folder.stat().st_mtime_ns)


# Recordings may have thousands of frames, so only the folders at hand are remembered.
@functools.lru_cache(maxsize=64)
def _frames(folder: Path, _changed: int) -> Mapping[int, Path]:
    found: dict[int, Path] = {}
    base = os.path.realpath(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in PICTURES or path.name.startswith("._"):
            continue
        number = frame_number(path.name)
        if number is None:
            continue
        if path.is_symlink() and not is_inside(path, base):
            raise ValueError(f"{path.name} is a link that leads out of its folder")
        if number in found:
            raise ValueError(f"{found[number].name} and {path.name} have the same number")
        found[number] = path
    return types.MappingProxyType(dict(sorted(found.items())))
