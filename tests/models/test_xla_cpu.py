"""Forms for XLA's CPU backend against slow references, PyTorch's and XLA's own functions."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fakes.modules import normal
from flax import linen as nn

from htnet_jax.models.xla_cpu import (
    FEW_ROWS,
    MAX_ROWWISE_HEIGHT,
    channel_maximum,
    channel_mean,
    convolve,
    convolve_small_maps,
    gelu,
    max_pool_3x3_stride_2,
    product,
)

assert_close = np.testing.assert_allclose


def slow_pool(x):
    """Window rows 2i-1..2i+1, columns 2j-1..2j+1, clipped to the map (-inf padding)."""
    batch, height, width, channels = x.shape
    out = np.zeros((batch, -(-height // 2), -(-width // 2), channels), x.dtype)
    for b, i, j, c in np.ndindex(out.shape):
        rows = slice(max(2 * i - 1, 0), 2 * i + 2)
        columns = slice(max(2 * j - 1, 0), 2 * j + 2)
        out[b, i, j, c] = x[b, rows, columns, c].max()
    return out


# --- products -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (2, 1, 3)])
def test_product_is_a_matrix_product_over_the_last_axis(lead):
    x, kernel = normal(0, *lead, 5), normal(1, 5, 4)
    out = product(jnp.asarray(x), jnp.asarray(kernel))
    assert out.shape == (*lead, 4)
    assert_close(out, x.astype(np.float64) @ kernel.astype(np.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "depth"), [(1, 8), (3, 12), (FEW_ROWS, 8), (1, 14), (FEW_ROWS + 1, 8)]
)
def test_product_and_its_gradient_for_few_and_many_rows(rows, depth):
    """Depths of eight terms, of four, and of a number that neither divides."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 1, depth)).astype(np.float32)
    kernel = rng.standard_normal((depth, 6)).astype(np.float32)
    weights = rng.standard_normal((rows, 1, 6)).astype(np.float32)
    assert_close(jax.jit(product)(x, kernel), x.astype(float) @ kernel, rtol=1e-5, atol=1e-5)
    scalar = jax.jit(jax.grad(lambda x, k: (product(x, k) * weights).sum(), argnums=(0, 1)))
    by_x, by_kernel = scalar(x, kernel)
    assert_close(by_x, weights @ kernel.T.astype(float), rtol=1e-5, atol=1e-5)
    assert_close(by_kernel, x[:, 0].T.astype(float) @ weights[:, 0], rtol=1e-5, atol=1e-5)


def test_product_of_no_rows():
    assert jax.jit(product)(np.zeros((0, 8), np.float32), np.ones((8, 3))).shape == (0, 3)


@pytest.mark.parametrize("rows", [1, FEW_ROWS + 1])
def test_product_takes_kernels_of_another_type(rows):
    x = np.ones((rows, 8), np.float32)
    kernel = jnp.full((8, 3), 1 / 3, jnp.bfloat16)
    out = jax.jit(product)(x, kernel)
    assert out.dtype == jnp.float32
    # 1/3 in bfloat16 is 0.333984375; eight of them are exact in float32.
    assert np.array_equal(out, np.full((rows, 3), 8 * 0.333984375, np.float32))


def test_product_of_bfloat16_sums_in_float32():
    """256 + 7 x 1 in bfloat16, whose numbers are 2 apart there, would stay at 256."""
    x = jnp.ones((1, 8), jnp.bfloat16)
    kernel = jnp.asarray([[256.0]] + [[1.0]] * 7, jnp.bfloat16)
    out = jax.jit(product)(x, kernel)
    assert out.dtype == jnp.bfloat16
    assert float(out[0, 0]) == 264  # 263, rounded to the even one of its neighbours


# --- convolutions ---------------------------------------------------------------------------------


