"""Batch normalisation against PyTorch's, and what padding must not change."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fakes.modules import normal

from htnet_jax.models.layers import BatchNorm, batch_mask

assert_close = np.testing.assert_allclose
NORM = BatchNorm()


def start(channels, seed=0):
    rng = np.random.default_rng(seed)
    variables = {
        "params": {"scale": rng.uniform(0.5, 2, channels), "bias": rng.normal(size=channels)},
        "batch_stats": {"mean": rng.normal(size=channels), "var": rng.uniform(1, 3, channels)},
    }
    return jax.tree.map(np.float32, variables)


def torch_norm(variables):
    layer = torch.nn.BatchNorm2d(len(variables["params"]["scale"])).double()
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    flat = variables["params"] | variables["batch_stats"]
    state = {theirs: torch.tensor(np.asarray(flat[ours])) for theirs, ours in names.items()}
    layer.load_state_dict(state | {"num_batches_tracked": torch.tensor(0)})
    return layer


def channels_first(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x, np.float64), -1, 1).copy())


@jax.jit
def train(variables, x, mask=None):
    with batch_mask(mask):
        out, moved = NORM.apply(variables, x, train=True, mutable=["batch_stats"])
    return out, {**variables, **moved}


def test_starts_as_pytorch():
    variables = NORM.init(jax.random.key(0), jnp.zeros((2, 3, 3, 4)), train=True)
    assert flax.traverse_util.flatten_dict(variables, sep="/").keys() == {
        *("params/scale", "params/bias", "batch_stats/mean", "batch_stats/var")
    }
    theirs = torch.nn.BatchNorm2d(4)
    assert (theirs.eps, theirs.momentum) == (NORM.eps, NORM.momentum)
    # Also after seeing a batch in `init`.
    for ours, value in (("mean", theirs.running_mean), ("var", theirs.running_var)):
        assert np.array_equal(variables["batch_stats"][ours], value)
    assert np.array_equal(variables["params"]["scale"], theirs.weight.detach())
    assert np.array_equal(variables["params"]["bias"], theirs.bias.detach())


@pytest.mark.parametrize("padding", [0, 2])
def test_several_steps_against_pytorch(padding):
    """Outputs, running statistics, gradients; clips of padding, which PyTorch does not get."""
    variables = start(5)
    theirs = torch_norm(variables).train()
    weights = np.r_[np.ones(3), np.zeros(padding)].astype(np.float32)[
        [0, *range(2 + padding, 0, -1)]
    ]
    clips = np.flatnonzero(weights)
    for step in range(3):
        x = normal(step, 3 + padding, 2, 3, 5) * 3 + 2
        x[weights == 0] = 1e4
        slope = normal(9, *x.shape) * weights[:, None, None, None]

        def summed(x, variables=variables, slope=slope):
            return (train(variables, x, weights if padding else None)[0] * slope).sum()

        gradient = jax.grad(summed)(x)
        out, variables = train(variables, x, weights if padding else None)
        tensor = channels_first(x[clips]).requires_grad_()
        expected = theirs(tensor)
        (expected * channels_first(slope[clips])).sum().backward()
        assert_close(out[clips], np.moveaxis(expected.detach().numpy(), 1, -1), atol=2e-5)
        assert_close(gradient[clips], np.moveaxis(tensor.grad.numpy(), 1, -1), atol=1e-5)
        assert not np.asarray(gradient[weights == 0]).any()
        assert_close(variables["batch_stats"]["mean"], theirs.running_mean, rtol=1e-5)
        # 18 values: the unbiased variance is 6 % larger.
        assert_close(variables["batch_stats"]["var"], theirs.running_var, rtol=1e-5)
    x = normal(7, 2, 2, 3, 5)
    out = NORM.apply(variables, x, train=False)
    expected = theirs.eval()(channels_first(x)).detach().numpy()
    assert_close(out, np.moveaxis(expected, 1, -1), atol=1e-5)


def test_all_padding_changes_nothing_and_stays_finite():
    variables, x, weights = start(4), normal(0, 2, 3, 3, 4) * 50, np.zeros(2, np.float32)
    out, after = train(variables, x, weights)
    # Not blown up by 1 / sqrt(eps), or several layers of it would overflow.
    assert np.abs(out).max() < 3 * np.abs(x).max()
    jax.tree.map(lambda a, b: assert_close(a, b, rtol=1e-6), after, variables)
    gradients = jax.grad(lambda v, x: train(v, x, weights)[0].sum(), argnums=(0, 1))(variables, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_one_value_per_channel_is_finite():
    out, after = train(start(3), normal(0, 1, 1, 1, 3))
    assert np.isfinite(out).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_far_from_zero_the_variance_keeps_its_digits():
    x = normal(0, 4, 5, 5, 2) * np.float32(0.1) + np.float32(200)
    out, _ = train({**start(2), "params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}, x)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + 1e-5)
    assert_close(out, expected, atol=5e-3)


def test_vmap_over_networks_equals_a_loop():
    several = jax.tree.map(lambda *leaves: np.stack(leaves), start(3, 0), start(3, 1))
    x, weights = normal(2, 2, 4, 2, 2, 3), np.array([[1, 1, 0, 1], [1, 0, 0, 0]], np.float32)
    out, after = jax.vmap(train)(several, x, weights)
    for index in range(2):
        one, moved = train(jax.tree.map(lambda a, i=index: a[i], several), x[index], weights[index])
        assert_close(out[index], one, rtol=1e-5, atol=1e-5)
        jax.tree.map(lambda a, b, i=index: assert_close(a[i], b, rtol=1e-5), after, moved)


def test_bfloat16_keeps_statistics_in_float32():
    x = jnp.asarray(200 + normal(0, 2, 4, 4, 3), jnp.bfloat16)
    norm = BatchNorm(jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, train=False)
    out, moved = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {np.dtype(np.float32)}
    wide = np.asarray(x, np.float64)
    assert_close(moved["batch_stats"]["mean"], 0.1 * wide.mean((0, 1, 2)), rtol=1e-6)


def test_mask_is_read_inside_every_transformation():
    """jit, scan, vmap and grad trace inside the block; outside of it there is no mask."""
    variables, x, mask = start(3), normal(0, 2, 3, 2, 3), np.array([1, 0, 1], np.float32)

    def loss(scale, mask, x):
        learned = {**variables, "params": {**variables["params"], "scale": scale}}
        with batch_mask(mask):
            out, moved = NORM.apply(learned, x, train=True, mutable=["batch_stats"])
        return (out**2 * mask[:, None, None]).sum(), moved["batch_stats"]["mean"]

    def scanned(mask, x):
        def step(scale, x):
            gradient, mean = jax.grad(loss, has_aux=True)(scale, mask, x)
            return scale - 0.01 * gradient, mean

        return jax.lax.scan(step, variables["params"]["scale"], x)

    masks = np.stack([mask, mask[[1, 0, 2]]])
    scales, means = jax.jit(jax.vmap(scanned, (0, None)))(masks, x)
    assert not np.allclose(scales[0], scales[1])
    for index in range(2):
        clips = x[0, masks[index] == 1].astype(np.float64)
        expected = 0.9 * variables["batch_stats"]["mean"] + 0.1 * clips.mean((0, 1))
        assert_close(means[index, 0], expected, rtol=1e-5, atol=1e-6)
    everything = train(variables, x[0])[1]["batch_stats"]["mean"]
    expected = 0.9 * variables["batch_stats"]["mean"] + 0.1 * x[0].mean((0, 1))
    assert_close(everything, expected, rtol=1e-5, atol=1e-6)


def test_mask_of_another_length_is_refused():
    """Frames of clips on the first axis would take each other's mask."""
    with pytest.raises(ValueError, match=r"mask of shape \(2,\), but .* has 4 clips; keep clips"):
        train(start(3), normal(0, 4, 2, 3), np.ones(2, np.float32))


def test_training_needs_statistics_that_may_change():
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        NORM.apply(start(3), normal(0, 2, 2, 2, 3), train=True)
