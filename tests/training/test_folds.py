"""Fold-parallel training: against a plain loop, and independent of how the folds are spread out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes.recording import log_gradients
from flax import linen as nn

from htnet_jax.errors import UserError
from htnet_jax.learn.step import Learner
from htnet_jax.models import HTNet
from htnet_jax.training import folds as folds_module
from htnet_jax.training.folds import Fold, FoldTrainer

BATCH = 4
EPOCHS = 7
# Clips of each subject. They train on 15, 14, 13, 12 and 10 clips: "d" has no clip for the fourth
# step of the others, "e" neither and only two for its third.
SIZES = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 6}
SUBJECTS = np.array(list("deceebdecadeebcd"))
NAMES = sorted(SIZES)
ALL = "".join(NAMES)
FEATURES = 6


class Net(nn.Module):
    """Softmax regression; small, because compiling dominates these tests."""

    dropout: float = 0.0
    scale: float = 0.5

    @nn.compact
    def __call__(self, x, *, train):
        kernel = self.param("kernel", nn.initializers.normal(self.scale), (FEATURES, 3))
        x = x.reshape(x.shape[0], -1)
        return nn.Dropout(self.dropout, deterministic=not train)(x) @ kernel


def make_folds(names=NAMES):
    return [Fold(name, train=name != SUBJECTS, test=name == SUBJECTS) for name in names]


def make_data():
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(len(SUBJECTS), 2, 3)).astype(np.float32)
    return inputs, rng.integers(0, 3, len(SUBJECTS)).astype(np.int32)


def make_trainer(
    module=None, optimizer=None, *, data=None, names=NAMES, devices=1, group=1, seed=3, **options
):
    inputs, labels = data or make_data()
    return FoldTrainer(
        Learner(module or Net(), optimizer or optax.adam(0.05)),
        inputs,
        labels,
        make_folds(names),
        batch_size=BATCH,
        seed=seed,
        folds_per_device=group,
        devices=jax.local_devices()[:devices],
        **options,
    )


def learner():
    return Learner(Net(), optax.adam(0.05))


def train_all(trainer, epochs=EPOCHS, on_progress=None):
    """Fold name -> FoldResult, over all rounds."""
    results = [
        result for folds in trainer.rounds() for result in trainer.train(folds, epochs, on_progress)
    ]
    assert [result.fold.name for result in results] == [fold.name for fold in trainer.folds]
    return {result.fold.name: result for result in results}


@functools.cache
def trainer_of(devices, group, names=ALL):
    """Compiled once for all tests of one arrangement."""
    return make_trainer(devices=devices, group=group, names=names)


@functools.cache
def outcome(devices, group, names=ALL):
    """Fold name -> FoldResult of one arrangement."""
    return train_all(trainer_of(devices, group, names))


@functools.cache
def initial_params(seed):
    """Fold name -> parameters that no step has changed."""
    trainer = make_trainer(optimizer=optax.set_to_zero(), devices=4, seed=seed)
    results = train_all(trainer, epochs=1)
    return {name: result.variables["params"] for name, result in results.items()}


def assert_same_bits(first, second):
    for name in second:
        np.testing.assert_array_equal(first[name].logits, second[name].logits)
        np.testing.assert_array_equal(first[name].train_loss, second[name].train_loss)
        jax.tree.map(np.testing.assert_array_equal, first[name].variables, second[name].variables)


def assert_close(first, second):
    for name in second:
        pairs = [
            (getattr(first[name], key), getattr(second[name], key))
            for key in ("logits", "train_loss", "variables")
        ]
        for one, other in pairs:
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, other
            )


def plain_loop(fold, params, inputs, labels, epochs):
    """One fold by the textbook: explicit batches in file order, the last one of an epoch smaller.

    Yields after every epoch: test logits, mean loss over the training clips, parameters.
    """
    module, optimizer = Net(), optax.adam(0.05)
    state = optimizer.init(params)
    clips = np.flatnonzero(fold.train)

    @jax.jit
    def step(params, state, x, y):
        def mean_loss(params):
            logits = module.apply({"params": params}, x, train=False)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    for _ in range(epochs):
        total = 0.0
        for start in range(0, len(clips), BATCH):
            batch = clips[start : start + BATCH]
            params, state, loss = step(params, state, inputs[batch], labels[batch])
            total += float(loss) * len(batch)
        logits = module.apply({"params": params}, inputs[fold.test], train=False)
        yield np.asarray(logits), total / len(clips), params


@pytest.mark.parametrize(("devices", "group"), [(1, 1), (2, 2)])
def test_folds_start_from_given_variables(devices, group):
    """Those that are given; nothing moves them here, and the moving average starts there too."""
    kernel = np.arange(FEATURES * 3, dtype=np.float32).reshape(FEATURES, 3) / 10
    inputs, labels = make_data()
    trainer = FoldTrainer(
        Learner(Net(), optax.set_to_zero(), average=0.5),
        inputs,
        labels,
        make_folds(),
        batch_size=BATCH,
        seed=3,
        folds_per_device=group,
        devices=jax.local_devices()[:devices],
        start={"params": {"kernel": kernel}},
    )
    for result in train_all(trainer, epochs=2).values():
        # The average rounds.
        np.testing.assert_allclose(result.variables["params"]["kernel"], kernel, rtol=1e-6)
        expected = inputs[result.fold.test].reshape(-1, FEATURES) @ kernel
        np.testing.assert_allclose(result.logits[-1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_file_order_equals_a_plain_loop(name):
    """Folds "d" and "e" have a step without clips: their Adam state must not move there."""
    inputs, labels = make_data()
    (fold,) = make_folds([name])
    expected = list(plain_loop(fold, initial_params(3)[name], inputs, labels, EPOCHS))
    result = outcome(4, 1)[name]
    logits, losses, params = zip(*expected, strict=True)
    assert result.logits.shape == (EPOCHS, SIZES[name], 3)
    assert result.logits.dtype == result.train_loss.dtype == np.float32
    np.testing.assert_allclose(result.logits, np.stack(logits), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.train_loss, losses, rtol=1e-4)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        result.variables["params"],
        jax.device_get(params[-1]),
    )
    assert losses[-1] < 0.8 * losses[0]  # or the comparison above would see no training


@pytest.mark.parametrize(("devices", "group"), [(1, 2), (2, 2), (1, 5)])
def test_same_results_however_the_folds_are_spread(devices, group):
    assert_close(outcome(devices, group), outcome(4, 1))


@pytest.mark.parametrize(("group", "devices"), [(1, (1, 2, 4)), (2, (1, 2))])
def test_same_bits_on_any_number_of_devices(group, devices):
    for count in devices[1:]:
        assert_same_bits(outcome(count, group), outcome(devices[0], group))


def test_same_results_alone():
    """Alone, "e" needs three steps an epoch; with the others it is carried through four."""
    alone = outcome(1, 1, names="e")
    assert list(alone) == ["e"]
    assert_close(outcome(4, 1), alone)


def test_same_bits_in_another_order_of_folds():
    backwards = outcome(2, 1, names=ALL[::-1])
    assert list(backwards) == NAMES[::-1]
    assert_same_bits(backwards, outcome(2, 1))


def test_same_bits_on_repetition():
    assert_same_bits(train_all(trainer_of(4, 1)), outcome(4, 1))


@pytest.mark.slow
def test_same_bits_with_htnet():
    """The whole HTNet on 2 and on 4 devices; about a minute of compilation.

    On one device XLA compiles an unpartitioned program, which rounds differently.
    """
    rng = np.random.default_rng(1)
    inputs = rng.uniform(0, 255, (len(SUBJECTS), 28, 28, 3)).astype(np.float32)
    module = HTNet(dim=6, block_repeats=(1, 1, 1), dropout=0.1)
    single, pair, spread = (
        train_all(
            make_trainer(module, data=(inputs, make_data()[1]), devices=devices, shuffle=True),
            epochs=3,
        )
        for devices in (1, 2, 4)
    )
    assert_same_bits(pair, spread)
    for name, result in single.items():
        np.testing.assert_allclose(result.logits, spread[name].logits, rtol=1e-3, atol=1e-4)


def test_initial_parameters_come_from_the_seed_and_the_fold():
    first, other_seed = initial_params(3), initial_params(4)
    kernels = [params["kernel"] for params in (*first.values(), *other_seed.values())]
    for index, kernel in enumerate(kernels):
        assert kernel.shape == (FEATURES, 3)
        assert kernel.dtype == np.float32
        for later in kernels[index + 1 :]:
            assert not np.array_equal(kernel, later)


def test_padding_folds_are_not_seen():
    """Five folds on four devices: the second round fills up with copies of its only fold."""
    trainer, seen = trainer_of(4, 1), []
    rounds = trainer.rounds()
    assert [[fold.name for fold in folds] for folds in rounds] == [list("abcd"), ["e"]]
    (result,) = trainer.train(rounds[1], 3, seen.append)
    assert result.fold.name == "e"
    assert result.logits.shape == (3, SIZES["e"], 3)
    assert sum(progress.fold_epochs for progress in seen) == 3
    assert seen[-1].epoch == 3
    np.testing.assert_allclose(seen[-1].loss, result.train_loss[-1], rtol=1e-6)
    results = trainer.train(rounds[0], 2, seen.append)
    assert sum(progress.fold_epochs for progress in seen) == 3 + 4 * 2
    last_losses = [result.train_loss[-1] for result in results]
    np.testing.assert_allclose(seen[-1].loss, np.mean(last_losses), rtol=1e-6)


def test_rounds_leave_out_folds_that_are_done():
    trainer = trainer_of(2, 2)

    def names(done):
        return [[fold.name for fold in folds] for folds in trainer.rounds(done)]

    # Groups a b, c; d, e: in the last round too no device is idle.
    assert names([]) == [["a", "b", "c"], ["d", "e"]]
    assert names(["a"]) == [["b", "c", "d", "e"]]
    assert names(["a", "b", "d"]) == [["c", "e"]]
    assert names(NAMES) == []
    assert trainer.rounds() == trainer.rounds()


def test_folds_trained_later_have_the_same_bits():
    """As after an interruption: among others, and in other places."""
    trainer = trainer_of(2, 2)
    for done in ("ab", "ac", "abce"):
        (folds,) = trainer.rounds(done)
        results = {result.fold.name: result for result in trainer.train(folds, EPOCHS)}
        assert list(results) == [name for name in NAMES if name not in done]
        assert_same_bits(outcome(2, 2), results)


def test_calls_of_any_length_give_the_same_bits(monkeypatch):
    def epochs_seen(trainer):
        seen = []
        results = train_all(trainer, on_progress=seen.append)
        assert_same_bits(outcome(4, 1), results)
        return [progress.epoch for progress in seen if not progress.compiling_s]

    # A trainer starts with one epoch a call and goes on with what it measured.
    trainer = make_trainer(devices=4, names="abcd")
    monkeypatch.setattr(folds_module, "SECONDS_PER_CALL", 0)
    assert epochs_seen(trainer) == [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.setattr(folds_module, "SECONDS_PER_CALL", 1e9)
    assert epochs_seen(trainer) == [1, 7]
    assert epochs_seen(trainer) == [7]
    monkeypatch.setattr(folds_module, "MAX_EPOCHS_PER_CALL", 4)
    assert epochs_seen(make_trainer(devices=4, names="abcd")) == [1, 5, 7]


def test_compiling_is_told_once():
    seen = []
    trainer = make_trainer(devices=4, names="abcd")
    for _ in range(2):
        train_all(trainer, on_progress=seen.append)
    (compiled,) = [progress for progress in seen if progress.compiling_s]
    assert seen[0] is compiled
    assert (compiled.epoch, compiled.fold_epochs) == (0, 0)


class Recorder(nn.Module):
    """Which clips does a step see? Inputs are one-hot, so the gradient has one row a clip."""

    clips: int
    steps: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, train):
        kernel = self.param("kernel", nn.initializers.zeros, (self.clips, 3))
        self.param("log", nn.initializers.zeros, (self.steps, self.clips))
        return nn.Dropout(self.dropout, deterministic=not train)(x) @ kernel


@functools.cache
def recorded(shuffle, seed=3, names=ALL, dropout=0.0, epochs=3, order=None):
    """Fold name -> (steps, clips): each clip's weight in the mean of each step; 0: not in it."""
    count = len(SUBJECTS)
    steps = epochs * 4 + 1
    trainer = make_trainer(
        Recorder(count, steps, dropout),
        log_gradients(),
        data=(np.eye(count, dtype=np.float32), make_data()[1]),
        names=names,
        seed=seed,
        shuffle=shuffle,
        order=order,
        devices=4,
    )
    # With a zero kernel every clip's gradient is softmax - one-hot: this long.
    full = np.sqrt(1 / 9 + 1 / 9 + 4 / 9)
    return {
        name: result.variables["params"]["log"] / full
        for name, result in train_all(trainer, epochs).items()
    }


