"""Where the parts of a synthetic face are, and the muscles that move them.

Lengths are pixels of an image `SIZE` wide and high, x to the right, y down.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# Side of every rendered frame in pixels: near the face crops of SMIC and CASME II. All lengths
# in this folder are pixels at this size; they are drawing choices, not measurements.
SIZE = 128


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The shape of one subject's face; lengths in pixels, x to the right, y down.

    Left and right are the image's.

    Attributes:
        centre: (x, y) of the head's ellipse.
        half_width: Horizontal half axis of the head.
        half_height: Vertical half axis of the head.
        eye_y: Height of both eyes.
        eye_gap: Distance from the face's axis to an eye's centre.
        eye_size: Half width and half height of an eye's opening.
        brow_lift: Distance from the eye's centre up to the brow.
        brow_length: Half the length of a brow.
        brow_thickness: Half the thickness of a brow.
        brow_slope: How much higher the inner end is than the outer end, half of it at each end.
        nose_y: Height of the nose tip.
        nose_width: Distance from the nose tip to a nose wing.
        mouth_y: Height of the mouth's line.
        mouth_width: Half the distance between the mouth corners.
        lip_size: Height of the upper and of the lower lip.
    """

    centre: tuple[float, float]
    half_width: float
    half_height: float
    eye_y: float
    eye_gap: float
    eye_size: tuple[float, float]
    brow_lift: float
    brow_length: float
    brow_thickness: float
    brow_slope: float
    nose_y: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    lip_size: tuple[float, float]

    @property
    def landmarks(self) -> np.ndarray:
        """`(5, 2)` float32 (x, y): left eye, right eye, nose tip, left and right mouth corner."""
        x = self.centre[0]
        return np.array(
            [
                (x - self.eye_gap, self.eye_y),
                (x + self.eye_gap, self.eye_y),
                (x, self.nose_y),
                (x - self.mouth_width, self.mouth_y),
                (x + self.mouth_width, self.mouth_y),
            ],
            np.float32,
        )

    @property
    def brow_y(self) -> float:
        """Height of the middle of both brows."""
        return self.eye_y - self.brow_lift

    @property
    def chin_y(self) -> float:
        """Height of the chin's middle, between the lower lip and the head's lower end."""
        return 0.45 * self.mouth_y + 0.55 * (self.centre[1] + self.half_height)

    def inside(self, scale: float = 1.0) -> np.ndarray:
        """`(SIZE, SIZE)` bool: the pixels inside the head's ellipse, shrunk by `scale`."""
        y, x = np.mgrid[:SIZE, :SIZE]
        across = (x - self.centre[0]) / (scale * self.half_width)
        down = (y - self.centre[1]) / (scale * self.half_height)
        return across**2 + down**2 <= 1


def random_geometry(rng: np.random.Generator) -> Geometry:
    """Draws a face: plausible proportions, a few pixels different from subject to subject."""

    def around(middle: float, spread: float) -> float:
        return float(middle + rng.uniform(-spread, spread))

    eye_y = around(54, 2.5)
    nose_y = eye_y + around(23, 2)
    return Geometry(
        centre=(around(63.5, 2), around(66, 1.5)),
        half_width=around(45, 3),
        half_height=around(56, 2),
        eye_y=eye_y,
        eye_gap=around(19, 1.5),
        eye_size=(around(8, 1), around(3.6, 0.7)),
        brow_lift=around(12, 1.5),
        brow_length=around(10.5, 1),
        brow_thickness=around(1.9, 0.5),
        brow_slope=around(-0.5, 1.2),
        nose_y=nose_y,
        nose_width=around(8, 1),
        mouth_y=nose_y + around(17, 1.5),
        mouth_width=around(16, 2),
        lip_size=(around(3.2, 0.7), around(4.4, 0.9)),
    )


# The action units (Ekman and Friesen, Facial Action Coding System) each class is rendered with, in
# the order of `labels.CLASSES`; the pairing of units and emotions follows EMFACS.
CLASS_MUSCLES: tuple[tuple[str, ...], ...] = (
    ("AU4", "AU15", "AU9"),
    ("AU12", "AU6"),
    ("AU1+2", "AU26"),
)
# What a face does besides, whatever its emotion: it blinks, presses its lips, widens its nostrils,
# raises its chin. This blurs the classes, as idle movements do in real clips.
IDLE_MUSCLES = ("AU45", "AU24", "AU38", "AU17")


@dataclasses.dataclass(frozen=True)
class Bump:
    """A patch of skin pulled in one direction, with Gaussian fall-off.

    Attributes:
        x: Column of the middle of the patch, frame pixels.
        y: Row of its middle.
        width: Standard deviation across, pixels.
        height: Standard deviation down, pixels.
        pull: (right, down) displacement at the middle for a contraction of 1.
    """

    x: float
    y: float
    width: float
    height: float
    pull: tuple[float, float]


