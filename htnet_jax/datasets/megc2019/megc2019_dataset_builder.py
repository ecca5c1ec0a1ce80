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
from htnet_jax.datasets.megc2019 import composite, photographs, release
from htnet_jax.datasets.raw import LabelSet, RawClip
from htnet_jax.errors import UserError
from htnet_jax.io import core_count


@dataclasses.dataclass(eq=False, kw_only=True)
class Megc2019Config(tfds.core.BuilderConfig):
    """A way to read the release's files.

    Attributes:
        enforce_counts: Whether the published numbers of clips and subjects must be met.
        landmarks: "file": the release's landmark file, else its template; "dlib": found on the
            apex photographs.
        fall_back: With "dlib": whether clips without a photograph or a face get the points that
            "file" gives; if not, they stop the build.
    """

    enforce_counts: bool = True
    landmarks: str = "file"
    fall_back: bool = False

    def __post_init__(self) -> None:
        """Checks the names.

        Raises:
            ValueError: An unknown origin of the landmarks.
        """
        if self.landmarks not in ("file", "dlib"):
            raise ValueError(f"landmarks={self.landmarks!r} is unknown; use 'file' or 'dlib'")


class Megc2019(raw_builder.RawBuilder):
    """442 clips of SMIC, CASME II and SAMM: flow tensors, landmarks and three classes.

    From the release's flow pictures (`release` and the configs whose name starts so), or from
    copies of the three data sets (any recipe's name, such as `tvl1_28`).

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
        Megc2019Config(
            name="release_dlib",
            description="As release, with landmarks found by dlib on the apex photographs.",
            landmarks="dlib",
        ),
        Megc2019Config(
            name="release_dlib_partial",
            description=(
                "As release_dlib, from any part of the clips and photographs: where there is no "
                "photograph or no face in it, the landmarks are those of release_partial."
            ),
            enforce_counts=False,
            landmarks="dlib",
            fall_back=True,
        ),
        *raw_builder.CONFIGS,
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The source data sets' licences forbid passing the clips on; for the configs "
        f"'release', 'release_partial', 'release_dlib' and 'release_dlib_partial' "
        f"{release.LAYOUT}\nfor a recipe such as 'tvl1_28' {composite.LAYOUT}"
    )

    @classmethod
    def config_of(cls, name: str) -> Any:
        """As `RawBuilder.config_of`; "" is `release`."""
        plain = [c.name for c in cls.BUILDER_CONFIGS if isinstance(c, Megc2019Config)]
        if name in ("", *plain):
            return name or plain[0]
        try:
            return super().config_of(name)
        except UserError as error:
            known = ", ".join(plain)
            raise UserError(
                f"unknown config {name!r} of data set megc2019; use one of {known}, or a recipe's "
                f"name such as tvl1_28 ({error})"
            ) from error

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
            Path(dl_manager.manual_dir),
            enforce_counts=self.builder_config.enforce_counts,
            search=self._search(),
        )
        for note in found.notes:
            print(f"{self.info.full_name}: {note}", file=sys.stderr)
        self.info.metadata.update(found.audit)
        return {"train": self._generate_examples(found)}

    def _search(self) -> photographs.Search | None:
        config = self.builder_config
        if config.landmarks == "file":
            return None
        workers = self.options.workers or core_count()
        return photographs.Search(config.fall_back, self.options.model, workers)

    def _generate_examples(
        self, found: release.Release | raw_builder.Prepared
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        if isinstance(found, raw_builder.Prepared):
            yield from super()._generate_examples(found)
            return
        for index, clip in enumerate(found.clips):
            yield index, clip.example(found.flows[index], found.points[index])
