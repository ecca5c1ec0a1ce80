import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from htnet_jax.learn import optim

STEPS = 30


def gradients(seed):
    """Of very different sizes, some zero."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-12, 3, 40)
    sizes[:3] = 0
    return (rng.normal(size=(STEPS, 40)) * sizes).astype(np.float32)


def start(seed):
    return np.random.default_rng(seed).normal(size=40).astype(np.float32)


def ours(transformation, seed, dtype=np.float32):
    params = jnp.asarray(start(seed), dtype)
    state = transformation.init(params)
    path = []
    step = jax.jit(transformation.update)
    for gradient in gradients(seed):
        updates, state = step(jnp.asarray(gradient, dtype), state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params))
    return np.stack(path)


def torchs(make, seed, dtype=torch.float32):
    parameter = torch.nn.Parameter(torch.from_numpy(start(seed)).to(dtype))
    optimizer = make([parameter])
    path = []
    for gradient in gradients(seed):
        parameter.grad = torch.from_numpy(gradient).to(dtype)
        optimizer.step()
        path.append(parameter.detach().numpy().copy())
    return np.stack(path)


PAIRS = {
    "adam": (optim.adam(3e-3), lambda p: torch.optim.Adam(p, lr=3e-3)),
    "adamw": (optim.adamw(3e-3), lambda p: torch.optim.AdamW(p, lr=3e-3)),
    "adamw decay": (
        optim.adamw(3e-3, 0.6),
        lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.6),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_path_as_pytorch_in_double_precision(name):
    ours_of, torchs_of = PAIRS[name]
    with jax.enable_x64(True):
        path = ours(ours_of, 0, np.float64)
    expected = torchs(torchs_of, 0, torch.float64)
    assert np.abs(expected[-1] - start(0)).max() > 1e-2
    np.testing.assert_allclose(path, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PAIRS)
def test_single_precision_moves_as_far_as_double(name):
    """Within a few eps of float32 a step; the parameters' own rounding is left out."""
    ours_of, _ = PAIRS[name]
    transformation = optax.chain(ours_of)
    gradient = gradients(1)

    def first_updates(dtype):
        params = jnp.zeros(40, dtype)
        state = transformation.init(params)
        path = []
        for row in gradient:
            updates, state = transformation.update(jnp.asarray(row, dtype), state, params)
            path.append(np.asarray(updates, np.float64))
        return np.stack(path)

    single = first_updates(np.float32)
    with jax.enable_x64(True):
        double = first_updates(np.float64)
    # The first steps are where 1 - b**t cancels: optax's own is off by 6e-6 there.
    np.testing.assert_allclose(single[0], double[0], rtol=5e-7, atol=1e-12)
    difference = np.abs(single - double).max(axis=1) / np.abs(double).max(axis=1)
    assert difference.max() < 2e-6


def test_the_corrections_cancel_at_the_first_step():
    """Then the step is the learning rate in the gradient's direction, whatever its size."""
    gradient = jnp.asarray([1e3, -1.0, 1e-3, 0.0], jnp.float32)
    transformation = optim.adam(1.0)
    updates, _ = transformation.update(gradient, transformation.init(gradient), gradient)
    expected = -np.asarray(gradient) / (np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(updates, expected, rtol=3e-7)


def test_state_and_updates_keep_type_and_structure():
    params = {"a": jnp.ones((2, 3), jnp.float32), "b": [jnp.ones(4, jnp.float32)]}
    transformation = optim.adamw(1e-3)
    state = transformation.init(params)
    updates, after = transformation.update(params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updates))
    assert int(after[0].count) == 1
