"""Times ours against PyTorch in one process, in turn, on the same weights, inputs and batch.

  python tools/benchmark.py --json=speed.json                    # published size, 14 GB on 2 cores
  python tools/benchmark.py --cases=forward_1 --weights=bfloat16
  python tools/benchmark.py --config=configs/megc2019_narrow.py --cases=folds --folds=68

Cases: `train_step` (the step that training takes, on --batch_size clips), `forward_N` (logits of N
clips) and `folds` (epochs of --folds folds with the prediction of their test clips, as a run trains
them on all devices, against PyTorch's plain loop over one fold; the folds are those of random clips
as many as MEGC 2019 has). `folds` also tells what compiling took and the peak of memory: time it
alone for that. Before the timing both must compute the same.

Rates count useful arithmetic only: products of matrices and convolutions, without taps on padding
and without the q and k of a single token, which cannot change the result. They stand beside what a
large product and a large sum reach in the same rounds. On a CPU both use --threads threads; on a
GPU both use it. Exit status 2: the input is wrong, or the results differ.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.metadata
import json
import math
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from htnet_jax.config import parser_for
from htnet_jax.errors import UserError, run_command
from htnet_jax.io import core_count, write_atomically

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(Path(__file__).parents[1] / "configs" / "megc2019_htnet.py"),
    "Network and optimizer; keys can be overridden.",
)
_CASES = flags.DEFINE_list(
    "cases",
    "train_step,forward_1,forward_32,forward_256,folds",
    "What to time: train_step, forward_N for any N, folds.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Clips a training step.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each side.", lower_bound=1)
_FOLDS = flags.DEFINE_integer("folds", 4, "Folds to train.", lower_bound=1, upper_bound=68)
_GROUP = flags.DEFINE_integer("group", 0, "Folds a device; 0: chosen as in a run.", lower_bound=0)
_EPOCHS = flags.DEFINE_integer("epochs", 4, "Epochs of a measurement of folds.", lower_bound=1)
_THREADS = flags.DEFINE_integer(
    "threads", None, "CPU cores for both; default: all there are.", lower_bound=1
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", "float32", ["float32", "bfloat16"], "Type that ours keeps weights in (forward_N)."
)
_TF32 = flags.DEFINE_bool("tf32", False, "GPU: float32 products in TF32 on both sides.")
_SEED = flags.DEFINE_integer("seed", 0, "Of weights and inputs.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")

# The released MEGC 2019 data: clips and subjects.
CLIPS, SUBJECTS = 442, 68
# A product that takes about a fifth of a second, an array that no cache holds (bytes).
CEILINGS = {"cpu": (2048, 256 << 20), "cuda": (8192, 1 << 30)}
# One measurement repeats a short call until it lasts about this long.
SECONDS_PER_MEASUREMENT, MAX_CALLS = 0.3, 1000
# Steps whose losses must agree: the second one depends on the gradient and the optimizer as well.
COMPARED_STEPS = 2
# Largest difference of logits or losses that passes, relative to the largest value: rounding of
# sums over ten thousand terms, computed in the type, through fifty layers.
TOLERANCES = {"float32": 1e-3, "tensorfloat32": 2e-2, "bfloat16": 5e-2}

# Measures once: seconds a unit of work. By side: "ours" and "torch".
Measure = Callable[[], float]
Sides = dict[str, Measure]
Clips = tuple[tuple[np.ndarray, ...], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """What was measured on both sides.

    Attributes:
        unit: What the seconds are for, in words.
        flops: Useful FLOPs a unit.
        bytes: Bytes a unit that cannot be avoided; None: the arithmetic takes longer.
        difference: Of the two sides' results, relative; measured before the timing.
        more: Further figures.
    """

    unit: str
    flops: int
    bytes: int | None
    difference: float
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def main(argv: Sequence[str]) -> None:
    """Measures the cases that the flags name, prints the table and writes the figures."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; settings are given as --config.KEY=VALUE"
        )
    builders = _builders()
    load = os.getloadavg()[0]
    threads = _limit_threads()
    _check(_CONFIG.value)
    # A load of up to 1 may be left over from something that has ended.
    if core_count() - load < threads - 1:
        print(
            f"warning: other work keeps this machine busy (load average {load:.1f}, {core_count()} "
            "cores): times will be too long, PyTorch's most of all, because its threads wait for "
            "each other in every operation",
            file=sys.stderr,
        )
    figures = _measure(Bench(_CONFIG.value, threads), builders)
    figures["machine"] = {"load_average": load, "threads": threads, **_machine()}
    print(table(figures))
    if _JSON.value:
        text = json.dumps(figures, indent=2) + "\n"
        write_atomically(Path(_JSON.value), lambda file: file.write(text.encode()))
        print(f"Written: {_JSON.value}")


