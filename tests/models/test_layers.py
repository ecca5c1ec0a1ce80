import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from htnet_jax.models.layers import (
    FEW_ROWS,
    LAYER_NORM_EPS,
    MAX_ROWWISE_HEIGHT,
    Conv3x3,
    Dense,
    LayerNorm,
    gelu,
    max_pool_3x3_stride_2,
    product,
    torch_uniform,
)

assert_close = np.testing.assert_allclose


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def fast_key(seed):
    """A key whose generator compiles in no time."""
    return jax.random.key(seed, impl="rbg")


# --- slow references, float64 ---------------------------------------------------------------------


def slow_conv(x, kernel, bias):
    """Zero padding 1, cross-correlation, one output number at a time."""
    batch, height, width, _ = x.shape
    out = np.zeros((batch, height, width, kernel.shape[-1]))
    for b, i, j, f in np.ndindex(out.shape):
        total = float(bias[f])
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                if 0 <= i + di < height and 0 <= j + dj < width:
                    pixel = x[b, i + di, j + dj].astype(np.float64)
                    total += pixel @ kernel[di + 1, dj + 1, :, f].astype(np.float64)
        out[b, i, j, f] = total
    return out


def slow_pool(x):
    """Window rows 2i-1..2i+1, columns 2j-1..2j+1, clipped to the map (-inf padding)."""
    batch, height, width, channels = x.shape
    out = np.zeros((batch, -(-height // 2), -(-width // 2), channels), x.dtype)
    for b, i, j, c in np.ndindex(out.shape):
        rows = slice(max(2 * i - 1, 0), 2 * i + 2)
        columns = slice(max(2 * j - 1, 0), 2 * j + 2)
        out[b, i, j, c] = x[b, rows, columns, c].max()
    return out


# --- torch_uniform, product, Dense ----------------------------------------------------------------


def test_torch_uniform_fills_its_interval_evenly():
    values = np.asarray(torch_uniform(16)(fast_key(0), (40, 100)))
    assert values.dtype == np.float32
    assert values.min() >= -0.25
    assert values.max() < 0.25
    # A uniform distribution: quarters of the interval hold about a quarter of the draws each.
    counts, _ = np.histogram(values, bins=[-0.25, -0.125, 0, 0.125, 0.25])
    assert_close(counts / values.size, 0.25, atol=0.03)
    assert values.std() == pytest.approx(0.25 / math.sqrt(3), rel=0.03)


@pytest.mark.parametrize("lead", [(), (2, 1, 3)])
def test_product_is_a_matrix_product_over_the_last_axis(lead):
    x, kernel = normal(0, *lead, 5), normal(1, 5, 4)
    out = product(jnp.asarray(x), jnp.asarray(kernel))
    assert out.shape == (*lead, 4)
    assert_close(out, x.astype(np.float64) @ kernel.astype(np.float64), rtol=1e-5, atol=1e-6)


def test_dense_by_hand():
    params = {"kernel": jnp.array([[1.0, 2.0, 0.0], [10.0, 0.0, -1.0]]), "bias": jnp.arange(3.0)}
    out = Dense(3).apply({"params": params}, jnp.array([[[1.0, 2.0]], [[0.0, -1.0]]]))
    # (1, 2): 1+20+0, 2+0+1, 0-2+2; (0, -1): -10+0, 0+1, 1+2.
    assert out.tolist() == [[[21.0, 3.0, 0.0]], [[-10.0, 1.0, 3.0]]]


@pytest.mark.parametrize("lead", [(), (2, 3, 2)])
def test_dense_against_numpy(lead):
    x, kernel, bias = normal(0, *lead, 7), normal(1, 7, 5), normal(2, 5)
    out = Dense(5).apply({"params": {"kernel": kernel, "bias": bias}}, jnp.asarray(x))
    assert out.shape == (*lead, 5)
    expected = x.astype(np.float64) @ kernel.astype(np.float64) + bias
    assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_dense_initialisation_depends_on_the_inputs_only():
    params = jax.jit(Dense(200).init)(fast_key(3), jnp.zeros((1, 25)))["params"]
    assert {key: value.shape for key, value in params.items()} == {
        "kernel": (25, 200),
        "bias": (200,),
    }
    for value, tolerance in ((params["kernel"], 0.03), (params["bias"], 0.12)):
        value = np.asarray(value)
        assert value.dtype == np.float32
        # 1 / sqrt(25) bounds the bias as well: its own fan-in is not defined.
        assert np.abs(value).max() <= 0.2
        assert np.abs(value).max() > 0.19
        assert value.std() == pytest.approx(0.2 / math.sqrt(3), rel=tolerance)


def test_kernel_and_bias_are_drawn_independently():
    params = jax.jit(Dense(8).init)(fast_key(3), jnp.zeros((1, 1)))["params"]
    assert not np.array_equal(params["kernel"][0], params["bias"])


# --- LayerNorm ------------------------------------------------------------------------------------


def test_layer_norm_by_hand():
    params = {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([0.0, 5.0])}
    out = LayerNorm().apply({"params": params}, jnp.array([[3.0, 7.0], [4.0, 4.0]]))
    # Mean 5, biased variance 4: -1 and 1, up to eps / 8; a constant gives the bias.
    assert_close(out, [[-1.0, 7.0], [0.0, 5.0]], rtol=2e-6)


@pytest.mark.parametrize(
    ("scale", "offset"),
    [
        (1.0, 0.0),
        (0.01, 0.0),  # variance 1e-4: an eps of 1e-6, or outside the root, would be off by percents
        (0.1, 200.0),  # E[x^2] - E[x]^2 in float32 would lose every digit
    ],
)
def test_layer_norm_against_numpy(scale, offset):
    x = normal(0, 2, 3, 4, 11) * np.float32(scale) + np.float32(offset)
    gain, bias = normal(1, 11), normal(2, 11)
    out = jax.jit(LayerNorm().apply)({"params": {"scale": gain, "bias": bias}}, x)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    root = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    assert out.shape == x.shape
    assert_close(out, centred / root * gain + bias, rtol=1e-5, atol=1e-5 if offset == 0 else 2e-3)


def test_layer_norm_eps_is_pytorchs():
    assert LAYER_NORM_EPS == 1e-5
    # Variance 1e-5 equals eps: the result is 1/sqrt(2) of the normed one.
    x = jnp.array([[-1.0, 1.0]]) * 1e-5**0.5
    out = LayerNorm().apply({"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}, x)
    assert_close(out, [[-(0.5**0.5), 0.5**0.5]], rtol=1e-5)


def test_layer_norm_starts_as_the_identity_map():
    params = jax.jit(LayerNorm().init)(fast_key(0), jnp.zeros((2, 6)))["params"]
    assert set(params) == {"scale", "bias"}
    assert np.array_equal(params["scale"], np.ones(6, np.float32))
    assert np.array_equal(params["bias"], np.zeros(6, np.float32))


def test_layer_norm_keeps_float32_statistics_for_bfloat16():
    """At 200 bfloat16 steps by 1: statistics in bfloat16 would be far off."""
    x = jnp.asarray(np.arange(190, 206, dtype=np.float32).reshape(1, 16), jnp.bfloat16)
    params = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    out = LayerNorm(jnp.bfloat16).apply({"params": params}, x)
    assert out.dtype == jnp.bfloat16
    wide = np.arange(16) - 7.5
    assert_close(np.asarray(out, np.float32)[0], wide / wide.std(), rtol=2**-8)


# --- product --------------------------------------------------------------------------------------


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


# --- Conv3x3 --------------------------------------------------------------------------------------

# Heights on both sides of the switch between the two forms; widths beside, above and below them.
SIZES = [(3, 1), (2, 2), (5, 3), (4, 4), (1, 5), (6, 6)]


def test_sizes_reach_both_forms():
    assert sorted(height for height, _ in SIZES) == [1, 2, 3, 4, 5, 6]
    assert 1 <= MAX_ROWWISE_HEIGHT < 6


@pytest.mark.parametrize("height", [3, 5])
def test_conv_by_hand(height):
    """A single 1 in the middle prints the kernel upside down and mirrored."""
    kernel = np.arange(1.0, 10.0, dtype=np.float32).reshape(3, 3, 1, 1)
    x = np.zeros((1, height, 3, 1), np.float32)
    x[0, 1, 1] = 1
    bias = np.array([0.5], np.float32)
    out = jax.jit(Conv3x3(1).apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    expected = np.full((height, 3), 0.5)
    expected[:3] += [[9, 8, 7], [6, 5, 4], [3, 2, 1]]
    assert np.array_equal(out[0, :, :, 0], expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_conv_against_a_loop_and_its_gradient_against_xlas_convolution(height, width):
    x, kernel, bias = normal(0, 2, height, width, 3), normal(1, 3, 3, 3, 4), normal(2, 4)
    cotangent = jnp.asarray(normal(3, 2, height, width, 4))

    def ours(x, kernel, bias):
        return Conv3x3(4).apply({"params": {"kernel": kernel, "bias": bias}}, x)

    def theirs(x, kernel, bias):
        layout = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=layout
        )
        return out + bias.reshape(1, 1, 1, -1)

    @jax.jit
    def both(*inputs):
        out, pull_back = jax.vjp(ours, *inputs)
        return out, pull_back(cotangent), jax.vjp(theirs, *inputs)[1](cotangent)

    out, actual, expected = both(x, kernel, bias)
    assert out.shape == (2, height, width, 4)
    assert_close(out, slow_conv(x, kernel, bias), rtol=1e-5, atol=1e-5)
    for mine, xlas in zip(actual, expected, strict=True):
        assert_close(mine, xlas, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("lead", "width"), [((), 2), ((2, 3), 2), ((2, 3), 5)])
def test_conv_takes_any_leading_axes(lead, width):
    x, kernel, bias = normal(0, *lead, 3, width, 2), normal(1, 3, 3, 2, 4), normal(2, 4)
    out = jax.jit(Conv3x3(4).apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    assert out.shape == (*lead, 3, width, 4)
    expected = slow_conv(x.reshape(-1, 3, width, 2), kernel, bias)
    assert_close(out, expected.reshape(out.shape), rtol=1e-5, atol=1e-5)


def test_conv_initialisation():
    params = jax.jit(Conv3x3(50).init)(fast_key(1), jnp.zeros((1, 2, 2, 4)))["params"]
    assert {key: value.shape for key, value in params.items()} == {
        "kernel": (3, 3, 4, 50),
        "bias": (50,),
    }
    bound = 1 / 6  # fan-in 9 * 4
    for value, tolerance in ((params["kernel"], 0.05), (params["bias"], 0.2)):
        value = np.asarray(value)
        assert value.dtype == np.float32
        assert np.abs(value).max() <= bound
        assert np.abs(value).max() > 0.9 * bound
        assert value.std() == pytest.approx(bound / math.sqrt(3), rel=tolerance)


@pytest.mark.parametrize("width", [2, 5])
def test_conv_in_bfloat16(width):
    x, kernel, bias = normal(0, 1, 2, width, 3), normal(1, 3, 3, 3, 4), normal(2, 4)
    layer = Conv3x3(4, jnp.bfloat16)
    out = jax.jit(layer.apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    assert out.dtype == jnp.bfloat16
    assert_close(np.asarray(out, np.float32), slow_conv(x, kernel, bias), atol=0.2)
    shapes = jax.eval_shape(layer.init, fast_key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(np.float32)}


# --- max-pool -------------------------------------------------------------------------------------

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
