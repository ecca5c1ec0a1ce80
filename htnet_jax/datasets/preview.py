"""Every step from frames to mosaics, clip by clip, as one HTML page: to be looked at by a person.

The page has no script and nothing outside the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from htnet_jax.datasets import process
from htnet_jax.datasets.frames import ClipFrames
from htnet_jax.evaluation import markup
from htnet_jax.io import write_atomically
from htnet_jax.motion import flow, regions

# Sides in pixels between which pictures are shown: a phone's width, and half a screen's.
SMALLEST, LARGEST = 320, 640
# Arrows along one side of the flow: fewer miss a mouth corner, more cover the face.
ARROWS = 14
# Side of a face frame among others, in pixels: faces are recognised, pages stay small.
TILE = 160

# Colours (B, G, R) of the five points, in their order, and of the crops around them: Okabe and Ito,
# "Color Universal Design" (2008), told apart by colour-blind readers too.
POINT_COLOURS = ((0, 159, 230), (233, 180, 86), (255, 255, 255), (115, 158, 0), (167, 121, 204))
_ARROW_COLOUR = (66, 228, 240)

_APEX = {
    "sheet": "as in the sheet",
    "midpoint": "by the midpoint rule",
    "estimate": "estimated",
}

STYLE = """
main { max-width: 90rem; }
h2 { overflow-wrap: anywhere; }
.steps { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(max(8.5rem, 22%), 1fr)); }
figure { margin: 0; }
figure img { width: 100%; image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .3rem; }
.legend { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; }
.legend img { width: 8rem; margin: 0; background: none; }
.legend div { flex: 1 1 16rem; }
"""


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
    body = "\n".join([_legend(notes), *(clips or ["<section><p>No clips.</p></section>"])])
    text = markup.document(title, body, markup.STYLE + STYLE)
    write_atomically(path, lambda file: file.write(text.encode()))


def sample(count: int, total: int) -> list[int]:
    """At most `count` different indices below `total`, evenly spread and in order."""
    count = min(count, total)
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]


def flow_colours(vectors: np.ndarray, largest: float | None = None) -> np.ndarray:
    """A flow field in colour: hue is the direction, value the magnitude.

    Right is red; from there the hue goes clockwise: down yellow-green, left cyan, up violet.

    Args:
        vectors: `(H, W, 2)`: u (right), v (down).
        largest: Magnitude with value 1; default: the largest there is.

    Returns:
        `(H, W, 3)` uint8: B, G, R. No motion is black.
    """
    u, v = vectors[..., 0].astype(np.float32), vectors[..., 1].astype(np.float32)
    magnitude = np.hypot(u, v)
    largest = magnitude.max() if largest is None else largest
    value = np.clip(magnitude / largest, 0, 1) if largest > 0 else magnitude
    hue = np.degrees(np.arctan2(v, u)) % 360
    hsv = np.stack([hue, np.ones_like(hue), value], axis=-1).astype(np.float32)
    return np.round(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * 255).astype(np.uint8)


def strain_colours(strain: np.ndarray) -> np.ndarray:
    """Optical strain, `(H, W)` and not negative, as `(H, W, 3)` uint8 B, G, R; 0 is black."""
    largest = float(strain.max())
    shares = strain / largest if largest > 0 else strain
    return cv2.applyColorMap(np.round(shares * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)


def draw_points(face: np.ndarray, landmarks: np.ndarray, size: int, layout: str) -> np.ndarray:
    """The five points, and the squares around four of them that a mosaic is put together from.

    Args:
        face: `(H, W)` uint8.
        landmarks: `(5, 2)` (x, y) in pixels of the tensor.
        size: Side of the tensor.
        layout: As in `regions.mosaic`.

    Returns:
        `(h, w, 3)` uint8: B, G, R, at the size it is shown at.
    """
    picture = cv2.cvtColor(_fitted(face), cv2.COLOR_GRAY2BGR)
    scale = np.array(picture.shape[1::-1]) / size
    half = size // 2
    # Where a pixel of the mosaic comes from tells where its squares lie.
    origins = regions.mosaic(np.stack(np.mgrid[:size, :size], axis=-1), landmarks, layout)
    corners = origins[::half, ::half, ::-1].reshape(4, 2)
    for corner, colour in zip(corners, _crop_colours(), strict=True):
        first, last = corner * scale, (corner + half) * scale - 1
        cv2.rectangle(picture, _pixel(first), _pixel(last), colour, 2)
    for point, colour in zip(_in_picture(landmarks, scale), POINT_COLOURS, strict=True):
        cv2.circle(picture, _pixel(point), 6, (0, 0, 0), cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, _pixel(point), 4, colour, cv2.FILLED, cv2.LINE_AA)
    return picture


def draw_arrows(face: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """The flow as arrows over the face, each the mean of the flow around its tail.

    Args:
        face: `(H, W)` uint8.
        vectors: `(S, S, 2)`: u (right), v (down) in pixels of the tensor.

    Returns:
        `(h, w, 3)` uint8: B, G, R, at the size it is shown at; and how many times longer than the
        motion the arrows are (0 where nothing moves).
    """
    picture = cv2.cvtColor(_fitted(face), cv2.COLOR_GRAY2BGR)
    size = len(vectors)
    means = cv2.resize(vectors.astype(np.float64), (ARROWS, ARROWS), interpolation=cv2.INTER_AREA)
    largest = float(np.linalg.norm(means, axis=-1).max())
    if largest <= 0:
        return picture, 0.0
    scale = np.array(picture.shape[1::-1]) / size
    # The longest arrow is one and a half cells long.
    times = 1.5 * (size / ARROWS) / largest
    for row, column in np.ndindex(ARROWS, ARROWS):
        centre = (np.array([column, row]) + 0.5) * size / ARROWS - 0.5
        tail = _in_picture(centre, scale)
        head = tail + means[row, column] * times * scale
        if np.linalg.norm(head - tail) >= 2:
            ends = _pixel(tail), _pixel(head)
            cv2.arrowedLine(picture, *ends, _ARROW_COLOUR, 1, cv2.LINE_AA, tipLength=0.3)
    return picture, times


def draw_mosaic(tensor: np.ndarray, landmarks: np.ndarray, layout: str) -> np.ndarray:
    """The mosaic as a picture: R, G, B are u, v, strain, each scaled to 0..255.

    Args:
        tensor: `(S, S, 3)`: u, v, strain.
        landmarks: `(5, 2)` (x, y) in pixels of the tensor.
        layout: As in `regions.mosaic`.

    Returns:
        `(h, h, 3)` uint8: B, G, R, at the size it is shown at; each quarter framed in the colour of
        its square.
    """
    scaled = np.round(flow.minmax_255(tensor)).astype(np.uint8)
    picture = _fitted(regions.mosaic(scaled, landmarks, layout)[..., ::-1])
    half = len(picture) // 2
    for (row, column), colour in zip(np.ndindex(2, 2), _crop_colours(), strict=True):
        first = (column * half, row * half)
        last = (first[0] + half - 1, first[1] + half - 1)
        cv2.rectangle(picture, first, last, colour, 2)
    return picture


def draw_frames(pixels: np.ndarray, exact: int) -> np.ndarray:
    """Face frames beside one another, row by row; the exact one has a frame.

    Args:
        pixels: `(K, S, S, 3)` uint8 RGB, ascending in time.
        exact: Index of the annotated one.

    Returns:
        `(h, w, 3)` uint8: B, G, R, each face `TILE` pixels wide.
    """
    across = math.ceil(math.sqrt(len(pixels)))
    down = -(-len(pixels) // across)
    sheet = np.zeros((down * TILE, across * TILE, 3), np.uint8)
    for index, face in enumerate(pixels):
        tile = cv2.resize(face[..., ::-1], (TILE, TILE), interpolation=cv2.INTER_AREA)
        if index == exact:
            cv2.rectangle(tile, (0, 0), (TILE - 1, TILE - 1), _ARROW_COLOUR, 2)
        row, column = divmod(index, across)
        sheet[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = tile
    return sheet


def _frame_figures(stored: ClipFrames) -> list[tuple[np.ndarray, str]]:
    found = []
    for what, (first, exact, end) in (("onset", stored.onset), ("apex", stored.apex)):
        numbers = ", ".join(map(str, stored.numbers[first:end]))
        drawn = draw_frames(stored.pixels[first:end], exact - first)
        found.append((drawn, f"face frames around the {what}: {numbers}"))
    return found


def _clip(
    job: process.Job,
    inspection: process.Inspection,
    steps: process.Steps,
) -> str:
    clip, tensor, points = job.clip, steps.tensor, steps.landmarks
    size = len(tensor)
    vectors, strain = tensor[..., :2], tensor[..., 2]
    arrows, times = draw_arrows(steps.onset, vectors)
    fastest = float(np.linalg.norm(vectors, axis=-1).max())
    facts = (
        f"emotion {clip.emotion}; "
        f"onset {clip.onset}, apex {inspection.apex} ({_APEX[inspection.apex_rule]}), "
        f"offset {clip.offset}; points: {inspection.found}"
    )

    def crops(layout: str) -> tuple[np.ndarray, str]:
        drawn = draw_points(steps.onset, points, size, layout)
        return drawn, f"onset, frame {clip.onset}: points and crops of the {layout} mosaic"

    def mosaic(layout: str) -> tuple[np.ndarray, str]:
        return draw_mosaic(tensor, points, layout), f"{layout} mosaic"

    figures = [
        crops("upright"),
        (_fitted(steps.apex), f"apex, frame {inspection.apex}"),
        (_fitted(flow_colours(vectors)), f"flow; brightest: {fastest:.3g} px of {size}"),
        (arrows, f"flow over the onset, arrows {times:.3g} times as long" if times else "no flow"),
        (_fitted(strain_colours(strain)), f"optical strain; largest: {strain.max():.3g}"),
        mosaic("upright"),
        crops("release"),
        mosaic("release"),
    ]
    if steps.frames is not None:
        figures += _frame_figures(steps.frames)
    shown = "".join(_figure(picture, clip.id, caption) for picture, caption in figures)
    return (
        f"<section><h2>{markup.text(clip.id)}</h2><p>{markup.text(facts)}</p>"
        f'<div class="steps">{shown}</div></section>'
    )


def _figure(picture: np.ndarray, clip: str, caption: str) -> str:
    image = markup.image(_png(picture), f"{clip}: {caption}")
    return f"<figure>{image}<figcaption>{markup.text(caption)}</figcaption></figure>"


def _legend(notes: Sequence[str]) -> str:
    picture = markup.image(
        _png(_wheel()), "Colour wheel: right red, down yellow-green, left cyan, up violet."
    )
    paragraphs = "".join(f"<p>{markup.text(note)}</p>" for note in notes)
    return (
        f'<section class="legend">{picture}<div>{paragraphs}<p class="soft">Flow: the colour is '
        "the direction, as in the wheel; black does not move, the brightest pixel of a clip moves "
        "most. Strain: black is none, bright yellow the clip's largest. Mosaics: red, green and "
        "blue are u, v and strain, each scaled to 0..255; their frames have "
        "the colours of the squares on the onset.</p></div></section>"
    )


def _wheel() -> np.ndarray:
    """The colours of all directions, with a transparent surrounding."""
    axis = np.linspace(-1, 1, 256, dtype=np.float32)
    vectors = np.stack(np.meshgrid(axis, axis), axis=-1)
    inside = np.linalg.norm(vectors, axis=-1) <= 1
    return np.dstack([flow_colours(vectors, largest=1.0), np.uint8(255) * inside])


def _fitted(picture: np.ndarray) -> np.ndarray:
    """Enlarged by a whole number, pixels kept as they are; or reduced if it is very large."""
    side = max(picture.shape[:2])
    if side > LARGEST:
        scale = LARGEST / side
        return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    times = -(-SMALLEST // side)
    return np.ascontiguousarray(picture.repeat(times, axis=0).repeat(times, axis=1))


def _in_picture(points: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Pixel centres have whole-numbered coordinates, in the tensor and in the picture."""
    return (points + 0.5) * scale - 0.5


def _pixel(point: np.ndarray) -> tuple[int, int]:
    x, y = np.round(point).astype(int).tolist()
    return x, y


def _crop_colours() -> list[tuple[int, int, int]]:
    """Of left eye, right eye, left and right mouth corner: the mosaic leaves the nose out."""
    return [colour for index, colour in enumerate(POINT_COLOURS) if index != 2]


def _png(picture: np.ndarray) -> bytes:
    # A fifth of the size that OpenCV's default gives: it looks for runs along rows only.
    done, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise ValueError(f"no PNG of a picture of shape {picture.shape}")
    return data.tobytes()
