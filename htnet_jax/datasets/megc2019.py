"""The composite of MEGC 2019: from the HTNet release's flow images, or from copies of its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from htnet_jax.datasets import builder
from htnet_jax.datasets import megc2019_release as release
from htnet_jax.datasets.builder import RawBuilder
from htnet_jax.datasets.casme2 import Casme2
from htnet_jax.datasets.labels import CLASSES, LabelSet, three_classes
from htnet_jax.datasets.recording import folded
from htnet_jax.datasets.samm import Samm
from htnet_jax.datasets.smic import Smic
from htnet_jax.datasets.survey import Audit, RawClip
from htnet_jax.errors import UserError, say, shown
from htnet_jax.io import core_count

# In the order of the challenge's clip list.
PARTS: Mapping[str, type[RawBuilder]] = {"casme2": Casme2, "smic": Smic, "samm": Samm}

# Clips with one of the three labels that the challenge's list leaves out, and why.
EXCLUDED = {
    "casme2/sub04/EP12_01f": "its sheet has no apex frame",
    "casme2/sub05/EP09_05f": "its apex is its onset",
    # Sadness in the sheet of 2014, which the challenge used; surprise in the sheet of 2019.
    "casme2/sub24/EP07_01": "sadness in the sheet the challenge used",
    "casme2/sub24/EP07_04f": "sadness in the sheet the challenge used",
    "casme2/sub24/EP10_03": "sadness in the sheet the challenge used",
}

PARTS_LAYOUT = """the manual directory must hold a copy of each of the three data sets, in
  casme2/  smic/  samm/   (letter case ignored), each as its own builder takes it"""


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

    version: str = "1.0.0"
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


class Megc2019(RawBuilder):
    """442 clips of SMIC, CASME II and SAMM: flow tensors, landmarks and three classes.

    From the release's flow images (`release` and the configs whose name starts so), or from
    copies of the three data sets (any recipe's name, such as `tvl1_28`).

    The one split, `train`, is in the order of the clip list (leave-one-subject-out protocols
    make their own folds). `info.metadata` holds the audit: counts, and where landmarks come from.
    Examples hold their class, because the challenge's list says it.
    """

    # Of the recipes' configs, which store action units; the others have a version of their own.
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "2.0.0": RawBuilder.RELEASE_NOTES["3.0.0"],
        "1.0.0": "First release.",
    }
    HOMEPAGE = "https://github.com/Facial-Micro-ExpressionGC/MEGC2019"
    LABELS: ClassVar[Mapping[str, LabelSet]] = {"megc3": three_classes(*CLASSES)}
    VARIANTS = ("raw", "cropped")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        Megc2019Config(
            name="release",
            description="The flow images and clip list of the HTNet release, all 442 clips.",
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
        *builder.CONFIGS,
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The source data sets' licences forbid passing the clips on; for the configs "
        f"'release', 'release_partial', 'release_dlib' and 'release_dlib_partial' "
        f"{release.LAYOUT}\nfor a recipe such as 'tvl1_28' {PARTS_LAYOUT}"
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

    @classmethod
    def clips_in(cls, folder: Path, variant: str, audit: Audit) -> list[RawClip]:
        """As `RawBuilder.clips_in`: the composite's clips, in the order of the challenge's list.

        Args:
            folder: Holds `casme2/`, `smic/` and `samm/`.
            variant: "raw" or "cropped" images of CASME II and SAMM; "" for the first. SMIC has its
                own way to choose.
            audit: Receives what is wrong, differences from the published counts included.
        """
        variant = cls.variant_of(variant)
        inside = {folded(path.name): path for path in sorted(folder.iterdir()) if path.is_dir()}
        found: list[RawClip] = []
        for source, part in PARTS.items():
            place = inside.get(source)
            if place is None:
                audit.add("folder", source, f"no folder {source}/ in {folder}; {PARTS_LAYOUT}")
                continue
            if place.is_symlink():
                # Copies of three data sets seldom lie in one folder; links below are refused.
                audit.note(source, f"the link to {place.resolve()} is followed")
                place = place.resolve()
            for clip in part.clips_in(place, variant if variant in part.VARIANTS else "", audit):
                if cls.stored_label(clip) is None:
                    continue
                if clip.id in EXCLUDED:
                    audit.note(clip.id, f"left out: {EXCLUDED[clip.id]}", clip=clip.id)
                else:
                    found.append(clip)
        counted = release.count((c.source, c.subject, cls.stored_label(c)) for c in found)
        for place, what in release.differences(counted):
            audit.add("count", place, what)
        return found

    @classmethod
    def stored_label(cls, clip: RawClip) -> int | None:
        """Its part's label, which the challenge's list repeats."""
        return PARTS[clip.source].LABELS["megc3"].label(clip.emotion, clip.objective)

    @classmethod
    def differences(cls, arrays: Any) -> list[tuple[str, str]]:
        """As `RawBuilder.differences`: clips of each source and class, and subjects."""
        rows = zip(arrays.sources, arrays.subjects, arrays.labels, strict=True)
        found = ((str(source), str(subject), int(label)) for source, subject, label in rows)
        return release.differences(release.count(found))

    def _info(self) -> tfds.core.DatasetInfo:
        if isinstance(self.builder_config, builder.RawConfig):
            return self.flow_info(self._features(label=True), self.HOMEPAGE)
        return self.flow_info(builder.features(release.SIZE), self.HOMEPAGE)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        config = self.builder_config
        if isinstance(config, builder.RawConfig):
            return super()._split_generators(dl_manager)
        search = None
        if config.landmarks == "dlib":
            workers = self.options.workers or core_count()
            search = release.Search(config.fall_back, self.options.model, workers)
        found = release.read(
            Path(dl_manager.manual_dir), enforce_counts=config.enforce_counts, search=search
        )
        for note in found.notes:
            say(shown(f"{self.info.full_name}: {note}"))
        self.info.metadata.update(found.audit)
        return {"train": self._generate_examples(found)}

    def _generate_examples(
        self, found: release.Release | builder.Prepared
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        if isinstance(found, builder.Prepared):
            yield from super()._generate_examples(found)
            return
        for index, clip in enumerate(found.clips):
            yield index, clip.example(found.flows[index], found.points[index])
