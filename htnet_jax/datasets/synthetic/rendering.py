"""Renders one clip: draws a subject's face, moves it by muscles and head, lights and films it."""

from __future__ import annotations

import dataclasses
import functools
import math

import cv2
import numpy as np

from htnet_jax.datasets.synthetic.anatomy import (
    SIZE,
    Bump,
    Contraction,
    Geometry,
    contracted,
    displacement,
    idle_contractions,
    random_contractions,
    random_geometry,
)
from htnet_jax.datasets.synthetic.recipe import PlannedClip, Source, generator

# The face is drawn at twice the frames' resolution, so that sampling it between pixels, which
# every warped frame does, costs no sharpness ...
SUPERSAMPLING = 2
# ... and with a margin in frame pixels, so that head drift never looks over its edge.
MARGIN = 12

# Skin texture: standard deviations in frame pixels of the Gaussians that limit each band, and the
# band's contrast. The finest band is what optical flow holds on to in flat skin.
_TEXTURE_BANDS = ((0.8, 0.020), (1.6, 0.022), (3.5, 0.020), (8.0, 0.022))
# The fixed-point iteration below ends when no point moves by more pixels than this. It contracts by
# the steepest slope of the motion, so what is left to go is of the same size.
_TOLERANCE = 1e-4
# Drawn motions need about 10 steps; one that needs more than this folds the skin over itself.
_STEPS = 100


# The clip.


@dataclasses.dataclass(frozen=True)
class RenderedClip:
    """A clip with everything that is true about it.

    Attributes:
        frames: `(T, SIZE, SIZE)` uint8 grayscale.
        onset: Index of the last frame before the face moves.
        apex: Index of the frame with the strongest contraction.
        offset: Index of the frame where the contraction has faded.
        landmarks: `(T, 5, 2)` float32 (x, y) in pixels of every frame: left eye, right eye, nose
            tip, left and right mouth corner; left and right are the image's.
        true_flow: `(SIZE, SIZE, 2)` float32 (right, down) pixels: where each pixel of the onset
            frame has moved to in the apex frame, head drift included.
        face_mask: `(SIZE, SIZE)` bool: the pixels of the onset frame well inside the face.
        label: 0 negative, 1 positive, 2 surprise.
        contractions: The muscles at work, with their strengths at the apex.
    """

    frames: np.ndarray
    onset: int
    apex: int
    offset: int
    landmarks: np.ndarray
    true_flow: np.ndarray
    face_mask: np.ndarray
    label: int
    contractions: tuple[Contraction, ...]


