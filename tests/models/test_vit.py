"""The vision transformer's block against PyTorch's functions."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from htnet_jax.models.vit import DropPath, SelfAttention, ViTBlock

assert_close = np.testing.assert_allclose


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def torch_block(params, x, heads):
    def dense(part, x):
        weight, bias = (torch.from_numpy(part[name]) for name in ("kernel", "bias"))
        return functional.linear(x, weight.T, bias)

    def norm(part, x):
        gain, bias = (torch.from_numpy(part[name]) for name in ("scale", "bias"))
        return functional.layer_norm(x, x.shape[-1:], gain, bias, eps=1e-6)

    batch, tokens, _ = x.shape
    qkv = dense(params["attention"]["qkv"], norm(params["attention_norm"], x))
    query, key, value = qkv.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    attended = functional.scaled_dot_product_attention(query, key, value)
    x = x + dense(params["attention"]["out"], attended.transpose(1, 2).reshape(x.shape))
    hidden = functional.gelu(dense(params["mlp"]["fc1"], norm(params["mlp_norm"], x)))
    return x + dense(params["mlp"]["fc2"], hidden)


@pytest.mark.parametrize(("heads", "mult"), [(2, 4), (4, 2), (1, 1)])
def test_block_against_pytorch(heads, mult):
    x = normal(0, 2, 5, 8) * np.float32(1e-2)  # A variance where an eps of 1e-5 would show.
    block = ViTBlock(heads, mult)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False)["params"])
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    assert params["mlp"]["fc1"]["kernel"].shape == (8, 8 * mult)
    expected = torch_block(params, torch.from_numpy(x), heads).numpy()
    assert_close(block.apply({"params": params}, x, train=False), expected, rtol=1e-4, atol=1e-5)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="8 channels cannot be divided among 3 heads"):
        SelfAttention(3).init(jax.random.key(0), normal(0, 1, 2, 8))


def test_initial_values():
    x = np.zeros((1, 2, 64), np.float32)
    key = jax.random.key(0, impl="rbg")  # compiles in no time
    params = jax.jit(lambda key: ViTBlock(4).init(key, x, train=False))(key)["params"]
    for path, array in flax.traverse_util.flatten_dict(params, sep="/").items():
        if path.endswith("kernel"):
            assert np.std(array) == pytest.approx(0.02, rel=0.05), path
            assert np.abs(array).max() > 0.055, path  # Not cut at two standard deviations.
        else:
            assert np.array_equal(array, np.full(array.shape, path.endswith("scale"))), path


# --- drop path ------------------------------------------------------------------------------------


def test_drop_path_takes_whole_clips():
    x = normal(0, 2000, 3, 2)
    layer, rngs = DropPath(0.3), {"dropout": jax.random.key(1)}
    out, kept = layer.apply({}, x, train=True, rngs=rngs, mutable=["intermediates"])
    (mask,) = kept["intermediates"]["mask"]
    assert np.isin(mask, np.float32([0, 1 / 0.7])).all()
    # Five standard deviations of 2000 draws.
    assert np.mean(mask == 0) == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 2000) ** 0.5)
    assert_close(out, x * np.asarray(mask)[:, None, None], rtol=1e-6)


def test_drop_path_draws_the_same_in_every_type():
    def mask(dtype):
        x, rngs = jnp.ones((300, 1), dtype), {"dropout": jax.random.key(1)}
        return DropPath(0.3).apply({}, x, train=True, rngs=rngs).reshape(-1) != 0

    narrow = np.asarray(mask("bfloat16"))
    with jax.enable_x64(True):
        assert np.array_equal(mask("float64"), narrow)


@pytest.mark.parametrize(("rate", "train"), [(0.3, False), (0.0, True)])
def test_without_drop_path_nothing_is_drawn(rate, train):
    x = normal(0, 4, 3)
    assert np.array_equal(DropPath(rate).apply({}, x, train=train), x)


def test_both_branches_of_a_block_draw_on_their_own():
    x = normal(0, 64, 2, 4)
    block = ViTBlock(1, drop_path=0.5)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)

    @jax.jit
    def apply(key):
        rngs = {"dropout": key}
        return block.apply(variables, x, train=True, rngs=rngs, mutable=["intermediates"])[1]

    kept = apply(jax.random.key(1))
    first, second = (
        np.asarray(kept["intermediates"][name]["mask"][0])
        for name in ("attention_path", "mlp_path")
    )
    assert 10 < np.sum(first != second) < 54
