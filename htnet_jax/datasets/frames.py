"""The bank of aligned face frames beside the flow, with numbers and times, and rules that pick.

A rule says which frames of a clip are stored: `pair` (onset and apex), `neighbours` (also the
frames that jitter may take instead), or a number N (N frames evenly from onset to offset).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from htnet_jax.errors import UserError

# Also any number from 2 up, see `is_rule`.
CHOICES = ("none", "pair", "neighbours")
KNOWN_RULES = f"{', '.join(CHOICES)}, or a number of frames such as 16"
# MMNet's release (muse1998/MMNet, 7b62fa9) trains with an onset up to int(.2 * (apex - onset) / 4)
# frames after the annotated one, and an apex as far before, or up to int(.2 * (offset - apex) / 4)
# after it; its 5-class variant stays within that (.15). Dividing by 4 is exact in binary, so that
# int(.05 * distance) is the same number.
NEIGHBOUR_SHARE = 0.05


def is_rule(text: str) -> bool:
    """Whether a text names a rule: one of `CHOICES`, or a whole number from 2 to 9999."""
    return text in CHOICES or (re.fullmatch("[1-9][0-9]{0,3}", text) is not None and text != "1")


def count_of(rule: str) -> int:
    """N of a rule that picks N frames evenly; 0 of the others."""
    return int(rule) if rule.isdigit() else 0


def share_of(rule: str) -> float:
    """The share of neighbours that a rule stores; 0.0 for none."""
    return NEIGHBOUR_SHARE if rule == "neighbours" else 0.0


def pick(
    rule: str,
    span: tuple[int, int, int],
    there: Sequence[int],
    *,
    times: Sequence[float] | None = None,
    share: float | None = None,
) -> tuple[list[int], list[int]]:
    """Numbers of the frames to store around the onset and around the apex, each ascending.

    Args:
        rule: See the module; not "none". With N the first group is the onset alone, the second the
            others of the N and the apex.
        span: Numbers of the onset, apex and offset frame; the apex lies after the onset.
        there: Numbers of the frames that exist, ascending; others are left out. Onset and apex are
            expected.
        times: Of the frames in `there`: N frames are then even in time, else by number.
        share: How far neighbours go, see `neighbours`; None: `share_of` the rule.
    """
    onset, apex, offset = span
    if count := count_of(rule):
        chosen = {there[row] for row in evenly(there, onset, offset, count, times)}
        return [onset], sorted({*chosen, apex} - {onset})
    share = share_of(rule) if share is None else share
    return neighbours(onset, apex, offset, share, set(there))


def neighbours(
    onset: int, apex: int, offset: int, share: float, there: Collection[int]
) -> tuple[list[int], list[int]]:
    """Numbers of the frames around the onset and around the apex, ascending.

    Args:
        onset: Number of the onset frame.
        apex: Number of the apex frame, after the onset.
        offset: Number of the offset frame.
        share: The onset's group reaches `int(share * (apex - onset))` frames forward, the apex's as
            far back and `int(share * (offset - apex))` forward; 0: the exact frames alone.
        there: Numbers of the frames that exist; others are left out, except the exact two.
    """
    rise, fall = int(share * (apex - onset)), max(int(share * (offset - apex)), 0)
    around_onset = range(onset, onset + rise + 1)
    around_apex = range(apex - rise, apex + fall + 1)
    return (
        [number for number in around_onset if number == onset or number in there],
        [number for number in around_apex if number == apex or number in there],
    )


def evenly(
    numbers: Sequence[int] | np.ndarray,
    onset: int,
    offset: int,
    count: int,
    times: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """The frames nearest to `count` moments that are evenly spaced from onset to offset.

    Args:
        numbers: Of the frames there are, ascending; at least one lies between onset and offset.
        onset: Number of the first frame.
        offset: Number of the last one; if it is not there, the last before it counts.
        count: Number of moments, at least 2.
        times: Of the frames; the moments are even in time then, else in their numbers.

    Returns:
        `(count,)` int rows of `numbers`, ascending; rows repeat where there are fewer frames.
    """
    numbers = np.asarray(numbers)
    rows = np.flatnonzero((numbers >= onset) & (numbers <= offset))
    places = (numbers if times is None else np.asarray(times, np.float64))[rows]
    moments = np.linspace(places[0], places[-1], count)
    return rows[np.abs(places[:, None] - moments).argmin(axis=0)]


# What examples with frames also hold, see `builder.frame_features`. Times are only stored where
# N frames are picked evenly.
EXAMPLE_KEYS = ("frames", "frame_numbers", "onset_rows", "apex_rows", "frame_times", "frame_flow")


def example_keys(rule: str, *, has_flow: bool = False) -> tuple[str, ...]:
    """Those of `EXAMPLE_KEYS` that a rule stores, with or without the flow to each frame."""
    if rule == "none":
        return ()
    stored = {"frame_times": count_of(rule) > 0, "frame_flow": has_flow}
    return tuple(key for key in EXAMPLE_KEYS if stored.get(key, True))


@dataclasses.dataclass(frozen=True)
class ClipFrames:
    """The frames of one clip, as an example stores them: those at the onset, then at the apex.

    Attributes:
        pixels: `(K, S, S, 3)` uint8 RGB.
        numbers: `(K,)` int32: frame number of each.
        onset: `(3,)` int32: rows of `pixels`: first, exact onset frame, end (exclusive).
        apex: `(3,)` int32: the same around the apex.
        times: `(K,)` float64 seconds, NaN where unknown; None where the rule stores none.
        flow: `(K, S, S, 2)` float16: u, v from the onset to each, see `flow_to_each`; None where
            none is stored.
    """

    pixels: np.ndarray
    numbers: np.ndarray
    onset: np.ndarray
    apex: np.ndarray
    times: np.ndarray | None = None
    flow: np.ndarray | None = None

    def example(self) -> dict[str, np.ndarray]:
        """What goes into a TFDS example, see `htnet_jax.datasets.builder.frame_features`."""
        values = (self.pixels, self.numbers, self.onset, self.apex, self.times, self.flow)
        named = zip(EXAMPLE_KEYS, values, strict=True)
        return {key: value for key, value in named if value is not None}


def clip_frames(
    onset: int,
    apex: int,
    around_onset: Mapping[int, np.ndarray],
    around_apex: Mapping[int, np.ndarray],
    times: Mapping[int, float] | None = None,
    flow: str = "",
) -> ClipFrames:
    """One clip's frames in storing order.

    Args:
        onset: Number of the onset frame.
        apex: Number of the apex frame.
        around_onset: Number -> `(S, S)` or `(S, S, 3)` uint8 face, ascending, with the onset; gray
            ones become three equal channels.
        around_apex: The same around the apex.
        times: Number -> seconds, to be stored too; numbers without a time get NaN.
        flow: Method of the flow that is to be stored too, see `flow_to_each`; "": none is.
    """
    numbers = [*around_onset, *around_apex]
    first = len(around_onset)
    pixels = np.stack([in_colour(f) for f in (*around_onset.values(), *around_apex.values())])
    return ClipFrames(
        pixels=pixels,
        numbers=np.array(numbers, np.int32),
        onset=np.array([0, list(around_onset).index(onset), first], np.int32),
        apex=np.array([first, first + list(around_apex).index(apex), len(numbers)], np.int32),
        times=None if times is None else np.array([times.get(n, np.nan) for n in numbers]),
        flow=flow_to_each(pixels, numbers.index(onset), flow) if flow else None,
    )


def flow_to_each(pixels: np.ndarray, row: int, method: str) -> np.ndarray:
    """Flow from one frame to each, of their gray levels.

    Args:
        pixels: `(K, S, S, 3)` uint8 RGB.
        row: The frame it starts at.
        method: See `motion.flow.optical_flow`.

    Returns:
        `(K, S, S, 2)` float16: u, v in pixels of the frames, exactly 0 in `row`. Half a thousandth
        of each value is lost to rounding.
    """
    import cv2

    from htnet_jax.motion.flow import optical_flow

    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pixels]
    side = len(gray[row])
    found = np.zeros((*pixels.shape[:3], 2), np.float16)
    for index, frame in enumerate(gray):
        if index != row:
            # No point of the image is farther away than its side. Of frames that show no common
            # face a method may find more, which float16 need not hold.
            found[index] = optical_flow(gray[row], frame, method).clip(-side, side)
    return found


def in_colour(image: np.ndarray) -> np.ndarray:
    """`(H, W, 3)` of an image that is `(H, W)`, as three equal channels, or is so already."""
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


@dataclasses.dataclass(frozen=True)
class FrameArrays:
    """The bank: aligned face frames of N clips, those of one clip after another.

    Attributes:
        pixels: `(M, S, S, 3)` uint8 RGB.
        numbers: `(M,)` int32: frame number of each.
        onset: `(N, 3)` int32: rows of `pixels`: first, exact onset frame, end (exclusive).
        apex: `(N, 3)` int32: the same around the apex.
        span: `(N, 3)` int32: numbers of the onset, apex and offset frame.
        share: Neighbours go as far as this share of the distance, see `neighbours`; 0.0: there
            are none. Frames that the source does not have are missing.
        evenly: Frames of each clip that were picked evenly from onset to offset; 0: none.
        times: `(M,)` float64 seconds within each recording, NaN where unknown; None where the data
            set stores none.
        flow: `(M, S, S, 2)` float16: u, v from each clip's onset to each of its frames, in pixels
            of the frames; None where the data set stores none.
    """

    pixels: np.ndarray
    numbers: np.ndarray
    onset: np.ndarray
    apex: np.ndarray
    span: np.ndarray
    share: float
    evenly: int = 0
    times: np.ndarray | None = None
    flow: np.ndarray | None = None

    def content(self) -> dict[str, Any]:
        """What a fingerprint covers: what is new only where it is used, so that old ones stay."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("evenly", "times", "flow") or (self.evenly and value is not None)
        }

    def rows_evenly(self, count: int) -> np.ndarray:
        """`count` frames of each clip, evenly from its onset to its offset.

        Even in time where the recording's times are known, else by number. Rows repeat in clips
        that have fewer frames.

        Args:
            count: At least 2, and no more than the data set stores.

        Returns:
            `(N, count)` int32 rows of `pixels`, ascending in each clip.

        Raises:
            UserError: The data set stores fewer.
        """
        if not 2 <= count <= self.evenly:
            raise UserError(
                f"{count} frames evenly from onset to offset are asked for, but the data set "
                f"stores {self.evenly or 'none'} so; choose a recipe with frames-{max(count, 2)}"
                + (f", or --config.dataset.clip_frames={self.evenly}" if self.evenly else "")
            )
        found = np.empty((len(self.span), count), np.int32)
        ranges = zip(self.onset[:, 0], self.apex[:, 2], self.span, strict=True)
        for clip, (start, end, (onset, _, offset)) in enumerate(ranges):
            times = None if self.times is None else self.times[start:end]
            times = None if times is None or np.isnan(times).any() else times
            found[clip] = start + evenly(self.numbers[start:end], onset, offset, count, times)
        return found

    def of(self, kept: np.ndarray) -> FrameArrays:
        """The frames of some clips, in their order, with rows counted from 0 again.

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
            times=None if self.times is None else self.times[rows],
            flow=None if self.flow is None else self.flow[rows],
        )

    def resized(self, side: int) -> FrameArrays:
        """The frames at a smaller side, each pixel the mean of the area that it covers.

        So is the flow, whose vectors are scaled to the new pixels.

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

        def means(images: np.ndarray) -> Iterator[np.ndarray]:
            for image in images:  # one by one: floats need four times the memory
                rows = np.tensordot(weights, image.astype(np.float32), axes=1)
                yield np.einsum("xc,ycd->yxd", weights, rows, optimize=True)

        pixels = np.empty((len(self.pixels), side, side, 3), np.uint8)
        for row, mean in enumerate(means(self.pixels)):
            pixels[row] = np.rint(mean).clip(0, 255).astype(np.uint8)
        flow = None
        if self.flow is not None:
            flow = np.empty((len(self.flow), side, side, 2), np.float16)
            for row, mean in enumerate(means(self.flow)):
                flow[row] = mean * (side / stored)
        return dataclasses.replace(self, pixels=pixels, flow=flow)


