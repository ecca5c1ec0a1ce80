"""Batch normalisation as PyTorch's, for batches of which some clips may be padding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# torch.nn.BatchNorm2d's defaults. (Flax writes the momentum the other way round: its 0.9 is 0.1.)
BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1


class BatchNorm(nn.Module):
    """`torch.nn.BatchNorm2d`: a gain and a bias per channel after normalising over all positions.

    In training the batch's own mean and *biased* variance normalise it; the running variance takes
    up the *unbiased* one, n / (n - 1) of it, as in PyTorch. (Flax's `nn.BatchNorm` keeps the biased
    one. At 14x14 pixels and batch 2 they differ by 0.3 %.) In evaluation the running ones are used.
    The variance is taken in two passes: E[x^2] - E[x]^2 loses digits.

    Parameters: `scale` (1s at the start) and `bias` (0s); collection `batch_stats`: `mean` (0s) and
    `var` (1s); all `(C,)` float32. With `train=True` that collection must be mutable.

    Attributes:
        dtype: Type of the result; the statistics are float32 at least.
        momentum: Share of the batch's statistics in the new running ones.
        eps: Added to the variance.
    """

    dtype: Any = jnp.float32
    momentum: float = BATCH_NORM_MOMENTUM
    eps: float = BATCH_NORM_EPS

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, weights: jax.Array | None = None) -> jax.Array:
        """Normalises a batch.

        Args:
            x: `(B, ..., C)` floats.
            train: Whether the batch's own statistics are used, and the running ones moved.
            weights: `(B,)`, 1 for a clip and 0 for padding, which does not enter any statistics
                (but is normalised as well); None: all are clips. If all are padding, the running
                statistics stay, and the result is finite.

        Returns:
            The same shape, in `dtype`.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = x.astype(wide)

        def along(values: jax.Array) -> jax.Array:
            return values.astype(wide).reshape(*(1,) * (x.ndim - 1), channels)

        if train:
            mean, variance, count = _statistics(x, weights)
            if not self.is_initializing():
                share = self.momentum * (count > 0).astype(wide)
                unbiased = variance * (count / jnp.maximum(count - 1, 1))
                for running, batch in ((running_mean, mean), (running_var, unbiased)):
                    old = running.value
                    moved = (1 - share) * old.astype(wide) + share * batch.reshape(channels)
                    running.value = jax.lax.stop_gradient(moved).astype(old.dtype)
        else:
            mean, variance = along(running_mean.value), along(running_var.value)
        gain = jax.lax.rsqrt(variance + self.eps) * along(scale)
        return ((x - mean) * gain + along(bias)).astype(self.dtype)


def _statistics(x: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and biased variance of every channel, `(1, ..., C)`, and the number of values of each.

    Of no value at all they are 0 and 1, so that nothing grows without bounds from layer to layer.
    """
    axes = tuple(range(x.ndim - 1))
    if weights is None:
        mean = x.mean(axis=axes, keepdims=True)
        variance = jnp.square(x - mean).mean(axis=axes, keepdims=True)
        return mean, variance, jnp.asarray(x.size // x.shape[-1], x.dtype)
    weights = weights.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    count = weights.sum() * (x[0].size // x.shape[-1])
    divisor = jnp.maximum(count, 1)
    mean = (x * weights).sum(axis=axes, keepdims=True) / divisor
    variance = (jnp.square(x - mean) * weights).sum(axis=axes, keepdims=True) / divisor
    return mean, jnp.where(count > 0, variance, 1), count