def _builders() -> dict[str, Callable[[Bench], tuple[Case, Sides]]]:
    """Case -> what builds it, in the order of the flag."""
    known = {"train_step": train_step, "folds": folds}
    for name in _CASES.value:
        if found := re.fullmatch(r"forward_([1-9]\d*)", name):
            known[name] = functools.partial(forward, clips=int(found[1]))
    unknown = [repr(name) for name in _CASES.value if name not in known]
    if unknown or not _CASES.value:
        raise UserError(
            f"--cases names {', '.join(unknown) or 'nothing'}; use train_step, folds or forward_N "
            "(forward_1, ...)"
        )
    return {name: known[name] for name in _CASES.value}


def _check(config: ConfigDict) -> None:
    """What cannot work, before anything is loaded or computed."""
    dtype = config.model.get("dtype", "float32")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.model.dtype={dtype}: use float32 or bfloat16 here")
    for key in ("dropout", "drop_path"):
        if config.model.get(key, 0) and {"train_step", "folds"} & {*_CASES.value}:
            raise UserError(
                f"config.model.{key}={config.model[key]} draws other random numbers in PyTorch: "
                f"training cannot be compared; set --config.model.{key}=0.0"
            )
    smallest = CLIPS - math.ceil(CLIPS / SUBJECTS)
    if "folds" in _CASES.value and _BATCH_SIZE.value > smallest:
        raise UserError(
            f"--batch_size={_BATCH_SIZE.value} is larger than the {smallest} training clips of a "
            "fold; use a smaller one"
        )
    if _JSON.value:
        path = Path(_JSON.value)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give a file name")
    # Last, because it imports PyTorch.
    from htnet_jax.torch_bridge import bridge_of

    bridge_of(config.model.get("name"))


def _limit_threads() -> int:
    """Keeps the process to `--threads` cores; must come before JAX and PyTorch start threads."""
    cores = core_count()
    threads = _THREADS.value or cores
    if threads > cores:
        raise UserError(f"--threads={threads}: this process may use {cores} cores")
    if threads < cores:
        if not hasattr(os, "sched_setaffinity"):
            raise UserError("--threads works on Linux only; leave it out to use all cores")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    return threads