def collect(examples: Sequence[dict[str, Any]], about: Mapping[str, Any]) -> FrameArrays:
    """The frames of all examples of a data set; takes them out of the examples.

    Args:
        examples: As TFDS reads them.
        about: What the builder recorded of the frames: `kind` (the rule) and `share`.

    Raises:
        KeyError, ValueError: A record without these, or frames whose rows and numbers do not fit
            together.
    """
    lengths = [len(example["frames"]) for example in examples]
    onset = np.stack([example["onset_rows"] for example in examples]).astype(np.int32)
    apex = np.stack([example["apex_rows"] for example in examples]).astype(np.int32)
    for index, (length, on, ap) in enumerate(zip(lengths, onset, apex, strict=True)):
        example = examples[index]
        counted = {len(example[key]) for key in ("frame_numbers", "frame_flow") if key in example}
        is_whole = on[0] == 0 and on[2] == ap[0] and ap[2] == length and counted == {length}
        if not (is_whole and on[0] <= on[1] < on[2] and ap[0] <= ap[1] < ap[2]):
            raise ValueError(f"clip {index}: {length} frames, rows {on.tolist()}, {ap.tolist()}")
    start = (np.cumsum(lengths) - lengths).astype(np.int32)[:, None]

    def bank(key: str) -> np.ndarray:
        first = examples[0][key]
        rows = np.empty((sum(lengths), *first.shape[1:]), first.dtype)
        for (row,), length, example in zip(start, lengths, examples, strict=True):
            rows[row : row + length] = example.pop(key)  # so that they are not held twice
        return rows

    has_times, has_flow = (key in examples[0] for key in ("frame_times", "frame_flow"))
    return FrameArrays(
        pixels=bank("frames"),
        numbers=np.concatenate([example["frame_numbers"] for example in examples]).astype(np.int32),
        onset=onset + start,
        apex=apex + start,
        span=np.array([[e["onset"], e["apex"], e["offset"]] for e in examples], np.int32),
        share=float(about["share"]),
        evenly=count_of(about["kind"]),
        times=np.concatenate([e["frame_times"] for e in examples]) if has_times else None,
        flow=bank("frame_flow") if has_flow else None,
    )


def _area_weights(stored: int, side: int) -> np.ndarray:
    """`(side, stored)` float32: share of each stored row in each row of the result."""
    edges = np.arange(side + 1) * (stored / side)
    rows = np.arange(stored)
    covered = np.minimum(edges[1:, None], rows + 1) - np.maximum(edges[:-1, None], rows)
    return (covered.clip(min=0) * (side / stored)).astype(np.float32)
