"""Layers shared by the networks: PyTorch's defaults, in forms that XLA's CPU backend runs well.

Everything is built from plain array operations, so any JAX transformation works on it. The forms
matter only for speed; the functions computed are the textbook ones.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# torch.nn.LayerNorm's and the release's eps; Flax's own default is 1e-6.
LAYER_NORM_EPS = 1e-5

# Maps up to this height are convolved row by row: see `Conv3x3`.
MAX_ROWWISE_HEIGHT = 4

# On a CPU up to this many rows are multiplied as `_few_rows` does it. Measured at 1024 x 4096 on 2
# cores: one row takes about as long as reading the weights; each further row reads them again.
FEW_ROWS = 4

# Terms of a fused sum in `_few_rows`; of 16 bfloat16 terms XLA makes several passes, 10 times
# slower.
_TERMS = 8


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for the weights *and* biases of linear and convolution layers.

    `kaiming_uniform_` with a = sqrt(5) is U(-b, b) with b = 1/sqrt(fan_in); biases use the same b.

    Args:
        fan_in: Inputs that each output sums over (channels x kernel area).
    """
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`(..., K) @ (K, C) -> (..., C)` as one two-dimensional matrix product.

    With more than two dimensions XLA's CPU backend copies and transposes around the product, and
    computes the elementwise work before it once for every use.

    Args:
        x: Of the type of the computation.
        kernel: Is converted to the type of x.

    Returns:
        Of the type of x.
    """
    flat = x.reshape(-1, x.shape[-1])
    if 0 < len(flat) <= FEW_ROWS and flat.shape[-1] % (_TERMS // 2) == 0:
        flat = jax.lax.platform_dependent(flat, kernel, cpu=_few_rows, default=_matmul)
    else:
        flat = _matmul(flat, kernel)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel.astype(x.dtype)


def _few_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`(M, K) @ (K, C)` for few rows, each of which takes about as long as reading the kernel.

    XLA's CPU product wants its kernel whole and in the type of x: a part of a larger array, or one
    of another type, it first writes to memory with a single thread. Sums of `_TERMS` products are
    fused with all that, and spread over the cores. (All rows in one such sum were 3 times slower.)
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows = [_one_row(row, kernel, wide) for row in x.astype(wide)]
    return jnp.stack(rows).astype(x.dtype)


def _one_row(row: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    terms = _TERMS if len(kernel) % _TERMS == 0 else _TERMS // 2
    size = len(kernel) // terms
    pieces = [slice(at, at + size) for at in range(0, len(kernel), size)]
    parts = [row[piece, None] * kernel[piece].astype(dtype) for piece in pieces]
    while len(parts) > 1:
        parts = [one + other for one, other in zip(parts[::2], parts[1::2], strict=True)]
    # Not a sum: by default XLA gives that, and all products before it, to a slower library.
    return jnp.ones(size, dtype) @ parts[0]


class Dense(nn.Module):
    """`x @ kernel + bias`, initialised as PyTorch's `nn.Linear`.

    Parameters: `kernel` `(C, features)` and `bias` `(features,)`, float32.

    Attributes:
        features: Output channels.
        dtype: Type of the computation.
        kernel_init: How the kernel starts; default: as PyTorch's.
        bias_init: How the bias starts; default: as PyTorch's.
    """

    features: int
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer | None = None
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., C)` to `(..., features)`."""
        init = torch_uniform(x.shape[-1])
        kernel = self.param("kernel", self.kernel_init or init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init or init, (self.features,))
        x, bias = nn.dtypes.promote_dtype(x, bias, dtype=self.dtype)
        flat = product(x.reshape(-1, x.shape[-1]), kernel) + bias.reshape(1, -1)
        return flat.reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
    """LN over channels: biased variance, eps under the root, a gain and a bias per channel.

    The variance is taken in two passes because the inputs (raw 0..255) are far from zero mean,
    where E[x^2] - E[x]^2 loses digits. Parameters: `scale` (1s at the start) and `bias` (0s),
    `(C,)` float32.

    Attributes:
        dtype: Type of the result; the statistics are float32 at least.
        eps: Added to the variance; default 1e-5 as PyTorch's.
    """

    dtype: Any = jnp.float32
    eps: float = LAYER_NORM_EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., C)` to the same shape."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        flat = x.reshape(-1, channels).astype(wide)
        centred = flat - flat.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        out = normed * scale.astype(wide).reshape(1, -1) + bias.astype(wide).reshape(1, -1)
        return out.astype(self.dtype).reshape(x.shape)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x * (1 + erf(x / sqrt(2))) / 2, any shape.

    The same function as `jax.nn.gelu(x, approximate=False)`, whose erfc costs half as much again.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * np.asarray(0.5**0.5, x.dtype)))


class Conv3x3(nn.Module):
    """3x3 convolution with padding 1 and bias, as matrix products.

    `nn.Conv` is not used because XLA's CPU convolution takes seconds on the tiny maps (2x2 and
    4x4 pixels, up to 1024 channels) where this takes milliseconds. Parameters are those of
    `nn.Conv(features, (3, 3))`: `kernel` `(3, 3, C, features)`, `bias` `(features,)`, initialised
    as PyTorch's `nn.Conv2d`.

    Attributes:
        features: Output channels.
        dtype: Type of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., H, W, C)` to `(..., H, W, features)`."""
        height, width, channels = x.shape[-3:]
        init = torch_uniform(9 * channels)
        kernel = self.param("kernel", init, (3, 3, channels, self.features))
        bias = self.param("bias", init, (self.features,))
        out_shape = (*x.shape[:-1], self.features)
        x, bias = nn.dtypes.promote_dtype(x, bias, dtype=self.dtype)
        x = x.reshape(-1, height, width, channels)
        convolve = _rowwise_conv if height <= MAX_ROWWISE_HEIGHT else _shifted_conv
        return (convolve(x, kernel) + bias.reshape(1, 1, 1, -1)).reshape(out_shape)


def _shifted_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution, zero padding 1: nine shifted slices side by side, then one product."""
    height, width, channels = x.shape[1:]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, row : row + height, column : column + width]
        for row in range(3)
        for column in range(3)
    ]
    taps = jnp.concatenate(shifted, axis=-1)
    return product(taps, kernel.reshape(9 * channels, -1))


