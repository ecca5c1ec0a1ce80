"""Simple classifiers to judge networks against: scikit-learn pipelines of few hyper-parameters.

To add one, derive a class from `Baseline` and add a line to `BASELINES`. Importing this file
imports scikit-learn, which takes most of a second: import it where a baseline is wanted.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import threadpoolctl
from scipy import special
from sklearn import dummy, linear_model, svm
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import check_X_y

from htnet_jax.errors import UserError, count, shown
from htnet_jax.evaluation import metrics, protocols
from htnet_jax.ranges import Allowed, Range, refusals
from htnet_jax.training import hosts
from htnet_jax.training.baseline_steps import (
    GaussianKernel,
    MirroredKernelRidge,
    Rows,
    signed_parts,
)
from htnet_jax.training.folds import Fold, FoldResult, Keeping, Progress

ABSENT_MARGIN = 30.0
"""How far the logit of a class without a training clip lies below the clip's lowest other logit.

Its odds are e^-30 (about 1e-13): finite, so that losses and temperatures stay so, and never first.
"""

# Of logistic regression. scikit-learn's tolerance of 1e-4 leaves errors of 0.01 in the logits, and
# a fit on 400 clips takes some hundred iterations: more than its limit of 100.
TOLERANCE = 1e-6
MAX_ITERATIONS = 10_000


COMPONENTS = Range(0, 100_000, "any")
# A penalty, a scale or a width: beyond these, squares and exponentials leave float64's range.
FACTOR = Range(1e-6, 1e6, ends="[]")


class Channels:
    """Names of channels, separated by commas; one of them is `u`."""

    def __str__(self) -> str:
        return "names of channels, one of them u"

    def refuse(self, key: str, value: object) -> None:
        """Raises a ValueError that names `key` if the value does not name u once."""
        if not isinstance(value, str) or value.split(",").count("u") != 1:
            raise ValueError(f"{key}={value!r} must be the names of the channels, one of them u")


def setting(default: Any, allowed: Allowed, several: str = "") -> Any:
    """A hyper-parameter, as an attribute of a `Baseline`.

    `allowed` says what its values may be. `several` says what a tuple of values is for: "choice"
    (each fold chooses one) or "all" (the baseline uses all of them); empty: no tuple.
    """
    return dataclasses.field(default=default, metadata={"allowed": allowed, "several": several})


def _options(value: Any) -> tuple[Any, ...]:
    """The values that an attribute stands for."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


