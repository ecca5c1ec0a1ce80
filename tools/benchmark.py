"""Times ours against PyTorch in one process, in turn, on the same weights, inputs and batch.

  python tools/benchmark.py --json=speed.json                    # published size, 14 GB on 2 cores
  python tools/benchmark.py --config=configs/megc2019_narrow.py --cases=fold_epoch --folds=68
  python tools/benchmark.py --cases=forward_1 --weights=bfloat16 --compile

Cases: `train_step` (forward, gradient, Adam on --batch_size clips), `forward_N` (logits of N clips)
and `fold_epoch` (an epoch of a fold of 442 clips of 68 subjects, with the prediction of its test
clips: ours trains --folds folds on all devices, PyTorch one fold in a plain loop). Before the
timing both must compute the same. Rates count useful arithmetic only (`htnet_jax.models.costs`) and
are compared with what a large product and a large sum reach in the same rounds. On a CPU both use
--threads threads; on a GPU both use it. Exit status 2: the input is wrong, or the results differ.
"""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from htnet_jax.config import parser_for
from htnet_jax.errors import UserError, run_command
from htnet_jax.io import core_count

if TYPE_CHECKING:
    from htnet_jax.torch_bridge.speed_cases import Setup
    from htnet_jax.torch_bridge.speed_report import Case
    from htnet_jax.torch_bridge.stopwatch import Measure

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(Path(__file__).parents[1] / "configs" / "megc2019_htnet.py"),
    "Network and learning rate; keys can be overridden.",
)
_CASES = flags.DEFINE_list(
    "cases",
    "train_step,forward_1,forward_32,forward_256,fold_epoch",
    "What to time: train_step, forward_N for any N, fold_epoch.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Clips a training step.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each side.", lower_bound=1)
_FOLDS = flags.DEFINE_integer(
    "folds", 4, "Folds that ours trains in fold_epoch.", lower_bound=1, upper_bound=68
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", 0, "Epochs of a measurement of fold_epoch; 0: a second's worth.", lower_bound=0
)
_THREADS = flags.DEFINE_integer(
    "threads", None, "CPU cores for both; default: all there are.", lower_bound=1
)
_COMPILE = flags.DEFINE_bool(
    "compile", False, "Time PyTorch under torch.compile with its fused Adam as well."
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", "float32", ["float32", "bfloat16"], "Type that ours keeps weights in (forward_N)."
)
_TORCH_DTYPE = flags.DEFINE_enum(
    "torch_dtype", "float32", ["float32", "bfloat16"], "bfloat16: PyTorch under autocast."
)
_TF32 = flags.DEFINE_bool("tf32", False, "GPU: float32 products in TF32 on both sides.")
_SEED = flags.DEFINE_integer("seed", 0, "Of weights and inputs.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")

# The released MEGC 2019 data: clips and subjects.
_CLIPS, _SUBJECTS = 442, 68
# A product that takes about a fifth of a second, arrays that no cache holds.
_CEILINGS = {"cpu": (2048, 256 << 20), "cuda": (8192, 1 << 30)}
# A measurement of fold_epoch lasts at least so long, or so many epochs.
_EPOCH_SECONDS, _MAX_EPOCHS = 1.0, 64


Builder = Callable[["Setup"], tuple["Case", dict[str, "Measure"]]]


