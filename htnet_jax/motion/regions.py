"""Five face points and a flow tensor -> the mosaic of four face regions."""

from __future__ import annotations

import numpy as np

# The points (x, y) at 28 px that HTNet's release falls back to where its detector (MTCNN) finds
# no face: left eye, right eye, nose, left mouth corner, right mouth corner.
TEMPLATE_POINTS = np.array(
    [
        [9.528073, 11.062551],
        [21.396168, 10.919773],
        [15.380184, 17.380562],
        [10.255435, 22.121233],
        [20.583706, 22.25584],
    ],
    np.float32,
)
TEMPLATE_POINTS.flags.writeable = False

LAYOUTS = ("release", "upright")


def outside(points: np.ndarray, size: int) -> np.ndarray:
    """How far points lie outside an image, in pixels; 0 inside.

    Pixel centres have whole-numbered coordinates, so the image reaches from -0.5 to `size` - 0.5.

    Args:
        points: `(..., 2)` (x, y).
        size: Side of the image in pixels.

    Returns:
        `(...)` float64.
    """
    points = np.asarray(points, np.float64)
    return np.maximum(np.maximum(-0.5 - points, points - (size - 0.5)).max(axis=-1), 0)


def mosaic(flow: np.ndarray, points: np.ndarray, layout: str = "release") -> np.ndarray:
    """The image `[[left eye, right eye], [left mouth, right mouth]]` of S/2-pixel crops.

    Each coordinate is clipped to [S/4, 3S/4], so that a crop never leaves the image, and
    truncated to an integer; a crop reaches S/4 pixels to each side of its point. The nose is
    not used. At S = 28 this is what the HTNet release feeds its network.

    Args:
        flow: `(S, S, C)`, any dtype; S divisible by 4.
        points: `(5, 2)` finite (x, y) in pixels of `flow`: left eye, right eye, nose, left mouth
            corner, right mouth corner.
        layout: `release` cuts around row = x, column = y (the release swaps the axes; kept so that
            its results can be compared); `upright` around row = y, column = x.

    Returns:
        `(S, S, C)` of the same dtype: copies of the input's values.

    Raises:
        ValueError: Wrong shape, S not divisible by 4, a point that is not finite, unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown mosaic layout {layout!r}; use one of {', '.join(LAYOUTS)}")
    if flow.ndim != 3 or flow.shape[0] != flow.shape[1]:
        raise ValueError(f"flow must be square, (S, S, C); got shape {flow.shape}")
    size = flow.shape[0]
    if size == 0 or size % 4:
        raise ValueError(f"the side of the flow must be divisible by 4; got {size}")
    points = np.asarray(points, np.float64)
    if points.shape != (5, 2):
        raise ValueError(f"points must be (5, 2), one (x, y) a point; got shape {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"points must be finite; got {points.tolist()}")

    quarter = size // 4
    centres = np.clip(points, quarter, 3 * quarter).astype(int)
    if layout == "upright":
        centres = centres[:, ::-1]
    crops = [
        flow[row - quarter : row + quarter, column - quarter : column + quarter]
        for row, column in centres
    ]
    left_eye, right_eye, _, left_mouth, right_mouth = crops
    top = np.concatenate([left_eye, right_eye], axis=1)
    bottom = np.concatenate([left_mouth, right_mouth], axis=1)
    return np.concatenate([top, bottom], axis=0)
