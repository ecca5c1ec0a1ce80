"""Draws the neutral face of one synthetic subject: parts, shading and skin texture."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from htnet_jax.datasets.synthetic.geometry import SIZE, Geometry, random_geometry

# The face is drawn at twice the frames' resolution, so that sampling it between pixels, which
# every warped frame does, costs no sharpness ...
SUPERSAMPLING = 2
# ... and with a margin in frame pixels, so that head drift never looks over its edge.
MARGIN = 12

# Skin texture: standard deviations in frame pixels of the Gaussians that limit each band, and the
# band's contrast. The finest band is what optical flow holds on to in flat skin.
_TEXTURE_BANDS = ((0.8, 0.020), (1.6, 0.022), (3.5, 0.020), (8.0, 0.022))


@dataclasses.dataclass(frozen=True)
class Face:
    """One subject's neutral face.

    Attributes:
        geometry: Where its parts are, in pixels of a frame.
        picture: `(2 * (SIZE + 2 * MARGIN),) * 2` float32 in 0..1: the face at twice the frames'
            resolution, `MARGIN` frame pixels wider on each side.
    """

    geometry: Geometry
    picture: np.ndarray

    def sample(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The face's brightness at frame coordinates.

        Args:
            x: `(H, W)` float: column of each sample in frame pixels.
            y: `(H, W)` float: row of each sample.

        Returns:
            `(H, W)` float32, about 0..1 (cubic interpolation can overshoot a little).
        """

        def to_picture(v: np.ndarray) -> np.ndarray:
            return ((v + MARGIN + 0.5) * SUPERSAMPLING - 0.5).astype(np.float32)

        return cv2.remap(
            self.picture, to_picture(x), to_picture(y), cv2.INTER_CUBIC, None, cv2.BORDER_REFLECT
        )


def make_face(rng: np.random.Generator) -> Face:
    """Draws a subject's geometry, tones and texture from `rng`, and renders the neutral face."""
    geometry = random_geometry(rng)
    picture = _draw(geometry, rng)
    picture.setflags(write=False)  # all clips of the subject share it
    return Face(geometry, picture)


def _soft(distance: np.ndarray, width: float = 0.8) -> np.ndarray:
    """1 where `distance` is well below zero, 0 well above: an edge `width` pixels wide."""
    return 0.5 - 0.5 * np.tanh(distance / width)


class _Canvas:
    """A picture in frame coordinates that shapes are blended onto."""

    def __init__(self) -> None:
        steps = np.arange(SUPERSAMPLING * (SIZE + 2 * MARGIN))
        axis = ((steps + 0.5) / SUPERSAMPLING - 0.5 - MARGIN).astype(np.float32)
        self.x, self.y = np.meshgrid(axis, axis)
        self.picture = np.zeros_like(self.x)

    def blend(self, mask: np.ndarray, tone: np.ndarray | float) -> None:
        """Lays `tone` over the picture where `mask` (0..1) says so."""
        self.picture = self.picture + mask * (tone - self.picture)

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
    lens = cv2.GaussianBlur(canvas.picture, (0, 0), 0.5 * SUPERSAMPLING)
    return np.clip(lens, 0.02, 0.98).astype(np.float32)


def _background_and_hair(
    canvas: _Canvas, g: Geometry, hair: float, rng: np.random.Generator
) -> None:
    canvas.picture += rng.uniform(0.25, 0.5) + 0.03 * canvas.noise(rng, 12.0)
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
    canvas.picture += texture


def _brow_and_eye(
    canvas: _Canvas, g: Geometry, side: int, skin: float, hair: float, iris: float
) -> None:
    x = g.centre[0] + side * g.eye_gap
    width, height = g.eye_size
    canvas.picture -= 0.10 * canvas.spot(x, g.eye_y - 1, width + 2, height + 3)  # the socket
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
    canvas.picture += 0.07 * canvas.spot(x, bridge, 2.5, (y - g.eye_y) / 2.5)
    canvas.picture += 0.09 * canvas.spot(x, y - 1, 3.5, 3)
    for side in (-1, 1):
        canvas.picture -= 0.07 * canvas.spot(x + side * 6, bridge + 2, 2, (y - g.eye_y) / 3)
        canvas.picture -= 0.12 * canvas.spot(x + side * (width + 0.5), y + 0.5, 1.6, 3)
        canvas.blend(0.8 * canvas.ellipse(x + side * 0.5 * width, y + 4, 2.2, 1.3), 0.3 * skin)
        fold = canvas.spot(x + side * (width + 5.5), (y + g.mouth_y) / 2, 1.6, 6)
        canvas.picture -= 0.07 * fold


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
        canvas.picture -= 0.10 * canvas.spot(x + side * width, y, 1.8, 1.8)
    canvas.picture -= 0.06 * canvas.spot(x, y + lower + 3.5, 9, 2)
