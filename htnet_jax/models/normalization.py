"""Batch normalisation as PyTorch's, for batches of which some clips may be padding."""

from __future__ import annotations

import functools
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
        from htnet_jax.models import layers

        if weights is None:
            weights = layers._MASK.get()
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        positions = x.astype(wide).reshape(len(x), -1, channels)
        scale, bias = scale.astype(wide), bias.astype(wide)
        if not train:
            gain = jax.lax.rsqrt(running_var.value.astype(wide) + self.eps) * scale
            out = (positions - _along(running_mean.value.astype(wide))) * _along(gain)
            return (out + _along(bias)).astype(self.dtype).reshape(x.shape)
        clips = jnp.ones(len(x), wide) if weights is None else weights.astype(wide)
        out, mean, variance, count = _normalise(positions, scale, bias, clips, self.eps)
        if not self.is_initializing():
            share = self.momentum * (count > 0).astype(wide)
            unbiased = variance * (count / jnp.maximum(count - 1, 1))
            for running, batch in ((running_mean, mean), (running_var, unbiased)):
                old = running.value
                moved = (1 - share) * old.astype(wide) + share * batch
                running.value = jax.lax.stop_gradient(moved).astype(old.dtype)
        return out.astype(self.dtype).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, weights: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`(B, positions, C)` normalised by its own statistics; those are without a gradient.

    With a gradient of its own: XLA's CPU backend fuses the sums over positions that JAX would
    derive with all that is computed before them, and takes such a sum ten times as long as a
    product with ones. Forward-mode differentiation (`jax.jvp`) is refused.

    Returns:
        The result, mean and biased variance `(C,)`, and the number of values behind each. Of no
        value at all they are 0 and 1, so that nothing grows without bounds from layer to layer.
    """
    return _forward(x, scale, bias, weights, eps)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, weights: jax.Array, eps: float
) -> tuple[Any, Any]:
    count = weights.sum() * x.shape[1]
    divisor = jnp.maximum(count, 1)
    mean = _dot(weights, _sums(x)) / divisor
    variance = _dot(weights, _sums(jnp.square(x - _along(mean)))) / divisor
    variance = jnp.where(count > 0, variance, 1)
    inverse = jax.lax.rsqrt(variance + eps)
    out = (x - _along(mean)) * _along(inverse * scale) + _along(bias)
    return (out, mean, variance, count), (x, scale, mean, inverse, weights, divisor)


def _backward(eps: float, kept: Any, gradients: Any) -> tuple[jax.Array, ...]:
    del eps
    x, scale, mean, inverse, weights, divisor = kept
    gradient = gradients[0]
    centred = x - _along(mean)
    ones = jnp.ones(len(x), x.dtype)
    of_bias = _dot(ones, _sums(gradient))
    projected = _dot(ones, _sums(gradient * centred))
    # What moving the mean and the variance takes back from every clip that enters them.
    share = (weights / divisor).reshape(-1, 1, 1)
    back = share * (_along(of_bias) + centred * _along(jnp.square(inverse) * projected))
    of_x = _along(scale * inverse) * (gradient - back)
    return of_x, inverse * projected, of_bias, jnp.zeros_like(weights)


_normalise.defvjp(_forward, _backward)


def _sums(x: jax.Array) -> jax.Array:
    """`(B, positions, C)` -> `(B, C)`; clip by clip, so that no sum is so long that it rounds."""
    ones = jnp.ones(x.shape[:2], x.dtype)
    return jnp.einsum("bp,bpc->bc", ones, x, precision=jax.lax.Precision.HIGHEST)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    # Statistics are float32 even where products may be coarser.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _along(values: jax.Array) -> jax.Array:
    return values.reshape(1, 1, -1)
