"""From settings and data to the folds of a run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict

from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.errors import UserError
from htnet_jax.evaluation import protocols
from htnet_jax.evaluation.plan import Plan, Unit
from htnet_jax.training import settings
from htnet_jax.training.folds import Fold


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
    kept = np.isin(arrays.sources, sorted(sources))
    fields = ("flow", "landmarks", "labels", "subjects", "sources", "clips", "emotions")
    return dataclasses.replace(arrays, **{name: getattr(arrays, name)[kept] for name in fields})


def make_plan(config: ConfigDict, arrays: ClipArrays, labels: np.ndarray) -> Plan:
    """The folds, inner folds and seeds of a run.

    Args:
        config: The settings.
        arrays: The clips.
        labels: `(N,)` int32, their classes (permuted, in the control experiment).

    Raises:
        UserError: Settings that the data do not allow.
    """
    persons = protocols.people(arrays.subjects, arrays.sources)
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


def check_fit(config: ConfigDict, arrays: ClipArrays, inputs: np.ndarray) -> None:
    """Raises a UserError if the model's size or number of classes is not that of the data."""
    size = inputs.shape[1]
    if config.model.get("image_size", size) != size:
        raise UserError(
            f"config.model.image_size={config.model.image_size}, but the flow of {arrays.name} is "
            f"{size} px; set --config.model.image_size={size}, or choose another "
            "config.dataset.config"
        )
    classes = len(arrays.class_names)
    if config.model.get("num_classes", classes) != classes:
        raise UserError(
            f"config.model.num_classes={config.model.num_classes}, but {arrays.name} has "
            f"{classes} classes; set --config.model.num_classes={classes}"
        )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
