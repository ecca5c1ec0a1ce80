"""Times ours against PyTorch in one process, in turn, on the same weights, inputs and batch.

  python tools/benchmark.py --json=speed.json                    # published size, 14 GB on 2 cores
  python tools/benchmark.py --cases=forward_1 --weights=bfloat16
  python tools/benchmark.py --config=configs/megc2019_narrow.py --cases=folds --folds=68

Cases: `train_step` (the step that training takes, on --batch_size clips), `forward_N` (logits of N
clips) and `folds` (epochs of --folds folds with the prediction of their test clips, as a run trains
them on all devices, against PyTorch's plain loop over one fold; the clips are random, as many as
MEGC 2019 has). `folds` also tells what compiling took and the peak of memory, which is its own if
it is the only case. Before the timing both must compute the same.

Rates count useful arithmetic only: products of matrices and convolutions, without taps on padding
and without the q and k of a single token, which cannot change the result. They stand beside what a
large product and a large sum reach in the same rounds. On a CPU both use all cores of the process
(`taskset` limits them); on a GPU both use it. Exit status 2: the input is wrong, or results differ.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.metadata
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from htnet_jax.config import parser_for
from htnet_jax.errors import UserError, count, run_command, say
from htnet_jax.features.features import Feed
from htnet_jax.io import core_count, write_atomically
from htnet_jax.learn import step as learn
from htnet_jax.learn.optim import Moment
from htnet_jax.progress import Bar
from htnet_jax.training import folds as training
from htnet_jax.training.state import build_module

try:
    from htnet_jax import torch_bridge
except UserError as missing:
    print(f"error: {missing}", file=sys.stderr)
    sys.exit(2)
import torch

from htnet_jax.torch_bridge import convert, parity
from htnet_jax.torch_bridge.layers import Attention
from htnet_jax.torch_bridge.traces import Clips, Losses, Optimizer, fed

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
_WEIGHTS = flags.DEFINE_enum(
    "weights", "float32", ["float32", "bfloat16"], "Type that ours keeps weights in (forward_N)."
)
_TF32 = flags.DEFINE_bool("tf32", False, "GPU: float32 products in TF32 on both sides.")
_SEED = flags.DEFINE_integer("seed", 0, "Of weights and inputs.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")

# The released MEGC 2019 data.
CLIPS, SUBJECTS = 442, 68
# Side of a product that takes about a fifth of a second, numbers in an array that no cache holds.
CEILINGS = {"cpu": (2048, 1 << 26), "cuda": (8192, 1 << 28)}
# One measurement repeats a short call until it lasts about this long.
SECONDS_PER_MEASUREMENT, MAX_CALLS = 0.3, 1000
# Steps whose losses must agree: the second one depends on the gradient and the optimizer as well.
COMPARED_STEPS = 2
# Largest difference of logits or losses that passes, relative to the largest value: rounding of
# sums over ten thousand terms, computed in the type, through fifty layers.
TOLERANCES = {"float32": 1e-3, "tensorfloat32": 2e-2, "bfloat16": 5e-2}

CONVOLUTIONS = (torch.nn.Conv2d, torch.nn.Conv3d)
# Seconds that a unit of work takes, measured once.
Measure = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured on both sides.

    Attributes:
        sides: "ours" and "torch" -> how.
        flops: Useful FLOPs a unit.
        bytes: Bytes a unit that cannot be avoided; None: the arithmetic takes longer.
        difference: Of the two sides' results, relative.
        more: Further figures.
    """

    sides: Mapping[str, Measure]
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
    builders, load = _builders(), os.getloadavg()[0]
    _check(_CONFIG.value)
    # A load of up to 1 may remain from something that has ended.
    if load > 1:
        print(
            f"warning: other work keeps this machine busy (load average {load:.1f}, {core_count()} "
            "cores): times will be too long, PyTorch's most of all, because its threads wait for "
            "each other in every operation",
            file=sys.stderr,
        )
    say(
        f"{count(len(builders), 'case')}, {count(_REPEATS.value, 'measurement')} of each side: at "
        "the published size a case takes one to five minutes on 2 cores, folds longest"
    )
    figures = _measure(Bench(_CONFIG.value), builders)
    figures["machine"] = {"load_average": load, **_machine()}
    print(table(figures))
    if _JSON.value:
        text = json.dumps(figures, indent=2) + "\n"
        write_atomically(Path(_JSON.value), lambda file: file.write(text.encode()))
        print(f"Written: {_JSON.value}")


