"""The training of one fold as one compiled loop: epochs of batches, predictions after each."""

from __future__ import annotations

import math
import zlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from htnet_jax.learn.optim import Moment
from htnet_jax.learn.step import Batch, Learner, State

# A compiled call covers at most this many epochs: the size of its arrays of results.
MAX_EPOCHS_PER_CALL = 64

# Test clips are predicted in parts whose inputs take up to this many bytes: what a network computes
# from them is a hundred times larger. (Of frames of 224 px these are 27 clips.)
MAX_TEST_BYTES = 32 << 20

# Purposes of a fold's random streams.
_INIT, _SHUFFLE, _DROPOUT, _AUGMENT = range(4)

# Arrays of one fold: `origin` (2,) uint32, `train_rows` (L,) int32, `train_count` float32,
# `test_rows` (T,) int32.
FoldTable = dict[str, jax.Array]


class Feed(Protocol):
    """What `htnet_jax.features.Feed` offers."""

    shapes: tuple[tuple[int, ...], ...]
    clip_bytes: int

    def exact(self, arrays: Any, rows: jax.Array) -> tuple[jax.Array, ...]:
        """Inputs as they are predicted."""

    def fitted(self, arrays: Any, rows: jax.Array, valid: jax.Array) -> Any:
        """The arrays, with what depends on a fold's training clips."""

    def varied(self, arrays: Any, rows: jax.Array, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """Inputs and privileged inputs as they are trained on."""


def origin(seed: int, stream: str) -> tuple[int, int]:
    """What all random numbers of a fold begin from: the seed and the name of its stream."""
    # JAX's keys take 32 bits of a seed.
    return seed % 2**32, zlib.crc32(stream.encode())


class FoldProgram:
    """What is compiled for every fold: `init` and `run`."""

    def __init__(
        self,
        learner: Learner,
        feed: Feed,
        *,
        batch_size: int,
        longest: int,
        shuffle: bool = False,
        classes: int = 0,
    ) -> None:
        """Compiles nothing yet.

        Args:
            learner: The network and how it is trained.
            feed: The inputs of all clips.
            batch_size: Clips a step; the last batch of an epoch is smaller, as PyTorch's loader.
            longest: Training clips of the largest fold; the rows of others are padded.
            shuffle: Draw a new order of the training clips every epoch; else that of the table.
            classes: Outputs to keep of the predictions; 0: all that the network has.
        """
        self._learner, self._feed = learner, feed
        self._batch_size, self._longest = batch_size, longest
        self._shuffle, self._classes = shuffle, classes
        # Traced once for each batch shape, however often the loops below trace their bodies.
        self._step = jax.jit(self._one_step)

    def init(self, origin: jax.Array, start: Any = None) -> State:
        """The state before the first epoch.

        Args:
            origin: `(2,)` uint32, see `origin`.
            start: Part of the variables, which begin so; see `Learner.init`.
        """
        return self._learner.init(_key(origin, _INIT), self._samples(), start)

    def run(
        self, state: State, fold: FoldTable, data: Any, start: jax.Array, count: jax.Array
    ) -> tuple[State, jax.Array, jax.Array]:
        """Some epochs of one fold.

        Args:
            state: Before the first of them.
            fold: The fold's clips.
            data: `(arrays of the feed, (N,) int32 labels)`.
            start: The first epoch, from 0.
            count: How many. An argument, so that calls of any length share one compilation.

        Returns:
            The state, the test clips' logits after each epoch `(MAX_EPOCHS_PER_CALL, T, C)`, and
            the mean training loss of each `(MAX_EPOCHS_PER_CALL,)`.
        """
        shape = jax.eval_shape(self._logits, state, data, fold["test_rows"])
        logits = jnp.zeros((MAX_EPOCHS_PER_CALL, *shape.shape), jnp.float32)
        losses = jnp.zeros((MAX_EPOCHS_PER_CALL,), jnp.float32)

        def body(index: jax.Array, carry: Any) -> Any:
            state, logits, losses = carry
            state, loss = self._epoch(state, fold, data, start + index)
            test = self._logits(state, data, fold["test_rows"])
            return state, logits.at[index].set(test), losses.at[index].set(loss)

        return jax.lax.fori_loop(0, count, body, (state, logits, losses))

    def _samples(self) -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros((1, *shape), jnp.float32) for shape in self._feed.shapes)

    def _epoch(
        self, state: State, fold: FoldTable, data: Any, epoch: jax.Array
    ) -> tuple[State, jax.Array]:
        """One pass over a fold's training clips; returns the mean loss over them."""
        count = fold["train_count"]
        valid = jnp.arange(self._longest) < count
        rows = fold["train_rows"]
        if self._shuffle:
            key = jax.random.fold_in(_key(fold["origin"], _SHUFFLE), epoch)
            rank = jnp.where(valid, jax.random.uniform(key, valid.shape), jnp.inf)
            rows = rows[jnp.argsort(rank)]
        mask = valid.astype(jnp.float32)
        key, varied = (
            jax.random.fold_in(_key(fold["origin"], purpose), epoch)
            for purpose in (_DROPOUT, _AUGMENT)
        )
        batch = self._batch_size
        full = self._longest // batch
        steps = jnp.ceil(count / batch).astype(jnp.int32)
        balance = self._balance(data[1][fold["train_rows"]], valid)
        data = (self._feed.fitted(data[0], fold["train_rows"], valid), data[1])

        def body(state: State, step: Any) -> tuple[State, jax.Array]:
            index, rows, mask = step
            keys = jax.random.fold_in(key, index), varied
            moment = Moment(epoch, index, steps)
            return self._step(state, data, rows, mask, keys, moment, balance)

        cut = full * batch
        parts = (
            jnp.arange(full),
            rows[:cut].reshape(full, batch),
            mask[:cut].reshape(full, batch),
        )
        state, losses = jax.lax.scan(body, state, parts)
        total = losses.sum()
        if cut < self._longest:
            state, loss = body(state, (jnp.asarray(full), rows[cut:], mask[cut:]))
            total += loss
        return state, total / count

    def _one_step(
        self,
        state: State,
        data: Any,
        rows: jax.Array,
        mask: jax.Array,
        keys: tuple[jax.Array, jax.Array],
        moment: Moment,
        balance: jax.Array | None,
    ) -> tuple[State, jax.Array]:
        """`keys`: the step's for the network, the epoch's for the variation of its inputs."""
        arrays, labels = data
        inputs, privileged = self._feed.varied(arrays, rows, keys[1])
        batch = Batch(inputs, privileged, labels[rows], mask, keys[0], moment, balance)
        state, metrics = self._learner.step(state, batch)
        return state, metrics["loss"]

    def _balance(self, labels: jax.Array, valid: jax.Array) -> jax.Array | None:
        """`(C,)`: clips / (classes x clips of the class) of the training clips; 0 for none."""
        if not self._classes:
            return None
        counts = jnp.zeros(self._classes, jnp.float32).at[labels].add(valid.astype(jnp.float32))
        present = (counts > 0).sum()
        balanced = counts.sum() / jnp.maximum(counts * present, 1)
        return jnp.where(counts > 0, balanced, 0)

    def _logits(self, state: State, data: Any, rows: jax.Array) -> jax.Array:
        def predict(rows: jax.Array) -> jax.Array:
            inputs = self._feed.exact(data[0], rows)
            logits = self._learner.predict(state.predicting, inputs)
            return logits[:, : self._classes] if self._classes else logits

        most = max(1, MAX_TEST_BYTES // self._feed.clip_bytes)
        if len(rows) <= most:
            return predict(rows)
        parts = math.ceil(len(rows) / most)
        each = math.ceil(len(rows) / parts)
        padded = jnp.pad(rows, (0, parts * each - len(rows))).reshape(parts, each)
        logits = jax.lax.map(predict, padded)
        return logits.reshape(parts * each, -1)[: len(rows)]


def _key(origin: jax.Array, purpose: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(origin[0]), origin[1])
    return jax.random.fold_in(key, purpose)


def has_empty_batches(counts: np.ndarray, batch_size: int) -> bool:
    """Whether some fold's clips end before the largest fold's last batch.

    Args:
        counts: Training clips of each fold.
        batch_size: Clips a step.
    """
    last_start = (math.ceil(max(counts) / batch_size) - 1) * batch_size
    return bool(min(counts) <= last_start)
