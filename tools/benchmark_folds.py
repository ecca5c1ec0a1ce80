"""Times training of whole folds, as a run does it: cost per fold, compile time, memory peak.

  python tools/benchmark_folds.py --config=configs/megc2019_narrow.py --folds=4,68 --epochs=5 \
      --config.dataset.manual_dir=FOLDER                         # cost per fold at 68 against 4
  python tools/benchmark_folds.py --config=configs/megc2019_htnet.py --folds=8 --groups=1,2,4 \
      --config.cpu_devices=1 --epochs=1 ...                      # memory peak by group size
  python tools/benchmark_folds.py --config=configs/megc2019_htnet.py --folds=68 --epochs=20 --torch

Every case trains in a process of its own, so that its memory peak is its own; nothing is cached, so
that compile times are real. `--torch` times PyTorch's loop on two folds in the same way and tells
what all folds and epochs of the config would take. Exit status 2: the input is wrong.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from htnet_jax.config import parser_for
from htnet_jax.errors import UserError, run_command

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(Path(__file__).parents[1] / "configs" / "demo.py"),
    "The run; keys can be overridden.",
)
_FOLDS = flags.DEFINE_list("folds", "4", "Numbers of folds to train.")
_GROUPS = flags.DEFINE_list("groups", "0", "Folds per device; 0: chosen as in a run.")
_EPOCHS = flags.DEFINE_integer("epochs", 5, "Epochs of each fold.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 1, "Times to train all folds.", lower_bound=1)
_TORCH = flags.DEFINE_bool("torch", False, "Time PyTorch's loop over two folds as well.")
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")
_CASE = flags.DEFINE_string("case", None, "For the tool's own use: a case to run here.")

# Folds that PyTorch's loop is timed on.
_TORCH_FOLDS = 2


def main(argv: Sequence[str]) -> None:
    """Runs each case that the flags name in a process of its own, prints and writes the figures."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; settings are given as --config.KEY=VALUE"
        )
    if _CASE.value:
        figures = _run_case(_CONFIG.value, json.loads(_CASE.value))
        _write(Path(_JSON.value), figures)
        return
    cases = [
        {"folds": folds, "group": group}
        for folds, group in itertools.product(
            _numbers("folds", _FOLDS.value, 1), _numbers("groups", _GROUPS.value, 0)
        )
    ]
    figures: dict[str, Any] = {"cases": [_in_process(case) for case in cases]}
    if _TORCH.value:
        figures["torch"] = _in_process({"folds": _TORCH_FOLDS, "torch": True})
    figures["config"] = json.loads(_CONFIG.value.to_json())
    print(_table(figures))
    if _JSON.value:
        _write(Path(_JSON.value), figures)
        print(f"Written: {_JSON.value}")


def _numbers(flag: str, given: Sequence[str], least: int) -> list[int]:
    """The whole numbers of a flag, each at least `least`."""
    if not given or not all(text.strip().isdecimal() and int(text) >= least for text in given):
        raise UserError(f"--{flag}={','.join(given)}: give whole numbers from {least}")
    return [int(text) for text in given]


def _in_process(case: dict[str, Any]) -> dict[str, Any]:
    """The figures of a case, from a fresh process with the same flags."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        done = subprocess.run(
            [
                *(sys.executable, __file__, *sys.argv[1:]),
                *(f"--case={json.dumps(case)}", f"--json={file}"),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "TQDM_DISABLE": "1"},
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            raise UserError(f"case {case} failed: {(errors or lines)[-1]}")
        sys.stderr.write(done.stderr)
        return json.loads(file.read_text())


def _run_case(config: ConfigDict, case: dict[str, Any]) -> dict[str, Any]:
    import jax

    from htnet_jax.io import core_count
    from htnet_jax.training import fold_costs

    jax.config.update("jax_num_cpu_devices", config.cpu_devices or core_count())
    work = fold_costs.prepare(config, case["folds"])
    if "torch" not in case:
        return fold_costs.measure(config, work, case["group"], _EPOCHS.value, _REPEATS.value)

    import torch

    from htnet_jax.torch_bridge import BRIDGES, speed_folds

    if config.model.name not in BRIDGES:
        raise UserError(f"config.model.name={config.model.name!r} has no network in PyTorch")
    if len(work.feed.names) != 1:
        raise UserError(
            f"--torch is for networks of one input; config.inputs={config.inputs!r}. "
            "tools/benchmark.py --cases=train_step compares a step of any network"
        )
    torch.set_num_threads(core_count())
    seconds = speed_folds.loop_seconds(
        config.model.name,
        work.module,
        work.feed.arrays[work.feed.names[0]],
        work.plan.labels,
        [(fold.train, fold.test) for fold in work.folds],
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        epochs=_EPOCHS.value,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    each = sum(seconds) / len(seconds)
    folds = len(work.plan.folds) * len(work.plan.seeds)
    return {
        "folds": len(seconds),
        "seconds_per_fold_epoch": each,
        "fold_seconds": seconds,
        "whole_run_folds": folds,
        "whole_run_s": each * folds * config.epochs,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _table(figures: dict[str, Any]) -> str:
    """The figures for people: a line a case."""
    rows = [["folds", "a device", "devices", "compiling", "fold-epoch", "fold-epochs/s", "peak"]]
    for case in figures["cases"]:
        rows.append(
            [
                str(case["folds"]),
                str(case["folds_per_device"]),
                str(case["devices"]),
                f"{case['compile_s']:.1f} s",
                f"{case['seconds_per_fold_epoch']:.4g} s",
                f"{case['fold_epochs_per_s']:.4g}",
                f"{case['peak_bytes'] / 1e9:.2f} GB",
            ]
        )
    lines = ["  ".join(cell.rjust(13) for cell in row) for row in rows]
    if "torch" in figures:
        loop, best = figures["torch"], min(c["seconds_per_fold_epoch"] for c in figures["cases"])
        lines.append(
            f"PyTorch's loop: {loop['seconds_per_fold_epoch']:.4g} s a fold-epoch "
            f"({loop['seconds_per_fold_epoch'] / best:.2f} times ours), "
            f"{loop['whole_run_s'] / 3600:.2f} h for {loop['whole_run_folds']} folds x "
            f"{figures['config']['epochs']} epochs"
        )
    return "\n".join(lines)


def _write(path: Path, figures: dict[str, Any]) -> None:
    from htnet_jax.io import write_atomically

    text = json.dumps(figures, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run_command(main, flags_parser=parser_for(_CONFIG))
