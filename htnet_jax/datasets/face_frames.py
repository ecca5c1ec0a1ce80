"""The face frames of one raw clip: which ones, can they be read, and how they are aligned."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from htnet_jax.datasets.frames import NEIGHBOUR_SHARE, ClipFrames, clip_frames, neighbours
from htnet_jax.datasets.survey import RawClip
from htnet_jax.datasets.tree import frames, read_colour, read_gray


def share_of(kind: str) -> float:
    """The share of neighbours that a recipe's `frames` choice stores; 0.0 for none."""
    return NEIGHBOUR_SHARE if kind == "neighbours" else 0.0


def groups(
    clip: RawClip, apex: int, kind: str, unusable: Collection[int] = ()
) -> tuple[list[int], list[int]]:
    """Numbers of the frames to store around onset and apex: those on disk that can be used.

    Args:
        clip: The clip.
        apex: Number of the apex frame that is used.
        kind: "pair" or "neighbours".
        unusable: Numbers that are left out, see `problems`.
    """
    there = frames(clip.folder).keys() - set(unusable)
    return neighbours(clip.onset, apex, clip.offset, share_of(kind), there)


def count_missing(clip: RawClip, apex: int, kind: str) -> int:
    """How many neighbours are not on disk."""
    everything = range(clip.onset, clip.offset + 1)
    wanted = neighbours(clip.onset, apex, clip.offset, share_of(kind), everything)
    return sum(map(len, wanted)) - sum(map(len, groups(clip, apex, kind)))


def problems(clip: RawClip, apex: int, kind: str, shape: tuple[int, int]) -> dict[int, str]:
    """The neighbours that cannot be used, and why.

    Args:
        clip: The clip; its onset and apex were read already.
        apex: Number of the apex frame that is used.
        kind: "pair" or "neighbours".
        shape: Height and width of the onset frame, which the others must have too.

    Returns:
        Frame number -> what is wrong, file name first.
    """
    found: dict[int, str] = {}
    first, second = groups(clip, apex, kind)
    for number in sorted({*first, *second} - {clip.onset, apex}):
        path = frames(clip.folder)[number]
        try:
            picture = read_gray(path)
        except ValueError as error:
            found[number] = f"{path.name}: {error}"
            continue
        if picture.shape != shape:
            here, onset = (f"{s[1]}x{s[0]}" for s in (picture.shape, shape))
            found[number] = f"{path.name}: {here} pixels, the onset is {onset}"
    return found


def extract(
    clip: RawClip,
    apex: int,
    chosen: tuple[Sequence[int], Sequence[int]],
    transforms: tuple[np.ndarray, np.ndarray] | None,
    side: int,
) -> ClipFrames:
    """Reads and aligns the frames.

    Args:
        clip: The clip.
        apex: Number of the apex frame that is used.
        chosen: Numbers of the frames around onset and apex, see `groups`.
        transforms: `(2, 3)` each, of the onset's and of the apex's group, see
            `alignment.face_transform`; None: whole pictures, resized.
        side: Of the result, in pixels.

    Raises:
        ValueError: A picture that cannot be read.
    """
    files = frames(clip.folder)
    around_onset, around_apex = (
        {number: _face(read_colour(files[number]), transform, side) for number in numbers}
        for numbers, transform in zip(chosen, transforms or (None, None), strict=True)
    )
    return clip_frames(clip.onset, apex, around_onset, around_apex)


def _face(picture: np.ndarray, transform: np.ndarray | None, side: int) -> np.ndarray:
    import cv2

    from htnet_jax.motion import alignment

    if transform is not None:
        return alignment.warp(picture, transform, side)
    shrinks = min(picture.shape[:2]) >= side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(picture), (side, side), interpolation=method)