class Bench:
    """Both frameworks on one kind of device, and a network in both; what all cases share."""

    def __init__(self, config: ConfigDict, threads: int) -> None:
        # Else JAX takes most of a GPU's memory at once and leaves PyTorch little.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax
        import torch

        from htnet_jax.learn import step as learn
        from htnet_jax.models import build
        from htnet_jax.torch_bridge import bridge_of
        from htnet_jax.torch_bridge.traces import Optimizer
        from htnet_jax.training.folds import CPU_COMPILER_OPTIONS

        jax.config.update("jax_num_cpu_devices", threads)
        torch.set_num_threads(threads)
        backend = jax.default_backend()
        if backend not in ("cpu", "gpu") or (backend == "gpu" and not torch.cuda.is_available()):
            raise UserError(
                f"JAX runs on {backend}, but this PyTorch cannot; install one that can, or set "
                "JAX_PLATFORMS=cpu to compare on the CPU"
            )
        self.device = "cuda" if backend == "gpu" else "cpu"
        if _TF32.value and backend == "cpu":
            raise UserError("--tf32 is for GPUs; leave it out on a CPU")
        self.precision = "tensorfloat32" if _TF32.value else "float32"
        if backend == "gpu":
            jax.config.update("jax_default_matmul_precision", self.precision)
            torch.backends.cuda.matmul.allow_tf32 = _TF32.value
            torch.backends.cudnn.allow_tf32 = _TF32.value
        if "bfloat16" in (config.model.get("dtype"), _WEIGHTS.value):
            self.precision = "bfloat16"
        self.compiler_options = CPU_COMPILER_OPTIONS if backend == "cpu" else None
        self.module = build(config.model)
        self.bridge = bridge_of(config.model.name)
        self.channels = len(config.dataset.channels.split(","))
        self.learner = learn.make(self.module, config)
        self.optimizer = Optimizer.of_config(config)
        self.rng = np.random.default_rng(_SEED.value)
        with torch.device("meta"):
            shapes = self.module.input_shapes(self.channels)
            clip = [torch.empty(1, shape[-1], *shape[:-1]) for shape in shapes]
            self.work = count_work(self.bridge.build(self.module, self.channels), clip)

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """The network's weights, NumPy float32."""
        from htnet_jax.torch_bridge import parity

        return parity.random_variables(self.module, self.bridge, self.channels, _SEED.value)

    def clips(self, count: int) -> Clips:
        """Inputs, in 0..255 for a single one and N(0, 1) for several, and labels, drawn anew."""
        shapes = [(count, *shape) for shape in self.module.input_shapes(self.channels)]
        inputs = (
            self.rng.uniform(0, 255, shape) if len(shapes) == 1 else self.rng.normal(size=shape)
            for shape in shapes
        )
        labels = self.rng.integers(0, self.module.num_classes, count).astype(np.int32)
        return tuple(one.astype(np.float32) for one in inputs), labels

    def wait(self, result: Any = None) -> None:
        """Waits until PyTorch's work is done."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def torch_model(self, variables: Mapping[str, Any]) -> Any:
        """The network in PyTorch, with weights of its own memory."""
        import torch

        from htnet_jax.torch_bridge import convert

        # Weights that are replaced at once need neither memory nor random numbers.
        with torch.device("meta"):
            model = self.bridge.build(self.module, self.channels)
        state_dict = convert.to_state_dict(variables, self.bridge.table)
        model.load_state_dict(state_dict, strict=True, assign=True)
        return model.to(self.device)

    def torch_clips(self, clips: Clips) -> tuple[list[Any], Any]:
        """Inputs, channels first, and labels on PyTorch's device."""
        import torch

        first = (torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))) for x in clips[0])
        labels = torch.from_numpy(clips[1].astype(np.int64))
        return [x.to(self.device) for x in first], labels.to(self.device)

    def torch_forward(self, model: Any, clips: Clips) -> Callable[[], Any]:
        """A call that gives the logits of a batch, and waits for them."""
        import torch

        inputs, _ = self.torch_clips(clips)
        model.eval()

        def call() -> Any:
            with torch.inference_mode():
                logits = model(*inputs)
            self.wait()
            return logits

        return call

    def torch_epoch(
        self, model: Any, batches: Sequence[Clips], test: Clips | None
    ) -> Callable[[], Any]:
        """A call that trains on every batch in turn and predicts the test clips, if there are any.

        It gives the mean loss of the last batch.
        """
        import torch

        steps = [self.torch_clips(batch) for batch in batches]
        predicted = self.torch_clips(test)[0] if test else None
        optimizer = self.optimizer.torch(model.parameters())

        def call() -> Any:
            model.train()
            for inputs, labels in steps:
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(*inputs), labels)
                loss.backward()
                optimizer.step()
            if predicted:
                model.eval()
                with torch.no_grad():
                    model(*predicted)
            return loss.detach()

        return call


