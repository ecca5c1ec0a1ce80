"""A network with batch statistics, AdamW and a schedule, against a plain loop, fold by fold."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from htnet_jax.config import default_config
from htnet_jax.learn import epochs, optim, step
from htnet_jax.models.layers import BatchNorm
from htnet_jax.training import folds as folds_module
from htnet_jax.training.folds import Fold, FoldTrainer, Keeping
from htnet_jax.training.interrupts import Stopped, StopRequest
from htnet_jax.training.state import Snapshots

BATCH, EPOCHS, SEED, CLASSES = 4, 5, 3, 3
# They train on 15, 14, 12 and 10 clips: "d" has no clip for the fourth step of the others, "e"
# neither, and only two for its third.
SUBJECTS = np.array(list("deceebdecadeebcd"))
NAMES = "abde"
RATE, DECAY, LESS, TIMES = 0.05, 0.1, 0.7, 3


class Net(nn.Module):
    """With batch statistics and two outputs to spare; small, because compiling takes the time."""

    @nn.compact
    def __call__(self, x, *, train):
        # No bias: the next layer takes it away, and Adam would make steps of its rounding.
        x = nn.Dense(4, use_bias=False, name="first")(x)
        x = BatchNorm(name="norm")(x, train=train)
        return nn.Dense(CLASSES + 2, name="last")(nn.relu(x))


def make_data():
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(len(SUBJECTS), 6)).astype(np.float32)
    return inputs, rng.integers(0, CLASSES, len(SUBJECTS)).astype(np.int32)


def make_folds(names=NAMES):
    return [Fold(name, train=name != SUBJECTS, test=name == SUBJECTS) for name in names]


def make_config():
    config = default_config()
    config.optimizer, config.learning_rate, config.weight_decay = "adamw", RATE, DECAY
    config.schedule, config.ema = "step", 0.0
    config.learning_rate_decay, config.learning_rate_decay_epochs = LESS, TIMES
    return config


def make_trainer(devices, group):
    config = make_config()
    return FoldTrainer(
        step.make(Net(), config),
        *make_data(),
        make_folds(),
        batch_size=BATCH,
        seed=SEED,
        folds_per_device=group,
        devices=jax.local_devices()[:devices],
        classes=CLASSES,
    )


def train_all(trainer, epochs=EPOCHS, **options):
    return {
        result.fold.name: result
        for folds in trainer.rounds()
        for result in trainer.train(folds, epochs, **options)
    }


@functools.cache
def trainer_of(devices, group):
    return make_trainer(devices, group)


@functools.cache
def outcome(devices, group):
    return train_all(trainer_of(devices, group))


def parts(result):
    return {
        "logits": result.logits,
        "loss": result.train_loss,
        **traverse_util.flatten_dict(jax.device_get(result.variables), sep="/"),
    }


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name in first:
        jax.tree.map(np.testing.assert_array_equal, parts(first[name]), parts(second[name]))


def assert_close(first, second):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, first, second)


# --- against a plain loop -------------------------------------------------------------------------


@jax.jit
def start(stream):
    """As documented: from the seed, the fold's stream and the purpose, 0 for the start."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), stream), 0)
    return Net().init(key, jnp.zeros((1, 6)), train=False)


@jax.jit
def gradients(variables, x, y):
    """Of a batch without any padding: `((loss, moved statistics), gradient)`."""

    def mean_loss(params):
        logits, moved = Net().apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), moved

    return jax.value_and_grad(mean_loss, has_aux=True)(variables["params"])


@jax.jit
def predict(variables, x):
    return Net().apply(variables, x, train=False)


def plain_loop(fold):
    """AdamW by its formula, in double precision; batches in file order, the last one smaller."""
    inputs, labels = make_data()
    variables = jax.device_get(start(np.uint32(zlib.crc32(fold.name.encode()))))
    params = jax.tree.map(np.float64, variables["params"])
    mean = square = jax.tree.map(np.zeros_like, params)
    clips = np.flatnonzero(fold.train)
    logits, losses, step = [], [], 0
    for epoch in range(EPOCHS):
        rate = RATE * LESS ** min(epoch, TIMES)
        total = 0.0
        for first in range(0, len(clips), BATCH):
            batch, step = clips[first : first + BATCH], step + 1
            (loss, moved), gradient = jax.device_get(
                gradients(variables, inputs[batch], labels[batch])
            )
            total += loss * len(batch)
            mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * np.float64(g), mean, gradient)
            square = jax.tree.map(
                lambda v, g: 0.999 * v + 0.001 * np.float64(g) ** 2, square, gradient
            )
            params = jax.tree.map(
                lambda p, m, v, step=step, rate=rate: (
                    p * (1 - rate * DECAY)
                    - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
                ),
                params,
                mean,
                square,
            )
            variables = {"params": jax.tree.map(np.float32, params), **moved}
        # Of all clips, so that one compilation serves all folds.
        logits.append(np.asarray(predict(variables, inputs))[fold.test, :CLASSES])
        losses.append(total / len(clips))
    return np.array(logits), np.array(losses), variables