def torch_convolve(x, kernel, stride, padding):
    """1-D to 3-D; also the gradients of the sum of the squares."""
    axes = x.ndim - 2
    x = torch.from_numpy(np.moveaxis(np.asarray(x, np.float64), -1, 1).copy()).requires_grad_()
    kernel = np.moveaxis(np.asarray(kernel, np.float64), (-1, -2), (0, 1)).copy()
    kernel = torch.from_numpy(kernel).requires_grad_()
    function = getattr(torch.nn.functional, f"conv{axes}d")
    out = function(x, kernel, stride=stride, padding=padding)
    (out**2).sum().backward()
    of_x, of_kernel = x.grad.numpy(), kernel.grad.numpy()
    return (
        np.moveaxis(out.detach().numpy(), 1, -1),
        np.moveaxis(of_x, 1, -1),
        np.moveaxis(of_kernel, (0, 1), (-1, -2)),
    )


@pytest.mark.parametrize(
    ("sizes", "kernel", "stride", "padding"),
    [
        ((7,), (3,), (2,), (1,)),
        ((6,), (4,), (1,), (0,)),
        ((1, 2), (3, 3), (1, 1), (1, 1)),
        ((5, 6), (3, 3), (1, 1), (1, 1)),
        ((5, 6), (3, 3), (2, 2), (1, 1)),
        ((6, 7), (3, 3), (2, 2), (2, 2)),
        ((6, 5), (3, 2), (2, 1), (1, 0)),
        ((4, 5, 6), (3, 3, 3), (1, 2, 2), (1, 1, 1)),
        ((5, 4, 4), (3, 1, 2), (2, 1, 2), (1, 0, 1)),
    ],
)
def test_convolve_and_its_gradients_in_a_loop(sizes, kernel, stride, padding):
    x, kernel = normal(0, 2, *sizes, 3), normal(1, *kernel, 3, 4)

    def squares(x, kernel):
        out = convolve(x, kernel, stride, padding)
        return (out**2).sum(), out

    @jax.jit
    def in_a_loop(x, kernel):
        gradient = jax.grad(squares, (0, 1), has_aux=True)
        return jax.lax.map(lambda x: gradient(x, kernel), x[None])

    (of_x, of_kernel), out = in_a_loop(x, kernel)
    expected = torch_convolve(x, kernel, stride, padding)
    for actual, wanted in zip((out, of_x, of_kernel), expected, strict=True):
        assert_close(actual[0], wanted, rtol=1e-4, atol=1e-4)


