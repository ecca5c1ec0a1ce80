"""Renders one clip: a subject's face, moved by muscles and head, lit, and seen by a camera."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from htnet_jax.datasets.synthetic.faces import Face, make_face
from htnet_jax.datasets.synthetic.geometry import SIZE
from htnet_jax.datasets.synthetic.muscles import (
    Bump,
    Contraction,
    contracted,
    displacement,
    idle_contractions,
    random_contractions,
)
from htnet_jax.datasets.synthetic.recipe import PlannedClip, Source, generator

# The fixed-point iteration below ends when no point moves by more pixels than this. It contracts by
# the steepest slope of the motion, so what is left to go is of the same size.
_TOLERANCE = 1e-4
# Drawn motions need about 10 steps; one that needs more than this folds the skin over itself.
_STEPS = 100


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