def main(argv: Sequence[str]) -> None:
    """Measures the cases that the flags name, prints the table and writes the figures."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; settings are given as --config.KEY=VALUE"
        )
    builders = _builders()
    machine = {"cores": core_count(), "load_average": _load()}
    threads = machine["threads"] = _limit_threads()
    _check(_CONFIG.value)
    _warn_if_busy(machine)
    setup = _set_up(_CONFIG.value, threads)
    from htnet_jax.torch_bridge import speed_report

    figures = _measure(setup, builders)
    figures["machine"] = {**machine, **_machine()}
    print(speed_report.table(figures))
    if _JSON.value:
        from htnet_jax.io import write_atomically

        text = json.dumps(figures, indent=2) + "\n"
        write_atomically(Path(_JSON.value), lambda file: file.write(text.encode()))
        print(f"Written: {_JSON.value}")


def _builders() -> dict[str, Builder]:
    """Case -> what builds it, in the order of the flag."""
    builders: dict[str, Builder] = {}
    unknown = []
    for name in _CASES.value:
        if forward := re.fullmatch(r"forward_([1-9]\d*)", name):
            builders[name] = functools.partial(_forward, clips=int(forward[1]))
        elif name in ("train_step", "fold_epoch"):
            builders[name] = _train_step if name == "train_step" else _fold_epoch
        else:
            unknown.append(repr(name))
    if unknown or not builders:
        named = ", ".join(unknown) or "nothing"
        raise UserError(
            f"--cases names {named}; use train_step, fold_epoch or forward_N (forward_1, ...)"
        )
    return builders


def _forward(setup: Setup, clips: int) -> tuple[Case, dict[str, Measure]]:
    from htnet_jax.torch_bridge import speed_cases

    return speed_cases.forward(setup, clips, _WEIGHTS.value)


def _train_step(setup: Setup) -> tuple[Case, dict[str, Measure]]:
    from htnet_jax.torch_bridge import speed_cases

    return speed_cases.train_step(setup, _BATCH_SIZE.value)


def _check(config: ConfigDict) -> None:
    """What cannot work, before anything is loaded or computed."""
    # A model that is no network has neither; it is refused below.
    dtype = config.model.get("dtype", "float32")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.model.dtype={dtype}: use float32 or bfloat16 here")
    for key in ("dropout", "drop_path"):
        if config.model.get(key, 0) and {"train_step", "fold_epoch"} & {*_CASES.value}:
            raise UserError(
                f"config.model.{key}={config.model[key]} draws other random numbers in PyTorch: "
                f"training cannot be compared; set --config.model.{key}=0.0"
            )
    smallest = _CLIPS - math.ceil(_CLIPS / _SUBJECTS)
    if "fold_epoch" in _CASES.value and _BATCH_SIZE.value > smallest:
        raise UserError(
            f"--batch_size={_BATCH_SIZE.value} is larger than the {smallest} training clips of a "
            "fold in fold_epoch; use a smaller one"
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
    from htnet_jax.torch_bridge import BRIDGES

    name = config.model.get("name")
    if name not in BRIDGES:
        raise UserError(
            f"config.model.name={name!r} has no network in PyTorch to compare with; use "
            f"{', '.join(BRIDGES)}"
        )


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


def _load() -> float | None:
    """How many programs wanted a core during the last minute, before this one began."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _warn_if_busy(machine: dict[str, Any]) -> None:
    idle = machine["cores"] - (machine["load_average"] or 0)
    # A load of up to 1 may be left over from something that has ended.
    if idle < machine["threads"] - 1:
        print(
            f"warning: other work keeps this machine busy (load average "
            f"{machine['load_average']:.1f}, {machine['cores']} cores): times will be too long, "
            "PyTorch's most of all, because its threads wait for each other in every operation",
            file=sys.stderr,
        )


