"""Class-weighted kernel ridge regression that knows that a mirrored face shows the same emotion."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from htnet_jax.baselines import common


@dataclasses.dataclass(frozen=True)
class KernelRidge(common.Baseline):
    """Kernel ridge regression on the whole-face flow (layout `none`), averaged over a fixed grid.

    Each channel of each clip is centred on its median, divided by its own spread, compressed by
    tanh, split into its positive and its negative part, and smoothed. The kernel of two clips is
    k(d) = exp(-d^2 / (2 h^2)) of their distance d, averaged with the k of the distance between the
    one and the mirror image of the other (left and right exchanged, u negated). There is one
    regression on the classes for each bandwidth h and ridge; the logits are the mean of their
    scores. They are about 1 wide: good for ranking, not log-odds.

    An offset and a positive factor of a clip's channel change nothing: min-max scaled pictures and
    flows in pixels are the same to it. The smoothing is given by the method; the other constants
    are round numbers fixed before the first run on real data, none was chosen on results.

    Attributes:
        channels: Names of the inputs' channels, in order and separated by commas; one is `u`.
        compression: Where tanh starts to level off, in root mean square deviations of the clip's
            channel from its median.
        smoothing: Standard deviation of the Gaussian, in pixels of the input; meant for the
            28 x 28 flows of the HTNet release.
        bandwidths: h, in medians of the distance between two different training clips: octaves
            around 1, the usual "median heuristic".
        ridges: Penalties; a clip's kernel with itself is 1/2 to 1, the mean weight of a clip 1.
    """

    channels: str = "u,v,strain"
    compression: float = 1.0
    smoothing: float = 1.5
    bandwidths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    ridges: tuple[float, ...] = (0.01, 0.1, 1.0)

    def check(self) -> None:
        """See `Baseline.check`."""
        super().check()
        if not isinstance(self.channels, str) or self.channels.split(",").count("u") != 1:
            raise ValueError(
                f"channels={self.channels!r} must name the inputs' channels, one of them u"
            )
        for name in ("compression", "smoothing"):
            if isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name}={getattr(self, name)!r} must be one number")
        for name in ("compression", "smoothing", "bandwidths", "ridges"):
            common.check_value(name, getattr(self, name), common.is_positive, "positive")

    def check_inputs(self, shape: tuple[int, ...]) -> None:
        """See `Baseline.check_inputs`."""
        super().check_inputs(shape)
        if shape[-1] != len(self.channels.split(",")):
            raise ValueError(
                f"the inputs have {shape[-1]} channels, but channels={self.channels!r}; give the "
                "names of dataset.channels"
            )

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> FittedKernelRidge:
        """See `Baseline.fit`."""
        from sklearn import kernel_ridge

        inputs, labels = common.training_set(self, inputs, labels)
        train = self.features(inputs)
        classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        weights = len(labels) / (len(classes) * counts[index])
        # Under these weights the mean of each class's column is 0: no intercept is needed.
        targets = np.eye(len(classes))[index] - 1 / len(classes)

        squared = self.squared_distances(train, train)
        between = np.sqrt(squared[0][np.triu_indices(len(train), 1)])
        median = float(np.median(between[between > 0])) if between.any() else 1.0
        bandwidths = tuple(median * factor for factor in common.options(self.bandwidths))
        coefficients = []
        for kernel in kernels(squared, bandwidths):
            scores = [
                kernel_ridge.KernelRidge(alpha=ridge, kernel="precomputed")
                .fit(kernel, targets, sample_weight=weights)
                .dual_coef_
                for ridge in common.options(self.ridges)
            ]
            # Scores are linear in these, so their mean over the ridges gives the mean score.
            coefficients.append(np.mean(scores, axis=0))
        return FittedKernelRidge(self, train, bandwidths, np.stack(coefficients), classes)

    def features(self, inputs: np.ndarray) -> np.ndarray:
        """What clips are compared by.

        Args:
            inputs: `(n, S, S, Ch)`.

        Returns:
            `(n, S, S, 2, Ch)` float64: positive parts, then negative parts (as positive numbers).

        Raises:
            ValueError: As `check_inputs`.
        """
        from scipy import ndimage

        self.check_inputs(inputs.shape)
        values = inputs.astype(np.float64)
        values -= np.median(values, axis=(1, 2), keepdims=True)
        spread = np.sqrt(np.square(values).mean(axis=(1, 2), keepdims=True))
        # A channel without any motion has no spread, and stays 0.
        values = np.tanh(values / (self.compression * np.where(spread > 0, spread, 1.0)))
        parts = np.stack([np.maximum(values, 0), np.maximum(-values, 0)], axis=-2)
        return ndimage.gaussian_filter(parts, self.smoothing, axes=(1, 2))

    def mirrored(self, features: np.ndarray) -> np.ndarray:
        """The features of the mirrored faces: `(n, S, S, 2, Ch)` to the same."""
        u = self.channels.split(",").index("u")
        found = features[:, :, ::-1].copy()
        found[..., u] = found[..., ::-1, u]
        return found

    def squared_distances(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances of features `(m, ...)` to `(n, ...)` ones, and to their mirror images.

        Returns:
            Two `(m, n)` float64.
        """
        b_mirrored = self.mirrored(b)
        a, b, b_mirrored = (one.reshape(len(one), -1) for one in (a, b, b_mirrored))
        return common.squared_distances(a, b), common.squared_distances(a, b_mirrored)


@dataclasses.dataclass(frozen=True, eq=False)
class FittedKernelRidge:
    """Kernel ridge regressions, one a bandwidth (the ridges are averaged already).

    Attributes:
        baseline: What was fitted.
        train: `(n, S, S, 2, Ch)` float64, features of the training clips.
        bandwidths: B numbers, h in the unit of the features.
        coefficients: `(B, n, k)` float64.
        classes: `(k,)` the classes trained on.
    """

    baseline: KernelRidge
    train: np.ndarray
    bandwidths: tuple[float, ...]
    coefficients: np.ndarray
    classes: np.ndarray

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """`(m, S, S, Ch)` inputs -> `(m, C)` float32."""
        squared = self.baseline.squared_distances(self.baseline.features(inputs), self.train)
        pairs = zip(kernels(squared, self.bandwidths), self.coefficients, strict=True)
        scores = np.mean([kernel @ coefficients for kernel, coefficients in pairs], axis=0)
        return common.all_classes(scores, self.classes, self.baseline.num_classes)


def kernels(
    squared: tuple[np.ndarray, np.ndarray], bandwidths: tuple[float, ...]
) -> Iterator[np.ndarray]:
    """The kernel of each bandwidth h, in the unit of the distances.

    Args:
        squared: From `KernelRidge.squared_distances`.
        bandwidths: Positive numbers.

    Yields:
        `(m, n)` float64: exp(-d^2 / (2 h^2)), averaged over the two distances d.
    """
    for bandwidth in bandwidths:
        yield sum(np.exp(-distances / (2 * bandwidth**2)) for distances in squared) / len(squared)
