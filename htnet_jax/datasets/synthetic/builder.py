"""The TFDS builder of the synthetic composite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from htnet_jax.datasets import frames as face_frames
from htnet_jax.datasets.builder import Clip, features, frame_features
from htnet_jax.datasets.labels import CLASSES
from htnet_jax.datasets.synthetic.anatomy import SIZE
from htnet_jax.datasets.synthetic.recipe import SOURCES, PlannedClip, plan
from htnet_jax.errors import UserError
from htnet_jax.progress import progress

if TYPE_CHECKING:
    from htnet_jax.datasets.synthetic.rendering import RenderedClip

# The emotion word of the first of these muscles at work (EMFACS: disgust wrinkles the nose,
# sadness lowers the lip corners, anger the brows).
_EMOTIONS = {
    "AU9": "disgust",
    "AU15": "sadness",
    "AU4": "anger",
    "AU12": "happiness",
    "AU6": "happiness",
    "AU1+2": "surprise",
    "AU26": "surprise",
}


@dataclasses.dataclass(eq=False)
class SyntheticConfig(tfds.core.BuilderConfig):
    """A recipe for a synthetic composite.

    Two recipes need two names, as the name is the folder the data set is written to.

    Attributes:
        method: Flow method, see `htnet_jax.motion.flow.optical_flow`.
        size: Side of the flow in pixels.
        strain: Strain formula, see `htnet_jax.motion.flow.optical_strain`.
        seed: Everything random follows from it; 0 or more.
        subjects_per_source: Subjects in each of the three sources.
        clips_per_subject: Clips of each subject, at least 3: each shows every class.
        frames: Rule of the face frames to store besides, with the action units, see
            `htnet_jax.datasets.frames`.
        frame_side: Side of the face frames in pixels.
        frame_flow: Whether the flow from the onset to each face frame is stored too.
        neighbour_share: How far neighbours go, see `frames.neighbours`. There are 4 to 6 frames
            from onset to apex, so that the usual share gives none.
    """

    method: str = "farneback"
    size: int = 28
    strain: str = "green_lagrange_small"
    seed: int = 0
    subjects_per_source: int = 4
    clips_per_subject: int = 12
    frames: str = "none"
    frame_side: int = 224
    frame_flow: bool = False
    neighbour_share: float = face_frames.NEIGHBOUR_SHARE

    @property
    def stored_share(self) -> float:
        """Share of the neighbours that are stored."""
        return self.neighbour_share if self.frames == "neighbours" else 0.0


class Synthetic(tfds.core.GeneratorBasedBuilder):
    """Rendered clips of three synthetic sources, as flow tensors; one split, `train`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar[list[SyntheticConfig]] = [
        SyntheticConfig(
            name="farneback_28", description="Farneback flow at 28 x 28; 144 clips, 12 subjects."
        ),
        SyntheticConfig(
            name="tvl1_28",
            description="The same clips, TV-L1 flow at 28 x 28.",
            method="tvl1",
        ),
        SyntheticConfig(
            name="farneback_56",
            description="The same clips, Farneback flow at 56 x 56.",
            size=56,
        ),
        SyntheticConfig(
            name="tiny",
            description="Farneback flow at 28 x 28; 24 clips, 6 subjects. For tests.",
            subjects_per_source=2,
            clips_per_subject=4,
        ),
        SyntheticConfig(
            name="frames_224",
            description="Farneback flow at 28 x 28, face frames at 224 x 224 and neighbours; 288 "
            "clips, 12 subjects.",
            # Twice those of farneback_28: from pixels there is more to learn than from flow.
            clips_per_subject=24,
            frames="neighbours",
            neighbour_share=0.25,
        ),
        SyntheticConfig(
            name="tiny_frames",
            description="The clips of tiny with face frames at 56 x 56 and neighbours. For tests.",
            subjects_per_source=2,
            clips_per_subject=4,
            frames="neighbours",
            frame_side=56,
            neighbour_share=0.25,
        ),
        SyntheticConfig(
            name="clips_56",
            description="The clips of farneback_28 with 8 face frames at 56 x 56 from onset to "
            "offset, and the flow from the onset to each.",
            frames="8",
            frame_side=56,
            frame_flow=True,
        ),
        SyntheticConfig(
            name="tiny_clips",
            description="The clips of tiny with 8 face frames at 28 x 28, as clips_56. For tests.",
            subjects_per_source=2,
            clips_per_subject=4,
            frames="8",
            frame_side=28,
            frame_flow=True,
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        if not face_frames.is_rule(config.frames):
            raise UserError(
                f"synthetic: frames is {config.frames!r}; use one of {face_frames.KNOWN_RULES}"
            )
        recipe = dataclasses.asdict(config)
        kept = ("method", "size", "strain", "seed", "subjects_per_source", "clips_per_subject")
        has_frames = config.frames != "none"
        about = {"kind": config.frames, "side": config.frame_side, "share": config.stored_share}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {**features(config.size), **(_with_frames(config) if has_frames else {})}
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                recipe={name: recipe[name] for name in kept},
                sources=[source.name for source in SOURCES],
                classes=list(CLASSES),
                frame_size=SIZE,
                **({"frames": about} if has_frames else {}),
            ),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing to download
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        planned = plan(config.seed, config.subjects_per_source, config.clips_per_subject)
        for key, clip in enumerate(progress(planned, len(planned), "rendering", "clip")):
            yield key, make_example(config, clip)


def make_example(config: SyntheticConfig, planned: PlannedClip) -> dict[str, Any]:
    """Renders one clip and computes its flow: the example the data set holds.

    Args:
        config: The recipe.
        planned: Which clip.

    Returns:
        The example, see `datasets.builder.features`, and `frame_features` where frames are stored.
        Its landmarks are those of the onset frame, in pixels of the flow; pixel centres
        have whole-numbered coordinates.
    """
    # Imported here because reading a built data set needs neither.
    from htnet_jax.datasets.synthetic.rendering import render_clip
    from htnet_jax.motion.flow import flow_tensor

    rendered = render_clip(config.seed, planned)
    flow = flow_tensor(
        rendered.frames[rendered.onset],
        rendered.frames[rendered.apex],
        method=config.method,
        size=config.size,
        strain=config.strain,
    )
    landmarks = (rendered.landmarks[rendered.onset] + 0.5) * (config.size / SIZE) - 0.5
    at_work = {contraction.muscle for contraction in rendered.contractions}
    clip = Clip(
        source=planned.source.name,
        subject=planned.subject,
        name=planned.name,
        label=planned.label,
        emotion=next(word for muscle, word in _EMOTIONS.items() if muscle in at_work),
    )
    example = clip.example(flow, landmarks.astype(np.float32))
    return example if config.frames == "none" else example | _face_frames(config, rendered)


def _with_frames(config: SyntheticConfig) -> dict[str, Any]:
    """The features of examples with frames; names and meanings as in `builder.sheet_features`."""
    return {
        "action_units": tfds.features.Text(),
        "onset": np.int32,
        "apex": np.int32,
        "offset": np.int32,
        **frame_features(config.frame_side, config.frames, has_flow=config.frame_flow),
    }


def _face_frames(config: SyntheticConfig, rendered: RenderedClip) -> dict[str, Any]:
    from htnet_jax.motion import alignment

    span = rendered.onset, rendered.apex, rendered.offset
    transform = alignment.face_transform(rendered.landmarks[rendered.onset], config.frame_side)
    groups = (
        {n: alignment.warp(rendered.frames[n], transform, config.frame_side) for n in numbers}
        for numbers in face_frames.pick(
            config.frames, span, range(len(rendered.frames)), share=config.stored_share
        )
    )
    times = {} if face_frames.count_of(config.frames) else None
    flow = config.method if config.frame_flow else ""
    # "AU1+2" is two units that move together.
    units = (contraction.muscle.removeprefix("AU") for contraction in rendered.contractions)
    return {
        "action_units": "+".join(units),
        **dict(zip(("onset", "apex", "offset"), span, strict=True)),
        **face_frames.clip_frames(*span[:2], *groups, times=times, flow=flow).example(),
    }
