"""What training some folds of a config takes: seconds a fold-epoch, compiling, memory."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from htnet_jax.datasets import loading
from htnet_jax.errors import UserError
from htnet_jax.features.feeds import Feed
from htnet_jax.features.inputs import make_feed
from htnet_jax.training import planning, settings
from htnet_jax.training.folds import Fold, FoldTrainer, Progress, train_rounds
from htnet_jax.training.trainers import build_model, make_trainer


class Work(NamedTuple):
    """What is to be trained.

    Attributes:
        module: The network.
        plan: The run.
        feed: The network's inputs of all clips.
        folds: The first folds of the run.
    """

    module: Any
    plan: Any
    feed: Feed
    folds: list[Fold]


def prepare(config: ConfigDict, count: int) -> Work:
    """Loads the config's data and takes the first `count` folds of its protocol.

    Raises:
        UserError: As a run, or there are fewer folds.
    """
    settings.check(config)
    dataset = config.dataset
    arrays = loading.load(
        dataset.name,
        config=dataset.config,
        manual_dir=dataset.manual_dir,
        data_dir=dataset.data_dir,
        labels=dataset.labels,
    )
    arrays = planning.of_sources(arrays, dataset.sources)
    model, feed = build_model(config), make_feed(arrays, config)
    planning.check_fit(config, model, arrays, feed)
    plan = planning.make_plan(config, arrays, arrays.labels)
    folds = list(planning.folds(plan, plan.units(inner=False)).values())
    if count > len(folds):
        raise UserError(f"--folds names {count} folds, but the config has {len(folds)}")
    return Work(model, plan, feed, folds[:count])


def measure(
    config: ConfigDict, work: Work, group: int, epochs: int, repeats: int
) -> dict[str, Any]:
    """Trains the folds and times it.

    Args:
        config: The settings.
        work: From `prepare`.
        group: Folds per device; 0: chosen.
        epochs: Of each fold.
        repeats: Times to train them all.

    Returns:
        `compile_s`; `seconds`, of each repeat, from initial parameters to the last epoch's logits
        on the host, without compiling; the median's `seconds_per_fold_epoch` and
        `fold_epochs_per_s`; `folds_per_device` and `devices` in use; `program_bytes`, what the
        compiler says the program needs on each device; and `peak_bytes`, of the whole process on a
        CPU (with `held_before_bytes`, what it held before training), of the fullest device
        otherwise.

    Raises:
        UserError: The config's model is no network, or anything that training raises.
    """
    before = _process_peak_bytes()
    trainer = make_trainer(work.module, config, work.plan, work.feed, work.folds, group)
    if not isinstance(trainer, FoldTrainer):
        raise UserError(f"config.model.name={config.model.name!r} is no network")
    compiling: list[float] = []

    def on_progress(progress: Progress) -> None:
        if progress.compiling_s:
            compiling.append(progress.compiling_s)

    seconds = []
    for _ in range(repeats):
        compiled = len(compiling)
        began = time.perf_counter()
        for _ in train_rounds(trainer, epochs, on_progress, wanted=()):
            pass
        seconds.append(time.perf_counter() - began - sum(compiling[compiled:]))
    each = float(np.median(seconds)) / (len(work.folds) * epochs)
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if one]
    return {
        "folds": len(work.folds),
        "epochs": epochs,
        "compile_s": sum(compiling),
        "seconds": seconds,
        "seconds_per_fold_epoch": each,
        "fold_epochs_per_s": 1 / each,
        "folds_per_device": trainer.folds_per_device,
        "devices": trainer.device_count,
        "device_kind": jax.local_devices()[0].device_kind,
        "program_bytes": trainer.program_bytes,
        "peak_bytes": max(peaks) if peaks else _process_peak_bytes(),
        "held_before_bytes": 0 if peaks else before,
    }


def _process_peak_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
