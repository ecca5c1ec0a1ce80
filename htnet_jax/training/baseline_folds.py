"""Baselines through the folds, with `FoldTrainer`'s interface, so that a run takes either.

Everything that a fold learns, its choice of hyper-parameters too, comes from its training clips.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import threadpoolctl
from scipy import special

from htnet_jax.baselines import Baseline, Fitted
from htnet_jax.errors import UserError
from htnet_jax.evaluation import metrics, protocols
from htnet_jax.training.cluster import ALONE, Cluster
from htnet_jax.training.folds import Fold, FoldResult, Keeping, Progress


class BaselineTrainer:
    """Fits one baseline fold by fold, on the processor.

    Where the baseline leaves a choice (see `Baseline.candidates`), each fold makes its own: its
    training people are dealt into parts, each candidate predicts each part from the others, and
    the one with the best UF1 over all these clips (classes without a clip left out; of equals, the
    first) is fitted on all training clips.

    Attributes:
        folds: All folds, in order.
        choices: Fold name -> hyper-parameter -> the value chosen, for the folds trained so far.
        parameter_bytes: 0: a baseline leaves no checkpoint.
        folds_per_device: 0: no accelerator is used.
    """

    parameter_bytes = 0
    folds_per_device = 0

    def __init__(
        self,
        baseline: Baseline,
        inputs: np.ndarray,
        labels: np.ndarray,
        folds: Sequence[Fold],
        *,
        seed: int,
        persons: np.ndarray,
        sources: np.ndarray,
        inner_parts: int = 5,
        cluster: Cluster = ALONE,
    ) -> None:
        """Checks everything and fits nothing yet.

        Args:
            baseline: One of `htnet_jax.baselines`.
            inputs: `(N, S, S, Ch)` float32, all clips.
            labels: `(N,)` integer classes.
            folds: The folds, in order.
            seed: Root of the deals of people into parts; fits draw no random numbers.
            persons: `(N,)` str, from `protocols.unique_subjects`.
            sources: `(N,)` str, the data set of each clip.
            inner_parts: Parts that a fold's training people are dealt into for a choice.
            cluster: The processes that share the folds.

        Raises:
            UserError: No fold, a fold without training or test clips, inputs that are not finite,
                a hyper-parameter that is impossible or does not fit the inputs.
            ValueError: Arrays of different lengths.
        """
        lengths = {len(one) for one in (inputs, labels, persons, sources)}
        if len(lengths) != 1 or any(
            mask.shape != labels.shape for fold in folds for mask in (fold.train, fold.test)
        ):
            raise ValueError("inputs, labels, persons, sources and folds differ in clips")
        self.folds = list(folds)
        self.choices: dict[str, dict[str, Any]] = {}
        self._baseline, self._inputs, self._labels = baseline, inputs, labels
        self._persons, self._sources = persons, sources
        self._seed, self._inner_parts, self._cluster = seed, inner_parts, cluster
        self._check()

    def _check(self) -> None:
        try:
            self._baseline.check()
            self._baseline.check_inputs(self._inputs.shape)
        except ValueError as error:
            raise UserError(f"config.model: {error}") from error
        if not self.folds:
            raise UserError("no fold to train: the data set has no subject to leave out")
        lacking = [
            f"  {fold.name}: {int(fold.train.sum())} training clips, {int(fold.test.sum())} "
            "test clips"
            for fold in self.folds
            if not fold.train.any() or not fold.test.any()
        ]
        if lacking:
            raise UserError("a fold needs training clips and test clips\n" + "\n".join(lacking))
        bad = np.flatnonzero(~np.isfinite(self._inputs).all(axis=(1, 2, 3)))
        if len(bad):
            clips = ", ".join(f"{row} ({self._persons[row]})" for row in bad)
            raise UserError(
                f"inputs of {len(bad)} clips are not finite: row {clips}; correct these clips' "
                "data and build the data set again"
            )

    def rounds(self, done: Sequence[str] = ()) -> list[list[Fold]]:
        """The rounds of this process, of one fold each.

        Args:
            done: Names of folds to leave out.
        """
        own = self.folds[self._cluster.index :: self._cluster.count]
        return [[fold] for fold in own if fold.name not in done]

    def train(
        self,
        folds: Sequence[Fold],
        epochs: int = 1,
        on_progress: Callable[[Progress], None] | None = None,
        keeping: Keeping | None = None,
        wanted: Collection[str] | None = None,
    ) -> list[FoldResult]:
        """Fits each fold's baseline on its training clips and predicts its test clips.

        Args:
            folds: One of `rounds()`.
            epochs: 1; a fit has no epochs.
            on_progress: Called after every fold.
            keeping: Not used: a fit is over in a moment.
            wanted: Not used: there are no parameters.

        Returns:
            One result a fold, in order, with one epoch and `params=None`.

        Raises:
            UserError: `epochs` is not 1, a choice with fewer people than parts, or a loss or logit
                that is not finite; names the fold.
        """
        del keeping, wanted
        if epochs != 1:
            raise UserError(
                f"config.epochs={epochs}: a baseline is fitted once; set --config.epochs=1"
            )
        results = []
        # The products are small: more threads mostly wait for each other.
        with threadpoolctl.threadpool_limits(1):
            for fold in folds:
                results.append(self._fold(fold))
                if on_progress:
                    on_progress(Progress(1, 1, float(results[-1].train_loss[0])))
        return results

    def _fold(self, fold: Fold) -> FoldResult:
        inputs, labels = self._inputs[fold.train], self._labels[fold.train]
        unconverged: list[str] = []
        baseline = self._choose(fold, unconverged)
        fitted = _fit(baseline, inputs, labels, unconverged)
        if unconverged:
            print(
                f"fold {fold.name}: {len(unconverged)} fits did not converge, its results are "
                f"rough: {unconverged[0]}",
                file=sys.stderr,
                flush=True,
            )
        logits = fitted.logits(self._inputs[fold.test])
        loss = _cross_entropy(fitted.logits(inputs), labels)
        if not np.isfinite(loss) or not np.isfinite(logits).all():
            raise UserError(
                f"fold {fold.name}: loss or logits are not finite; check the inputs and {baseline}"
            )
        self.choices[fold.name] = baseline.chosen_from(self._baseline)
        return FoldResult(fold, logits[None], np.array([loss], np.float32), None)

    def _choose(self, fold: Fold, unconverged: list[str]) -> Baseline:
        """The candidate that best predicts the training people, each part from the others."""
        candidates = self._baseline.candidates()
        if len(candidates) == 1:
            return candidates[0]
        part = protocols.inner_folds(
            protocols.Split(fold.stream or fold.name, ~fold.train),
            self._persons,
            self._sources,
            parts=self._inner_parts,
            count=self._inner_parts,
            seed=self._seed + fold.repetition,
        )[fold.train]
        inputs, labels = self._inputs[fold.train], self._labels[fold.train]
        scores = []
        for candidate in candidates:
            predicted = np.empty_like(labels)
            for number in range(self._inner_parts):
                held = part == number
                fitted = _fit(candidate, inputs[~held], labels[~held], unconverged)
                predicted[held] = fitted.logits(inputs[held]).argmax(axis=1)
            scores.append(metrics.uf1(labels, predicted, candidate.num_classes, "skip"))
        return candidates[int(np.argmax(scores))]


def _fit(
    baseline: Baseline, inputs: np.ndarray, labels: np.ndarray, unconverged: list[str]
) -> Fitted:
    """Fits; what scikit-learn says about fits that did not converge is added to `unconverged`."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = baseline.fit(inputs, labels)
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            unconverged.append(" ".join(str(warning.message).split()))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return fitted


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())
