"""Forms that exist for XLA's CPU backend only, with the reason and what was measured for each.

All compute textbook functions, and all are built from plain array operations, so that they run on
every backend. Figures were measured on 2 CPU cores at HTNet's and MMNet's published sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Up to this many rows are multiplied by `_few_rows`. At 1024 x 4096 one row takes about as long as
# reading the kernel, and each further row reads it again.
FEW_ROWS = 4

# Terms of a fused sum in `_few_rows`. With 16 bfloat16 terms XLA makes several passes: 10 times
# slower.
_TERMS = 8

# Maps up to this height are convolved by `_rowwise_conv`, higher ones by `_shifted_conv`.
MAX_ROWWISE_HEIGHT = 4


# --- products -------------------------------------------------------------------------------------


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`(..., K) @ (K, C) -> (..., C)` as one two-dimensional matrix product.

    With more than two dimensions XLA copies and transposes around the product, and computes the
    elementwise work before it once for every use.

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

    XLA's product wants its kernel whole and in the type of x: a part of a larger array, or one of
    another type, it first writes to memory with a single thread. Sums of `_TERMS` products are
    fused with all that, and spread over the cores. (All rows in one such sum: 3 times slower.)
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


# --- convolutions ---------------------------------------------------------------------------------


def convolve(
    x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding: Sequence[int]
) -> jax.Array:
    """Cross-correlation with a kernel, as PyTorch's `conv1d`, `conv2d` and `conv3d` without bias.

    JAX's own gradients use orders of axes for which XLA's CPU backend has no fast path inside the
    body of a loop; there they were 20 to 100 times slower (a training epoch is a loop over its
    steps). So the gradient is written by hand, and forward-mode differentiation (`jax.jvp`) is
    refused. Over three axes it is computed by `_by_frames`: XLA's own 3-D convolution takes up to a
    hundred times as long inside a loop. Other backends get the plain one and JAX's own gradients.

    Args:
        x: `(B, *sizes, C)` floats.
        kernel: `(*kernel sizes, C, features)`; is converted to the type of x.
        stride: Positions between two windows, for each axis.
        padding: Zeros on both sides of each axis.

    Returns:
        `(B, *((size + 2 padding - kernel size) // stride + 1), features)` of the type of x.
    """
    return _convolve(x, kernel.astype(x.dtype), tuple(stride), tuple(padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, ...], padding: tuple[int, ...]
) -> jax.Array:
    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _correlate(x, kernel, _both_sides(padding), strides=stride)

    if len(stride) < 3:
        return plain(x, kernel)
    by_frames = functools.partial(_apart, _by_frames, stride, padding)
    return jax.lax.platform_dependent(x, kernel, cpu=by_frames, default=plain)


def _convolve_forward(x: jax.Array, kernel: jax.Array, stride: Any, padding: Any) -> Any:
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _convolve_backward(
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    kept: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    def own(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Any:
        margins = _both_sides(padding)
        _, pull = jax.vjp(lambda x, k: _correlate(x, k, margins, strides=stride), x, kernel)
        return pull(gradient)

    def in_order(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Any:
        return (
            _gradient_of_map(x.shape[1:-1], kernel, gradient, stride, padding),
            _gradient_of_kernel(x, kernel.shape[:-2], gradient, stride, padding),
        )

    by_frames = functools.partial(_apart, _gradients_by_frames, stride, padding)
    on_cpu = in_order if len(stride) < 3 else by_frames
    return jax.lax.platform_dependent(*kept, gradient, cpu=on_cpu, default=own)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _both_sides(padding: Sequence[int]) -> list[tuple[int, int]]:
    return [(zeros, zeros) for zeros in padding]


def _spans(count: Sequence[int], stride: Sequence[int]) -> list[int]:
    """For each axis: positions from the first one of the first window to that of the last."""
    return [step * (windows - 1) + 1 for step, windows in zip(stride, count, strict=True)]


def _gradient_of_map(
    sizes: Sequence[int],
    kernel: jax.Array,
    gradient: jax.Array,
    stride: Sequence[int],
    padding: Sequence[int],
) -> jax.Array:
    """`(B, *sizes, C)`: the gradient, spread out again, with the kernel turned around.

    A convolution of channels-last maps, the one order with a fast path.
    """
    spans = _spans(gradient.shape[1:-1], stride)
    margins = [
        (size - 1 - zeros, side - span + zeros)
        for side, size, span, zeros in zip(sizes, kernel.shape[:-2], spans, padding, strict=True)
    ]
    turned = jnp.flip(kernel, tuple(range(len(sizes)))).swapaxes(-1, -2)
    return _correlate(gradient, turned, margins, spread=stride)


def _gradient_of_kernel(
    x: jax.Array,
    sizes: Sequence[int],
    gradient: jax.Array,
    stride: Sequence[int],
    padding: Sequence[int],
) -> jax.Array:
    """`(*sizes, C, features)`: channels are the batch, clips the channels, the gradient the kernel.

    Again a convolution of channels-last maps.
    """
    spans = _spans(gradient.shape[1:-1], stride)
    margins = [
        (zeros, size - 1 + span - side - zeros)
        for side, size, span, zeros in zip(x.shape[1:-1], sizes, spans, padding, strict=True)
    ]
    by_channel = jnp.swapaxes(x, 0, -1)
    as_kernel = jnp.moveaxis(gradient, 0, -2)
    of_kernel = _correlate(by_channel, as_kernel, margins, holes=stride)
    return jnp.moveaxis(of_kernel, 0, -2)


def _apart(
    function: Callable[..., Any],
    stride: Sequence[int],
    padding: Sequence[int],
    x: jax.Array,
    kernel: jax.Array,
    *gradient: jax.Array,
) -> Any:
    """`function(stride, padding, x, kernel, *gradient)`, kept apart from what stands around it.

    XLA fuses elementwise work into every operation that reads it. A network's normalisations and
    ReLUs would be computed again for each use, from the start of the stage, most slowly where axes
    are turned (a narrow R3D's training step: 629 ms instead of 335, and 258 MB instead of 94). What
    goes into and comes out of a conditional is written to memory once. It must hang on a value, or
    XLA removes it: if the kernel's first number is not finite, all of the result is NaN.
    """
    function = functools.partial(function, stride, padding)

    def lost(*arrays: jax.Array) -> Any:
        shapes = jax.eval_shape(function, *arrays)
        return jax.tree.map(lambda one: jnp.full(one.shape, jnp.nan, one.dtype), shapes)

    is_sound = jnp.isfinite(kernel.reshape(-1)[0])
    return jax.lax.cond(is_sound, function, lost, x, kernel, *gradient)


def _by_frames(
    stride: Sequence[int], padding: Sequence[int], x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """A 3-D convolution as 2-D convolutions of the frames, summed over the kernel's depth.

    The taps of all depths that meet the same frames stand side by side as features, so that
    a frame is read once, and narrow layers multiply by larger matrices. (Side by side as channels,
    or one convolution a tap, is up to twice as slow.) Taps that meet only padding are left out.
    """
    (step, *steps), (zeros, *margins) = stride, padding
    count = (x.shape[1] + 2 * zeros - len(kernel)) // step + 1
    parts = []
    for phase, taps in _taps(x.shape[1], len(kernel), step, zeros, count).items():
        frames = x[:, phase::step]
        features = jnp.concatenate([kernel[tap] for tap, _ in taps], axis=-1)
        maps = _correlate(_together(frames), features, _both_sides(margins), strides=steps)
        maps = maps.reshape(*frames.shape[:2], *maps.shape[1:])
        for (_, first), part in zip(taps, jnp.split(maps, len(taps), axis=-1), strict=True):
            parts.append(_placed(part, -first, count))
    if not parts:
        sides = [
            (side + 2 * margin - size) // one + 1
            for side, margin, size, one in zip(
                x.shape[2:4], margins, kernel.shape[1:3], steps, strict=True
            )
        ]
        return jnp.zeros((len(x), count, *sides, kernel.shape[-1]), x.dtype)
    return sum(parts[1:], start=parts[0])


def _gradients_by_frames(
    stride: Sequence[int],
    padding: Sequence[int],
    x: jax.Array,
    kernel: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Both gradients of `_by_frames`."""
    (step, *steps), (zeros, *margins) = stride, padding
    frames, count, channels = x.shape[1], gradient.shape[1], x.shape[-1]
    phases = _taps(frames, len(kernel), step, zeros, count)
    of_kernel = {}
    for phase, taps in phases.items():
        seen = x[:, phase::step]
        moved = [_placed(gradient, first, seen.shape[1]) for _, first in taps]
        features = _together(jnp.concatenate(moved, axis=-1))
        found = _gradient_of_kernel(_together(seen), kernel.shape[1:3], features, steps, margins)
        for (tap, _), part in zip(taps, jnp.split(found, len(taps), axis=-1), strict=True):
            of_kernel[tap] = part
    nothing = jnp.zeros(kernel.shape[1:], kernel.dtype)
    stacked = jnp.stack([of_kernel.get(tap, nothing) for tap in range(len(kernel))])
    if not of_kernel:
        return jnp.zeros_like(x), stacked
    used = sorted(of_kernel)
    # As of a 2-D convolution from the channels of all taps.
    wide = jnp.concatenate([kernel[tap] for tap in used], axis=-2)
    maps = _gradient_of_map(x.shape[2:4], wide, _together(gradient), steps, margins)
    maps = maps.reshape(len(x), count, *maps.shape[1:])
    parts = [
        _placed(maps[..., at * channels : (at + 1) * channels], tap - zeros, frames, step)
        for at, tap in enumerate(used)
    ]
    return sum(parts[1:], start=parts[0]), stacked


def _taps(
    frames: int, depth: int, step: int, zeros: int, count: int
) -> dict[int, list[tuple[int, int]]]:
    """Phase -> (tap, first) of each tap that meets any of the frames phase, phase + step, ...

    The first window meets the frame of number `first` among them, the next window the next one;
    numbers outside are padding.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    for tap in range(depth):
        first, phase = divmod(tap - zeros, step)
        if max(0, -first) < min(count, len(range(phase, frames, step)) - first):
            found.setdefault(phase, []).append((tap, first))
    return found


def _together(clips: jax.Array) -> jax.Array:
    """`(B, T, ...)` -> `(B T, ...)`."""
    return clips.reshape(-1, *clips.shape[2:])


def _placed(clips: jax.Array, first: int, count: int, step: int = 1) -> jax.Array:
    """`(B, T, ...)` -> `(B, count, ...)`: frame t at position first + step t; zeros elsewhere."""
    span = step * (clips.shape[1] - 1) + 1
    ends = [(0, 0, 0)] * clips.ndim
    ends[1] = (first, count - first - span, step - 1)
    return jax.lax.pad(clips, jnp.zeros((), clips.dtype), ends)


def _correlate(
    x: jax.Array,
    kernel: jax.Array,
    padding: Sequence[tuple[int, int]],
    *,
    strides: Sequence[int] | None = None,
    spread: Sequence[int] | None = None,
    holes: Sequence[int] | None = None,
) -> jax.Array:
    """`spread` puts zeros between the positions of x, `holes` between those of the kernel."""
    axes = len(padding)
    last, map_axes = axes + 1, tuple(range(1, axes + 1))
    channels_last = jax.lax.ConvDimensionNumbers(
        lhs_spec=(0, last, *map_axes),
        rhs_spec=(last, axes, *range(axes)),
        out_spec=(0, last, *map_axes),
    )
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides or (1,) * axes,
        padding,
        lhs_dilation=spread,
        rhs_dilation=holes,
        dimension_numbers=channels_last,
    )


def convolve_small_maps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution with stride 1 and zero padding 1, as matrix products.

    XLA's own convolution takes 7.2 s on a batch of 2x2 maps (512 -> 1024 channels), this 0.04 s.

    Args:
        x: `(B, H, W, C)` floats.
        kernel: `(3, 3, C, features)`; is converted to the type of x.

    Returns:
        `(B, H, W, features)` of the type of x.
    """
    return (_rowwise_conv if x.shape[1] <= MAX_ROWWISE_HEIGHT else _shifted_conv)(x, kernel)


def _shifted_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nine shifted slices side by side, then one product."""
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
    """A product for each pair of an output and an input row.

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


# --- maxima ---------------------------------------------------------------------------------------


def first_maximum(a: jax.Array, b: jax.Array) -> jax.Array:
    """The maximum; a NaN passes, and the gradient of a tie goes to `a`, as in PyTorch's pool.

    (`jnp.maximum` would give half of it to each.)
    """
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def max_pool_3x3_stride_2(x: jax.Array) -> jax.Array:
    """3x3 max-pool with stride 2 and -inf padding of 1, as PyTorch's `MaxPool2d(3, 2, 1)`.

    Two 1-D passes: the gradient of `nn.max_pool` (a select-and-scatter) is several times slower,
    both to compile and to run.

    Args:
        x: `(..., H, W, C)` floats.

    Returns:
        `(..., ceil(H / 2), ceil(W / 2), C)`.
    """
    # Columns first, so that a tie goes to the first element in row-major order.
    return _halve(_halve(x, x.ndim - 2), x.ndim - 3)


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


def channel_maximum(x: jax.Array) -> jax.Array:
    """The largest channel of every position; the gradient of a tie goes to one of them.

    By halves: XLA is slow at maxima over the last axis. The gradient of `x.max(axis=-1)` divides by
    the number of channels that equal the maximum. XLA may compute x once more for that comparison,
    rounded otherwise: then none does, and 0 / 0 is NaN (seen with optimisations off).

    Args:
        x: `(..., C)` floats.

    Returns:
        `(..., 1)`.
    """
    while (count := x.shape[-1]) > 1:
        half = count // 2
        left = [] if count % 2 == 0 else [x[..., 2 * half :]]
        larger = first_maximum(x[..., :half], x[..., half : 2 * half])
        x = jnp.concatenate([larger, *left], axis=-1) if left else larger
    return x


# --- sums as products with ones -------------------------------------------------------------------


@jax.custom_vjp
def channel_mean(x: jax.Array) -> jax.Array:
    """The mean of the channels of every position, `(..., C)` -> `(..., 1)`.

    XLA is slow at sums over the last axis.
    """
    ones = jnp.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype)
    return _exact(x.reshape(-1, x.shape[-1]), ones).reshape(*x.shape[:-1], 1)


