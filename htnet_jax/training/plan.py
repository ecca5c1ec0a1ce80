"""Which models a run trains, on which clips each is asked, and their results as they arrive."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from htnet_jax import io
from htnet_jax.config import chosen_in
from htnet_jax.errors import UserError, count, say, shown
from htnet_jax.evaluation import protocols
from htnet_jax.evaluation.predictions import Described, InnerPredictions, Predictions

if TYPE_CHECKING:
    from htnet_jax.datasets.loading import ClipArrays

FORMAT_VERSION = 2

# A longer name of a fold is cut in the name of its file.
_LONGEST = 100

_FIELDS: dict[str, type] = {
    "seeds": np.int64,
    "epochs": np.int32,
    "folds": np.str_,
    "tested": np.int32,
    "validated": np.int32,
    "refit": np.bool_,
    "clips": np.str_,
    "subjects": np.str_,
    "sources": np.str_,
    "labels": np.int32,
    "class_names": np.str_,
    "protocol": np.str_,
    "protocol_folds": np.str_,
    "dataset": np.str_,
    "fingerprint": np.str_,
    "run": np.str_,
}
_SETS_FIELDS: dict[str, type] = {
    "names": np.str_,
    "sentences": np.str_,
    "rows": np.int32,
    "positives": np.float32,
}
# What they are called in the file of a plan.
_SETS_PREFIX = "sets_"


@dataclasses.dataclass(frozen=True)
class Fold:
    """One train/test split.

    Attributes:
        name: Unique; for a fold of leave-one-subject-out, the subject.
        train: `(N,)` bool, the clips trained on.
        test: `(N,)` bool, the clips predicted.
        repetition: Added to the trainer's seed: the same fold again with other random numbers.
        stream: Seeds the fold's random numbers, together with the seed; empty: `name`.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    repetition: int = 0
    stream: str = ""


class Unit(NamedTuple):
    """One model to train.

    Attributes:
        fold: Index of its fold.
        seed: Index of its seed.
        inner: The inner fold; None for the fold's own model, trained on all its training clips.
    """

    fold: int
    seed: int
    inner: int | None


