"""Flow and mosaics in colour, as small PNGs. NumPy and Matplotlib only."""

from __future__ import annotations

import io

import numpy as np

# Side in pixels from which a picture is shown; smaller ones are enlarged by a whole number.
_SIDE = 224
# Pixels between the pictures of one card.
_GAP = 16


def flow(vectors: np.ndarray, largest: float | None = None) -> np.ndarray:
    """A flow field in colour: hue is the direction, brightness the magnitude.

    Right is red; from there the hue goes clockwise: down yellow-green, left cyan, up violet.

    Args:
        vectors: `(H, W, 2)` float: u (right), v (down).
        largest: Magnitude with full brightness; default: the largest there is.

    Returns:
        `(H, W, 3)` uint8: R, G, B. No motion is black.

    Raises:
        ValueError: Another shape.
    """
    if vectors.ndim != 3 or vectors.shape[-1] != 2:
        raise ValueError(f"vectors must be (H, W, 2), got shape {vectors.shape}")
    from matplotlib.colors import hsv_to_rgb

    u, v = vectors.astype(np.float64).transpose(2, 0, 1)
    magnitude = np.hypot(u, v)
    largest = magnitude.max(initial=0.0) if largest is None else largest
    value = np.clip(magnitude / largest, 0, 1) if largest > 0 else np.zeros_like(magnitude)
    hue = np.arctan2(v, u) / (2 * np.pi) % 1.0
    rgb = hsv_to_rgb(np.stack([hue, np.ones_like(hue), value], axis=-1))
    return np.round(rgb * 255).astype(np.uint8)


def without_level(vectors: np.ndarray) -> np.ndarray:
    """`(H, W, 2)` flow less each channel's median: what stands still is taken to be most of it."""
    return vectors - np.median(vectors, axis=(0, 1))


def mosaic(channels: np.ndarray) -> np.ndarray:
    """A mosaic in colour: one channel is grey, several are red, green and blue.

    Args:
        channels: `(H, W, N)` float; of more than three channels the first three are shown.

    Returns:
        `(H, W, 3)` uint8: R, G, B; each channel's smallest value is 0 and its largest 255, a
        constant channel is 0.

    Raises:
        ValueError: Another shape.
    """
    if channels.ndim != 3 or 0 in channels.shape:
        raise ValueError(f"channels must be (H, W, N), got shape {channels.shape}")
    shown = channels[..., :3].astype(np.float64)
    low = shown.min(axis=(0, 1))
    extent = shown.max(axis=(0, 1)) - low
    scaled = np.round((shown - low) / np.where(extent > 0, extent, 1) * 255).astype(np.uint8)
    if scaled.shape[-1] == 1:
        return scaled.repeat(3, axis=-1)
    missing = 3 - scaled.shape[-1]
    return np.pad(scaled, ((0, 0), (0, 0), (0, missing)))


def wheel(side: int = 128) -> np.ndarray:
    """The colours of all directions: `(side, side, 4)` uint8 R, G, B, A; transparent outside."""
    axis = np.linspace(-1, 1, side)
    vectors = np.stack(np.meshgrid(axis, axis), axis=-1)
    inside = np.linalg.norm(vectors, axis=-1) <= 1
    return np.dstack([flow(vectors, largest=1.0), np.uint8(255) * inside])


def side_by_side(*pictures: np.ndarray) -> np.ndarray:
    """Pictures in a row, enlarged with their pixels kept, on a transparent ground.

    Args:
        pictures: `(H, W, 3)` uint8 each, R, G, B.

    Returns:
        `(h, w, 4)` uint8: R, G, B, A.
    """
    large = [_enlarged(picture) for picture in pictures]
    height = max(len(picture) for picture in large)
    gaps = _GAP * (len(large) - 1)
    row = np.zeros((height, sum(one.shape[1] for one in large) + gaps, 4), np.uint8)
    left = 0
    for picture in large:
        bottom, right = len(picture), left + picture.shape[1]
        row[:bottom, left:right, :3] = picture
        row[:bottom, left:right, 3] = 255
        left = right + _GAP
    return row


def png(picture: np.ndarray) -> bytes:
    """`(H, W, 3 or 4)` uint8 as a PNG file; the same picture gives the same bytes."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    options = {"optimize": True}
    imsave(buffer, picture, format="png", metadata={"Software": None}, pil_kwargs=options)
    return buffer.getvalue()


def _enlarged(picture: np.ndarray) -> np.ndarray:
    times = -(-_SIDE // max(picture.shape[:2]))
    return picture.repeat(times, axis=0).repeat(times, axis=1)