def _rowwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution, zero padding 1: a product for each pair of an output and an input row.

    On a low map many of the nine taps meet only padding above and below: here they are left out
    (on a 2x2 map 12 of 36 products, on a 4x4 map 24 of 144). No matrix is built from the kernel, as
    for one banded product, which was up to 3 times slower.
    """
    height, width, channels = x.shape[1:]
    features = kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    shifted = [padded[:, :, column : column + width] for column in range(3)]
    taps = jnp.concatenate(shifted, axis=-1)
    rows = jnp.moveaxis(taps, 1, 0).reshape(height, -1, 3 * channels)
    # In two dimensions, so that a slice of it is a slice of the parameter itself.
    kernels = kernel.reshape(9 * channels, features)
    depth = 3 * channels
    out = [
        sum(
            product(rows[row + tap - 1], kernels[tap * depth : (tap + 1) * depth])
            for tap in range(3)
            if 0 <= row + tap - 1 < height
        )
        for row in range(height)
    ]
    return jnp.stack([part.reshape(-1, width, features) for part in out], axis=1)


def _halve(x: jax.Array, axis: int) -> jax.Array:
    """1-D max-pool along `axis`: width 3, stride 2, padding 1."""
    # An odd last element is kept by slicing with stride 2; its missing neighbour counts as -inf.
    even = jax.lax.slice_in_dim(x, 0, None, 2, axis)
    odd = jax.lax.slice_in_dim(x, 1, None, 2, axis)
    gap = jnp.full_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis), -jnp.inf)
    if x.shape[axis] % 2:
        odd = jnp.concatenate([odd, gap], axis)
    before = jnp.concatenate([gap, jax.lax.slice_in_dim(odd, 0, -1, axis=axis)], axis)
    return first_maximum(first_maximum(before, even), odd)


def first_maximum(a: jax.Array, b: jax.Array) -> jax.Array:
    """The maximum; a NaN passes, and the gradient of a tie goes to `a`, as in PyTorch's pool.

    (`jnp.maximum` would give half of it to each.)
    """
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def max_pool_3x3_stride_2(x: jax.Array) -> jax.Array:
    """3x3 max-pool with stride 2 and -inf padding of 1, as PyTorch's `MaxPool2d(3, 2, 1)`.

    Two 1-D passes, because the gradient of `nn.max_pool` (a select-and-scatter) is several times
    slower on XLA's CPU backend, both to compile and to run.

    Args:
        x: `(..., H, W, C)` floats.

    Returns:
        `(..., ceil(H / 2), ceil(W / 2), C)`.
    """
    # Columns first, so that a tie goes to the first element in row-major order.
    return _halve(_halve(x, x.ndim - 2), x.ndim - 3)


_MASK: contextvars.ContextVar = contextvars.ContextVar("batch_mask", default=None)


@contextlib.contextmanager
def batch_mask(mask: jax.Array | None) -> Iterator[None]:
    """STUB."""
    token = _MASK.set(mask)
    try:
        yield
    finally:
        _MASK.reset(token)