def epochs_of(name, log, epochs=3):
    """(steps, clips) -> for each epoch its batches, as sets; checks the weights on the way."""
    steps = -(-(len(SUBJECTS) - SIZES[name]) // BATCH)
    assert not log[epochs * steps :].any()  # a step without clips leaves no trace
    batches = []
    for row in log[: epochs * steps]:
        batch = np.flatnonzero(row)
        np.testing.assert_allclose(row[batch], 1 / len(batch), rtol=1e-5)
        batches.append(frozenset(batch.tolist()))
    return [batches[index * steps : (index + 1) * steps] for index in range(epochs)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_training_clip_once_an_epoch(name, shuffle):
    clips = np.flatnonzero(name != SUBJECTS)
    for batches in epochs_of(name, recorded(shuffle)[name]):
        sizes = [len(batch) for batch in batches]
        assert sizes == [len(clips[start : start + BATCH]) for start in range(0, len(clips), BATCH)]
        assert frozenset().union(*batches) == frozenset(clips.tolist())


@pytest.mark.parametrize("name", NAMES)
def test_file_order(name):
    clips = np.flatnonzero(name != SUBJECTS).tolist()
    expected = [frozenset(clips[start : start + BATCH]) for start in range(0, len(clips), BATCH)]
    assert epochs_of(name, recorded(shuffle=False)[name]) == [expected] * 3


def test_a_given_order():
    backwards = tuple(range(len(SUBJECTS)))[::-1]
    log = recorded(shuffle=False, order=backwards)
    for name in NAMES:
        clips = [clip for clip in backwards if SUBJECTS[clip] != name]
        batches = [frozenset(clips[start : start + BATCH]) for start in range(0, len(clips), BATCH)]
        assert epochs_of(name, log[name]) == [batches] * 3


def test_shuffling_differs_by_epoch_fold_and_seed():
    logs = recorded(shuffle=True)
    orders = {name: epochs_of(name, log) for name, log in logs.items()}
    for name in NAMES:
        (in_file_order, *_) = epochs_of(name, recorded(shuffle=False)[name])
        first, second, third = orders[name]
        assert in_file_order not in orders[name]
        assert first != second != third != first
        assert epochs_of(name, recorded(shuffle=True, seed=4)[name])[0] != first
    # With one order for all folds, the same places of their lists would come first.
    for one, other in zip(orders["a"], orders["b"], strict=True):
        places = [
            frozenset(
                np.searchsorted(np.flatnonzero(name != SUBJECTS), sorted(batches[0])).tolist()
            )
            for name, batches in (("a", one), ("b", other))
        ]
        assert places[0] != places[1]


def test_shuffling_follows_the_seed_and_the_fold_only():
    logs = recorded(shuffle=True)
    for name, log in recorded(shuffle=True, names="ce").items():
        assert epochs_of(name, log) == epochs_of(name, logs[name])


def test_dropout_differs_by_epoch_and_fold():
    """One-hot inputs in file order: a clip that is missing from an epoch was dropped in it."""
    logs = recorded(shuffle=False, dropout=0.5)
    kept = {name: (log[:12] > 0).reshape(3, 4, -1).any(axis=1) for name, log in logs.items()}
    first = kept["a"]
    assert not first[:, SUBJECTS == "a"].any()
    assert 0.3 < first[:, SUBJECTS != "a"].mean() < 0.7
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[1], first[2])
    # Up to the first clip of "a" or "b" both folds have the same clips in the same places.
    same = int(np.flatnonzero(np.isin(SUBJECTS, ["a", "b"]))[0])
    assert same == 5
    assert not np.array_equal(first[:, :same], kept["b"][:, :same])


def test_dropout_follows_the_seed_is_off_for_test_clips_and_training_still_learns():
    """With a fixed start and file order, the seed can act through dropout only."""

    def train(seed):
        module = Net(dropout=0.5, scale=0.0)
        return train_all(make_trainer(module, names="ab", devices=2, seed=seed))

    first, other = train(3), train(4)
    assert first["a"].train_loss[-1] < first["a"].train_loss[0]
    assert not np.allclose(first["a"].logits[-1], other["a"].logits[-1], rtol=0.01)
    # The last epoch's logits are those of the final parameters without dropout.
    inputs, _ = make_data()
    features = inputs[SUBJECTS == "b"].reshape(SIZES["b"], -1)
    np.testing.assert_allclose(
        first["b"].logits[-1],
        features @ first["b"].variables["params"]["kernel"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_test_clips_have_no_influence():
    """All labels and one input of a left-out subject changed: only that clip's logits change."""
    inputs, labels = make_data()
    mine = SUBJECTS == "e"
    labels[mine] = (labels[mine] + 1) % 3
    inputs[np.flatnonzero(mine)[0]] += 1
    results, before = train_all(make_trainer(data=(inputs, labels), devices=4)), outcome(4, 1)
    jax.tree.map(np.testing.assert_array_equal, results["e"].variables, before["e"].variables)
    np.testing.assert_array_equal(results["e"].train_loss, before["e"].train_loss)
    np.testing.assert_array_equal(results["e"].logits[:, 1:], before["e"].logits[:, 1:])
    assert not np.allclose(results["e"].logits[:, 0], before["e"].logits[:, 0])
    for name in "abcd":  # which train on these clips
        assert not np.allclose(results[name].logits, before[name].logits)


def test_a_diverged_fold_is_named():
    """Only fold "c" trains or tests on the spoilt clip: "a" leaves it out altogether."""
    inputs, labels = make_data()
    spoilt = int(np.flatnonzero(SUBJECTS == "e")[0])
    inputs[spoilt] = np.nan
    first, bad = make_folds("ac")
    first.train[spoilt] = False
    trainer = FoldTrainer(learner(), inputs, labels, [first, bad], batch_size=BATCH, seed=0)
    with pytest.raises(UserError, match=r"not finite in fold c \(epoch 1\); lower the learning"):
        train_all(trainer)


def test_the_epoch_of_divergence_is_named(monkeypatch):
    """The last step of epoch 3 spoils the parameters, in whichever call it falls."""
    spoil = optax.scale_by_schedule(lambda step: jnp.where(step == 11, jnp.nan, 0.1))
    trainer = make_trainer(optimizer=spoil, names="ab", devices=2)
    for seconds in (0, 1e9):
        monkeypatch.setattr(folds_module, "SECONDS_PER_CALL", seconds)
        with pytest.raises(UserError, match=r"in fold a \(epoch 3\), b \(epoch 3\);"):
            train_all(trainer)


def test_refusals():
    inputs, labels = make_data()
    empty = np.zeros(len(SUBJECTS), bool)
    good = make_folds("ea")
    cases = [
        ([], 4, "no fold to train"),
        ([*good, Fold("x", empty, ~empty)], 4, "fold x has 0 training clips and 16 test clips"),
        ([*good, Fold("x", ~empty, empty)], 4, "fold x has 16 training clips and 0 test clips"),
        (good, 0, "batch_size=0 must be at least 1"),
    ]
    for folds, batch_size, message in cases:
        with pytest.raises(UserError, match=message):
            FoldTrainer(learner(), inputs, labels, folds, batch_size=batch_size, seed=0)


def test_a_batch_larger_than_the_training_sets_is_the_whole_set():
    """Of every fold, whatever the sizes of the others: the smaller ones are padded."""
    data, folds = make_data(), make_folds("ae")
    sizes = {fold.name: int(fold.train.sum()) for fold in folds}
    assert len({*sizes.values()}) == 2

    def trained(folds, size):
        trainer = FoldTrainer(learner(), *data, folds, batch_size=size, seed=3)
        return train_all(trainer, epochs=2)

    most = trained(folds, 10**6)
    assert_same_bits(most, trained(folds, max(sizes.values())))
    # Between the sizes: the whole set of the smaller fold.
    small = min(sizes, key=sizes.get)
    alone = trained([fold for fold in folds if fold.name == small], sizes[small])
    assert_close({small: most[small]}, alone)
    assert_close({small: trained(folds, sizes[small] + 1)[small]}, alone)


def test_parameters_come_for_the_folds_that_are_wanted():
    trainer = trainer_of(2, 2)
    results = trainer.train(trainer.rounds()[0], EPOCHS, wanted=["b"])
    assert [result.variables is not None for result in results] == [False, True, False]
    assert_same_bits({"b": results[1]}, {"b": outcome(2, 2)["b"]})
    # No view that keeps the whole round alive.
    kernel = results[1].variables["params"]["kernel"]
    assert kernel.base is None or kernel.base.nbytes == kernel.nbytes


def test_more_folds_than_a_round_has_are_refused():
    with pytest.raises(ValueError, match="5 folds are more than a round has"):
        trainer_of(2, 2).train(make_folds(), 1)
