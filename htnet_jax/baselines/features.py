"""Clips as short rows of numbers: centred, in units of their own range, principal components."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from htnet_jax.baselines import common


def check_components(components: Any) -> None:
    """Checks a number of principal components, or a tuple of them.

    Raises:
        ValueError: Not whole numbers from 0.
    """

    def is_right(value: Any) -> bool:
        return common.is_count(value) or (value == 0 and not isinstance(value, (bool, float)))

    common.check_value("components", components, is_right, "a whole number, 0 for no PCA")


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What was measured on the training clips, to be done to all clips.

    Attributes:
        mean: `(S * S * Ch,)` float64, the mean training clip.
        scale: Largest less smallest value of the training clips; 1 if there is no difference.
            Divided by it, results do not depend on the unit of the inputs; for pictures of 0 to
            255 this is the usual division by 255.
        axes: `(S * S * Ch, k)` float64, orthonormal principal axes, the largest
            variance first; None: all values are kept.
    """

    mean: np.ndarray
    scale: float
    axes: np.ndarray | None

    @classmethod
    def fit(cls, inputs: np.ndarray, components: int) -> Features:
        """Measures the training clips.

        Args:
            inputs: `(n, S, S, Ch)` float64.
            components: Principal components to keep, or as many as the clips have; 0, or clips
                that are all the same: no PCA.
        """
        rows = inputs.reshape(len(inputs), -1)
        mean, scale = rows.mean(axis=0), float(np.ptp(rows)) or 1.0
        if not components or not np.ptp(rows, axis=0).any():
            return cls(mean, scale, None)
        from sklearn import decomposition

        # The exact solver: the others draw random numbers, or are slower for so many components.
        count = min(components, *rows.shape)
        pca = decomposition.PCA(count, svd_solver="full").fit((rows - mean) / scale)
        return cls(mean, scale, pca.components_.T)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """`(m, S, S, Ch)` inputs -> `(m, features)` float64."""
        rows = inputs.reshape(len(inputs), -1).astype(np.float64)
        rows = (rows - self.mean) / self.scale
        return rows if self.axes is None else rows @ self.axes