def forward(bench: Bench, clips: int) -> tuple[Case, Sides]:
    """The logits of a batch; ours keeps its weights in --weights, PyTorch in float32."""
    import jax
    import jax.numpy as jnp

    batch, dtype = bench.clips(clips), _WEIGHTS.value
    variables = jax.tree.map(lambda a: jax.device_put(jnp.asarray(a, dtype)), bench.variables)
    inputs = jax.device_put(batch[0])
    program = jax.jit(bench.learner.predict).lower(variables, inputs)
    compiled = program.compile(bench.compiler_options)

    def ours() -> jax.Array:
        return jax.block_until_ready(compiled(variables, inputs))

    theirs = bench.torch_forward(bench.torch_model(bench.variables), batch)
    apart = compare(f"forward_{clips}", ours(), theirs(), bench.precision)
    sides = {"ours": per_call(ours, jax.block_until_ready), "torch": per_call(theirs, bench.wait)}
    read = bench.work.read_parameters * jnp.dtype(dtype).itemsize
    unit = f"batch of {clips}; weights {dtype}"
    return Case(unit, clips * bench.work.forward_flops, read, apart), sides


def train_step(bench: Bench) -> tuple[Case, Sides]:
    """The training step on one batch again and again, from the same weights."""
    import jax

    from htnet_jax.learn import step as learn
    from htnet_jax.learn.optim import Moment

    clips = bench.clips(_BATCH_SIZE.value)
    inputs, labels = clips
    mask = np.ones(len(labels), np.float32)
    batch = learn.Batch(inputs, {}, labels, mask, jax.random.key(0), Moment(0))
    batch = jax.device_put(batch)
    # Compiled, because the two moments of Adam would else be one and the same zeros.
    state = [jax.jit(bench.learner.state_of)(bench.variables)]
    program = jax.jit(bench.learner.step, donate_argnums=0).lower(state[0], batch)
    compiled = program.compile(bench.compiler_options)

    def ours() -> Any:
        state[0], metrics = compiled(state[0], batch)
        return metrics["loss"] / len(labels)

    theirs = bench.torch_epoch(bench.torch_model(bench.variables), [clips], None)
    apart = max(
        compare(f"train_step, loss {index + 1}", ours(), theirs(), bench.precision)
        for index in range(COMPARED_STEPS)
    )
    sides = {"ours": per_call(ours, jax.block_until_ready), "torch": per_call(theirs, bench.wait)}
    return Case(f"step of {len(labels)} clips", len(labels) * bench.work.step_flops, None, apart), (
        sides
    )