# Stem; stages; frames fewer than the kernel is deep; windows that meet padding only; holes in time.
CLIPS = [
    ((3, 9, 8), (3, 7, 7), (1, 2, 2), (1, 3, 3)),
    ((4, 4, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ((5, 5, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((1, 3, 3), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ((2, 3, 3), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((1, 3, 2), (1, 3, 1), (2, 1, 1), (1, 1, 0)),
    ((7, 2, 3), (2, 1, 3), (3, 1, 2), (0, 0, 1)),
]


@pytest.mark.parametrize(("sizes", "kernel", "stride", "padding"), CLIPS)
def test_clips_by_frames_are_a_3d_convolution(sizes, kernel, stride, padding):
    """In float64, of two folds side by side, in a loop; also both gradients."""

    def plain(x, kernel):
        margins = [(zeros, zeros) for zeros in padding]
        orders = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(x, kernel, stride, margins, dimension_numbers=orders)

    def both(function):
        def sines(x, kernel):
            out = function(x, kernel)
            return jnp.sin(out).sum(), out

        gradient = jax.vmap(jax.grad(sines, (0, 1), has_aux=True))
        return jax.jit(lambda *arrays: jax.lax.map(lambda pair: gradient(*pair), arrays))

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        arrays = rng.normal(size=(1, 2, 2, *sizes, 3)), rng.normal(size=(1, 2, *kernel, 3, 4))
        actual = both(lambda x, kernel: convolve(x, kernel, stride, padding))(*arrays)
        expected = both(plain)(*arrays)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == np.float64
        assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_clips_in_bfloat16():
    x, kernel = normal(0, 1, 3, 4, 4, 2), normal(1, 3, 3, 3, 2, 2)
    expected = convolve(x, kernel, (1, 1, 1), (1, 1, 1))
    out = convolve(jnp.asarray(x, jnp.bfloat16), kernel, (1, 1, 1), (1, 1, 1))
    assert out.dtype == jnp.bfloat16
    assert_close(out.astype(np.float32), expected, rtol=0.05, atol=0.1)


def test_no_3d_convolution_reaches_the_compiler():
    """XLA's own is up to a hundred times slower in a loop. Nor is elementwise work done twice."""

    def squares(x, kernel):
        y = convolve(jnp.maximum(x, 0), kernel, (1, 1, 1), (1, 1, 1))
        return (convolve(y, kernel, (1, 1, 1), (1, 1, 1)) ** 2).sum()

    gradient = jax.jit(jax.grad(squares, 1))
    x, kernel = normal(0, 1, 3, 4, 4, 2), normal(1, 3, 3, 3, 2, 2)
    text = gradient.lower(x, kernel).compile().as_text()
    windows = [line for line in text.splitlines() if " convolution(" in line]
    assert windows
    assert not any(re.search(r"size=\d+x\d+x\d+", line) for line in windows)
    assert len(re.findall(r" maximum\(", text)) == 1


def test_clips_and_a_kernel_that_is_not_finite():
    kernel = normal(1, 3, 3, 3, 2, 2)
    kernel[0, 0, 0, 0, 0] = np.inf
    assert np.isnan(convolve(normal(0, 1, 3, 4, 4, 2), kernel, (1, 1, 1), (1, 1, 1))).all()


def test_stride_2_is_not_flaxs_same():
    """On an even map "SAME" pads right and below only: another result."""
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = 1
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    assert convolve(x, kernel, (2, 2), (1, 1)).reshape(-1).tolist() == [0, 2, 8, 10]


# Heights on both sides of the switch between the two forms; widths beside, above and below them.
SMALL_MAPS = [(3, 1), (2, 2), (5, 3), (4, 4), (1, 5), (6, 6)]


def test_sizes_reach_both_forms():
    assert sorted(height for height, _ in SMALL_MAPS) == [1, 2, 3, 4, 5, 6]
    assert 1 <= MAX_ROWWISE_HEIGHT < 6


@pytest.mark.parametrize(("height", "width"), SMALL_MAPS)
def test_small_maps_and_their_gradients(height, width):
    x, kernel = normal(0, 2, height, width, 3), normal(1, 3, 3, 3, 4)

    def squares(x, kernel):
        out = convolve_small_maps(x, kernel)
        return (out**2).sum(), out

    gradients, out = jax.jit(jax.grad(squares, (0, 1), has_aux=True))(x, kernel)
    expected = torch_convolve(x, kernel, 1, 1)
    for actual, wanted in zip((out, *gradients), expected, strict=True):
        assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


# --- maxima and means -----------------------------------------------------------------------------

POOL_SIZES = [(1, 1), (1, 4), (2, 2), (3, 3), (5, 4), (8, 7)]


def flax_pool(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def test_pool_by_hand():
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    pool = jax.jit(max_pool_3x3_stride_2)
    # Windows end at row/column 1 and 3: not those of SAME padding, which would start at 0.
    assert pool(x)[0, :, :, 0].tolist() == [[5.0, 7.0], [13.0, 15.0]]
    # Negative numbers: padding with zeros would win.
    assert pool(-x - 1)[0, :, :, 0].tolist() == [[-1.0, -2.0], [-5.0, -6.0]]


@pytest.mark.parametrize(("height", "width"), POOL_SIZES)
def test_pool_against_a_loop_and_its_gradient_against_flax(height, width):
    x = normal(width, 2, height, width, 3) - 3
    x[0] = np.round(x[0])  # a few integers: ties everywhere
    shape = (2, -(-height // 2), -(-width // 2), 3)
    # Integers, so that sums over overlapping windows are exact in any order.
    cotangent = jnp.asarray(np.random.default_rng(1).integers(1, 100, shape).astype(np.float32))

    @jax.jit
    def both(x):
        out, pull_back = jax.vjp(max_pool_3x3_stride_2, x)
        return out, pull_back(cotangent)[0], jax.vjp(flax_pool, x)[1](cotangent)[0]

    out, actual, expected = both(x)
    assert np.array_equal(out, slow_pool(x))
    assert np.array_equal(actual, expected)


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_pool_takes_any_leading_axes(lead):
    x = normal(0, *lead, 5, 4, 2)
    out = jax.jit(max_pool_3x3_stride_2)(x)
    assert out.shape == (*lead, 3, 2, 2)
    assert np.array_equal(out, slow_pool(x.reshape(-1, 5, 4, 2)).reshape(out.shape))


def test_pool_sends_the_gradient_of_a_tie_to_the_first_element():
    cotangent = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    pull_back = jax.jit(lambda x: jax.vjp(max_pool_3x3_stride_2, x)[1](cotangent))
    (gradient,) = pull_back(jnp.zeros((1, 3, 3, 1)))
    # The four windows of a constant 3x3 map begin at (0, 0), (0, 1), (1, 0) and (1, 1).
    assert gradient[0, :, :, 0].tolist() == [[1, 2, 0], [3, 4, 0], [0, 0, 0]]


def test_pool_breaks_ties_in_row_major_order():
    """The first row wins although the second row's maximum lies in an earlier column."""
    x = jnp.array([[0.0, 0.0, 9.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]]).reshape(1, 3, 3, 1)
    gradient = jax.jit(jax.grad(lambda x: max_pool_3x3_stride_2(x)[0, 0, 1, 0]))(x)
    assert gradient[0, :, :, 0].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_pool_passes_nan_on_as_pytorch_does():
    """One map for each position of the NaN, as the batch."""
    x = np.zeros((16, 16, 1), np.float32)
    x[np.arange(16), np.arange(16)] = np.nan
    x = x.reshape(16, 4, 4, 1)
    out = jax.jit(max_pool_3x3_stride_2)(x)
    assert np.array_equal(np.isnan(out), np.isnan(slow_pool(x)))


def test_largest_channel():
    """A NaN passes; of a tie the first takes the gradient, as in PyTorch."""
    x = np.array([[1.0, 3.0, 3.0], [-1.0, -2.0, -np.inf], [0.0, np.nan, 1.0]], np.float32)
    np.testing.assert_array_equal(channel_maximum(x), [[3.0], [-1.0], [np.nan]])
    gradient = jax.grad(lambda x: (channel_maximum(x) * jnp.array([[2.0], [5.0]])).sum())(x[:2])
    assert gradient.tolist() == [[0, 2, 0], [5, 0, 0]]


def test_channel_mean_and_its_gradient():
    x, slope = normal(0, 2, 3, 5), normal(1, 2, 3, 1)
    assert_close(channel_mean(x), x.mean(-1, keepdims=True), rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: (channel_mean(x) * slope).sum())(x)
    assert_close(gradient, np.broadcast_to(slope / 5, x.shape), rtol=1e-6)


# --- gelu -----------------------------------------------------------------------------------------


def test_gelu_is_the_erf_form():
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    expected = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(float)]
    assert_close(gelu(jnp.asarray(x)), expected, rtol=2e-6, atol=1e-6)
    # The tanh approximation is out by up to 5e-4, so the tolerance above tells them apart.
    assert np.abs(np.asarray(jax.nn.gelu(x, approximate=True)) - expected).max() > 1e-4


def test_gelu_gradient():
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    gradient = jax.jit(jax.vmap(jax.grad(gelu)))(jnp.asarray(x))
    wide = x.astype(float)
    cumulative = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in wide])
    density = np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    assert_close(gradient, cumulative + wide * density, rtol=1e-5, atol=1e-6)


def test_gelu_keeps_the_type():
    out = gelu(jnp.asarray([[1.0, -1.0]], jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert_close(np.asarray(out, np.float32), [[0.8413447, -0.1586553]], rtol=0.02)
