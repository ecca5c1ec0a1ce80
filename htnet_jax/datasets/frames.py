"""Aligned face frames beside the flow: onset, apex and the frames around them, in plain arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from htnet_jax.errors import UserError

# "pair": the exact onset and apex; "neighbours": also the frames that jitter may take instead.
CHOICES = ("none", "pair", "neighbours")
# MMNet's release (muse1998/MMNet, 7b62fa9) trains with an onset up to int(.2 * (apex - onset) / 4)
# frames after the annotated one, and an apex as far before, or up to int(.2 * (offset - apex) / 4)
# after it; its 5-class variant stays within that (.15). Dividing by 4 is exact in binary, so that
# int(.05 * distance) is the same number.
NEIGHBOUR_SHARE = 0.05

# What examples with frames have besides, see `builder.frame_features`.
EXAMPLE_KEYS = ("frames", "frame_numbers", "onset_rows", "apex_rows")


@dataclasses.dataclass(frozen=True)
class ClipFrames:
    """The frames of one clip, as an example stores them: those at the onset, then at the apex.

    Attributes:
        pixels: `(K, S, S, 3)` uint8 RGB.
        numbers: `(K,)` int32: frame number of each.
        onset: `(3,)` int32: rows of `pixels`: first, exact onset frame, end (exclusive).
        apex: `(3,)` int32: the same around the apex.
    """

    pixels: np.ndarray
    numbers: np.ndarray
    onset: np.ndarray
    apex: np.ndarray

    def example(self) -> dict[str, np.ndarray]:
        """What goes into a TFDS example, see `htnet_jax.datasets.builder.frame_features`."""
        values = (self.pixels, self.numbers, self.onset, self.apex)
        return dict(zip(EXAMPLE_KEYS, values, strict=True))


@dataclasses.dataclass(frozen=True)
class FrameArrays:
    """Aligned face frames of N clips, those of one clip after another.

    Attributes:
        pixels: `(M, S, S, 3)` uint8 RGB.
        numbers: `(M,)` int32: frame number of each.
        onset: `(N, 3)` int32: rows of `pixels`: first, exact onset frame, end (exclusive).
        apex: `(N, 3)` int32: the same around the apex.
        span: `(N, 3)` int32: numbers of the onset, apex and offset frame.
        share: Neighbours go as far as this share of the distance, see `neighbours`; 0.0: there
            are none. Frames that the source does not have are missing.
    """

    pixels: np.ndarray
    numbers: np.ndarray
    onset: np.ndarray
    apex: np.ndarray
    span: np.ndarray
    share: float

    def of(self, kept: np.ndarray) -> FrameArrays:
        """The frames of some clips, in their order, with rows counted anew.

        Args:
            kept: `(N,)` bool.

        Raises:
            ValueError: Wrong shape or dtype.
        """
        kept = np.asarray(kept)
        if kept.shape != (len(self.onset),) or kept.dtype != bool:
            raise ValueError(f"kept must be ({len(self.onset)},) bool; got {kept.shape}")
        # A clip's frames reach from its onset's first to its apex's last.
        starts, ends = self.onset[:, 0], self.apex[:, 2]
        rows = np.zeros(len(self.numbers), bool)
        for start, end in zip(starts[kept], ends[kept], strict=True):
            rows[start:end] = True
        lengths = (ends - starts)[kept]
        moved = (np.cumsum(lengths) - lengths - starts[kept]).astype(np.int32)[:, None]
        return dataclasses.replace(
            self,
            pixels=self.pixels[rows],
            numbers=self.numbers[rows],
            onset=self.onset[kept] + moved,
            apex=self.apex[kept] + moved,
            span=self.span[kept],
        )

    def resized(self, side: int) -> FrameArrays:
        """The frames at a smaller side, each pixel the mean of the area that it covers.

        Args:
            side: In pixels, at least 1.

        Raises:
            UserError: The stored frames are smaller, or the side is below 1.
        """
        stored = self.pixels.shape[1]
        if not 1 <= side <= stored:
            raise UserError(
                f"frames of {side} pixels are asked for, but the data set stores {stored}; ask for "
                f"1 to {stored}"
            )
        if side == stored:
            return self
        weights = _area_weights(stored, side)
        pixels = np.empty((len(self.pixels), side, side, 3), np.uint8)
        for row, frame in enumerate(self.pixels):  # one by one: floats need four times the memory
            means = np.tensordot(weights, frame.astype(np.float32), axes=1)
            means = np.einsum("xc,ycd->yxd", weights, means, optimize=True)
            pixels[row] = np.rint(means).clip(0, 255).astype(np.uint8)
        return dataclasses.replace(self, pixels=pixels)


def neighbours(
    onset: int, apex: int, offset: int, share: float, there: Collection[int]
) -> tuple[list[int], list[int]]:
    """Numbers of the frames to store around the onset and around the apex, ascending.

    Args:
        onset: Number of the onset frame.
        apex: Number of the apex frame, after the onset.
        offset: Number of the offset frame.
        share: The onset's group reaches `int(share * (apex - onset))` frames forward, the apex's as
            far back and `int(share * (offset - apex))` forward; 0: the exact frames alone.
        there: Numbers of the frames that exist; others are left out. The exact two are expected.

    Returns:
        The onset's group, the apex's group.
    """
    rise, fall = int(share * (apex - onset)), max(int(share * (offset - apex)), 0)
    around_onset = range(onset, onset + rise + 1)
    around_apex = range(apex - rise, apex + fall + 1)
    return (
        [number for number in around_onset if number == onset or number in there],
        [number for number in around_apex if number == apex or number in there],
    )


def clip_frames(
    onset: int,
    apex: int,
    around_onset: Mapping[int, np.ndarray],
    around_apex: Mapping[int, np.ndarray],
) -> ClipFrames:
    """One clip's frames in storing order.

    Args:
        onset: Number of the onset frame.
        apex: Number of the apex frame.
        around_onset: Number -> `(S, S)` or `(S, S, 3)` uint8 face, ascending, with the onset; gray
            ones become three equal channels.
        around_apex: The same around the apex.
    """
    numbers = [*around_onset, *around_apex]
    first = len(around_onset)
    return ClipFrames(
        pixels=np.stack([in_colour(f) for f in (*around_onset.values(), *around_apex.values())]),
        numbers=np.array(numbers, np.int32),
        onset=np.array([0, list(around_onset).index(onset), first], np.int32),
        apex=np.array([first, first + list(around_apex).index(apex), len(numbers)], np.int32),
    )


def in_colour(picture: np.ndarray) -> np.ndarray:
    """`(H, W, 3)` of a picture that is `(H, W)`, as three equal channels, or is so already."""
    return np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture


def collect(examples: Sequence[dict[str, Any]], share: float) -> FrameArrays:
    """The frames of all examples of a data set; takes them out of the examples.

    Args:
        examples: As TFDS reads them.
        share: See `FrameArrays`.

    Raises:
        ValueError: Frames whose rows and numbers do not fit together.
    """
    lengths = [len(example["frames"]) for example in examples]
    onset = np.stack([example["onset_rows"] for example in examples]).astype(np.int32)
    apex = np.stack([example["apex_rows"] for example in examples]).astype(np.int32)
    for index, (length, on, ap) in enumerate(zip(lengths, onset, apex, strict=True)):
        counted = len(examples[index]["frame_numbers"])
        is_whole = on[0] == 0 and on[2] == ap[0] and ap[2] == length == counted
        if not (is_whole and on[0] <= on[1] < on[2] and ap[0] <= ap[1] < ap[2]):
            raise ValueError(f"clip {index}: {length} frames, rows {on.tolist()}, {ap.tolist()}")
    start = (np.cumsum(lengths) - lengths).astype(np.int32)[:, None]
    pixels = np.empty((sum(lengths), *examples[0]["frames"].shape[1:]), np.uint8)
    for (row,), length, example in zip(start, lengths, examples, strict=True):
        pixels[row : row + length] = example.pop("frames")  # so that they are not held twice
    return FrameArrays(
        pixels=pixels,
        numbers=np.concatenate([example["frame_numbers"] for example in examples]).astype(np.int32),
        onset=onset + start,
        apex=apex + start,
        span=np.array([[e["onset"], e["apex"], e["offset"]] for e in examples], np.int32),
        share=share,
    )


def _area_weights(stored: int, side: int) -> np.ndarray:
    """`(side, stored)` float32: share of each stored row in each row of the result."""
    edges = np.arange(side + 1) * (stored / side)
    rows = np.arange(stored)
    covered = np.minimum(edges[1:, None], rows + 1) - np.maximum(edges[:-1, None], rows)
    return (covered.clip(min=0) * (side / stored)).astype(np.float32)