def folds(bench: Bench) -> tuple[Case, Sides]:
    """Ours by the trainer of runs; PyTorch resumes the first fold after its first epoch."""
    from htnet_jax.features.features import Feed
    from htnet_jax.training.folds import Fold, FoldTrainer, train_rounds

    inputs, labels = bench.clips(CLIPS)
    names = tuple(f"input {number}" for number in range(1, len(inputs) + 1))
    subjects = np.arange(CLIPS) % SUBJECTS
    which = range(_FOLDS.value)
    chosen = [Fold(f"s{i:02}", train=subjects != i, test=subjects == i) for i in which]
    trainer = FoldTrainer(
        bench.learner,
        Feed(names, dict(zip(names, inputs, strict=True))),
        labels,
        chosen,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
        folds_per_device=_GROUP.value,
        matmul_precision="tf32" if _TF32.value else "float32",
    )
    compiling: list[float] = []
    # All once: should the memory not suffice, the groups become smaller here.
    first, *_ = train_rounds(trainer, 1, lambda progress: compiling.append(progress.compiling_s))
    peak, rounds = _peak_bytes(), trainer.rounds()

    def seconds(epochs: int) -> float:
        return timed(lambda: [trainer.train(group, epochs) for group in rounds])

    def ours() -> float:
        # The difference leaves out the initial parameters and fetching the final ones.
        longer, shorter = seconds(1 + _EPOCHS.value), seconds(1)
        if longer <= shorter:
            raise UserError(
                f"folds: {1 + _EPOCHS.value} epochs took no longer than 1: the machine is too busy "
                "to measure so little; raise --epochs"
            )
        return (longer - shorter) / (_EPOCHS.value * len(chosen))

    def clips(rows: np.ndarray) -> Clips:
        return tuple(one[rows] for one in inputs), labels[rows]

    train, test = np.flatnonzero(chosen[0].train), clips(np.flatnonzero(chosen[0].test))
    starts = range(0, len(train), _BATCH_SIZE.value)
    batches = [clips(train[start : start + _BATCH_SIZE.value]) for start in starts]
    model = bench.torch_model(first.variables)
    theirs = bench.torch_forward(model, test)()
    apart = compare("folds, logits after an epoch", first.logits[-1], theirs, bench.precision)
    work = bench.work
    flops = [f.train.sum() * work.step_flops + f.test.sum() * work.forward_flops for f in chosen]
    more = {
        "folds": len(chosen),
        "folds_per_device": trainer.folds_per_device,
        "devices": trainer.device_count,
        "compile_s": sum(compiling),
        "program_bytes": trainer.program_bytes,
        "peak_bytes": peak,
    }
    epoch = bench.torch_epoch(model, batches, test)
    sides = {"ours": ours, "torch": per_call(epoch, bench.wait)}
    return Case("epoch of a fold", int(sum(flops)) // len(flops), None, apart, more), sides


def _peak_bytes() -> int:
    """The most that the fullest accelerator has held; on a CPU, this process."""
    import jax

    stats = [device.memory_stats() for device in jax.local_devices()]
    if peaks := [one["peak_bytes_in_use"] for one in stats if one]:
        return max(peaks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def compare(what: str, ours: Any, theirs: Any, precision: str) -> float:
    """The largest difference of two results, relative to PyTorch's largest value.

    Raises:
        UserError: It is above the tolerance of `precision` (times of different computations cannot
            be compared), or a result is not finite.
    """
    one, other = np.asarray(ours, np.float32), theirs.float().cpu().numpy()
    if one.shape != other.shape:
        raise ValueError(f"{what}: shapes {one.shape} and {other.shape}")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise UserError(f"{what}: ours or PyTorch's is not finite; lower the learning rate")
    apart = float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30))
    if apart > TOLERANCES[precision]:
        raise UserError(
            f"{what}: ours and PyTorch's differ by {apart:.1e}, more than {precision} allows "
            f"({TOLERANCES[precision]:.0e}); find the first difference by tools/check_parity.py"
        )
    return apart


@dataclasses.dataclass
class Work:
    """Useful work of a network; FLOPs are those of one clip, a multiply-add counted as 2.

    Attributes:
        forward_flops: Of the products of a forward pass.
        step_flops: Of forward and backward pass: a product has two gradients, but only one if what
            it reads needs none.
        read_parameters: Numbers that a forward pass reads.
    """

    forward_flops: int = 0
    step_flops: int = 0
    read_parameters: int = 0

    def add(self, flops: int, read: Any) -> None:
        """Adds a product of some tensor."""
        self.forward_flops += flops
        self.step_flops += flops * (3 if read.requires_grad else 2)


def count_work(model: Any, clip: Sequence[Any]) -> Work:
    """The work of a PyTorch network on the inputs of one clip; meta tensors do."""
    import torch

    from htnet_jax.torch_bridge.layers import Attention

    work = Work(read_parameters=sum(parameter.numel() for parameter in model.parameters()))

    def product(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        places = inputs[0].numel() // layer.weight.shape[1]
        if isinstance(layer, torch.nn.Conv2d):
            places = math.prod(map(_taps, inputs[0].shape[2:], *_window(layer)))
            places *= len(inputs[0])
            work.add(2 * places * math.prod(layer.weight.shape[:2]), inputs[0])
        else:
            work.add(2 * places * layer.weight.numel(), inputs[0])

    def attention(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        blocks, tokens, width = layer.attended_shape
        if tokens > 1:  # scores, and the weighted sum
            work.add(2 * 2 * blocks * tokens**2 * width, inputs[0])
        else:
            idle = 2 * next(layer.parameters()).numel() // 3
            work.add(-2 * blocks * idle, inputs[0])
            work.read_parameters -= idle
    raise NotImplementedError
