"""From settings and data to the folds of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from htnet_jax.config import names_in
from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.errors import UserError
from htnet_jax.evaluation import protocols
from htnet_jax.features.feeds import FRAMES, Feed
from htnet_jax.training import settings
from htnet_jax.training.folds import Fold
from htnet_jax.training.plan import Plan, Unit


def of_sources(arrays: ClipArrays, wanted: str) -> ClipArrays:
    """The clips of some sources.

    Args:
        arrays: A data set.
        wanted: Comma-separated sources; empty: all.

    Raises:
        UserError: A source that the data set does not have.
    """
    known = sorted({str(source) for source in arrays.sources})
    sources = settings.chosen("dataset.sources", wanted, known, "source")
    if not sources:
        return arrays
    return arrays.of(np.isin(arrays.sources, sorted(sources)))


def make_plan(config: ConfigDict, arrays: ClipArrays, labels: np.ndarray) -> Plan:
    """The folds, inner folds and seeds of a run.

    Args:
        config: The settings.
        arrays: The clips.
        labels: `(N,)` int32, their classes (permuted, in the control experiment).

    Raises:
        UserError: Settings that the data do not allow.
    """
    persons = protocols.unique_subjects(arrays.subjects, arrays.sources)
    splits = protocols.splits(
        config.protocol, persons, arrays.sources, count=config.protocol_folds, seed=config.seed
    )
    names = [split.name for split in splits]
    wanted = settings.chosen("folds", config.folds, names, "fold") or set(names)
    run = [split for split in splits if split.name in wanted]
    for name, lost in protocols.classes_lost(labels, run).items():
        classes = ", ".join(arrays.class_names[label] for label in lost)
        _say(f"warning: fold {name} has no training clip of class {classes}")
    tested = np.full(len(labels), -1)
    for index, split in enumerate(run):
        tested[split.test] = index
    validated = np.full((len(run), len(labels)), -1)
    if config.inner_folds:
        for index, split in enumerate(run):
            validated[index] = protocols.inner_folds(
                split,
                persons,
                arrays.sources,
                parts=config.inner_parts,
                count=config.inner_folds,
                seed=config.seed,
            )
    return Plan(
        seeds=config.seed + np.arange(config.seeds),
        epochs=np.arange(1, config.epochs + 1),
        folds=np.array([split.name for split in run]),
        tested=tested,
        validated=validated,
        refit=np.bool_(config.inner_refit),
        clips=arrays.clips,
        subjects=arrays.subjects,
        sources=arrays.sources,
        labels=labels,
        class_names=np.array(arrays.class_names),
        protocol=config.protocol,
        protocol_folds=np.array(names),
        dataset=arrays.name,
        fingerprint=arrays.fingerprint,
    )


def folds(plan: Plan, units: Iterable[Unit]) -> dict[Unit, Fold]:
    """What the trainer gets for each unit.

    The random numbers of a unit come from its seed, its fold's name and its inner fold alone.
    """
    found = {}
    for unit in units:
        name = str(plan.folds[unit.fold])
        found[unit] = Fold(
            plan.name(unit),
            train=plan.trained(unit),
            test=plan.predicted(unit),
            repetition=unit.seed,
            stream=name if unit.inner is None else f"{name}/inner{unit.inner}",
        )
    return found


def kept_checkpoints(config: ConfigDict, plan: Plan) -> set[str]:
    """Names of the folds whose final parameters are kept.

    Raises:
        UserError: `config.checkpoints` names a fold that is not run.
    """
    names = plan.folds.tolist()
    if config.checkpoints == "all":
        return set(names)
    if config.checkpoints in ("", "none"):
        return set()
    return settings.chosen("checkpoints", config.checkpoints, names, "fold")


def check_fit(config: ConfigDict, model: Any, arrays: ClipArrays, feed: Feed) -> None:
    """Raises a UserError if the model's inputs or number of classes are not those of the data."""
    classes, spare = len(arrays.class_names), config.spare_outputs
    wanted = classes + spare
    if config.model.get("num_classes", wanted) != wanted:
        why = f" and config.spare_outputs={spare}" if spare else ""
        raise UserError(
            f"config.model.num_classes={config.model.num_classes}, but {arrays.name} has "
            f"{classes} classes{why}; set --config.model.num_classes={wanted}"
        )
    if not hasattr(model, "input_shapes"):
        return  # a baseline takes a flow of any size
    shapes = model.input_shapes(len(names_in(config.dataset.channels)))
    for name, shape, found in zip(feed.names, shapes, feed.shapes, strict=True):
        if shape == found:
            continue
        size = found[0]
        if shape[2:] != found[2:]:
            raise UserError(
                f"config.inputs={config.inputs!r}: {config.model.name} takes {_size(shape)} where "
                f"{name} is given, which is {_size(found)}"
            )
        if config.model.get("image_size") != shape[0]:
            raise UserError(
                f"config.model: {config.model.name} takes {_size(shape)} as {name}, but that of "
                f"{arrays.name} is {_size(found)}; set its attributes to fit, or choose another "
                "config.dataset.config"
            )
        if name in FRAMES:
            first = f"--config.dataset.frame_size={shape[0]}, or " if size > shape[0] else ""
            raise UserError(
                f"config.model.image_size={shape[0]}, but the frames of {arrays.name} are {size} "
                f"px; set {first}--config.model.image_size={size}"
            )
        raise UserError(
            f"config.model.image_size={shape[0]}, but the flow of {arrays.name} is {size} px; set "
            f"--config.model.image_size={size}, or choose another config.dataset.config"
        )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
