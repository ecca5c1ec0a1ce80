"""A data set by name -> plain NumPy arrays; it is built on first use. No TensorFlow, no network."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import example_serializer

from htnet_jax import datasets, errors, foreign
from htnet_jax.datasets.builder import Options, RawBuilder, RawConfig
from htnet_jax.datasets.frames import FrameArrays, collect
from htnet_jax.datasets.labels import CLASSES, LabelSet, three_classes
from htnet_jax.evaluation.summary import Images
from htnet_jax.io import data_folder
from htnet_jax.motion import regions

# The order in which examples store the channels of a flow.
FLOW_CHANNELS = ("u", "v", "strain")
SCALINGS = ("none", "minmax_255")
LAYOUTS = (*regions.LAYOUTS, "none")


@dataclasses.dataclass(frozen=True)
class ClipArrays:
    """A whole data set of N clips in memory, in the order it is stored.

    Attributes:
        flow: `(N, S, S, 3)` float32: u, v, optical strain.
        landmarks: `(N, 5, 2)` float32: (x, y) in pixels of the flow.
        labels: `(N,)` int32, indices into `class_names`.
        subjects: `(N,)` str: who is on the clip.
        sources: `(N,)` str: data set the clip comes from.
        clips: `(N,)` str: unique ids `source/subject/name`.
        emotions: `(N,)` str: the source's own emotion words.
        class_names: Names of the classes.
        fingerprint: SHA-256 over all of the above (hexadecimal); with frames also over these and
            the action units.
        name: Full TFDS name, `name/config/version`.
        frames: Aligned face frames, where the config stores them.
        action_units: `(N,)` str: action units, joined by `+`; None where the data set has none.
        objective: `(N,)` int32: objective class 1..7, 0 where none is given; None where the data
            set has none.
    """

    flow: np.ndarray
    landmarks: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    sources: np.ndarray
    clips: np.ndarray
    emotions: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str
    name: str
    frames: FrameArrays | None = None
    action_units: np.ndarray | None = None
    objective: np.ndarray | None = None

    def of(self, kept: np.ndarray) -> ClipArrays:
        """Some of the clips, in their order; fingerprint and name remain the whole data set's.

        Args:
            kept: `(N,)` bool.

        Raises:
            ValueError: Wrong shape or dtype.
        """
        kept = np.asarray(kept)
        if kept.shape != self.labels.shape or kept.dtype != bool:
            raise ValueError(f"kept must be {self.labels.shape} bool; got {kept.shape}")
        rows = {name: getattr(self, name)[kept] for name in _CLIP_FIELDS}
        if self.frames is not None:
            rows["frames"] = self.frames.of(kept)
        for name in ("action_units", "objective"):
            if getattr(self, name) is not None:
                rows[name] = getattr(self, name)[kept]
        return dataclasses.replace(self, **rows)


# What every data set has of each clip.
_CLIP_FIELDS = ("flow", "landmarks", "labels", "subjects", "sources", "clips", "emotions")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A built data set, as it is stored.

    Attributes:
        builder: Its builder.
        folder: Where it is.
        examples: All of its examples.
    """

    builder: tfds.core.DatasetBuilder
    folder: Path
    examples: list[dict[str, Any]]


def load(
    name: str, *, config: str = "", manual_dir: str = "", data_dir: str = "", labels: str = ""
) -> ClipArrays:
    """Loads a data set, building it first where `data_dir` does not hold it yet.

    Once built, only the built data are read: later changes in `manual_dir` go unnoticed until the
    data set's folder (which a message on standard error names) is deleted.

    Args:
        name: One of `htnet_jax.datasets.BUILDERS`.
        config: The builder config, for data sets made from raw clips a recipe's name; empty: the
            data set's default.
        manual_dir: Folder with the source files, for a data set that is made from such; only
            needed for building.
        data_dir: Where built data sets are kept; empty: TFDS's default (`$TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`).
        labels: The label set, such as `megc3`, `five`, `own` or `objective`: which classes there
            are and which clips they have, the others being left out; empty: the data set's default.

    Raises:
        UserError: Unknown name, config or label set; a manual directory that is needed and missing,
            or whose files are wrong; a `data_dir` that can't be written or holds a damaged data
            set; a label set to which no clip belongs.
    """
    return prepare(name, config=config, manual_dir=manual_dir, data_dir=data_dir, labels=labels)[0]


