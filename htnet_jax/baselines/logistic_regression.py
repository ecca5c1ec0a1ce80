"""Principal components and class-weighted logistic regression."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from htnet_jax.baselines import common, features, majority

# scikit-learn's default of 1e-4 leaves errors of 0.01 in the logits.
TOLERANCE = 1e-6
# More than its default of 100; a fit on 400 clips takes some hundred.
MAX_ITERATIONS = 10_000


@dataclasses.dataclass(frozen=True)
class LogisticRegression(common.Baseline):
    """Multinomial logistic regression on the leading principal components of the flattened input.

    The inputs are centred and divided by their range (see `Features`), so their unit does not
    matter. Every class weighs the same: a clip weighs n / (classes * clips of its class). The
    logits are log-odds, for a softmax.

    Both attributes may be tuples of values to choose from.

    Attributes:
        components: Principal components kept; 0: no PCA.
        C: Inverse strength of the penalty on the squared weights; scikit-learn's default is 1.
    """

    components: int | tuple[int, ...] = 100
    C: float | tuple[float, ...] = 1.0

    CHOOSABLE: ClassVar[tuple[str, ...]] = ("components", "C")

    def check(self) -> None:
        """See `Baseline.check`."""
        super().check()
        features.check_components(self.components)
        common.check_value("C", self.C, common.is_positive, "a positive number")

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> common.Fitted:
        """See `Baseline.fit`; where all clips have one class, that is what is said of any clip."""
        from sklearn import linear_model

        inputs, labels = common.training_set(self, inputs, labels)
        if len(np.unique(labels)) == 1:
            return majority.MajorityClass(self.num_classes).fit(inputs, labels)
        (plain,) = self.candidates()
        seen = features.Features.fit(inputs, plain.components)
        estimator = linear_model.LogisticRegression(
            C=plain.C, class_weight="balanced", tol=TOLERANCE, max_iter=MAX_ITERATIONS
        )
        return FittedLogisticRegression(seen, estimator.fit(seen(inputs), labels), self.num_classes)


@dataclasses.dataclass(frozen=True, eq=False)
class FittedLogisticRegression:
    """Logistic regression on features.

    Attributes:
        features: See `Features`.
        estimator: The fitted scikit-learn classifier.
        num_classes: C.
    """

    features: features.Features
    estimator: Any
    num_classes: int

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """`(m, S, S, Ch)` inputs -> `(m, C)` float32."""
        scores = self.estimator.decision_function(self.features(inputs))
        return common.all_classes(scores, self.estimator.classes_, self.num_classes)
