"""The training step: padding, several losses, averages, privileged inputs, empty batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from htnet_jax.config import default_config
from htnet_jax.learn import losses, optim, step
from htnet_jax.learn.optim import Moment
from htnet_jax.learn.step import Batch, Learner
from htnet_jax.models.layers import BatchNorm

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3)).astype(np.float32)
LABELS = np.array([0, 1, 1, 0], np.int32)


class Net(nn.Module):
    """Normalised over the batch; a hint that only training sees; an extra output for a loss."""

    @nn.compact
    def __call__(self, x, *, train, hint=None):
        x = BatchNorm(name="norm")(x, train=train)
        if hint is not None:
            x = x + hint
        return nn.Dense(2)(x), {"size": (x**2).sum(axis=-1)}


START = Moment(0)


def batch(x=X, labels=LABELS, mask=None, moment=START, **privileged):
    mask = np.ones(len(x), np.float32) if mask is None else np.float32(mask)
    return Batch((x,), privileged, labels, mask, jax.random.key(0), moment)


def learner(**changes):
    return Learner(Net(), optim.adam(0.1), **changes)


def stepped(teacher, *batches):
    state = teacher.init(jax.random.key(1), (X,))
    for one in batches:
        state, metrics = jax.jit(teacher.step)(state, one)
    return state, metrics


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_padding_leaves_no_trace():
    """Neither in the loss, nor in the statistics, nor in the parameters, whatever it holds."""
    padded = np.concatenate([X, np.full((2, 3), 1e3, np.float32)])
    labels = np.concatenate([LABELS, [1, 1]]).astype(np.int32)
    alone, metrics = stepped(learner(), batch())
    beside, with_padding = stepped(learner(), batch(padded, labels, [1, 1, 1, 1, 0, 0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), alone, beside)
    assert with_padding["clips"] == 4
    np.testing.assert_allclose(with_padding["loss"], metrics["loss"], rtol=1e-6)


def test_a_batch_of_padding_alone_changes_nothing():
    nothing = batch(mask=[0, 0, 0, 0])
    teacher = learner(has_empty_batches=True, average=0.9)
    before, _ = stepped(teacher, batch())
    after, metrics = stepped(teacher, batch(), nothing)
    assert_equal(before, after)
    assert metrics["clips"] == 0
    # Adam's momentum would have moved the parameters.
    moved, _ = stepped(learner(average=0.9), batch(), nothing)
    assert not np.array_equal(
        moved.trained["Dense_0"]["kernel"], before.trained["Dense_0"]["kernel"]
    )


def test_losses_are_weighed_and_see_what_the_network_returns():
    def size(logits, out, batch, mask):
        return out["size"]

    teacher = learner(losses=((2.0, losses.cross_entropy), (0.25, size)))
    _, metrics = stepped(teacher, batch())
    state = teacher.init(jax.random.key(1), (X,))
    (logits, out), _ = Net().apply(state.variables, X, train=True, mutable=["batch_stats"])
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
    np.testing.assert_allclose(metrics["loss"], (2 * entropy + 0.25 * out["size"]).sum(), rtol=1e-5)


def test_privileged_inputs_are_seen_in_training_only():
    plain, _ = stepped(learner(), batch())
    hinted, _ = stepped(learner(), batch(hint=np.ones((4, 3), np.float32)))
    assert not np.array_equal(plain.trained["Dense_0"]["bias"], hinted.trained["Dense_0"]["bias"])
    assert learner().predict(hinted.predicting, (X,)).shape == (4, 2)


def test_the_average_predicts_and_follows_its_formula():
    teacher = learner(average=0.9)
    state = teacher.init(jax.random.key(1), (X,))
    expected = np.asarray(state.trained["Dense_0"]["bias"])
    for number in range(3):
        state, _ = teacher.step(state, batch(moment=Moment(number)))
        share = min(0.9, (1 + number) / (10 + number))
        expected = share * expected + (1 - share) * np.asarray(state.trained["Dense_0"]["bias"])
    np.testing.assert_allclose(state.predicting["params"]["Dense_0"]["bias"], expected, rtol=1e-5)
    assert not np.array_equal(state.variables["params"]["Dense_0"]["bias"], expected)


def test_statistics_stand_still_when_not_in_training():
    state, _ = stepped(learner(train=False), batch())
    assert_equal(state.collections, learner().init(jax.random.key(1), (X,)).collections)


def test_capture_returns_what_the_network_keeps():
    class Kept(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            self.sow("intermediates", "seen", x)
            return nn.Dense(2)(x)

    teacher = Learner(Kept(), optax.sgd(0.1))
    state = teacher.init(jax.random.key(0), (X,))
    _, _, written = teacher.gradient(state, batch(), capture=("intermediates",))
    np.testing.assert_array_equal(written["intermediates"]["seen"][0], X)


def test_double_precision_stays_double():
    with jax.enable_x64():
        teacher = Learner(Net(), optim.sgd(0.1, 0.9))
        state = teacher.init(jax.random.key(0), (X,))
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), state.variables)
        state = teacher.state_of(wide)
        loss, gradient, _ = teacher.gradient(state, batch(X.astype(np.float64)))
        assert loss.dtype == np.float64
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_idle_columns_are_left_out_unless_weights_decay(decay):
    class Idle(nn.Module):
        def idle_columns(self):
            return {"Dense_0/kernel": 1}

        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(2)(x)

    config = default_config()
    config.optimizer, config.weight_decay = ("adamw", decay) if decay else ("adam", 0.0)
    config.losses = ConfigDict({"cross_entropy": 1.0})
    state = step.make(Idle(), config).init(jax.random.key(0), (X,))
    assert state.trained["Dense_0"]["kernel"].shape == (3, 2 if decay else 1)
    assert state.variables["params"]["Dense_0"]["kernel"].shape == (3, 2)
