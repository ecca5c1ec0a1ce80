"""Where the parts of a synthetic face are, in pixels of a picture `SIZE` wide and high."""

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
