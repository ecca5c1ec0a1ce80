"""The layers by hand, against NumPy and against PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fakes.modules import fast_key, normal

from htnet_jax.models.layers import (
    LAYER_NORM_EPS,
    Conv,
    Dense,
    LayerNorm,
    kaiming_normal_fan_out,
    torch_uniform,
)

assert_close = np.testing.assert_allclose


# --- initial values, Dense ------------------------------------------------------------------------


def test_torch_uniform_fills_its_interval_evenly():
    values = np.asarray(torch_uniform(16)(fast_key(0), (40, 100)))
    assert values.dtype == np.float32
    assert values.min() >= -0.25
    assert values.max() < 0.25
    # A uniform distribution: quarters of the interval hold about a quarter of the draws each.
    counts, _ = np.histogram(values, bins=[-0.25, -0.125, 0, 0.125, 0.25])
    assert_close(counts / values.size, 0.25, atol=0.03)
    assert values.std() == pytest.approx(0.25 / math.sqrt(3), rel=0.03)


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


def test_kaiming_normal():
    kernel = np.asarray(kaiming_normal_fan_out(9)(jax.random.key(0), (3, 3, 40, 50)))
    theirs = torch.nn.init.kaiming_normal_(torch.empty(50, 40, 3, 3), mode="fan_out")
    assert kernel.std() == pytest.approx(float(theirs.std()), rel=0.03)
    assert abs(kernel.mean()) < 0.03 * kernel.std()
    # No uniform distribution of the same width.
    assert np.abs(kernel).max() > 3 * kernel.std()


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


# --- Conv -----------------------------------------------------------------------------------------


def torch_conv(layer, params, x):
    """PyTorch's layer in float64 on a batch with one leading axis."""
    axes = len(layer.kernel_size)
    kernel = params["kernel"].reshape(*layer.kernel_size, x.shape[-1], layer.features)
    kernel = np.moveaxis(np.asarray(kernel, np.float64), (-1, -2), (0, 1)).copy()
    tensor = torch.from_numpy(np.moveaxis(np.asarray(x, np.float64), -1, 1).copy())
    bias = torch.from_numpy(params["bias"]).double() if layer.use_bias else None
    function = getattr(torch.nn.functional, f"conv{axes}d")
    out = function(
        tensor, torch.from_numpy(kernel), bias, stride=layer.stride, padding=layer.padding
    )
    return np.moveaxis(out.numpy(), 1, -1)


CONVS = [
    Conv(4, (3,), 2, 1),
    Conv(4, (3, 3), 2, 1, use_bias=False),
    Conv(4, (1, 1), 2),
    Conv(4, (1, 1), (1, 2), use_bias=False),
    Conv(4, (1, 1), padding=1),
    Conv(4, (2, 3), (1, 2), (0, 2)),
    Conv(4, (3, 3), padding=1, small_maps=True),
    Conv(4, (3, 3, 3), (1, 2, 2), 1),
    Conv(4, (1, 1, 1), (2, 1, 1)),
]


@pytest.mark.parametrize("layer", CONVS, ids=str)
def test_conv_against_pytorch(layer):
    x = normal(0, 2, *(5, 6, 4)[: len(layer.kernel_size)], 3)
    shapes = jax.eval_shape(layer.init, fast_key(0), x)["params"]
    params = {name: normal(1, *leaf.shape) for name, leaf in shapes.items()}
    expected = torch_conv(layer, params, x)
    apply = jax.jit(layer.apply)
    assert_close(apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)
    # Further leading axes are batches too.
    out = apply({"params": params}, x[:, None])
    assert_close(out, expected[:, None], rtol=1e-4, atol=1e-5)
    # None as well.
    assert_close(layer.apply({"params": params}, x[0]), expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [Conv(50, (3, 3), small_maps=True, padding=1), Conv(50, (1, 1))])
def test_conv_starts_as_pytorchs(layer):
    params = jax.jit(layer.init)(fast_key(1), jnp.zeros((1, 2, 2, 4)))["params"]
    area = math.prod(layer.kernel_size)
    shape = (3, 3, 4, 50) if area == 9 else (4, 50)
    assert {key: value.shape for key, value in params.items()} == {"kernel": shape, "bias": (50,)}
    bound = (area * 4) ** -0.5
    for value in map(np.asarray, params.values()):
        assert value.dtype == np.float32
        assert 0.9 * bound < np.abs(value).max() <= bound
        assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.2)


@pytest.mark.parametrize("layer", [CONVS[i].copy(dtype=jnp.bfloat16) for i in (1, 2, 6)])
def test_conv_in_bfloat16(layer):
    x = normal(0, 1, 4, 4, 3)
    shapes = jax.eval_shape(layer.init, fast_key(0), x)["params"]
    assert {leaf.dtype for leaf in shapes.values()} == {jnp.dtype(np.float32)}
    params = {name: normal(1, *leaf.shape) for name, leaf in shapes.items()}
    out = jax.jit(layer.apply)({"params": params}, x)
    assert out.dtype == jnp.bfloat16
    assert_close(np.asarray(out, np.float32), torch_conv(layer, params, x), atol=0.2)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Conv(4, (3, 3), small_maps=True), r"small_maps=True .* got kernel_size=\(3, 3\)"),
        (Conv(4, (3, 3), 2, 1, small_maps=True), r"stride=\(2, 2\)"),
        (Conv(4, (3, 3), (1, 2, 2)), r"\(1, 2, 2\) does not name one number for each axis"),
        (Conv(4, (3, 3, 3, 3)), r"x has shape \(1, 4, 4, 3\), but .* needs more axes"),
    ],
)
def test_conv_that_does_not_fit(layer, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(layer.init, fast_key(0), normal(0, 1, 4, 4, 3))