def _builders() -> dict[str, Callable[[Bench], Case]]:
    """Case -> what builds it, in the order of the flag."""
    known: dict[str, Callable[[Bench], Case]] = {"train_step": train_step, "folds": folds}
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
    """Refuses what cannot work, before anything is computed."""
    torch_bridge.bridge_of(config.model.name)
    if config.model.dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.model.dtype={config.model.dtype}: use float32 or bfloat16 here")
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
    if _JSON.value and not (Path(_JSON.value).parent.is_dir() and not Path(_JSON.value).is_dir()):
        raise UserError(f"--json={_JSON.value}: is a folder or lies in none; give a file name")


class Bench:
    """Both frameworks on one kind of device, and a network in both; what all cases share."""

    def __init__(self, config: ConfigDict) -> None:
        # Otherwise JAX takes most of a GPU's memory at once and leaves PyTorch little.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        jax.config.update("jax_num_cpu_devices", core_count())
        torch.set_num_threads(core_count())
        backend = jax.default_backend()
        if backend not in ("cpu", "gpu") or (backend == "gpu" and not torch.cuda.is_available()):
            raise UserError(
                f"JAX runs on {backend}, but this PyTorch cannot; install one that can, or set "
                "JAX_PLATFORMS=cpu to compare on the CPU"
            )
        if _TF32.value and backend == "cpu":
            raise UserError("--tf32 is for GPUs; leave it out on a CPU")
        self.device = "cuda" if backend == "gpu" else "cpu"
        self.precision = "tensorfloat32" if _TF32.value else "float32"
        jax.config.update("jax_default_matmul_precision", self.precision)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = _TF32.value
        if "bfloat16" in (config.model.dtype, _WEIGHTS.value):
            self.precision = "bfloat16"
        self.compiler_options = training.CPU_COMPILER_OPTIONS if backend == "cpu" else None
        self.module = build_module(config.model)
        self.bridge = torch_bridge.BRIDGES[config.model.name]
        self.channels = len(config.dataset.channels.split(","))
        self.shapes = self.module.input_shapes(self.channels)
        self.learner = learn.make(self.module, config)
        self.optimizer = Optimizer.of_config(config)
        self.losses = Losses.of_config(config, self.module)
        self.losses.flax(self.module)  # raises if PyTorch's side lacks one
        self.rng = np.random.default_rng(_SEED.value)
        with torch.device("meta"):
            clip = [torch.empty(1, shape[-1], *shape[:-1]) for shape in self.shapes]
            self.work = count_work(self.bridge.build(self.module, self.channels), clip)

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """The network's weights, NumPy float32."""
        return parity.random_variables(self.module, self.bridge, self.channels, _SEED.value)

    def clips(self, count: int) -> Clips:
        """Drawn anew: inputs in 0..255 for a single one and N(0, 1) for several, and the rest."""
        inputs = (
            self.rng.uniform(0, 255, (count, *shape))
            if len(self.shapes) == 1
            else self.rng.normal(size=(count, *shape))
            for shape in self.shapes
        )
        labels = self.rng.integers(0, self.module.num_classes, count).astype(np.int32)
        drawn = tuple(one.astype(np.float32) for one in inputs)
        return Clips(drawn, labels, self.bridge.draw(self.module, count, self.rng))

    def wait(self, result: Any = None) -> None:
        """Waits until PyTorch's work is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def torch_model(self, variables: Mapping[str, Any]) -> torch.nn.Module:
        """The network in PyTorch, with weights of its own memory."""
        # Weights that are replaced right away need neither memory nor random numbers.
        with torch.device("meta"):
            model = self.bridge.build(self.module, self.channels)
        state_dict = convert.to_state_dict(variables, self.bridge.table)
        model.load_state_dict(state_dict, strict=True, assign=True)
        return model.to(self.device)

    def torch_clips(self, clips: Clips) -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
        """Inputs, channels first, labels, and what training sees, on PyTorch's device."""
        first = (np.ascontiguousarray(np.moveaxis(x, -1, 1)) for x in clips.inputs)
        tree = [*first], clips.labels.astype(np.int64), dict(clips.privileged)
        return jax.tree.map(lambda array: torch.from_numpy(array).to(self.device), tree)

    def torch_forward(self, model: torch.nn.Module, clips: Clips) -> Callable[[], torch.Tensor]:
        """A call that gives the logits of a batch, and waits for them."""
        inputs, *_ = self.torch_clips(clips)
        model.eval()

        @torch.inference_mode()
        def call() -> torch.Tensor:
            logits, _ = learn.logits_of(model(*inputs))
            self.wait()
            return logits

        return call

    def torch_epoch(
        self, model: torch.nn.Module, batches: Sequence[Clips], test: Clips | None = None
    ) -> Callable[[], torch.Tensor]:
        """A call that trains on every batch, predicts the test clips, and gives the last loss."""
        steps = [self.torch_clips(batch) for batch in batches]
        predict = self.torch_forward(model, test) if test else None
        optimizer = self.optimizer.torch(model.parameters())

        def call() -> torch.Tensor:
            model.train()
            for inputs, labels, privileged in steps:
                optimizer.zero_grad()
                named = {name: privileged[name] for name in fed(self.module, privileged)}
                loss = self.losses.torch(model(*inputs, **named), labels, privileged)
                loss.backward()
                optimizer.step()
            if predict:
                model.eval()
                predict()
            return loss.detach()

        return call


