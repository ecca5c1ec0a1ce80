"""Parameters that are kept, but not trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from htnet_jax.learn import optim
from htnet_jax.learn.idle import join, split
from htnet_jax.models import HTNet
from htnet_jax.models.layers import Attention

PARAMS = {"a": {"w": np.arange(6.0).reshape(2, 3)}, "b": np.arange(4.0)}


def test_split_takes_leading_columns():
    trained, idle = split(PARAMS, {"a/w": 2, "b": 4})
    np.testing.assert_array_equal(trained["a"]["w"], [[2], [5]])
    assert trained["b"].shape == (0,)
    assert idle.keys() == {"a/w", "b"}
    np.testing.assert_array_equal(idle["a/w"], [[0, 1], [3, 4]])


@pytest.mark.parametrize("columns", [{}, {"a/w": 1}, {"a/w": 2, "b": 4}])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_join_is_the_inverse(columns, kind):
    params = jax.tree.map(kind, PARAMS)
    joined = join(*split(params, columns))
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(joined), jax.tree.leaves(params), strict=True):
        assert isinstance(one, type(other))
        np.testing.assert_array_equal(one, other)


def test_unknown_parameters_are_an_error():
    with pytest.raises(KeyError, match="a/v"):
        split(PARAMS, {"a/v": 1})


def test_several_tokens_leave_nothing_idle():
    assert (
        HTNet(image_size=28, patch_size=7, num_hierarchies=2, block_repeats=(1, 1)).idle_columns()
        == {}
    )


def test_q_and_k_of_single_tokens_are_idle():
    module = HTNet(dim=8, heads=3, block_repeats=(1, 0, 2))
    # 3 and 12 heads of 2 channels each: twice 6 columns, and twice 24.
    assert module.idle_columns() == {
        "level_0/block_0/attention/qkv": 12,
        "level_2/block_0/attention/qkv": 48,
        "level_2/block_1/attention/qkv": 48,
    }


def test_steps_without_the_idle_columns_are_those_with_them():
    """Bit for bit; and whatever the idle columns hold changes nothing but themselves."""
    # One token a block: 2 heads of 4 channels have 8 columns of q and as many of k.
    module, columns = Attention(heads=2), {"qkv": 16}
    x = np.random.default_rng(0).standard_normal((6, 1, 8)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1, 2])
    optimizer = optim.adam(1e-2)

    def loss_fn(trained, idle):
        logits = module.apply({"params": join(trained, idle)}, x, train=True)[:, 0, :3]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(trained, idle, state):
        gradient = jax.grad(loss_fn)(trained, idle)
        updates, state = optimizer.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), state

    params = jax.jit(lambda key: module.init(key, x, train=False)["params"])(jax.random.key(0))
    assert params["qkv"].shape == (8, 24)
    results = []
    for idle_columns, factor in (({}, 1), (columns, 1), (columns, -2)):
        trained, idle = split(params, idle_columns)
        idle = {path: factor * array for path, array in idle.items()}
        state = optimizer.init(trained)
        for _ in range(3):
            trained, state = step(trained, idle, state)
        unchanged = {path: array / factor for path, array in idle.items()}
        results.append(join(trained, unchanged))
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)
    trained, _ = split(params, columns)
    after, _ = split(results[0], columns)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after, trained)
    assert min(jax.tree.leaves(moved)) > 0
