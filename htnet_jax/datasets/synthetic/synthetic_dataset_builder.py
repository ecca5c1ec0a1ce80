"""The TFDS builder of the synthetic composite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from htnet_jax.datasets.clips import CLASSES, Clip, features
from htnet_jax.datasets.synthetic.geometry import SIZE
from htnet_jax.datasets.synthetic.recipe import SOURCES, PlannedClip, plan

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
    """

    method: str = "farneback"
    size: int = 28
    strain: str = "green_lagrange_small"
    seed: int = 0
    subjects_per_source: int = 4
    clips_per_subject: int = 12


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
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        recipe = dataclasses.asdict(self.builder_config)
        kept = ("method", "size", "strain", "seed", "subjects_per_source", "clips_per_subject")
        return self.dataset_info_from_configs(
            features=features(self.builder_config.size),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                recipe={name: recipe[name] for name in kept},
                sources=[source.name for source in SOURCES],
                classes=list(CLASSES),
                frame_size=SIZE,
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
        for key, clip in enumerate(planned):
            yield key, make_example(config, clip)


def make_example(config: SyntheticConfig, planned: PlannedClip) -> dict[str, Any]:
    """Renders one clip and computes its flow: the example the data set holds.

    Args:
        config: The recipe.
        planned: Which clip.

    Returns:
        The example, see `htnet_jax.datasets.clips.features`. Its landmarks are those of the onset
        frame, in pixels of the flow; pixel centres have whole-numbered coordinates.
    """
    # Imported here because reading a data set that is built already needs neither.
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
    return clip.example(flow, landmarks.astype(np.float32))