def forward(bench: Bench, clips: int) -> Case:
    """The logits of a batch; ours keeps its weights in --weights, PyTorch in float32."""
    batch, dtype = bench.clips(clips), _WEIGHTS.value
    variables = jax.tree.map(lambda a: jnp.asarray(a, dtype), bench.variables)
    inputs = jax.device_put(batch.inputs)
    program = jax.jit(bench.learner.predict).lower(variables, inputs)
    compiled = program.compile(bench.compiler_options)

    def ours() -> jax.Array:
        return jax.block_until_ready(compiled(variables, inputs))

    theirs = bench.torch_forward(bench.torch_model(bench.variables), batch)
    apart = compare(f"forward_{clips}", ours(), theirs(), bench.precision)
    sides = {"ours": per_call(ours, jax.block_until_ready), "torch": per_call(theirs, bench.wait)}
    read = bench.work.read_parameters * jnp.dtype(dtype).itemsize
    return Case(sides, clips * bench.work.forward_flops, read, apart, {"weights": dtype})


def train_step(bench: Bench) -> Case:
    """The training step on one batch again and again."""
    clips = inputs, labels, privileged = bench.clips(_BATCH_SIZE.value)
    mask = np.ones(len(labels), np.float32)
    batch = learn.Batch(inputs, dict(privileged), labels, mask, jax.random.key(0), Moment(0))
    batch = jax.device_put(batch)
    # Compiled, because Adam's two moments would otherwise share one array of zeros.
    state = [jax.jit(bench.learner.state_of)(bench.variables)]
    program = jax.jit(bench.learner.step, donate_argnums=0).lower(state[0], batch)
    compiled = program.compile(bench.compiler_options)

    def ours() -> jax.Array:
        state[0], metrics = compiled(state[0], batch)
        return metrics["loss"]

    theirs = bench.torch_epoch(bench.torch_model(bench.variables), [clips])
    apart = 0.0
    for number in range(1, 1 + COMPARED_STEPS):
        loss = ours() / len(labels)
        found = compare(f"train_step, loss {number}", loss, theirs(), bench.precision)
        apart = max(apart, found)
    sides = {"ours": per_call(ours, jax.block_until_ready), "torch": per_call(theirs, bench.wait)}
    return Case(sides, len(labels) * bench.work.step_flops, None, apart, {"clips": len(labels)})


