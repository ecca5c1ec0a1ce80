"""What the synthetic composite consists of: its sources, and which clip has which label."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

from htnet_jax.datasets.labels import CLASSES
from htnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """One of the data sets the composite imitates: how it was filmed, and what it contains.

    Attributes:
        name: Lower-case name; its first letter begins the subjects' ids.
        mix: Share of each class, in the order of `labels.CLASSES`.
        strength: Factor on the strength of the muscles.
        noise: Standard deviation of the camera's noise in grey levels (of 255).
        drift: Standard deviation of the head's translation, onset to apex, in pixels an axis.
        turn: Standard deviation of the head's rotation, onset to apex, in degrees.
        flicker: Largest change of the light, onset to apex, as a share of it: even part, and
            difference between the image's edges.
    """

    name: str
    mix: tuple[float, float, float]
    strength: float
    noise: float
    drift: float
    turn: float
    flicker: float


# The class shares are those of SMIC, CASME II and SAMM in MEGC 2019 (See et al., FG 2019). The
# rest is our choice: one easy source, one with weak motion and a restless head, one with a noisy
# camera and unsteady light.
SOURCES = (
    Source("alpha", (70 / 164, 51 / 164, 43 / 164), 1.0, 2.0, 0.40, 0.30, 0.03),
    Source("beta", (88 / 145, 32 / 145, 25 / 145), 0.8, 1.5, 0.60, 0.50, 0.02),
    Source("gamma", (92 / 133, 26 / 133, 15 / 133), 1.1, 3.5, 0.30, 0.25, 0.05),
)


@dataclasses.dataclass(frozen=True)
class PlannedClip:
    """A clip before it is rendered.

    Attributes:
        source: The data set it belongs to.
        number: The subject's number within the source, from 1.
        index: The clip's number within the subject, from 1.
        label: 0 negative, 1 positive, 2 surprise.
    """

    source: Source
    number: int
    index: int
    label: int

    @property
    def subject(self) -> str:
        """The subject's id, unique over sources: `a01`, `b01`, ..."""
        return f"{self.source.name[0]}{self.number:02d}"

    @property
    def name(self) -> str:
        """The clip's name within its subject: `clip01`, ..."""
        return f"clip{self.index:02d}"


def generator(seed: int, purpose: str, *key: str | int) -> np.random.Generator:
    """An independent random stream for every combination of arguments; the same each time.

    Args:
        seed: The data set's seed, 0 or more.
        purpose: What the stream is for.
        *key: What it belongs to: names, and numbers of 0 or more.
    """
    # `hash` of a string changes from process to process; CRC-32 does not.
    words = (zlib.crc32(k.encode()) if isinstance(k, str) else k for k in (purpose, *key))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(words)))


def plan(seed: int, subjects_per_source: int, clips_per_subject: int) -> list[PlannedClip]:
    """The clips of a composite, in the order of the data set: by source, subject and index.

    Every subject shows every class at least once, so that leaving a subject out never empties a
    class; the other clips are drawn from the source's shares. A subject's labels do not depend on
    how many other subjects there are.

    Args:
        seed: The data set's seed, 0 or more.
        subjects_per_source: Subjects of each source, at least 1.
        clips_per_subject: Clips of each subject, at least one for each class.

    Raises:
        UserError: If a number is too small.
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("subjects_per_source", subjects_per_source, 1),
        ("clips_per_subject", clips_per_subject, len(CLASSES)),
    ):
        if value < least:
            raise UserError(f"synthetic: {name} is {value}; it must be at least {least}.")
    planned = []
    for source in SOURCES:
        for number in range(1, subjects_per_source + 1):
            rng = generator(seed, "labels", source.name, number)
            drawn = rng.choice(len(CLASSES), clips_per_subject - len(CLASSES), p=source.mix)
            labels = rng.permutation([*range(len(CLASSES)), *drawn])
            planned += [
                PlannedClip(source, number, index, int(label))
                for index, label in enumerate(labels, 1)
            ]
    return planned
