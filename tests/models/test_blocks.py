"""Attention, MLP and block against NumPy and PyTorch, by hand, and what they drop."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fakes import slow_block
from fakes.modules import evaluate, fast_key, flat, normal, quick_jit, random_params
from flax import linen as nn
from torch.nn import functional

from htnet_jax.models.layers import Attention, Block, DropPath, Mlp, vit_normal

assert_close = np.testing.assert_allclose

# As in vision transformers.
ViTBlock = functools.partial(
    Block,
    qkv_bias=True,
    norm_eps=1e-6,
    kernel_init=vit_normal,
    bias_init=nn.initializers.zeros,
)


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


def test_initial_values():
    x = np.zeros((1, 2, 64), np.float32)
    key = jax.random.key(0, impl="rbg")  # compiles in no time
    params = jax.jit(lambda key: ViTBlock(4).init(key, x, train=False))(key)["params"]
    for path, array in flat(params).items():
        if path.endswith("kernel"):
            assert np.std(array) == pytest.approx(0.02, rel=0.05), path
            assert np.abs(array).max() > 0.055, path  # Not cut at two standard deviations.
        else:
            assert np.array_equal(array, np.full(array.shape, path.endswith("scale"))), path


# --- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "width", "heads"), [(4, 11, 3), (3, 8, 2), (4, 6, 1), (1, 11, 3)]
)
def test_attention_against_numpy(tokens, width, heads):
    model = Attention(heads)
    x = 2 * normal(0, 2, 2, tokens, width)
    params = random_params(model, x)
    params["qkv"] = params["qkv"] * 2  # weights far from uniform
    out = evaluate(model, params, x)
    expected = [[slow_block.attention(params, block, heads) for block in row] for row in x]
    assert out.shape == x.shape
    assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_attention_by_hand():
    """One head of two channels, the second unused: q = log(3) sqrt(2) x0, k = x0, v = x1."""
    qkv = np.zeros((2, 6), np.float32)
    qkv[0, 0] = math.log(3) * math.sqrt(2)  # the scale is 1 / sqrt(2)
    qkv[0, 2] = 1
    qkv[1, 4] = 1
    out = {"kernel": np.array([[1, 0], [0, 0]], "f4"), "bias": np.array([0, 7], "f4")}
    x = np.array([[1, 8], [0, 4]], np.float32)
    # Token 0 scores log 3 and 0: weights 3/4 and 1/4. Token 1 scores 0 and 0: the mean.
    result = evaluate(Attention(1), {"qkv": qkv, "out": out}, x)
    assert_close(result, [[0.75 * 8 + 0.25 * 4, 7], [6, 7]], rtol=1e-6)


def test_attention_of_one_token_equals_the_full_formula():
    """Leaving out q.k changes neither values nor gradients; those of q and k are exactly zero."""
    heads, width = 3, 11
    head_width, inner = 3, 9
    model = Attention(heads)
    x, cotangent = normal(0, 5, 1, width), jnp.asarray(normal(1, 5, 1, width))
    params = random_params(model, x)

    def ours(params, x):
        return model.apply({"params": params}, x, train=False)

    def full(params, x):
        q, k, v = (
            part.reshape(5, 1, heads, head_width)
            for part in jnp.split(x @ params["qkv"].reshape(1, width, 3 * inner), 3, axis=-1)
        )
        scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) / head_width**0.5
        weights = jax.nn.softmax(scores, axis=-1)
        attended = jnp.einsum("bhnm,bmhd->bnhd", weights, v).reshape(5, 1, inner)
        out = attended @ params["out"]["kernel"].reshape(1, inner, width)
        return out + params["out"]["bias"].reshape(1, 1, width)

    @quick_jit
    def values_and_gradients(params, x):
        results = []
        for function in (ours, full):
            out, pull_back = jax.vjp(function, params, x)
            results.append((out, pull_back(cotangent)))
        return results

    (out, (grads, grad_x)), (full_out, (full_grads, full_grad_x)) = values_and_gradients(params, x)
    assert_close(out, full_out, rtol=1e-6, atol=1e-6)
    assert_close(grad_x, full_grad_x, rtol=1e-5, atol=1e-6)
    for path, expected in flat(full_grads).items():
        assert_close(flat(grads)[path], expected, rtol=1e-5, atol=1e-6)
    for gradient in (grads["qkv"], full_grads["qkv"]):
        assert np.all(np.asarray(gradient[:, : 2 * inner]) == 0)
        assert np.all(np.asarray(gradient[:, 2 * inner :]) != 0)


def test_attention_does_not_look_beyond_its_block():
    model = Attention(2)
    x = normal(0, 3, 4, 6)
    params = random_params(model, x)
    moved = x.copy()
    moved[1, 2] += 1
    before, after = (np.asarray(evaluate(model, params, value)) for value in (x, moved))
    assert np.array_equal(before[[0, 2]], after[[0, 2]])
    assert np.all(before[1] != after[1])


@pytest.mark.parametrize(
    ("tokens", "frequencies"),
    [
        # One token: kept with 1/2 as a weight and again after `out`, doubled each time.
        (1, {0: 3 / 4, 4: 1 / 4}),
        # Two equal tokens: a weight of 1/2 each, kept with 1/2 and doubled; then as above.
        (2, {0: 5 / 8, 2: 1 / 4, 4: 1 / 8}),
    ],
)
def test_attention_drops_weights_and_outputs(tokens, frequencies):
    width = 4
    qkv = np.zeros((width, 3 * width), np.float32)
    qkv[:, 2 * width :] = np.eye(width)
    params = {"qkv": qkv, "out": {"kernel": np.eye(width, dtype="f4"), "bias": np.zeros(4, "f4")}}
    model = Attention(width, dropout=0.5)

    @quick_jit
    def apply(x):
        rngs = {"dropout": fast_key(0)}
        return model.apply({"params": params}, x, train=True, rngs=rngs)

    out = np.asarray(apply(np.ones((2000, tokens, width), np.float32)))
    values, counts = np.unique(out, return_counts=True)
    assert values.tolist() == list(frequencies)
    assert_close(counts / out.size, list(frequencies.values()), atol=0.02)


# --- Mlp, Block -----------------------------------------------------------------------------------


def test_mlp_against_numpy():
    model = Mlp(mult=3)
    x = normal(0, 2, 4, 7)
    params = random_params(model, x)
    assert params["fc1"]["kernel"].shape == (7, 21)
    expected = slow_block.mlp(params, x.astype(float))
    assert_close(evaluate(model, params, x), expected, rtol=1e-5, atol=1e-5)


def test_mlp_drops_hidden_and_outputs():
    """Hidden values gelu(3) and an identity behind them: kept with 1/4, times 4."""
    eye, zero = np.eye(5, dtype="f4"), np.zeros(5, "f4")
    params = {
        "fc1": {"kernel": np.zeros((5, 5), "f4"), "bias": zero + 3},
        "fc2": {"kernel": eye, "bias": zero},
    }
    model = Mlp(mult=1, dropout=0.5)

    @quick_jit
    def apply(x):
        rngs = {"dropout": fast_key(0)}
        return model.apply({"params": params}, x, train=True, rngs=rngs)

    out = np.asarray(apply(np.ones((2000, 5), np.float32)))
    kept = out != 0
    assert_close(out[kept], 4 * 3 * 0.99865010, rtol=1e-5)
    assert kept.mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("tokens", [1, 4])
def test_block_against_numpy(tokens):
    model = Block(heads=3, mlp_mult=2)
    x = normal(0, 2, 2, tokens, 7)
    params = random_params(model, x)
    out = evaluate(model, params, x)
    expected = [[slow_block.block(params, block, 3) for block in row] for row in x.astype(float)]
    assert out.shape == x.shape
    assert_close(out, expected, rtol=1e-4, atol=1e-5)


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
    block = Block(1, drop_path=0.5)
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
