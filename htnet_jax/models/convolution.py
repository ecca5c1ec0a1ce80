"""Convolutions without bias, channels last, padded by the same number of zeros on every side.

Not Flax's "SAME", which with stride 2 pads an even map on the right and below only: PyTorch's
padding of 1 puts the first window one pixel further up and left.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from htnet_jax.models.layers import product, torch_uniform


def kaiming_normal_fan_out(kernel_area: int) -> nn.initializers.Initializer:
    """PyTorch's `kaiming_normal_(mode="fan_out", nonlinearity="relu")`: N(0, 2 / fan_out).

    fan_out is the number of outputs (the kernel's last axis) x `kernel_area`.

    Args:
        kernel_area: Pixels that the kernel covers.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        deviation = (2 / (kernel_area * shape[-1])) ** 0.5
        return deviation * jax.random.normal(key, shape, dtype)

    return init


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Cross-correlation of a map with a kernel, as PyTorch's `conv2d` without bias.

    Its gradient is written by hand, so forward-mode differentiation (`jax.jvp`) is refused.

    Args:
        x: `(B, H, W, C)` floats.
        kernel: `(rows, columns, C, features)`; is converted to the type of x.
        stride: Pixels between two windows, on both axes.
        padding: Zeros on each of the four sides.

    Returns:
        `(B, (H + 2 padding - rows) // stride + 1, ..., features)` of the type of x.
    """
    return _convolve(x, kernel.astype(x.dtype), stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return _correlate(x, kernel, [(padding, padding)] * 2, strides=stride)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> Any:
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: int, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def own(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Any:
        margins = [(padding, padding)] * 2
        _, pull = jax.vjp(lambda x, k: _correlate(x, k, margins, strides=stride), x, kernel)
        return pull(gradient)

    def in_order(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Any:
        return _gradients_in_order(x, kernel, gradient, stride, padding)

    return jax.lax.platform_dependent(*kept, gradient, cpu=in_order, default=own)


def _gradients_in_order(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
    """Both gradients as convolutions of channels-last maps with kernels in `convolve`'s order.

    XLA's CPU backend has a fast path for that order alone. It turns other orders into it, but not
    in the body of a loop, where JAX's own gradients were 20 to 100 times slower (a training epoch
    is a loop over its steps). Other backends know JAX's own ones.
    """
    maps, kernels = x.shape[1:3], kernel.shape[:2]
    starts = [stride * (length - 1) + 1 for length in gradient.shape[1:3]]
    # Of x: the gradient, spread out again, with the kernel upside down.
    margins = [
        (size - 1 - padding, side - start + padding)
        for side, size, start in zip(maps, kernels, starts, strict=True)
    ]
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    of_x = _correlate(gradient, turned, margins, spread=stride)
    # Of the kernel: channels are the batch, clips the channels, and the gradient is the kernel.
    margins = [
        (padding, size - 1 + start - side - padding)
        for side, size, start in zip(maps, kernels, starts, strict=True)
    ]
    by_channel, as_kernel = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
    of_kernel = _correlate(by_channel, as_kernel, margins, holes=stride)
    return of_x, of_kernel.transpose(1, 2, 0, 3)


_convolve.defvjp(_forward, _backward)


def _correlate(
    x: jax.Array,
    kernel: jax.Array,
    padding: Sequence[tuple[int, int]],
    *,
    strides: int = 1,
    spread: int = 1,
    holes: int = 1,
) -> jax.Array:
    """`spread` puts zeros between the pixels of x, `holes` between those of the kernel."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        lhs_dilation=(spread, spread),
        rhs_dilation=(holes, holes),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Conv(nn.Module):
    """3x3 convolution without bias, zero padding 1, as PyTorch's `Conv2d(.., 3, stride, 1)`.

    Parameter: `kernel` `(3, 3, C, features)`, float32.

    Attributes:
        features: Output channels.
        stride: Pixels between two windows.
        dtype: Type of the computation.
        kernel_init: How the kernel starts; default: as PyTorch's `Conv2d`.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(B, H, W, C)` to `(B, ceil(H / stride), ceil(W / stride), features)`."""
        channels = x.shape[-1]
        init = self.kernel_init or torch_uniform(9 * channels)
        kernel = self.param("kernel", init, (3, 3, channels, self.features))
        return convolve(x.astype(self.dtype), kernel, self.stride, 1)


class Pointwise(nn.Module):
    """1x1 convolution without bias, as a matrix product.

    Parameter: `kernel` `(C, features)`, float32.

    Attributes:
        features: Output channels.
        stride: Every so many pixels of a row and rows are used, the first ones included.
        dtype: Type of the computation.
        kernel_init: How the kernel starts; default: as PyTorch's `Conv2d`.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(B, H, W, C)` to `(B, ceil(H / stride), ceil(W / stride), features)`."""
        init = self.kernel_init or torch_uniform(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        return product(x[:, :: self.stride, :: self.stride].astype(self.dtype), kernel)
