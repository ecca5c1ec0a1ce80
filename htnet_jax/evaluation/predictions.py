"""The predictions file: the result of every run, from which every number and plot is derived."""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from htnet_jax.errors import UserError
from htnet_jax.evaluation.files import write_atomically

FORMAT_VERSION = 1
"""Written into each file; raised when an older reader would misread a newer file."""

_VERSION_KEY = "format_version"

# Every field: its axes (E epochs, M clips, C classes, F folds) and its type.
_FIELDS: dict[str, tuple[str, type]] = {
    "logits": ("EMC", np.float32),
    "epochs": ("E", np.int32),
    "fold": ("M", np.int32),
    "folds": ("F", np.str_),
    "clips": ("M", np.str_),
    "subjects": ("M", np.str_),
    "sources": ("M", np.str_),
    "labels": ("M", np.int32),
    "class_names": ("C", np.str_),
    "train_loss": ("FE", np.float32),
}
_AXES = {"E": "recorded epochs", "M": "clips", "C": "classes", "F": "folds"}


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Test logits of every fold at every recorded epoch, with what is needed to score them.

    E recorded epochs, M test clips, C classes, F folds. Sequences are accepted and stored as arrays
    of the types below; a value that does not fit (a float label, say) is an error.

    Attributes:
        logits: (E, M, C) float32, the logits of each clip by the model of its own fold.
        epochs: (E,) int32, 1-based epoch numbers, increasing; the last is the final epoch.
        fold: (M,) int32, index into `folds`: the fold that left this clip out.
        folds: (F,) str, the left-out subject (fold name), each with at least one clip.
        clips: (M,) str, unique clip ids.
        subjects: (M,) str, the subject of each clip.
        sources: (M,) str, the data set each clip comes from.
        labels: (M,) int32, the true class of each clip.
        class_names: (C,) str.
        train_loss: (F, E) float32, mean training loss of each fold in each recorded epoch.

    Raises:
        UserError: shapes, types or values that contradict each other, or logits or losses that are
            not finite (the message names the fold and the epoch).
    """

    logits: np.ndarray
    epochs: np.ndarray
    fold: np.ndarray
    folds: np.ndarray
    clips: np.ndarray
    subjects: np.ndarray
    sources: np.ndarray
    labels: np.ndarray
    class_names: np.ndarray
    train_loss: np.ndarray

    def __post_init__(self) -> None:
        for name, (_, dtype) in _FIELDS.items():
            # The class is frozen for its users; here it is still being made.
            object.__setattr__(self, name, _typed(name, getattr(self, name), dtype))
        self._check_shapes()
        self._check_values()
        self._check_finite()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the predictions as a compressed `.npz`, atomically.

        Raises:
            UserError: the file cannot be written (disk full, no permission); a file that was
                there before is untouched.
        """
        arrays = {name: getattr(self, name) for name in _FIELDS}
        arrays[_VERSION_KEY] = np.int32(FORMAT_VERSION)
        write_atomically(path, lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """Reads a file that `save` wrote.

        Raises:
            UserError: the file is missing, truncated, not a predictions file, of a newer format,
                or its content contradicts itself or is not finite.
        """
        path = Path(path)
        arrays = _read_arrays(path)
        version = arrays.pop(_VERSION_KEY, None)
        wrong = sorted(set(_FIELDS) ^ set(arrays))
        if version is None or version.shape != () or version.dtype.kind not in "iu":
            raise UserError(
                f"{path}: not a predictions file (no {_VERSION_KEY!r}). "
                "Give the predictions.npz that a training run wrote."
            )
        if int(version) != FORMAT_VERSION:
            raise UserError(
                f"{path}: format version {int(version)}, but this program reads version "
                f"{FORMAT_VERSION}. Use the version of htnet_jax that wrote the file."
            )
        if wrong:
            raise UserError(
                f"{path}: missing or unknown arrays: {', '.join(wrong)}. Train the run again."
            )
        try:
            return cls(**arrays)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def concatenate(cls, parts: Sequence[Predictions]) -> Predictions:
        """Joins disjoint folds of one run: clips and folds are appended in the given order.

        Raises:
            UserError: no parts, other epochs or classes in one of them, a fold or clip that occurs
                in two.
        """
        if not parts:
            raise UserError("No predictions to join: give at least one part.")
        first = parts[0]
        for number, part in enumerate(parts[1:], start=2):
            for name in ("epochs", "class_names"):
                if not np.array_equal(getattr(part, name), getattr(first, name)):
                    raise UserError(
                        f"Part {number} has other {name} than part 1: "
                        "only folds of the same run can be joined."
                    )
        offsets = np.cumsum([0] + [len(part.folds) for part in parts[:-1]])
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts], axis=axis)
            for name, axis in [
                ("logits", 1),
                ("folds", 0),
                ("clips", 0),
                ("subjects", 0),
                ("sources", 0),
                ("labels", 0),
                ("train_loss", 0),
            ]
        }
        fold = [part.fold + offset for part, offset in zip(parts, offsets, strict=True)]
        return cls(
            epochs=first.epochs,
            class_names=first.class_names,
            fold=np.concatenate(fold),
            **joined,
        )

    def _check_shapes(self) -> None:
        sizes = {
            "E": np.size(self.epochs),
            "M": np.size(self.labels),
            "C": np.size(self.class_names),
            "F": np.size(self.folds),
        }
        for axis, size in sizes.items():
            if size == 0:
                raise UserError(f"the predictions hold no {_AXES[axis]}.")
        for name, (axes, _) in _FIELDS.items():
            expected = tuple(sizes[axis] for axis in axes)
            found = getattr(self, name).shape
            if found != expected:
                meaning = ", ".join(_AXES[axis] for axis in axes)
                raise UserError(f"{name} has shape {found}, expected {expected} ({meaning}).")

    def _check_values(self) -> None:
        if self.epochs[0] < 1 or np.any(np.diff(self.epochs) <= 0):
            raise UserError("epochs must be 1-based and increasing.")
        for name in ("folds", "clips", "class_names"):
            values, counts = np.unique(getattr(self, name), return_counts=True)
            if counts.max() > 1:
                raise UserError(f"{name} holds {str(values[counts > 1][0])!r} more than once.")
        for name, bound in (("fold", len(self.folds)), ("labels", len(self.class_names))):
            bad = np.flatnonzero((getattr(self, name) < 0) | (getattr(self, name) >= bound))
            if bad.size:
                raise UserError(
                    f"clip {str(self.clips[bad[0]])!r}: {name} is "
                    f"{getattr(self, name)[bad[0]]}, expected 0 to {bound - 1}."
                )
        empty = np.setdiff1d(np.arange(len(self.folds)), self.fold)
        if empty.size:
            raise UserError(f"fold {str(self.folds[empty[0]])!r} has no test clip.")

    def _check_finite(self) -> None:
        remedy = "The training diverged: lower the learning rate or look at the clips of this fold."
        epoch, clip = np.nonzero(~np.isfinite(self.logits).all(axis=-1))
        if epoch.size:
            fold = str(self.folds[self.fold[clip[0]]])
            raise UserError(
                f"fold {fold!r}, epoch {self.epochs[epoch[0]]}: the logits of clip "
                f"{str(self.clips[clip[0]])!r} are not finite. {remedy}"
            )
        fold_index, epoch = np.nonzero(~np.isfinite(self.train_loss))
        if epoch.size:
            raise UserError(
                f"fold {str(self.folds[fold_index[0]])!r}, epoch {self.epochs[epoch[0]]}: "
                f"the training loss is not finite. {remedy}"
            )


def _typed(name: str, value: object, dtype: type) -> np.ndarray:
    """`value` as an array of `dtype`, without a change of meaning (float to int, number to str)."""
    array = np.asarray(value)
    kinds = {np.float32: "f", np.int32: "iu", np.str_: "U"}[dtype]
    if array.dtype.kind not in kinds:
        raise UserError(f"{name} has type {array.dtype}, expected {dtype.__name__.strip('_')}.")
    return array if dtype is np.str_ else array.astype(dtype)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`, never unpickling anything."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file. Give the folder of a training run that has finished."
        )
    try:
        # Checksums first: np.load would try other formats on a file that is not a zip, and would
        # parse the array headers of a damaged one before it compares their checksum.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        EOFError,
        KeyError,
        OSError,
        RuntimeError,  # zipfile's word for encrypted or unknown compression
    ) as error:
        raise UserError(
            f"{path}: damaged, or not a predictions file ({error}). "
            "Copy it again, or train the run again."
        ) from error
