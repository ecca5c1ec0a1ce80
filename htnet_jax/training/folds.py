"""Fold-parallel training: pmap over devices, vmap over folds, compiled loops over epochs and steps.

The data sets are tiny and the folds independent, so every device holds all clips and trains whole
folds; parameters and optimizer state carry the leading axes (devices, folds per device). This is
the only file that says pmap.

A fold's random numbers come from the seed and the fold's own stream, and its batches from its own
clips, so its result does not depend on the folds that run beside it. The size of a group (folds
per device) shapes the compiled arithmetic: the same group size gives the same bits on any number
of devices from two up. Another group size, or a single device (for which XLA compiles a program of
its own), gives the same result up to float rounding.

Several processes run this in lockstep: each round has a fold, or a copy of one, for every device of
all processes; each process computes those of its own devices, and all see all results.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from htnet_jax.errors import UserError
from htnet_jax.features import Feed
from htnet_jax.learn.epochs import MAX_EPOCHS_PER_CALL, FoldProgram, has_empty_batches, origin
from htnet_jax.learn.step import Learner, State
from htnet_jax.training import hosts
from htnet_jax.training.interrupts import Stopped, StopRequest
from htnet_jax.training.memory import (
    GroupSize,
    Regrouped,
    groups,
    is_exhausted,
    needed_bytes,
    spread,
)
from htnet_jax.training.plan import Fold
from htnet_jax.training.state import Snapshots

# A compiled call covers as many epochs as fit about this time, so that progress is seen.
SECONDS_PER_CALL = 5.0

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


@dataclasses.dataclass(frozen=True)
class FoldResult:
    """What training one fold gave.

    Attributes:
        fold: The fold.
        logits: `(epochs, test clips, classes)` float32, test clips in the order of the data set.
        train_loss: `(epochs,)` float32, mean loss over the epoch's clips.
        variables: The final variables that predictions use, NumPy float32, by collection; None if
            they were not wanted, and outside process 0.
    """

    fold: Fold
    logits: np.ndarray
    train_loss: np.ndarray
    variables: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where training stands after a compiled call, or after compiling.

    Attributes:
        epoch: Epochs done by the folds now training.
        fold_epochs: Fold-epochs that this call added (padding folds not counted); 0 after
            compiling.
        loss: Mean training loss of the folds at `epoch`; NaN after compiling.
        compiling_s: Seconds that compiling took, if it was that; else 0.
        is_resumed: The epochs are those of a snapshot.
    """

    epoch: int
    fold_epochs: int
    loss: float
    compiling_s: float = 0.0
    is_resumed: bool = False


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