def prepare(
    name: str,
    *,
    config: str = "",
    manual_dir: str = "",
    data_dir: str = "",
    labels: str = "",
    options: Options | None = None,
) -> tuple[ClipArrays, Path]:
    """As `load`, with `options` as in `build`; also returns the folder of the built data set."""
    chosen = _label_set(name, labels)
    stored = build(name, config=config, manual_dir=manual_dir, data_dir=data_dir, options=options)
    return _arrays(stored, chosen), stored.folder


def build(
    name: str,
    *,
    config: str = "",
    manual_dir: str = "",
    data_dir: str = "",
    options: Options | None = None,
) -> Stored:
    """Reads a data set as it is stored, building it first where `data_dir` does not hold it yet.

    Args:
        name: As for `load`.
        config: As for `load`.
        manual_dir: As for `load`.
        data_dir: As for `load`.
        options: How to build from raw clips; no effect on other data sets.

    Raises:
        UserError: As `load`; for raw clips also the report of everything that is wrong with them.
    """
    manual_dir = str(foreign.expanded(manual_dir)) if manual_dir else ""
    builder = _builder(name, config, data_dir, options)
    folder = Path(builder.data_dir)
    shows_preview = bool(options and options.preview)
    if shows_preview and not isinstance(builder.builder_config, RawConfig):
        raise errors.UserError(f"{builder.info.full_name} has no frames to preview")
    is_built = os.path.exists(folder)  # unlike Path's, False for any path that cannot be there
    if shows_preview and is_built and not (manual_dir and os.path.isdir(manual_dir)):
        raise errors.UserError(
            f"a preview needs the source files: manual directory {manual_dir!r} does not exist"
        )
    if is_built:
        errors.say(f"{builder.info.full_name}: reading what was built in {folder}")
    else:
        _build(builder, manual_dir, folder)
    if shows_preview:
        errors.say(f"preview: {builder.write_preview(Path(manual_dir))}")
    try:
        source = builder.as_data_source(split="train")
        if len(source) > sum(path.stat().st_size for path in folder.iterdir()):
            raise ValueError(f"{len(source):,} clips are more than its bytes")
        examples = [source[index] for index in range(len(source))]
    except Exception as error:  # array_record raises bare Exception types for damaged files
        raise _damaged(folder, error) from error
    # Of some truncated files array_record returns empty records instead of an error.
    bad = [i for i, example in enumerate(examples) if any(v is None for v in example.values())]
    if bad or not examples:
        raise _damaged(folder, f"{len(bad)} of {len(examples)} clips are empty")
    return Stored(builder, folder, examples)


def built(name: str, *, config: str = "", data_dir: str = "") -> Path | None:
    """Where a data set is built, without building it.

    Args:
        name: As for `load`.
        config: As for `load`.
        data_dir: As for `load`.

    Returns:
        The folder that `load` would read; None where it would have to build first.

    Raises:
        UserError: Unknown name or config, or a damaged data set.
    """
    folder = Path(_builder(name, config, data_dir, None).data_dir)
    return folder if os.path.exists(folder) else None


def recorded(folder: Path) -> dict[str, Any]:
    """What the builder recorded of a built data set (`info.metadata`).

    Args:
        folder: Of the data set, see `built`.

    Returns:
        At least `left_out` (ids of clips that could not be built) and `incomplete` (why), lists of
        str, and `landmarks`: origin of the points -> number of clips.

    Raises:
        UserError: The record is damaged.
    """
    known: dict[str, Any] = {"left_out": [], "incomplete": [], "landmarks": {}}

    def check(content: Any) -> None:
        for key, empty in known.items():
            found = content.get(key, empty)
            values = [*found.values()] if isinstance(found, dict) else found
            of = int if isinstance(empty, dict) else str
            if not isinstance(found, type(empty)) or not all(isinstance(v, of) for v in values):
                raise ValueError(f"{key} is not as a builder records it")

    path = folder / "metadata.json"
    return known | (_read_record(path, check) if os.path.lexists(path) else {})


