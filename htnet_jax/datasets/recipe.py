"""How frames become flow tensors: every choice, a name for it, and a hash for the metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import re

from htnet_jax.datasets import frames as face_frames
from htnet_jax.errors import UserError

# Side in pixels of the aligned face that flow is computed on: 8 times the 28 px of the release.
FACE_SIZE = 224

CHOICES: dict[str, tuple[str, ...]] = {
    "flow": ("tvl1", "farneback", "dis"),
    "size": ("28", "56", "112"),
    "align": ("onset", "head", "none"),
    "landmarks": ("dlib", "csv", "template"),
    "order": ("crop", "size"),
    "strain": ("green_lagrange_small", "symmetric_norm", "four_terms", "engineering_shear"),
    "apex": ("midpoint", "estimate"),
    "frames": face_frames.CHOICES,
    "clip": ("0", "28", "56", "112"),
}
# What the short form frames=sixteen stands for: the clips on which torchvision's 3-D
# networks were trained (references/video_classification: clips of 16 frames, 112 px).
SIXTEEN = {"frames": "16", "clip": "112"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what a tensor holds.

    Attributes:
        flow: Optical-flow method, see `motion.flow`.
        size: Side of the tensor in pixels: 28, 56 or 112.
        align: "onset": both frames by the similarity transform that puts the onset's points into
            place; "head": each frame by its own points, so that head motion between onset and
            apex is taken out; "none": the image as it is.
        landmarks: "dlib": found on the onset frame; "csv": from `landmarks.csv` beside the data;
            "template": the release's fixed points, for images that are tight crops.
        order: "crop": flow at the face's resolution, then resized; "size": frames resized first
            (as HTNet's script for CAS(ME)^3).
        strain: Formula, see `motion.flow.STRAIN_FORMULAS`.
        apex: Rule where the sheet has no apex or an impossible one: "midpoint" or "estimate".
        variant: Part or modality of the data set; "": its default.
        frames: Aligned face frames to store beside the tensor: "none"; "pair": onset and apex;
            "neighbours": also those that jitter may take instead, as far as they are on disk; a
            number such as "16": so many evenly from onset to offset, and the apex.
        clip: With such a number: side of the stored frames in pixels, aligned to it directly, and
            the flow from the onset to each is stored too, in pixels of that side; 0: frames of
            `FACE_SIZE` pixels without flow.
    """

    flow: str = "tvl1"
    size: int = 28
    align: str = "onset"
    landmarks: str = "dlib"
    order: str = "crop"
    strain: str = "green_lagrange_small"
    apex: str = "midpoint"
    variant: str = ""
    frames: str = "none"
    clip: int = 0

    @property
    def frame_side(self) -> int:
        """Side of the stored frames in pixels."""
        return self.clip or FACE_SIZE

    @property
    def frame_keys(self) -> tuple[str, ...]:
        """What examples hold of frames, see `frames.example_keys`."""
        return face_frames.example_keys(self.frames, has_flow=self.clip > 0)

    @property
    def name(self) -> str:
        """The builder config's name: `tvl1_28`, then what differs from the defaults."""
        default = Recipe()
        parts = [f"{self.flow}_{self.size}"]
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if value != getattr(default, field.name):
                parts.append(f"{field.name}-{value}")
        return "+".join(parts)

    @property
    def canonical(self) -> str:
        """All choices as `key=value`, comma-separated, in a fixed order.

        `clip` only where it is used: what was built before there were any keeps its text and hash.
        """
        keys = [field.name for field in dataclasses.fields(self)]
        if not self.clip:
            keys.remove("clip")
        return ",".join(f"{key}={getattr(self, key)}" for key in keys)

    @property
    def hash(self) -> str:
        """SHA-256 of `canonical`, the first 16 hexadecimal digits."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:16]


def make(**choices: str | int) -> Recipe:
    """A recipe from choices by name, checked; `frames="sixteen"` is short for `SIXTEEN`.

    Raises:
        UserError: Unknown names or values, all of them; or choices that exclude each other.
    """
    problems = []
    if choices.get("frames") == "sixteen":
        choices = SIXTEEN | choices | {"frames": SIXTEEN["frames"]}
    fields = {field.name for field in dataclasses.fields(Recipe)}
    for key, value in list(choices.items()):
        if key not in fields:
            problems.append(f"unknown choice {key!r}; there are {', '.join(sorted(fields))}")
        elif key == "variant" and not re.fullmatch(r"\w{0,40}", str(value), re.ASCII):
            # A folder is named after it; the data set knows which there are.
            problems.append(f"variant={value!r} is no name of letters, digits and _")
        elif key == "frames" and face_frames.is_rule(str(value)):
            choices["frames"] = str(value)
        elif key == "frames":
            problems.append(f"frames={value!r} is unknown; use {face_frames.KNOWN_RULES}")
        elif key in CHOICES and str(value) not in CHOICES[key]:
            problems.append(f"{key}={value!r} is unknown; use {', '.join(CHOICES[key])}")
    if not problems:
        recipe = Recipe(**choices | {k: int(choices[k]) for k in ("size", "clip") if k in choices})
        if recipe.landmarks == "template" and recipe.align != "none":
            problems.append("landmarks=template cannot align a face; add align=none")
        if recipe.landmarks == "csv" and recipe.align == "head":
            problems.append("align=head needs points on the apex frame: use landmarks=dlib")
        if recipe.align == "head" and face_frames.count_of(recipe.frames):
            problems.append(
                "align=head finds points on onset and apex alone, which cannot align other frames: "
                f"use align=onset with frames={recipe.frames}"
            )
        if recipe.clip and not face_frames.count_of(recipe.frames):
            problems.append(
                f"clip={recipe.clip} needs a number of frames evenly from onset to offset: add "
                "frames=16 or another number"
            )
    if problems:
        raise UserError("recipe: " + "; ".join(problems))
    return recipe


def parse(name: str) -> Recipe:
    """The recipe of a builder config's name; "" is the default, `frames-sixteen` as in `make`.

    Raises:
        UserError: The name is no recipe's.
    """
    spelt = "+".join(f"{key}-{value}" for key, value in SIXTEEN.items())
    usual = (name or Recipe().name).replace("+frames-sixteen", f"+{spelt}")
    first, *rest = usual.split("+")
    flow, _, size = first.partition("_")
    choices: dict[str, str | int] = {"flow": flow, "size": size}
    for part in rest:
        key, _, value = part.partition("-")
        choices[key] = value
    recipe = make(**choices)
    if recipe.name != usual:
        raise UserError(f"recipe {name!r}: its usual name is {recipe.name!r}; use that")
    return recipe