class FoldTrainer:
    """Trains folds of one experiment in groups.

    Attributes:
        fits_once: False: it trains for epochs.
        folds: All folds, in order.
        parameter_bytes: Size of one fold's variables.
        state_bytes: Size of what training keeps of a fold: these and the optimizer's.
        program_bytes: What the compiler says that a round takes on each device; 0 before compiling.
    """

    fits_once = False

    def __init__(
        self,
        learner: Learner,
        inputs: np.ndarray | Feed,
        labels: np.ndarray,
        folds: Sequence[Fold],
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = False,
        order: np.ndarray | None = None,
        folds_per_device: int = 0,
        devices: Sequence[jax.Device] | None = None,
        devices_at_once: int = 0,
        matmul_precision: str = "float32",
        classes: int = 0,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        """Puts the data on the devices and compiles nothing yet.

        Args:
            learner: The network and how it is trained.
            inputs: `(N, ...)` network inputs of all clips, or the feed of several.
            labels: `(N,)` int32 classes.
            folds: The folds to train, in order.
            batch_size: Clips a step; the last batch of an epoch is smaller, as PyTorch's loader.
                More than a fold's training clips: all of them.
            seed: Root of all random numbers.
            shuffle: Draw a new order of the training clips every epoch; else always `order`.
            order: `(N,)` int, all clips in the order in which they are trained on; None: as they
                are.
            folds_per_device: Folds trained side by side on one device, if the memory suffices; 0
                picks it from the free memory (on a CPU: 1) and balances the groups over the
                devices.
            devices: Devices of this process to use; all by default.
            devices_at_once: Use so many of them at most; 0: all.
            matmul_precision: Of products of float32, a key of `MATMUL_PRECISIONS`; without effect
                on a CPU, where they are float32 always.
            classes: Outputs to keep of the predictions; 0: all that the network has.
            start: Part of the network's variables, nested dicts of float32 arrays: every fold
                begins with these instead of initial values of its own.

        Raises:
            UserError: No fold, a fold without training or test clips, or a batch of no clip.
        """
        self.folds = list(folds)
        _check(self.folds, batch_size)
        self._seed = seed
        self._order = np.arange(len(labels)) if order is None else np.asarray(order)
        counts = [int(fold.train.sum()) for fold in self.folds]
        self._longest = max(counts)
        # A batch of more clips would be padding for every fold.
        batch_size = min(batch_size, self._longest)
        self._longest_test = max(int(fold.test.sum()) for fold in self.folds)
        feed = inputs if isinstance(inputs, Feed) else Feed.of_array(inputs)
        learner = dataclasses.replace(
            learner, has_empty_batches=has_empty_batches(counts, batch_size)
        )
        self._program = FoldProgram(
            learner,
            feed,
            batch_size=batch_size,
            longest=self._longest,
            shuffle=shuffle,
            classes=classes,
        )
        self._host_data = feed.arrays, labels.astype(np.int32)
        self._start = start or {}
        state = jax.eval_shape(self._program.init, np.zeros(2, np.uint32), self._start)
        self.parameter_bytes = _bytes((state.trained, state.idle, state.collections))
        self.state_bytes = _bytes(
            (state.trained, state.optimizer, state.average, state.collections)
        )
        self.program_bytes = 0
        devices = list(devices or jax.local_devices())
        precisions = _GPU_PRECISIONS if devices[0].platform == "gpu" else MATMUL_PRECISIONS
        self._precision = precisions[matmul_precision]
        self._size = GroupSize(
            len(self.folds),
            devices,
            self.state_bytes,
            self.parameter_bytes,
            processes=jax.process_count(),
            size=folds_per_device,
            devices_at_once=devices_at_once,
        )
        self._arrange()

    @property
    def folds_per_device(self) -> int:
        """The group size in use; may become smaller, see `Regrouped`."""
        return self._size.size

    @property
    def devices_at_once(self) -> int:
        """Devices in use if the memory does not suffice for more; else 0."""
        return self._size.devices_at_once

    @property
    def device_count(self) -> int:
        """Devices in use by this process."""
        return len(self._devices)

    def _arrange(self) -> None:
        """Places the data for the group size; what was compiled for another one is let go."""
        size, pool = self._size.size, self._size.pool
        # Several processes use all of their devices, so that they run the same program.
        is_alone = jax.process_count() == 1
        self._devices = pool[: len(groups(self.folds, len(pool), size))] if is_alone else pool
        mesh = jax.sharding.Mesh(np.array(self._devices), ("devices",))
        self._split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
        self._data = self._place_everywhere(self._host_data)
        self._programs: tuple[Any, Any] | None = None
        self._epochs_per_call = 1
        self._init = jax.pmap(_of_group(self._program.init, size, (0, None)), devices=self._devices)
        run = _of_group(self._program.run, size, (0, 0, None, None, None))
        self._run = jax.pmap(run, devices=self._devices, donate_argnums=(0,))

    def _place(self, *arrays: Any) -> Any:
        """Trees of host arrays (devices, ...) -> on the devices, in memory of their own."""
        # Before the compiled call, which is guarded against copies.
        return jax.device_put(arrays, self._split, may_alias=False)

    def _place_everywhere(self, tree: Any) -> Any:
        """A tree of host arrays -> on every device."""
        count = len(self._devices)
        return self._place(jax.tree.map(lambda a: np.broadcast_to(a, (count, *a.shape)), tree))[0]

    def _slots(self, count: int) -> np.ndarray:
        """`(count, 2)`: the device, among those of all processes, and the place of each fold."""
        parts = spread(range(count), len(self._devices) * jax.process_count())
        return np.array(
            [(device, i) for device, part in enumerate(parts) for i in range(len(part))]
        )

    def _tables(self, folds: Sequence[Fold]) -> dict[str, np.ndarray]:
        """Row numbers of every fold's clips, padded to one length, shaped (devices, group, ...).

        Places that no fold has are filled up with copies of the last fold.
        """

        every = np.arange(len(self._order))

        def padded(mask: np.ndarray, order: np.ndarray, length: int) -> np.ndarray:
            rows = order[mask[order]]
            return np.pad(rows, (0, length - len(rows))).astype(np.int32)

        origins = [origin(self._seed + fold.repetition, fold.stream or fold.name) for fold in folds]
        table = {
            "origin": np.array(origins, np.uint32),
            "train_rows": np.stack(
                [padded(fold.train, self._order, self._longest) for fold in folds]
            ),
            "train_count": np.array([fold.train.sum() for fold in folds], np.float32),
            "test_rows": np.stack([padded(fold.test, every, self._longest_test) for fold in folds]),
        }
        own = len(self._devices)
        chosen = np.full((own * jax.process_count(), self.folds_per_device), len(folds) - 1)
        for index, slot in enumerate(self._slots(len(folds))):
            chosen[tuple(slot)] = index
        mine = chosen[jax.process_index() * own : (jax.process_index() + 1) * own]
        return {key: value[mine] for key, value in table.items()}

    def rounds(self, done: Collection[str] = ()) -> list[list[Fold]]:
        """The folds of each round: whole groups, one on every device at a time.

        Args:
            done: Names of folds to leave out.
        """
        at_once = len(self._devices) * jax.process_count()
        pending = [fold for fold in self.folds if fold.name not in {*done}]
        parts = groups(pending, at_once, self.folds_per_device)
        return [
            [fold for group in parts[i : i + at_once] for fold in group]
            for i in range(0, len(parts), at_once)
        ]

    def _compile(self, tables: dict[str, jax.Array], start: Any, copies: int) -> tuple[Any, Any]:
        """The programs `(init, run)`, compiled on first use.

        Args:
            tables: On the devices.
            start: What the folds begin with, on the devices.
            copies: Of the state that the main memory must hold besides.

        Raises:
            Regrouped: They do not fit the memory.
            UserError: They do not, and nothing can be made smaller.
        """
        if self._programs is None:
            with jax.default_matmul_precision(self._precision):
                init = self._init.lower(tables["origin"], start)
            # Compiling one program while tracing the other saves about a quarter of the wait.
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                compiled_init = pool.submit(init.compile)
                with jax.default_matmul_precision(self._precision):
                    state = init.out_info
                    if jax.process_count() > 1:  # pmap then traces with real arrays only
                        state = compiled_init.result()(tables["origin"], start)
                    run = self._run.lower(state, tables, self._data, *self._span(0, 1))
                    del state  # it would count as memory in use
                on_cpu = self._devices[0].platform == "cpu"
                compiled_run = run.compile(CPU_COMPILER_OPTIONS if on_cpu else None)
                programs = compiled_init.result(), compiled_run
            self.program_bytes = max(needed_bytes(program) for program in programs)
            self._size.check(self.program_bytes, copies if on_cpu else 0, self._devices)
            self._programs = programs
        return self._programs

    def _span(self, start: int, count: int) -> Any:
        """The arguments `start` and `count` of a call, on every device."""
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
            keeping: Snapshots of this round; training resumes from the newest sound one. The
                results are the same bits as without any interruption.
            wanted: Names of folds whose variables to fetch from the devices; None: all.

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
            try:
                return self._train(folds, epochs, on_progress or (lambda p: None), keeping, wanted)
            except jax.errors.JaxRuntimeError as error:
                if not is_exhausted(error):
                    raise
            # Only here are the arrays of the failed attempt let go, with the error's traceback.
            self._size.shrink(self.folds_per_device // 2, "out of memory", self._devices)
        except Regrouped:
            self._arrange()
            raise

    def _train(
        self,
        folds: Sequence[Fold],
        epochs: int,
        on_progress: Callable[[Progress], None],
        keeping: Keeping | None,
        wanted: Collection[str] | None,
    ) -> list[FoldResult]:
        slots = self._slots(len(folds))
        if slots[:, 1].max() >= self.folds_per_device:
            raise ValueError(f"{len(folds)} folds are more than a round has; ask rounds() again")
        (tables,) = self._place(self._tables(folds))
        began = time.monotonic()
        is_first = self._programs is None
        start = self._place_everywhere(self._start)
        init, run = self._compile(tables, start, copies=1 if keeping else 0)
        if is_first:
            on_progress(Progress(0, 0, math.nan, time.monotonic() - began))
        done, state, logits, losses = self._restored(keeping, tables, start)
        if state is None:
            state = init(tables["origin"], start)
        else:
            loss = float(losses[-1][:, -1].mean())
            on_progress(Progress(done, done * len(folds), loss, is_resumed=True))
        del start  # the state has copies of its own
        saved, saved_at = done, time.monotonic()
        while done < epochs:
            count = min(self._epochs_per_call, epochs - done)
            if keeping and keeping.every:
                count = min(count, keeping.every - (done - saved) % keeping.every)
            began = time.monotonic()
            span = self._span(done, count)
            # Everything is on the devices: a copy in the middle would make them wait.
            with jax.transfer_guard("disallow"):
                state, *results = run(state, tables, self._data, *span)
            results = hosts.gather(jax.device_get(results))
            new_logits, new_losses = (a[slots[:, 0], slots[:, 1], :count] for a in results)
            _check_finite(folds, new_logits, new_losses, done)
            logits.append(new_logits)
            losses.append(new_losses)
            done += count
            on_progress(Progress(done, count * len(folds), float(new_losses[:, -1].mean())))
            # All processes decide alike: on a stop that any was asked for, by the first's clock.
            signal = keeping.stop.number if keeping else 0
            waited, took = time.monotonic() - saved_at, time.monotonic() - began
            facts = hosts.gather(np.array([[signal, waited, took]]))
            signal, (_, waited, took) = int(facts[:, 0].max()), facts[0]
            if keeping and done < epochs:
                # Where epochs are fast, the snapshots would take longer than the training.
                is_due = keeping.every and done - saved >= keeping.every
                if signal or (is_due and waited >= keeping.seconds):
                    self._save(keeping.snapshots, done, state, logits, losses)
                    saved, saved_at = done, time.monotonic()
                if signal:
                    keeping.snapshots.wait()
                    raise Stopped(signal)
            self._epochs_per_call = int(
                np.clip(SECONDS_PER_CALL * count / took, 1, MAX_EPOCHS_PER_CALL)
            )
        variables = self._fetched(state, folds, slots, wanted)
        return [
            FoldResult(
                fold,
                np.concatenate([part[i] for part in logits])[:, : int(fold.test.sum())],
                np.concatenate([part[i] for part in losses]),
                variables.get(i),
            )
            for i, fold in enumerate(folds)
        ]

    def _fetched(
        self, state: State, folds: Sequence[Fold], slots: np.ndarray, wanted: Collection[str] | None
    ) -> dict[int, dict[str, Any]]:
        """Host copies of the wanted folds' variables, in process 0."""
        chosen = [i for i, fold in enumerate(folds) if wanted is None or fold.name in wanted]
        parts = (state.trained if state.average is None else state.average, *state[1:3])
        leaves, structure = jax.tree.flatten(parts)
        found: dict[int, list[np.ndarray]] = {i: [] for i in chosen}
        for leaf in leaves:
            shards = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
            on_host: dict[int, np.ndarray] = {}
            for i in chosen:
                process, device = divmod(int(slots[i, 0]), len(self._devices))
                value = np.zeros(leaf.shape[2:], leaf.dtype)
                if process == jax.process_index():
                    # Cut on the host: on the device every shape of leaf would be compiled for.
                    if device not in on_host:
                        on_host[device] = jax.device_get(shards[device])
                    # Copied, because on a CPU the host's array is the device's memory itself.
                    value = np.array(on_host[device][0, slots[i, 1]])
                # A leaf at a time, which bounds the memory that this takes.
                value = hosts.gather(value[None])[process]
                if hosts.leads():
                    found[i].append(value)
        if not hosts.leads():
            return {}
        return {
            i: State(*jax.tree.unflatten(structure, arrays), None).variables
            for i, arrays in found.items()
        }

    @staticmethod
    def _save(
        snapshots: Snapshots, done: int, state: State, logits: list[Any], losses: list[Any]
    ) -> None:
        results = {
            "logits": np.concatenate(logits, axis=1),
            "losses": np.concatenate(losses, axis=1),
        }
        snapshots.save(done, state, results)

    def _restored(self, keeping: Keeping | None, tables: dict[str, jax.Array], start: Any) -> Any:
        """(epochs done, state, logits, losses) of the newest snapshot; else (0, None, [], [])."""
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._split),
            jax.eval_shape(self._init, tables["origin"], start),
        )
        found = keeping.snapshots.latest(like) if keeping else None
        if found is None:
            return 0, None, [], []
        return found.epoch, found.state, [found.results["logits"]], [found.results["losses"]]


def _check(folds: Sequence[Fold], batch_size: int) -> None:
    if not folds:
        raise UserError("no fold to train: the data set has no subject to leave out")
    for fold in folds:
        count = int(fold.train.sum())
        if not count or not fold.test.any():
            raise UserError(
                f"fold {fold.name} has {count} training clips and "
                f"{int(fold.test.sum())} test clips; it needs both"
            )
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")


def _check_finite(folds: Sequence[Fold], logits: np.ndarray, losses: np.ndarray, done: int) -> None:
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
