"""Fold-parallel training: pmap over devices, vmap over folds, compiled loops over epochs and steps.

The data sets are tiny and the folds independent, so every device holds all clips and trains whole
folds; parameters and optimizer state carry the leading axes (devices, folds per device). This is
the only file that says pmap.

A fold's random numbers come from the seed and the fold's own stream, and its batches from its own
clips, so its result does not depend on the folds that run beside it. The size of a group (folds
per device) shapes the compiled arithmetic: the same group size gives the same bits on any number
of devices from two up. Another group size, or a single device (for which XLA compiles a program of
its own), gives the same result up to float rounding.

The size of a group is estimated first, then checked against what the compiler says that the program
needs. Where that does not fit, or the memory runs out all the same, the groups become smaller and
the folds that are not finished are dealt out anew (`Regrouped`).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from htnet_jax.errors import UserError
from htnet_jax.features.feeds import Feed
from htnet_jax.models.idle import join, split
from htnet_jax.models.layers import batch_mask
from htnet_jax.training.cluster import ALONE, Cluster
from htnet_jax.training.grouping import balanced_size, groups, spread
from htnet_jax.training.memory import USABLE, available_bytes, is_exhausted, needed_bytes
from htnet_jax.training.snapshots import Snapshots
from htnet_jax.training.stopping import StopRequest

# A compiled call covers as many epochs as fit about this time, so that progress is seen.
SECONDS_PER_CALL = 5.0
MAX_EPOCHS_PER_CALL = 64

# Test clips are predicted in parts whose inputs take up to this many bytes: what a network computes
# from them is a hundred times larger. (Of frames of 224 px these are 27 clips.)
MAX_TEST_BYTES = 32 << 20

# Measured at dim 32 on 2 CPU cores: batched products of 4 folds cost 1.3 times as much per fold.
MAX_FOLDS_PER_CPU_DEVICE = 1

# The first group size is chosen from a guess at what training takes: this times parameters, their
# gradient and the optimizer's state, for activations and the temporary copies of an update.
WORKING_FACTOR = 1.5

# XLA's CPU backend would hand products, sums and what stands between them to YNNPACK. It is the
# faster one for products (dim 256: 2.9 s a step against 3.3 s with Eigen, which is slow where a
# weight is transposed), but not for the rest (dim 32: 0.15 s a fold-epoch against 0.11 s).
CPU_COMPILER_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
}

# How float32 products may be computed: JAX's names for it. Of "bfloat16", JAX's own name would give
# TF32 on a GPU, so that there the algorithm is named.
MATMUL_PRECISIONS = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}
_GPU_PRECISIONS = {**MATMUL_PRECISIONS, "bfloat16": "BF16_BF16_F32"}
# Purposes of a fold's random streams.
_INIT, _SHUFFLE, _DROPOUT, _AUGMENT = range(4)


@dataclasses.dataclass(frozen=True)
class Fold:
    """One train/test split.

    Attributes:
        name: Unique; for a fold of leave-one-subject-out, the subject.
        train: `(N,)` bool, the clips trained on.
        test: `(N,)` bool, the clips predicted.
        repetition: Added to the trainer's seed: the same fold again with other random numbers.
        stream: Seeds the fold's random numbers, together with the seed; empty: `name`.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    repetition: int = 0
    stream: str = ""