def _set_up(config: ConfigDict, threads: int) -> Setup:
    """Starts both frameworks on one kind of device and draws the weights."""
    # Else JAX takes most of a GPU's memory at once and leaves PyTorch little.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import torch

    from htnet_jax.models.costs import COSTS
    from htnet_jax.torch_bridge import BRIDGES, parity
    from htnet_jax.torch_bridge.speed import TorchSide
    from htnet_jax.torch_bridge.speed_cases import Setup
    from htnet_jax.torch_bridge.traces import Optimizer
    from htnet_jax.training.folds import CPU_COMPILER_OPTIONS
    from htnet_jax.training.state import build_module

    jax.config.update("jax_num_cpu_devices", threads)
    torch.set_num_threads(threads)
    on_gpu = jax.default_backend() == "gpu"
    if not on_gpu and jax.default_backend() != "cpu":
        raise UserError(
            f"JAX runs on {jax.default_backend()}, PyTorch cannot; set JAX_PLATFORMS=cpu"
        )
    if on_gpu:
        if not torch.cuda.is_available():
            raise UserError(
                "JAX runs on a GPU, but this PyTorch sees none; install a PyTorch with CUDA, or "
                "set JAX_PLATFORMS=cpu to compare on the CPU"
            )
        jax.config.update(
            "jax_default_matmul_precision", "tensorfloat32" if _TF32.value else "float32"
        )
        torch.backends.cuda.matmul.allow_tf32 = _TF32.value
        torch.backends.cudnn.allow_tf32 = _TF32.value
    elif _TF32.value:
        raise UserError("--tf32 is for GPUs; leave it out on a CPU")
    module = build_module(config.model)
    bridge = BRIDGES[config.model.name]
    channels = len(config.dataset.channels.split(","))
    side = TorchSide(
        device="cuda" if on_gpu else "cpu",
        autocast=torch.bfloat16 if _TORCH_DTYPE.value == "bfloat16" else None,
    )
    sides = {"torch": side}
    if _COMPILE.value:
        sides["torch_compile"] = TorchSide(side.device, side.autocast, compiled=True)
    coarse = "bfloat16" in (config.model.dtype, _WEIGHTS.value, _TORCH_DTYPE.value)
    return Setup(
        module=module,
        bridge=bridge,
        costs=COSTS[config.model.name](module, channels),
        channels=channels,
        optimizer=Optimizer(config.optimizer, config.learning_rate, config.weight_decay),
        variables=parity.random_variables(module, bridge, channels, _SEED.value),
        torch_sides=sides,
        options=None if on_gpu else CPU_COMPILER_OPTIONS,
        precision="bfloat16" if coarse else "tensorfloat32" if _TF32.value else "float32",
        rng=np.random.default_rng(_SEED.value),
    )


def _measure(setup: Setup, builders: dict[str, Builder]) -> dict[str, Any]:
    """All figures; the ceilings take their turns in every case, so that load meets them alike."""
    from htnet_jax.torch_bridge import ceilings, speed_report
    from htnet_jax.torch_bridge.stopwatch import alternate

    repeats = _REPEATS.value
    device, dtype = setup.torch_sides["torch"].device, _CONFIG.value.model.dtype
    figures: dict[str, Any] = {}
    pooled: dict[tuple[str, str], list[np.ndarray]] = {}
    total = 1 + len(builders) * (1 + repeats * (1 + len(setup.torch_sides) + 6))
    with tqdm(total=total, mininterval=1) as bar:
        bar.set_description("ceilings: compiling")
        limits = ceilings.measures(device, dtype, *_CEILINGS[device], setup.options)
        bar.update()
        of_limits = {
            (name, side): measure
            for name, limit in limits.items()
            for side, measure in limit.sides.items()
        }
        for case_name, build in builders.items():
            bar.set_description(f"{case_name}: compiling")
            case, sides = build(setup)
            bar.update()
            bar.set_description(case_name)
            seconds = alternate({**sides, **of_limits}, repeats, bar.update)
            now = {
                name: speed_report.ceiling_figures(
                    limit.work, limit.unit, {side: seconds[name, side] for side in limit.sides}
                )
                for name, limit in limits.items()
            }
            of_case = {side: seconds[side] for side in sides}
            figures[case_name] = speed_report.case_figures(case, of_case, now)
            for key in of_limits:
                pooled.setdefault(key, []).append(seconds[key])
            # They hold weights and optimizer states: free them before the next case has its own.
            del sides
            gc.collect()
    figures["ceilings"] = {
        name: speed_report.ceiling_figures(
            limit.work,
            limit.unit,
            {side: np.concatenate(pooled[name, side]) for side in limit.sides},
        )
        for name, limit in limits.items()
    }
    return figures


