"""The predictions file: the result of every run, from which every number and plot is derived."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from htnet_jax import foreign, io
from htnet_jax.errors import Problems, UserError, shown
from htnet_jax.evaluation.protocols import unique_subjects

FILE_NAME = "predictions.npz"
"""Its name in the folder of a finished run."""

FORMAT_VERSION = 2
"""Written into each file; raised when an older reader would misread a newer file."""

# Every field: its axes and its type.
_FIELDS: dict[str, tuple[str, type]] = {
    "logits": ("SEMC", np.float32),
    "seeds": ("S", np.int64),
    "epochs": ("E", np.int32),
    "fold": ("M", np.int32),
    "folds": ("F", np.str_),
    "clips": ("M", np.str_),
    "subjects": ("M", np.str_),
    "sources": ("M", np.str_),
    "labels": ("M", np.int32),
    "class_names": ("C", np.str_),
    "train_loss": ("SFE", np.float32),
    "protocol": ("", np.str_),
    "protocol_folds": ("P", np.str_),
    "dataset": ("", np.str_),
    "fingerprint": ("", np.str_),
}
_INNER_FIELDS: dict[str, tuple[str, type]] = {
    "logits": ("SEVC", np.float32),
    "test_logits": ("SKEMC", np.float32),
    "fold": ("V", np.int32),
    "part": ("V", np.int32),
    "clips": ("V", np.str_),
    "subjects": ("V", np.str_),
    "sources": ("V", np.str_),
    "labels": ("V", np.int32),
    "refit": ("", np.bool_),
}
_DESCRIBED_FIELDS: dict[str, tuple[str, type]] = {
    "similarities": ("SMD", np.float32),
    "sets": ("D", np.str_),
    "sentences": ("D", np.str_),
    "truth": ("M", np.int32),
    "trained": ("FD", np.bool_),
    "positives": ("F", np.float32),
}
_AXES = {
    "S": "seeds",
    "E": "recorded epochs",
    "M": "clips",
    "C": "classes",
    "F": "folds",
    "P": "folds of the protocol",
    "V": "validation clips",
    "K": "inner folds",
    "D": "sets of units",
}
# The field that says how long an axis is.
_SIZES = {
    **{"S": "seeds", "E": "epochs", "M": "labels", "C": "class_names", "F": "folds"},
    **{"P": "protocol_folds", "V": "inner_labels", "D": "described_sets"},
}
# A set as it is written: ascending numbers of FACS, or 0 for none.
_SET = re.compile(r"0|[1-9][0-9]?(\+[1-9][0-9]?)*")
_DIVERGED = (
    "The training diverged: lower the learning rate or look at the training clips of this fold."
)


@dataclasses.dataclass(frozen=True, eq=False)
class InnerPredictions:
    """What the models of the inner folds predicted, for their validation clips and the test clips.

    V validation rows: one for every clip that validates in an inner fold of an (outer) fold.
    K inner folds of each fold.

    Attributes:
        logits: `(S, E, V, C)` float32, of each validation clip by its inner fold's model.
        test_logits: `(S, K, E, M, C)` float32, of each test clip by each inner model of its fold.
        fold: `(V,)` int32, index into the run's folds.
        part: `(V,)` int32, the inner fold, 0 to K - 1.
        clips: `(V,)` str; a clip occurs at most once in an inner fold.
        subjects: `(V,)` str.
        sources: `(V,)` str.
        labels: `(V,)` int32.
        refit: bool scalar: the selection `inner` takes the model trained on all training subjects,
            at the chosen epoch; else the inner models' own predictions.
    """

    logits: np.ndarray
    test_logits: np.ndarray
    fold: np.ndarray
    part: np.ndarray
    clips: np.ndarray
    subjects: np.ndarray
    sources: np.ndarray
    labels: np.ndarray
    refit: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Described:
    """How near the final model of its own fold puts each test clip to sentences of action units.

    D distinct sets of units: those of all clips of the data set.

    Attributes:
        similarities: `(S, M, D)` float32, of each clip and the sentence of each set; the higher the
            nearer.
        sets: `(D,)` str, distinct: the units joined by `+`, such as `4+7`; `0` for none.
        sentences: `(D,)` str, the sentence of each set.
        truth: `(M,)` int32, the set of each clip; -1: its units are not known.
        trained: `(F, D)` bool, the sets that occur in a fold's training clips: among these the
            nearest is looked for.
        positives: `(F,)` float32, clips of the same set that a training clip of the fold finds in
            a batch, itself among them: the mean of what is expected.
    """

    similarities: np.ndarray
    sets: np.ndarray
    sentences: np.ndarray
    truth: np.ndarray
    trained: np.ndarray
    positives: np.ndarray


# What a run may have besides: attribute of `Predictions` and prefix in the file.
_BLOCKS: dict[str, tuple[type, dict[str, tuple[str, type]]]] = {
    "inner": (InnerPredictions, _INNER_FIELDS),
    "described": (Described, _DESCRIBED_FIELDS),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Test logits of every seed and fold at every recorded epoch, with what is needed to score.

    S seeds, E recorded epochs, M test clips, C classes, F folds, P folds of the protocol. Sequences
    are accepted and stored as arrays of the types below; a value that does not fit (a float label,
    say) is an error.

    Attributes:
        logits: `(S, E, M, C)` float32, the logits of each clip by the model of its own fold.
        seeds: `(S,)` int64, the seed of each repetition.
        epochs: `(E,)` int32, 1-based epoch numbers, increasing; the last is the final epoch.
        fold: `(M,)` int32, index into `folds`: the fold that left this clip out.
        folds: `(F,)` str, names of the folds there are, each with at least one clip.
        clips: `(M,)` str, unique clip ids.
        subjects: `(M,)` str, the subject of each clip; each is tested in one fold.
        sources: `(M,)` str, the data set each clip comes from.
        labels: `(M,)` int32, the true class of each clip.
        class_names: `(C,)` str.
        train_loss: `(S, F, E)` float32, mean training loss in each recorded epoch.
        protocol: str scalar, a key of `protocols.PROTOCOLS`.
        protocol_folds: `(P,)` str, all folds of the protocol, `folds` among them.
        dataset: str scalar, the data set's full name, `name/config/version`.
        fingerprint: str scalar, the data's SHA-256.
        inner: The inner folds' predictions, or None for a run without inner folds.
        described: Similarities to sentences, or None for a network that learns none.

    Raises:
        UserError: shapes, types or values that contradict each other, or logits or losses that are
            not finite (the message names the seed, the fold and the epoch).
    """

    logits: np.ndarray
    seeds: np.ndarray
    epochs: np.ndarray
    fold: np.ndarray
    folds: np.ndarray
    clips: np.ndarray
    subjects: np.ndarray
    sources: np.ndarray
    labels: np.ndarray
    class_names: np.ndarray
    train_loss: np.ndarray
    protocol: np.ndarray
    protocol_folds: np.ndarray
    dataset: np.ndarray
    fingerprint: np.ndarray
    inner: InnerPredictions | None = None
    described: Described | None = None

    def __post_init__(self) -> None:
        sizes = self._sizes()
        for name, (axes, dtype) in _FIELDS.items():
            _fit(self, name, name, axes, dtype, sizes)
        for axis in "SEMCF":
            if sizes[axis] == 0:
                raise UserError(f"the predictions hold no {_AXES[axis]}.")
        for block, values in self._blocks().items():
            for name, (axes, dtype) in _BLOCKS[block][1].items():
                _fit(values, name, f"{block}_{name}", axes, dtype, sizes)
        self._check_values()
        if self.inner is not None:
            self._check_inner(self.inner)
        if self.described is not None:
            self._check_described(self.described)
        self._check_finite()

    @property
    def missing_folds(self) -> list[str]:
        """The folds of the protocol that are not here, in the protocol's order."""
        have = set(self.folds.tolist())
        return [fold for fold in self.protocol_folds.tolist() if fold not in have]

    def of_clips(self, clips: Collection[str]) -> Predictions:
        """The same run, of some of its clips only; folds without any of them are left out.

        Args:
            clips: Ids; one that the run does not have changes nothing.

        Raises:
            UserError: The run has none of them.
        """
        rows = np.flatnonzero(np.isin(self.clips, np.array(sorted(clips), np.str_)))
        kept = np.unique(self.fold[rows])
        place = np.full(len(self.folds), -1, np.int32)
        place[kept] = np.arange(len(kept))
        names = set(self.folds[kept].tolist()) | set(self.missing_folds)
        inner = self.inner
        if inner is not None:
            own = np.isin(inner.fold, kept)
            inner = dataclasses.replace(
                inner,
                logits=inner.logits[:, :, own],
                test_logits=inner.test_logits[:, :, :, rows],
                **{
                    name: getattr(inner, name)[own]
                    for name in ("part", "clips", "subjects", "sources", "labels")
                },
                fold=place[inner.fold[own]],
            )
        described = self.described
        if described is not None:
            described = dataclasses.replace(
                described,
                similarities=described.similarities[:, rows],
                truth=described.truth[rows],
                trained=described.trained[kept],
                positives=described.positives[kept],
            )
        return dataclasses.replace(
            self,
            logits=self.logits[:, :, rows],
            fold=place[self.fold[rows]],
            folds=self.folds[kept],
            **{
                name: getattr(self, name)[rows]
                for name in ("clips", "subjects", "sources", "labels")
            },
            train_loss=self.train_loss[:, kept],
            protocol_folds=np.array([f for f in self.protocol_folds.tolist() if f in names]),
            inner=inner,
            described=described,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the predictions as a compressed `.npz`, atomically.

        Raises:
            UserError: the file cannot be written (disk full, no permission); a file that was
                there before is untouched.
        """
        fields = {name: getattr(self, name) for name in _FIELDS}
        for block, values in self._blocks().items():
            fields |= {f"{block}_{name}": getattr(values, name) for name in _BLOCKS[block][1]}
        io.save_arrays(path, fields, FORMAT_VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """Reads a file that `save` wrote.

        Raises:
            UserError: the file is missing, truncated, not a predictions file, of another format
                version, or its content contradicts itself or is not finite.
        """
        path = Path(path)
        try:
            found: dict[str, Any] = io.load_arrays(
                path, FORMAT_VERSION, "predictions file", check_headers=_check_headers
            )
        except _WrongHeader as error:
            raise UserError(f"{path}: {error}") from error
        fields = _fields_of(found)
        io.check_names(path, found, set(fields))
        try:
            blocks = {
                block: kind(**{name: found[f"{block}_{name}"] for name in own})
                for block, (kind, own) in _BLOCKS.items()
                if any(name.startswith(f"{block}_") for name in fields)
            }
            return cls(**{name: found[name] for name in _FIELDS}, **blocks)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def _blocks(self) -> dict[str, Any]:
        """Those of `_BLOCKS` that the run has."""
        found = {block: getattr(self, block) for block in _BLOCKS}
        return {block: values for block, values in found.items() if values is not None}

    def _sizes(self) -> dict[str, int]:
        inner_folds = 0 if self.inner is None else np.shape(self.inner.test_logits)[1:2]
        return {
            "S": np.size(self.seeds),
            "E": np.size(self.epochs),
            "M": np.size(self.labels),
            "C": np.size(self.class_names),
            "F": np.size(self.folds),
            "P": np.size(self.protocol_folds),
            "V": 0 if self.inner is None else np.size(self.inner.labels),
            "K": inner_folds[0] if inner_folds else 0,
            "D": 0 if self.described is None else np.size(self.described.sets),
        }

    def _check_values(self) -> None:
        if self.epochs[0] < 1 or np.any(np.diff(self.epochs) <= 0):
            raise UserError("epochs must be 1-based and increasing.")
        for name in ("seeds", "folds", "clips", "class_names", "protocol_folds"):
            values, counts = np.unique(getattr(self, name), return_counts=True)
            if counts.max() > 1:
                several = ", ".join(repr(value) for value in values[counts > 1].tolist())
                raise UserError(f"{name} holds {several} more than once.")
        unknown = np.setdiff1d(self.folds, self.protocol_folds)
        if unknown.size:
            raise UserError(f"fold {str(unknown[0])!r} is not one of the protocol's folds.")
        for name, bound in (("fold", len(self.folds)), ("labels", len(self.class_names))):
            _check_bound(self.clips, name, getattr(self, name), bound)
        empty = np.setdiff1d(np.arange(len(self.folds)), self.fold)
        if empty.size:
            raise UserError(f"fold {str(self.folds[empty[0]])!r} has no test clip.")
        self._check_subjects()

    def _check_subjects(self) -> None:
        """No subject may be tested in two folds: the second has trained on them."""
        problems = Problems("the predictions")
        homes: dict[str, set[int]] = {}
        subjects = unique_subjects(self.subjects, self.sources)
        for subject, fold in zip(subjects, self.fold, strict=True):
            homes.setdefault(str(subject), set()).add(int(fold))
        for subject, folds in homes.items():
            if len(folds) > 1:
                names = ", ".join(shown(self.folds[fold]) for fold in sorted(folds))
                problems.add(f"subject {subject}", f"is tested in folds {names}")
        problems.raise_if_any("A subject belongs to one fold; train the run again.")

    def _check_inner(self, inner: InnerPredictions) -> None:
        inner_folds = inner.test_logits.shape[1]
        if not inner_folds:
            raise UserError("inner_test_logits holds no inner fold.")
        bounds = {"fold": len(self.folds), "part": inner_folds, "labels": len(self.class_names)}
        for name, bound in bounds.items():
            _check_bound(inner.clips, f"inner_{name}", getattr(inner, name), bound)
        rows = list(zip(inner.fold.tolist(), inner.part.tolist(), inner.clips, strict=True))
        if len(set(rows)) < len(rows):
            raise UserError("inner_clips: a clip validates twice in one inner fold.")
        pairs = {row[:2] for row in rows}
        for fold, name in enumerate(self.folds):
            missing = [part for part in range(inner_folds) if (fold, part) not in pairs]
            if missing:
                raise UserError(
                    f"fold {str(name)!r}: inner fold {missing[0]} has no validation clip."
                )
        # The point of `inner` is that it never looks at the test subjects.
        tested = set(zip(self.fold.tolist(), self.sources, self.subjects, strict=True))
        validates = set(zip(inner.fold.tolist(), inner.sources, inner.subjects, strict=True))
        both = sorted(tested & validates)
        if both:
            fold, _, subject = both[0]
            raise UserError(
                f"fold {str(self.folds[fold])!r}: subject {str(subject)!r} validates and is tested."
            )

    def _check_described(self, described: Described) -> None:
        sets = described.sets.tolist()
        odd = [one for one in sets if not _SET.fullmatch(one)]
        if odd or len({*sets}) < len(sets):
            what = f"{odd[0]!r}, which is no set of units" if odd else "a set twice"
            raise UserError(f"described_sets holds {what}.")
        known = np.flatnonzero(described.truth != -1)
        _check_bound(self.clips[known], "described_truth", described.truth[known], len(sets))
        untold = np.flatnonzero(~described.trained.any(axis=1))
        if untold.size:
            raise UserError(
                f"fold {str(self.folds[untold[0]])!r}: no set of units is in its training clips."
            )
        if not (np.isfinite(described.positives) & (described.positives >= 1)).all():
            raise UserError("described_positives holds a number below 1.")
        seed, row = _first_false(np.isfinite(described.similarities).all(axis=-1))
        if seed is not None:
            raise UserError(
                f"fold {str(self.folds[self.fold[row]])!r}, seed {self.seeds[seed]}: the "
                f"similarities of clip {str(self.clips[row])!r} are not finite. {_DIVERGED}"
            )

    def _check_finite(self) -> None:
        self._check_logits("logits", self.logits, self.fold, self.clips)
        seed, fold, epoch = _first_false(np.isfinite(self.train_loss))
        if seed is not None:
            raise UserError(
                f"fold {str(self.folds[fold])!r}, seed {self.seeds[seed]}, epoch "
                f"{self.epochs[epoch]}: the training loss is not finite. {_DIVERGED}"
            )
        if self.inner is None:
            return
        self._check_logits(
            "validation logits", self.inner.logits, self.inner.fold, self.inner.clips
        )
        for part in range(self.inner.test_logits.shape[1]):
            what = f"logits of inner fold {part}"
            self._check_logits(what, self.inner.test_logits[:, part], self.fold, self.clips)

    def _check_logits(
        self, what: str, logits: np.ndarray, fold: np.ndarray, clips: np.ndarray
    ) -> None:
        """`logits`: (S, E, rows, C)."""
        seed, epoch, row = _first_false(np.isfinite(logits).all(axis=-1))
        if seed is not None:
            raise UserError(
                f"fold {str(self.folds[fold[row]])!r}, seed {self.seeds[seed]}, epoch "
                f"{self.epochs[epoch]}: the {what} of clip {str(clips[row])!r} are not finite. "
                f"{_DIVERGED}"
            )


class _WrongHeader(UserError):
    """An array of another shape or type than the others and the format ask for."""


def _fields_of(names: Collection[str]) -> dict[str, tuple[str, type]]:
    """The fields of a file that has these: with those of every block that it has any of."""
    fields = dict(_FIELDS)
    for block, (_, own) in _BLOCKS.items():
        if any(name.startswith(f"{block}_") for name in names):
            fields |= {f"{block}_{name}": form for name, form in own.items()}
    return fields


def _check_headers(headers: Mapping[str, foreign.Header]) -> None:
    """Checks shapes and types before any array is read; names wait until the version is known."""
    fields = _fields_of(headers)
    if set(headers) != set(fields):
        return
    # The fields that say how long an axis is, as in `Predictions`.
    sizes = {axis: (*headers[name].shape, 0)[0] for axis, name in _SIZES.items() if name in headers}
    if "inner_test_logits" in headers:
        sizes["K"] = (*headers["inner_test_logits"].shape, 0, 0)[1]
    for name, (shape, found) in headers.items():
        axes, dtype = fields[name]
        if found.kind not in io.KINDS[dtype]:
            raise _WrongHeader(f"{name} has type {found}, expected {dtype.__name__.strip('_')}.")
        _check_shape(name, shape, axes, sizes)


def _check_shape(name: str, shape: tuple[int, ...], axes: str, sizes: Mapping[str, int]) -> None:
    expected = tuple(sizes[axis] for axis in axes)
    if shape != expected:
        meaning = ", ".join(_AXES[axis] for axis in axes)
        raise _WrongHeader(f"{name} has shape {shape}, expected {expected} ({meaning}).")


def _fit(
    owner: object, field: str, name: str, axes: str, dtype: type, sizes: dict[str, int]
) -> None:
    array = io.typed(name, getattr(owner, field), dtype)
    _check_shape(name, array.shape, axes, sizes)
    # The classes are frozen for their users; here they are still being made.
    object.__setattr__(owner, field, array)


def _check_bound(clips: np.ndarray, name: str, values: np.ndarray, bound: int) -> None:
    bad = np.flatnonzero((values < 0) | (values >= bound))
    if bad.size:
        raise UserError(
            f"clip {str(clips[bad[0]])!r}: {name} is {values[bad[0]]}, expected 0 to {bound - 1}."
        )


def _first_false(values: np.ndarray) -> tuple[Any, ...]:
    """The index of the first False; Nones if there is none."""
    if values.all():
        return (None,) * values.ndim
    return np.unravel_index(int(np.argmin(values)), values.shape)