def bumps(muscle: str, side: int, g: Geometry) -> tuple[Bump, ...]:
    """The patches one half of a muscle moves.

    Args:
        muscle: One of the names in `CLASS_MUSCLES` or `IDLE_MUSCLES`.
        side: -1 for the image's left half of the face, 1 for the right.
        g: The face it belongs to.

    Raises:
        KeyError: If there is no such muscle.
    """
    x = g.centre[0]
    inner_brow = x + side * (g.eye_gap - 0.7 * g.brow_length)
    outer_brow = x + side * (g.eye_gap + 0.6 * g.brow_length)
    corner = x + side * g.mouth_width
    # `side * positive` pulls away from the face's axis, `side * negative` towards it.
    table = {
        # Brow lowerer (corrugator): inner brows down and together.
        "AU4": (Bump(inner_brow, g.brow_y, 8, 6.5, (-0.6 * side, 0.8)),),
        # Lip corner depressor: corners down, a little outwards.
        "AU15": (Bump(corner, g.mouth_y + 1, 8, 7.5, (0.2 * side, 1.0)),),
        # Nose wrinkler: nose wings and the skin beside the nose up.
        "AU9": (Bump(x + side * g.nose_width, g.nose_y - 4, 6, 9, (-0.1 * side, -1.0)),),
        # Lip corner puller (zygomatic major): corners out and up.
        "AU12": (Bump(corner, g.mouth_y - 1, 9, 8, (0.7 * side, -0.7)),),
        # Cheek raiser (orbicularis oculi): the cheek up, gathered towards the eye.
        "AU6": (Bump(x + side * (g.eye_gap + 4), g.eye_y + 14, 9, 7, (-0.25 * side, -0.95)),),
        # Inner and outer brow raisers (frontalis).
        "AU1+2": (
            Bump(inner_brow, g.brow_y - 1, 7.5, 8, (0.0, -0.85)),
            Bump(outer_brow, g.brow_y, 7.5, 7.5, (0.1 * side, -0.75)),
        ),
        # Jaw drop: chin and lower lip down. The two halves overlap in the middle and add up.
        "AU26": (Bump(x + side * 8, g.chin_y, 12, 11, (0.0, 0.65)),),
        # Blink: the upper lid comes down.
        "AU45": (Bump(x + side * g.eye_gap, g.eye_y - 4, 7, 4, (0.0, 1.0)),),
        # Lip presser: the corners come together.
        "AU24": (Bump(corner, g.mouth_y, 7, 6, (-0.9 * side, 0.1)),),
        # Chin raiser: the chin and the middle of the lower lip up.
        "AU17": (Bump(x + side * 6, g.chin_y - 3, 9, 8, (0.0, -0.65)),),
        # Nostril dilator: the nose wings move apart.
        "AU38": (Bump(x + side * g.nose_width, g.nose_y, 5, 5, (0.9 * side, -0.1)),),
    }
    return table[muscle]


@dataclasses.dataclass(frozen=True)
class Contraction:
    """One muscle at work.

    Attributes:
        muscle: One of the names in `CLASS_MUSCLES` or `IDLE_MUSCLES`.
        left: Strength of the image's left half: the largest displacement in pixels, about.
        right: Strength of the right half.
    """

    muscle: str
    left: float
    right: float


def contracted(contractions: tuple[Contraction, ...], g: Geometry) -> tuple[Bump, ...]:
    """All patches of a face that the given contractions move, with their pulls in pixels."""
    return tuple(
        dataclasses.replace(bump, pull=(strength * bump.pull[0], strength * bump.pull[1]))
        for contraction in contractions
        for side, strength in ((-1, contraction.left), (1, contraction.right))
        for bump in bumps(contraction.muscle, side, g)
    )


def displacement(
    patches: tuple[Bump, ...], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How far the skin that ends at (x, y) has been pulled.

    Args:
        patches: What pulls at the skin.
        x: Columns in frame pixels, any shape, float.
        y: Rows, the same shape.

    Returns:
        (right, down) displacement in pixels, each of the shape and dtype of `x`.
    """
    right, down = np.zeros_like(x), np.zeros_like(y)
    for patch in patches:
        across, below = (x - patch.x) / patch.width, (y - patch.y) / patch.height
        weight = np.exp(-0.5 * (across**2 + below**2))
        right += patch.pull[0] * weight
        down += patch.pull[1] * weight
    return right, down


def random_contractions(label: int, rng: np.random.Generator) -> tuple[Contraction, ...]:
    """Draws which of a class's muscles contract, how hard, and how unevenly.

    Each muscle takes part with probability 0.6, and at least one does. Strengths give peak
    displacements of about half a pixel to 3 pixels, the size of micro-expressions in a face of this
    size: the faint ones leave some clips that a classifier gets wrong.
    """
    muscles = CLASS_MUSCLES[label]
    used = rng.random(len(muscles)) < 0.6
    used[rng.integers(len(muscles))] = True
    # One intensity for the clip, as the muscles of an expression answer one impulse.
    intensity = rng.uniform(0.6, 2.2)
    return tuple(
        _uneven(muscle, intensity * rng.uniform(0.7, 1.3), rng)
        for muscle, is_used in zip(muscles, used, strict=True)
        if is_used
    )


def idle_contractions(rng: np.random.Generator) -> tuple[Contraction, ...]:
    """Draws movements that have nothing to do with the label; each occurs in half of the clips."""
    return tuple(
        _uneven(muscle, rng.uniform(0.5, 2.5), rng) for muscle in IDLE_MUSCLES if rng.random() < 0.5
    )


def _uneven(muscle: str, strength: float, rng: np.random.Generator) -> Contraction:
    """Shares a strength out to the two halves of the face: up to 35 % more on one of them."""
    asymmetry = rng.uniform(-0.35, 0.35)
    return Contraction(muscle, strength * (1 - asymmetry), strength * (1 + asymmetry))