channel_mean.defvjp(
    lambda x: (channel_mean(x), x.shape),
    lambda shape, gradient: (jnp.broadcast_to(gradient / shape[-1], shape),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalise_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Normalises each channel by its own mean and variance over clips and positions.

    With a gradient of its own: XLA fuses the sums over positions that JAX would derive with all
    that is computed before them, and takes ten times as long for such a sum as for a product with
    ones. Forward-mode differentiation (`jax.jvp`) is refused.

    Args:
        x: `(B, positions, C)` floats.
        scale: `(C,)` gains.
        bias: `(C,)`.
        mask: `(B,)`, 1 for a clip, 0 for padding: normalised, but in no statistics.
        eps: Added to the variance.

    Returns:
        The result; mean and biased variance `(C,)`, which have no gradient; and the number of
        values behind each. Of no value at all they are 0 and 1, so that nothing grows without
        bounds from layer to layer.
    """
    return _normalise_forward(x, scale, bias, mask, eps)[0]


def _normalise_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array, eps: float
) -> tuple[Any, Any]:
    count = mask.sum() * x.shape[1]
    divisor = jnp.maximum(count, 1)
    mean = _exact(mask, _sums(x)) / divisor
    variance = _exact(mask, _sums(jnp.square(x - along(mean)))) / divisor
    variance = jnp.where(count > 0, variance, 1)
    inverse = jax.lax.rsqrt(variance + eps)
    out = (x - along(mean)) * along(inverse * scale) + along(bias)
    return (out, mean, variance, count), (x, scale, mean, inverse, mask, divisor)


def _normalise_backward(eps: float, kept: Any, gradients: Any) -> tuple[jax.Array, ...]:
    del eps
    x, scale, mean, inverse, mask, divisor = kept
    gradient = gradients[0]
    centred = x - along(mean)
    ones = jnp.ones(len(x), x.dtype)
    of_bias = _exact(ones, _sums(gradient))
    projected = _exact(ones, _sums(gradient * centred))
    # What moving the mean and the variance takes back from every clip that enters them.
    share = (mask / divisor).reshape(-1, 1, 1)
    back = share * (along(of_bias) + centred * along(jnp.square(inverse) * projected))
    of_x = along(scale * inverse) * (gradient - back)
    return of_x, inverse * projected, of_bias, jnp.zeros_like(mask)


normalise_batch.defvjp(_normalise_forward, _normalise_backward)


def along(values: jax.Array) -> jax.Array:
    """`(C,)` as `(1, 1, C)`, beside `(B, positions, C)`."""
    return values.reshape(1, 1, -1)


def _sums(x: jax.Array) -> jax.Array:
    """`(B, positions, C)` -> `(B, C)`; clip by clip, so that no sum is so long that it rounds."""
    ones = jnp.ones(x.shape[:2], x.dtype)
    return jnp.einsum("bp,bpc->bc", ones, x, precision=jax.lax.Precision.HIGHEST)


def _exact(a: jax.Array, b: jax.Array) -> jax.Array:
    """A product in float32 even where products may be coarser."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


# --- elementwise ----------------------------------------------------------------------------------


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x * (1 + erf(x / sqrt(2))) / 2, any shape.

    The same function as `jax.nn.gelu(x, approximate=False)`, whose erfc costs half as much again.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * np.asarray(0.5**0.5, x.dtype)))