def network_inputs(
    arrays: ClipArrays,
    *,
    layout: str,
    channels: Sequence[str],
    scaling: str = "none",
) -> np.ndarray:
    """What a network sees of every clip.

    The HTNet release reads its (u, v, strain) images with OpenCV, which reverses the channels:
    to give a network the release's input, pass `channels=("strain", "v", "u")`.

    Args:
        arrays: The data set.
        layout: `release` or `upright`: the four-region mosaic, see `regions.mosaic`; `none`: the
            whole flow.
        channels: Names from `FLOW_CHANNELS`, in the wanted order.
        scaling: `minmax_255`: each clip and channel of the whole flow to 0..255, before the
            mosaic, as the released images already are; `none`: values as stored.

    Returns:
        `(N, S, S, len(channels))` float32.

    Raises:
        UserError: An unknown name, or clips that the layout or scaling can't be applied to.
    """
    _check_name("layout", layout, LAYOUTS)
    _check_name("scaling", scaling, SCALINGS)
    if not channels:
        raise errors.UserError(f"no channels; use some of {', '.join(FLOW_CHANNELS)}")
    for channel in channels:
        _check_name("channel", channel, FLOW_CHANNELS)
    if len({*channels}) != len(channels):
        raise errors.UserError(f"channels {', '.join(channels)}: name each once")
    rescale = _rescaling(scaling)
    flow = arrays.flow[..., [FLOW_CHANNELS.index(channel) for channel in channels]]
    problems = errors.Problems(arrays.name)
    inputs = np.empty(flow.shape, np.float32)
    for index, clip in enumerate(arrays.clips):
        try:
            one = rescale(flow[index])
            if layout != "none":
                one = regions.mosaic(one, arrays.landmarks[index], layout)
            inputs[index] = one
        except ValueError as error:
            problems.add(str(clip), str(error))
    problems.raise_if_any("Correct these clips' data and build the data set again.")
    return inputs


def images(arrays: ClipArrays, inputs: np.ndarray | None, layout: str) -> Images:
    """What a report shows of the clips: their flow, and what the network sees of it.

    Args:
        arrays: The data set, N clips.
        inputs: `(N, S, S, channels)` float32, from `network_inputs`; None: the network saw no
            mosaics.
        layout: The layout of the inputs; `none`: they are the flow, which needs no second image.

    Raises:
        ValueError: `inputs` are not those of N clips.
    """
    if inputs is not None and len(inputs) != len(arrays.clips):
        raise ValueError(f"{len(inputs)} inputs for {len(arrays.clips)} clips")
    return Images(
        clips=arrays.clips,
        flow=arrays.flow,
        mosaic=None if inputs is None or layout == "none" else inputs,
        # Faces move both ways. Where nothing is negative, the flow is scaled to 0..255.
        centred=bool((arrays.flow[..., :2] < 0).any()),
    )


def _rescaling(scaling: str) -> Callable[[np.ndarray], np.ndarray]:
    if scaling == "none":
        return lambda flow: flow
    from htnet_jax.motion import flow  # here, because it needs OpenCV

    return flow.minmax_255


def _builder(
    name: str, config: str, data_dir: str, options: Options | None
) -> tfds.core.DatasetBuilder:
    _check_name("data set", name, tuple(datasets.BUILDERS))
    cls = datasets.BUILDERS[name]
    root = data_folder(data_dir)
    arguments: dict[str, Any] = {"config": config or None, "data_dir": str(root)}
    if issubclass(cls, RawBuilder):
        arguments |= {"config": cls.config_of(config), "options": options}
    elif config and not cls.builder_configs:
        raise errors.UserError(f"data set {name} has no configs; leave config {config!r} out")
    elif config:
        _check_name(f"config of data set {name}", config, tuple(cls.builder_configs))
    chosen = arguments["config"] or cls.BUILDER_CONFIGS[0]
    chosen = cls.builder_configs[chosen] if isinstance(chosen, str) else chosen
    folder = root / name / chosen.name / str(chosen.version or cls.VERSION)
    _check_files(folder)
    try:
        with _quiet():
            builder = cls(**arguments, file_format="array_record")
    except errors.UserError:
        raise
    except Exception as error:  # TFDS raises many types for a damaged dataset_info.json
        raise errors.UserError(
            f"data set {name} in {root} cannot be opened "
            f"({_one_line(error)}); delete its folder there to build it again"
        ) from error
    if os.path.exists(folder) and not (folder / "dataset_info.json").is_file():
        raise _damaged(folder, "dataset_info.json is missing")
    return builder