def folds(bench: Bench) -> Case:
    """Ours by the trainer of runs; PyTorch resumes the first fold after its first epoch."""
    inputs, labels, privileged = bench.clips(CLIPS)
    names = tuple(f"input {number}" for number in range(1, len(inputs) + 1))
    subjects, epochs = np.arange(CLIPS) % SUBJECTS, _EPOCHS.value
    chosen = [
        training.Fold(f"s{index:02}", train=subjects != index, test=subjects == index)
        for index in range(_FOLDS.value)
    ]
    trainer = training.FoldTrainer(
        bench.learner,
        Feed(
            names,
            {**dict(zip(names, inputs, strict=True)), **privileged},
            privileged=tuple(privileged),
        ),
        labels,
        chosen,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
        folds_per_device=_GROUP.value,
        matmul_precision="tf32" if _TF32.value else "float32",
    )
    told: list[training.Progress] = []
    # All of them once: if they do not fit into memory, the groups become smaller here.
    first, *_ = training.train_rounds(trainer, 1, told.append)
    peak, rounds = _peak_bytes(), trainer.rounds()

    def seconds(epochs: int) -> float:
        return timed(lambda: [trainer.train(group, epochs) for group in rounds])

    def ours() -> float:
        # The difference leaves out the initial parameters and fetching the final ones.
        longer, shorter = seconds(1 + epochs), seconds(1)
        if longer <= shorter:
            raise UserError(
                f"folds: {1 + epochs} epochs took no longer than 1: the machine is too busy to "
                "measure so little; raise --epochs"
            )
        return (longer - shorter) / (epochs * len(chosen))

    def rows(mask: np.ndarray) -> Clips:
        return Clips(*jax.tree.map(lambda one: one[mask], (inputs, labels, dict(privileged))))

    train, test = np.flatnonzero(chosen[0].train), rows(chosen[0].test)
    starts = range(0, len(train), _BATCH_SIZE.value)
    batches = [rows(train[start : start + _BATCH_SIZE.value]) for start in starts]
    model = bench.torch_model(first.variables)
    theirs = bench.torch_forward(model, test)()
    apart = compare("folds, logits after an epoch", first.logits[-1], theirs, bench.precision)
    sides = {"ours": ours, "torch": per_call(bench.torch_epoch(model, batches, test), bench.wait)}
    work = bench.work
    flops = [f.train.sum() * work.step_flops + f.test.sum() * work.forward_flops for f in chosen]
    more = {
        "folds": len(chosen),
        "folds_per_device": trainer.folds_per_device,
        "devices": trainer.device_count,
        "compile_s": sum(progress.compiling_s for progress in told),
        "program_bytes": trainer.program_bytes,
        "peak_bytes": peak,
    }
    return Case(sides, int(sum(flops)) // len(flops), None, apart, more)


def _peak_bytes() -> int:
    """The most that the fullest accelerator has held; on a CPU, this process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if peaks := [one["peak_bytes_in_use"] for one in stats if one]:
        return max(peaks)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def compare(what: str, ours: Any, theirs: torch.Tensor, precision: str) -> float:
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
        forward_flops: Of a forward pass.
        step_flops: Of both passes: a product has two gradients, or one if it reads the inputs.
        read_parameters: Numbers that a forward pass reads.
    """

    forward_flops: int = 0
    step_flops: int = 0
    read_parameters: int = 0

    def add(self, flops: int, read: torch.Tensor) -> None:
        """Adds a product of some tensor."""
        self.forward_flops += flops
        self.step_flops += flops * (3 if read.requires_grad else 2)


def count_work(model: torch.nn.Module, clip: Sequence[torch.Tensor]) -> Work:
    """The work of a PyTorch network on the inputs of one clip; meta tensors do."""
    work = Work(read_parameters=sum(parameter.numel() for parameter in model.parameters()))

    def product(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        (x,) = inputs
        places = x.numel() // x.shape[-1]
        if isinstance(layer, CONVOLUTIONS):
            window = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.padding, strict=True)
            places = len(x) * math.prod(taps(*axis) for axis in window)
        work.add(2 * places * math.prod(layer.weight.shape[:2]), x)

    def attention(layer: Any, attended: torch.Tensor) -> None:
        blocks, tokens, width = attended.shape
        if tokens > 1:  # The scores and the weighted sum.
            work.add(4 * blocks * tokens**2 * width, attended)
        else:
            idle = 2 * next(layer.parameters()).numel() // 3
            work.add(-2 * blocks * idle, attended)
            work.read_parameters -= idle

    for layer in model.modules():
        if isinstance(layer, (*CONVOLUTIONS, torch.nn.Linear)):
            layer.register_forward_hook(product)
        elif isinstance(layer, Attention):
            layer.attended.register_forward_hook(
                lambda _, inputs, output, layer=layer: attention(layer, output)
            )
    model(*clip)
    return work


def taps(length: int, size: int, stride: int, padding: int) -> int:
    """Along one axis, the points of a window in all its places that are no padding."""
    starts = range(-padding, length + padding - size + 1, stride)
    return sum(0 <= start + point < length for start in starts for point in range(size))


def timed(work: Callable[[], Any]) -> float:
    """Seconds that one call of `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def per_call(call: Callable[[], Any], wait: Callable[[Any], Any]) -> Measure:
    """Compiles and warms up, then returns a measurement of many calls in a row.

    Args:
        call: One unit of work; may return before it is done.
        wait: Given what the last call returned, waits until all calls are done.
    """
    # The first call compiles, the second still fills caches and pools of memory.
    for _ in range(2):
        wait(call())
    once = timed(lambda: wait(call()))
    count = max(1, min(MAX_CALLS, math.ceil(SECONDS_PER_MEASUREMENT / max(once, 1e-9))))

    def calls() -> None:
        for _ in range(count):
            result = call()
        wait(result)

    return lambda: timed(calls) / count


def alternate(
    sides: Mapping[Any, Measure], repeats: int, on_measured: Callable[[], Any]
) -> dict[Any, np.ndarray]:
    """`(repeats,)` seconds of every side, in turn; every second round goes backwards."""
    seconds: dict[Any, list[float]] = {name: [] for name in sides}
    for index in range(repeats):
        for name in list(sides)[:: -1 if index % 2 else 1]:
            seconds[name].append(sides[name]())
            on_measured()
    return {name: np.array(values) for name, values in seconds.items()}


def ceilings(bench: Bench, dtype: str) -> dict[tuple[str, str], tuple[int, Measure]]:
    """(unit, side) -> FLOPs of a large product or bytes of a large sum, and its measurement."""
    size, count = CEILINGS[bench.device]
    # Small numbers, so that sums stay finite; zeros might be skipped.
    matrix = torch.full((size, size), 1e-3, dtype=getattr(torch, dtype), device=bench.device)
    array = torch.full((count,), 1e-3, device=bench.device)

    def ours(work: Callable[[jax.Array], jax.Array], x: jax.Array) -> Measure:
        compiled = jax.jit(work).lower(x).compile(bench.compiler_options)
        # Each call waits: several results at once would need several times the memory.
        return per_call(lambda: jax.block_until_ready(compiled(x)), jax.block_until_ready)

    product = ours(lambda x: x @ x, jnp.full((size, size), 1e-3, dtype))
    read = ours(jnp.sum, jnp.full(count, 1e-3, jnp.float32))
    return {
        ("flops", "ours"): (2 * size**3, product),
        ("flops", "torch"): (2 * size**3, per_call(lambda: matrix @ matrix, bench.wait)),
        ("bytes", "ours"): (4 * count, read),
        ("bytes", "torch"): (4 * count, per_call(lambda: array.sum(), bench.wait)),
    }


def _measure(bench: Bench, builders: Mapping[str, Callable[[Bench], Case]]) -> dict[str, Any]:
    """The figures of all cases; the ceilings take their turns in each, so load meets them alike."""
    limits, figures = {}, {}
    with Bar(len(builders) * (1 + 6 * _REPEATS.value), "benchmark", "measurement") as bar:
        for name, build in builders.items():
            bar.update(0, title=name)
            began = time.monotonic()
            case = build(bench)
            # After the first case, whose memory peak would otherwise include them.
            limits = limits or ceilings(bench, _CONFIG.value.model.dtype)
            bar.update()
            sides = {**case.sides, **{key: measure for key, (_, measure) in limits.items()}}
            seconds = alternate(sides, _REPEATS.value, bar.update)
            best: dict[str, float] = {}
            for (unit, side), (work, _) in limits.items():
                rate = work / float(np.median(seconds[unit, side]))
                best[unit] = max(best.get(unit, 0.0), rate)
            figures[name] = case_figures(case, seconds, best)
            # At once: the next case may take minutes, or be interrupted.
            ours, theirs = (_short(figures[name][f"{side}_s"], "s") for side in ("ours", "torch"))
            left = len(builders) - len(figures)
            say(
                f"{name}: ours {ours}, PyTorch {theirs}, ratio {figures[name]['ratio']:.2f} "
                f"({time.monotonic() - began:.0f} s; {count(left, 'case')} left)"
            )
            # They hold weights and optimizer states: free them before the next case has its own.
            del case, sides
            gc.collect()
    return figures


def case_figures(
    case: Case, seconds: Mapping[Any, np.ndarray], ceilings: Mapping[str, float]
) -> dict[str, Any]:
    """All figures of one case.

    Args:
        case: What was measured.
        seconds: "ours" and "torch" -> `(repeats,)`, seconds a unit.
        ceilings: "flops" and "bytes" -> the better framework's rate in the same rounds.

    Returns:
        For each side `SIDE_s` (the median), `SIDE_quartiles_s`, `SIDE_seconds` (all), the rate
        `SIDE_flops_per_s` and its share of the ceiling, `SIDE_of_flops_ceiling`, and the same of
        bytes. `ratio` is the median of PyTorch's seconds over ours.
    """
    works = {"flops": case.flops, "bytes": case.bytes}
    figures: dict[str, Any] = {**case.more, "difference": case.difference, **works}
    figures |= {f"{unit}_ceiling_per_s": rate for unit, rate in ceilings.items()}
    for side in ("ours", "torch"):
        low, middle, high = np.percentile(seconds[side], [25, 50, 75]).tolist()
        figures |= {f"{side}_s": middle, f"{side}_quartiles_s": [low, high]}
        figures[f"{side}_seconds"] = seconds[side].tolist()
        for unit, work in works.items():
            if work is not None:
                figures[f"{side}_{unit}_per_s"] = work / middle
                figures[f"{side}_of_{unit}_ceiling"] = work / middle / ceilings[unit]
    return {**figures, "ratio": figures["torch_s"] / figures["ours_s"]}


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures for a console: two lines a case."""
    rows = [["", "", "median", "quartiles", "ratio", "FLOP/s", "of ceiling", "bytes/s", "of read"]]
    notes = []
    for name, case in figures.items():
        for side in () if name == "machine" else ("ours", "torch"):
            quartiles = " .. ".join(_short(value, "s") for value in case[f"{side}_quartiles_s"])
            ratio = f"{case['ratio']:.2f}" if side == "torch" else ""
            row = [name, side, _short(case[f"{side}_s"], "s"), quartiles, ratio]
            for unit in ("flops", "bytes"):
                if f"{side}_{unit}_per_s" in case:
                    row.append(_short(case[f"{side}_{unit}_per_s"]))
                    row.append(f"{case[f'{side}_of_{unit}_ceiling']:.0%}")
            rows.append([*row, "", ""][:9])
        if "folds" in case:
            notes.append(
                f"{name}: {case['folds']} folds, {case['folds_per_device']} a device on "
                f"{case['devices']}; compiling {case['compile_s']:.1f} s; peak of memory "
                f"{_short(case['peak_bytes'], 'B')}"
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join([*lines, *notes])


def _short(value: float, unit: str = "") -> str:
    scales = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1, ""), (1e-3, "m"), (0, "u"))
    scale, prefix = next((scale, prefix) for scale, prefix in scales if value >= scale)
    return f"{value / (scale or 1e-6):.3g} {prefix}{unit}".rstrip()


def _machine() -> dict[str, Any]:
    """Where and how the figures were measured."""
    device, info = jax.local_devices()[0], Path("/proc/cpuinfo")
    processor = re.search(r"model name\s*: (.*)", info.read_text() if info.is_file() else "")
    packages = ("jax", "jaxlib", "flax", "numpy", "torch")
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "processor": processor[1] if processor else None,
        "cores": core_count(),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "model": _CONFIG.value.model.to_dict(),
    }


if __name__ == "__main__":
    run_command(main, flags_parser=parser_for(_CONFIG))
