"""The most frequent class, whatever the clip: the least that anything must beat."""

from __future__ import annotations

import dataclasses

import numpy as np

from htnet_jax.baselines import common


@dataclasses.dataclass(frozen=True)
class MajorityClass(common.Baseline):
    """Says of every clip what is most frequent in training; of equals, the first class.

    The logits are the logarithms of the classes' shares of the training clips.
    """

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> FittedMajority:
        """See `Baseline.fit`."""
        _, labels = common.training_set(self, inputs, labels)
        classes, counts = np.unique(labels, return_counts=True)
        shares = np.log(counts / counts.sum())
        return FittedMajority(common.all_classes(shares[None], classes, self.num_classes))


@dataclasses.dataclass(frozen=True, eq=False)
class FittedMajority:
    """The same logits for every clip.

    Attributes:
        row: `(1, C)` float32.
    """

    row: np.ndarray

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """`(m, ...)` inputs -> `(m, C)` float32."""
        return np.repeat(self.row, len(inputs), axis=0)