@dataclasses.dataclass(frozen=True)
class _Motion:
    """How the face of one frame differs from the onset's: contraction, then rigid head motion."""

    centre: tuple[float, float]
    patches: tuple[Bump, ...]
    activation: float
    shift: tuple[float, float]
    angle: float

    def backward(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Displacement B of the point seen at (x, y): it was at (x, y) - B in the onset frame."""
        (cx, cy), cosine, sine = self.centre, math.cos(self.angle), math.sin(self.angle)
        dx, dy = x - self.shift[0] - cx, y - self.shift[1] - cy
        still_x, still_y = cosine * dx + sine * dy + cx, cosine * dy - sine * dx + cy
        right, down = displacement(self.patches, still_x, still_y)
        return (
            x - still_x + self.activation * right,
            y - still_y + self.activation * down,
        )

    def forward(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Displacement F of the onset's point (x, y): the solution of F(p) = B(p + F(p))."""
        right, down = self.backward(x, y)
        for _ in range(_STEPS):
            next_right, next_down = self.backward(x + right, y + down)
            step = max(np.abs(next_right - right).max(), np.abs(next_down - down).max())
            right, down = next_right, next_down
            if step <= _TOLERANCE:
                return right, down
        raise ValueError("the contractions fold the skin over itself; make them weaker")


@functools.lru_cache(maxsize=1)  # the clips of a subject follow one another
def subject_face(seed: int, source: str, number: int) -> Face:
    """The neutral face of a source's subject; the same for all its clips."""
    return make_face(generator(seed, "face", source, number))


def render_clip(
    seed: int,
    planned: PlannedClip,
    *,
    noise: bool = True,
    drift: bool = True,
    lighting: bool = True,
    contractions: tuple[Contraction, ...] | None = None,
) -> RenderedClip:
    """Renders a clip; the same arguments give the same bits.

    Args:
        seed: The data set's seed.
        planned: Which clip of which subject to render.
        noise: False switches the camera's noise off; all else stays the same.
        drift: False switches the head's motion off.
        lighting: False gives every frame the same even light.
        contractions: Muscles to contract, instead of those the seed draws for the clip's label.

    Returns:
        The clip, with the true flow and landmarks.

    Raises:
        ValueError: If the given contractions are so strong that the flow is not one-to-one.
        KeyError: If there is no such muscle.
    """

    def stream(purpose: str) -> np.random.Generator:
        # A stream for each purpose: switching one off leaves the others as they are.
        return generator(seed, purpose, planned.source.name, planned.number, planned.index)

    source = planned.source
    face = subject_face(seed, source.name, planned.number)
    if contractions is None:
        drawn = random_contractions(planned.label, stream("muscles"))
        contractions = tuple(_scaled(c, source.strength) for c in drawn)
        contractions += idle_contractions(stream("idle"))
    onset, apex, offset, activation = _timing(stream("timing"))
    progress = (np.arange(len(activation)) - onset) / (apex - onset)  # 0 at onset, 1 at the apex

    shift, angle = _drift(source, stream("drift")) if drift else ((0.0, 0.0), 0.0)
    patches = contracted(contractions, face.geometry)
    motions = [
        _Motion(face.geometry.centre, patches, a, (shift[0] * p, shift[1] * p), angle * p)
        for a, p in zip(activation.tolist(), progress.tolist(), strict=True)
    ]
    row, column = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    frames = np.stack([_warp(face, motion, column, row) for motion in motions])
    if lighting:
        frames = frames * _light(source, progress, stream("lighting"), column, row)
    grey_levels = 255 * frames
    if noise:
        grey_levels = grey_levels + stream("noise").normal(0, source.noise, frames.shape)

    points = face.geometry.landmarks.astype(np.float64)
    return RenderedClip(
        frames=np.clip(np.rint(grey_levels), 0, 255).astype(np.uint8),
        onset=onset,
        apex=apex,
        offset=offset,
        landmarks=np.stack(
            [points + np.stack(m.forward(points[:, 0], points[:, 1]), -1) for m in motions]
        ).astype(np.float32),
        true_flow=np.stack(motions[apex].forward(column, row), -1).astype(np.float32),
        # Nearer to the outline than this, flow is disturbed by hair and background.
        face_mask=face.geometry.inside(0.85),
        label=planned.label,
        contractions=contractions,
    )


def _scaled(contraction: Contraction, factor: float) -> Contraction:
    return Contraction(contraction.muscle, contraction.left * factor, contraction.right * factor)


def _timing(rng: np.random.Generator) -> tuple[int, int, int, np.ndarray]:
    """Onset, apex and offset indices, and the contraction of every frame (0 to 1).

    9 to 17 frames: 0 to 2 still ones, 4 to 6 rising, 4 to 7 falling, and 0 to 1 still ones.
    """
    onset = int(rng.integers(0, 3))
    apex = onset + int(rng.integers(4, 7))
    offset = apex + int(rng.integers(4, 8))
    frame = np.arange(offset + 1 + int(rng.integers(0, 2)))
    rise = np.clip((frame - onset) / (apex - onset), 0, 1)
    fall = np.clip((offset - frame) / (offset - apex), 0, 1)
    ramp = np.minimum(rise, fall)
    return onset, apex, offset, ramp**2 * (3 - 2 * ramp)


def _drift(source: Source, rng: np.random.Generator) -> tuple[tuple[float, float], float]:
    """The head's translation in pixels and its rotation in radians, from onset to apex."""
    right, down = rng.normal(0, source.drift, 2).tolist()
    return (right, down), math.radians(rng.normal(0, source.turn))


def _light(
    source: Source,
    progress: np.ndarray,
    rng: np.random.Generator,
    column: np.ndarray,
    row: np.ndarray,
) -> np.ndarray:
    """`(T, SIZE, SIZE)` factors: gain and gradient of the clip, and their change over time."""
    ramps = np.stack([np.ones_like(row), column / SIZE - 0.5, row / SIZE - 0.5])
    still = np.array([1.0, 0, 0]) + rng.uniform(-1, 1, 3) * (0.1, 0.15, 0.15)
    change = rng.uniform(-1, 1, 3) * source.flicker
    weights = still + np.clip(progress, -1, 2)[:, None] * change
    return np.tensordot(weights, ramps, axes=1)


def _warp(face: Face, motion: _Motion, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The face as one frame sees it: each pixel looks up where it was in the neutral face."""
    right, down = motion.backward(column, row)
    return face.sample(column - right, row - down)


# The neutral face.


@dataclasses.dataclass(frozen=True)
class Face:
    """One subject's neutral face.

    Attributes:
        geometry: Where its parts are, in pixels of a frame.
        image: `(2 * (SIZE + 2 * MARGIN),) * 2` float32 in 0..1: the face at twice the frames'
            resolution, `MARGIN` frame pixels wider on each side.
    """

    geometry: Geometry
    image: np.ndarray

    def sample(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The face's brightness at frame coordinates.

        Args:
            x: `(H, W)` float: column of each sample in frame pixels.
            y: `(H, W)` float: row of each sample.

        Returns:
            `(H, W)` float32, about 0..1 (cubic interpolation can overshoot a little).
        """

        def to_image(v: np.ndarray) -> np.ndarray:
            return ((v + MARGIN + 0.5) * SUPERSAMPLING - 0.5).astype(np.float32)

        return cv2.remap(
            self.image, to_image(x), to_image(y), cv2.INTER_CUBIC, None, cv2.BORDER_REFLECT
        )


def make_face(rng: np.random.Generator) -> Face:
    """Draws a subject's geometry, tones and texture from `rng`, and renders the neutral face."""
    geometry = random_geometry(rng)
    image = _draw(geometry, rng)
    image.setflags(write=False)  # all clips of the subject share it
    return Face(geometry, image)


def _soft(distance: np.ndarray, width: float = 0.8) -> np.ndarray:
    """1 where `distance` is well below zero, 0 well above: an edge `width` pixels wide."""
    return 0.5 - 0.5 * np.tanh(distance / width)


class _Canvas:
    """An image in frame coordinates that shapes are blended onto."""

    def __init__(self) -> None:
        steps = np.arange(SUPERSAMPLING * (SIZE + 2 * MARGIN))
        axis = ((steps + 0.5) / SUPERSAMPLING - 0.5 - MARGIN).astype(np.float32)
        self.x, self.y = np.meshgrid(axis, axis)
        self.image = np.zeros_like(self.x)

    def blend(self, mask: np.ndarray, tone: np.ndarray | float) -> None:
        """Lays `tone` over the image where `mask` (0..1) says so."""
        self.image = self.image + mask * (tone - self.image)

    def ellipse(self, x: float, y: float, width: float, height: float) -> np.ndarray:
        """Mask of an ellipse with the given half axes; its edge is soft."""
        radius = np.hypot((self.x - x) / width, (self.y - y) / height)
        return _soft((radius - 1) * min(width, height))

    def spot(self, x: float, y: float, width: float, height: float) -> np.ndarray:
        """A Gaussian spot with the given standard deviations."""
        return np.exp(-0.5 * (((self.x - x) / width) ** 2 + ((self.y - y) / height) ** 2))

    def noise(self, rng: np.random.Generator, sigma: float) -> np.ndarray:
        """Unit-variance random texture without detail finer than `sigma` frame pixels."""
        white = rng.standard_normal(self.x.shape, np.float32)
        smooth = cv2.GaussianBlur(white, (0, 0), sigma * SUPERSAMPLING)
        return (smooth - smooth.mean()) / smooth.std()


def _draw(g: Geometry, rng: np.random.Generator) -> np.ndarray:
    """The neutral face: back to front, then blurred as by a lens."""
    canvas = _Canvas()
    skin, hair = rng.uniform(0.52, 0.72), rng.uniform(0.10, 0.28)
    _background_and_hair(canvas, g, hair, rng)
    _skin(canvas, g, skin, rng)
    for side in (-1, 1):
        _brow_and_eye(canvas, g, side, skin, hair, rng.uniform(0.08, 0.25))
    _nose(canvas, g, skin)
    _mouth(canvas, g, skin * rng.uniform(0.66, 0.80))
    lens = cv2.GaussianBlur(canvas.image, (0, 0), 0.5 * SUPERSAMPLING)
    return np.clip(lens, 0.02, 0.98).astype(np.float32)


def _background_and_hair(
    canvas: _Canvas, g: Geometry, hair: float, rng: np.random.Generator
) -> None:
    canvas.image += rng.uniform(0.25, 0.5) + 0.03 * canvas.noise(rng, 12.0)
    strands = hair + 0.04 * canvas.noise(rng, 1.0)
    x, y = g.centre
    canvas.blend(canvas.ellipse(x, y - 10, g.half_width + 6, g.half_height), strands)


def _skin(canvas: _Canvas, g: Geometry, tone: float, rng: np.random.Generator) -> None:
    x, y = g.centre
    across, down = (canvas.x - x) / g.half_width, (canvas.y - y) / g.half_height
    # A head is round: it darkens towards its outline, and towards the side away from the light.
    shading = 1 - 0.28 * (across**2 + 0.7 * down**2) + rng.uniform(-0.08, 0.08) * across
    texture = sum(contrast * canvas.noise(rng, sigma) for sigma, contrast in _TEXTURE_BANDS)
    for _ in range(rng.integers(4, 20)):  # moles and freckles
        place, size = rng.uniform(-0.75, 0.75, 2), rng.uniform(0.6, 1.2)
        mole = canvas.spot(x + place[0] * g.half_width, y + place[1] * g.half_height, size, size)
        texture = texture - rng.uniform(0.05, 0.18) * mole
    hairline = _soft((g.brow_y - 17) - canvas.y, 2.0)
    canvas.blend(canvas.ellipse(x, y, g.half_width, g.half_height) * hairline, tone * shading)
    canvas.image += texture


def _brow_and_eye(
    canvas: _Canvas, g: Geometry, side: int, skin: float, hair: float, iris: float
) -> None:
    x = g.centre[0] + side * g.eye_gap
    width, height = g.eye_size
    canvas.image -= 0.10 * canvas.spot(x, g.eye_y - 1, width + 2, height + 3)  # the socket
    opening = canvas.ellipse(x, g.eye_y, width, height)
    canvas.blend(opening, min(skin + 0.2, 0.9))
    canvas.blend(opening * canvas.ellipse(x, g.eye_y, height, height), iris)
    canvas.blend(canvas.ellipse(x - 1, g.eye_y - 1, 1, 1), 0.95)  # the lamp's reflection
    along = (canvas.x - x) / width
    lid = np.abs(canvas.y - (g.eye_y - height * np.sqrt(np.clip(1 - along**2, 0, 1))))
    canvas.blend(0.75 * _soft(lid - 0.7) * _soft((np.abs(along) - 1) * width), 0.12)

    along = side * (canvas.x - x) / g.brow_length  # -1 at the inner end, 1 at the outer
    arch = g.brow_y - 2 * (1 - along**2) + g.brow_slope * along
    thickness = g.brow_thickness * (1 - 0.35 * along)
    hairs = _soft(np.abs(canvas.y - arch) - thickness) * _soft((np.abs(along) - 1) * g.brow_length)
    canvas.blend(0.85 * hairs, hair)


def _nose(canvas: _Canvas, g: Geometry, skin: float) -> None:
    x, y, width = g.centre[0], g.nose_y, g.nose_width
    bridge = (y + g.eye_y) / 2
    canvas.image += 0.07 * canvas.spot(x, bridge, 2.5, (y - g.eye_y) / 2.5)
    canvas.image += 0.09 * canvas.spot(x, y - 1, 3.5, 3)
    for side in (-1, 1):
        canvas.image -= 0.07 * canvas.spot(x + side * 6, bridge + 2, 2, (y - g.eye_y) / 3)
        canvas.image -= 0.12 * canvas.spot(x + side * (width + 0.5), y + 0.5, 1.6, 3)
        canvas.blend(0.8 * canvas.ellipse(x + side * 0.5 * width, y + 4, 2.2, 1.3), 0.3 * skin)
        fold = canvas.spot(x + side * (width + 5.5), (y + g.mouth_y) / 2, 1.6, 6)
        canvas.image -= 0.07 * fold


def _mouth(canvas: _Canvas, g: Geometry, lips: float) -> None:
    x, y, width = g.centre[0], g.mouth_y, g.mouth_width
    upper, lower = g.lip_size
    along = (canvas.x - x) / width
    room = np.clip(1 - along**2, 0, 1)
    body = _soft((y - upper * room) - canvas.y) * _soft(canvas.y - (y + lower * room))
    body = body * _soft((np.abs(along) - 1) * width)
    canvas.blend(0.8 * body, lips)
    line = _soft(np.abs(canvas.y - (y + 0.8 * room)) - 0.6) * _soft((np.abs(along) - 1.04) * width)
    canvas.blend(0.8 * line, 0.4 * lips)
    for side in (-1, 1):
        canvas.image -= 0.10 * canvas.spot(x + side * width, y, 1.8, 1.8)
    canvas.image -= 0.06 * canvas.spot(x, y + lower + 3.5, 9, 2)