def _check_files(folder: Path) -> None:
    """Whether TFDS can be let at the files of a built data set, if it is there."""
    for path in sorted(folder.iterdir()) if os.path.isdir(folder) else ():
        if path.suffix == ".json":
            _read_record(path)
        else:
            try:
                foreign.opened(path, foreign.MAX_ARRAYS).close()
            except (OSError, ValueError) as error:
                raise _damaged(folder, f"{path.name}: {foreign.reason(error)}") from error


def _read_record(path: Path, check: Callable[[Any], object] | None = None) -> Any:
    remedy = f"Delete {path.parent} to build it again."
    return foreign.read_json(path, "record of a data set", remedy, check)


@contextlib.contextmanager
def _same_bytes() -> Iterator[None]:
    """Records with their fields in one order: protobuf's own order changes with every process."""
    serializer = example_serializer.ExampleSerializer
    before = serializer.serialize_example

    def serialize(self: Any, example: Any) -> bytes:
        return self.get_tf_example(example).SerializeToString(deterministic=True)

    serializer.serialize_example = serialize
    try:
        yield
    finally:
        serializer.serialize_example = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's warning that a recipe's config is not in the builder's list."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _build(builder: tfds.core.DatasetBuilder, manual_dir: str, folder: Path) -> None:
    name = builder.info.full_name
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        how = f"{name} is built from files that you provide: {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        if isinstance(builder, RawBuilder) and (old := builder.outdated()):
            how = f"{old}\n{how}"
        if not manual_dir:
            raise errors.UserError(
                f"{name} is not built yet in {folder}, and no manual directory is given "
                f"(dataset.manual_dir).\n{how}"
            )
        try:
            is_empty = not any(Path(manual_dir).iterdir())
        except FileNotFoundError as error:
            raise errors.UserError(
                f"manual directory {manual_dir} does not exist.\n{how}"
            ) from error
        except (OSError, ValueError) as error:  # of a name that no file can have
            raise errors.UserError(
                f"manual directory {manual_dir} cannot be read ({foreign.reason(error)}); give a "
                f"folder that you may read.\n{how}"
            ) from error
        if is_empty:
            raise errors.UserError(f"manual directory {manual_dir} is empty.\n{how}")
    errors.say(f"{name}: building in {folder}")
    settings = tfds.download.DownloadConfig(manual_dir=manual_dir or None, try_download_gcs=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # TFDS writes into a folder of another name and renames it when all is done. What it
        # prints on standard output would mix with a command's result, and its bars with ours.
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()), _same_bytes():
            builder.download_and_prepare(download_config=settings, file_format="array_record")
    except (OSError, RuntimeError) as error:  # array_record reports a full disk as the latter
        raise errors.UserError(
            f"{name} cannot be built in {folder} ({_one_line(error)}); give a data folder that "
            "can be written (dataset.data_dir)"
        ) from error
    finally:
        tfds.enable_progress_bar()
    errors.say(f"{name}: built, {errors.count(builder.info.splits['train'].num_examples, 'clip')}")


def label_sets(name: str) -> Mapping[str, LabelSet]:
    """The label sets of a data set, by name; the first is the default.

    Raises:
        UserError: There is no such data set.
    """
    _check_name("data set", name, tuple(datasets.BUILDERS))
    # The synthetic data set has the classes it was rendered for.
    return getattr(datasets.BUILDERS[name], "LABELS", {"megc3": three_classes(*CLASSES)})