class Result(NamedTuple):
    """What one model gave.

    Attributes:
        logits: `(E, m, C)` float32, of the unit's `predicted` clips in the order of the data set.
        train_loss: `(E,)` float32, mean loss over each epoch's training clips.
        similarities: `(m, D)` float32, of the same clips and each of the plan's `sets`, by the
            final model of a fold; None where nothing is described, and for inner folds.
    """

    logits: np.ndarray
    train_loss: np.ndarray
    similarities: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Sets:
    """The sets of action units by which test clips are described, D of them, of N clips in F folds.

    Attributes:
        names: `(D,)` str, as `Described.sets`.
        sentences: `(D,)` str.
        rows: `(N,)` int32, the set of each clip; -1: its units are not known.
        positives: `(F,)` float32, as `Described.positives`.
    """

    names: np.ndarray
    sentences: np.ndarray
    rows: np.ndarray
    positives: np.ndarray

    def __post_init__(self) -> None:
        _typed(self, _SETS_FIELDS)

    def among(self, clips: np.ndarray) -> np.ndarray:
        """`(D,)` bool: the sets that occur in some clips, `(N,)` bool."""
        return np.isin(np.arange(len(self.names)), self.rows[clips])


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The folds of a run over N clips.

    Attributes:
        seeds: `(S,)` int64.
        epochs: `(E,)` int32, the epochs to record, 1-based.
        folds: `(F,)` str, the folds to run.
        tested: `(N,)` int32, the fold of `folds` that leaves a clip out; -1: none of them does.
        validated: `(F, N)` int32, the inner fold in which a clip validates; -1: none.
        refit: bool scalar, see `InnerPredictions`.
        clips: `(N,)` str.
        subjects: `(N,)` str.
        sources: `(N,)` str.
        labels: `(N,)` int32.
        class_names: `(C,)` str.
        protocol: str scalar.
        protocol_folds: `(P,)` str, all folds of the protocol.
        dataset: str scalar.
        fingerprint: str scalar.
        run: str scalar, a digest of the settings and the data: to whom a result belongs.
        sets: By what the test clips are described; None: they are not.
    """

    seeds: np.ndarray
    epochs: np.ndarray
    folds: np.ndarray
    tested: np.ndarray
    validated: np.ndarray
    refit: np.ndarray
    clips: np.ndarray
    subjects: np.ndarray
    sources: np.ndarray
    labels: np.ndarray
    class_names: np.ndarray
    protocol: np.ndarray
    protocol_folds: np.ndarray
    dataset: np.ndarray
    fingerprint: np.ndarray
    run: np.ndarray = dataclasses.field(default_factory=lambda: np.array(""))
    sets: Sets | None = None

    def __post_init__(self) -> None:
        _typed(self, _FIELDS)

    @property
    def inner_folds(self) -> int:
        """Inner folds of each fold; 0: the run has none."""
        return int(self.validated.max()) + 1

    @property
    def unit_count(self) -> int:
        """How many models are trained."""
        return len(self.folds) * len(self.seeds) * (1 + self.inner_folds)

    @property
    def result_bytes(self) -> int:
        """Size of the predictions of the whole run."""
        own = int((self.tested >= 0).sum())
        inner = int((self.validated >= 0).sum()) + self.inner_folds * own
        described = own * len(self.sets.names) if self.sets else 0
        logits = len(self.epochs) * len(self.class_names) * (own + inner)
        return 4 * len(self.seeds) * (logits + described)

    def units(self, *, inner: bool) -> Iterator[Unit]:
        """The models to train: those of the folds themselves, or those of their inner folds."""
        for fold in range(len(self.folds)):
            for part in range(self.inner_folds) if inner else (None,):
                yield from (Unit(fold, seed, part) for seed in range(len(self.seeds)))

    def name(self, unit: Unit) -> str:
        """A unique name to show: the fold, and what tells its models apart."""
        inner = "" if unit.inner is None else f", inner fold {unit.inner + 1}"
        seed = f", seed {self.seeds[unit.seed]}" if len(self.seeds) > 1 else ""
        return f"{self.folds[unit.fold]}{inner}{seed}"

    def trained(self, unit: Unit) -> np.ndarray:
        """`(N,)` bool: the clips that a unit trains on."""
        train = self.tested != unit.fold
        return train if unit.inner is None else train & (self.validated[unit.fold] != unit.inner)

    def predicted(self, unit: Unit) -> np.ndarray:
        """`(N,)` bool: the clips that a unit predicts: its fold's, and those it validates on."""
        test = self.tested == unit.fold
        return test if unit.inner is None else test | (self.validated[unit.fold] == unit.inner)

    def same(self, other: Plan) -> bool:
        """Whether two plans are alike in everything."""
        ours, theirs = self._arrays(), other._arrays()
        return {*ours} == {*theirs} and all(np.array_equal(ours[k], theirs[k]) for k in ours)

    def _arrays(self) -> dict[str, np.ndarray]:
        """What its file holds."""
        found = {name: getattr(self, name) for name in _FIELDS}
        if self.sets is not None:
            found |= {_SETS_PREFIX + name: getattr(self.sets, name) for name in _SETS_FIELDS}
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as `.npz`; errors as `io.save_arrays`."""
        io.save_arrays(path, self._arrays(), FORMAT_VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads what `save` wrote; errors as `io.load_arrays`."""
        found = io.load_arrays(path, FORMAT_VERSION, "plan of a run")
        own = {_SETS_PREFIX + name for name in _SETS_FIELDS}
        has_sets = bool(own & {*found})
        io.check_names(Path(path), found, {*_FIELDS} | (own if has_sets else set()))
        sets = {name: found.pop(_SETS_PREFIX + name) for name in _SETS_FIELDS if has_sets}
        return cls(**found, sets=Sets(**sets) if has_sets else None)


def _typed(owner: object, fields: Mapping[str, type]) -> None:
    """Gives every field its type; errors as `io.typed`."""
    for name, dtype in fields.items():
        # The classes are frozen for their users; here they are still being made.
        object.__setattr__(owner, name, io.typed(name, getattr(owner, name), dtype))


