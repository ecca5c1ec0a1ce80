"""The steps of the baselines' scikit-learn pipelines: clips -> rows, kernels, scores."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from scipy import ndimage
from sklearn import decomposition, kernel_ridge
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin

# Squared distances below this share of the squared lengths are rounding errors of float64.
_ROUNDING = 1e-12


class Rows(TransformerMixin, BaseEstimator):
    """Clips as rows of float64: centred, in units of their own range, principal components.

    The range is the largest minus the smallest value of the training clips (1 if there is no
    difference), so results do not depend on the unit of the inputs; for images of 0 to 255 this is
    the usual division by 255.
    """

    def __init__(self, components: int) -> None:
        """`components`: to keep, or as many as the clips have; 0, or equal clips: no PCA."""
        self.components = components

    def fit(self, inputs: np.ndarray, labels: Any = None) -> Self:
        """Measures `(n, S, S, Ch)` training clips."""
        rows = _rows(inputs)
        self.mean_, self.scale_ = rows.mean(axis=0), float(np.ptp(rows)) or 1.0
        self.axes_ = None
        if self.components and np.ptp(rows, axis=0).any():
            # The exact solver: the others draw random numbers, or are slower for so many.
            count = min(self.components, *rows.shape)
            pca = decomposition.PCA(count, svd_solver="full")
            self.axes_ = pca.fit((rows - self.mean_) / self.scale_).components_.T
        return self

    def transform(self, inputs: np.ndarray) -> np.ndarray:
        """`(m, S, S, Ch)` inputs -> `(m, features)` float64."""
        rows = (_rows(inputs) - self.mean_) / self.scale_
        return rows if self.axes_ is None else rows @ self.axes_


class GaussianKernel(TransformerMixin, BaseEstimator):
    """exp(-g |a - b|^2) to the training rows, g = `gamma` / (features * variance of the rows)."""

    def __init__(self, gamma: float) -> None:
        """`gamma`: multiple of scikit-learn's gamma="scale"."""
        self.gamma = gamma

    def fit(self, rows: np.ndarray, labels: Any = None) -> Self:
        """Keeps `(n, k)` training rows."""
        self.rows_ = rows
        # Where all clips are the same there is no variance, and any width does.
        self.factor_ = self.gamma / (rows.shape[1] * (rows.var() or 1.0))
        return self

    def transform(self, rows: np.ndarray) -> np.ndarray:
        """`(m, k)` rows -> `(m, n)` float64."""
        return np.exp(-self.factor_ * squared_distances(rows, self.rows_))


class MirroredKernelRidge(ClassifierMixin, BaseEstimator):
    """Kernel ridge regressions on the classes, whose scores are averaged; clips weigh by class.

    The kernel of two clips is k(d) = exp(-d^2 / (2 h^2)) of their distance d, averaged with the k
    of the distance between the one and the mirror image of the other (left and right exchanged, u
    negated). There is one regression for each bandwidth h and ridge.
    """

    def __init__(self, u: int, bandwidths: tuple[float, ...], ridges: tuple[float, ...]) -> None:
        """`u`: index of the channel that a mirror negates; the others as in `KernelRidge`."""
        self.u, self.bandwidths, self.ridges = u, bandwidths, ridges

    def fit(self, parts: np.ndarray, labels: np.ndarray) -> Self:
        """Learns from `(n, S, S, 2, Ch)` parts, see `signed_parts`, and `(n,)` labels."""
        self.classes_, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        weights = len(labels) / (len(counts) * counts[index])
        # Under these weights the mean of each class's column is 0: no intercept is needed.
        targets = np.eye(len(counts))[index] - 1 / len(counts)
        self.parts_ = parts
        squared = self.squared_distances(parts)
        between = np.sqrt(squared[0][np.triu_indices(len(parts), 1)])
        median = float(np.median(between[between > 0])) if between.any() else 1.0
        self.widths_ = [median * factor for factor in self.bandwidths]
        # Scores are linear in the coefficients, so their mean over the ridges gives the mean score.
        self.coefficients_ = [
            np.mean(
                [
                    kernel_ridge.KernelRidge(alpha=ridge, kernel="precomputed")
                    .fit(kernel, targets, sample_weight=weights)
                    .dual_coef_
                    for ridge in self.ridges
                ],
                axis=0,
            )
            for kernel in self.kernels(squared)
        ]
        return self

    def decision_function(self, parts: np.ndarray) -> np.ndarray:
        """`(m, S, S, 2, Ch)` parts -> `(m, classes)` float64 scores."""
        kernels = self.kernels(self.squared_distances(parts))
        pairs = zip(kernels, self.coefficients_, strict=True)
        return np.mean([kernel @ coefficients for kernel, coefficients in pairs], axis=0)

    def squared_distances(self, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of `(m, ...)` parts to the n training clips and to their mirror images, `(m, n)` each."""
        mirrored = mirrored_parts(self.parts_, self.u)
        rows, train, mirrored = (
            one.reshape(len(one), -1) for one in (parts, self.parts_, mirrored)
        )
        return squared_distances(rows, train), squared_distances(rows, mirrored)

    def kernels(self, squared: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
        """The `(m, n)` kernel of each bandwidth, from `squared_distances`."""
        return [
            sum(np.exp(-distances / (2 * width**2)) for distances in squared) / len(squared)
            for width in self.widths_
        ]


def signed_parts(inputs: np.ndarray, compression: float, smoothing: float) -> np.ndarray:
    """Positive and negative parts of a flow, free of its offset and scale.

    Each channel of each clip is centred on its median, divided by its own spread, compressed by
    tanh, split by its sign, and smoothed.

    Args:
        inputs: `(n, S, S, Ch)`.
        compression: See `KernelRidge`.
        smoothing: See `KernelRidge`.

    Returns:
        `(n, S, S, 2, Ch)` float64: positive parts, then negative parts (as positive numbers).
    """
    values = inputs.astype(np.float64)
    values -= np.median(values, axis=(1, 2), keepdims=True)
    spread = np.sqrt(np.square(values).mean(axis=(1, 2), keepdims=True))
    # A channel without any motion has no spread, and stays 0.
    values = np.tanh(values / (compression * np.where(spread > 0, spread, 1.0)))
    parts = np.stack([np.maximum(values, 0), np.maximum(-values, 0)], axis=-2)
    return ndimage.gaussian_filter(parts, smoothing, axes=(1, 2))


def mirrored_parts(parts: np.ndarray, u: int) -> np.ndarray:
    """The `signed_parts` of the mirrored faces; `u` is the channel that changes its sign."""
    found = parts[:, :, ::-1].copy()
    found[..., u] = found[..., ::-1, u]
    return found


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of `(m, k)` to `(n, k)` rows, `(m, n)`; 0 between equal ones."""
    lengths = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    squared = lengths - 2 * a @ b.T
    return np.where(squared > _ROUNDING * lengths, squared, 0.0)


def _rows(inputs: np.ndarray) -> np.ndarray:
    return inputs.reshape(len(inputs), -1).astype(np.float64)