@dataclasses.dataclass(frozen=True)
class FoldResult:
    """What training one fold gave.

    Attributes:
        fold: The fold.
        logits: `(epochs, test clips, classes)` float32, test clips in the order of the data set.
        train_loss: `(epochs,)` float32, mean cross-entropy over the epoch's clips.
        params: The final parameters, NumPy float32; None if they were not wanted.
        collections: The network's other variables at the end, such as `batch_stats`, by collection.
    """

    fold: Fold
    logits: np.ndarray
    train_loss: np.ndarray
    params: Any
    collections: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """All variables, as the module's `apply` takes them."""
        return {"params": self.params, **self.collections}


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where training stands after a compiled call, or after compiling.

    Attributes:
        epoch: Epochs done by the folds now training.
        fold_epochs: Fold-epochs that this call added (padding folds not counted); 0 after
            compiling.
        loss: Mean training loss of the folds at `epoch`; NaN after compiling.
        compiling_s: Seconds that compiling took, if it was that; else 0.
    """

    epoch: int
    fold_epochs: int
    loss: float
    compiling_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class Keeping:
    """How a round survives an interruption.

    Attributes:
        snapshots: Where the round's state is kept.
        every: Epochs between snapshots; 0: only when training is asked to stop.
        stop: Whether it is.
        seconds: Least time between snapshots, however many epochs that takes.
    """

    snapshots: Snapshots
    every: int
    stop: StopRequest
    seconds: float = 0.0


class Regrouped(Exception):
    """The memory does not suffice for groups of the size in use; the trainer has smaller ones now.

    Its message says so in one line. Nothing of the round is left: ask `rounds` again, and begin
    with snapshots of no other group size.
    """


def _of_group(
    function: Callable[..., Any], size: int, axes: tuple[int | None, ...]
) -> Callable[..., Any]:
    """A function of one fold as one of a group; `axes` as `jax.vmap` takes them.

    A group of one has no batched products: of those XLA does not turn gradients of weights the
    right way round, and the optimizer then reads them across the grain, several times slower.
    """
    if size > 1:
        return jax.vmap(function, in_axes=axes)

    def of_one(*arguments: Any) -> Any:
        alone = [
            argument if axis is None else jax.tree.map(lambda a: a[0], argument)
            for argument, axis in zip(arguments, axes, strict=True)
        ]
        return jax.tree.map(lambda a: a[None], function(*alone))

    return of_one


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _copies(tree: Any, slots: Sequence[tuple[int, int]]) -> list[Any]:
    """Host copies of a tree (devices, group, ...) at some devices and places, a tree for each."""
    leaves, structure = jax.tree.flatten(tree)
    columns = []
    for leaf in leaves:
        shards = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
        used = {device for device, _ in slots}
        # Cut on the host: on the device every shape of leaf would be compiled for.
        on_host = {device: jax.device_get(shards[device]) for device in used}
        # Copied, because on a CPU the host's array is the device's memory itself.
        columns.append([np.array(on_host[device][0, place]) for device, place in slots])
    return [jax.tree.unflatten(structure, row) for row in zip(*columns, strict=True)]


class FoldTrainer:
    """Trains folds of one experiment in groups.

    Attributes:
        folds: All folds, in order.
        folds_per_device: The group size in use; may become smaller, see `Regrouped`.
        devices_at_once: Devices in use if the memory does not suffice for more; else 0.
        parameter_bytes: Size of one fold's parameters.
        program_bytes: What the compiler says that a round takes on each device; 0 before compiling.
    """

    def __init__(
        self,
        module: Any,
        optimizer: optax.GradientTransformation,
        inputs: np.ndarray | Feed,
        labels: np.ndarray,
        folds: Sequence[Fold],
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = False,
        folds_per_device: int = 0,
        devices: Sequence[jax.Device] | None = None,
        cluster: Cluster = ALONE,
        devices_at_once: int = 0,
        matmul_precision: str = "float32",
        idle: Mapping[str, int] | None = None,
        schedule: Callable[[jax.Array], jax.Array] | None = None,
        classes: int = 0,
    ) -> None:
        """Puts the data on the devices and compiles nothing yet.

        Args:
            module: Flax module; `apply(variables, *inputs, train=..., rngs=...)` gives logits.
                Variables other than `params` (batch statistics) are carried along; they change in
                training only. One that mixes the clips of a batch must heed `batch_mask`: padding
                must leave no trace.
            optimizer: Optax transformation, one independent state a fold.
            inputs: `(N, ...)` network inputs of all clips, or the feed of several.
            labels: `(N,)` int32 classes.
            folds: The folds to train, in order.
            batch_size: Clips a step; the last batch of an epoch is smaller, as PyTorch's loader.
            seed: Root of all random numbers.
            shuffle: Draw a new order of the training clips every epoch; else file order.
            folds_per_device: Folds trained side by side on one device, if the memory suffices; 0
                picks it from the free memory (on a CPU: 1) and balances the groups over the
                devices.
            devices: Devices to use; all local ones by default.
            cluster: The processes that share the folds, each with as many devices.
            devices_at_once: Use so many of them at most; 0: all.
            matmul_precision: Of products of float32, a key of `MATMUL_PRECISIONS`; without effect
                on a CPU, where they are float32 always.
            idle: Parameters, or their leading columns, that cannot change the result and that the
                optimizer would leave alone: they are not trained. See `idle.split`.
            schedule: Epoch, from 0, int32 -> factor on the optimizer's updates; None: always 1.
            classes: Outputs to keep of the predictions; 0: all that the network has.

        Raises:
            UserError: No fold, a fold without training or test clips, or a batch larger than a
                fold's training set.
        """
        self._module, self._optimizer = module, optimizer
        self._batch_size, self._seed, self._shuffle = batch_size, seed, shuffle
        self._cluster = cluster
        self._idle = dict(idle or {})
        self.folds = list(folds)
        self._check()
        devices = list(devices or jax.local_devices())
        self.devices_at_once, self.program_bytes = devices_at_once, 0
        self._pool = devices[:devices_at_once] if devices_at_once else devices
        on_gpu = devices[0].platform == "gpu"
        precisions = _GPU_PRECISIONS if on_gpu else MATMUL_PRECISIONS
        self._precision = precisions[matmul_precision]
        counts = [int(fold.train.sum()) for fold in self.folds]
        self._longest = max(counts)
        self._longest_test = max(int(fold.test.sum()) for fold in self.folds)
        # A fold whose clips end before the others' last batch must skip that step: an optimizer
        # with momentum would move the parameters even on an empty batch.
        last_start = (math.ceil(self._longest / batch_size) - 1) * batch_size
        self._has_empty_steps = min(counts) <= last_start

        self._feed = inputs if isinstance(inputs, Feed) else Feed.of_array(inputs)
        self._schedule, self._classes = schedule, classes
        variables = jax.eval_shape(self._init_variables, jax.random.key(0))
        self.parameter_bytes = _bytes(variables)
        self._state_bytes = _bytes(jax.eval_shape(self._state_of, variables))
        self._host_data = self._feed.arrays, labels.astype(np.int32)
        self._arrange(folds_per_device or self._estimate())

    def _arrange(self, size: int) -> None:
        """Groups of `size` on the devices of the pool; what was compiled for others is let go."""
        self.folds_per_device = size
        everywhere = len(self._pool) * self._cluster.count
        self._devices = self._pool[: len(groups(self.folds, everywhere, size))]
        mesh = jax.sharding.Mesh(np.array(self._devices), ("devices",))
        self._split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
        count = len(self._devices)
        (self._data,) = self._place(
            jax.tree.map(lambda a: np.broadcast_to(a, (count, *a.shape)), self._host_data)
        )
        # Traced once for each batch shape, however often the loops below trace their bodies.
        self._step = jax.jit(self._update)
        self._programs: tuple[Any, Any] | None = None
        self._epochs_per_call = 1
        self._init = jax.pmap(_of_group(self._init_fold, size, (0,)), devices=self._devices)
        run = _of_group(self._run_fold, size, (0, 0, None, None, None))
        self._run = jax.pmap(run, devices=self._devices, donate_argnums=(0,))

    def _check(self) -> None:
        if not self.folds:
            raise UserError("no fold to train: the data set has no subject to leave out")
        for fold in self.folds:
            count = int(fold.train.sum())
            if not count or not fold.test.any():
                raise UserError(
                    f"fold {fold.name} has {count} training clips and "
                    f"{int(fold.test.sum())} test clips; it needs both"
                )
        smallest = min(self.folds, key=lambda fold: int(fold.train.sum()))
        count = int(smallest.train.sum())
        if self._batch_size < 1:
            raise UserError(f"batch_size={self._batch_size} must be at least 1")
        if count < self._batch_size:
            raise UserError(
                f"batch_size={self._batch_size} is larger than the {count} training clips of "
                f"fold {smallest.name}; set --config.batch_size={count} or less"
            )

    @property
    def device_count(self) -> int:
        """Devices in use."""
        return len(self._devices)

    def _estimate(self) -> int:
        guess = WORKING_FACTOR * (self._state_bytes + self.parameter_bytes)
        fit = int(available_bytes(self._pool) / guess)
        if self._pool[0].platform == "cpu":
            fit = min(fit, MAX_FOLDS_PER_CPU_DEVICE)
        return balanced_size(len(self.folds), len(self._pool) * self._cluster.count, fit)

    def _place(self, *arrays: Any) -> Any:
        """Trees of host arrays (devices, ...) -> on the devices, in memory of their own."""
        # Before and apart from the compiled call, which is guarded against copies in its middle.
        return jax.device_put(arrays, self._split, may_alias=False)

    def _shrink(self, fit: int, why: str) -> NoReturn:
        """Fewer folds on each device, at most `fit`; where there is but one, fewer CPU devices.

        Args:
            fit: Less than the group size in use.
            why: What does not suffice, for the messages.

        Raises:
            Regrouped: Always, unless nothing can be made smaller.
            UserError: Nothing can.
        """
        size, count = self.folds_per_device, len(self._devices)
        is_cpu = self._devices[0].platform == "cpu"
        if jax.process_count() > 1:
            raise UserError(
                f"{why} with {size} folds a device. Several processes cannot change that by "
                "themselves: start anew in another --workdir with a smaller "
                "--config.folds_per_device, or with fewer devices in each process."
            )
        if is_cpu:
            # They share one memory: smaller groups on more devices would need as much.
            self._pool = self._devices
        if size > 1:
            self._arrange(balanced_size(len(self.folds), len(self._pool), fit))
            change = f"{why} with {size} folds a device: going on with {self.folds_per_device}"
        elif is_cpu and count > 1:
            self.devices_at_once = count // 2
            self._pool = self._devices[: self.devices_at_once]
            self._arrange(1)
            change = (
                f"{why} with {count} devices at once: going on with {self.devices_at_once} "
                "(each trains one fold)"
            )
        else:
            raise UserError(
                f"{why} with a single fold: its parameters and optimizer alone take "
                f"{self._state_bytes / 1e9:.2f} GB, and {available_bytes(self._devices) / 1e9:.2f} "
                "GB are free. Set a smaller --config.batch_size or --config.model.dim, end other "
                "programs, or use a device with more memory."
            )
        raise Regrouped(change)

    def _each(self, number: int) -> np.ndarray:
        """A number for every device; one for all of them does not work with several processes."""
        return np.full(len(self._devices), number, np.int32)

    def _init_variables(self, key: jax.Array) -> Any:
        samples = (jnp.zeros((1, *shape), jnp.float32) for shape in self._feed.shapes)
        return self._module.init(key, *samples, train=False)

    @staticmethod
    def _key(origin: jax.Array, purpose: int) -> jax.Array:
        """`origin`: (2,) uint32, the seed and the number of the fold's stream."""
        key = jax.random.fold_in(jax.random.key(origin[0]), origin[1])
        return jax.random.fold_in(key, purpose)

    def _init_fold(self, origin: jax.Array) -> Any:
        return self._state_of(self._init_variables(self._key(origin, _INIT)))

    def _state_of(self, variables: Any) -> Any:
        """`((trained, idle, collections), optimizer state)`."""
        collections = {name: tree for name, tree in variables.items() if name != "params"}
        trained, idle = split(variables["params"], self._idle)
        return (trained, idle, collections), self._optimizer.init(trained)

    @staticmethod
    def _variables(trained: Any, idle: Any, collections: Any) -> dict[str, Any]:
        return {"params": join(trained, idle), **collections}

    def _update(
        self,
        state: Any,
        data: Any,
        rows: jax.Array,
        weights: jax.Array,
        keys: tuple[jax.Array, jax.Array],
        epoch: jax.Array,
    ) -> Any:
        """One optimizer step; also returns the summed loss over the batch's clips.

        `keys`: the step's for the network, the epoch's for the variation of its inputs.
        """
        arrays, labels = data
        (trained, idle, collections), optimizer_state = state
        count = weights.sum()
        inputs = self._feed.varied(arrays, rows, keys[1])

        def loss_fn(trained: Any) -> Any:
            variables = self._variables(trained, idle, collections)
            with batch_mask(weights):
                out = self._module.apply(
                    variables,
                    *inputs,
                    train=True,
                    rngs={"dropout": keys[0]},
                    mutable=list(collections) or False,
                )
            logits, changed = out if collections else (out, {})
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), labels[rows]
            )
            return (losses * weights).sum() / jnp.maximum(count, 1), changed

        (loss, changed), gradient = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        updates, new_state = self._optimizer.update(gradient, optimizer_state, trained)
        if self._schedule:
            factor = self._schedule(epoch)
            updates = jax.tree.map(lambda update: factor * update, updates)
        new = (optax.apply_updates(trained, updates), idle, changed), new_state
        if self._has_empty_steps:
            new = jax.tree.map(lambda a, b: jnp.where(count > 0, a, b), new, state)
        return new, loss * count

    def _epoch(self, state: Any, fold: dict[str, jax.Array], data: Any, epoch: jax.Array) -> Any:
        """One pass over a fold's training clips; returns the mean loss over them."""
        positions = jnp.arange(self._longest)
        valid = positions < fold["train_count"]
        rows = fold["train_rows"]
        if self._shuffle:
            key = jax.random.fold_in(self._key(fold["origin"], _SHUFFLE), epoch)
            rank = jnp.where(valid, jax.random.uniform(key, valid.shape), jnp.inf)
            rows = rows[jnp.argsort(rank)]
        weights = valid.astype(jnp.float32)
        key, varied = (
            jax.random.fold_in(self._key(fold["origin"], purpose), epoch)
            for purpose in (_DROPOUT, _AUGMENT)
        )
        batch = self._batch_size
        full = self._longest // batch

        def body(state: Any, step: Any) -> Any:
            index, rows, weights = step
            keys = jax.random.fold_in(key, index), varied
            return self._step(state, data, rows, weights, keys, epoch)

        cut = full * batch
        steps = (
            jnp.arange(full),
            rows[:cut].reshape(full, batch),
            weights[:cut].reshape(full, batch),
        )
        state, losses = jax.lax.scan(body, state, steps)
        total = losses.sum()
        if cut < self._longest:
            state, loss = body(state, (jnp.asarray(full), rows[cut:], weights[cut:]))
            total += loss
        return state, total / fold["train_count"]

    def _run_fold(
        self, state: Any, fold: dict[str, jax.Array], data: Any, start: jax.Array, count: jax.Array
    ) -> Any:
        """`count` epochs of one fold from epoch `start`; test logits and loss after each."""
        shape = jax.eval_shape(self._logits, state[0], data, fold["test_rows"])
        logits = jnp.zeros((MAX_EPOCHS_PER_CALL, *shape.shape), jnp.float32)
        losses = jnp.zeros((MAX_EPOCHS_PER_CALL,), jnp.float32)

        def body(index: jax.Array, carry: Any) -> Any:
            state, logits, losses = carry
            state, loss = self._epoch(state, fold, data, start + index)
            test = self._logits(state[0], data, fold["test_rows"])
            return state, logits.at[index].set(test), losses.at[index].set(loss)

        # The number of epochs is an argument, so that calls of any length share one compilation.
        return jax.lax.fori_loop(0, count, body, (state, logits, losses))

    def _logits(self, parts: Any, data: Any, rows: jax.Array) -> jax.Array:
        variables = self._variables(*parts)

        def predict(rows: jax.Array) -> jax.Array:
            inputs = self._feed.exact(data[0], rows)
            logits = self._module.apply(variables, *inputs, train=False).astype(jnp.float32)
            return logits[:, : self._classes] if self._classes else logits

        most = max(1, MAX_TEST_BYTES // self._feed.clip_bytes)
        if len(rows) <= most:
            return predict(rows)
        parts_of = math.ceil(len(rows) / most)
        each = math.ceil(len(rows) / parts_of)
        padded = jnp.pad(rows, (0, parts_of * each - len(rows))).reshape(parts_of, each)
        logits = jax.lax.map(predict, padded)
        return logits.reshape(parts_of * each, -1)[: len(rows)]

    def _origin(self, fold: Fold) -> tuple[int, int]:
        # JAX's keys take 32 bits of a seed.
        seed = (self._seed + fold.repetition) % 2**32
        return seed, zlib.crc32((fold.stream or fold.name).encode())

    def _slots(self, count: int) -> list[tuple[int, int]]:
        """The device and the place in its group of each of `count` folds."""
        dealt = spread(range(count), len(self._devices))
        return [(device, place) for device, part in enumerate(dealt) for place in range(len(part))]

    def _tables(self, folds: Sequence[Fold]) -> dict[str, np.ndarray]:
        """Row numbers of every fold's clips, padded to one length, shaped (devices, group, ...).

        Places that no fold has are filled up with copies of the last fold.
        """

        def padded(mask: np.ndarray, length: int) -> np.ndarray:
            rows = np.flatnonzero(mask)
            return np.pad(rows, (0, length - len(rows))).astype(np.int32)

        table = {
            "origin": np.array([self._origin(fold) for fold in folds], np.uint32),
            "train_rows": np.stack([padded(fold.train, self._longest) for fold in folds]),
            "train_count": np.array([fold.train.sum() for fold in folds], np.float32),
            "test_rows": np.stack([padded(fold.test, self._longest_test) for fold in folds]),
        }
        chosen = np.full((len(self._devices), self.folds_per_device), len(folds) - 1)
        for index, slot in enumerate(self._slots(len(folds))):
            chosen[slot] = index
        return {key: value[chosen] for key, value in table.items()}

    def rounds(self, done: Sequence[str] = ()) -> list[list[Fold]]:
        """The folds of each round of this process: whole groups, one on every device at a time.

        Args:
            done: Names of folds to leave out.
        """
        at_once = len(self._devices)
        # Dealt out before those that are done are left out, which every process may see otherwise.
        blocks = groups(self.folds, at_once * self._cluster.count, self.folds_per_device)
        own = [
            fold
            for index, block in enumerate(blocks)
            if index // at_once % self._cluster.count == self._cluster.index
            for fold in block
        ]
        pending = [fold for fold in own if fold.name not in {*done}]
        dealt = groups(pending, at_once, self.folds_per_device)
        return [
            [fold for group in dealt[i : i + at_once] for fold in group]
            for i in range(0, len(dealt), at_once)
        ]

    def _compile(self, tables: dict[str, jax.Array], copies: int) -> tuple[Any, Any]:
        """The programs `(init, run)`, compiled on first use.

        Args:
            tables: On the devices.
            copies: Of the state that the main memory must hold besides.

        Raises:
            Regrouped: They do not fit the memory.
            UserError: They do not, and nothing can be made smaller.
        """
        if self._programs is None:
            with jax.default_matmul_precision(self._precision):
                init = self._init.lower(tables["origin"])
            # Compiling one program while tracing the other saves about a quarter of the wait.
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                compiled_init = pool.submit(init.compile)
                with jax.default_matmul_precision(self._precision):
                    state = init.out_info
                    if jax.process_count() > 1:  # pmap then traces with real arrays only
                        state = compiled_init.result()(tables["origin"])
                    run = self._run.lower(state, tables, self._data, *self._span(0, 1))
                    del state  # it would count as memory in use
                on_cpu = self._devices[0].platform == "cpu"
                compiled_run = run.compile(CPU_COMPILER_OPTIONS if on_cpu else None)
                programs = compiled_init.result(), compiled_run
            self._check_memory(programs, copies if on_cpu else 0)
            self._programs = programs
        return self._programs

    def _check_memory(self, programs: tuple[Any, Any], copies: int) -> None:
        size = self.folds_per_device
        self.program_bytes = max(needed_bytes(program) for program in programs)
        needed = self.program_bytes + copies * size * self._state_bytes
        free = available_bytes(self._devices)
        if needed > USABLE * free:
            fit = min(int(USABLE * free * size / needed), size - 1)
            self._shrink(fit, f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")

    def _span(self, start: int, count: int) -> Any:
        """The arguments `start` and `count` of `_run_fold`, on every device."""
        return self._place(*(np.full(len(self._devices), n, np.int32) for n in (start, count)))

    def train(
        self,
        folds: Sequence[Fold],
        epochs: int,
        on_progress: Callable[[Progress], None] | None = None,
        keeping: Keeping | None = None,
        wanted: Collection[str] | None = None,
    ) -> list[FoldResult]:
        """Trains the folds of one round from their own initial parameters, or from a snapshot.

        Args:
            folds: One of `rounds()`.
            epochs: Passes over each fold's training clips.
            on_progress: Called after compiling, and after every compiled call.
            keeping: Snapshots of this round; the newest sound one is gone on from. The results are
                the same bits as without any interruption.
            wanted: Names of folds whose parameters to fetch from the devices; None: all.

        Returns:
            One result a fold, in order.

        Raises:
            UserError: The loss or a logit is not finite; names the folds and the epoch. A snapshot
                cannot be written, or belongs to something else. The memory does not suffice for a
                single fold.
            Regrouped: The memory does not suffice for the groups; they are smaller now.
            Stopped: `keeping.stop` is requested; the state is on disk.
            ValueError: More folds than a round has.
        """
        try:
            return self._train(folds, epochs, on_progress, keeping, wanted)
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                raise
        # Only here are the arrays of the failed attempt let go, with the error's traceback.
        self._shrink(self.folds_per_device // 2, "out of memory")

    def _train(
        self,
        folds: Sequence[Fold],
        epochs: int,
        on_progress: Callable[[Progress], None] | None,
        keeping: Keeping | None,
        wanted: Collection[str] | None,
    ) -> list[FoldResult]:
        slots = self._slots(len(folds))
        if max(place for _, place in slots) >= self.folds_per_device:
            raise ValueError(f"{len(folds)} folds are more than a round has; ask rounds() again")
        # The folds' entries of an array (devices, group, ...), in order.
        chosen = tuple(np.array(slots).T)
        (tables,) = self._place(self._tables(folds))
        began = time.monotonic()
        is_first = self._programs is None
        init, run = self._compile(tables, copies=1 if keeping else 0)
        if is_first and on_progress:
            on_progress(Progress(0, 0, math.nan, time.monotonic() - began))
        done, state, all_logits, all_losses = self._restored(keeping, tables)
        if state is None:
            state = init(tables["origin"])
        elif on_progress:
            loss = float(all_losses[-1][:, -1].mean())
            on_progress(Progress(done, done * len(folds), loss))
        saved, saved_at = done, time.monotonic()
        while done < epochs:
            count = min(self._epochs_per_call, epochs - done)
            if keeping and keeping.every:
                count = min(count, keeping.every - (done - saved) % keeping.every)
            began = time.monotonic()
            span = self._span(done, count)
            # Everything is on the devices: a copy in the middle would make them wait.
            with jax.transfer_guard("disallow"):
                state, logits, losses = run(state, tables, self._data, *span)
            logits, losses = (a[chosen][:, :count] for a in jax.device_get((logits, losses)))
            all_logits.append(logits)
            all_losses.append(losses)
            self._check_finite(folds, all_logits[-1], all_losses[-1], done)
            done += count
            if on_progress:
                loss = float(all_losses[-1][:, -1].mean())
                on_progress(Progress(done, count * len(folds), loss))
            if keeping and done < epochs:
                # Where epochs are fast, the snapshots would take longer than the training.
                is_time = time.monotonic() - saved_at >= keeping.seconds
                is_due = keeping.every and done - saved >= keeping.every and is_time
                if keeping.stop.requested or is_due:
                    self._snapshot(keeping, done, state, all_logits, all_losses)
                    saved, saved_at = done, time.monotonic()
                if keeping.stop.requested:
                    keeping.snapshots.wait()
                    keeping.stop.raise_if_requested()
            per_epoch = (time.monotonic() - began) / count
            fitting = np.clip(SECONDS_PER_CALL / per_epoch, 1, MAX_EPOCHS_PER_CALL)
            self._epochs_per_call = int(fitting)
        logits = np.concatenate(all_logits, axis=1)
        losses = np.concatenate(all_losses, axis=1)
        fetched = [i for i, fold in enumerate(folds) if wanted is None or fold.name in wanted]
        copies = _copies(state[0], [slots[i] for i in fetched])
        results = [
            FoldResult(fold, logits[i, :, : int(fold.test.sum())], losses[i], None)
            for i, fold in enumerate(folds)
        ]
        for i, (trained, idle, collections) in zip(fetched, copies, strict=True):
            params = join(trained, idle)
            results[i] = dataclasses.replace(results[i], params=params, collections=collections)
        return results

    @staticmethod
    def _snapshot(
        keeping: Keeping, done: int, state: Any, logits: list[Any], losses: list[Any]
    ) -> None:
        leaves = {f"state_{i:05}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
        results = {
            "logits": np.concatenate(logits, axis=1),
            "losses": np.concatenate(losses, axis=1),
        }
        keeping.snapshots.save(done, {**leaves, **results})

    def _restored(self, keeping: Keeping | None, tables: dict[str, np.ndarray]) -> Any:
        """(epochs done, state, logits, losses) of the newest snapshot; else (0, None, [], [])."""
        found = keeping.snapshots.latest() if keeping else None
        if found is None:
            return 0, None, [], []
        expected, structure = jax.tree.flatten(jax.eval_shape(self._init, tables["origin"]))
        leaves = [found.arrays[f"state_{i:05}"] for i in range(structure.num_leaves)]
        if [a.shape for a in leaves] != [a.shape for a in expected]:
            print(
                "the state on disk is that of other groups of folds: these folds begin anew",
                file=sys.stderr,
                flush=True,
            )
            return 0, None, [], []
        (state,) = self._place(jax.tree.unflatten(structure, leaves))
        return found.epoch, state, [found.arrays["logits"]], [found.arrays["losses"]]

    @staticmethod
    def _check_finite(
        folds: Sequence[Fold], logits: np.ndarray, losses: np.ndarray, done: int
    ) -> None:
        finite = np.isfinite(losses) & np.isfinite(logits).all(axis=(2, 3))
        if finite.all():
            return
        bad = [
            f"{fold.name} (epoch {done + 1 + int(np.argmin(row))})"
            for fold, row in zip(folds, finite, strict=True)
            if not row.all()
        ]
        raise UserError(
            f"training diverged: loss or logits are not finite in fold {', '.join(bad)}; "
            "lower the learning rate or check the inputs"
        )


def train_rounds(
    trainer: FoldTrainer,
    epochs: int,
    on_progress: Callable[[Progress], None] | None = None,
    wanted: Collection[str] | None = None,
) -> Iterator[FoldResult]:
    """Trains all folds, a round at a time, in smaller groups if the memory does not suffice.

    Args:
        trainer: Of the folds.
        epochs: Passes over each fold's training clips.
        on_progress: As in `FoldTrainer.train`.
        wanted: As there.

    Yields:
        A result for each fold, in order.

    Raises:
        UserError: As `FoldTrainer.train`.
    """
    done: list[str] = []
    while rounds := trainer.rounds(done):
        try:
            results = trainer.train(rounds[0], epochs, on_progress, wanted=wanted)
        except Regrouped as change:
            print(change, file=sys.stderr, flush=True)
            continue
        yield from results
        done += [result.fold.name for result in results]
