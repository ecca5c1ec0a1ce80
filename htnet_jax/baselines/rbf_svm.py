"""A class-weighted support vector machine with a Gaussian (RBF) kernel."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from htnet_jax.baselines import common, features, majority


@dataclasses.dataclass(frozen=True)
class RBFSVM(common.Baseline):
    """A support vector machine on the flattened input or its principal components.

    The kernel is exp(-g |a - b|^2) with g = `gamma` / (features * variance of the training
    features), so the unit of the inputs does not matter. Every class weighs the same: C is
    multiplied by n / (classes * clips of its class). The logits are the one-against-rest scores
    that scikit-learn makes of the votes of the machines for pairs of classes: good for ranking,
    not log-odds.

    The attributes may be tuples of values to choose from.

    Attributes:
        components: Principal components kept; 0: no PCA.
        C: Weight of a training clip on the wrong side; scikit-learn's default is 1.
        gamma: Multiple of scikit-learn's gamma="scale", its default.
    """

    components: int | tuple[int, ...] = 0
    C: float | tuple[float, ...] = 1.0
    gamma: float | tuple[float, ...] = 1.0

    CHOOSABLE: ClassVar[tuple[str, ...]] = ("components", "C", "gamma")

    def check(self) -> None:
        """See `Baseline.check`."""
        super().check()
        features.check_components(self.components)
        common.check_value("C", self.C, common.is_positive, "a positive number")
        common.check_value("gamma", self.gamma, common.is_positive, "a positive number")

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> common.Fitted:
        """See `Baseline.fit`; where all clips have one class, that is what is said of any clip."""
        from sklearn import svm

        inputs, labels = common.training_set(self, inputs, labels)
        if len(np.unique(labels)) == 1:
            return majority.MajorityClass(self.num_classes).fit(inputs, labels)
        (plain,) = self.candidates()
        seen = features.Features.fit(inputs, plain.components)
        rows = seen(inputs)
        # Where all clips are the same there is no variance, and any width does.
        gamma = plain.gamma / (rows.shape[1] * (rows.var() or 1.0))
        # With thousands of values a clip, NumPy's kernel is many times faster than libsvm's.
        estimator = svm.SVC(C=plain.C, kernel="precomputed", class_weight="balanced")
        estimator.fit(np.exp(-gamma * common.squared_distances(rows, rows)), labels)
        return FittedRBFSVM(seen, rows, gamma, estimator, self.num_classes)


@dataclasses.dataclass(frozen=True, eq=False)
class FittedRBFSVM:
    """A support vector machine on features.

    Attributes:
        features: See `Features`.
        train: `(n, k)` float64, features of the training clips.
        gamma: Factor of the squared distances in the kernel.
        estimator: The fitted scikit-learn classifier, on kernels.
        num_classes: C.
    """

    features: features.Features
    train: np.ndarray
    gamma: float
    estimator: Any
    num_classes: int

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """`(m, S, S, Ch)` inputs -> `(m, C)` float32."""
        squared = common.squared_distances(self.features(inputs), self.train)
        scores = self.estimator.decision_function(np.exp(-self.gamma * squared))
        return common.all_classes(scores, self.estimator.classes_, self.num_classes)
