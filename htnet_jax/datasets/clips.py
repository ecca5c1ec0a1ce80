"""What all builders share: the labels, the features of an example, and a clip's identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from htnet_jax.datasets.frames import example_keys

# The three classes of MEGC 2019 (See et al., FG 2019), in the order of its label file.
CLASSES = ("negative", "positive", "surprise")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One annotated micro-expression.

    Attributes:
        source: Data set the clip comes from, lower case (`casme2`, `smic`, `samm`, ...).
        subject: Subject as the source names it (`sub01`, `s01`, `006`); unique over sources.
        name: The clip's file name within its subject (`EP02_01f`).
        label: 0 negative, 1 positive, 2 surprise.
        emotion: The source's own emotion word, or the class name where none is given.
    """

    source: str
    subject: str
    name: str
    label: int
    emotion: str

    @property
    def id(self) -> str:
        """`source/subject/name`: stable, and unique over all sources."""
        return f"{self.source}/{self.subject}/{self.name}"

    def example(self, flow: np.ndarray, landmarks: np.ndarray) -> dict[str, object]:
        """The TFDS example of this clip.

        Args:
            flow: `(S, S, 3)` float32: u, v, optical strain.
            landmarks: `(5, 2)` float32 (x, y) in pixels of the flow: left eye, right eye, nose,
                left and right mouth corner; left and right are the image's.
        """
        return {
            "flow": flow.astype(np.float32),
            "landmarks": landmarks.astype(np.float32),
            "label": self.label,
            "emotion": self.emotion,
            "subject": self.subject,
            "source": self.source,
            "clip": self.id,
        }


def features(size: int, classes: Sequence[str] = CLASSES) -> tfds.features.FeaturesDict:
    """The features of every flow data set: `size` is the side of the flow in pixels."""
    return tfds.features.FeaturesDict(
        {
            "flow": tfds.features.Tensor(shape=(size, size, 3), dtype=np.float32),
            "landmarks": tfds.features.Tensor(shape=(5, 2), dtype=np.float32),
            "label": tfds.features.ClassLabel(names=list(classes)),
            "emotion": tfds.features.Text(),
            "subject": tfds.features.Text(),
            "source": tfds.features.Text(),
            "clip": tfds.features.Text(),
        }
    )


def frame_features(side: int, rule: str) -> dict[str, tfds.features.FeatureConnector]:
    """What examples with face frames have besides, see `htnet_jax.datasets.frames.ClipFrames`.

    Args:
        side: Side of the frames in pixels.
        rule: Which frames are stored, see `htnet_jax.datasets.frames`.
    """
    found = {
        # Plain integers would be stored with 64 bits each.
        "frames": tfds.features.Tensor(
            shape=(None, side, side, 3), dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB
        ),
        "frame_numbers": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        "onset_rows": tfds.features.Tensor(shape=(3,), dtype=np.int32),
        "apex_rows": tfds.features.Tensor(shape=(3,), dtype=np.int32),
        "frame_times": tfds.features.Tensor(shape=(None,), dtype=np.float64),
    }
    return {key: found[key] for key in example_keys(rule)}


def raw_features(size: int, classes: Sequence[str]) -> tfds.features.FeaturesDict:
    """`features`, and what the annotation sheet says of a clip.

    `action_units` are joined by `+`; `objective` is the class 1..7 by action units, 0 where none is
    given; frame numbers are those in the file names; `apex_rule` says where the apex comes from
    (`sheet`, `midpoint`, `estimate`) and `landmarks_from` where the points do.
    """
    return tfds.features.FeaturesDict(
        {
            **features(size, classes),
            "action_units": tfds.features.Text(),
            "objective": np.int32,
            "onset": np.int32,
            "apex": np.int32,
            "offset": np.int32,
            "apex_rule": tfds.features.Text(),
            "landmarks_from": tfds.features.Text(),
        }
    )


class FlowBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders: array_record files, which are read without TensorFlow."""

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any) -> None:
        """As `tfds.core.GeneratorBasedBuilder`, with another default file format."""
        super().__init__(file_format=file_format, **kwargs)

    def flow_info(
        self,
        size: int,
        homepage: str | None = None,
        feature_dict: tfds.features.FeaturesDict | None = None,
    ) -> tfds.core.DatasetInfo:
        """The builder's `DatasetInfo`: `features(size)`, examples kept in the order they are made.

        Keys of `_generate_examples` must be integers. What is put into `info.metadata` before the
        examples are written is stored with the data set.
        """
        return self.dataset_info_from_configs(
            features=feature_dict or features(size),
            homepage=homepage,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )
