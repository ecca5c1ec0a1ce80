"""Convolutions against PyTorch's."""

import jax
import numpy as np
import pytest
import torch

from htnet_jax.models.convolution import Conv, Pointwise, convolve, kaiming_normal_fan_out

assert_close = np.testing.assert_allclose


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def torch_convolve(x, kernel, stride, padding):
    x = torch.from_numpy(np.moveaxis(np.asarray(x, np.float64), -1, 1).copy())
    kernel = torch.from_numpy(np.asarray(kernel, np.float64).transpose(3, 2, 0, 1).copy())
    out = torch.nn.functional.conv2d(x, kernel, stride=stride, padding=padding)
    return np.moveaxis(out.numpy(), 1, -1)


@pytest.mark.parametrize("side", [1, 5, 6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [1, 2])
def test_convolve(side, stride, padding):
    x, kernel = normal(0, 2, side, side + 1, 3), normal(1, 3, 3, 3, 4)
    expected = torch_convolve(x, kernel, stride, padding)
    assert_close(convolve(x, kernel, stride, padding), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [5, 6])
def test_layers(side, stride):
    x, wide, narrow = normal(0, 2, side, side, 3), normal(1, 3, 3, 3, 4), normal(2, 3, 4)
    out = Conv(4, stride).apply({"params": {"kernel": wide}}, x)
    assert_close(out, torch_convolve(x, wide, stride, 1), rtol=1e-4, atol=1e-5)
    out = Pointwise(4, stride).apply({"params": {"kernel": narrow}}, x)
    assert_close(out, torch_convolve(x, narrow[None, None], stride, 0), rtol=1e-4, atol=1e-5)


def test_stride_2_is_not_flaxs_same():
    """On an even map "SAME" pads right and below only: another result."""
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = 1
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    assert convolve(x, kernel, 2, 1).reshape(-1).tolist() == [0, 2, 8, 10]


@pytest.mark.parametrize("layer", [Conv, Pointwise])
def test_default_start_is_pytorchs(layer):
    (kernel,) = jax.tree.leaves(layer(50).init(jax.random.key(0), np.zeros((1, 2, 2, 40))))
    bound = (40 * (9 if layer is Conv else 1)) ** -0.5
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    assert np.std(kernel) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_kaiming_normal():
    kernel = np.asarray(kaiming_normal_fan_out(9)(jax.random.key(0), (3, 3, 40, 50)))
    theirs = torch.nn.init.kaiming_normal_(torch.empty(50, 40, 3, 3), mode="fan_out")
    assert kernel.std() == pytest.approx(float(theirs.std()), rel=0.03)
    assert abs(kernel.mean()) < 0.03 * kernel.std()
    # No uniform distribution of the same width.
    assert np.abs(kernel).max() > 3 * kernel.std()