@dataclasses.dataclass
class Baseline(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier of clips; its attributes are its hyper-parameters (`setting`).

    No baseline draws random numbers: the same clips give the same fit.

    Attributes:
        num_classes: C, the number of classes.
    """

    # The features it takes where the config names none.
    inputs: ClassVar[tuple[str, ...]] = ("mosaic",)

    num_classes: int = setting(3, Range(1, 1000))

    def pipeline(self) -> Pipeline:
        """What is fitted: `(n, S, S, Ch)` inputs -> `decision_function` or `predict_log_proba`."""
        raise NotImplementedError

    def check(self) -> None:
        """Checks the hyper-parameters.

        Raises:
            ValueError: An impossible value; says which.
        """
        allowed = {name: facts["allowed"] for name, facts in self._settings().items()}
        if wrong := refusals({name: getattr(self, name) for name in allowed}, allowed.items()):
            raise ValueError("; ".join(wrong))

    def check_inputs(self, shape: tuple[int, ...]) -> None:
        """Checks the shape of the inputs.

        Raises:
            ValueError: Not `(n, S, S, Ch)` or, where a baseline names them, other channels.
        """
        if len(shape) != 4:
            raise ValueError(f"inputs {shape} must have the axes (n, S, S, Ch)")

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> Self:
        """Learns from the training clips.

        Args:
            inputs: `(n, S, S, Ch)` float32, in any unit.
            labels: `(n,)` integers in [0, C). If all are one class, every clip is called that.

        Raises:
            ValueError: Wrong shapes or labels, inputs that are not finite, or a hyper-parameter
                that still has several values.
        """
        self.check()
        if len(self.candidates()) > 1:
            raise ValueError(f"{self} leaves a choice; fit one of its candidates()")
        self.check_inputs(inputs.shape)
        inputs, labels = check_X_y(inputs, labels, allow_nd=True, dtype=None, estimator=self)
        classes = np.unique(labels)
        if labels.dtype.kind not in "iu" or classes[0] < 0 or classes[-1] >= self.num_classes:
            raise ValueError(f"labels must be integers from 0 to {self.num_classes - 1}")
        plain = self.candidates()[0] if len(classes) > 1 else MajorityClass(self.num_classes)
        self.fitted_ = plain.pipeline().fit(inputs, labels)
        return self

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """`(m, S, S, Ch)` inputs -> `(m, C)` float32; unknown classes lie `ABSENT_MARGIN` below."""
        fitted = self.fitted_
        if hasattr(fitted, "decision_function"):
            scores = fitted.decision_function(inputs)
        else:
            scores = fitted.predict_log_proba(inputs)
        if scores.ndim == 1:  # of two classes: how much more the second is preferred
            scores = np.stack([-scores / 2, scores / 2], axis=1)
        absent = scores.min(axis=1, keepdims=True) - ABSENT_MARGIN
        logits = np.repeat(absent, self.num_classes, axis=1)
        logits[:, fitted.classes_] = scores
        return logits.astype(np.float32)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """`(m, S, S, Ch)` inputs -> `(m,)` integer classes."""
        return self.logits(inputs).argmax(axis=1)

    def candidates(self) -> list[Self]:
        """One baseline for each combination of the values to choose from, the last one fastest."""
        grid = {name: _options(getattr(self, name)) for name in self._choosable()}
        return [
            dataclasses.replace(self, **dict(zip(grid, values, strict=True)))
            for values in itertools.product(*grid.values())
        ]

    def chosen_from(self, grid: Baseline) -> dict[str, Any]:
        """The values of the attributes for which `grid` leaves a choice."""
        names = [name for name in self._choosable() if len(_options(getattr(grid, name))) > 1]
        return {name: getattr(self, name) for name in names}

    def _settings(self) -> dict[str, Mapping[str, Any]]:
        return {field.name: field.metadata for field in dataclasses.fields(self) if field.metadata}

    def _choosable(self) -> list[str]:
        return [name for name, facts in self._settings().items() if facts["several"] == "choice"]


@dataclasses.dataclass
class MajorityClass(Baseline):
    """Says of every clip what is most frequent in training; of equals, the first class.

    The logits are the logarithms of the classes' shares of the training clips.
    """

    def pipeline(self) -> Pipeline:
        """See `Baseline.pipeline`."""
        return make_pipeline(dummy.DummyClassifier(strategy="prior"))


@dataclasses.dataclass
class LogisticRegression(Baseline):
    """Multinomial logistic regression on the leading principal components of the flattened input.

    Every class weighs the same: a clip weighs n / (classes * clips of its class). The logits are
    log-odds, for a softmax. The attributes may be tuples of values to choose from.

    Attributes:
        components: Principal components kept; 0: no PCA.
        C: Inverse strength of the penalty on the squared weights; scikit-learn's default is 1.
    """

    components: int | tuple[int, ...] = setting(100, COMPONENTS, "choice")
    C: float | tuple[float, ...] = setting(1.0, FACTOR._replace(several="any"), "choice")

    def pipeline(self) -> Pipeline:
        """See `Baseline.pipeline`."""
        classifier = linear_model.LogisticRegression(
            C=self.C, class_weight="balanced", tol=TOLERANCE, max_iter=MAX_ITERATIONS
        )
        return make_pipeline(Rows(self.components), classifier)


@dataclasses.dataclass
class RBFSVM(Baseline):
    """A support vector machine on the flattened input or its principal components.

    The kernel is that of `GaussianKernel`. Every class weighs the same: C is multiplied by
    n / (classes * clips of its class). The logits are the one-against-rest scores that
    scikit-learn makes of the votes of the machines for pairs of classes: good for ranking, not
    log-odds. The attributes may be tuples of values to choose from.

    Attributes:
        components: Principal components kept; 0: no PCA.
        C: Weight of a training clip on the wrong side; scikit-learn's default is 1.
        gamma: Multiple of scikit-learn's gamma="scale", its default.
    """

    components: int | tuple[int, ...] = setting(0, COMPONENTS, "choice")
    C: float | tuple[float, ...] = setting(1.0, FACTOR._replace(several="any"), "choice")
    gamma: float | tuple[float, ...] = setting(1.0, FACTOR._replace(several="any"), "choice")

    def pipeline(self) -> Pipeline:
        """See `Baseline.pipeline`."""
        # With thousands of values a clip, NumPy's kernel is many times faster than libsvm's.
        classifier = svm.SVC(C=self.C, kernel="precomputed", class_weight="balanced")
        return make_pipeline(Rows(self.components), GaussianKernel(self.gamma), classifier)


@dataclasses.dataclass
class KernelRidge(Baseline):
    """Class-weighted kernel ridge regression that knows that a mirrored face shows the same.

    Made for whole-face flow (layout `none`). It compares clips by `signed_parts` and averages the
    scores of `MirroredKernelRidge` over a fixed grid. The logits are about 1 wide: good for
    ranking, not log-odds. An offset and a positive factor of a clip's channel change nothing:
    min-max scaled images and flows in pixels are the same to it.

    The smoothing is given by the method; the other constants are round numbers fixed before the
    first run on real data, none was chosen on results.

    Attributes:
        channels: Names of the inputs' channels, in order and separated by commas; one is `u`.
        compression: Where tanh starts to level off, in root mean square deviations of the clip's
            channel from its median.
        smoothing: Standard deviation of the Gaussian, in pixels of the input; meant for the
            28 x 28 flows of the HTNet release.
        bandwidths: Of the kernel, in medians of the distance between two different training clips:
            octaves around 1, the usual "median heuristic".
        ridges: Penalties; a clip's kernel with itself is 1/2 to 1, the mean weight of a clip 1.
    """

    channels: str = setting("u,v,strain", Channels())
    compression: float = setting(1.0, FACTOR)
    smoothing: float = setting(1.5, Range(0.0, 100.0, ends="(]"))
    bandwidths: tuple[float, ...] = setting(
        (0.25, 0.5, 1.0, 2.0), FACTOR._replace(several="any"), "all"
    )
    ridges: tuple[float, ...] = setting((0.01, 0.1, 1.0), FACTOR._replace(several="any"), "all")

    def check_inputs(self, shape: tuple[int, ...]) -> None:
        """See `Baseline.check_inputs`."""
        super().check_inputs(shape)
        if shape[-1] != len(self.channels.split(",")):
            raise ValueError(
                f"the inputs have {shape[-1]} channels, but channels={self.channels!r}; give the "
                "names of dataset.channels"
            )

    def pipeline(self) -> Pipeline:
        """See `Baseline.pipeline`."""
        constants = {"compression": self.compression, "smoothing": self.smoothing}
        u = self.channels.split(",").index("u")
        return make_pipeline(
            FunctionTransformer(signed_parts, kw_args=constants),
            MirroredKernelRidge(u, _options(self.bandwidths), _options(self.ridges)),
        )


BASELINES: Mapping[str, type[Baseline]] = {
    baseline.__name__: baseline
    for baseline in (MajorityClass, LogisticRegression, RBFSVM, KernelRidge)
}
"""`config.model.name` -> class; a new baseline is added here."""


class BaselineTrainer:
    """Fits one baseline fold by fold, on the processor, with `FoldTrainer`'s interface.

    Everything that a fold learns comes from its training clips. Where the baseline leaves a choice
    (see `Baseline.candidates`), each fold makes its own: its training subjects are split into
    parts, each candidate predicts each part from the others, and the one with the best UF1 pooled
    over all parts (classes without a clip left out; of equals, the first) is fitted on all
    training clips. (`GridSearchCV` would average the parts' scores instead of pooling their clips.)

    Attributes:
        fits_once: True: there are no epochs.
        folds: All folds, in order.
        choices: Fold name -> hyper-parameter -> the value chosen, for the folds trained so far.
        parameter_bytes: 0: a baseline leaves no checkpoint.
        state_bytes: 0: nor snapshots.
        folds_per_device: 0: no accelerator is used.
    """

    fits_once = True
    parameter_bytes = 0
    state_bytes = 0
    folds_per_device = 0

    def __init__(
        self,
        baseline: Baseline,
        inputs: np.ndarray,
        labels: np.ndarray,
        folds: Sequence[Fold],
        *,
        seed: int,
        subjects: np.ndarray,
        sources: np.ndarray,
        inner_parts: int = 5,
    ) -> None:
        """Checks everything and fits nothing yet.

        Args:
            baseline: One of `BASELINES`.
            inputs: `(N, S, S, Ch)` float32, all clips.
            labels: `(N,)` integer classes.
            folds: The folds, in order.
            seed: Root of the splits of subjects into parts; fits draw no random numbers.
            subjects: `(N,)` str, no two subjects of one name.
            sources: `(N,)` str, the data set of each clip.
            inner_parts: Parts that a fold's training subjects are split into for a choice.

        Raises:
            UserError: No fold, a fold without training or test clips, inputs that are not finite,
                a hyper-parameter that is impossible or does not fit the inputs.
        """
        self.folds = list(folds)
        self.choices: dict[str, dict[str, Any]] = {}
        self._baseline, self._inputs, self._labels = baseline, inputs, labels
        self._subjects, self._sources = subjects, sources
        self._seed, self._inner_parts = seed, inner_parts
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
            f"  {shown(fold.name)}: {count(int(fold.train.sum()), 'training clip')}, "
            + count(int(fold.test.sum()), "test clip")
            for fold in self.folds
            if not fold.train.any() or not fold.test.any()
        ]
        if lacking:
            raise UserError("a fold needs training clips and test clips\n" + "\n".join(lacking))
        bad = np.flatnonzero(~np.isfinite(self._inputs).all(axis=(1, 2, 3)))
        if len(bad):
            clips = ", ".join(f"{row} ({self._subjects[row]})" for row in bad)
            raise UserError(
                f"inputs of {count(len(bad), 'clip')} are not finite: row {clips}; correct the "
                "data and build the data set again"
            )

    def rounds(self, done: Sequence[str] = ()) -> list[list[Fold]]:
        """The rounds, of one fold each, without the folds named in `done`."""
        return [[fold] for fold in self.folds if fold.name not in done]

    def train(
        self,
        folds: Sequence[Fold],
        epochs: int = 1,
        on_progress: Callable[[Progress], None] | None = None,
        keeping: Keeping | None = None,
        wanted: Collection[str] | None = None,
    ) -> list[FoldResult]:
        """Fits each fold's baseline on its training clips and predicts its test clips.

        As `FoldTrainer.train`, but a fit has one epoch, no snapshots (`keeping`) and no parameters
        to return (`wanted`); `on_progress` is called after every fold.

        Raises:
            UserError: `epochs` is not 1, a choice with fewer subjects than parts, or a loss or
                logit that is not finite; names the fold.
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
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            baseline = self._choose(fold, inputs, labels).fit(inputs, labels)
        _pass_on(caught, fold)
        logits = baseline.logits(self._inputs[fold.test])
        chances = special.log_softmax(baseline.logits(inputs), axis=1)
        loss = float(-chances[np.arange(len(labels)), labels].mean())
        if not np.isfinite(loss) or not np.isfinite(logits).all():
            raise UserError(
                f"fold {fold.name}: loss or logits are not finite; check the inputs and {baseline}"
            )
        self.choices[fold.name] = baseline.chosen_from(self._baseline)
        return FoldResult(fold, logits[None], np.array([loss], np.float32), None)

    def _choose(self, fold: Fold, inputs: np.ndarray, labels: np.ndarray) -> Baseline:
        """The candidate that best predicts the training subjects, each part from the others."""
        candidates = self._baseline.candidates()
        if len(candidates) == 1:
            return candidates[0]
        part = protocols.inner_folds(
            protocols.Split(fold.stream or fold.name, ~fold.train),
            self._subjects,
            self._sources,
            parts=self._inner_parts,
            count=self._inner_parts,
            seed=self._seed + fold.repetition,
        )[fold.train]
        scores = []
        for candidate in candidates:
            predicted = cross_val_predict(candidate, inputs, labels, cv=PredefinedSplit(part))
            scores.append(metrics.uf1(labels, predicted, candidate.num_classes, "skip"))
        return candidates[int(np.argmax(scores))]


def _pass_on(caught: Sequence[warnings.WarningMessage], fold: Fold) -> None:
    """Prints one line about fits that did not converge; warns of anything else again."""
    unconverged = []
    for one in caught:
        if issubclass(one.category, ConvergenceWarning):
            unconverged.append(" ".join(str(one.message).split()))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if unconverged:
        fits = count(len(unconverged), "fit")
        hosts.tell(
            f"fold {shown(fold.name)}: {fits} did not converge, its results are rough: "
            f"{unconverged[0]}"
        )