def _label_set(name: str, labels: str) -> LabelSet:
    """The label set of that name, "" the default, of the data set `name`.

    Raises:
        UserError: There is no such data set, or it has no such labels.
    """
    known = label_sets(name)
    labels = labels or next(iter(known))
    if labels not in known:
        raise errors.UserError(f"{name} has no labels={labels}; use one of {', '.join(known)}")
    return known[labels]


def _arrays(stored: Stored, chosen: LabelSet) -> ClipArrays:
    """The clips that have a class, in plain arrays."""
    info = stored.builder.info
    keys = {"subject", "source", "clip", "emotion", "action_units"} & {*info.features}
    try:
        found = [_label(example, chosen) for example in stored.examples]
        examples = [e for e, label in zip(stored.examples, found, strict=True) if label is not None]
        texts = {
            key: np.array([example[key].decode("utf-8") for example in examples], dtype=np.str_)
            for key in keys
        }
    except ValueError as error:
        raise _damaged(stored.folder, error) from error
    if not examples:
        raise errors.UserError(
            f"{info.full_name} has no clip of the classes {', '.join(chosen.classes)}; choose "
            "another label set (dataset.labels), or build from a sheet that has what these are "
            "formed by"
        )
    fields: dict[str, np.ndarray] = {
        "flow": np.stack([example["flow"] for example in examples]).astype(np.float32),
        "landmarks": np.stack([example["landmarks"] for example in examples]).astype(np.float32),
        "labels": np.array([label for label in found if label is not None], np.int32),
        "subjects": texts["subject"],
        "sources": texts["source"],
        "clips": texts["clip"],
        "emotions": texts["emotion"],
    }
    action_units = texts.get("action_units")
    objective = None
    if "objective" in info.features:
        objective = np.array([example["objective"] for example in examples], np.int32)
    frames = _frames(examples, stored.folder) if "frames" in info.features else None
    # Without frames the fingerprint is what it was before there were any.
    of_frames = {} if frames is None else {f"frames.{k}": v for k, v in frames.content().items()}
    if frames is not None and action_units is not None:
        of_frames["action_units"] = action_units
    return ClipArrays(
        **fields,
        class_names=chosen.classes,
        fingerprint=_fingerprint(fields | of_frames, chosen.classes),
        name=info.full_name,
        frames=frames,
        action_units=action_units,
        objective=objective,
    )


def _label(example: Mapping[str, Any], chosen: LabelSet) -> int | None:
    """The clip's label; None if it belongs to no class.

    Raises:
        ValueError: It has a number that no builder stores, or an emotion that is no text.
    """
    if "label" in example:
        label = int(example["label"])
    else:
        label = chosen.label(example["emotion"].decode("utf-8"), int(example["objective"]))
    if label is not None and not 0 <= label < len(chosen.classes):
        raise ValueError(f"a clip has the class {label}")
    return label


def _frames(examples: Sequence[dict[str, Any]], folder: Path) -> FrameArrays:
    about = recorded(folder).get("frames")
    try:
        return collect(examples, about)
    except Exception as error:  # whatever the record holds in place of numbers
        reason = f"{type(error).__name__}: {error}"
        raise _damaged(folder, f"its frames or metadata.json cannot be used, {reason}") from error


def _fingerprint(fields: dict[str, np.ndarray], class_names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for key, values in ((key, np.asarray(value)) for key, value in fields.items()):
        # As UTF-8 lists, so that NumPy's padding of strings does not matter.
        is_text = values.dtype.kind == "U"
        content = json.dumps(values.tolist()).encode() if is_text else values.tobytes()
        digest.update(f"{key} {values.shape} {len(content)}\n".encode() + content)
    digest.update(json.dumps(list(class_names)).encode())
    return digest.hexdigest()


def _damaged(folder: Path, reason: object) -> errors.UserError:
    return errors.UserError(
        f"{folder}: the built data set is damaged or incomplete ({_one_line(reason)}); delete this "
        "folder to build it again"
    )


def _check_name(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise errors.UserError(f"unknown {kind} {name!r}; use one of {', '.join(known)}")


def _one_line(reason: object) -> str:
    text = " ".join(str(reason).split())
    return text if len(text) <= 300 else text[:300] + "..."
