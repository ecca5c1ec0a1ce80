"""TFDS builder of the MEGC 2019 composite."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from htnet_jax.datasets import clips
from htnet_jax.datasets.megc2019 import release


@dataclasses.dataclass(eq=False, kw_only=True)
class Megc2019Config(tfds.core.BuilderConfig):
    """A recipe of the composite.

    Attributes:
        enforce_counts: Whether the published numbers of clips and subjects must be met.
    """

    enforce_counts: bool = True


class Megc2019(clips.FlowBuilder):
    """442 clips of SMIC, CASME II and SAMM: flow tensors, landmarks and three classes.

    The one split, `train`, is in the order of the clip list (leave-one-subject-out protocols
    make their own folds). `info.metadata` holds the audit: counts, and where landmarks come from.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar[list[Megc2019Config]] = [
        Megc2019Config(
            name="release",
            description="The flow pictures and clip list of the HTNet release, all 442 clips.",
        ),
        Megc2019Config(
            name="release_partial",
            description="As release, from any part of the clips: counts are not enforced.",
            enforce_counts=False,
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The source data sets' licences forbid passing the clips on; " + release.LAYOUT
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.flow_info(
            release.SIZE, homepage="https://github.com/Facial-Micro-ExpressionGC/MEGC2019"
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
        found = release.read(
            Path(dl_manager.manual_dir), enforce_counts=self.builder_config.enforce_counts
        )
        for note in found.notes:
            print(f"{self.info.full_name}: {note}", file=sys.stderr)
        self.info.metadata.update(found.audit)
        return {"train": self._generate_examples(found)}

    def _generate_examples(self, found: release.Release) -> Iterator[tuple[int, dict[str, object]]]:
        for index, clip in enumerate(found.clips):
            yield index, clip.example(found.flows[index], found.points[index])