def _as_release(plan: Plan) -> np.ndarray:
    """Class by class, in a class by subject and clip name: the folders of HTNet's release."""
    names = np.array([clip.rpartition("/")[2] for clip in plan.clips])
    return np.lexsort((names, plan.subjects, plan.labels))


ORDERS: dict[str, Callable[[Plan], np.ndarray]] = {
    "release": _as_release,
    "file": lambda plan: np.arange(len(plan.clips)),
}
"""`config.order` -> `(N,)` int: the order in which clips are trained on if it is not drawn."""


class Store:
    """The results of the units that are finished: a folder with one small file for each.

    A file appears complete or not at all, so a run can stop at any moment and resume later. Each
    says of which model and run it is, with a digest of its content: what was swapped, changed or
    copied here from another run is not taken.
    """

    FOLDER = "unfinished"
    """How the folder is called in that of the run."""
    PLAN = "plan.npz"

    def __init__(self, folder: Path, plan: Plan) -> None:
        """`folder`: made if missing, and the plan written there.

        Raises:
            UserError: The folder cannot be written, leads elsewhere, or holds what cannot be a
                result.
        """
        self.folder, self.plan = folder, plan
        io.inner_folder(folder.parent, folder.name)
        if os.path.ismount(folder):
            raise UserError(
                f"{folder}: is a disk of its own, but a run's folder must be on one disk. Unmount "
                "it, and choose a --workdir on that disk instead."
            )
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or (path.suffix == ".npz" and not path.is_file()):
                what = "a link" if path.is_symlink() else "not a file"
                raise UserError(f"{path}: is {what}, and no result of this run. Remove it.")
        if not self._has_plan():
            plan.save(folder / self.PLAN)

    def _has_plan(self) -> bool:
        try:
            return self.plan.same(Plan.load(self.folder / self.PLAN))
        except UserError:
            return False

    @classmethod
    def open(cls, folder: Path) -> Store:
        """The store of an unfinished run.

        Raises:
            UserError: There is none, or its plan is damaged.
        """
        return cls(folder, Plan.load(folder / cls.PLAN))

    def write(self, unit: Unit, result: Result) -> None:
        """Keeps a unit's result; errors as `io.save_arrays`."""
        arrays = {name: array for name, array in result._asdict().items() if array is not None}
        content = {**arrays, **self._owner(unit)}
        content["digest"] = _digest(content)
        io.save_arrays(self._path(unit), content, FORMAT_VERSION, compress=False)

    def read(self, unit: Unit) -> Result:
        """A unit's result.

        Raises:
            UserError: The file is missing or damaged, or of another model or run.
        """
        path, owner = self._path(unit), self._owner(unit)
        epochs, classes = len(self.plan.epochs), len(self.plan.class_names)
        predicted = int(self.plan.predicted(unit).sum())
        shapes = {"logits": (epochs, predicted, classes), "train_loss": (epochs,)}
        if self.plan.sets is not None and unit.inner is None:
            shapes["similarities"] = (predicted, len(self.plan.sets.names))
        # As large as that of any model of this run, and what is written with it.
        most = 4 * epochs * (len(self.plan.clips) * classes + 1) + 2**16
        most += 4 * len(self.plan.clips) * shapes.get("similarities", (0, 0))[1]
        found = io.load_arrays(path, FORMAT_VERSION, "result of a fold", most=most)
        io.check_names(path, found, {*shapes, *owner, "digest"})
        if str(found.pop("digest")) != _digest(found):
            raise UserError(f"{path}: damaged, it has changed since it was written")
        theirs = {name: found.pop(name) for name in owner}
        if not np.array_equal(theirs.pop("run"), owner.pop("run")):
            raise UserError(f"{path}: of another run, with other settings or data")
        if not all(np.array_equal(theirs[name], owner[name]) for name in owner):
            words = ", ".join(f"{name} {shown(value)}" for name, value in theirs.items())
            raise UserError(f"{path}: of another model of this run ({words})")
        for name, shape in shapes.items():
            if found[name].shape != shape:
                raise UserError(
                    f"{path}: holds {name} of shape {found[name].shape}, the run expects {shape}"
                )
        return Result(**found)

    def finished(self) -> set[Unit]:
        """The units that have a sound result of this run."""
        return self.survey()[0]

    def survey(self) -> tuple[set[Unit], list[str]]:
        """Reads all results.

        Returns:
            The units that have a sound one of this run, and a line on each other file (on all of an
            earlier version of the program together).
        """
        units = [*self.plan.units(inner=False), *self.plan.units(inner=True)]
        at = {self._path(unit): unit for unit in units}
        sound, problems, earlier = set(), [], 0
        for path in sorted(self.folder.glob("fold-*.npz")):
            try:
                if path not in at:
                    raise UserError(f"{path}: of no model of this run")
                self.read(at[path])
                sound.add(at[path])
            except io.OtherVersion:
                earlier += 1
            except UserError as error:
                problems.append(str(error))
        if earlier:
            files = count(earlier, "result")
            problems.append(f"{self.folder}: {files} of another version of htnet_jax")
        return sound, problems

    def finished_folds(self) -> list[int]:
        """Indices of the folds all of whose units are finished."""
        done = self.finished()
        parts = [None, *range(self.plan.inner_folds)]
        seeds = range(len(self.plan.seeds))
        return [
            fold
            for fold in range(len(self.plan.folds))
            if all(Unit(fold, seed, part) in done for seed in seeds for part in parts)
        ]

    def assemble(self) -> Predictions:
        """The predictions of the finished folds.

        Raises:
            UserError: No fold is finished, a file is damaged, or values are not finite.
        """
        folds = self.finished_folds()
        if not folds:
            inner = ", with its inner folds," if self.plan.inner_folds else ""
            raise UserError(
                f"{self.folder}: no fold of this run is finished{inner} yet; give the training "
                "command again to resume it"
            )
        return joined(self.plan, self.read, folds)

    def _owner(self, unit: Unit) -> dict[str, Any]:
        """Of which model and run a result is: what is written with it, besides the arrays."""
        return {
            "fold": self.plan.folds[unit.fold],
            "seed": self.plan.seeds[unit.seed],
            "inner": np.int32(-1 if unit.inner is None else unit.inner),
            "run": self.plan.run,
        }

    def _path(self, unit: Unit) -> Path:
        fold = urllib.parse.quote(str(self.plan.folds[unit.fold]), safe=" ")
        if len(fold) > _LONGEST:
            fold = f"{fold[:_LONGEST]}-{hashlib.sha256(fold.encode()).hexdigest()[:16]}"
        part = "" if unit.inner is None else f"-inner{unit.inner}"
        return self.folder / f"fold-{fold}-seed{self.plan.seeds[unit.seed]}{part}.npz"


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of named arrays: their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(content):
        array = np.ascontiguousarray(content[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def joined(plan: Plan, read: Callable[[Unit], Result], folds: list[int]) -> Predictions:
    """Joins the results of some folds.

    Args:
        plan: The run.
        read: Gives the result of a unit.
        folds: Indices of the folds to join, ascending.

    Returns:
        Their predictions; clips in the order of the folds, then of the data set.
    """
    seeds, epochs, classes = range(len(plan.seeds)), len(plan.epochs), len(plan.class_names)
    tests = [np.flatnonzero(plan.tested == fold) for fold in folds]
    rows = np.concatenate(tests)
    own = [[read(Unit(fold, seed, None)) for fold in folds] for seed in seeds]
    inner = None
    if plan.inner_folds:
        parts = range(plan.inner_folds)
        validates = [[np.flatnonzero(plan.validated[fold] == p) for p in parts] for fold in folds]
        clips = np.concatenate([part for fold in validates for part in fold])
        # Filled in place: at 800 epochs these arrays are the bulk of the file.
        logits = np.empty((len(seeds), epochs, len(clips), classes), np.float32)
        test_logits = np.empty((len(seeds), len(parts), epochs, len(rows), classes), np.float32)
        for seed in seeds:
            start = test_start = 0
            for fold, test, groups in zip(folds, tests, validates, strict=True):
                for part, group in enumerate(groups):
                    unit = Unit(fold, seed, part)
                    result = read(unit).logits
                    is_test = plan.tested[plan.predicted(unit)] == fold
                    logits[seed, :, start : start + len(group)] = result[:, ~is_test]
                    test_logits[seed, part, :, test_start : test_start + len(test)] = result[
                        :, is_test
                    ]
                    start += len(group)
                test_start += len(test)
        sizes = [len(group) for groups in validates for group in groups]
        inner = InnerPredictions(
            logits=logits,
            test_logits=test_logits,
            fold=np.repeat(np.repeat(np.arange(len(folds)), len(parts)), sizes).astype(np.int32),
            part=np.repeat(np.tile(np.arange(len(parts)), len(folds)), sizes).astype(np.int32),
            clips=plan.clips[clips],
            subjects=plan.subjects[clips],
            sources=plan.sources[clips],
            labels=plan.labels[clips],
            refit=plan.refit,
        )
    described = None
    if plan.sets is not None:
        described = Described(
            similarities=np.stack([np.concatenate([r.similarities for r in one]) for one in own]),
            sets=plan.sets.names,
            sentences=plan.sets.sentences,
            truth=plan.sets.rows[rows],
            trained=np.stack([plan.sets.among(plan.tested != fold) for fold in folds]),
            positives=plan.sets.positives[folds],
        )
    return Predictions(
        logits=np.stack([np.concatenate([r.logits for r in one], axis=1) for one in own]),
        seeds=plan.seeds,
        epochs=plan.epochs,
        fold=np.repeat(np.arange(len(folds), dtype=np.int32), [len(test) for test in tests]),
        folds=plan.folds[folds],
        clips=plan.clips[rows],
        subjects=plan.subjects[rows],
        sources=plan.sources[rows],
        labels=plan.labels[rows],
        class_names=plan.class_names,
        train_loss=np.stack([np.stack([r.train_loss for r in one]) for one in own]),
        protocol=plan.protocol,
        protocol_folds=plan.protocol_folds,
        dataset=plan.dataset,
        fingerprint=plan.fingerprint,
        inner=inner,
        described=described,
    )


def of_sources(arrays: ClipArrays, wanted: str) -> ClipArrays:
    """The clips of some sources.

    Args:
        arrays: A data set.
        wanted: Comma-separated sources; empty: all.

    Raises:
        UserError: A source that the data set does not have.
    """
    known = sorted({str(source) for source in arrays.sources})
    sources = chosen_in("dataset.sources", wanted, known, "source")
    if not sources:
        return arrays
    return arrays.of(np.isin(arrays.sources, sorted(sources)))


def make_plan(
    config: ConfigDict,
    arrays: ClipArrays,
    labels: np.ndarray,
    settings: str = "",
    warn: Callable[[str], object] = say,
) -> Plan:
    """The folds, inner folds and seeds of a run.

    Args:
        config: The settings.
        arrays: The clips.
        labels: `(N,)` int32, their classes (permuted, in the control experiment).
        settings: Digest of the settings.
        warn: Gets a line on each fold that trains without a class.

    Raises:
        UserError: Settings that the data do not allow.
    """
    subjects = protocols.unique_subjects(arrays.subjects, arrays.sources)
    splits = protocols.splits(
        config.protocol, subjects, arrays.sources, count=config.protocol_folds, seed=config.seed
    )
    names = [split.name for split in splits]
    wanted = chosen_in("folds", config.folds, names, "fold") or set(names)
    run = [split for split in splits if split.name in wanted]
    for name, lost in protocols.classes_lost(labels, run).items():
        classes = ", ".join(arrays.class_names[label] for label in lost)
        warn(f"warning: fold {shown(name)} has no training clip of class {classes}")
    tested = np.full(len(labels), -1)
    for index, split in enumerate(run):
        tested[split.test] = index
    validated = np.full((len(run), len(labels)), -1)
    if config.inner_folds:
        for index, split in enumerate(run):
            validated[index] = protocols.inner_folds(
                split,
                subjects,
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
        run=hashlib.sha256(f"{settings}\n{arrays.fingerprint}".encode()).hexdigest(),
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
    return chosen_in("checkpoints", config.checkpoints, names, "fold")