@pytest.mark.parametrize("name", NAMES)
def test_equals_a_plain_loop(name):
    (fold,) = make_folds(name)
    result = outcome(4, 1)[name]
    logits, losses, variables = plain_loop(fold)
    assert result.logits.shape == (EPOCHS, fold.test.sum(), CLASSES)  # without spare outputs
    assert_close(result.logits, logits)
    assert_close(result.train_loss, losses)
    assert result.variables.keys() == {"params", "batch_stats"}
    assert_close(result.variables, variables)
    assert losses[-1] < 0.8 * losses[0]
    statistics = result.variables["batch_stats"]["norm"]
    assert np.abs(statistics["mean"]).min() > 1e-3  # they started at 0
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(result.variables))


def test_decay_and_schedule_matter():
    """Without either of them the loop above would not agree."""
    grown, schedule = optim.make(make_config())
    found = [float(schedule(optim.Moment(jnp.int32(epoch)))) for epoch in (0, 1, 3, 4, 50)]
    np.testing.assert_allclose(found, [1, 0.7, 0.343, 0.343, 0.343], rtol=1e-6)
    params = {"scale": jnp.ones(2)}
    update, _ = grown.update({"scale": jnp.zeros(2)}, grown.init(params), params)
    np.testing.assert_allclose(update["scale"], -RATE * DECAY, rtol=1e-6)  # on gains as well


@pytest.mark.slow
def test_same_results_in_groups_and_with_test_clips_in_parts(monkeypatch):
    """ "e" has six test clips: three parts of two, of which the others need fewer."""
    monkeypatch.setattr(epochs, "MAX_TEST_BYTES", 2 * 6 * 4)
    for name, result in train_all(make_trainer(2, 2)).items():
        assert_close(parts(result), parts(outcome(4, 1)[name]))


@pytest.mark.slow
def test_same_bits_on_other_devices():
    assert_same_bits(outcome(2, 1), outcome(4, 1))


@pytest.mark.slow
def test_same_results_in_groups():
    for name, result in outcome(2, 2).items():
        assert_close(parts(result), parts(outcome(4, 1)[name]))


@pytest.mark.slow
def test_same_results_with_test_clips_in_parts(monkeypatch):
    monkeypatch.setattr(epochs, "MAX_TEST_BYTES", 2 * 6 * 4)
    for name, result in train_all(make_trainer(4, 1)).items():
        assert_close(parts(result), parts(outcome(4, 1)[name]))


# --- kept on disk ---------------------------------------------------------------------------------


def test_an_interrupted_round_resumes_with_its_statistics(monkeypatch, tmp_path):
    trainer, expected = trainer_of(4, 1), outcome(4, 1)
    monkeypatch.setattr(folds_module, "SECONDS_PER_CALL", 0)  # an epoch a call
    monkeypatch.setattr(trainer, "_epochs_per_call", 1)
    (folds,) = trainer.rounds()
    seen = []

    class Asked:
        """A stop that is asked for after the second epoch."""

        @property
        def number(self):
            return 15 * (bool(seen) and seen[-1].epoch == 2)

    keeping = Keeping(Snapshots(tmp_path / "state", {"of": "this"}), 0, Asked())
    with pytest.raises(Stopped):
        trainer.train(folds, EPOCHS, seen.append, keeping)
    seen = []
    again = Keeping(Snapshots(tmp_path / "state", {"of": "this"}), 0, StopRequest())
    results = trainer.train(folds, EPOCHS, seen.append, again)
    assert [progress.epoch for progress in seen] == [2, 3, 4, 5]
    assert_same_bits({result.fold.name: result for result in results}, expected)