def _fold_epoch(setup: Setup) -> tuple[Case, dict[str, Measure]]:
    """Ours by `FoldTrainer`; PyTorch goes on with the first fold from where one epoch led ours."""
    from htnet_jax.features.feeds import Feed

    from htnet_jax.torch_bridge import speed, speed_report, stopwatch
    from htnet_jax.training.folds import Fold, FoldTrainer, train_rounds

    inputs, labels = setup.batch(_CLIPS)
    names = tuple(f"input {number}" for number in range(1, len(inputs) + 1))
    subjects = np.arange(_CLIPS) % _SUBJECTS
    folds = [
        Fold(f"s{index:02}", train=subjects != index, test=subjects == index)
        for index in range(_FOLDS.value)
    ]
    trainer = FoldTrainer(
        setup.module,
        setup.optimizer.optax(),
        Feed(names, dict(zip(names, inputs, strict=True))),
        labels,
        folds,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
        matmul_precision="tf32" if _TF32.value else "float32",
        idle=setup.idle,
    )
    # All once: should the memory not suffice, the groups become smaller here.
    first, *_ = train_rounds(trainer, 1)
    rounds = trainer.rounds()
    logits = first.logits[-1]
    train, test = np.flatnonzero(folds[0].train), np.flatnonzero(folds[0].test)
    size = _BATCH_SIZE.value
    steps = [train[at : at + size] for at in range(0, len(train), size)]

    def clips(rows: np.ndarray) -> Any:
        return tuple(one[rows] for one in inputs), labels[rows]

    batches = [clips(rows) for rows in steps]
    sides: dict[str, Measure] = {"ours": _folds_measure(trainer, rounds)}
    apart = 0.0
    for name, side in setup.torch_sides.items():
        model = setup.torch_model(side, first.variables)
        theirs = side.forward(model, clips(test))()
        apart = max(apart, speed.compare(f"fold_epoch, {name}", logits, theirs, setup.precision))
        epoch = side.epoch(model, setup.optimizer, batches, clips(test))
        sides[name] = stopwatch.per_call(epoch, side.wait)
    counts = [(int(fold.train.sum()), int(fold.test.sum())) for fold in folds]
    flops = sum(
        train * setup.costs.step_flops + test * setup.costs.forward_flops for train, test in counts
    )
    unit = f"epoch of a fold; ours {len(folds)} folds, {trainer.folds_per_device} a device at once"
    return speed_report.Case(unit, flops // len(folds), None, apart), sides


def _folds_measure(trainer: Any, rounds: Sequence[Any]) -> Measure:
    """Measures seconds a fold-epoch: a longer run less a run of one epoch.

    The difference leaves out the initial parameters and fetching the final ones, which a run does
    once in hundreds of epochs.
    """
    from htnet_jax.torch_bridge.stopwatch import timed

    def seconds(epochs: int) -> float:
        def run() -> None:
            for folds in rounds:
                trainer.train(folds, epochs)

        return timed(run)

    extra = _EPOCHS.value or 1
    if not _EPOCHS.value:
        short = min(seconds(1), seconds(1))
        while extra < _MAX_EPOCHS and seconds(1 + extra) - short < _EPOCH_SECONDS:
            extra *= 2
    count = extra * sum(map(len, rounds))

    def measure() -> float:
        longer, shorter = seconds(1 + extra), seconds(1)
        if longer <= shorter:
            raise UserError(
                f"fold_epoch: {1 + extra} epochs took no longer than 1: the machine is too busy to "
                "measure so little; raise --epochs"
            )
        return (longer - shorter) / count

    return measure


def _machine() -> dict[str, Any]:
    """Where and how the figures were measured."""
    import jax
    import torch

    import htnet_jax

    names = ("jax", "jaxlib", "flax", "numpy", "torch")
    device = jax.local_devices()[0]
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "processor": _processor(),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "torch_device": torch.cuda.get_device_name() if device.platform == "gpu" else "cpu",
        "versions": {
            "python": platform.python_version(),
            "htnet_jax": htnet_jax.__version__,
            **{name: importlib.metadata.version(name) for name in names},
        },
        "model": _CONFIG.value.model.to_dict(),
    }


def _processor() -> str:
    """The processor's name; on Linux as the kernel says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()


if __name__ == "__main__":
    run_command(main, flags_parser=parser_for(_CONFIG))
