"""Training by `FoldTrainer` against a plain PyTorch loop from the same initial parameters."""

import jax
import numpy as np
import optax
import pytest
import torch

from htnet_jax.learn.step import Learner
from htnet_jax.models import HTNet
from htnet_jax.torch_bridge import BRIDGES, convert
from htnet_jax.training import folds
from htnet_jax.training.folds import Fold, FoldTrainer

BRIDGE = BRIDGES["HTNet"]
# All that HTNet has, once each: compiling takes nearly all of the time.
MODULE = HTNet(image_size=28, dim=6, num_hierarchies=2, block_repeats=(1, 0))
BATCH = 4
EPOCHS = 3
LEARNING_RATE = 2e-3
SUBJECTS = np.array(list("aabcbabcabcba"))


def make_trainer(data, optimizer):
    folds = [Fold(name, train=name != SUBJECTS, test=name == SUBJECTS) for name in "ac"]
    return FoldTrainer(
        Learner(MODULE, optimizer),
        *data,
        folds,
        batch_size=BATCH,
        seed=4,
        folds_per_device=1,
        devices=jax.local_devices()[:1],
    )


def train(trainer, epochs):
    return [result for group in trainer.rounds() for result in trainer.train(group, epochs)]


def plain_loop(model, fold, inputs, labels):
    """As the release trains; yields test logits and mean training loss after every epoch."""
    inputs = torch.from_numpy(np.moveaxis(inputs, -1, 1).copy())
    labels = torch.from_numpy(labels.astype(np.int64))
    clips = np.flatnonzero(fold.train)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        model.train()
        total = 0.0
        for start in range(0, len(clips), BATCH):
            batch = clips[start : start + BATCH]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        model.eval()
        with torch.no_grad():
            yield model(inputs[np.flatnonzero(fold.test)]).numpy(), total / len(clips)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, len(SUBJECTS)).astype(np.int32)
    inputs = rng.uniform(0, 155, (len(SUBJECTS), 28, 28, 3)).astype(np.float32)
    for clip, label in enumerate(labels):
        inputs[clip, 9 * label : 9 * label + 9] += 100
    return inputs, labels


@pytest.mark.slow  # test_folds.py has a plain loop, test_parity.py PyTorch's steps
def test_trains_as_a_plain_pytorch_loop(data, monkeypatch):
    # Compiling takes nearly all the time: half as long with LLVM's optimisations off.
    monkeypatch.setitem(folds.CPU_COMPILER_OPTIONS, "xla_backend_optimization_level", 0)
    trained = train(make_trainer(data, optax.adam(LEARNING_RATE)), EPOCHS)
    started = train(make_trainer(data, optax.set_to_zero()), 1)
    counts = [int(result.fold.train.sum()) for result in trained]
    assert [result.fold.name for result in trained] == ["a", "c"]
    assert counts == [8, 10]  # Two whole batches; the last one smaller.
    for result, start in zip(trained, started, strict=True):
        model = BRIDGE.build(MODULE, 3)
        model.load_state_dict(convert.to_state_dict(start.variables, BRIDGE.table))
        logits, losses = zip(*plain_loop(model, result.fold, *data), strict=True)
        # Or the comparison below would see no training.
        assert losses[-1] < 0.9 * losses[0]
        assert np.abs(logits[-1] - logits[0]).max() > 0.1 * np.abs(logits[0]).max()
        assert result.logits.shape == np.shape(logits)
        for ours, theirs in zip(result.logits, logits, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
        np.testing.assert_allclose(result.train_loss, losses, rtol=1e-4)
        final = convert.from_state_dict(model.state_dict(), BRIDGE.table, start.variables)
        moved = jax.tree.map(
            lambda a, b: np.linalg.norm(a - b), final["params"], start.variables["params"]
        )
        apart = jax.tree.map(
            lambda a, b: np.linalg.norm(a - b), final["params"], result.variables["params"]
        )
        # All but the position scalars of the last level, whose gradient is rounding.
        for tree in (moved, apart):
            del tree["level_1"]["pos_emb"]
        assert all(norm > 0 for norm in jax.tree.leaves(moved))
        for one, other in zip(jax.tree.leaves(apart), jax.tree.leaves(moved), strict=True):
            assert one <= 1e-2 * other
