"""Every step from frames to mosaics, clip by clip, as one HTML page.

Drawn images are `(h, w, 3)` uint8 RGB at the size they are shown at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from htnet_jax import pages
from htnet_jax.datasets import frames, process
from htnet_jax.io import write_atomically
from htnet_jax.motion import flow, regions

# Sides in pixels between which images are shown: a phone's width, and half a screen's.
SMALLEST, LARGEST = 320, 640
# Arrows along one side of the flow: fewer miss a mouth corner, more cover the face.
ARROWS = 14
# Side of a face frame among others, in pixels: faces are recognised, pages stay small.
TILE = 160

# Colours of the five points, in their order, and of the crops around them: Okabe and Ito, "Color
# Universal Design" (2008), told apart by colour-blind readers too.
POINT_COLOURS = ((230, 159, 0), (86, 180, 233), (255, 255, 255), (0, 158, 115), (204, 121, 167))
_ARROW_COLOUR = (240, 228, 66)

_APEX = {
    "sheet": "as in the sheet",
    "midpoint": "by the midpoint rule",
    "estimate": "estimated",
}


def write_preview(
    path: Path,
    title: str,
    shown: Iterable[tuple[process.Job, process.Inspection, process.Steps]],
    notes: Sequence[str] = (),
) -> None:
    """Writes the page.

    Args:
        path: The HTML file to create or replace; its folder must exist.
        title: Heading of the page.
        shown: The clips, in the order of the page, with what was done to each.
        notes: Sentences that stand above the clips.

    Raises:
        UserError: The file cannot be written.
    """
    clips = [_clip(*steps) for steps in shown]
    text = pages.render("preview.html", title=title, notes=notes, clips=clips)
    write_atomically(path, lambda file: file.write(text.encode()))


def sample(count: int, total: int) -> list[int]:
    """At most `count` different indices below `total`, evenly spread and in order."""
    count = min(count, total)
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]


def strain_colours(strain: np.ndarray) -> np.ndarray:
    """Optical strain, `(H, W)` and not negative, as `(H, W, 3)` uint8 RGB; 0 is black."""
    largest = float(strain.max())
    shares = strain / largest if largest > 0 else strain
    levels = np.round(shares * 255).astype(np.uint8)
    return cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]


def draw_points(face: np.ndarray, landmarks: np.ndarray, size: int, layout: str) -> np.ndarray:
    """The five points, and the squares around four of them that a mosaic is put together from.

    Args:
        face: `(H, W)` uint8.
        landmarks: `(5, 2)` (x, y) in pixels of the tensor.
        size: Side of the tensor.
        layout: As in `regions.mosaic`.
    """
    image = cv2.cvtColor(_fitted(face), cv2.COLOR_GRAY2RGB)
    scale = np.array(image.shape[1::-1]) / size
    half = size // 2
    # Where a pixel of the mosaic comes from tells where its squares lie.
    origins = regions.mosaic(np.stack(np.mgrid[:size, :size], axis=-1), landmarks, layout)
    corners = origins[::half, ::half, ::-1].reshape(4, 2)
    for corner, colour in zip(corners, _crop_colours(), strict=True):
        first, last = corner * scale, (corner + half) * scale - 1
        cv2.rectangle(image, _pixel(first), _pixel(last), colour, 2)
    for point, colour in zip(_in_image(landmarks, scale), POINT_COLOURS, strict=True):
        cv2.circle(image, _pixel(point), 6, (0, 0, 0), cv2.FILLED, cv2.LINE_AA)
        cv2.circle(image, _pixel(point), 4, colour, cv2.FILLED, cv2.LINE_AA)
    return image


def draw_arrows(face: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """The flow as arrows over the face, each the mean of the flow around its tail.

    Args:
        face: `(H, W)` uint8.
        vectors: `(S, S, 2)`: u (right), v (down) in pixels of the tensor.

    Returns:
        The image, and how many times longer than the motion the arrows are (0: nothing moves).
    """
    image = cv2.cvtColor(_fitted(face), cv2.COLOR_GRAY2RGB)
    size = len(vectors)
    means = cv2.resize(vectors.astype(np.float64), (ARROWS, ARROWS), interpolation=cv2.INTER_AREA)
    largest = float(np.linalg.norm(means, axis=-1).max())
    if largest <= 0:
        return image, 0.0
    scale = np.array(image.shape[1::-1]) / size
    # The longest arrow is one and a half cells long.
    times = 1.5 * (size / ARROWS) / largest
    for row, column in np.ndindex(ARROWS, ARROWS):
        centre = (np.array([column, row]) + 0.5) * size / ARROWS - 0.5
        tail = _in_image(centre, scale)
        head = tail + means[row, column] * times * scale
        if np.linalg.norm(head - tail) >= 2:
            ends = _pixel(tail), _pixel(head)
            cv2.arrowedLine(image, *ends, _ARROW_COLOUR, 1, cv2.LINE_AA, tipLength=0.3)
    return image, times


def draw_mosaic(tensor: np.ndarray, landmarks: np.ndarray, layout: str) -> np.ndarray:
    """The mosaic: R, G, B are u, v, strain, each scaled to 0..255.

    Each quarter is framed in the colour of its square in `draw_points`.

    Args:
        tensor: `(S, S, 3)`: u, v, strain.
        landmarks: `(5, 2)` (x, y) in pixels of the tensor.
        layout: As in `regions.mosaic`.
    """
    scaled = np.round(flow.minmax_255(tensor)).astype(np.uint8)
    image = _fitted(regions.mosaic(scaled, landmarks, layout))
    half = len(image) // 2
    for (row, column), colour in zip(np.ndindex(2, 2), _crop_colours(), strict=True):
        first = (column * half, row * half)
        last = (first[0] + half - 1, first[1] + half - 1)
        cv2.rectangle(image, first, last, colour, 2)
    return image


def draw_frames(pixels: np.ndarray, exact: int) -> np.ndarray:
    """Face frames beside one another, row by row, each `TILE` wide; the exact one has a frame.

    Args:
        pixels: `(K, S, S, 3)` uint8 RGB, ascending in time.
        exact: Index of the annotated one.
    """
    across = math.ceil(math.sqrt(len(pixels)))
    down = -(-len(pixels) // across)
    sheet = np.zeros((down * TILE, across * TILE, 3), np.uint8)
    for index, face in enumerate(pixels):
        tile = cv2.resize(face, (TILE, TILE), interpolation=cv2.INTER_AREA)
        if index == exact:
            cv2.rectangle(tile, (0, 0), (TILE - 1, TILE - 1), _ARROW_COLOUR, 2)
        row, column = divmod(index, across)
        sheet[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = tile
    return sheet


def _clip(job: process.Job, inspection: process.Inspection, steps: process.Steps) -> dict[str, Any]:
    """What the template shows of a clip; the images are PNGs already, as there may be many."""
    clip, tensor, points = job.clip, steps.tensor, steps.landmarks
    size = len(tensor)
    vectors, strain = tensor[..., :2], tensor[..., 2]
    arrows, times = draw_arrows(steps.onset, vectors)
    fastest = float(np.linalg.norm(vectors, axis=-1).max())

    def mosaics(layout: str) -> list[tuple[np.ndarray, str]]:
        what = f"onset, frame {clip.onset}: points and crops of the {layout} mosaic"
        return [
            (draw_points(steps.onset, points, size, layout), what),
            (draw_mosaic(tensor, points, layout), f"{layout} mosaic"),
        ]

    onset, upright = mosaics("upright")
    colours = pages.flow_colours(vectors)
    figures = [
        onset,
        (_fitted(steps.apex), f"apex, frame {inspection.apex}"),
        (_fitted(colours), f"flow; brightest: {fastest:.3g} px of {size}"),
        (arrows, f"flow over the onset, arrows {times:.3g} times as long" if times else "no flow"),
        (_fitted(strain_colours(strain)), f"optical strain; largest: {strain.max():.3g}"),
        upright,
        *mosaics("release"),
    ]
    if steps.frames is not None:
        stored = steps.frames
        groups = {"around the onset": stored.onset, "around the apex": stored.apex}
        if frames.count_of(job.recipe.frames):
            groups = {"evenly, and the apex": (0, stored.apex[1], len(stored.numbers))}
        for what, (first, exact, end) in groups.items():
            numbers = ", ".join(map(str, stored.numbers[first:end]))
            drawn = draw_frames(stored.pixels[first:end], exact - first)
            figures.append((drawn, f"face frames {what}: {numbers}"))
    return {
        "id": clip.id,
        "facts": f"emotion {clip.emotion}; onset {clip.onset}, "
        f"apex {inspection.apex} ({_APEX[inspection.apex_rule]}), offset {clip.offset}; "
        f"points: {inspection.found}",
        "figures": [(pages.png(image), caption) for image, caption in figures],
    }


def _fitted(image: np.ndarray) -> np.ndarray:
    """Enlarged by a whole number, pixels kept as they are; or reduced if it is very large."""
    side = max(image.shape[:2])
    if side <= LARGEST:
        return np.ascontiguousarray(pages.enlarged(image, SMALLEST))
    scale = LARGEST / side
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _in_image(points: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Pixel centres have whole-numbered coordinates, in the tensor and in the image."""
    return (points + 0.5) * scale - 0.5


def _pixel(point: np.ndarray) -> tuple[int, int]:
    x, y = np.round(point).astype(int).tolist()
    return x, y


def _crop_colours() -> list[tuple[int, int, int]]:
    """Of left eye, right eye, left and right mouth corner: the mosaic leaves the nose out."""
    return [colour for index, colour in enumerate(POINT_COLOURS) if index != 2]
