"""TFDS builder of the MEGC 2019 composite."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from htnet_jax.datasets import raw_builder
from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.megc2019 import composite, release
from htnet_jax.datasets.raw import LabelSet, RawClip


@dataclasses.dataclass(eq=False, kw_only=True)
class Megc2019Config(tfds.core.BuilderConfig):
    """A recipe of the composite.

    Attributes:
        enforce_counts: Whether the published numbers of clips and subjects must be met.
    """

    enforce_counts: bool = True


class Megc2019(raw_builder.RawBuilder):
    """442 clips of SMIC, CASME II and SAMM: flow tensors, landmarks and three classes.

    From the release's flow pictures (`release`), or from copies of the three data sets (any
    recipe's name, such as `tvl1_28`).

    The one split, `train`, is in the order of the clip list (leave-one-subject-out protocols
    make their own folds). `info.metadata` holds the audit: counts, and where landmarks come from.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    LAYOUT_MODULE = composite
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        Megc2019Config(
            name="release",
            description="The flow pictures and clip list of the HTNet release, all 442 clips.",
        ),
        Megc2019Config(
            name="release_partial",
            description="As release, from any part of the clips: counts are not enforced.",
            enforce_counts=False,
        ),
        *raw_builder.CONFIGS,
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The source data sets' licences forbid passing the clips on; for the config 'release' "
        f"{release.LAYOUT}\nfor a recipe such as 'tvl1_28' {composite.LAYOUT}"
    )

    @classmethod
    def config_of(cls, name: str) -> Any:
        """As `RawBuilder.config_of`; "" is `release`."""
        plain = [c.name for c in cls.BUILDER_CONFIGS if isinstance(c, Megc2019Config)]
        return name or plain[0] if name in ("", *plain) else super().config_of(name)

    def label_set(self) -> LabelSet:
        """MEGC's three classes."""
        return raw_builder.label_set(self.name, composite, self.recipe)

    def survey(self, folder: Path, audit: Audit) -> list[tuple[RawClip, int]]:
        """The composite's clips in copies of the three data sets."""
        self.label_set()
        return composite.survey(folder, self.recipe.variant, audit)

    def _info(self) -> tfds.core.DatasetInfo:
        if isinstance(self.builder_config, raw_builder.RawConfig):
            return super()._info()
        return self.flow_info(
            release.SIZE, homepage="https://github.com/Facial-Micro-ExpressionGC/MEGC2019"
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        if isinstance(self.builder_config, raw_builder.RawConfig):
            return super()._split_generators(dl_manager)
        found = release.read(
            Path(dl_manager.manual_dir), enforce_counts=self.builder_config.enforce_counts
        )
        for note in found.notes:
            print(f"{self.info.full_name}: {note}", file=sys.stderr)
        self.info.metadata.update(found.audit)
        return {"train": self._release_examples(found)}

    def _release_examples(self, found: release.Release) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, clip in enumerate(found.clips):
            yield index, clip.example(found.flows[index], found.points[index])
